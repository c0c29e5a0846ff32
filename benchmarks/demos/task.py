"""The docstring task as the study has it: a split for each seed, and the program whose demos are to be chosen.

The program is `examples.app`'s, with the embedded nearest-demonstration model called in place: it shows the demos in
its state and takes the model's answer. What it starts from ("the teacher") shows PER_MODULE examples of each module.

`Quick` is that model's answer without writing and reading the prompt, for hundreds of thousands of runs; `check` holds
it against the model itself.
"""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import meshnode
from examples import docstrings
from examples.app import choose, prompt
from examples.docstrings import DEV_SHARE, Example
from meshnode.evaluation import metrics
from meshnode.lm import nearest
from meshnode.lm.prompts import UNKNOWN, Message

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


@lru_cache(maxsize=1 << 13)
def _counted(text: str) -> tuple[tuple[str, float], ...]:
    return tuple((term, 1.0 + math.log(n)) for term, n in Counter(nearest.terms(text)).items())


class Quick:
    """`nearest.Index` over demos, with what it counts in each text kept for the next time."""

    def __init__(self, demos: Sequence[Mapping[str, Any]]) -> None:
        self._answers = [demo["answer"] for demo in demos]
        counts = [_counted(" ".join(demo["docstring"].split())) for demo in demos]
        seen = Counter(term for count in counts for term, _ in count)
        self._idf = {term: 1.0 + math.log((1 + len(demos)) / (1 + df)) for term, df in seen.items()}
        self._postings: defaultdict[str, list[tuple[int, float]]] = defaultdict(list)
        for place, count in enumerate(counts):
            weights = [(term, frequency * self._idf[term]) for term, frequency in count]
            norm = math.hypot(*(weight for _, weight in weights))
            for term, weight in weights:
                self._postings[term].append((place, weight / norm))

    def answer(self, question: str) -> str:
        """That of the demo with most in common; the first of equals."""
        likeness = [0.0] * len(self._answers)
        for term, frequency in _counted(question):
            idf = self._idf.get(term)  # a term that no demo has makes all likenesses smaller alike
            if idf is not None:
                weight = frequency * idf
                for place, other in self._postings[term]:
                    likeness[place] += weight * other
        best = max(likeness, default=0.0)
        return self._answers[likeness.index(best)] if best else UNKNOWN


def check(seed: int, times: int = 100) -> None:
    """Raises AssertionError if `Quick` answers anything else than the model."""
    train, dev = split(seed)
    chance = random.Random(f"check {seed}")
    run = docstring()
    for _ in range(times):
        shown, asked = chance.sample(train, chance.choice((1, 8, 32))), chance.choice(dev)
        assert Quick(shown).answer(asked["docstring"]) == run(asked, state={"demos": shown})["answer"]


def score(demos: Sequence[Mapping[str, Any]], dev: Sequence[Example]) -> float:
    """The part of dev that the program gets right when it shows these demos, 0 to 1."""
    quick = Quick(demos)
    return sum(metrics.exact(example, {"answer": quick.answer(example["docstring"])}) for example in dev) / len(dev)
