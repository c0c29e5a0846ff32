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
QUICK_TRAIN = 120
TUNED_ON = 1000


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demos", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two seeds, 4 and 7 validators, no chart")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first-seed", type=int, default=0, help=f"what was tuned was tuned on {TUNED_ON} and after")
    parser.add_argument("--k", type=int, nargs="+", default=KS, help="how many demos are chosen")
    parser.add_argument("--only", choices=("study", "figures", "sockets"))
    parser.add_argument("--chart", type=Path, default=Path("docs/demos.svg"))
    options = parser.parse_args()
    wanted = (options.only,) if options.only else ("study", "sockets", "figures")
    if "study" in wanted:
        seeds = range(options.first_seed, options.first_seed + (2 if options.quick else options.seeds))
        panels: dict[int, list[study.Seed]] = {}
        with ProcessPoolExecutor(min(PROCESSES, os.cpu_count() or 1), mp_context=get_context("spawn")) as pool:
            for k in options.k[:1] if options.quick else options.k:
                run = partial(study.run_seed, k=k)
                panels[k] = list(pool.map(run, seeds))
                print(f"\n{study.report(panels[k], k)}", flush=True)
                if not options.quick and options.first_seed == 0:
                    options.chart.write_text(plot.figure(panels))
        if not options.quick and options.first_seed == 0:
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
