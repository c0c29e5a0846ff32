"""Leaving office, following, and when to stand for election."""

from __future__ import annotations

from consensus.raft.durability import persist_hard_state
from consensus.raft.effects import ReadFailed, Role
from consensus.raft.state import State


def reset_countdown(state: State) -> None:
    """Wait a whole timeout again, plus chance, so that votes are rarely split (§5.2).

    Up to half of it, not all as in the paper: who stands at the same time is told apart by `election.goes_first`.
    """
    least = state.settings.election_timeout_ticks
    state.timeout = state.countdown = least + state.rng.randrange(max(1, least // 2))


def become_follower(state: State, term: int, leader: str | None) -> None:
    """Follow `leader` (None: not known yet) in `term`, giving up whatever this node was."""
    if term > state.term:
        persist_hard_state(state, term, None)
    elif leader is not None and leader == state.leader and state.role is Role.FOLLOWER:
        return
    if state.role is not Role.FOLLOWER or leader is not None:
        reset_countdown(state)
    leave_office(state)
    state.role = Role.FOLLOWER
    state.leader = leader


def leave_office(state: State) -> None:
    """Forget all that held for one role in one term; reads that were asked then fail."""
    asked = state.leadership.asked_reads if state.leadership else None
    failed = (asked.reads if asked else []) + state.forwarded_reads + state.waiting_reads
    if failed:
        state.out.append(ReadFailed(failed))
    state.forwarded_reads, state.waiting_reads = [], []
    state.leadership = None
    state.leader = None
    state.votes.clear()
    state.refusals.clear()
    state.matched_index = state.commit_index
    state.heard_round = 0
    state.incoming = None


def is_sticky(state: State) -> bool:
    """Whether a leader was heard so lately that it may still hold a lease: then this node helps nobody else to office
    (dissertation §4.2.3). A leader itself is: it steps down by check-quorum, not because someone asks."""
    return state.role is Role.LEADER or state.now - state.heard_at < state.settings.election_timeout_ticks


def is_ill(state: State) -> bool:
    """Whether the disk makes no progress: no leader of use, and a vote could never be durable."""
    return state.durability.stalled_ticks(state.now) > state.settings.disk_timeout_ticks


def may_campaign(state: State) -> bool:
    """A voter of the newest configuration may, and of any before it that may still be the one that counts.

    A node that a change removes may be needed until the change is committed (dissertation §4.2.2).
    """
    if state.restoring is not None or is_ill(state):
        return False
    return any(state.id in each.deciders for each in state.history.from_index(state.commit_index))
