"""Entries go at once to as many voters as a majority needs; the others, the reserve, get them a little later."""

from __future__ import annotations

import msgspec
import pytest

from consensus.raft import Settings
from consensus.raft.effects import Role
from consensus.raft.messages import Append, AppendReply, Message, ReadIndex, ReadIndexReply
from tests.consensus.raft.cluster import SETTINGS, Cluster, Node

THRIFTY = msgspec.structs.replace(SETTINGS, reserve_ticks=1)


def elected(voters: str, settings: Settings = THRIFTY) -> tuple[Cluster, Node]:
    cluster = Cluster(voters, settings=settings)
    a = cluster.elect("a")
    a.take()
    return cluster, a


def entries_to(sent: list[tuple[str, Message]]) -> dict[str, list[bytes]]:
    """Whom Appends went to, and what was in them."""
    found: dict[str, list[bytes]] = {}
    for to, message in sent:
        if isinstance(message, Append) and message.entries:
            found.setdefault(to, []).extend(entry.data for entry in message.entries)
    return found


@pytest.mark.parametrize(("voters", "prompt"), [("ab", "b"), ("abc", "b"), ("abcd", "bc"), ("abcde", "bc")])
def test_entries_go_at_once_to_as_many_as_make_a_majority_with_the_leader(voters: str, prompt: str) -> None:
    cluster, a = elected(voters)
    cluster.propose("a", b"x")
    assert entries_to(a.take()) == {node: [b"x"] for node in prompt}


def test_nobody_waits_where_no_ticks_are_given_for_it() -> None:
    cluster, a = elected("abc", SETTINGS)
    cluster.propose("a", b"x")
    assert entries_to(a.take()) == {"b": [b"x"], "c": [b"x"]}
    assert not a.core.is_holding


def test_the_reserve_gets_what_has_gathered_in_one_append_and_with_it_how_far_it_is_committed() -> None:
    cluster, a = elected("abc")
    cluster.propose("a", b"x")
    cluster.propose("a", b"y")
    cluster.settle()
    assert a.applied[-2:] == [b"x", b"y"]
    assert a.core.is_holding
    a.do(a.core.spread())
    (to, append), *others = a.take()
    assert (to, others) == ("c", [])
    assert append == Append(2, 2, 2, 4, 0, a.core.state.log.slice(3, 4))
    assert a.core.spread() == []


def test_a_tick_spreads_what_the_driver_has_not() -> None:
    cluster, a = elected("abc")
    cluster.propose("a", b"x")
    cluster.settle()
    assert cluster["c"].applied == []
    assert a.core.rest() == 1
    cluster.tick()
    assert cluster["c"].applied == [b"x"]


def test_an_answer_of_the_reserve_does_not_bring_it_what_it_is_to_wait_for() -> None:
    cluster, a = elected("abc")
    cluster.propose("a", b"x")
    a.take()
    a.step("c", AppendReply(2, 2, 0))
    assert entries_to(a.take()) == {}


def test_a_prompt_voter_that_was_not_needed_for_a_commit_changes_places_with_one_that_was() -> None:
    cluster, a = elected("abc")
    cluster.isolate("b")
    cluster.propose("a", b"x")
    cluster.settle()
    assert a.applied == []
    a.do(a.core.spread())
    cluster.settle()
    assert a.applied == [b"x"]
    cluster.propose("a", b"y")
    assert entries_to(a.take()) == {"c": [b"y"]}


def test_while_the_leaders_own_disk_lags_a_voter_more_is_prompt() -> None:
    cluster, a = elected("abc")
    a.is_slow = True
    cluster.propose("a", b"x")
    cluster.settle()
    a.do(a.core.spread())
    cluster.settle()
    assert a.applied == [b"x"]  # without the leader's disk
    cluster.propose("a", b"y")
    assert entries_to(a.take()) == {"b": [b"y"], "c": [b"y"]}
    a.is_slow = False
    a.sync()
    cluster.tick(THRIFTY.heartbeat_ticks)  # tried anew with each heartbeat
    cluster.propose("a", b"z")
    assert entries_to(a.take()) == {"b": [b"z"]}


def test_nobody_waits_while_two_majorities_decide() -> None:
    cluster, a = elected("abc")
    cluster.add("d")
    a.do(a.core.change_configuration("abd", ()))
    assert a.core.configuration.outgoing
    assert {to for to, _ in a.take()} >= {"b", "c", "d"}
    cluster.propose("a", b"x")
    assert entries_to(a.take()).keys() >= {"b", "c"}


def test_a_change_of_members_brings_the_reserve_what_waited_for_it() -> None:
    cluster, a = elected("abc")
    cluster.propose("a", b"x")
    a.take()
    cluster.add("d")
    a.do(a.core.change_configuration("abc", "d"))
    sent = entries_to(a.take())
    assert sent["c"][0] == b"x"
    assert len(sent["c"]) == 2  # and the new configuration
    assert not a.core.is_holding


def test_a_learner_may_wait() -> None:
    cluster, a = elected("abc")
    cluster.add("d")
    a.do(a.core.change_configuration("abc", "d"))
    cluster.settle()
    cluster.tick(THRIFTY.heartbeat_ticks)
    cluster.propose("a", b"x")
    cluster.settle()
    cluster.tick(2)
    a.take()
    cluster.propose("a", b"y")
    assert entries_to(a.take()) == {"b": [b"y"]}
    cluster.tick(2)
    assert cluster["d"].applied == [b"x", b"y"]


def test_the_learner_of_a_lone_voter_gets_what_has_gathered_too() -> None:
    cluster, a = elected("a")
    cluster.add("d")
    a.do(a.core.change_configuration("a", "d"))
    cluster.settle()
    cluster.tick(THRIFTY.heartbeat_ticks)
    cluster.propose("a", b"w")
    cluster.tick(2)
    a.take()
    cluster.propose("a", b"x")
    cluster.propose("a", b"y")
    assert entries_to(a.take()) == {}
    a.do(a.core.spread())
    assert entries_to(a.take()) == {"d": [b"x", b"y"]}


def test_one_of_the_reserve_that_was_told_of_a_commit_goes_on_waiting_for_what_follows_it() -> None:
    cluster, a = elected("abc")
    cluster.propose("a", b"x")
    assert a.core.is_holding
    a.take()
    a.do(a.core.announce(a.core.commit_index, "c"))
    assert entries_to(a.take()) == {}


def test_leadership_can_be_handed_to_one_of_the_reserve() -> None:
    cluster, a = elected("abc")
    cluster.propose("a", b"x")
    a.do(a.core.transfer("c"))
    cluster.settle()
    assert cluster["c"].core.role is Role.LEADER
    assert cluster["c"].applied == [b"x"]


def test_one_of_the_reserve_that_wrote_is_brought_its_entry_before_its_answer() -> None:
    cluster, a = elected("abc")
    cluster.propose("a", b"x")
    cluster.settle()
    a.do(a.core.announce(a.core.commit_index, "c"))
    ((to, append),) = a.take()
    assert to == "c"
    cluster["c"].step("a", append)
    assert cluster["c"].applied == [b"x"]


def test_one_of_the_reserve_that_reads_is_brought_what_it_has_to_see_with_the_answer() -> None:
    cluster, a = elected("abc")
    cluster.propose("a", b"x")
    cluster.settle()
    a.step("c", ReadIndex(2, 7))
    a.take()
    a.step("b", AppendReply(2, 3, a.core.state.leadership.round if a.core.state.leadership else 0))
    sent = [message for to, message in a.take() if to == "c"]
    assert isinstance(sent[0], Append)
    assert sent[0].entries
    assert sent[1] == ReadIndexReply(2, 7, 3)


def test_one_of_the_reserve_that_was_away_gets_all_it_lacks_though_much_is_written() -> None:
    cluster, _ = elected("abc", msgspec.structs.replace(THRIFTY, max_append_entries=3, window_messages=2))
    cluster.isolate("c")
    for number in range(20):
        cluster.propose("a", b"%d" % number)
        cluster.tick()
    cluster.heal()
    for number in range(20, 40):
        cluster.propose("a", b"%d" % number)
        cluster.tick()
    cluster.tick(3)
    assert cluster["c"].applied == [b"%d" % number for number in range(40)]
