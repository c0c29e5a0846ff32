"""The choice of k demos: greedy, deterministic, in whole numbers.

Each step takes the candidate with the largest

    weight * quality  +  weight * (SCALE - likeness to the most alike one chosen)  -  weight * cost

(maximal marginal relevance: Carbonell and Goldstein, SIGIR 1998), ties to the smaller digest. A candidate as alike as
`near_duplicate` to one that was chosen is out. cost is tokens in units of `cost_limit_tokens`, not of the longest
candidate: a liar's huge one must not make all others look cheap.

No node brings in more than its share, k / (proposers - f) rounded up: so many that the others can fill the set without
f of them, and f liars never have more than f shares of it. A candidate of several proposers counts for the one that has
most of its share left: who copies another's takes nothing from it.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from consensus.selection.candidates import Merged
from consensus.selection.scores import SCALE, qualities
from consensus.selection.similarity import similarity, tokens_of

MAX_CHOSEN = 256
MAX_WEIGHT = 1_000_000


class Weights(msgspec.Struct, array_like=True, frozen=True):
    """How to choose; whole numbers, fixed for a round. Weights count against each other, on any scale up to 10^6.

    near_duplicate: likeness from which on two demos are near-duplicates, of SCALE. min_quality: below it nothing is
    taken, of SCALE. cost_limit_tokens: what costs as much as can be.
    """

    quality: int = 1000
    diversity: int = 100
    cost: int = 50
    near_duplicate: int = 900_000
    min_quality: int = 0
    cost_limit_tokens: int = 1000

    def error(self) -> str | None:
        """Why one can't choose by these, in one line; None if one can."""
        if any(not 0 <= weight <= MAX_WEIGHT for weight in (self.quality, self.diversity, self.cost)):
            return f"weights are whole numbers from 0 to {MAX_WEIGHT}"
        if not 0 < self.near_duplicate <= SCALE or not 0 <= self.min_quality <= SCALE:
            return f"near_duplicate and min_quality lie between 0 and {SCALE}"
        return (
            None if 1 <= self.cost_limit_tokens <= MAX_WEIGHT else f"cost_limit_tokens lies between 1 and {MAX_WEIGHT}"
        )


@dataclass(frozen=True)
class Chosen:
    """A demo that was chosen, in the order of choice, with the mesh's score of it (0 to SCALE) and who proposed it."""

    demo: bytes
    digest: bytes
    quality: int
    tokens: int
    proposers: tuple[str, ...]
    trace: bytes


def share_of(k: int, proposers: int, f: int) -> int:
    """How many of k chosen demos one of so many proposers may bring in, if f of them may lie."""
    return -(-k // max(1, proposers - f))


def choose(
    candidates: Sequence[Merged], quality: Sequence[int], k: int, weights: Weights, f: int = 0
) -> tuple[Chosen, ...]:
    """At most k of the candidates. `quality` has one score for each, in their order; f proposers may lie."""
    share = share_of(k, len({node for one in candidates for node in one.proposers}), f)
    brought: Counter[str] = Counter()
    counted = {one.digest: tokens_of(one.demo) for one in candidates}
    left = {
        one.digest: (one, score)
        for one, score in sorted(zip(candidates, quality, strict=True), key=lambda pair: pair[0].digest)
        if score >= weights.min_quality
    }
    likeness = dict.fromkeys(left, 0)
    chosen: list[Chosen] = []
    while left and len(chosen) < k:
        # max takes the first of equals, and `left` is sorted by digest.
        best = max(left, key=lambda digest: _gain(left[digest][1], likeness[digest], counted[digest], weights))
        one, score = left.pop(best)
        chosen.append(Chosen(one.demo, best, score, counted[best].total(), one.proposers, one.trace))
        brought[min(one.proposers, key=lambda node: (brought[node], node))] += 1
        for digest in list(left):
            likeness[digest] = max(likeness[digest], similarity(counted[digest], counted[best]))
            is_full = all(brought[node] >= share for node in left[digest][0].proposers)
            if is_full or likeness[digest] >= weights.near_duplicate:
                del left[digest]
    return tuple(chosen)


def select(
    candidates: Sequence[Merged], vectors: Mapping[str, Sequence[int]], f: int, k: int, weights: Weights
) -> tuple[Chosen, ...]:
    """The demos that these candidates and these validators' scores give. Raises ValueError for too few vectors."""
    return choose(candidates, qualities(vectors, f), k, weights, f) if candidates else ()


def result_digest(chosen: Sequence[Chosen]) -> bytes:
    """SHA-256 over the chosen demos, their order and their scores: 32 bytes, equal where the result is equal."""
    content = [[one.digest, one.quality] for one in chosen]
    return hashlib.sha256(b"meshnode.demos.1\0" + msgspec.msgpack.encode(content)).digest()


def _gain(quality: int, likeness: int, tokens: Counter[bytes], weights: Weights) -> int:
    cost = min(tokens.total(), weights.cost_limit_tokens) * SCALE // weights.cost_limit_tokens
    return weights.quality * quality + weights.diversity * (SCALE - likeness) - weights.cost * cost
