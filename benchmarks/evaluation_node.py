"""One node of the evaluation benchmark: programs that wait as long as a language model would, and compute nothing.

`python -m benchmarks.evaluation_node [SEED]` prints its gossip address once it serves, and runs until it is stopped.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from typing import Any

import uvloop

import meshnode

SLOTS = 8
LATENCIES_MS = (50, 200, 500)

app = meshnode.App()


def waiting(latency_ms: int) -> Callable[[], Any]:
    async def program(inputs: dict[str, Any], session: object = None) -> dict[str, Any]:  # noqa: ARG001 - programs are given one
        await asyncio.sleep(latency_ms / 1000)
        return {"answer": inputs["answer"]}

    return lambda: program


for _latency_ms in LATENCIES_MS:
    app.program(f"wait-{_latency_ms}")(waiting(_latency_ms))


async def serve(seeds: tuple[str, ...]) -> None:
    config = meshnode.Config(
        name=f"node-{os.getpid()}",
        port=0,
        seeds=seeds,
        http=False,
        app="benchmarks.evaluation_node:app",
        workers=1,
        worker_threads=SLOTS,
        log_level="error",
    )
    async with meshnode.Node(config) as node:
        print(node.mesh.me.address, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(serve(tuple(sys.argv[1:2])))
