"""Sessions and rounds as the page shows them."""

from __future__ import annotations

from typing import Any

from consensus.machines.rounds import Settle
from consensus.machines.sessions import Start
from meshnode.demos import RoundProgress
from meshnode.observe.shared import MAX_ROUNDS, Rounds, describe_sessions
from tests.consensus.machines.test_rounds import NAMES, OPEN, Held, certificate, submit
from tests.meshnode.instant_state import InstantState


def with_rounds(held: Held) -> Any:
    state = InstantState()
    state.machine.rounds = held.rounds
    return state.machine


def told(phase: Any, **more: Any) -> RoundProgress:
    return RoundProgress(round_id="round", program="qa", phase=phase, quorum=3, **more)


async def test_a_session_is_shown_without_its_id() -> None:
    state = InstantState()
    await state.propose(Start("very-secret-id", "aa", 30_000, {"name": "study"}))
    (shown,) = describe_sessions(state.machine)
    assert "secret" not in str(shown)
    assert (shown["owner"], shown["ttl_s"], shown["left_s"], shown["metadata"]) == ("aa", 30.0, 30.0, {"name": "study"})


def test_a_round_shows_who_has_spoken_the_votes_and_its_certificate() -> None:
    first, rounds = Held(), Rounds()
    first.do(OPEN)
    first.do(submit(NAMES[0], "one"))
    (shown,) = rounds.describe(with_rounds(first))
    assert (shown["phase"], shown["program"], shown["quorum"], shown["candidates"]) == ("candidates", "qa", 3, 1)
    assert [one["id"] for one in shown["validators"] if one["said"] == ["candidates"]] == [NAMES[0]]

    held = Held()
    value, machine = held.to_value(), with_rounds(held)
    rounds.hear(NAMES[0], told("vote", spoken=2, iteration=1, best=0.5))
    rounds.hear(NAMES[1], told("reveals"))
    (shown,) = rounds.describe(machine)
    assert (shown["phase"], shown["votes"], shown["iteration"], shown["best"]) == ("vote", 2, 1, 0.5)
    assert [one["votes"] for one in shown["validators"]] == [2, None, None, None]

    held.do(Settle("round", value, certificate(value)))
    (shown,) = rounds.describe(machine)
    assert (shown["phase"], shown["certificate"]) == ("decided", {"iteration": 1, "signers": NAMES[:3]})
    assert len(shown["result"]) == 64
    assert [one["id"] for one in shown["validators"] if "decided" in one["said"]] == NAMES[:3]


def test_a_round_that_never_came_into_the_log_says_why() -> None:
    rounds = Rounds()
    rounds.hear("aa", told("invited", spoken=2, validators=2))
    rounds.hear("aa", told("local", reason="2 validators answered, 4 are needed to outvote a liar"))
    (shown,) = rounds.describe(InstantState().machine)
    assert (shown["phase"], shown["certificate"]) == ("local", None)
    assert "4 are needed" in shown["reason"]


def test_only_the_last_rounds_are_kept() -> None:
    rounds = Rounds()
    for number in range(MAX_ROUNDS + 3):
        rounds.hear("aa", RoundProgress(round_id=f"round{number}", program="qa", phase="invited"))
    shown = rounds.describe(InstantState().machine)
    assert [one["id"] for one in shown] == [f"round{number}" for number in range(MAX_ROUNDS + 2, 2, -1)]
