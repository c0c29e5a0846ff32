"""The example program: name the module of Python's standard library that a docstring comes from.

    meshnode start --app examples.app:app

It shows a model a few solved examples of each module and the docstring, and takes its answer. The model is whatever
LM_BASE, LM_KEY and LM_MODEL name; with the embedded one (`meshnode lm serve`) the score rises with the number of
examples shown per module, DEMOS_PER_MODULE (default 5). Of 663 dev examples in 32 modules (Python 3.11; chance is 4 %):

    shown   0     1     2     5     10    20    all
    score   0 %   27 %  33 %  46 %  55 %  61 %  69 %
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import meshnode
from examples import docstrings, dspy_app
from examples.docstrings import Example
from examples.model import Model

app = meshnode.App()

INSTRUCTION = "Name the module of Python's standard library that the docstring comes from. Answer with its name alone."


@app.program("module_of")
def module_of() -> Callable[..., dict[str, str]]:
    """{"docstring"} to {"answer"}. Reads the train examples once; they come from DOCSTRINGS, if that is set.

    Its state, as `meshnode optimize` finds it, may hold "demos" to show in their place, and "instructions".
    """
    train, _ = docstrings.load()
    shown = choose(train, int(os.environ.get("DEMOS_PER_MODULE", "5")))
    model = Model()

    def run(
        inputs: Mapping[str, Any],
        session: object = None,  # noqa: ARG001 (every program gets one)
        state: Mapping[str, Any] | None = None,
    ) -> dict[str, str]:
        state = state or {}
        asked = prompt(state.get("demos", shown), inputs["docstring"], state.get("instructions", INSTRUCTION))
        return {"answer": model.ask(asked).strip()}

    return run


@app.program("reverse")
def reverse() -> Callable[..., dict[str, str]]:
    """{"text"} to {"answer"}: the smallest program there is; needs no model."""
    return lambda inputs, session=None: {"answer": inputs["text"][::-1]}  # noqa: ARG005 (every program gets one)


@app.metric("exact")
def exact(example: Mapping[str, Any], prediction: Mapping[str, Any], trace: object = None) -> bool:  # noqa: ARG001 (as DSPy calls it)
    """Whether the answer is the expected one, to the letter."""
    return bool(example["answer"] == prediction["answer"])


if dspy_app.is_here():
    dspy_app.declare(app)


@app.handler("echo")
async def echo(args: Any, context: object) -> Any:  # noqa: ARG001 (every handler gets one)
    """What `meshnode call echo '{"a": 1}'` gives back."""
    return args


def choose(train: Iterable[Example], per_module: int) -> list[Example]:
    """The first `per_module` examples of each module, in the train set's (shuffled) order: the same on every node."""
    taken: Counter[str] = Counter()
    chosen = []
    for example in train:
        if taken[example["answer"]] < per_module:
            taken[example["answer"]] += 1
            chosen.append(example)
    return chosen


def prompt(shown: Iterable[Example], docstring: str, instruction: str = INSTRUCTION) -> str:
    """The plain few-shot form (meshnode/lm/prompts.py): instruction, solved examples, the question."""
    blocks = [f"Docstring: {example['docstring']}\nModule: {example['answer']}" for example in shown]
    return "\n\n".join([instruction, *blocks, f"Docstring: {docstring}\nModule:"])
