"""Isolation of channels, measured: what a flood on one kind of traffic does to the others.

`python -m benchmarks.isolation [--quick] [--rounds N] [--seconds S] [--chart PATH] [--docs PATH] [--delay MS]`

Three arms carry the same traffic between the same two processes on loopback: (A) one shared socket, (A4) four sockets
alike with mixed traffic, (B) the four channels. Two probes run all the time: coordination, a request 50 times a second,
and real_time, a message there and one back 100 times a second; both are timed from when they were due, not from when
the loop came to send them. The floods are telemetry of 256 bytes at 50, 90 and 120 % of what arm B takes, and inference
with bodies of 64 KiB (64 requests at a time) and 1 MiB (16). Arms and floods take turns, each round begins with the
idle baseline. `--delay` puts a relay of so long a round trip between the processes.

What the figures mean, and why they are taken so:

- A percentile is that of all rounds' probes together. One round has too few for a p99 of its own: that would be its
  slowest probe, and a median of such maxima says how unlucky a usual round is. All together have some 450 and 900, so
  the p99 is the fifth and the tenth slowest.
- A ratio to idle comes with the interval in which it lies for nine of ten draws of rounds with replacement: if it is
  wide, the run was too short or too disturbed to tell.
- A virtual machine's host takes processors away, 3 to 60 ms at a time; one hiccup of 15 ms is 1 % of a piece, so it
  alone would be the p99. Canaries (`benchmarks.canary`) notice without knowing what is measured. Probes that were due
  around such a time are left out, on all arms and idle alike, and by when they were due alone: how long they took plays
  no part. What part that was is in the table: should floods lose much more than idle pieces, floods would be what
  disturbs the host, and the table flatter. What a flood piles up for longer than that counts.
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
from pathlib import Path
from typing import Any

from benchmarks.canary import Canaries
from benchmarks.chart import bars
from benchmarks.isolation_arms import SPECS, TITLES
from benchmarks.isolation_outcomes import FLOODS, PROBES, Flood, Outcome, Outcomes, table, verdict
from benchmarks.measure import Stolen, process, put


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


def measure(rounds: int, seconds: float, delay_s: float) -> Outcomes:
    """Outcomes by arm and flood title."""
    outcomes = {(arm, flood.title): Outcome() for arm in SPECS for flood in FLOODS}
    with ExitStack() as stack:
        canaries = stack.enter_context(Canaries())
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
        if not canaries.real_time:
            print("no real-time policy for the canaries: short absences of the processors go unnoticed")
        for _ in range(rounds):
            for flood in FLOODS:
                for arm in SPECS:
                    canaries.absences()
                    piece = clients[arm].run(flood, capacity * flood.share / 100, seconds)
                    outcomes[arm, flood.title].add(piece, canaries.absences())
    return outcomes


@contextmanager
def delayed(addresses: str, delay_s: float) -> Iterator[str]:
    """The same addresses behind relays of a process of their own, `delay_s` there and back together."""
    with process("tests.relay", str(delay_s / 2), addresses) as behind:
        yield behind


def chart(outcomes: Outcomes, path: Path) -> None:
    """The p99s as bars."""
    panels = {
        f"{probe}: p99 of the round trip, ms": {
            flood.title: {TITLES[arm]: outcomes[arm, flood.title].at(probe, 0.99) * 1000 for arm in SPECS}
            for flood in FLOODS
        }
        for probe in PROBES
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(bars("What a flood on one channel does to the others", panels))


def main() -> None:
    parser = argparse.ArgumentParser(description="Isolation of channels.")
    parser.add_argument("--quick", action="store_true", help="one round, about 40 s, no chart")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=1.2, help="of each flood on each arm in each round")
    parser.add_argument("--chart", type=Path, default=Path("docs/isolation.svg"))
    parser.add_argument("--docs", type=Path, help="put the table there, too, in the place that is marked for it")
    parser.add_argument("--delay", type=float, default=0.0, metavar="MS", help="round trip of a relay in between")
    options = parser.parse_args()
    rounds = 1 if options.quick else options.rounds
    load, stolen = os.getloadavg()[0], Stolen()
    outcomes = measure(rounds, options.seconds, options.delay / 1000)
    left_out = sum(one.left_out for one in outcomes.values()) / sum(one.probes for one in outcomes.values())
    how = (
        f"{rounds} rounds of {options.seconds:g} s. {left_out:.0%} of the probes were left out because a processor was "
        f"away. Load of the machine, {os.cpu_count()} cores: {load:.1f} before, {os.getloadavg()[0]:.1f} after."
        f"{stolen.told()}"
    )
    report = "\n".join([table(outcomes), "", *(f"- {line}" for line in verdict(outcomes).splitlines()), "", how])
    print(report)
    if not options.quick and not options.delay:
        chart(outcomes, options.chart)
        print(f"chart: {options.chart}")
        if options.docs is not None:
            put(options.docs, "isolation", report)
            print(f"table: {options.docs}")


if __name__ == "__main__":
    main()
