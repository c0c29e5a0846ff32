"""Advancing commit_index, and applying what is committed."""

from __future__ import annotations

from consensus.raft.effects import Apply, Configured, ReadReady
from consensus.raft.state import State


def advance(state: State, index: int) -> bool:
    """Entries up to `index` are known to be committed; returns whether that is news. Never moves backwards."""
    if index <= state.commit_index:
        return False
    assert index <= state.log.last_index, "only what is in the log is committed"
    before, state.commit_index = state.commit_index, index
    apply(state)
    if state.history.index > before:
        state.out.extend(Configured(*change) for change in state.history.between(before, index))
    return True


def apply(state: State) -> None:
    """Hand committed entries to the machine, and release the reads that waited for them."""
    if state.restoring is not None:
        return
    if state.applied_index < state.commit_index:
        first = state.applied_index + 1
        state.out.append(Apply(first, state.log.slice(first, state.commit_index)))
        state.applied_index = state.commit_index
    if state.settled_reads:
        ready = [read for read in state.settled_reads if read[0] <= state.applied_index]
        state.settled_reads = [read for read in state.settled_reads if read[0] > state.applied_index]
        state.out.extend(ReadReady(ids, index) for index, ids in ready)
