"""Urgent channels ask the scheduler to go first; on Linux one can look whether it heard."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from channels.priority import give_way, hurry, is_io_thread, threads
from channels.spec import CHANNELS
from tests.channels.conftest import Mesh, until

if sys.platform != "linux":
    pytest.skip("only Linux gives each thread a priority of its own", allow_module_level=True)


def slice_ns(thread: int) -> int | None:
    """The time slice of a thread, None where the kernel does not tell."""
    try:
        lines = Path(f"/proc/self/task/{thread}/sched").read_text().splitlines()
    except OSError:
        return None
    found = [line.split(":")[1] for line in lines if line.startswith("se.slice ")]
    return int(found[0]) if found else None


async def test_bulk_and_telemetry_give_way_to_the_others(zeromq: Mesh) -> None:
    before, mine = threads(), os.getpriority(os.PRIO_PROCESS, 0)
    await zeromq.open("a")
    assert {spec.name: spec.nice > 0 for spec in CHANNELS} == {
        "inference": True, "coordination": False, "telemetry": True, "real_time": False,
    }  # fmt: skip
    wanted = sorted(min(19, mine + spec.nice) for spec in CHANNELS)

    def found() -> list[int]:
        own = filter(is_io_thread, threads() - before)
        return sorted(os.getpriority(os.PRIO_PROCESS, thread) for thread in own)

    await until(lambda: found() == wanted, 60)


async def test_a_thread_that_hurries_gets_short_slices_and_keeps_its_nice_value() -> None:
    nice, before = os.getpriority(os.PRIO_PROCESS, 0), slice_ns(os.getpid())
    hurry(0, 0.0002)
    during = slice_ns(os.getpid())
    hurry(0, 0.0)
    assert os.getpriority(os.PRIO_PROCESS, 0) == nice
    release = tuple(int(part) for part in os.uname().release.split(".")[:2])
    if before is not None and release >= (6, 12):
        assert during == 200_000
        assert slice_ns(os.getpid()) not in (None, 200_000)


def test_a_thread_that_is_gone_is_no_error() -> None:
    give_way(2**22 - 1, 1)
    with pytest.raises(ProcessLookupError):
        os.getpriority(os.PRIO_PROCESS, 2**22 - 1)
