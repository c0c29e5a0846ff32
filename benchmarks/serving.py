"""One node of a benchmark, in a process of its own that prints its address: `python -m benchmarks.SOME_node [SEED]`."""

from __future__ import annotations

import asyncio
import os
import sys

import meshnode
from meshnode.runtime.loop import run


def serve(app: str, *, slots: int) -> None:
    """Run a node with one worker until it is ended; the seed, if any, is the command's argument."""
    run(_serve(app, slots, tuple(sys.argv[1:2])))


async def _serve(app: str, slots: int, seeds: tuple[str, ...]) -> None:
    config = meshnode.Config(
        name=f"node-{os.getpid()}",
        port=0,
        seeds=seeds,
        http=False,
        app=app,
        workers=1,
        worker_threads=slots,
        log_level="error",
    )
    async with meshnode.Node(config) as node:
        print(node.mesh.me.address, flush=True)
        await asyncio.Event().wait()
