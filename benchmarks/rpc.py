"""Request and reply, 64-byte payload, two processes on loopback: meshnode's full stack beside its anchors.

`python -m benchmarks.rpc [ROUNDS]`. The systems take turns, ROUNDS times (5 by default); medians and ratios are shown.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys

from benchmarks.measure import Rate, median, process

WINDOWS = {1: 5_000, 256: 40_000}  # in flight: calls a run


def systems() -> list[str]:
    with_nats = importlib.util.find_spec("nats") is not None and shutil.which("nats-server") is not None
    return ["meshnode", "nats", "pyzmq"] if with_nats else ["meshnode", "pyzmq"]


def once(system: str, in_flight: int, count: int) -> Rate:
    with (
        process("benchmarks.rpc_peers", system, "serve") as address,
        process("benchmarks.rpc_peers", system, "drive", address, str(in_flight), str(count)) as line,
    ):
        return Rate(*map(float, line.split()))


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    for in_flight, count in WINDOWS.items():
        runs: dict[str, list[Rate]] = {system: [] for system in systems()}
        for _ in range(rounds):
            for system, taken in runs.items():
                taken.append(once(system, in_flight, count))
        medians = {system: median(taken) for system, taken in runs.items()}
        ours = medians["meshnode"]
        print(f"\n{in_flight} in flight, median of {rounds} alternated runs")
        for system, rate in medians.items():
            line = f"  {system:<10} {rate.per_s:>10,.0f}/s   p50 {rate.p50_us:>7,.0f} us   p99 {rate.p99_us:>7,.0f} us"
            if system != "meshnode":
                line += (
                    f"   meshnode: {ours.per_s / rate.per_s:.2f}x the rate, {ours.p50_us / rate.p50_us:.2f}x the p50"
                )
            print(line, flush=True)


if __name__ == "__main__":
    main()
