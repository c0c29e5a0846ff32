"""Compaction and streaming (§7)."""

from __future__ import annotations

import pytest

from consensus.errors import ProtocolViolation
from consensus.raft import Snapshot
from consensus.raft.effects import LoadChunk
from consensus.raft.messages import AppendReply, SnapshotChunk, SnapshotReply, TimeoutNow
from tests.consensus.raft.cluster import SETTINGS, Cluster, Node, T, node

DATA = b"all that was written so far"


def chunk(request: LoadChunk) -> tuple[bytes, bool]:
    end = request.offset + 10
    return DATA[request.offset : end], end >= len(DATA)


def serve_loads(cluster: Cluster, leader: Node) -> None:
    """Play the driver that reads chunks of ten bytes, until no more are asked for."""
    while leader.loads:
        request = leader.loads.pop(0)
        data, done = chunk(request)
        leader.do(leader.core.chunk_loaded(request, data, done=done))
        cluster.settle()


def behind() -> tuple[Cluster, Node, Node]:
    """c was away while a committed entries and compacted them."""
    cluster = Cluster("abc")
    a = cluster.elect("a")
    cluster.isolate("c")
    cluster.propose("a", b"x", b"y", b"z")
    cluster.settle()
    a.do(a.core.compacted(a.core.snapshot()))
    assert a.core.state.log.base_index == 5
    cluster.heal()
    return cluster, a, cluster["c"]


def test_a_follower_that_needs_what_is_compacted_gets_the_snapshot_in_chunks_and_then_entries() -> None:
    cluster, a, c = behind()
    cluster.tick(4)
    serve_loads(cluster, a)
    assert c.aside == DATA
    assert [snapshot.index for snapshot in c.restored] == [5]
    assert c.core.configuration == a.core.configuration
    cluster.propose("a", b"w")
    cluster.settle()
    assert c.applied == [b"w"]
    assert c.core.commit_index == 6


def test_a_lost_chunk_is_asked_for_again_and_a_doubled_one_is_stored_once() -> None:
    cluster, a, c = behind()
    cluster.tick(4)
    request = a.loads.pop(0)
    data, done = chunk(request)
    a.do(a.core.chunk_loaded(request, data, done=done))
    (message,) = [message for to, message in a.take() if isinstance(message, SnapshotChunk)]
    assert c.step("a", message) == [SnapshotReply(2, 5, 10)]
    assert c.step("a", message) == [SnapshotReply(2, 5, 10)]
    assert c.aside == DATA[:10]
    c.take()  # both answers are lost
    for _ in range(T + 2):
        a.tick()
        a.step("b", AppendReply(2, 5, 0))
    assert [(each.offset, each.to) for each in a.loads] == [(0, "c")]
    serve_loads(cluster, a)
    assert c.aside == DATA
    assert c.core.commit_index == 5


def test_a_snapshot_is_neither_acknowledged_nor_applied_from_before_it_is_durable() -> None:
    cluster, a, c = behind()
    cluster.tick(4)
    c.is_slow = True
    serve_loads(cluster, a)
    assert c.restored == []
    cluster.tick(4)  # heartbeats are answered meanwhile
    assert c.restored == []
    assert a.core.state.leadership is not None
    assert a.core.state.leadership.progress["c"].match_index < 5
    c.sync()
    assert [snapshot.index for snapshot in c.restored] == [5]
    cluster.settle()
    assert a.core.state.leadership.progress["c"].match_index == 5


def test_a_crash_before_the_snapshot_is_durable_leaves_what_was_there() -> None:
    cluster, a, c = behind()
    cluster.tick(4)
    c.is_slow = True
    serve_loads(cluster, a)
    c.restart()
    assert c.core.state.snapshot == Snapshot(0, 0)
    assert c.core.state.log.last_index == 2


def test_a_snapshot_of_what_a_follower_has_is_no_reason_to_drop_what_follows_it() -> None:
    a = node("abc", [1, 1, 1, 1])
    message = SnapshotChunk(1, Snapshot(3, 1, a.core.configuration), 0, b"", True)
    assert a.step("b", message) == [AppendReply(1, 3, 0)]
    assert (a.terms(), a.applied) == ([1, 1, 1, 1], [b"1.1", b"2.1", b"3.1"])
    assert a.restored == []


def test_chunks_of_another_term_s_leader_are_not_mixed_in() -> None:
    c = behind()[2]
    snapshot = Snapshot(5, 2, c.core.configuration)
    c.step("a", SnapshotChunk(2, snapshot, 0, b"first half", False))
    assert c.step("b", SnapshotChunk(3, snapshot, 10, b"second half", True)) == [SnapshotReply(3, 5, 0)]
    assert c.restored == []


def test_a_snapshot_that_is_gone_is_replaced_by_the_newest() -> None:
    cluster, a, c = behind()
    cluster.tick(4)
    cluster.propose("a", b"v")
    cluster.settle()
    a.do(a.core.compacted(a.core.snapshot()))
    request = a.loads.pop(0)
    a.do(a.core.chunk_loaded(request, None, done=False))
    serve_loads(cluster, a)
    assert [snapshot.index for snapshot in c.restored] == [6]


def test_letting_a_follower_go_whose_next_entry_is_compacted_is_no_error() -> None:
    """Found by seed 279: the last word to a removed follower wanted the term of a compacted entry."""
    cluster, a, _ = behind()
    a.do(a.core.change_configuration("ab"))
    cluster.settle(keep=lambda message: not isinstance(message, SnapshotChunk))
    assert a.core.configuration.voters == ("a", "b")
    assert not a.core.configuration.outgoing


def test_a_node_that_waits_for_a_snapshot_to_be_durable_does_not_stand() -> None:
    cluster, a, c = behind()
    cluster.tick(4)
    c.is_slow = True
    serve_loads(cluster, a)
    assert c.core.state.restoring is not None
    c.take()
    c.do(c.core.step("a", TimeoutNow(2)))
    assert c.core.term == 2


def test_an_acknowledgement_past_the_end_of_the_log_is_a_violation() -> None:
    cluster = Cluster("abc", settings=SETTINGS)
    a = cluster.elect("a")
    with pytest.raises(ProtocolViolation):
        a.core.step("b", AppendReply(2, 99, 0))
