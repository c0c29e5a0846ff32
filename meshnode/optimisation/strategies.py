"""The strategies: each proposes candidates, is told what came of them, and proposes again. Pure but for its generator.

random     draws states evenly; the measure of all others
bootstrap  runs the program on solved examples, keeps what it gets right, and shows that (Khattab et al. 2023)
beam       keeps the best `width` states and tries `branches` small changes of each
genetic    a population; tournaments choose parents, children mix them and mutate, the best survive (Holland 1975)
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from meshnode.optimisation import variation
from meshnode.optimisation.space import Candidate, Space, Trial


class Strategy(Protocol):
    """Decides what to try. Made by `factory(space, rng, **options)`; see `registry`."""

    def propose(self) -> Sequence[Candidate]:
        """The next candidates, tried side by side; none: it has no more ideas. Only what the budget leaves is run."""
        ...

    def learn(self, trials: Sequence[Trial]) -> None:
        """What came of what it proposed last, in that order; before its first proposal, of the base."""
        ...


class RandomSearch:
    """`batch` states at a time, drawn evenly."""

    def __init__(self, space: Space, rng: random.Random, *, batch: int = 8) -> None:
        self._space, self._rng, self._batch = space, rng, batch

    def propose(self) -> Sequence[Candidate]:
        """Another batch."""
        return [Candidate(variation.draw(self._space, self._rng), note="drawn") for _ in range(self._batch)]

    def learn(self, trials: Sequence[Trial]) -> None:
        """Nothing: each draw is like the first."""


class Bootstrap:
    """Collects demos that score, then tries sets of them.

    A teacher, the base with some solved examples to show, runs over others of them (at most `collect`); what it gets
    right is shown with all that it predicted, reasoning included. If it gets nothing right, the examples themselves
    are shown.
    """

    def __init__(self, space: Space, rng: random.Random, *, batch: int = 8, collect: int = 100) -> None:
        self._space, self._rng, self._batch, self._collect = space, rng, batch, collect
        self._is_taught = space.shown == 0

    def propose(self) -> Sequence[Candidate]:
        """First the teacher, then sets of what it solved."""
        if not self._is_taught:
            return [self._teacher()]
        return [Candidate(variation.draw(self._space, self._rng), note="bootstrapped") for _ in range(self._batch)]

    def learn(self, trials: Sequence[Trial]) -> None:
        """Take over what the teacher solved."""
        for trial in trials:
            if not trial.is_scored:
                self._is_taught = True
                if trial.demos:
                    self._space = replace(self._space, demos=trial.demos)

    def _teacher(self) -> Candidate:
        # What it is shown is not what it is asked: it would repeat the answers.
        places = self._rng.sample(range(len(self._space.demos)), len(self._space.demos))
        shown = min(self._space.shown, len(places) // 2)
        asked = places[shown : shown + self._collect]
        state = {**self._space.base, "demos": [dict(self._space.demos[place]) for place in places[:shown]]}
        return Candidate(state, note="teacher", collect=tuple(asked))


class Beam:
    """The best `width` states, each with `branches` small changes at a time."""

    def __init__(self, space: Space, rng: random.Random, *, width: int = 3, branches: int = 3) -> None:
        self._space, self._rng, self._width, self._branches = space, rng, width, branches
        self._beam: list[Trial] = []
        self._is_drawn = False

    def propose(self) -> Sequence[Candidate]:
        """Changes of all that are kept; at first as many states drawn, to stand beside the base."""
        if not self._is_drawn:
            self._is_drawn = True
            count = self._width * self._branches
            return [Candidate(variation.draw(self._space, self._rng), note="drawn") for _ in range(count)]
        return [
            Candidate(
                variation.mutate(kept.candidate.state, self._space, self._rng), parents=(kept.number,), note="changed"
            )
            for kept in self._beam
            for _ in range(self._branches)
        ]

    def learn(self, trials: Sequence[Trial]) -> None:
        """Keep the best of old and new; of equals the older."""
        self._beam = _fittest([*self._beam, *trials])[: self._width]


class Genetic:
    """A population of `size`, of which `elite` survive each time; `mutation` is a child's chance to be changed."""

    def __init__(
        self,
        space: Space,
        rng: random.Random,
        *,
        size: int = 8,
        elite: int = 2,
        tournament: int = 3,
        mutation: float = 0.5,
    ) -> None:
        self._space, self._rng = space, rng
        self._size, self._elite, self._tournament, self._mutation = size, elite, tournament, mutation
        self._population: list[Trial] = []

    def propose(self) -> Sequence[Candidate]:
        """The first generation is drawn, later ones are born."""
        if len(self._population) < 2:
            return [Candidate(variation.draw(self._space, self._rng), note="drawn") for _ in range(self._size - 1)]
        return [self._child() for _ in range(self._size - self._elite)]

    def learn(self, trials: Sequence[Trial]) -> None:
        """The elite and their children are the next population."""
        survivors = self._population if len(self._population) < 2 else _fittest(self._population)[: self._elite]
        self._population = [*survivors, *trials]

    def _child(self) -> Candidate:
        first, second = self._parent(), self._parent()
        state: Mapping[str, Any] = variation.cross(
            first.candidate.state, second.candidate.state, self._space, self._rng
        )
        note = "crossed"
        if first is second or self._rng.random() < self._mutation:
            state, note = variation.mutate(state, self._space, self._rng), "crossed and changed"
        return Candidate(dict(state), parents=(first.number, second.number), note=note)

    def _parent(self) -> Trial:
        drawn = self._rng.sample(self._population, min(self._tournament, len(self._population)))
        return _fittest(drawn)[0]


def _fittest(trials: Sequence[Trial]) -> list[Trial]:
    return sorted((trial for trial in trials if trial.is_scored), key=lambda trial: (-trial.score, trial.number))
