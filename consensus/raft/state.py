"""All a node knows, in one place; the modules beside this one are the rules that change it.

    durability   what is on disk, and what waits for it
    roles        leaving office, following, who may stand
    commit       advancing commit_index, applying
    follower     receiving entries
    snapshots    compacting, streaming, receiving
    replication  sending entries
    reserve      who gets them at once, and who may wait
    reads        ReadIndex and leases
    transfer     handing leadership over
    membership   changing who votes
    leader       taking proposals, counting replicas
    election     ticks, pre-votes, votes, taking office

Each imports only from those above it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import msgspec

from consensus.raft.configuration import Configuration, History
from consensus.raft.durability import Durability
from consensus.raft.effects import Effect, Role
from consensus.raft.log import Log
from consensus.raft.messages import (
    CONFIGURATION,
    Append,
    Entry,
    HardState,
    Snapshot,
    configuration_entry,
    configuration_of,
)
from consensus.raft.progress import Progress
from consensus.raft.settings import Settings


class Stored(msgspec.Struct, frozen=True):
    """What the disk holds when a node starts: `entries` are those from `snapshot.index + 1` on."""

    hard_state: HardState = HardState()
    snapshot: Snapshot = Snapshot()
    entries: list[Entry] = []


def founding(configuration: Configuration) -> Stored:
    """What each founder of a cluster makes durable before its first start: the same first entry on all of them."""
    return Stored(HardState(term=1), Snapshot(), [configuration_entry(1, configuration)])


@dataclass(slots=True)
class Incoming:
    """A snapshot being received: bytes before `offset` are kept aside."""

    snapshot: Snapshot
    offset: int = 0


@dataclass(slots=True)
class Handover:
    """Leadership on its way to `target`; given up at `deadline`."""

    target: str
    deadline: int


@dataclass(slots=True)
class Asked:
    """Reads that may be answered at `index`, once a majority has answered `round`."""

    round: int
    index: int
    reads: list[Any]
    followers: dict[str, int]


@dataclass(slots=True)
class Leadership:
    """What only a leader knows; gone with its office."""

    progress: dict[str, Progress]
    first_index: int  # of its own first entry: until that is committed, it doesn't know what is (§8)
    heartbeat_at: int = 0
    announced_at: int = -1  # when a commit was last told at once
    announced_index: int = 0  # the last commit_index that followers were told without entries
    round: int = 0  # stamped on every Append; a majority's echo proves that this leader led when it began
    rounds_begun: dict[int, int] = field(default_factory=dict)  # round: tick
    waiting_followers: dict[str, int] = field(default_factory=dict)  # its question; one at a time
    asked_reads: Asked | None = None
    handover: Handover | None = None
    prompt: tuple[str, ...] = ()  # voters that, with this node, make a majority
    reserve: frozenset[str] = frozenset()  # who may wait for entries; see `reserve`
    holding_since: int | None = None  # when the oldest entry was that waits for the reserve
    may_lease: bool = True  # False for good once TimeoutNow was sent: it may arrive at any time
    recent: Append | None = None  # the last Append built, for the next follower that stands at the same place


@dataclass(slots=True)
class State:
    """One node. Invariants stand beside the fields they bind."""

    id: str
    settings: Settings
    rng: random.Random
    # Durable before any message that shows it.
    term: int
    vote: str | None
    # applied_index <= commit_index <= log.last_index; snapshot.index <= commit_index; log.base_index <= snapshot.index
    log: Log
    snapshot: Snapshot
    history: History
    commit_index: int
    applied_index: int  # handed out in `Apply`
    durability: Durability = field(default_factory=Durability)
    role: Role = Role.FOLLOWER
    leader: str | None = None
    now: int = 0  # true ticks since the start; leases and their other half, refusing votes, go by it
    heard_at: int = 0  # when a leader was last heard. 0 at the start: before a crash it may have been just now
    timeout: int = 1  # drawn anew with each leader and each election
    countdown: int = 1  # ticks to live through before campaigning; a pause counts as `rest`
    rest: int = 1  # ticks that the driver was last told it may let go by in one
    stood_at: int = 0  # when pre-votes were last asked for
    votes: set[str] = field(default_factory=set)  # for me, in this term (pre-votes: for the next)
    refusals: set[str] = field(default_factory=set)
    leadership: Leadership | None = None  # not None exactly if role is LEADER
    # As a follower of this term's leader:
    matched_index: int = 0  # up to here this log agrees with the leader's, durable or not; >= commit_index
    heard_round: int = 0
    incoming: Incoming | None = None
    restoring: Snapshot | None = None  # adopted, not durable yet: nothing is applied meanwhile
    forwarded_reads: list[Any] = field(default_factory=list)  # asked of the leader, in question `read_number`
    read_number: int = 0
    settled_reads: list[tuple[int, list[Any]]] = field(default_factory=list)  # answered; wait to be applied
    waiting_reads: list[Any] = field(default_factory=list)  # for the next round (as follower: question)
    out: list[Effect] = field(default_factory=list)

    @property
    def configuration(self) -> Configuration:
        """The one in force: the newest in the log, committed or not (§6)."""
        return self.history.current


def load(node_id: str, settings: Settings, rng: random.Random, stored: Stored) -> State:
    """The state of a node that starts from what its disk holds. Raises ValueError if that contradicts itself."""
    snapshot, terms = stored.snapshot, [entry.term for entry in stored.entries]
    if terms != sorted(terms) or (terms and not snapshot.term <= terms[0] <= terms[-1] <= stored.hard_state.term):
        raise ValueError("terms in the stored log fall, or are above the stored term")
    if snapshot.term > stored.hard_state.term:
        raise ValueError("the stored snapshot is of a later term than the stored term")
    history = History(snapshot.index, snapshot.configuration)
    for index, entry in enumerate(stored.entries, snapshot.index + 1):
        if entry.kind == CONFIGURATION:
            history.add(index, configuration_of(entry))
    state = State(
        id=node_id,
        settings=settings,
        rng=rng,
        term=stored.hard_state.term,
        vote=stored.hard_state.vote,
        log=Log(snapshot.index, snapshot.term, stored.entries),
        snapshot=snapshot,
        history=history,
        commit_index=snapshot.index,
        applied_index=snapshot.index,
        # Reads asked before a restart must not be confused with those after it.
        read_number=rng.getrandbits(48),
    )
    state.durability.durable_index = state.log.last_index
    return state
