"""Programs of the end-to-end tests that ask a model, and what goes wrong with them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

import meshnode
from examples.model import Model

app = meshnode.App()

Program = Callable[..., dict[str, Any]]
WORDS = ("apple", "bridge", "cloud", "desert", "engine", "forest", "garden", "harbour")


def examples(count: int) -> list[dict[str, Any]]:
    """Texts by a word each; for every fourth the answer that is looked for is another."""
    return [
        {
            "text": f"text {number} of the {WORDS[number % 8]}",
            "answer": WORDS[(number + (number % 4 == 3)) % 8],
        }
        for number in range(count)
    ]


def prompt(demos: list[Mapping[str, Any]], text: str) -> str:
    shown = [f"Text: {demo['text']}\nWord: {demo['answer']}" for demo in demos]
    return "\n\n".join(["Name the word.", *shown, f"Text: {text}\nWord:"])


DEMOS: list[Mapping[str, Any]] = [{"text": word, "answer": word} for word in WORDS]


@app.program("word_of")
def word_of() -> Program:
    """Asks the model once a run; its state's demos are shown, else one of each word."""
    model = Model()

    def run(inputs: Mapping[str, Any], session: Any = None, state: Any = None) -> dict[str, Any]:
        misbehave_once(inputs.get("fault", ""), inputs.get("mark", ""))
        return {"answer": model.ask(prompt((state or {}).get("demos", DEMOS), inputs["text"])).strip()}

    return run


def misbehave_once(fault: str, mark: str) -> None:
    """What the example asks for, the first time it is run anywhere."""
    if not fault:
        return
    try:
        os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    match fault:
        case "kill":
            os.kill(os.getpid(), 9)
        case "hang":
            os.kill(os.getpid(), 19)  # SIGSTOP: the whole process stands still
        case "memory":
            hog = []
            while True:
                hog.append(os.urandom(1 << 22))
        case "garbage":
            os.write(1, b"\x92\x01\x02\xff" * 20_000)
            sys.stderr.write("nonsense\n" * 1000)
