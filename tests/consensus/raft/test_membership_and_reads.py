"""Joint consensus, learners, transfer (§6; dissertation §3.10, §4) and linearizable reads (dissertation §6.4)."""

from __future__ import annotations

import pytest

from consensus.errors import Backlogged, ChangeRefused, EntryTooLarge, NotLeader, TransferUnderWay
from consensus.raft import Configuration, Settings
from consensus.raft.effects import Configured
from consensus.raft.messages import Append, AppendReply, ReadIndex, ReadIndexReply
from tests.consensus.raft.cluster import Cluster, T


def test_6_a_change_of_voters_is_joint_until_committed_and_then_left_automatically() -> None:
    cluster = Cluster("abc")
    a = cluster.elect("a")
    for newcomer in "de":
        cluster.add(newcomer)
    a.do(a.core.change_configuration("ade"))
    assert a.core.configuration == Configuration(tuple("ade"), (), tuple("abc"))
    cluster.settle()
    final = Configuration(tuple("ade"))
    assert all(cluster[each].core.configuration == final for each in "ade")
    assert [each.configuration for each in a.effects if isinstance(each, Configured)][-1] == final


@pytest.mark.parametrize(("up", "commits"), [("abc", False), ("ade", False), ("abde", True), ("acde", True)])
def test_6_while_joint_a_decision_needs_both_majorities(up: str, commits: bool) -> None:
    cluster = Cluster("abc")
    a = cluster.elect("a")
    for newcomer in "def":
        cluster.add(newcomer)
    cluster.isolate(*up)
    a.do(a.core.change_configuration("def" if up == "abc" else "ade"))
    cluster.settle()
    assert (not a.core.configuration.outgoing) is commits


def test_6_a_learner_gets_all_entries_and_has_no_say() -> None:
    cluster = Cluster("abc")
    a = cluster.elect("a")
    d = cluster.add("d")
    a.do(a.core.change_configuration("abc", "d"))
    cluster.settle()
    cluster.propose("a", b"x")
    cluster.settle()
    cluster.tick(2)
    assert d.applied == [b"x"]
    cluster.isolate("a", "d")
    cluster.propose("a", b"y")
    cluster.settle()
    assert a.applied == [b"x"], "a leader and a learner are no majority of three"
    d.tick(5 * T)
    assert d.core.term == 2, "and it never stands"


def test_6_a_configuration_that_is_cut_off_holds_no_longer() -> None:
    cluster = Cluster("abc")
    a = cluster.elect("a")
    cluster.isolate("a")
    a.do(a.core.change_configuration("abcde"))
    cluster.elect("b")
    cluster.heal()
    cluster.tick(4)
    assert a.core.configuration == Configuration(tuple("abc"))


def test_a_change_without_voters_or_with_a_node_in_both_roles_is_refused() -> None:
    a = Cluster("abc").elect("a")
    with pytest.raises(ChangeRefused):
        a.core.change_configuration("")
    with pytest.raises(ChangeRefused):
        a.core.change_configuration("ab", "b")


def test_a_transfer_waits_until_the_target_has_all_and_takes_no_commands_meanwhile() -> None:
    cluster = Cluster("abc")
    a = cluster.elect("a")
    cluster.isolate("c")
    cluster.propose("a", b"x")
    cluster.settle()
    a.do(a.core.transfer("c"))
    with pytest.raises(TransferUnderWay):
        a.core.propose([b"y"])
    cluster.heal()
    cluster.tick(4)
    assert cluster.leaders() == ["c"]


def test_a_transfer_to_a_node_that_is_down_is_given_up() -> None:
    cluster = Cluster("abc")
    a = cluster.elect("a")
    cluster.isolate("c")
    a.do(a.core.transfer("c"))
    cluster.tick(T + 4)
    cluster.propose("a", b"x")
    cluster.settle()
    assert cluster["b"].core.commit_index == 3


def test_a_read_waits_for_a_majority_to_answer_a_round_begun_after_it() -> None:
    cluster = Cluster("abc")
    a = cluster.elect("a")
    cluster.tick(3)
    a.take()
    a.do(a.core.read(["r1", "r2"]))
    rounds = {message.round for _, message in a.take() if isinstance(message, Append)}
    assert len(rounds) == 1
    a.step("b", AppendReply(2, 2, max(rounds) - 1))
    assert a.ready == []
    a.do(a.core.read(["r3"]))
    assert a.take() == [], "reads that come while a round is out wait for the next"
    a.step("b", AppendReply(2, 2, max(rounds)))
    assert a.ready == ["r1", "r2"]
    a.step("b", AppendReply(2, 2, max(rounds) + 1))
    assert a.ready == ["r1", "r2", "r3"]


def test_a_follower_reads_by_asking_its_leader_and_waits_until_it_has_applied_that_much() -> None:
    cluster = Cluster("abc")
    cluster.elect("a")
    cluster.tick(3)
    b = cluster["b"]
    cluster.cut = {("a", "b")}
    cluster.propose("a", b"x")
    cluster.settle()
    b.do(b.core.read(["r"]))
    ((to, asked),) = b.take()
    assert to == "a"
    assert isinstance(asked, ReadIndex)
    b.step("a", ReadIndexReply(2, asked.id, 3))
    assert b.ready == []
    cluster.heal()
    cluster.tick(3)
    assert (b.applied, b.ready) == ([b"x"], ["r"])


def test_an_answer_to_a_read_of_an_earlier_life_is_not_taken_for_one_of_this() -> None:
    cluster = Cluster("abc")
    cluster.elect("a")
    cluster.tick(3)
    b = cluster["b"]
    b.do(b.core.read(["before"]))
    ((_, asked),) = b.take()
    assert isinstance(asked, ReadIndex)
    b.core.state.rng.random()
    b.restart()
    b.core.state.read_number += 12345  # another start draws another number
    b.step("a", Append(2, 2, 2, 2, 9, []))
    b.do(b.core.read(["after"]))
    b.step("a", ReadIndexReply(2, asked.id, 0))
    assert b.ready == []


def test_a_read_fails_when_leadership_changes_and_where_nobody_leads() -> None:
    cluster = Cluster("abc")
    a = cluster.elect("a")
    cluster.isolate("a")
    a.do(a.core.read(["r"]))
    cluster["b"].tick(2 * T)
    a.tick(2 * T)
    assert a.failed == ["r"]
    with pytest.raises(NotLeader):
        a.core.read(["again"])


def test_a_removed_node_reads_nothing_for_it_would_wait_for_ever() -> None:
    """Found by seed 2591: reads through a node that is no member were never answered."""
    cluster = Cluster("abc")
    a = cluster.elect("a")
    a.do(a.core.change_configuration("ab"))
    cluster.settle()
    c = cluster["c"]
    assert c.core.configuration.voters == ("a", "b")
    with pytest.raises(NotLeader):
        c.core.read(["r"])
    c.tick(2 * T)
    assert c.core.leader is None, "and it forgets a leader that is silent, though it never stands"


def test_proposals_above_the_limits_are_refused_and_leave_no_trace() -> None:
    cluster = Cluster("abc", settings=Settings(max_entry_bytes=10, max_uncommitted_bytes=1000))
    for each in cluster.nodes.values():
        each.core.state.now = each.core.state.settings.election_timeout_ticks
    a = cluster["a"]
    while not a.leads():
        a.tick()
        for other in "bc":
            cluster[other].core.state.now += 1
        cluster.settle()
    with pytest.raises(EntryTooLarge):
        a.core.propose([b"x", b"y" * 11])
    assert a.core.state.log.last_index == 2
    cluster.isolate("a")
    for _ in range(10):
        a.do(a.core.propose([b"0123456789"]))
    with pytest.raises(Backlogged):
        a.core.propose([b""])
