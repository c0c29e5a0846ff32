"""What the containers run; copied into each as /app/app.py."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import meshnode

app = meshnode.App()


@app.handler("echo")
async def echo(args: Any, context: Any) -> Any:
    return args


@app.program("reverse")
def reverse() -> Callable[..., dict[str, Any]]:
    def run(inputs: Mapping[str, Any], session: Any = None) -> dict[str, Any]:
        time.sleep(0.1)  # stands for a model's latency: long enough that one node can't do it all
        return {"answer": inputs["text"][::-1]}

    return run


@app.metric("mirrored")
def mirrored(example: Mapping[str, Any], prediction: Mapping[str, Any], trace: Any = None) -> bool:
    return bool(example["answer"] == prediction["answer"])
