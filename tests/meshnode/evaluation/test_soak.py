"""The plan under many seeds and heavier faults than the everyday test: `SEEDS=1000 make soak`."""

from __future__ import annotations

import os
import random

import pytest

from meshnode.evaluation.effects import Count, Fail
from tests.meshnode.evaluation.simulation import Faults, Simulation, fleet


@pytest.mark.soak
def test_every_example_is_counted_once_under_many_seeds() -> None:
    for seed in range(int(os.environ.get("SEEDS", "100"))):
        rng = random.Random(seed)
        faults = Faults(**{name: rng.choice((0.0, 0.02, 0.2)) for name in vars(Faults()) if name != "pause_s"})
        poison = frozenset(rng.sample(range(200), rng.randrange(6)))
        simulation = Simulation(
            seed, fleet(rng.randrange(1, 12), slots=rng.randrange(1, 9)), 200, faults, poison=poison
        )
        simulation.run(until_s=100_000.0)
        told = f"seed {seed}, {faults}"
        assert not simulation.stopped, told
        assert not simulation.twice, told
        assert set(simulation.outcomes) == set(range(200)), told
        for index, outcome in simulation.outcomes.items():
            assert isinstance(outcome, Fail if index in poison else Count), told
