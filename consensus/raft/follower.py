"""Receiving entries: AppendEntries, receiver's part (§5.3, figure 2)."""

from __future__ import annotations

from operator import attrgetter

from consensus.errors import ProtocolViolation
from consensus.raft import commit
from consensus.raft.durability import persist_entries, send
from consensus.raft.effects import Role
from consensus.raft.messages import CONFIGURATION, Append, AppendReject, AppendReply, Entry, configuration_of
from consensus.raft.roles import become_follower
from consensus.raft.state import State

_kind = attrgetter("kind")


def follow(state: State, source: str) -> None:
    """A leader of this term was heard."""
    if state.role is Role.LEADER or state.leader not in (None, source):
        raise ProtocolViolation(source, f"leads term {state.term}, in which {state.leader} was elected")
    become_follower(state, state.term, source)
    state.heard_at = state.now
    state.countdown = state.timeout


def receive_append(state: State, source: str, message: Append) -> None:
    """Take entries that fit, say no to those that don't."""
    if message.term < state.term:
        # The sender no longer leads, or this node is alone ahead: either way our term brings it to a new election.
        send(state, source, AppendReject(state.term, message.prev_index, 0, 0, 0))
        return
    follow(state, source)
    is_new_round = message.round > state.heard_round
    if is_new_round:
        state.heard_round = message.round
    prev, entries = message.prev_index, message.entries
    if prev < state.commit_index:
        # What is committed agrees, compacted or not: skip it (and never take it for a conflict).
        entries = entries[state.commit_index - prev :]
        prev = min(state.commit_index, prev + len(message.entries))
    elif state.log.term_at(prev) != message.prev_term:
        _reject(state, source, message)
        return
    agreed = prev + len(entries)
    fresh = _without_known(state, prev, entries)
    if fresh:
        _extend(state, source, agreed - len(fresh) + 1, fresh)
    state.matched_index = max(state.matched_index, agreed)
    # Beyond `agreed` our log may differ from the leader's, whatever it has committed there.
    commit.advance(state, min(message.commit_index, agreed))
    # What is fresh is acknowledged once it is durable; what was sent twice, for our answer may have been lost; and
    # each round. What only tells how far things are committed needs no answer.
    if not fresh and (is_new_round or message.entries):
        acknowledge(state)


def acknowledge(state: State) -> None:
    """Tell the leader up to where our log agrees with its own, durably."""
    if state.leader is not None and state.role is Role.FOLLOWER:
        send(state, state.leader, AppendReply(state.term, durable_match(state), state.heard_round))


def durable_match(state: State) -> int:
    """Up to where the leader may count on this node: agreed, and on disk."""
    return min(state.matched_index, state.durability.durable_index)


def _reject(state: State, source: str, message: Append) -> None:
    hint = state.log.last_index_within_term(message.prev_index, message.prev_term)
    term = state.log.term_at(hint) or 0
    send(state, source, AppendReject(state.term, message.prev_index, hint, term, state.heard_round))


def _without_known(state: State, prev: int, entries: list[Entry]) -> list[Entry]:
    """The entries from the first one on that the log does not hold. What agrees stays, however late it comes."""
    if prev == state.log.last_index:
        return entries
    for offset, entry in enumerate(entries):
        if state.log.term_at(prev + 1 + offset) != entry.term:
            return entries[offset:]
    return []


def _extend(state: State, source: str, first_index: int, entries: list[Entry]) -> None:
    if first_index <= state.log.last_index:
        if first_index <= state.matched_index:
            raise ProtocolViolation(source, f"entry {first_index} contradicts one it sent before or that is committed")
        state.log.truncate_from(first_index)
        state.history.truncate_from(first_index)
        state.durability.truncate_from(first_index)
    state.log.append(entries)
    if CONFIGURATION in map(_kind, entries):  # rare, so looked for in C
        for index, entry in enumerate(entries, first_index):
            if entry.kind == CONFIGURATION:
                state.history.add(index, configuration_of(entry))
    persist_entries(state, first_index, entries)
