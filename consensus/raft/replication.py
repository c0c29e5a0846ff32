"""Sending entries: AppendEntries, the sender's part (§5.3), batched and sent ahead of the acknowledgements."""

from __future__ import annotations

from consensus.errors import NotLeader
from consensus.raft import snapshots
from consensus.raft.durability import persist_entries, send
from consensus.raft.messages import Append, Entry
from consensus.raft.progress import Mode, Progress
from consensus.raft.state import Leadership, State


def office(state: State) -> Leadership:
    """What this node knows as leader. Raises NotLeader."""
    if state.leadership is None:
        raise NotLeader(state.leader)
    return state.leadership


def append(state: State, entries: list[Entry]) -> None:
    """Put entries of this term into the log, onto the disk and on their way."""
    first_index = state.log.last_index + 1
    state.log.append(entries)
    leadership = office(state)
    for node, peer in leadership.progress.items():
        if node in leadership.reserve:
            if leadership.holding_since is None:
                leadership.holding_since = state.now
        else:
            send_entries(state, node, peer)
    persist_entries(state, first_index, entries)  # behind them: the way to the others' disks is longer


def send_entries(state: State, node: str, peer: Progress) -> None:
    """Send a follower what it lacks, as far as its mode and window allow."""
    log = state.log
    if peer.next_index > log.last_index:
        return
    settings, leadership = state.settings, office(state)
    while peer.next_index <= log.last_index and peer.mode is not Mode.SNAPSHOT:
        if peer.is_probing or peer.window.is_full:
            return
        first = peer.next_index
        if log.term_at(first - 1) is None:
            snapshots.begin(state, node, peer)
            return
        last = log.fitting(first, settings.max_append_bytes, settings.max_append_entries)
        _send_append(state, leadership, node, peer, first, last)
        if peer.mode is Mode.PROBE:
            peer.is_probing = True
            return
        peer.window.add(last, log.bytes_after(first - 1) - log.bytes_after(last))
        peer.next_index = last + 1


def announce(state: State, index: int, to: str | None = None) -> None:
    """Tell the followers (or one) how far things are committed, if nothing has told them of `index` yet."""
    leadership = office(state)
    if to is None:
        leadership.announced_index = index
    for node, peer in leadership.progress.items():
        if to not in (None, node):
            continue
        if peer.commit_sent < index < peer.next_index:
            tell_commit(state, node, peer)
        elif to is not None and peer.next_index <= index:
            send_entries(state, node, peer)  # they tell it


def tell_commit(state: State, node: str, peer: Progress) -> None:
    """Tell a follower how far things are committed, with no entries to carry it."""
    if peer.mode is Mode.REPLICATE and state.log.term_at(peer.next_index - 1) is not None:
        _send_append(state, office(state), node, peer, peer.next_index, peer.next_index - 1)


def heartbeat(state: State) -> None:
    """Begin a new round: tell all followers that this node leads, and have them tell where they stand.

    To one that is sent ahead, it also shows a loss: it does not have what was sent last.
    """
    leadership = office(state)
    leadership.heartbeat_at = state.now + state.settings.heartbeat_ticks
    leadership.round += 1
    leadership.rounds_begun[leadership.round] = state.now
    oldest = state.now - 2 * state.settings.election_timeout_ticks
    while len(leadership.rounds_begun) > 1 and next(iter(leadership.rounds_begun.values())) < oldest:
        del leadership.rounds_begun[next(iter(leadership.rounds_begun))]
    for node, peer in leadership.progress.items():
        if peer.mode is Mode.SNAPSHOT:
            _beat(state, node)
            snapshots.retry(state, node, peer)
        elif state.log.term_at(peer.next_index - 1) is None:
            snapshots.begin(state, node, peer)
            _beat(state, node)
        else:
            _send_append(state, leadership, node, peer, peer.next_index, peer.next_index - 1)


def _send_append(state: State, leadership: Leadership, node: str, peer: Progress, first: int, last: int) -> None:
    recent, count = leadership.recent, last - first + 1
    if (
        recent is None
        or recent.prev_index != first - 1
        or len(recent.entries) != count
        or recent.round != leadership.round
        or recent.commit_index != state.commit_index
    ):
        prev_term = state.log.term_at(first - 1)
        assert prev_term is not None, "what is compacted is sent as a snapshot"
        entries = state.log.slice(first, last) if count else []
        recent = Append(state.term, first - 1, prev_term, state.commit_index, leadership.round, entries)
        leadership.recent = recent
    peer.commit_sent = state.commit_index
    send(state, node, recent)


def _beat(state: State, node: str) -> None:
    """A heartbeat that says nothing of the log: all logs agree on index 0."""
    send(state, node, Append(state.term, 0, 0, state.commit_index, office(state).round, []))
