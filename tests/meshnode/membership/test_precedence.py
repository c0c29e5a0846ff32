"""Which claim wins: SWIM's precedence, checked as a rule and as a merge that must not depend on order."""

from __future__ import annotations

import random
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.membership.members import supersedes
from meshnode.membership.messages import Alive, Dead, Left, Suspect, Update, encode
from meshnode.membership.settings import LAN
from meshnode.membership.swim import Swim
from meshnode.mesh import MemberState
from tests.simulation.membership import make_record

ME, OTHER = make_record("me"), make_record("other")
STATES: tuple[MemberState, ...] = ("alive", "suspect", "dead", "left")
Belief = tuple[int, MemberState]

beliefs = st.tuples(st.integers(0, 5), st.sampled_from(STATES))


def merge(known: Belief, heard: Belief) -> Belief:
    return heard if supersedes(*heard, *known) else known


@given(beliefs, beliefs)
def test_merging_two_claims_is_commutative(one: Belief, other: Belief) -> None:
    assert merge(one, other) == merge(other, one)


@given(beliefs, beliefs, beliefs)
def test_merging_claims_is_associative(a: Belief, b: Belief, c: Belief) -> None:
    assert merge(merge(a, b), c) == merge(a, merge(b, c))


@given(beliefs)
def test_hearing_a_claim_twice_is_hearing_it_once(claim: Belief) -> None:
    assert not supersedes(*claim, *claim)


@pytest.mark.parametrize(
    ("heard", "known", "wins"),
    [
        ((1, "suspect"), (1, "alive"), True),
        ((1, "alive"), (1, "suspect"), False),  # only a greater incarnation refutes
        ((2, "alive"), (1, "suspect"), True),
        ((2, "alive"), (1, "dead"), True),
        ((1, "dead"), (1, "suspect"), True),
        ((1, "suspect"), (1, "dead"), False),
        ((0, "dead"), (1, "alive"), False),
        ((1, "dead"), (1, "left"), False),  # its own word about its leaving stands
        ((2, "alive"), (1, "left"), True),  # it came back
    ],
)
def test_precedence_is_the_papers(heard: Belief, known: Belief, wins: bool) -> None:
    assert supersedes(*heard, *known) is wins


def claims() -> st.SearchStrategy[Update]:
    incarnation = st.integers(OTHER.incarnation, OTHER.incarnation + 3)
    accuser = st.sampled_from(["a", "b", "c"])
    return st.one_of(
        st.builds(lambda i: Alive(make_record("other", started=i)), incarnation),
        st.builds(lambda i, by: Suspect(OTHER.node_id, i, by), incarnation, accuser),
        st.builds(lambda i, by: Dead(OTHER.node_id, i, by), incarnation, accuser),
        st.builds(lambda i: Left(OTHER.node_id, i), incarnation),
    )


def believed_after(said: list[Update]) -> tuple[int, MemberState, object]:
    swim = Swim(ME, LAN, random.Random(1))
    for claim in [Alive(OTHER), *said]:
        swim._beliefs.learn(encode(claim))
    member = swim.member(OTHER.node_id)
    assert member is not None
    return member.incarnation, member.state, swim.record(OTHER.node_id)


@given(st.lists(claims(), max_size=4))
def test_what_the_core_believes_does_not_depend_on_the_order_of_claims(said: list[Update]) -> None:
    assert len({believed_after(list(order))[:2] for order in permutations(said)}) <= 1
    assert all(believed_after(list(order)) == believed_after(said) for order in permutations(said))


@given(st.lists(claims(), max_size=6))
def test_claims_heard_again_change_nothing(said: list[Update]) -> None:
    assert believed_after(said) == believed_after(said + said)
