"""Handing leadership over (dissertation §3.10): stop proposing, wait until the target has all, tell it to stand now."""

from __future__ import annotations

from consensus.errors import ChangeRefused, TransferUnderWay
from consensus.raft import replication, reserve
from consensus.raft.durability import send
from consensus.raft.messages import TimeoutNow
from consensus.raft.roles import become_follower
from consensus.raft.state import Handover, State


def begin(state: State, target: str) -> None:
    """Hand leadership to a voter; given up after an election timeout. Raises a Refused."""
    leadership = replication.office(state)
    if leadership.handover is not None:
        raise TransferUnderWay(leadership.handover.target)
    if target not in state.configuration.voters:
        raise ChangeRefused(f"{target} is no voter and can't lead")
    if target == state.id:
        return
    reserve.disband(state)
    leadership.handover = Handover(target, state.now + state.settings.election_timeout_ticks)
    maybe_hand_over(state)


def maybe_hand_over(state: State) -> None:
    """Once the target's log is complete, let it stand."""
    leadership = replication.office(state)
    handover = leadership.handover
    if handover is None:
        return
    peer = leadership.progress.get(handover.target)
    if peer is None or state.now >= handover.deadline:
        leadership.handover = None
    elif peer.match_index == state.log.last_index:
        # The word may arrive at any later time, and lets the target's voters forget their promise to wait.
        leadership.may_lease = False
        send(state, handover.target, TimeoutNow(state.term))


def resign(state: State) -> None:
    """Leave office at once, and let the voter that has most of the log stand for it."""
    progress = replication.office(state).progress
    voters = [node for node in state.configuration.voters if node in progress]
    if voters:
        best = max(voters, key=lambda node: (progress[node].match_index, progress[node].contact_at))
        send(state, best, TimeoutNow(state.term))
    become_follower(state, state.term, None)
