"""The production core lives through seeded disasters; a failing seed says how to see it again."""

from __future__ import annotations

import os

import pytest

from tests.simulation.raft.world import World

SEEDS = int(os.environ.get("SEEDS", "64"))
FIRST_SEED = int(os.environ.get("FIRST_SEED", "0"))
GROUPS = 8


def live_through(seed: int) -> World:
    world: World | None = None
    try:
        world = World(seed)
        return world.run()
    except Exception as error:
        last = "\n".join(world.notes) if world else ""
        pytest.fail(
            f"seed {seed}: {type(error).__name__}: {error}\n"
            f"replay: FIRST_SEED={seed} SEEDS=1 python -m pytest tests/simulation/raft/test_seeds.py\n"
            f"the last of the trace:\n{last}"
        )


@pytest.mark.parametrize("group", range(GROUPS))
def test_no_promise_is_broken_in_any_history(group: int) -> None:
    for seed in range(FIRST_SEED + group, FIRST_SEED + SEEDS, GROUPS):
        live_through(seed)
