"""Raft."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from consensus.raft import election, follower, leader, membership, messages, reads, snapshots, transfer
from consensus.raft.configuration import Configuration
from consensus.raft.durability import complete_writes
from consensus.raft.effects import Effect, LoadChunk, Role, RoleChanged
from consensus.raft.messages import Message, PreVote, PreVoteReply, Snapshot, Vote
from consensus.raft.roles import become_follower, is_sticky, reset_countdown
from consensus.raft.settings import Settings
from consensus.raft.state import State, Stored, load

_HANDLERS: dict[type, Callable[[State, str, Any], None]] = {
    messages.PreVote: election.receive_pre_vote,
    messages.PreVoteReply: election.receive_pre_vote_reply,
    messages.Vote: election.receive_vote,
    messages.VoteReply: election.receive_vote_reply,
    messages.Append: follower.receive_append,
    messages.AppendReply: leader.receive_append_reply,
    messages.AppendReject: leader.receive_append_reject,
    messages.SnapshotChunk: snapshots.receive_chunk,
    messages.SnapshotReply: snapshots.receive_snapshot_reply,
    messages.TimeoutNow: election.receive_timeout_now,
    messages.ReadIndex: reads.receive_read_index,
    messages.ReadIndexReply: reads.receive_read_index_reply,
}
_ANSWERED_WHEN_STALE = (messages.PreVote, messages.Vote, messages.Append, messages.SnapshotChunk)


class Raft:
    """One node of a cluster. Every method that changes it returns the effects to perform, in order."""

    def __init__(self, node_id: str, settings: Settings, rng: random.Random, stored: Stored) -> None:
        self.state = load(node_id, settings, rng, stored)
        if self.state.configuration.deciders != {node_id}:  # alone, there is nobody to wait for
            reset_countdown(self.state)
        self._told = (Role.FOLLOWER, self.state.term, self.state.leader)

    @property
    def role(self) -> Role:
        """What this node is in its term."""
        return self.state.role

    @property
    def term(self) -> int:
        """The newest term this node knows."""
        return self.state.term

    @property
    def leader(self) -> str | None:
        """Whom this node follows (itself, if it leads)."""
        return self.state.leader

    @property
    def commit_index(self) -> int:
        """The newest entry this node knows to be committed."""
        return self.state.commit_index

    @property
    def configuration(self) -> Configuration:
        """Who votes and who learns, by the newest entry that says so."""
        return self.state.configuration

    def tick(self, elapsed: int = 1) -> list[Effect]:
        """`elapsed` ticks of true time have passed since the last call; more than 1 after a pause."""
        election.tick(self.state, elapsed)
        return self._effects()

    def step(self, source: str, message: Message) -> list[Effect]:
        """A message arrived from `source`. Raises ProtocolViolation if no correct peer could have sent it."""
        state = self.state
        if message.term > state.term and not _is_about_next_term(message):
            if type(message) is Vote and not message.transfer and is_sticky(state):
                return []
            become_follower(state, message.term, None)
        elif message.term < state.term and not isinstance(message, _ANSWERED_WHEN_STALE):
            return []
        _HANDLERS[type(message)](state, source, message)
        return self._effects()

    def persisted(self, number: int) -> list[Effect]:
        """All Persists up to `number` are durable."""
        state = self.state
        durable_index = state.durability.durable_index
        complete_writes(state, number)
        snapshots.restored(state)
        election.own_vote_durable(state)
        if state.leadership is not None:
            leader.maybe_commit(state)
        elif state.durability.durable_index > durable_index:
            follower.acknowledge(state)
        return self._effects()

    def propose(self, commands: Sequence[bytes]) -> list[Effect]:
        """Append commands. `Accepted` says where they stand; `Apply` when they are committed. Raises a Refused."""
        leader.propose(self.state, commands)
        return self._effects()

    def read(self, ids: list[Any]) -> list[Effect]:
        """Begin linearizable reads; `ReadReady` or `ReadFailed` names their ids again. Raises NotLeader."""
        reads.read(self.state, ids)
        return self._effects()

    def holds_lease(self) -> bool:
        """Whether a read may be answered from the machine at once, on the strength of clocks.

        Right only if this node's driver has just passed all ticks that truly went by (by a clock that does not stand
        still while the machine sleeps), and if no clock of a voter runs faster than this one by more than
        `election_timeout_ticks - 2` to `lease_ticks`.
        """
        return reads.holds_lease(self.state)

    def change_configuration(self, voters: Iterable[str], learners: Iterable[str] = ()) -> list[Effect]:
        """Make these the voters and learners; joint on the way, if voters change. Raises a Refused."""
        membership.change(self.state, voters, learners)
        return self._effects()

    def transfer(self, target: str) -> list[Effect]:
        """Hand leadership to a voter; given up after an election timeout. Raises a Refused."""
        transfer.begin(self.state, target)
        return self._effects()

    def snapshot(self) -> Snapshot:
        """What a snapshot of the machine, taken now that all `Apply` so far are performed, stands for."""
        return snapshots.describe(self.state)

    def compacted(self, snapshot: Snapshot) -> list[Effect]:
        """A snapshot that `snapshot()` described is durable: the log before it may go."""
        snapshots.compacted(self.state, snapshot)
        return self._effects()

    def chunk_loaded(self, request: LoadChunk, data: bytes | None, *, done: bool) -> list[Effect]:
        """The bytes a LoadChunk asked for; `done` if they are the last. None: that snapshot is gone."""
        snapshots.chunk_loaded(self.state, request, data, done=done)
        return self._effects()

    def _effects(self) -> list[Effect]:
        state = self.state
        effects, state.out = state.out, []
        now = (state.role, state.term, state.leader)
        if now != self._told:
            self._told = now
            effects.append(RoleChanged(*now))
        return effects


def _is_about_next_term(message: Message) -> bool:
    return type(message) is PreVote or (type(message) is PreVoteReply and message.granted)
