"""One node of the evaluation benchmark: programs that wait as long as a language model would, and compute nothing.

`python -m benchmarks.evaluation_node [SEED]` prints its gossip address once it serves, and runs until it is stopped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import meshnode
from benchmarks.serving import serve

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


if __name__ == "__main__":
    serve("benchmarks.evaluation_node:app", slots=SLOTS)
