"""Taking proposals, counting replicas: the leader's part of §5.3 and §5.4.

A proposal is appended, written and sent in one step: the followers' disks work while the leader's own does.
"""

from __future__ import annotations

from collections.abc import Sequence

from consensus.errors import Backlogged, EntryTooLarge, ProtocolViolation, TransferUnderWay
from consensus.raft import commit, membership, reads, reserve, transfer
from consensus.raft.effects import Accepted
from consensus.raft.messages import COMMAND, AppendReject, AppendReply, Entry
from consensus.raft.progress import Mode, Progress
from consensus.raft.replication import announce, append, office, send_entries, tell_commit
from consensus.raft.state import State

ENTRY_OVERHEAD_BYTES = 100
"""About what an entry costs in memory besides its data: empty commands are not for nothing."""


def propose(state: State, commands: Sequence[bytes]) -> None:
    """Append commands and send them on. Raises a Refused."""
    leadership = office(state)
    if leadership.handover is not None:
        raise TransferUnderWay(leadership.handover.target)
    settings = state.settings
    largest = max(map(len, commands))
    if largest > settings.max_entry_bytes:
        raise EntryTooLarge(largest, settings.max_entry_bytes)
    waiting_entries = state.log.last_index - state.commit_index
    waiting = state.log.bytes_after(state.commit_index) + waiting_entries * ENTRY_OVERHEAD_BYTES
    if waiting > settings.max_uncommitted_bytes:
        raise Backlogged(waiting, settings.max_uncommitted_bytes)
    term, first_index = state.term, state.log.last_index + 1
    append(state, [Entry(term, command, COMMAND) for command in commands])
    state.out.append(Accepted(first_index, state.log.last_index, term))


def receive_append_reply(state: State, source: str, message: AppendReply) -> None:
    """A follower acknowledged."""
    peer = _hear(state, source, message)
    if peer is None:
        return
    if message.match_index > state.log.last_index:
        raise ProtocolViolation(source, f"acknowledged {message.match_index}, past the end of the log")
    is_news = peer.advance(message.match_index)
    if peer.stream is None:
        peer.replicate()
    elif peer.match_index >= peer.stream.snapshot.index:
        peer.probe_from(peer.match_index + 1)
        peer.replicate()
    if is_news and peer.match_index > state.commit_index:
        maybe_commit(state)
    _go_on(state, source, peer)


def receive_append_reject(state: State, source: str, message: AppendReject) -> None:
    """A follower lacks what an Append built on: go back to where the logs can agree."""
    peer = _hear(state, source, message)
    if peer is None:
        return
    prev = message.prev_index
    is_late = prev <= peer.match_index or prev >= peer.next_index
    if not is_late and peer.mode is not Mode.SNAPSHOT and (peer.mode is Mode.REPLICATE or prev == peer.next_index - 1):
        hint = state.log.last_index_within_term(min(message.hint_index, prev - 1), message.hint_term)
        peer.probe_from(hint + 1)
    _go_on(state, source, peer)


def maybe_commit(state: State) -> None:
    """Commit what a majority holds durably, if it is of this term; what is before it is committed with it (§5.4.2)."""
    leadership = office(state)

    def match_index(node: str) -> int:
        return state.durability.durable_index if node == state.id else leadership.progress[node].match_index

    index = state.configuration.reached(match_index)
    if index <= state.commit_index or not may_count(state, index):
        return
    before = state.commit_index
    commit.advance(state, index)
    if before < max(state.history.index, leadership.first_index):
        membership.committed(state)
        if state.leadership is None:
            return
    if state.settings.reserve_ticks:
        reserve.review(state)
    reads.ask(state)
    if index == state.log.last_index and leadership.announced_at < state.now:
        # Nothing follows that could carry the news. But if much happens, something will soon: then what comes within
        # the same tick waits for that, for `Raft.announce`, or for the next tick.
        leadership.announced_at = state.now
        announce(state, index)


def may_count(state: State, index: int) -> bool:
    """An entry is committed by counting replicas only in the term that made it: a majority may hold an older one, and
    yet a leader without it could be elected (§5.4.2, figure 8)."""
    return state.log.term_at(index) == state.term


def _hear(state: State, source: str, message: AppendReply | AppendReject) -> Progress | None:
    """Note that a follower of this term answered; None if this node does not lead it."""
    leadership = state.leadership
    peer = leadership.progress.get(source) if leadership else None
    if leadership is None or peer is None:
        return None
    if message.round > leadership.round:
        raise ProtocolViolation(source, f"answered round {message.round}, which was not begun")
    peer.contact_at = state.now
    if message.round > peer.round:
        peer.round = message.round
        peer.confirmed_at = leadership.rounds_begun.get(message.round, peer.confirmed_at)
    return peer


def _go_on(state: State, node: str, peer: Progress) -> None:
    """After an answer: what can be done now that could not before?"""
    leadership = state.leadership
    if leadership is None or node not in leadership.progress:
        return
    if leadership.holding_since is None or node not in leadership.reserve:
        send_entries(state, node, peer)
    if peer.commit_sent < leadership.announced_index and peer.next_index > state.log.last_index:
        tell_commit(state, node, peer)  # it was not level when the others were told
    if leadership.asked_reads is not None:
        reads.confirm(state)
    if leadership.handover is not None:
        transfer.maybe_hand_over(state)
