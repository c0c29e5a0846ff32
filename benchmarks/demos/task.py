"""The docstring task as the study has it: a split for each seed, and the program whose demos are to be chosen.

The program is `examples.app`'s, with the embedded nearest-demonstration model called in place: it shows the demos in
its state and takes the model's answer. What it starts from ("the teacher") shows PER_MODULE examples of each module.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import meshnode
from examples import docstrings
from examples.app import choose, prompt
from examples.docstrings import DEV_SHARE, Example
from meshnode.evaluation import metrics
from meshnode.lm import nearest
from meshnode.lm.prompts import Message

PROGRAM = "docstring"
PER_MODULE = 5

app = meshnode.App()


@app.program(PROGRAM)
def docstring() -> Callable[..., dict[str, str]]:
    """{"docstring"} to {"answer"}, by the demos in its state."""

    def run(
        inputs: Mapping[str, Any],
        session: object = None,  # noqa: ARG001 (every program gets one)
        state: Mapping[str, Any] | None = None,
    ) -> dict[str, str]:
        asked = prompt((state or {}).get("demos", ()), inputs["docstring"])
        return {"answer": nearest.answer([Message("user", asked)]).strip()}

    return run


@lru_cache(maxsize=1)
def _all() -> tuple[Example, ...]:
    train, dev = docstrings.load()
    return (*train, *dev)


def split(seed: int) -> tuple[list[Example], list[Example]]:
    """(train, dev) of a seed: of each module, another DEV_SHARE is dev."""
    chance = random.Random(f"split {seed}")
    by_module: defaultdict[str, list[Example]] = defaultdict(list)
    for example in _all():
        by_module[example["answer"]].append(example)
    train: list[Example] = []
    dev: list[Example] = []
    for module in sorted(by_module):
        examples = sorted(by_module[module], key=lambda one: one["docstring"])
        chance.shuffle(examples)
        share = round(len(examples) * DEV_SHARE)
        dev += examples[:share]
        train += examples[share:]
    chance.shuffle(train)
    chance.shuffle(dev)
    return train, dev


def teacher(train: Sequence[Example]) -> dict[str, Any]:
    """The state the program starts from."""
    return {"demos": choose(train, PER_MODULE)}


def score(demos: Sequence[Mapping[str, Any]], dev: Sequence[Example]) -> float:
    """The part of dev that the program gets right when it shows these demos, 0 to 1."""
    run = docstring()
    state = {"demos": list(demos)}
    return sum(metrics.exact(example, run(example, state=state)) for example in dev) / len(dev)
