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
from consensus.raft.state import State


def read(state: State, ids: list[Any]) -> None:
    """Begin reads; on a follower, by asking its leader. Raises NotLeader if there is none, or none of ours."""
    if state.leadership is not None:
        state.leadership.waiting_reads.extend((None, read) for read in ids)
        ask(state)
        return
    if state.leader is None or state.id not in state.configuration.members:
        raise NotLeader(state.leader)  # whoever is no member will never apply what it would have to wait for
    state.next_read += 1
    state.forwarded_reads[state.next_read] = ids
    send(state, state.leader, ReadIndex(state.term, state.next_read))


def ask(state: State) -> None:
    """Begin a round for the reads that wait, unless one is under way."""
    leadership = replication.office(state)
    if not leadership.waiting_reads or leadership.asked_reads is not None or not knows_commit(state):
        return
    readers, leadership.waiting_reads = leadership.waiting_reads, []
    leadership.asked_reads = (leadership.round + 1, state.commit_index, readers)
    replication.heartbeat(state)
    confirm(state)


def confirm(state: State) -> None:
    """Settle the reads whose round a majority has answered."""
    leadership = replication.office(state)
    while leadership.asked_reads is not None:
        begun, index, readers = leadership.asked_reads

        def answered(node: str) -> int:
            return leadership.round if node == state.id else leadership.progress[node].round

        if state.configuration.reached(answered) < begun:
            return
        leadership.asked_reads = None
        local = [read for follower, read in readers if follower is None]
        if local:
            state.out.append(ReadReady(local, index))
        for follower, read in readers:
            if follower is not None:
                send(state, follower, ReadIndexReply(state.term, read, index))
        ask(state)


def receive_read_index(state: State, source: str, message: ReadIndex) -> None:
    """A follower asks on behalf of its own clients."""
    if state.leadership is not None:
        state.leadership.waiting_reads.append((source, message.id))
        ask(state)


def receive_read_index_reply(state: State, source: str, message: ReadIndexReply) -> None:
    """The leader told from which index on our reads are linearizable."""
    ids = state.forwarded_reads.pop(message.id, None) if source == state.leader else None
    if ids is not None:
        state.settled_reads.append((message.index, ids))
        commit.apply(state)


def ask_again(state: State) -> None:
    """Questions or answers may have been lost."""
    for read in state.forwarded_reads:
        if state.leader is not None:
            send(state, state.leader, ReadIndex(state.term, read))


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
