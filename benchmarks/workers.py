"""One small task through the worker pool, there and back, beside the standard library's ProcessPoolExecutor.

`python -m benchmarks.workers [ROUNDS]`. The systems take turns, ROUNDS times (5 by default); medians and ratios are
shown. Both run a function that does nothing in one worker process; the pool also packs, queues, times, and answers
from a thread that can be interrupted.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import uvloop

import meshnode
from benchmarks.measure import Rate, drive, median
from meshnode.values import pack, unpack
from meshnode.workers.pool import ThreadPool, WorkerPool
from meshnode.workers.protocol import Task

app = meshnode.App()
WINDOWS = {1: 2_000, 8: 8_000}  # in flight: calls a run


def answer(inputs: dict[str, Any]) -> dict[str, Any]:
    return {"answer": inputs["text"]}


@app.program("answer")
def build() -> Callable[[dict[str, Any]], dict[str, Any]]:
    return answer


@app.program("answer_async")
def build_async() -> Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]:
    async def run(inputs: dict[str, Any]) -> dict[str, Any]:
        return answer(inputs)

    return run


async def through(pool: WorkerPool, program: str, in_flight: int, count: int) -> Rate:
    async def call() -> None:
        result = await pool.run(Task(program=program, inputs=pack({"text": "x" * 64})))
        assert unpack(result.prediction)["answer"]

    async with pool:
        return await drive(call, in_flight=in_flight, count=count)


async def once(system: str, in_flight: int, count: int) -> Rate:
    if system == "executor":
        loop = asyncio.get_running_loop()
        with ProcessPoolExecutor(1) as executor:

            async def call() -> None:
                await loop.run_in_executor(executor, answer, {"text": "x" * 64})

            return await drive(call, in_flight=in_flight, count=count)
    pool = ThreadPool(app) if system == "in threads" else WorkerPool(app)
    return await through(pool, "answer_async" if system == "pool, async" else "answer", in_flight, count)


async def start_once() -> float:
    started = time.perf_counter()
    async with WorkerPool(app):
        return time.perf_counter() - started


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    for in_flight, count in WINDOWS.items():
        runs: dict[str, list[Rate]] = {"pool": [], "pool, async": [], "in threads": [], "executor": []}
        for _ in range(rounds):
            for system, taken in runs.items():
                taken.append(uvloop.run(once(system, in_flight, count)))
        medians = {system: median(taken) for system, taken in runs.items()}
        anchor = medians["executor"]
        print(f"\n{in_flight} in flight, median of {rounds} alternated runs")
        for system, rate in medians.items():
            line = f"  {system:<12} {rate.per_s:>8,.0f}/s   p50 {rate.p50_us:>6,.0f} us   p99 {rate.p99_us:>7,.0f} us"
            ratio = f"   {rate.per_s / anchor.per_s:.2f}x its rate, {rate.p50_us / anchor.p50_us:.2f}x its p50"
            print(line + ("" if system == "executor" else ratio), flush=True)
    starts = sorted(uvloop.run(start_once()) for _ in range(rounds))
    print(f"\nstart of a worker until it is ready: {starts[len(starts) // 2]:.2f} s")


if __name__ == "__main__":
    main()
