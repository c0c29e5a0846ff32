"""Changing who votes: joint consensus, left automatically (§6; dissertation §4.3)."""

from __future__ import annotations

from collections.abc import Iterable

from consensus.errors import ChangeRefused, TransferUnderWay
from consensus.raft import reads, replication, reserve, transfer
from consensus.raft.configuration import Configuration
from consensus.raft.effects import Accepted
from consensus.raft.messages import configuration_entry
from consensus.raft.progress import Progress, Window
from consensus.raft.state import State


def change(state: State, voters: Iterable[str], learners: Iterable[str]) -> None:
    """Begin to make these the voters and learners. Raises a Refused."""
    leadership = replication.office(state)
    if leadership.handover is not None:
        raise TransferUnderWay(leadership.handover.target)
    if not reads.knows_commit(state):
        # The bug in single-server changes that Ongaro reported in 2015 had its root here.
        raise ChangeRefused("no entry of this term is committed yet")
    if state.history.index > state.commit_index or state.configuration.outgoing:
        raise ChangeRefused("another change is under way")
    target = state.configuration.entering(voters, learners)
    if not target.voters:
        raise ChangeRefused("a cluster needs a voter")
    if set(target.voters) & set(target.learners):
        raise ChangeRefused("a node is either voter or learner")
    _append(state, target)
    index = state.log.last_index
    state.out.append(Accepted(index, index, state.term))


def watch_members(state: State) -> None:
    """Keep track of all who get entries: members of the newest configuration and of those it has yet to replace."""
    leadership = replication.office(state)
    settings = state.settings
    wanted = frozenset[str]().union(*(each.members for each in state.history.from_index(state.commit_index)))
    for node in sorted(wanted - leadership.progress.keys() - {state.id}):
        window = Window(settings.window_messages, settings.window_bytes)
        leadership.progress[node] = Progress(state.log.last_index + 1, window, contact_at=state.now)
    for node in sorted(leadership.progress.keys() - wanted):
        replication.tell_commit(state, node, leadership.progress.pop(node))


def committed(state: State) -> None:
    """A configuration was committed, or the first entry of this term: leave a joint one; leave office if removed."""
    if state.history.index > state.commit_index:
        return
    if state.configuration.outgoing:
        _append(state, state.configuration.leaving())
        return
    watch_members(state)
    if state.id not in state.configuration.voters:
        transfer.resign(state)


def _append(state: State, configuration: Configuration) -> None:
    reserve.disband(state)
    state.history.add(state.log.last_index + 1, configuration)
    watch_members(state)
    replication.append(state, [configuration_entry(state.term, configuration)])
