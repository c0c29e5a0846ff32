"""Who gets entries at once, and who may wait a little for them.

A majority's disks decide (§5.3), so entries leave at once for as many voters as it takes, with the leader, to make one;
these are *prompt*. The other voters, and learners, are the *reserve*: they get what has gathered a little later, in one
Append, and so cost everyone a fraction of the messages, wake-ups and writes. (Sending to a quorum only is known as
thrifty: I. Moraru, D. Andersen, M. Kaminsky, "There Is More Consensus in Egalitarian Parliaments", SOSP 2013.)

Nothing is decided otherwise than before: entries may be late at any follower at any time. What it costs: if a prompt
voter fails, or a disk is slow, what is under way waits until the reserve gets it. The commit that follows shows who was
not needed for it, and places are changed: one whose disk lagged waits, and if it was the leader's, a voter more is
prompt until the next heartbeat.
"""

from __future__ import annotations

from consensus.raft.replication import office, send_entries
from consensus.raft.state import State


def review(state: State) -> None:
    """After a commit: keep the prompt voters if they and the leader itself were needed for it, else choose anew."""
    leadership, index = office(state), state.commit_index
    if state.durability.durable_index < index:
        _choose(state, 1)
        return
    lags = any(leadership.progress[node].match_index < index for node in leadership.prompt)
    if lags or not (leadership.prompt or leadership.reserve):
        _choose(state, 0)


def relax(state: State) -> None:
    """Try anew whether the leader's own disk is in time."""
    if len(office(state).prompt) > len(state.configuration.voters) // 2:
        _choose(state, 0)


def disband(state: State) -> None:
    """Nobody waits any more: who decides, or leads, is about to change."""
    spread(state)
    leadership = office(state)
    leadership.prompt, leadership.reserve = (), frozenset()


def spread(state: State) -> None:
    """Send the reserve what it lacks."""
    leadership = office(state)
    leadership.holding_since = None
    for node in sorted(leadership.reserve):
        send_entries(state, node, leadership.progress[node])


def _choose(state: State, more: int) -> None:
    """The voters with the longest logs are prompt: as many as make a majority with the leader, and `more`."""
    leadership, configuration = office(state), state.configuration
    is_changing = state.id not in configuration.voters or configuration.outgoing or leadership.handover is not None
    if is_changing or not state.settings.reserve_ticks:
        return
    spread(state)
    others = [node for node in configuration.voters if node != state.id]
    others.sort(key=lambda node: (-leadership.progress[node].match_index, node not in leadership.prompt))
    needed = len(configuration.voters) // 2 + more
    leadership.prompt = tuple(others[:needed])
    leadership.reserve = frozenset(others[needed:] + list(configuration.learners))
