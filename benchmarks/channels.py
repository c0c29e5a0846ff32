"""The channels by themselves beside plain pyzmq: the way of one real_time message, and bodies of 1 MiB.

`python -m benchmarks.channels [ROUNDS]`. The systems take turns, ROUNDS times (5 by default); medians and ratios. What
encryption costs is in `benchmarks.encryption`.
"""

from __future__ import annotations

import os
import statistics
import sys

from benchmarks.measure import process

COUNTS = {"one_way": 2_000, "bodies": 600}
SYSTEMS = ("meshnode", "pyzmq")


def once(system: str, what: str) -> list[float]:
    with (
        process("benchmarks.channels_peers", system, "serve") as address,
        process("benchmarks.channels_peers", system, what, address, str(COUNTS[what])) as line,
    ):
        return [float(figure) for figure in line.split()]


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    medians: dict[str, dict[str, list[float]]] = {}
    for what in COUNTS:
        runs: dict[str, list[list[float]]] = {system: [] for system in SYSTEMS}
        for _ in range(rounds):
            for system, taken in runs.items():
                taken.append(once(system, what))
        medians[what] = {
            system: [statistics.median(figures) for figures in zip(*taken, strict=True)]
            for system, taken in runs.items()
        }
    (ours, our_p99), (pair, pair_p99) = (medians["one_way"][system] for system in SYSTEMS)
    print(f"median of {rounds} alternated runs, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    print(
        f"  one way, 64 bytes: real_time p50 {ours:,.0f} us, p99 {our_p99:,.0f}; pyzmq PAIR p50 {pair:,.0f} us, "
        f"p99 {pair_p99:,.0f}: {ours / pair:.2f}x the p50"
    )
    (bulk,), (plain,) = (medians["bodies"][system] for system in SYSTEMS)
    print(f"  bodies of 1 MiB: inference {bulk:,.0f} MB/s, pyzmq {plain:,.0f} MB/s: {bulk / plain:.0%}")


if __name__ == "__main__":
    main()
