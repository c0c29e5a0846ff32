"""Seeds of whole rounds of demo selection. `SEEDS=2000 FIRST_SEED=0` widens the run; a failing seed replays alone."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import pytest

import consensus.machines.rounds as rounds
import consensus.selection.agreement as agreement
import consensus.selection.choice as choice
import consensus.selection.scores as scores
from consensus.selection.choice import Weights
from tests.simulation.bft.selection_world import STYLES, SelectionWorld, run_selection

SEEDS = int(os.environ.get("SEEDS", "20"))
FIRST_SEED = int(os.environ.get("FIRST_SEED", "0"))
CHUNK = 20
ENOUGH_TO_CATCH = 100


@pytest.mark.parametrize("first", range(FIRST_SEED, FIRST_SEED + SEEDS, CHUNK))
def test_honest_validators_choose_the_same_demos_and_no_lie_moves_a_score_out_of_the_honest_range(first: int) -> None:
    for seed in range(first, min(first + CHUNK, FIRST_SEED + SEEDS)):
        world = run_selection(seed)
        assert not world.violations, (
            f"seed {seed}: {world.violations}; replay: SEEDS=1 FIRST_SEED={seed} pytest {__file__}"
        )


def test_a_few_seeds_hold_every_kind_of_liar_and_the_log_refuses_what_it_must() -> None:
    styles, refused = Counter[str](), Counter[str]()
    wanted = {"Submit: signature", "Show: reveal", "Commit: phase"}  # stolen, switched, late
    for seed in range(60):
        if set(styles) >= set(STYLES) and wanted <= set(refused):
            break
        world = SelectionWorld(seed)  # it has gone through the log when it is made
        styles.update(world.styles.values())
        refused.update(world.refused)
    assert set(styles) == set(STYLES)
    assert wanted <= set(refused)


# A broken rule each: the simulation must see it.


def _anything_goes(*_: object, **__: object) -> None:
    return None


def _mean(given: Iterable[int], _f: int) -> int:
    values = list(given)
    return sum(values) // len(values)


def _both_of_a_kind(candidates: Any, quality: Any, k: int, weights: Weights, f: int) -> Any:
    lenient = Weights(weights.quality, weights.diversity, weights.cost, near_duplicate=scores.SCALE + 1)
    return _choose(candidates, quality, k, lenient, f)


def _as_many_as_there_are(k: int, _proposers: int, _f: int) -> int:
    return k


def _result_is_believed(value: bytes, *_: object) -> str | None:
    try:
        agreement.read(value)
    except ValueError as error:
        return str(error)
    return None


_choose = choice.choose
BROKEN: list[tuple[Any, str, Callable[..., Any]]] = [
    (rounds, "reveal_error", _anything_goes),
    (scores, "trimmed_median", _mean),
    (choice, "choose", _both_of_a_kind),
    (choice, "share_of", _as_many_as_there_are),
    (rounds, "agreement_error", _result_is_believed),
]


@pytest.mark.parametrize(("module", "name", "broken"), BROKEN, ids=[name for _, name, _ in BROKEN])
def test_the_simulation_catches_a_broken_rule(
    monkeypatch: pytest.MonkeyPatch, module: Any, name: str, broken: Callable[..., Any]
) -> None:
    """Of 50 seeds the simulation saw through reveal_error in 16, trimmed_median 30, choose 15, share_of 10 and
    agreement_error 23."""
    monkeypatch.setattr(module, name, broken)
    assert any(run_selection(seed).violations for seed in range(ENOUGH_TO_CATCH))
