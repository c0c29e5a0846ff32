"""What one node knows of itself and, as leader, of the others: for operators, and for whoever promotes learners."""

from __future__ import annotations

import msgspec

from consensus.raft.configuration import Configuration
from consensus.raft.effects import Role
from consensus.raft.progress import Mode
from consensus.raft.state import State


class FollowerStatistics(msgspec.Struct, frozen=True):
    """A follower as its leader sees it: it has caught up when `match_index` is near the leader's `commit_index`."""

    match_index: int
    mode: Mode
    silent_ticks: int
    in_flight: int  # Appends not acknowledged yet


class Statistics(msgspec.Struct, frozen=True):
    """One node, now. `followers` is empty but on the leader."""

    role: Role
    term: int
    leader: str | None
    commit_index: int
    applied_index: int
    last_index: int
    durable_index: int
    snapshot_index: int
    configuration: Configuration
    disk_stalled_ticks: int
    followers: dict[str, FollowerStatistics]


def describe(state: State) -> Statistics:
    """The numbers of this moment."""
    progress = state.leadership.progress if state.leadership else {}
    return Statistics(
        role=state.role,
        term=state.term,
        leader=state.leader,
        commit_index=state.commit_index,
        applied_index=state.applied_index,
        last_index=state.log.last_index,
        durable_index=state.durability.durable_index,
        snapshot_index=state.snapshot.index,
        configuration=state.configuration,
        disk_stalled_ticks=state.durability.stalled_ticks(state.now),
        followers={
            node: FollowerStatistics(peer.match_index, peer.mode, state.now - peer.contact_at, len(peer.window))
            for node, peer in progress.items()
        },
    )
