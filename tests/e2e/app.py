"""What the nodes of the end-to-end tests run."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import meshnode

app = meshnode.App()

Program = Callable[..., dict[str, Any]]


@app.handler("echo")
async def echo(args: Any, context: Any) -> Any:
    return args


@app.handler("refuse")
async def refuse(args: Any, context: Any) -> Any:
    raise ValueError("not with me")


remembered: list[Any] = []


@app.on_event("remember")
def remember(payload: Any, context: Any) -> None:
    remembered.append(payload)


@app.on_query("recall")
async def recall(payload: Any, context: Any) -> Any:
    return remembered[-1] if remembered else None


@app.program("reverse")
def reverse() -> Program:
    return lambda inputs, session=None: {"answer": inputs["text"][::-1]}


@app.program("slow_reverse")
def slow_reverse() -> Program:
    def run(inputs: Mapping[str, Any], session: Any = None) -> dict[str, Any]:
        time.sleep(0.05)  # stands for a model's latency
        return {"answer": inputs["text"][::-1], "pid": os.getpid()}

    return run


@app.program("picky")
def picky() -> Program:
    def run(inputs: Mapping[str, Any], session: Any = None) -> dict[str, Any]:
        if inputs["text"].startswith("bad"):
            raise ValueError(f"can't read {inputs['text']!r}")
        return {"answer": inputs["text"][::-1]}

    return run


@app.metric("mirrored")
def mirrored(example: Mapping[str, Any], prediction: Mapping[str, Any], trace: Any = None) -> bool:
    return bool(example["answer"] == prediction["answer"])


@app.tool
def validate(answer: str, longest: int = 5) -> str:
    """Cut an answer to what its asker takes.

    answer: what a program would say.
    longest: how many characters are taken.
    """
    return f"{answer[:longest]} by {os.environ.get('MESHNODE_NAME', os.getpid())}"


@app.program("validated")
def validated() -> Program:
    """Has the owner of the session look over its answer; which argument it gives is up to the example."""

    def run(inputs: Mapping[str, Any], session: Any = None) -> dict[str, Any]:
        args = inputs.get("args", {"answer": inputs["text"][::-1]})
        return {"answer": session.tools.validate(**args), "pid": os.getpid()}

    return run


shout = app.variable("shout", bool, False)


@app.program("shouting")
def shouting() -> Program:
    return lambda inputs, session=None: {"answer": inputs["text"].upper() if shout.get() else inputs["text"]}
