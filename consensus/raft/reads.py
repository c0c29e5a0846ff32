"""Linearizable reads without a log entry (§8; dissertation §6.4).

A read is answered from the machine at an index that was committed when the read was asked, once it is proved that
this node still led then:

    ReadIndex   a majority answers a round begun after the read was asked. One round proves all reads that wait.
    lease       a majority answered a round begun less than `lease_ticks` ago, and none of it helps another to office
                before `election_timeout_ticks`. It costs no message, but trusts clocks: every node's driver passes
                the ticks that truly went by, and the leader's does so before it asks. See `Raft.holds_lease`.

Neither holds before the leader has committed an entry of its own term: until then it does not know what is committed.
"""

from __future__ import annotations

from typing import Any

from consensus.errors import NotLeader
from consensus.raft import commit, replication
from consensus.raft.durability import send
from consensus.raft.effects import ReadReady
from consensus.raft.messages import ReadIndex, ReadIndexReply
from consensus.raft.state import Asked, State


def read(state: State, ids: list[Any]) -> None:
    """Begin reads; on a follower, by asking its leader. Raises NotLeader if there is none, or none of ours."""
    if state.leadership is None and (state.leader is None or state.id not in state.configuration.members):
        raise NotLeader(state.leader)  # whoever is no member will never apply what it would have to wait for
    state.waiting_reads.extend(ids)
    if state.leadership is not None:
        ask(state)
    else:
        _ask_leader(state)


def ask(state: State) -> None:
    """Begin a round for the reads that wait, unless one is under way."""
    leadership = replication.office(state)
    if leadership.asked_reads is not None or not knows_commit(state):
        return
    if state.waiting_reads or leadership.waiting_followers:
        leadership.asked_reads = Asked(
            leadership.round + 1, state.commit_index, state.waiting_reads, leadership.waiting_followers
        )
        state.waiting_reads, leadership.waiting_followers = [], {}
        replication.heartbeat(state)
        confirm(state)


def confirm(state: State) -> None:
    """Settle the reads whose round a majority has answered."""
    leadership = replication.office(state)
    asked = leadership.asked_reads
    if asked is None:
        return

    def answered(node: str) -> int:
        return leadership.round if node == state.id else leadership.progress[node].round

    if state.configuration.reached(answered) < asked.round:
        return
    leadership.asked_reads = None
    if asked.reads:
        state.out.append(ReadReady(asked.reads, asked.index))
    for follower, number in asked.followers.items():
        if follower in leadership.reserve:
            replication.send_entries(state, follower, leadership.progress[follower])  # it has to apply up to there
        send(state, follower, ReadIndexReply(state.term, number, asked.index))
    ask(state)


def receive_read_index(state: State, source: str, message: ReadIndex) -> None:
    """A follower asks on behalf of its own clients."""
    if state.leadership is not None:
        state.leadership.waiting_followers[source] = message.id
        ask(state)


def receive_read_index_reply(state: State, source: str, message: ReadIndexReply) -> None:
    """The leader told from which index on our reads are linearizable."""
    if source == state.leader and message.id == state.read_number and state.forwarded_reads:
        state.settled_reads.append((message.index, state.forwarded_reads))
        state.forwarded_reads = []
        commit.apply(state)
        _ask_leader(state)


def ask_again(state: State) -> None:
    """The question or its answer may have been lost."""
    if state.forwarded_reads and state.leader is not None:
        send(state, state.leader, ReadIndex(state.term, state.read_number))


def _ask_leader(state: State) -> None:
    """One question at a time, for all reads that wait by then."""
    if state.waiting_reads and not state.forwarded_reads:
        state.read_number += 1
        state.forwarded_reads, state.waiting_reads = state.waiting_reads, []
        ask_again(state)


def knows_commit(state: State) -> bool:
    """Whether this leader has committed an entry of its own term."""
    return state.leadership is not None and state.commit_index >= state.leadership.first_index


def holds_lease(state: State) -> bool:
    """Whether no other leader can have been elected up to this tick."""
    leadership = state.leadership
    if leadership is None or not leadership.may_lease or not knows_commit(state):
        return False
    progress = leadership.progress

    def confirmed_at(node: str) -> int:
        return state.now if node == state.id else progress[node].confirmed_at

    return state.now - state.configuration.reached(confirmed_at) < state.settings.lease_ticks
