"""Raft: several nodes keep one log, as if it were on one machine that does not fail.

A majority of the nodes must be up and reach each other; then commands are put into one order, and every node's state
machine applies the same commands in that order. No minority, partition, crash or delay can make two nodes disagree.
Nodes may stop and come back with what their disk has; they may not lie, and a disk may not forget (that is what
`consensus/bft` is for, and what the log's checksums are for).

**This core is pure.** It reads no clock, opens no socket and no file. Its inputs are method calls: `tick` (time
passed), `step` (a message came), `persisted` (the disk has caught up), and what the application wants: `propose`,
`read`, `change_configuration`, `transfer`. Each returns a list of effects (see `effects`), which a driver performs
strictly in order; chance comes from the generator it was given. So the simulator runs this very code, and the same
inputs give the same outputs.

**Papers.** D. Ongaro, J. Ousterhout, "In Search of an Understandable Consensus Algorithm" (extended version, 2014):
the § numbers here. D. Ongaro, "Consensus: Bridging Theory and Practice" (dissertation, 2014): named so.

The log
-------

An entry has an index (its place), a term (which leader made it) and data. Here is a cluster of three in term 3:

    index            1       2       3       4       5       6
    a  leader     1 noop  1 x=1   2 noop  2 y=7   3 noop  3 x=2      commit_index 5
    b             1 noop  1 x=1   2 noop  2 y=7   3 noop             has not got 6 yet
    c             1 noop  1 x=1   1 x=9                              was away: 3 will be replaced

An entry is *committed* once the leader knows it on a majority's disks (5 is: on a and b). Committed entries are never
lost and are applied in order. What is not committed may vanish, as `x=9` at c will: its client was never answered.

Two properties carry everything (log matching, §5.3): entries of the same index and term hold the same, and so do all
entries before them. The first, since a leader makes one entry per index; the second, since an Append names the entry
before its own, and a follower that lacks that one refuses.

Roles
-----

                      silence for a timeout                majority would             majority voted
        FOLLOWER ------------------------> PRE_CANDIDATE ---------------> CANDIDATE ----------------> LEADER
          ^  ^                                |   ^                         |    |                       |
          |  |      a leader, or refused      |   |   split vote: timeout   |    |                       |
          |  +--------------------------------+   +-------------------------+    |                       |
          +----------------------------------------------------------------------+-----------------------+
                      a higher term, a leader of this term; a leader also when it hears no majority
                      for an election timeout (check-quorum), or its disk makes no progress

Time is divided in terms, each with one leader at most. A higher term always wins: whoever hears of one, follows.

**Elections (§5.2).** A node grants one vote a term, durably. Before it raises its term, a candidate asks whether it
would be elected (pre-vote): a node that was cut off comes back without disturbing anyone. A node that heard a leader
within the least election timeout says no to both, so a leader that a majority hears is safe, and may hold a lease.

**Vote rule (§5.4.1).** A voter refuses a candidate whose log is less up to date than its own: the later last term
wins, then the longer log. A committed entry is on a majority and a winner needs a majority, so some voter has the
entry, and the winner does, too (leader completeness).

**Commit rule (§5.4.2).** A leader counts replicas only for entries of its own term; those before are committed along
with them. An older entry may be on a majority, and yet a node without it could be elected (figure 8). So a leader
begins with an empty entry of its own, and until that is committed it answers no read and changes no membership (§8).

**Replication (§5.3).** `propose` appends, hands the entries to the disk and sends them, all in one step: the
followers' disks work while the leader's own does. A follower that is level is sent ahead, up to a window of messages
and bytes; what does not fit waits, and goes as one larger batch. A lost Append shows when the next one, or a
heartbeat, is refused; then the leader asks back to where the logs agree, whole terms at a time. Voters that a majority
does not need, and learners, may be left to wait a moment for what gathers (see `reserve`).

What must be durable before what is sent
----------------------------------------

    any message                    the term and vote that the sender has
    VoteReply(granted), Vote       therefore the vote in it
    AppendReply(match_index)       the log up to match_index
    counting the leader itself     the log up to the entry counted
    Append                         nothing more: the leader's own fsync runs meanwhile
    a snapshot's AppendReply       the snapshot; until then nothing after it is applied

The core keeps this by itself: it hands out a `Send` only once what it depends on was reported by `persisted`. Each
`Send` names that write in `after`, so that a driver and the simulator can assert it. The rules are in `durability`.

Who may retry
-------------

    propose raised a `Refused`          it was not taken: retry, at the leader that NotLeader names
    another term was applied there      it is lost: retry (see `proposals`)
    no answer, leadership changed       unknown: retry in a client session, which applies once (see `sessions`)
    a read failed or got no answer      retry: a read changes nothing

Reads (see `reads`) are linearizable by ReadIndex, on any member; by lease, on the leader, as far as clocks are
trusted; or stale, straight from any machine without asking the core.

Invariants (figure 3, checked by the simulator after every step)
----------------------------------------------------------------

    at most one leader a term; a leader never changes its own log but by appending
    applied_index <= commit_index <= last_index, and none of the first two ever falls
    matched_index >= commit_index: what is committed is never truncated
    what one node applied at an index, no other node ever differs in
    no message says what its sender would not know after a crash

Where this differs from the paper
---------------------------------

    pre-vote, check-quorum, refusing votes while a leader is heard: always on
    membership changes are joint (§6), from any set of voters to any other, and the second half follows by itself;
      a configuration holds from when it is appended; learners get entries and have no say
    entries go at once only to as many as make a majority, to the rest up to `reserve_ticks` later (0: to all at once)
    a removed leader hands over with TimeoutNow when its removal is committed
    a node that lost its disk must come back under a new id: an acknowledgement is for ever
    snapshots go in chunks, one at a time; the follower asks for the offset it wants
    not here: witnesses, follower priorities, more than one group of nodes

Driving it
----------

    core = Raft(node_id, settings, rng, stored)         # `stored` as the disk has it; the founder's: `founding(...)`
    while True:
        event = next_event()                            # every tick_s seconds a Tick, whatever else happens
        match event:
            case Tick(elapsed): effects = core.tick(elapsed)
            case Received(source, message): effects = core.step(source, message)
            case Written(number): effects = core.persisted(number)
            case Asked(commands): effects = core.propose(commands)      # all that came meanwhile, in one call
        for effect in effects:
            perform(effect)                             # in order; Persist begins a write and does not wait for it
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from consensus.raft import (
    election,
    follower,
    leader,
    membership,
    messages,
    reads,
    replication,
    reserve,
    snapshots,
    statistics,
    transfer,
)
from consensus.raft.configuration import Configuration
from consensus.raft.durability import complete_writes
from consensus.raft.effects import Effect, LoadChunk, Role, RoleChanged
from consensus.raft.messages import Message, PreVote, PreVoteReply, Snapshot, Vote
from consensus.raft.roles import become_follower, is_sticky, reset_countdown
from consensus.raft.settings import Settings
from consensus.raft.state import State, Stored, load
from consensus.raft.statistics import Statistics

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

    def statistics(self) -> Statistics:
        """Where this node stands; on the leader, where its followers do."""
        return statistics.describe(self.state)

    def tick(self, elapsed: int = 1) -> list[Effect]:
        """`elapsed` ticks of true time have passed since the last call; more than 1 after a pause."""
        election.tick(self.state, elapsed)
        return self._effects()

    def rest(self) -> int:
        """How many ticks this node can do without, from the last one on, at least 1; they then count in one call.

        A driver may sleep so long, if it passes the ticks that went by meanwhile before it does anything else to the
        core, ticks in time again after a `RoleChanged`, and calls `spread` soon once `is_holding`. One that ticks every
        tick need not ask.
        """
        return election.rest(self.state)

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
            if state.durability.durable_index > state.commit_index:
                leader.maybe_commit(state)
        elif state.durability.durable_index > durable_index:
            follower.acknowledge(state)
        return self._effects()

    def propose(self, commands: Sequence[bytes]) -> list[Effect]:
        """Append commands. `Accepted` says where they stand; `Apply` when they are committed. Raises a Refused."""
        leader.propose(self.state, commands)
        return self._effects()

    def announce(self, index: int, to: str | None = None) -> list[Effect]:
        """Tell the followers (or one) that `index` is committed, if no entries took the news along.

        The next tick would, too. A driver that calls this a few milliseconds after an `Apply` shortens their delay to
        that; one that calls it before it answers a follower lets that one see what it wrote.
        """
        if self.state.leadership is not None:
            replication.announce(self.state, index, to)
        return self._effects()

    @property
    def is_holding(self) -> bool:
        """Whether entries wait for `spread`."""
        leadership = self.state.leadership
        return leadership is not None and leadership.holding_since is not None

    def spread(self) -> list[Effect]:
        """Send those who were left to wait (`Settings.reserve_ticks`) what has gathered for them."""
        if self.state.leadership is not None:
            reserve.spread(self.state)
        return self._effects()

    def read(self, ids: list[Any]) -> list[Effect]:
        """Begin linearizable reads; `ReadReady` or `ReadFailed` names their ids again. Raises NotLeader."""
        reads.read(self.state, ids)
        return self._effects()

    def holds_lease(self) -> bool:
        """Whether a read may be answered from the machine at once, on the strength of clocks.

        Right only if this node's driver has just passed all ticks that truly went by (by a clock that does not stand
        still while the machine sleeps), and if no voter's clock runs faster than this one by more than
        `election_timeout_ticks - 1` to `lease_ticks`.
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
