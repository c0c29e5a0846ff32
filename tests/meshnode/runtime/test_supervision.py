from __future__ import annotations

import asyncio

from meshnode.runtime.supervision import Supervisor


def unexpected(name: str, error: BaseException) -> None:
    raise AssertionError(f"{name} was given up: {error!r}")


async def test_a_crashed_task_is_started_again() -> None:
    supervisor = Supervisor(unexpected, backoff_s=0.001)
    starts = 0
    third = asyncio.Event()

    async def work() -> None:
        nonlocal starts
        starts += 1
        if starts < 3:
            raise ValueError("crash")
        third.set()
        await asyncio.Event().wait()

    supervisor.start("work", work)
    await asyncio.wait_for(third.wait(), 60)
    assert supervisor.names() == ["work"]
    await supervisor.close()
    assert supervisor.names() == []


async def test_a_crash_loop_is_given_up_and_reported() -> None:
    given_up: asyncio.Future[tuple[str, BaseException]] = asyncio.get_running_loop().create_future()
    supervisor = Supervisor(lambda name, error: given_up.set_result((name, error)), backoff_s=0.001, max_crashes=3)

    async def work() -> None:
        raise ValueError("always")

    task = supervisor.start("work", work)
    name, error = await asyncio.wait_for(given_up, 60)
    assert (name, str(error)) == ("work", "always")
    await task
    assert supervisor.names() == []


async def test_closing_cancels_the_youngest_first_and_waits_for_its_cleanup() -> None:
    supervisor = Supervisor(unexpected)
    ended: list[str] = []
    running = [asyncio.Event(), asyncio.Event()]

    async def work(name: str, started: asyncio.Event) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append(name)

    supervisor.start("old", lambda: work("old", running[0]))
    supervisor.start("young", lambda: work("young", running[1]))
    for started in running:
        await started.wait()
    await supervisor.close()
    assert ended == ["young", "old"]
