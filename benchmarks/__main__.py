"""Run every benchmark that is there, one after the other: `python -m benchmarks [--quick]`, or name some of them.

Each also runs by itself (`python -m benchmarks.rpc`) and says at its head what it does. The output of each is shown as
it comes; a summary of what ran, and how long it took, ends the run.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import time

#: Benchmarks in the order they run: their arguments for a quick run, and what they measure.
ALL: dict[str, tuple[list[str], str]] = {
    "rpc": (["1"], "request and reply through the full stack, beside nats-py and pyzmq"),
    "channels": (["1"], "one real_time message and large bodies, beside plain pyzmq"),
    "isolation": (["--quick"], "what floods on one channel do to the others"),
    "encryption": (["1"], "what a mesh key costs"),
    "consensus": ([], "writes and reads of the replicated log"),
    "gossip": ([], "how fast news spreads, on a virtual clock"),
    "evaluation": ([], "evaluation on one node and on several"),
    "workers": ([], "worker processes"),
    "demos": (["--quick"], "demos the mesh agrees on: what they are worth, and what a round costs"),
    "spans": ([], "what tracing costs"),
}


def found(name: str) -> bool:
    spec = importlib.util.find_spec(f"benchmarks.{name}")
    if spec is None:
        return False
    package = spec.submodule_search_locations is not None
    return not package or importlib.util.find_spec(f"benchmarks.{name}.__main__") is not None


def main() -> int:
    here = [name for name in ALL if found(name)]
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Run the benchmarks.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(here)}; all by default")
    parser.add_argument("--quick", action="store_true", help="one short round where a benchmark can")
    options = parser.parse_args()
    unknown = set(options.names) - set(here)
    if unknown:
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}; there are {', '.join(here)}")
    lines, failed = [], False
    for name in options.names or here:
        quick, what = ALL[name]
        print(f"\n== {name}: {what}", flush=True)
        begin = time.monotonic()
        code = subprocess.run(
            [sys.executable, "-m", f"benchmarks.{name}", *(quick if options.quick else [])]
        ).returncode
        failed = failed or code != 0
        lines.append(f"  {name:<12} {time.monotonic() - begin:>5.0f} s   {'done' if code == 0 else f'failed ({code})'}")
    print(
        f"\nload now {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; figures from a busy machine are worth little"
    )
    print("\n".join(lines))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
