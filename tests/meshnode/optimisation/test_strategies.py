from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import pytest

from meshnode.errors import AppError, InvalidInput
from meshnode.optimisation import registry, variation
from meshnode.optimisation.space import Candidate, OneOf, Range, Space, Trial, best_of, digest, domains
from tests.meshnode.optimisation.nearest import examples

SPACE = Space(
    demos=examples(20),
    max_demos=4,
    instructions=("Be brief.", "Think."),
    variables={"warmth": Range(0.0, 1.0), "tries": Range(1, 3), "style": OneOf(("plain", "rich"))},
)
NAMES = ("random", "bootstrap", "beam", "genetic")


def assert_within(state: dict[str, Any], space: Space = SPACE) -> None:
    demos = [digest(demo) for demo in state.get("demos", ())]
    assert len(demos) == len(set(demos)) <= space.max_demos
    assert set(demos) <= {digest(demo) for demo in space.demos}
    assert state.get("instructions", "Think.") in space.instructions
    for name, value in state.get("variables", {}).items():
        domain = space.variables[name]
        assert value in domain.values if isinstance(domain, OneOf) else domain.low <= value <= domain.high
    assert isinstance(state.get("variables", {}).get("tries", 1), int)


def play(name: str, seed: int, rounds: int = 6, **options: Any) -> list[Trial]:
    """Let a strategy decide, scoring each state by how many of the even demos it shows."""
    strategy = registry.make(name, SPACE, random.Random(seed), options)
    trials: list[Trial] = []
    candidates: Any = [Candidate({})]
    for _ in range(rounds):
        learnt: list[Trial] = []
        for candidate in candidates:
            shown = candidate.state.get("demos", ())
            score = 25.0 * sum(demo["n"] % 2 == 0 for demo in shown)
            demos = [dict(SPACE.demos[place], why="so") for place in candidate.collect if place % 2]
            learnt.append(
                Trial(number=len(trials) + len(learnt), candidate=candidate, score=score, examples=1, demos=demos)
            )
        strategy.learn(learnt)
        trials += learnt
        candidates = strategy.propose()
    return trials


@pytest.mark.parametrize("seed", range(20))
def test_drawn_changed_and_crossed_states_stay_within_the_space(seed: int) -> None:
    rng = random.Random(seed)
    first, second = variation.draw(SPACE, rng), variation.draw(SPACE, rng)
    for _ in range(30):
        child = variation.mutate(variation.cross(first, second, SPACE, rng), SPACE, rng)
        for state in (first, second, child):
            assert_within(state)
        first, second = second, child


def test_a_mutation_changes_one_part_only() -> None:
    rng = random.Random(1)
    state = variation.draw(SPACE, rng)
    for _ in range(50):
        changed = variation.mutate(state, SPACE, rng)
        assert sum(changed[part] != state[part] for part in state) <= 1


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_proposes_the_same(name: str) -> None:
    assert play(name, 3) == play(name, 3)
    assert play(name, 3) != play(name, 4)


@pytest.mark.parametrize("name", ["beam", "genetic"])
def test_what_scores_well_is_built_upon(name: str) -> None:
    wins = 0
    for seed in range(10):
        trials = play(name, seed, rounds=8)
        drawn = play("random", seed, rounds=8, batch=max(1, (len(trials) - 1) // 7))
        late = [trial.score for trial in trials[-6:]]
        wins += sum(late) / 6 > sum(trial.score for trial in drawn[-6:]) / 6
        assert all(number < trial.number for trial in trials for number in trial.candidate.parents)
    assert wins >= 8


def test_a_teacher_is_asked_other_examples_than_it_is_shown_and_its_predictions_become_demos() -> None:
    trials = play("bootstrap", 0)
    teacher = trials[1].candidate
    asked = {digest(SPACE.demos[place]) for place in teacher.collect}
    assert asked
    assert not asked & {digest(demo) for demo in teacher.state["demos"]}
    later = [demo for trial in trials[2:] for demo in trial.candidate.state["demos"]]
    assert later
    assert all(demo["why"] == "so" for demo in later)


def test_of_equal_scores_the_smaller_state_is_best_and_a_teacher_never() -> None:
    def trial(number: int, score: float, demos: int, *collect: int) -> Trial:
        state = {"demos": [{"n": n} for n in range(demos)]}
        return Trial(number=number, candidate=Candidate(state, collect=collect), score=score, examples=1)

    assert best_of([trial(0, 50, 0), trial(1, 80, 4), trial(2, 80, 2), trial(3, 80, 2), trial(4, 99, 1, 7)]).number == 2


def test_variables_are_named_or_given_their_values() -> None:
    described: list[dict[str, Any]] = [
        {"name": "warmth", "type": "float", "ge": 0.0, "le": 2.0, "choices": []},
        {"name": "free", "type": "str", "ge": None, "le": None, "choices": []},
        {"name": "style", "type": "choice", "ge": None, "le": None, "choices": ["a", "b"]},
    ]
    assert domains(["warmth", "style"], described) == {"warmth": Range(0.0, 2.0), "style": OneOf(("a", "b"))}
    assert domains({"x": [1, 2], "y": Range(0, 3)}, []) == {"x": OneOf((1, 2)), "y": Range(0, 3)}
    with pytest.raises(InvalidInput, match="variable 'free' has no choices and no bounds"):
        domains(["free"], described)
    with pytest.raises(InvalidInput, match="no variable 'other'; there is: free, style, warmth"):
        domains(["other"], described)


def test_an_unknown_strategy_or_option_is_refused() -> None:
    with pytest.raises(InvalidInput, match="no strategy 'best'; there is: beam, bootstrap, genetic, random"):
        registry.make("best", SPACE, random.Random(0), {})
    with pytest.raises(InvalidInput, match=r"strategy 'beam': .*unexpected keyword argument 'size'"):
        registry.make("beam", SPACE, random.Random(0), {"size": 3})


def test_a_third_party_registers_one_by_call_and_by_entry_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_known", dict(registry._known))
    registry.register("same", registry._known["random"])
    with pytest.raises(AppError, match="a strategy 'same' already"):
        registry.register("same", registry._known["random"])

    info = tmp_path / "annealing-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: annealing\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[meshnode.strategies]\nannealing = annealing_of_others:Annealing\n")
    (tmp_path / "annealing_of_others.py").write_text(
        "class Annealing:\n"
        "    def __init__(self, space, rng, *, heat=1.0):\n        self.heat = heat\n"
        "    def propose(self):\n        return []\n"
        "    def learn(self, trials):\n        pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "annealing" in registry.names()
    made: Any = registry.make("annealing", SPACE, random.Random(0), {"heat": 2.0})
    assert made.heat == 2.0
    monkeypatch.delitem(sys.modules, "annealing_of_others")
