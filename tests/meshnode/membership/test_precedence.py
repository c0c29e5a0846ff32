"""Which claim wins: SWIM's precedence, checked as a rule and as a merge that must not depend on order."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import permutations, product

import pytest
from hypothesis import given, settings
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

Rule = Callable[[int, MemberState, int, MemberState], bool]


def is_a_merge(rule: Rule) -> bool:
    """Whether keeping the superseding claim is commutative, associative and idempotent; tries all small cases."""

    def merge(known: Belief, heard: Belief) -> Belief:
        return heard if rule(*heard, *known) else known

    every = list(product(range(3), STATES))
    return (
        not any(rule(*claim, *claim) for claim in every)
        and all(merge(a, b) == merge(b, a) for a, b in product(every, repeat=2))
        and all(merge(merge(a, b), c) == merge(a, merge(b, c)) for a, b, c in product(every, repeat=3))
    )


def test_merging_claims_is_commutative_associative_and_idempotent() -> None:
    assert is_a_merge(supersedes)


@given(*[st.integers(0, 2**60), st.sampled_from(STATES)] * 2)
def test_precedence_is_a_total_order(i: int, state: MemberState, j: int, other: MemberState) -> None:
    assert supersedes(i, state, j, other) + supersedes(j, other, i, state) == ((i, state) != (j, other))


BROKEN: dict[str, Rule] = {
    "life refutes at the same incarnation": lambda i, state, j, known: (
        i >= j if (state, known) == ("alive", "suspect") else supersedes(i, state, j, known)
    ),
    "suspicion needs a greater incarnation": lambda i, state, j, known: (
        i > j if (state, known) == ("suspect", "alive") else supersedes(i, state, j, known)
    ),
    "death is final": lambda i, state, j, known: known != "dead" and supersedes(i, state, j, known),
    "the last claim wins": lambda i, state, j, known: i >= j,
    "leaving is undone by death": lambda i, state, j, known: (
        i >= j if (state, known) == ("dead", "left") else supersedes(i, state, j, known)
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_rule_of_precedence_is_caught(name: str) -> None:
    assert not is_a_merge(BROKEN[name])


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


@settings(max_examples=60)
@given(st.lists(claims(), max_size=4))
def test_what_the_core_believes_does_not_depend_on_the_order_of_claims(said: list[Update]) -> None:
    assert len({believed_after(list(order))[:2] for order in permutations(said)}) <= 1
    assert all(believed_after(list(order)) == believed_after(said) for order in permutations(said))


@given(st.lists(claims(), max_size=6))
def test_claims_heard_again_change_nothing(said: list[Update]) -> None:
    assert believed_after(said) == believed_after(said + said)
