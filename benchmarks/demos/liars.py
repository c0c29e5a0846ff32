"""Nodes that lie, as benches: what they propose is bad, and what they say of candidates is the worst they can say.

Both give their own candidates the highest score and all others the lowest. They differ in what they propose:

    Clumsy    examples of the share with a wrong module each, drawn at random; the training set gives it the lie
    Cunning   true examples, all of as few modules as the share allows: nothing is wrong with any, and the set they
              make is poor
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec

from consensus.selection.candidates import Merged
from consensus.selection.scores import SCALE
from meshnode.demos.bench import Bench
from meshnode.demos.origin import written
from meshnode.demos.trace import LABELLED

_TRACE = msgspec.json.encode([{"says": "a run that never was"}])


class Clumsy(Bench):
    """Praises its own candidates, which teach what is wrong, and damns the others'."""

    async def demos(self, indices: Iterable[int], most: int, seed: str, until: float) -> list[tuple[bytes, bytes]]:
        del until
        chance = random.Random(seed)
        order = sorted(indices)
        chance.shuffle(order)
        self.lies = [self._wrong(index, chance) for index in order[:most]]
        return [(demo, _TRACE) for demo in dict.fromkeys(self.lies)]

    async def scores(self, merged: Sequence[Merged], shown: int, until: float) -> tuple[int, ...]:
        del shown, until
        own = set(self.lies)
        return tuple(SCALE if one.demo in own else 0 for one in merged)

    def _wrong(self, index: int, chance: random.Random) -> bytes:
        example = self.examples[index]
        others = sorted({one["answer"] for one in self.examples} - {example["answer"]})
        return written({**example, "answer": chance.choice(others)})


class Cunning(Clumsy):
    """Proposes what is true and says little."""

    async def demos(self, indices: Iterable[int], most: int, seed: str, until: float) -> list[tuple[bytes, bytes]]:
        del seed, until
        share = sorted(indices)
        counted = Counter(self.examples[index]["answer"] for index in share)
        share.sort(key=lambda index: (-counted[self.examples[index]["answer"]], self.examples[index]["answer"]))
        self.lies = list(dict.fromkeys(written(self.examples[index]) for index in share))[:most]
        return [(demo, LABELLED) for demo in self.lies]
