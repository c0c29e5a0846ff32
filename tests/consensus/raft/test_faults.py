"""Faults that bit other implementations, by their number in the project's list, each with where it happened."""

from __future__ import annotations

import pytest

from consensus.errors import ChangeRefused, ProtocolViolation
from consensus.raft import Configuration, sessions
from consensus.raft.effects import Role
from consensus.raft.messages import (
    Append,
    AppendReject,
    AppendReply,
    Entry,
    PreVote,
    PreVoteReply,
    TimeoutNow,
    Vote,
    VoteReply,
)
from tests.consensus.raft.cluster import Cluster, T, node


def test_fault_1_a_restart_of_the_whole_cluster_keeps_every_acknowledged_write() -> None:
    """PySyncObj #84, #202."""
    cluster = Cluster("abc")
    cluster.elect("a")
    cluster.propose("a", b"x", b"y")
    cluster.settle()
    assert cluster["a"].applied == [b"x", b"y"]
    votes = {each.id: each.disk.hard_state for each in cluster.nodes.values()}
    for each in cluster.nodes.values():
        each.restart()
        assert (each.core.term, each.core.state.vote) == (votes[each.id].term, votes[each.id].vote)
    cluster.elect("b")
    cluster.tick(3)
    assert all(each.applied == [b"x", b"y"] for each in cluster.nodes.values())


def test_fault_2_an_entry_of_an_earlier_term_is_never_committed_by_counting() -> None:
    """Raft §5.4.2; PySyncObj #169. All hold the old entry, and answer heartbeats; the new one is still on its way."""
    a = node("abc", [1])
    a.expire()
    a.step("b", PreVoteReply(2, True))
    a.step("b", VoteReply(2, True))
    a.tick(2)
    for source in "bc":
        a.step(source, AppendReply(2, 1, 1))
    assert (a.core.commit_index, a.applied) == (0, [])
    a.step("b", AppendReply(2, 2, 1))
    assert (a.core.commit_index, a.applied) == (2, [b"1.1"])


def test_fault_3_commit_index_never_falls_when_a_leader_knows_less() -> None:
    """PySyncObj #166."""
    a = node("abc", [1, 1, 1])
    a.step("b", Append(1, 3, 1, 3, 0, []))
    a.step("b", Append(1, 3, 1, 1, 0, []))
    a.step("c", Append(2, 3, 1, 0, 0, []))
    assert a.core.commit_index == 3


def test_fault_3_match_index_never_falls_on_a_late_acknowledgement() -> None:
    """PySyncObj #167."""
    cluster = Cluster("abcde")
    a = cluster.elect("a")
    cluster.propose("a", b"x", b"y")
    for match_index in (4, 3, 0, 4):
        a.step("b", AppendReply(2, match_index, 0))
    assert a.core.state.leadership is not None
    assert a.core.state.leadership.progress["b"].match_index == 4
    a.step("b", AppendReject(2, 2, 1, 1, 0))
    assert a.core.state.leadership.progress["b"].next_index == 5


def test_fault_4_an_overlapping_or_repeated_append_truncates_nothing_that_agrees() -> None:
    """hashicorp/raft #113."""
    a = node("abc", [1, 1, 1, 1])
    a.step("b", Append(1, 1, 1, 0, 0, [Entry(1, b"2.1")]))
    a.step("b", Append(1, 0, 0, 0, 0, [Entry(1, b"1.1"), Entry(1, b"2.1")]))
    assert a.terms() == [1, 1, 1, 1]
    assert len(a.disk.entries) == 4


def test_fault_5_an_empty_append_with_a_high_commit_does_not_commit_a_divergent_tail() -> None:
    """scylladb #9965."""
    a = node("abc", [1, 1, 1])
    a.step("b", Append(2, 1, 1, 3, 0, []))
    assert (a.core.commit_index, a.applied) == (1, [b"1.1"])


def test_fault_6_a_compacted_previous_entry_is_no_conflict() -> None:
    """openraft #511."""
    a = node("abc", [1, 1, 1, 1])
    a.step("b", Append(1, 4, 1, 3, 0, []))
    a.do(a.core.compacted(a.core.snapshot()))
    assert a.core.state.log.base_index == 3
    tail = [Entry(1, f"{index}.1".encode()) for index in range(2, 6)]
    assert a.step("b", Append(1, 1, 1, 3, 0, tail)) == [AppendReply(1, 5, 0)]
    assert a.terms() == [1, 1]


def test_fault_7_no_vote_is_counted_twice_none_from_a_lost_election_none_from_a_non_voter() -> None:
    a = node("abcde", term=1)
    a.expire()
    for voter in "bc":
        a.step(voter, PreVoteReply(2, True))
    assert a.core.role is Role.CANDIDATE
    for source, message in [("b", VoteReply(2, True)), ("b", VoteReply(2, True)), ("x", VoteReply(2, True))]:
        a.step(source, message)
    a.step("c", VoteReply(1, True))
    assert a.core.role is Role.CANDIDATE
    a.step("c", VoteReply(2, True))
    assert a.leads()


def test_fault_8_a_node_back_from_a_partition_does_not_depose_a_healthy_leader() -> None:
    """etcd #8243."""
    cluster = Cluster("abc")
    cluster.elect("a")
    cluster.isolate("c")
    cluster.tick(10 * T)
    assert cluster["c"].core.term == 2, "it asked in vain, and raised no term"
    cluster.heal()
    cluster.tick(4 * T)
    assert cluster.leaders() == ["a"]
    assert cluster["a"].core.term == 2


def test_fault_8_a_node_stuck_at_a_higher_term_is_brought_back_by_an_election() -> None:
    """etcd #9586, raft-rs #84: with pre-vote and check-quorum neither side would listen to the other."""
    cluster = Cluster("abc")
    cluster.elect("a")
    cluster["c"].do(cluster["c"].core.step("x", AppendReject(7, 0, 0, 0, 0)))  # it heard of term 7 somewhere
    cluster.propose("a", b"x")
    cluster.tick(6 * T)
    assert len(cluster.leaders()) == 1
    assert {each.core.term for each in cluster.nodes.values()} == {cluster["a"].core.term}
    assert cluster["a"].core.term > 7


def test_fault_9_a_partial_partition_still_has_a_stable_leader() -> None:
    """a and b can't talk, both reach c."""
    cluster = Cluster("abc")
    cluster.elect("a")
    cluster.cut = {("a", "b"), ("b", "a")}
    cluster.tick(20 * T)
    assert cluster.leaders() == ["a"]
    assert cluster["a"].core.term == 2
    cluster.propose("a", b"x")
    cluster.settle()
    assert cluster["c"].core.commit_index == 3


def test_fault_10_a_leader_whose_disk_hangs_while_heartbeats_go_on_steps_down() -> None:
    """hashicorp/raft #503."""
    cluster = Cluster("abc")
    a = cluster.elect("a")
    a.is_slow = True
    cluster.propose("a", b"x")
    cluster.tick(a.settings.disk_timeout_ticks + 3 * T)
    assert a.core.role is not Role.LEADER
    assert len(cluster.leaders()) == 1
    cluster.propose(cluster.leaders()[0], b"y")
    cluster.tick(3)
    assert cluster["b"].applied[-1] == b"y"
    cluster.tick(5 * T)
    assert a.core.role is Role.FOLLOWER, "and whoever is so ill does not stand"


def test_fault_11_read_index_waits_for_an_entry_of_the_own_term() -> None:
    """etcd #7331."""
    a = node("abc", [1, 1])
    a.expire()
    a.step("b", PreVoteReply(2, True))
    a.step("b", VoteReply(2, True))
    a.do(a.core.read(["r"]))
    a.step("b", AppendReply(2, 2, 0))
    a.tick(2)
    a.step("b", AppendReply(2, 2, 1))
    assert a.ready == []
    assert not a.core.holds_lease()
    a.step("b", AppendReply(2, 3, 1))
    assert a.ready == [], "the entry is committed; that this node still leads is not proved"
    a.step("b", AppendReply(2, 3, 2))
    assert a.ready == ["r"]


def test_fault_11_a_lease_is_not_served_after_a_pause() -> None:
    """tikv #1593."""
    cluster = Cluster("abc")
    a = cluster.elect("a")
    cluster.tick(3)
    assert a.core.holds_lease()
    a.do(a.core.tick(a.settings.lease_ticks + 2))
    assert not a.core.holds_lease()


def test_fault_11_a_lease_is_not_served_once_a_transfer_was_begun() -> None:
    cluster = Cluster("abc")
    a = cluster.elect("a")
    cluster.tick(3)
    a.do(a.core.transfer("b"))
    assert ("b", TimeoutNow(2)) in a.take()
    assert not a.core.holds_lease()
    for _ in range(2 * T):  # given up: the word may still arrive
        a.tick()
        for source in "bc":
            assert a.core.state.leadership is not None
            a.step(source, AppendReply(2, 2, a.core.state.leadership.round))
    cluster.propose("a", b"x")
    assert not a.core.holds_lease()


def test_fault_12_leadership_transfer_is_not_undone_by_pre_vote_or_stickiness() -> None:
    cluster = Cluster("abc")
    a = cluster.elect("a")
    cluster.tick(3)
    a.do(a.core.transfer("c"))
    cluster.settle()
    assert cluster.leaders() == ["c"]
    cluster.tick(3 * T)
    assert cluster.leaders() == ["c"]


def test_fault_12_leadership_is_never_transferred_to_a_non_voter() -> None:
    cluster = Cluster("abc")
    a = cluster.elect("a")
    cluster.add("d")
    a.do(a.core.change_configuration("abc", "d"))
    cluster.settle()
    for target in "dx":
        with pytest.raises(ChangeRefused):
            a.core.transfer(target)
    d = cluster["d"]
    assert d.step("a", TimeoutNow(2)) == []
    assert d.core.role is Role.FOLLOWER


def test_fault_13_no_membership_change_before_an_entry_of_the_own_term_is_committed() -> None:
    """Ongaro 2015."""
    a = node("abc", [1, 1])
    a.expire()
    a.step("b", PreVoteReply(2, True))
    a.step("b", VoteReply(2, True))
    with pytest.raises(ChangeRefused):
        a.core.change_configuration("abcd")
    a.step("b", AppendReply(2, 3, 0))
    a.do(a.core.change_configuration("abcd"))
    assert a.core.configuration == Configuration(tuple("abcd"), (), tuple("abc"))
    with pytest.raises(ChangeRefused):
        a.core.change_configuration("ab")


def test_fault_13_a_node_campaigns_under_the_newest_configuration_it_has() -> None:
    """etcd #11284 applied configurations late, and campaigned under old ones. Ours holds from when it is appended."""
    cluster = Cluster("abc")
    a = cluster.elect("a")
    cluster.tick(3)
    cluster.cut = {(source, "a") for source in "bc"}  # it gets no answer: nothing is committed
    a.do(a.core.change_configuration("abcde"))
    cluster.settle()
    cluster.isolate("a")
    b = cluster["b"]
    assert b.core.configuration.outgoing == tuple("abc")
    b.core.state.heard_at -= T
    b.take()
    b.expire()
    assert {to for to, message in b.take() if isinstance(message, PreVote)} == set("acde")


@pytest.mark.parametrize(
    ("before", "after"), [("abc", "bc"), ("ab", "b"), ("ab", "a"), ("abc", "bcd"), ("abc", "def"), ("a", "abc")]
)
def test_fault_14_voters_are_removed_and_replaced_the_leader_too_and_the_cluster_goes_on(
    before: str, after: str
) -> None:
    cluster = Cluster(before)
    a = cluster.elect("a")
    cluster.propose("a", b"x")
    cluster.settle()
    for newcomer in sorted(set(after) - set(before)):
        cluster.add(newcomer)
    a.do(a.core.change_configuration(after))
    cluster.tick(6 * T)
    (leader,) = cluster.leaders()
    assert leader in after
    assert cluster[leader].core.configuration == Configuration(tuple(after))
    term = cluster[leader].core.term
    cluster.propose(leader, b"y")
    cluster.tick(6 * T)
    assert all(cluster[each].applied == [b"x", b"y"] for each in after)
    assert (cluster.leaders(), cluster[leader].core.term) == ([leader], term), "the removed do not disturb"


def test_fault_14_two_to_one_is_survived_by_a_crash_before_the_change_is_committed() -> None:
    """The removed leader is the only one with the final configuration: it is still needed (dissertation §4.2.2)."""
    cluster = Cluster("ab")
    a = cluster.elect("a")
    a.do(a.core.change_configuration("b"))
    cluster.settle(
        keep=lambda message: (
            not (
                isinstance(message, Append)
                and a.core.configuration.voters == ("b",)
                and not a.core.configuration.outgoing
            )
        )
    )
    assert a.core.configuration == Configuration(("b",))
    a.restart()
    cluster["b"].restart()
    cluster.tick(8 * T)
    assert cluster.leaders() == ["b"]
    assert cluster["b"].core.configuration == Configuration(("b",))


def test_fault_15_snapshot_and_configuration_travel_together_and_only_if_committed() -> None:
    """openraft #1808, canonical/raft #250."""
    cluster = Cluster("abc")
    a = cluster.elect("a")
    cluster.add("d")
    a.do(a.core.change_configuration("abc", "d"))
    cluster.settle()
    committed = a.core.configuration
    cluster.isolate("a")
    a.do(a.core.change_configuration("abd"))
    assert a.core.configuration != committed
    assert a.core.snapshot().configuration == committed


def test_fault_17_a_single_node_does_not_acknowledge_before_the_write_is_durable() -> None:
    """etcd #14370."""
    a = node("a")
    a.tick()
    a.is_slow = True
    a.do(a.core.propose([b"x"]))
    a.tick(3)
    assert a.applied == []
    a.sync()
    assert a.applied == [b"x"]


def test_fault_19_a_leader_that_was_paused_for_a_minute_steps_down_and_follows() -> None:
    cluster = Cluster("abc")
    a = cluster.elect("a")
    cluster.isolate("a")
    cluster.elect("b")
    a.do(a.core.tick(600))
    assert not a.leads()
    cluster.heal()
    cluster.tick(3 * T)
    assert (cluster.leaders(), a.core.leader) == (["b"], "b")


def test_fault_19_a_follower_that_was_paused_reads_its_inbox_before_it_stands() -> None:
    cluster = Cluster("abc")
    cluster.elect("a")
    c = cluster["c"]
    c.do(c.core.tick(600))
    assert c.core.role is Role.FOLLOWER
    cluster.tick(3)
    assert (cluster.leaders(), c.core.leader) == (["a"], "a")


def test_fault_19_a_follower_that_rests_stands_in_time_and_a_pause_costs_it_no_more_than_it_may_rest() -> None:
    cluster = Cluster("abc")
    cluster.elect("a")
    c = cluster["c"]
    began, left, rest = c.core.state.now, c.core.state.countdown, c.core.rest()
    assert 1 < rest < left
    c.do(c.core.tick(600))
    assert c.core.state.countdown == left - rest
    while c.core.role is Role.FOLLOWER:
        assert c.core.rest() <= max(1, c.core.state.countdown - 1)
        c.do(c.core.tick(c.core.rest()))
    assert c.core.state.now == began + 600 + left - rest
    assert c.core.rest() == 1


def test_fault_18_a_command_retried_across_a_leader_change_applies_once() -> None:
    runs: list[bytes] = []

    def run(index: int, command: bytes) -> bytes:
        runs.append(command)
        return b"done"

    cluster = Cluster("abc")
    cluster.elect("a")
    cluster.propose("a", sessions.encode(sessions.Open()))
    cluster.settle()
    command = sessions.encode(sessions.Run(3, 1, 0, b"add"))
    cluster.propose("a", command)
    cluster.settle(keep=lambda message: not isinstance(message, AppendReply))  # replicated, but nobody told
    cluster.isolate("a")
    cluster.elect("b")
    cluster.propose("b", command)
    cluster.tick(3)
    table = sessions.Sessions(run)
    outcomes = [table.apply(index, data) for index, data in enumerate(cluster["b"].applied, 3)]
    assert cluster["b"].applied.count(command) == 2
    assert runs == [b"add"]
    assert outcomes[1:] == [sessions.Applied(b"done")] * 2


def test_two_leaders_of_one_term_are_reported_and_not_believed() -> None:
    a = node("abc", term=1)
    a.step("b", Append(1, 0, 0, 0, 0, []))
    with pytest.raises(ProtocolViolation, match="c: leads term 1, in which b was elected"):
        a.core.step("c", Append(1, 0, 0, 0, 0, []))


def test_a_vote_asked_for_while_a_leader_is_heard_changes_nothing() -> None:
    a = node("abc", term=1)
    a.step("b", Append(1, 0, 0, 0, 0, []))
    assert a.step("c", Vote(9, 0, 0)) == []
    assert a.core.term == 1
    assert a.step("c", Vote(9, 0, 0, transfer=True)) == [VoteReply(9, True)]
