"""Isolation of channels, measured: what a flood on one kind of traffic does to the others.

`python -m benchmarks.isolation [--quick] [--rounds N] [--seconds S] [--chart PATH] [--delay MS]`

Three arms carry the same traffic between the same two processes on loopback: (A) one shared socket, (A4) four sockets
alike with mixed traffic, (B) the four channels. Two probes run all the time: coordination, a request 10 times a second,
and real_time, a message there and one back 100 times a second; both are timed from when they were due, not from when
the loop came to send them. The floods are telemetry of 256 bytes at 50, 90 and 120 % of what arm B takes, and inference
with bodies of 64 KiB (64 requests at a time) and 1 MiB (16). Arms and floods take turns, each round begins with the
idle baseline, and each percentile is the median of the rounds' (in a round this short the 99.9th is the slowest probe).
`--delay` puts a relay of so long a round trip between the processes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.chart import bars
from benchmarks.isolation_arms import SPECS, TITLES
from benchmarks.measure import process

KIB, MIB = 1024, 1024 * 1024
PROBES = ("coordination", "real_time")
SHARES = (50, 90, 120)  # % of capacity


@dataclass(frozen=True)
class Flood:
    """One flood, as `isolation_peers` takes it."""

    title: str
    kind: str = ""
    share: int = 0
    body: int = 256
    window: int = 0


IDLE = Flood("idle")
FLOODS = (
    IDLE,
    *(Flood(f"telemetry at {share} %", "telemetry", share) for share in SHARES),
    Flood("inference, 64 KiB", "inference", body=64 * KIB, window=64),
    Flood("inference, 1 MiB", "inference", body=MIB, window=16),
)


@dataclass
class Outcome:
    """What came of one flood on one arm, in each round. Times are microseconds, sorted."""

    round_trips: dict[str, list[list[float]]] = field(default_factory=lambda: {probe: [] for probe in PROBES})
    lost: dict[str, int] = field(default_factory=dict)
    violations: int = 0
    offered: int = 0
    moved: list[float] = field(default_factory=list)

    def add(self, piece: dict[str, Any]) -> None:
        for probe, times in self.round_trips.items():
            times.append(sorted(time * 1e6 for time in piece[probe]))
        for kind, count in piece["lost"].items():
            self.lost[kind] = self.lost.get(kind, 0) + count
        self.violations += piece["violations"]
        self.offered += piece["offered"]
        self.moved.append(piece["bytes_per_s"])

    def at(self, probe: str, quantile: float) -> float:
        """A percentile of a probe's round trips, the median over the rounds; of few samples it is the largest."""
        rounds = [times for times in self.round_trips[probe] if times]
        return statistics.median(times[min(len(times) - 1, int(len(times) * quantile))] for times in rounds)


class Client:
    """The probing process of one arm."""

    def __init__(self, child: subprocess.Popen[str]) -> None:
        self._child = child

    def run(self, flood: Flood, rate: float, seconds: float) -> dict[str, Any]:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        wish = {"flood": flood.kind, "rate": rate, "body": flood.body, "window": flood.window, "seconds": seconds}
        self._child.stdin.write(json.dumps(wish) + "\n")
        self._child.stdin.flush()
        line = self._child.stdout.readline()
        if not line:
            raise RuntimeError(f"the probing process ended during {flood.title}")
        piece: dict[str, Any] = json.loads(line)
        return piece


@contextmanager
def client(arm: str, addresses: str) -> Iterator[Client]:
    """The probing process, connected to its server."""
    command = [sys.executable, "-m", "benchmarks.isolation_peers", arm, "probe", addresses]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        if child.stdout.readline().strip() != "ready":
            raise RuntimeError(f"the probing process of arm {arm} did not start")
        try:
            yield Client(child)
        finally:
            assert child.stdin is not None
            child.stdin.close()
            child.wait(10)


def measure(rounds: int, seconds: float, delay_s: float) -> dict[tuple[str, str], Outcome]:
    """Outcomes by arm and flood title."""
    outcomes = {(arm, flood.title): Outcome() for arm in SPECS for flood in FLOODS}
    with ExitStack() as stack:
        clients = {}
        for arm in SPECS:
            addresses = stack.enter_context(process("benchmarks.isolation_peers", arm, "serve"))
            if delay_s:
                addresses = stack.enter_context(delayed(addresses, delay_s))
            clients[arm] = stack.enter_context(client(arm, addresses))
        everything = Flood("as much as goes", "telemetry")
        pieces = [clients["B"].run(everything, 0, seconds / 2) for _ in range(3)]
        capacity = statistics.median(piece["bytes_per_s"] for piece in pieces) / everything.body
        print(f"arm B takes {capacity:,.0f} telemetry messages of {everything.body} bytes a second", flush=True)
        for _ in range(rounds):
            for flood in FLOODS:
                for arm in SPECS:
                    piece = clients[arm].run(flood, capacity * flood.share / 100, seconds)
                    outcomes[arm, flood.title].add(piece)
    return outcomes


@contextmanager
def delayed(addresses: str, delay_s: float) -> Iterator[str]:
    """The same addresses behind relays of a process of their own, `delay_s` there and back together."""
    with process("tests.relay", str(delay_s / 2), addresses) as behind:
        yield behind


def table(outcomes: dict[tuple[str, str], Outcome]) -> str:
    """The outcomes as a table in Markdown."""
    lines = [
        "| flood | arm | coordination p50 / p99 / p99.9 (us) | x idle | real_time p50 / p99 / p99.9 (us) | x idle "
        "| MB/s | lost: coordination, real_time, inference, telemetry | out of order |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for flood in FLOODS:
        for arm in SPECS:
            one, idle = outcomes[arm, flood.title], outcomes[arm, IDLE.title]
            cells = [flood.title, arm]
            for probe in PROBES:
                cells.append(" / ".join(f"{one.at(probe, quantile):,.0f}" for quantile in (0.5, 0.99, 0.999)))
                cells.append(f"{one.at(probe, 0.99) / idle.at(probe, 0.99):.1f}")
            cells.append(f"{statistics.median(one.moved) / 1e6:,.0f}" if flood.kind else "")
            lost = one.lost.get("telemetry", 0) / one.offered if flood.kind == "telemetry" else 0.0
            cells.append(", ".join(str(one.lost[kind]) for kind in (*PROBES, "inference")) + f", {max(0.0, lost):.0%}")
            cells.append(str(one.violations))
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def verdict(outcomes: dict[tuple[str, str], Outcome]) -> str:
    """The two ratios that matter, at their worst: the channels under any flood, and the shared socket under bulk."""
    lines = []
    for probe in PROBES:
        idle = outcomes["B", IDLE.title].at(probe, 0.99)
        worst = max(outcomes["B", flood.title].at(probe, 0.99) for flood in FLOODS[1:])
        bulk = [outcomes["A", flood.title].at(probe, 0.99) for flood in FLOODS if flood.kind == "inference"]
        shared = outcomes["A", IDLE.title].at(probe, 0.99)
        lines.append(
            f"{probe}: p99 under the worst flood is {worst / idle:.1f}x idle over the four channels (reach: 2x); "
            f"over one shared socket {min(bulk) / shared:.1f}x to {max(bulk) / shared:.1f}x under bulk (10x or more)"
        )
    return "\n".join(lines)


def chart(outcomes: dict[tuple[str, str], Outcome], path: Path) -> None:
    """The p99s as bars."""
    panels = {
        f"{probe}: p99 of the round trip, ms": {
            flood.title: {TITLES[arm]: outcomes[arm, flood.title].at(probe, 0.99) / 1000 for arm in SPECS}
            for flood in FLOODS
        }
        for probe in PROBES
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(bars("What a flood on one channel does to the others", panels))


def main() -> None:
    parser = argparse.ArgumentParser(description="Isolation of channels.")
    parser.add_argument("--quick", action="store_true", help="one short round, about 40 s, no chart")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.5, help="of each flood on each arm in each round")
    parser.add_argument("--chart", type=Path, default=Path("docs/isolation.svg"))
    parser.add_argument("--delay", type=float, default=0.0, metavar="MS", help="round trip of a relay in between")
    options = parser.parse_args()
    rounds, seconds = (1, 1.5) if options.quick else (options.rounds, options.seconds)
    load = os.getloadavg()[0]
    outcomes = measure(rounds, seconds, options.delay / 1000)
    print(table(outcomes))
    print(verdict(outcomes))
    print(f"load of the machine, {os.cpu_count()} cores: {load:.1f} before, {os.getloadavg()[0]:.1f} after")
    if not options.quick and not options.delay:
        chart(outcomes, options.chart)
        print(f"chart: {options.chart}")


if __name__ == "__main__":
    main()
