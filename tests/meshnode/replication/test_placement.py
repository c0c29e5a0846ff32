from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.raft.configuration import Configuration
from meshnode.replication.placement import place

NODES = [f"n{number}" for number in range(8)]


def decide(
    voters: str,
    learners: str = "",
    *,
    living: str,
    dead: str = "",
    leaving: str = "",
    level: str = "",
    target: int = 5,
) -> tuple[str, str] | None:
    """Each letter is a node; the leader is the first voter."""
    wanted = place(
        Configuration(tuple(sorted(voters)), tuple(sorted(learners))),
        me=voters[0],
        living=set(living),
        dead=set(dead),
        leaving=set(leaving),
        level=set(level),
        target=target,
    )
    return ("".join(wanted.voters), "".join(wanted.learners)) if wanted is not None else None


@pytest.mark.parametrize(
    ("situation", "wanted"),
    [
        ({"voters": "a", "living": "a"}, None),
        ({"voters": "a", "living": "ab"}, ("a", "b")),
        ({"voters": "a", "learners": "b", "living": "ab", "level": "b"}, None),
        ({"voters": "a", "learners": "b", "living": "abc", "level": "b"}, ("a", "bc")),
        ({"voters": "a", "learners": "bc", "living": "abc", "level": "b"}, None),
        ({"voters": "a", "learners": "bc", "living": "abc", "level": "bc"}, ("abc", "")),
        ({"voters": "abc", "learners": "de", "living": "abcdefg", "level": "de"}, ("abcde", "")),
        ({"voters": "abcde", "living": "abcdefg"}, None),
    ],
)
def test_joiners_learn_then_vote_in_odd_numbers(situation: dict[str, str], wanted: tuple[str, str] | None) -> None:
    assert decide(**situation) == wanted  # type: ignore[arg-type]


def test_a_dead_voter_is_replaced_by_one_that_is_level() -> None:
    assert decide("abc", living="abd", dead="c", target=3) == ("abc", "d")
    assert decide("abc", "d", living="abd", dead="c", target=3) is None
    assert decide("abc", "d", living="abd", dead="c", level="d", target=3) == ("abd", "")


def test_a_dead_voter_without_a_replacement_keeps_its_vote() -> None:
    assert decide("abc", living="ab", dead="c") is None


def test_a_leaving_voter_is_dropped_and_the_number_stays_odd() -> None:
    assert decide("abc", living="abc", leaving="c") == ("a", "b")


def test_the_last_voter_hands_over_before_it_leaves() -> None:
    assert decide("a", "b", living="ab", leaving="a", level="b") == ("b", "")


def test_nothing_changes_while_a_change_is_under_way() -> None:
    joint = Configuration(("a", "b", "c"), (), ("a",))
    assert place(joint, me="a", living={"a"}, dead=set(), leaving=set(), level=set(), target=5) is None


@given(
    st.sets(st.sampled_from(NODES), min_size=1),
    st.sets(st.sampled_from(NODES)),
    st.sets(st.sampled_from(NODES)),
    st.sets(st.sampled_from(NODES)),
    st.sets(st.sampled_from(NODES)),
    st.sampled_from([1, 3, 5, 7]),
)
def test_whatever_happens_voters_are_odd_and_a_repeated_decision_settles(
    voters: set[str], learners: set[str], dead: set[str], leaving: set[str], level: set[str], target: int
) -> None:
    ordered = sorted(voters)
    me = ordered[0]
    living = set(NODES) - dead
    now = Configuration(tuple(ordered), tuple(sorted(learners - voters)))
    for _ in range(6):
        wanted = place(
            now, me=me, living=living | {me}, dead=dead - {me}, leaving=leaving - {me}, level=level, target=target
        )
        if wanted is None:
            return
        assert len(wanted.voters) % 2 == 1
        assert me in wanted.voters
        assert not set(wanted.voters) & set(wanted.learners)
        assert not (leaving - {me}) & wanted.members
        now = wanted
    raise AssertionError("the decision never settles")
