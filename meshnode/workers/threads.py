"""Threads that run jobs one after another and can be interrupted in the midst of Python code.

An interrupt raises `Interrupted` in the thread at its next byte code (PyThreadState_SetAsyncExc). A thread that waits
inside C code (a socket, a lock, `time.sleep`) only sees it when that returns; whoever interrupts must look again.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from queue import SimpleQueue


class Interrupted(BaseException):
    """Raised in user code that ran out of its time; not an Exception, so that `except Exception` lets it pass."""


class Job:
    """One piece of work for a thread; `thread` is the one that runs it now."""

    __slots__ = ("ended", "interrupted", "thread", "work")

    def __init__(self, work: Callable[[], None], ended: Callable[[], None]) -> None:
        self.work = work
        self.ended = ended
        self.interrupted = False
        self.thread: _Thread | None = None


class Threads:
    """At most `limit` daemon threads, made as they are needed.

    `submit(work, ended)`: `work` runs in a thread and must not raise; `ended` is called in that thread once it is over,
    however it ended.
    """

    def __init__(self, limit: int, name: str) -> None:
        self._limit = limit
        self._name = name
        self._queue: SimpleQueue[Job | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._made = 0
        self._pending = 0  # jobs submitted and not over; invariant: made >= min(pending, limit)

    def submit(self, work: Callable[[], None], ended: Callable[[], None]) -> Job:
        """Run `work` in a thread soon."""
        job = Job(work, ended)
        with self._lock:
            self._pending += 1
            if self._made < min(self._pending, self._limit):
                self._made += 1
                _Thread(self, f"{self._name}-{self._made}").start()
        self._queue.put(job)
        return job

    def interrupt(self, job: Job) -> None:
        """Raise `Interrupted` in the thread that runs this job; nothing happens if none does."""
        with self._lock:
            if job.thread is not None:
                job.interrupted = True
                _raise_in(job.thread, Interrupted)

    def close(self) -> None:
        """Let the threads end after what they run."""
        for _ in range(self._made):
            self._queue.put(None)

    def serve(self, thread: _Thread) -> None:
        """What each thread does."""
        job: Job | None = None
        while True:
            try:
                job = self._queue.get()
                if job is None:
                    return
                try:
                    with self._lock:
                        job.thread = thread
                    job.work()
                    if os.getpid() != self._pid:
                        os._exit(0)  # user code forked, and this is the child coming back: it has no loop to answer to
                finally:
                    self._end(job, thread)
            except Interrupted:  # it came late, after the work or while we were ending it
                if job is not None and job.thread is not None:
                    self._end(job, thread)

    def _end(self, job: Job, thread: _Thread) -> None:
        with self._lock:
            if job.interrupted:
                _raise_in(thread, None)  # takes back what has not been delivered: from here on none can come
            job.thread = None
            self._pending -= 1
        job.ended()


class _Thread(threading.Thread):
    def __init__(self, threads: Threads, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self._threads = threads

    def run(self) -> None:
        self._threads.serve(self)


def _raise_in(thread: threading.Thread, kind: type[BaseException] | None) -> None:
    import ctypes  # only when it comes to that

    assert thread.ident is not None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread.ident), ctypes.py_object(kind) if kind is not None else None
    )
