"""What validators show together when they score candidates: each beside others that are drawn at random.

A demo alone says little about a set that it will be one of: a model that sees one example mostly repeats it. So every
run shows as many candidates as will be chosen, and a candidate's score is the mean over the runs that showed it. As all
are shown with the same examples and equally often (but for what fills a last context up), two scores differ by what the
candidates add beside others: an estimate of their Banzhaf values from samples that all candidates share (Wang and Jia,
"Data Banzhaf", AISTATS 2023).

    block     all candidates in a new random order, cut into contexts of as many as will be chosen
    run       a context with one of the block's EXAMPLES_EACH held-out examples

The seed is the round's, so all validators make the same runs: honest ones differ only as far as the program or the
metric answers differently. What they differ by is what a liar may choose from, and a candidate adds far less than runs
differ by chance: with runs drawn by each validator for itself the mesh's scores were surer, but one liar of four
brought in all it was allowed to.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

RUNS = 4096
EXAMPLES_EACH = 4
MAX_SEEN = 4  # times a candidate is shown with one example; with few examples more runs say little


def contexts(
    candidates: int, shown: int, held_out: Sequence[int], runs: int, seed: str
) -> Iterator[tuple[int, tuple[int, ...]]]:
    """(held-out example, places of the candidates shown with it): at most so many runs, but each candidate once.

    candidates: how many there are; shown: how many are shown together; held_out: examples' places.
    """
    if not candidates or not held_out:
        return
    size = min(shown, candidates)
    chance = random.Random(seed)
    examples = list(held_out)
    chance.shuffle(examples)
    places = list(range(candidates))
    parts = -(-candidates // size)
    most = MAX_SEEN if parts > 1 else 1  # if all are shown at once, all have one score
    left = max(parts, min(runs, most * len(examples) * parts))
    start = 0
    while left >= parts:
        each = min(EXAMPLES_EACH, len(examples), left // parts)
        chance.shuffle(places)
        cut = [*places, *places[: parts * size - candidates]]
        for step in range(each):
            example = examples[(start + step) % len(examples)]
            yield from ((example, tuple(cut[first : first + size])) for first in range(0, len(cut), size))
        start += each
        left -= each * parts
