"""One node of the DSPy benchmark: a question-answering program and a model that another process serves.

`LM_BASE=… python -m benchmarks.dspy_node [SEED]` prints its gossip address once it serves.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

import uvloop

import meshnode

SLOTS = 8
NODES = 4

app = meshnode.App()


@app.program("qa")
def qa() -> Any:
    import dspy

    return dspy.ChainOfThought("question -> answer")


@app.lm
def lm() -> Any:
    import dspy

    return dspy.LM("openai/tiny", api_base=os.environ["LM_BASE"], api_key="x", cache=False)


async def serve(seeds: tuple[str, ...]) -> None:
    config = meshnode.Config(
        name=f"node-{os.getpid()}",
        port=0,
        seeds=seeds,
        http=False,
        app="benchmarks.dspy_node:app",
        workers=1,
        worker_threads=SLOTS,
        log_level="error",
    )
    async with meshnode.Node(config) as node:
        print(node.mesh.me.address, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(serve(tuple(sys.argv[1:2])))
