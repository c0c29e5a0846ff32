"""Nodes that lie, as benches: what they propose is bad, and what they say of candidates is the worst they can say.

Both give their own candidates the highest score and all others the lowest. They differ in what they propose:

    Clumsy    examples of the share with a wrong module each, drawn at random
    Cunning   the same, but each with a module that the held-out examples have most of: whoever shows such a demo alone
              finds that it scores well, so honest validators praise it, too
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec

from consensus.selection.candidates import Merged
from consensus.selection.scores import SCALE
from meshnode.demos.bench import Bench

_TRACE = msgspec.json.encode([{"says": "a run that never was"}])


class Clumsy(Bench):
    """Praises its own candidates, which teach what is wrong, and damns the others'."""

    async def demos(self, indices: Iterable[int], most: int, seed: str, until: float) -> list[tuple[bytes, bytes]]:
        del until
        chance = random.Random(seed)
        order = sorted(indices)
        chance.shuffle(order)
        self.lies = [self._wrong(index, place, chance) for place, index in enumerate(order[:most])]
        return [(demo, _TRACE) for demo in dict.fromkeys(self.lies)]

    async def scores(self, merged: Sequence[Merged], until: float) -> tuple[int, ...]:
        del until
        own = set(self.lies)
        return tuple(SCALE if one.demo in own else 0 for one in merged)

    def _wrong(self, index: int, place: int, chance: random.Random) -> bytes:
        example = self.examples[index]
        others = [module for module in self._modules(place) if module != example["answer"]]
        lie = {**example, "answer": chance.choice(others)}
        return msgspec.json.encode(lie, order="sorted")

    def _modules(self, place: int) -> list[str]:
        del place
        return sorted({one["answer"] for one in self.examples})


class Cunning(Clumsy):
    """Proposes what is wrong and yet scores well."""

    def _modules(self, place: int) -> list[str]:
        counted = Counter(self.examples[index]["answer"] for index in self.held_out)
        most = max(counted.values())
        best = sorted(module for module, count in counted.items() if count == most)
        # One module each in turn, so that a choice that wants diversity finds it; two in case one is the right one.
        return [best[place % len(best)], best[(place + 1) % len(best)], *(() if len(best) > 1 else sorted(counted))]
