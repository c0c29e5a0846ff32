"""A program that knows what its demos show, and nothing else."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import meshnode

app = meshnode.App()
DELAY_S = float(os.environ.get("DEMOS_DELAY_S", "0"))  # of each run
COLOURS = {"apple": "red", "leaf": "green", "sky": "blue", "sun": "yellow"}


def examples(count: int) -> list[dict[str, Any]]:
    """Things and their colours; a few are wrong, and a demo of one teaches something wrong."""
    things = list(COLOURS)
    return [
        {
            "text": f"thing {number} is a {things[number % 4]}",
            "answer": "pink" if number % 7 == 3 else COLOURS[things[number % 4]],
        }
        for number in range(count)
    ]


@app.program("colour")
def colour() -> Callable[..., dict[str, Any]]:
    """Answers with the colour of the demo that names the same thing."""

    def run(inputs: Mapping[str, Any], session: Any = None, state: Any = None) -> dict[str, Any]:
        time.sleep(DELAY_S)
        thing = inputs["text"].split()[-1]
        for demo in (state or {}).get("demos", ()):
            if demo["text"].split()[-1] == thing:
                return {"answer": demo["answer"]}
        return {"answer": "unknown"}

    return run
