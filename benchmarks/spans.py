"""What tracing costs on call throughput: the same calls with spans off and on, alternated in one run.

    python -m benchmarks.spans

A server as a process of its own, a client here with 256 calls in flight. Off on both sides is the anchor. Prints the
median of the ratios of neighbouring arms: 0.97 means that tracing takes 3 %.
"""

from __future__ import annotations

import asyncio
import gc
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import meshnode
from meshnode.spans import Spans

IN_FLIGHT = 256
ARM_S = 1.0
ROUNDS = 9


async def calls_per_cpu_s(node: meshnode.Node) -> float:
    """Calls answered in one arm, per second of this process's own CPU time: others on the machine don't disturb it."""
    done = 0
    end = time.perf_counter() + ARM_S

    async def caller() -> None:
        nonlocal done
        while time.perf_counter() < end:
            await node.call("server", "echo", 1)
            done += 1

    gc.collect()
    began = time.process_time()
    await asyncio.gather(*(caller() for _ in range(IN_FLIGHT)))
    return done / (time.process_time() - began)


async def measure(seed: str) -> None:
    async with meshnode.Node(meshnode.Config(port=0, http=False, role="client", seeds=(seed,))) as node:
        await calls_per_cpu_s(node)
        ratios, off, on = [], 0.0, 0.0
        for _ in range(ROUNDS):
            node.dispatch.spans = None
            off = await calls_per_cpu_s(node)
            spans = node.dispatch.spans = Spans("client")
            on = await calls_per_cpu_s(node)
            ratios.append(on / off)
        ordered = sorted(ratios)
        print(
            f"off {off:,.0f} calls per CPU second, on {on:,.0f}; on/off median {median(ratios):.3f}, "
            f"quartiles {ordered[2]:.3f} to {ordered[-3]:.3f}; {spans.counted} spans kept, {spans.skipped} skipped"
        )


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        ready = Path(folder) / "ready"
        command = [sys.executable, "-m", "meshnode", "start", "--name", "server", "--port", "0"]
        server = subprocess.Popen(
            [*command, "--app", "tests.e2e.app:app", "--ready-file", str(ready), "--log-level", "error"]
        )
        try:
            while not ready.exists():
                time.sleep(0.05)
            from meshnode.runtime.loop import run

            run(measure(json.loads(ready.read_text())["gossip"]))
        finally:
            server.terminate()
            server.wait(10)


if __name__ == "__main__":
    main()
