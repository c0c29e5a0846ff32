"""What every benchmark needs: drive calls, take medians over alternated runs, run servers as processes of their own."""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Rate:
    """One run: calls per second, and latencies in microseconds."""

    per_s: float
    p50_us: float
    p99_us: float


async def drive(call: Callable[[], Awaitable[object]], *, in_flight: int, count: int, warm_up: int = 200) -> Rate:
    """Make `count` calls, `in_flight` at a time."""
    for _ in range(warm_up):
        await call()
    left, latencies = count, []

    async def caller() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            start = time.perf_counter()
            await call()
            latencies.append(time.perf_counter() - start)

    start = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(in_flight)))
    elapsed = time.perf_counter() - start
    latencies.sort()
    done = len(latencies)
    return Rate(done / elapsed, latencies[done // 2] * 1e6, latencies[int(done * 0.99)] * 1e6)


def median(runs: list[Rate]) -> Rate:
    """Each figure's median over the runs."""
    return Rate(*(statistics.median(getattr(run, field) for run in runs) for field in ("per_s", "p50_us", "p99_us")))


@contextmanager
def process(*arguments: str) -> Iterator[str]:
    """Run `python -m …` beside us; yields the first line it prints (its address), ends it on the way out."""
    child = subprocess.Popen([sys.executable, "-m", *arguments], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        line = child.stdout.readline().strip()
        if not line:
            raise RuntimeError(f"{' '.join(arguments)} ended before it served")
        yield line
    finally:
        child.terminate()
        child.wait(10)
        if child.stdout is not None:
            child.stdout.close()


class Stolen:
    """What part of the processors' time a virtual machine's host has given to others, of that since this was made."""

    def __init__(self) -> None:
        self._before = _processor_times()

    def told(self) -> str:
        """In words, for the foot of a table; empty where the system does not say."""
        spent = [after - before for before, after in zip(self._before, _processor_times(), strict=True)]
        if len(spent) < 8 or not sum(spent):
            return ""
        return f" The host kept {spent[7] / sum(spent):.1%} of the processors' time for others."


def _processor_times() -> list[int]:
    """User, nice, system, idle, waiting, interrupts, soft interrupts, stolen: by Linux, in its ticks."""
    path = Path("/proc/stat")
    return [int(each) for each in path.read_text().split()[1:9]] if path.exists() else []


def put(document: Path, name: str, text: str) -> None:
    """Put `text` into a document, between the lines `<!-- name: begin -->` and `<!-- name: end -->`."""
    before, begin, rest = document.read_text().partition(f"<!-- {name}: begin -->\n")
    _, end, after = rest.partition(f"<!-- {name}: end -->\n")
    if not begin or not end:
        raise ValueError(f"{document} has no place marked for {name}")
    document.write_text(f"{before}{begin}{text}\n{end}{after}")
