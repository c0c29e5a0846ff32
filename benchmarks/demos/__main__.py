"""The command line; see the package."""

from __future__ import annotations

import argparse
import asyncio
import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from benchmarks.demos import figures, plot, sockets, study

KS = (8, 32)
PROCESSES = 2
QUICK_TRAIN = 60
TUNED_ON = 1000  # the first seed of those that are for tuning, and are not reported


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demos", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two seeds, 4 and 7 validators, no chart")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--k", type=int, nargs="+", default=KS, help="how many demos are chosen")
    parser.add_argument("--only", choices=("study", "tuning", "figures", "sockets"))
    parser.add_argument("--chart", type=Path, default=Path("docs/demos.svg"))
    options = parser.parse_args()
    wanted = (options.only,) if options.only else ("study", "sockets", "figures")
    ks = options.k[:1] if options.quick else options.k
    seeds = range(2 if options.quick else options.seeds)
    with ProcessPoolExecutor(min(PROCESSES, os.cpu_count() or 1), mp_context=get_context("spawn")) as pool:
        if "tuning" in wanted:
            for k in ks:
                found = list(pool.map(partial(study.tune_seed, k=k), (TUNED_ON + seed for seed in seeds)))
                print(f"\n{study.tuning(found, k)}", flush=True)
        if "study" in wanted:
            panels: dict[int, list[study.Seed]] = {}
            for k in ks:
                panels[k] = list(pool.map(partial(study.run_seed, k=k), seeds))
                print(f"\n{study.report(panels[k], k)}", flush=True)
                if not options.quick:
                    options.chart.write_text(plot.figure(panels))
            if not options.quick:
                print(f"\nchart: {options.chart}")
    if "sockets" in wanted:
        real, driven = asyncio.run(sockets.compare(KS[0], QUICK_TRAIN))
        print(f"\nfour real nodes over sockets: {real}\nthe same round in one process: {driven}", flush=True)
        if real != driven:
            raise SystemExit("they differ")
    if "figures" in wanted:
        print(f"\n{figures.report(figures.SIZES[:2] if options.quick else figures.SIZES)}")


if __name__ == "__main__":
    main()
