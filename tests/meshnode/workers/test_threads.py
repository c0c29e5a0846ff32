from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from meshnode.workers.threads import Interrupted, Threads


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.fixture
def threads() -> Threads:
    return Threads(2, "test")


def test_at_most_so_many_threads_are_made_and_only_when_needed(threads: Threads) -> None:
    seen: set[str] = set()
    ended = threading.Semaphore(0)
    for _ in range(50):
        threads.submit(lambda: seen.add(threading.current_thread().name), ended.release)
        ended.acquire(timeout=60)
    assert seen == {"test-1"}
    gate = threading.Barrier(3)
    for _ in range(2):
        threads.submit(lambda: (gate.wait(60), None)[1], ended.release)
    gate.wait(60)
    threads.close()


def test_an_interrupt_ends_python_code_and_the_thread_goes_on(threads: Threads) -> None:
    caught: list[type] = []
    started, ended = threading.Event(), threading.Event()

    def spin() -> None:
        started.set()
        try:
            while True:
                pass
        except BaseException as error:
            caught.append(type(error))

    job = threads.submit(spin, ended.set)
    assert started.wait(60)
    threads.interrupt(job)
    assert ended.wait(60)
    assert caught == [Interrupted]
    again = threading.Event()
    threads.submit(lambda: None, again.set)
    assert again.wait(60)
    threads.close()


def test_interrupts_never_reach_the_next_job(threads: Threads) -> None:
    outcomes: list[str] = []
    count = 300
    ended = threading.Semaphore(0)

    def short() -> None:
        sum(range(200))

    def guarded() -> None:
        try:
            for _ in range(50):
                sum(range(20))
            outcomes.append("whole")
        except Interrupted:
            outcomes.append("hit")

    for _ in range(count):
        threads.interrupt(threads.submit(short, ended.release))  # before, during or after it: a race on purpose
        threads.submit(guarded, ended.release)
    for _ in range(2 * count):
        assert ended.acquire(timeout=60)
    assert outcomes == ["whole"] * count
    threads.close()


def test_a_job_over_is_not_interrupted(threads: Threads) -> None:
    ended = threading.Event()
    job = threads.submit(lambda: None, ended.set)
    assert ended.wait(60)
    threads.interrupt(job)
    wait_for(lambda: job.thread is None)
    assert not job.interrupted
    threads.close()
