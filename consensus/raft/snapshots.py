"""Snapshots: compacting the log, and streaming to followers that need what is compacted (§7)."""

from __future__ import annotations

from consensus.raft import commit, follower
from consensus.raft.configuration import History
from consensus.raft.durability import persist_snapshot, send
from consensus.raft.effects import LoadChunk, Restore, StoreChunk
from consensus.raft.messages import Snapshot, SnapshotChunk, SnapshotReply
from consensus.raft.progress import Mode, Progress, Stream
from consensus.raft.state import Incoming, State


def describe(state: State) -> Snapshot:
    """What a snapshot of the machine as it is now stands for; its configuration is committed, too."""
    index = state.applied_index
    term = state.log.term_at(index)
    assert term is not None, "what is applied is in the log or at its base"
    return Snapshot(index, term, state.history.at(index))


def compacted(state: State, snapshot: Snapshot) -> None:
    """A snapshot of this node's own is durable: forget entries before it, but for a few that followers may need."""
    if snapshot.index <= state.snapshot.index:
        return
    assert snapshot.index <= state.applied_index, "only what is applied is in a snapshot"
    state.snapshot = snapshot
    state.log.compact(snapshot.index - state.settings.retained_entries)
    state.history.forget_before(snapshot.index)


def begin(state: State, node: str, peer: Progress) -> None:
    """Stream this node's newest snapshot to a follower."""
    peer.mode = Mode.SNAPSHOT
    peer.is_probing = False
    peer.window.clear()
    peer.stream = Stream(state.snapshot, state.now)
    _load(state, node, peer.stream)


def retry(state: State, node: str, peer: Progress) -> None:
    """A chunk or its answer may have been lost."""
    stream = peer.stream
    if stream is not None and state.now - stream.asked_at >= state.settings.election_timeout_ticks:
        _load(state, node, stream)


def chunk_loaded(state: State, request: LoadChunk, data: bytes | None, *, done: bool) -> None:
    """The driver read a chunk; `data` is None if that snapshot is gone, and the newest is streamed instead."""
    peer = state.leadership.progress.get(request.to) if state.leadership else None
    if peer is None or peer.stream is None or peer.stream.snapshot != request.snapshot:
        return
    if data is None:
        begin(state, request.to, peer)
    elif request.offset == peer.stream.offset:
        send(state, request.to, SnapshotChunk(state.term, request.snapshot, request.offset, data, done))


def receive_snapshot_reply(state: State, source: str, message: SnapshotReply) -> None:
    """A follower says which chunk it wants."""
    peer = state.leadership.progress.get(source) if state.leadership else None
    if peer is None:
        return
    peer.contact_at = state.now
    stream = peer.stream
    if stream is not None and stream.snapshot.index == message.index and stream.offset != message.offset:
        stream.offset = message.offset
        _load(state, source, stream)


def receive_chunk(state: State, source: str, message: SnapshotChunk) -> None:
    """A piece of a snapshot from this term's leader: kept aside until it is complete, then taken as a whole."""
    if message.term < state.term:
        send(state, source, SnapshotReply(state.term, 0, 0))
        return
    follower.follow(state, source)
    snapshot = message.snapshot
    if snapshot.index <= state.commit_index or state.log.term_at(snapshot.index) == snapshot.term:
        # We have all it replaces; entries after it stay (§7).
        state.matched_index = max(state.matched_index, snapshot.index)
        commit.advance(state, snapshot.index)
        follower.acknowledge(state)
        return
    # Only within one term two chunks of one index are surely of one snapshot: `incoming` ends with the term.
    if state.incoming is None or state.incoming.snapshot.index != snapshot.index:
        state.incoming = Incoming(snapshot)
    if message.offset == state.incoming.offset:
        state.out.append(StoreChunk(snapshot, message.offset, message.data))
        state.incoming.offset += len(message.data)
        if message.done:
            _adopt(state, snapshot)
            return
    send(state, source, SnapshotReply(state.term, snapshot.index, state.incoming.offset))


def restored(state: State) -> None:
    """If the adopted snapshot is durable by now, let the machine have it, and what came after."""
    snapshot = state.restoring
    if snapshot is not None and state.durability.durable_index >= snapshot.index:
        state.restoring = None
        state.out.append(Restore(snapshot))
        commit.apply(state)


def _adopt(state: State, snapshot: Snapshot) -> None:
    """Put the snapshot in the place of the log. Not acknowledged, and nothing applied, before it is durable."""
    state.log.reset(snapshot.index, snapshot.term)
    state.history = History(snapshot.index, snapshot.configuration)
    state.snapshot = state.restoring = snapshot
    state.commit_index = state.applied_index = state.matched_index = snapshot.index
    state.incoming = None
    persist_snapshot(state, snapshot)


def _load(state: State, node: str, stream: Stream) -> None:
    stream.asked_at = state.now
    state.out.append(LoadChunk(node, stream.snapshot, stream.offset, state.settings.chunk_bytes))
