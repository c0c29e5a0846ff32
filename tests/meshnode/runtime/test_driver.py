from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable

import pytest

from meshnode.runtime.driver import Driver
from meshnode.runtime.loop import run


class Counting:
    """A core whose tick asks for one effect: its own number."""

    def __init__(self) -> None:
        self.ticks = 0

    def tick(self) -> Iterable[str]:
        self.ticks += 1
        return [f"tick {self.ticks}"]


def fail(error: Exception) -> None:
    raise AssertionError(f"the driver failed: {error!r}")


async def test_effects_are_performed_in_order_even_behind_a_slow_one() -> None:
    done: list[str] = []
    gate: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    finished = asyncio.Event()

    async def persist() -> None:
        await gate
        done.append("persist")

    def perform(effect: str) -> Awaitable[None] | None:
        if effect == "persist":
            return persist()
        done.append(effect)
        if effect == "last":
            finished.set()
        return None

    driver = Driver(Counting(), perform, tick_s=1000, failed=fail)
    driver.start()
    driver.run(["first", "persist", "send"])
    driver.run(["last"])
    assert done == ["first"]
    gate.set_result(None)
    await finished.wait()
    assert done == ["first", "persist", "send", "last"]
    await driver.stop()


async def test_effects_added_while_performing_come_after_those_already_queued() -> None:
    done: list[str] = []

    def perform(effect: str) -> None:
        done.append(effect)
        if effect == "a":
            driver.run(["c"])

    driver = Driver(Counting(), perform, tick_s=1000, failed=fail)
    driver.start()
    driver.run(["a", "b"])
    assert done == ["a", "b", "c"]
    await driver.stop()


async def test_time_reaches_the_core_as_ticks() -> None:
    third = asyncio.Event()
    core = Counting()

    def perform(effect: str) -> None:
        if effect == "tick 3":
            third.set()

    driver = Driver(core, perform, tick_s=0.001, failed=fail)
    driver.start()
    await asyncio.wait_for(third.wait(), 60)
    await driver.stop()
    ticks = core.ticks
    await asyncio.sleep(0)
    assert core.ticks == ticks


@pytest.mark.parametrize("when", ["at once", "later"])
async def test_a_failed_effect_stops_the_driver_and_says_so(when: str) -> None:
    failed: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
    done: list[str] = []

    async def later() -> None:
        raise OSError("disk full")

    def perform(effect: str) -> Awaitable[None] | None:
        if effect == "persist":
            if when == "later":
                return later()
            raise OSError("disk full")
        done.append(effect)
        return None

    driver = Driver(Counting(), perform, tick_s=1000, failed=failed.set_result)
    driver.start()
    driver.run(["persist", "send"])
    assert str(await asyncio.wait_for(failed, 60)) == "disk full"
    driver.run(["send"])
    assert done == []
    await driver.stop()


async def test_a_core_that_rests_is_left_alone_for_so_many_ticks() -> None:
    resting, busy = Counting(), Counting()
    six = asyncio.Event()

    def count(effect: str) -> None:
        if effect == "tick 6":
            six.set()

    slow = Driver(resting, lambda _: None, tick_s=0.01, failed=fail, rest=lambda: 100_000)
    quick = Driver(busy, count, tick_s=0.01, failed=fail)
    slow.start()
    quick.start()
    await six.wait()
    assert resting.ticks == 1
    await slow.stop()
    await quick.stop()


async def test_who_hurries_ticks_after_one_interval_though_it_was_to_rest() -> None:
    core = Counting()
    ticked: asyncio.Queue[str] = asyncio.Queue()
    driver = Driver(core, ticked.put_nowait, tick_s=0.01, failed=fail, rest=lambda: 100_000)
    driver.hurry()  # not started: nothing to hurry
    driver.start()
    assert await asyncio.wait_for(ticked.get(), 60) == "tick 1"
    driver.hurry()
    assert await asyncio.wait_for(ticked.get(), 60) == "tick 2"
    await driver.stop()
    driver.hurry()
    assert core.ticks == 2


def test_who_hurries_may_do_so_when_its_tick_is_due_already() -> None:
    """With uvloop the handle of what is due at once is not that of a timer."""

    async def hurry_at_once() -> int:
        core = Counting()
        ticked: asyncio.Queue[str] = asyncio.Queue()
        driver = Driver(core, ticked.put_nowait, tick_s=0.0, failed=fail)
        driver.start()
        driver.hurry()
        await asyncio.wait_for(ticked.get(), 60)
        await driver.stop()
        return core.ticks

    assert run(hurry_at_once()) > 0
