"""Consensus-chosen demos against one node's and against chance: the score on dev, seed by seed.

A seed draws the split, the nodes' keys (so their shares and order) and, by the round's id, what is held out. In each:

    consensus            four honest nodes
    one liar             one of four lies (`liars.Clumsy`), and
    one cunning liar     (`liars.Cunning`)
    one node, bootstrap  k of its own share that the teacher got right, as BootstrapFewShot takes them, no scoring
                         means over the four nodes
    one node, alone      what a node chooses when the mesh can't: of 4 k candidates from all shares, by its own scores
    chance               k of the training set; mean of DRAWS draws
    no trimming          what would have been chosen with one liar, had the mean of scores been taken, not the median

Intervals are 95 %, Student's t over the seeds; differences are paired by seed.
"""

from __future__ import annotations

import asyncio
import math
import random
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from benchmarks.demos.drive import Held, hold, keys_of, task_of
from benchmarks.demos.liars import Clumsy, Cunning
from benchmarks.demos.task import check, score, split
from consensus.machines.rounds import candidates_each
from consensus.selection.candidates import Candidate, Merged, merge
from consensus.selection.choice import Weights, choose
from consensus.selection.scores import SCALE, qualities
from examples.docstrings import Example
from meshnode.demos.bench import Bench
from meshnode.demos.task import Task

NODES = 4
DRAWS = 4
ARMS = (
    "consensus",
    "one liar",
    "one cunning liar",
    "one node, bootstrap",
    "one node, alone",
    "chance",
    "no trimming",
)
BASELINES = ("one node, bootstrap", "one node, alone", "chance")
#: 97.5 % quantiles of Student's t by degrees of freedom (Abramowitz & Stegun, table 26.10)
_T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262, 10: 2.228}
_T |= {11: 2.201, 12: 2.179, 13: 2.160, 14: 2.145, 15: 2.131, 16: 2.120, 17: 2.110, 18: 2.101, 19: 2.093, 20: 2.086}


@dataclass(frozen=True)
class Seed:
    """Scores of one seed by arm, 0 to 1; by diversity weight, what the honest round's scores would have given with it;
    and how many of those chosen with one liar are the liar's, by arm."""

    scores: dict[str, float]
    by_diversity: dict[int, float]
    lies: dict[str, int]
    seconds: float


@dataclass(frozen=True)
class Interval:
    """A mean and half the width of its 95 % interval."""

    mean: float
    half: float


DIVERSITIES = (0, 30, 100, 300, 1000, 10_000)


def interval(values: Sequence[float]) -> Interval:
    """Of at least two values."""
    t = _T.get(len(values) - 1, 1.96)
    return Interval(statistics.mean(values), t * statistics.stdev(values) / math.sqrt(len(values)))


async def one_seed(seed: int, k: int, size: int | None = None) -> Seed:
    """All arms of a seed. size: so many examples to train on and as many to score on; None for all."""
    begin = time.perf_counter()
    check(seed)
    train, dev = (part[:size] for part in split(seed))
    keys = keys_of(seed, NODES)
    task = task_of(f"study{seed}", train)
    liar = sorted(keys)[seed % NODES]
    honest = await hold(task, keys, k)
    fooled = await hold(task, keys, k, {liar: Clumsy})
    outwitted = await hold(task, keys, k, {liar: Cunning})
    bootstrapped = [
        await _bootstrapped(honest.benches[name], task, place, name, k) for place, name in enumerate(sorted(keys))
    ]
    alone = await _alone(honest.benches[min(keys)], task, k)
    chance = random.Random(f"chance {seed}")
    scores = {
        "consensus": score(honest.chosen.demos, dev),
        "one liar": score(fooled.chosen.demos, dev),
        "one cunning liar": score(outwitted.chosen.demos, dev),
        "one node, bootstrap": statistics.mean(score(demos, dev) for demos in bootstrapped),
        "one node, alone": score(alone, dev),
        "chance": statistics.mean(score(chance.sample(train, min(k, len(train))), dev) for _ in range(DRAWS)),
        "no trimming": score(_untrimmed(fooled, k), dev),
    }
    by_diversity = _by_diversity(honest, k, dev)
    lies = {arm: _lies(held, liar) for arm, held in (("one liar", fooled), ("one cunning liar", outwitted))}
    return Seed(scores, by_diversity, lies, time.perf_counter() - begin)


def _by_diversity(honest: Held, k: int, dev: Sequence[Example]) -> dict[int, float]:
    quality, f = _qualities(honest), honest.state.round.f
    return {
        weight: score(_demos(honest.state.merged, quality, k, Weights(diversity=weight), f), dev)
        for weight in DIVERSITIES
    }


def tune_seed(seed: int, k: int) -> dict[int, float]:
    """An honest round's score on dev by the weight of diversity; for seeds that the study does not report."""
    train, dev = split(seed)
    honest = asyncio.run(hold(task_of(f"study{seed}", train), keys_of(seed, NODES), k))
    return _by_diversity(honest, k, dev)


async def _bootstrapped(bench: Bench, task: Task, place: int, name: str, k: int) -> list[Any]:
    """The first k of a node's share that went well."""
    until = asyncio.get_running_loop().time() + task.deadline_s
    found = await bench.demos(bench.source[place::NODES], candidates_each(NODES), f"{task.round_id}/{name}", until)
    return [msgspec.json.decode(demo) for demo, _ in found[:k]]


async def _alone(bench: Bench, task: Task, k: int) -> list[Any]:
    """As `meshnode.demos.select` chooses without the mesh."""
    until = asyncio.get_running_loop().time() + task.deadline_s
    found = await bench.demos(bench.source, 4 * k, task.round_id, until)
    merged = merge(Candidate(demo, trace, "alone") for demo, trace in found)
    return _demos(merged, await bench.scores(merged, k, until), k, Weights())


def _vectors(held: Held) -> dict[str, tuple[int, ...]]:
    return {reveal.node_id: reveal.scores for reveal in held.state.reveals}


def _qualities(held: Held) -> tuple[int, ...]:
    return qualities(_vectors(held), held.state.round.f)


def _untrimmed(held: Held, k: int) -> list[Any]:
    means = [sum(given) // len(given) for given in zip(*_vectors(held).values(), strict=True)]
    return _demos(held.state.merged, means, k, Weights(), held.state.round.f)


def _demos(merged: Sequence[Merged], quality: Sequence[int], k: int, weights: Weights, f: int = 0) -> list[Any]:
    assert all(0 <= one <= SCALE for one in quality)
    return [msgspec.json.decode(one.demo) for one in choose(merged, quality, k, weights, f)]


def _lies(held: Held, liar: str) -> int:
    lies = {one.demo for one in held.state.candidates if one.node_id == liar}
    decoded = [msgspec.json.decode(demo) for demo in lies]
    return sum(demo in decoded for demo in held.chosen.demos)


def tuning(seeds: Sequence[dict[int, float]], k: int) -> str:
    """A table in Markdown."""
    lines = [f"k = {k}, {len(seeds)} seeds for tuning", "", "| diversity weight | consensus |", "|---|---|"]
    return "\n".join(
        [*lines, *(f"| {weight} | {_percent(interval([one[weight] for one in seeds]))} |" for weight in DIVERSITIES)]
    )


def report(seeds: Sequence[Seed], k: int) -> str:
    """Tables in Markdown."""
    lines = [f"k = {k}, {len(seeds)} seeds; percent of dev answered right, mean with 95 % interval", ""]
    lines += [
        "| arm | score | against bootstrap | against one node alone | against chance |",
        "|---|---|---|---|---|",
    ]
    for arm in ARMS:
        own = [one.scores[arm] for one in seeds]
        differences = [
            "" if arm in BASELINES else _signed([one.scores[arm] - one.scores[other] for one in seeds])
            for other in BASELINES
        ]
        lines.append(f"| {arm} | {_percent(interval(own))} | {' | '.join(differences)} |")
    lines += ["", "| diversity weight | consensus | against bootstrap |", "|---|---|---|"]
    for weight in DIVERSITIES:
        own = [one.by_diversity[weight] for one in seeds]
        against = _signed([one.by_diversity[weight] - one.scores["one node, bootstrap"] for one in seeds])
        lines.append(f"| {weight} | {_percent(interval(own))} | {against} |")
    lies = ", ".join(f"{arm} {statistics.mean(one.lies[arm] for one in seeds):.2f}" for arm in seeds[0].lies)
    lines += ["", f"lies among the k chosen, mean: {lies}"]
    return "\n".join(lines)


def _percent(one: Interval) -> str:
    return f"{100 * one.mean:.1f} ± {100 * one.half:.1f}"


def _signed(values: Iterable[float]) -> str:
    one = interval(list(values))
    return f"{100 * one.mean:+.1f} ± {100 * one.half:.1f}"


def run_seed(seed: int, k: int, size: int | None = None) -> Seed:
    """`one_seed` in a loop of its own, for a process of its own."""
    return asyncio.run(one_seed(seed, k, size))
