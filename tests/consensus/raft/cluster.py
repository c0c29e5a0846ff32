"""A cluster in a test's hand: nothing happens unless the test says so, and all that happens is written down.

Each node's effects are sorted into what a test asks about; messages and writes wait until they are delivered or
finished by name. `Cluster(...).elect("a")` and `settle()` do the usual in one go.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from consensus.raft import Configuration, HardState, Raft, Settings, Snapshot, Stored, founding
from consensus.raft.effects import (
    Apply,
    Effect,
    LoadChunk,
    Persist,
    ReadFailed,
    ReadReady,
    Restore,
    Role,
    Send,
    StoreChunk,
)
from consensus.raft.messages import COMMAND, NOOP, Entry, Message

SETTINGS = Settings(
    election_timeout_ticks=10,
    heartbeat_ticks=2,
    retry_ticks=2,
    lease_ticks=7,
    disk_timeout_ticks=12,
    retained_entries=0,
)
T = SETTINGS.election_timeout_ticks


class Node:
    """A core with its effects sorted. Writes are durable at once unless `slow`."""

    def __init__(self, node_id: str, stored: Stored, settings: Settings = SETTINGS) -> None:
        self.id = node_id
        self.settings = settings
        self.disk = stored
        self.is_slow = False
        self._start(stored)

    def _start(self, stored: Stored) -> None:
        self.core = Raft(self.id, self.settings, random.Random(self.id), stored)
        self.sent: list[Send] = []
        self.writes: deque[Persist] = deque()
        self.applied: list[bytes] = []
        self.applied_index = stored.snapshot.index
        self.effects: list[Effect] = []
        self.ready: list[Any] = []
        self.failed: list[Any] = []
        self.loads: list[LoadChunk] = []
        self.aside = b""
        self.restored: list[Snapshot] = []

    def restart(self) -> None:
        """Lose all that is not durable."""
        self._start(self.disk)

    def do(self, effects: list[Effect]) -> None:
        self.effects.extend(effects)
        for effect in effects:
            match effect:
                case Send():
                    assert effect.after <= self.core.state.durability.durable_number
                    self.sent.append(effect)
                case Persist():
                    self.writes.append(effect)
                case Apply():
                    assert effect.first_index == self.applied_index + 1
                    self.applied_index += len(effect.entries)
                    self.applied += [each.data for each in effect.entries if each.kind == COMMAND]
                case ReadReady():
                    self.ready += effect.ids
                case ReadFailed():
                    self.failed += effect.ids
                case LoadChunk():
                    self.loads.append(effect)
                case StoreChunk():
                    self.aside = self.aside[: effect.offset] + effect.data
                case Restore():
                    self.restored.append(effect.snapshot)
                    self.applied_index = effect.snapshot.index
                case _:
                    pass
        if not self.is_slow:
            self.sync()

    def sync(self) -> None:
        """Finish the writes under way."""
        while self.writes:
            write = self.writes.popleft()
            self.disk = replay(self.disk, write)
            self.do(self.core.persisted(write.number))

    def step(self, source: str, message: Message) -> list[Message]:
        """Deliver one message; returns what the node sent in answer to anyone."""
        before = len(self.sent)
        self.do(self.core.step(source, message))
        return [each.message for each in self.sent[before:]]

    def tick(self, count: int = 1) -> None:
        for _ in range(count):
            self.do(self.core.tick())

    def expire(self) -> None:
        """Let the election timeout pass, exactly until this node stands."""
        for _ in range(2 * T):
            role, term = self.core.role, self.core.term
            self.tick()
            if (self.core.role, self.core.term) != (role, term) or self.core.role is Role.PRE_CANDIDATE:
                return

    def take(self) -> list[tuple[str, Message]]:
        """What was sent since the last call."""
        taken, self.sent = [(each.to, each.message) for each in self.sent], []
        return taken

    def leads(self) -> bool:
        return self.core.role is Role.LEADER

    def terms(self) -> list[int]:
        """The terms of the log's entries, as the paper's figures draw them."""
        log = self.core.state.log
        return [each.term for each in log.slice(log.base_index + 1, log.last_index)]


def replay(disk: Stored, write: Persist) -> Stored:
    if write.snapshot is not None:
        return Stored(disk.hard_state, write.snapshot, [])
    keep = write.first_index - disk.snapshot.index - 1
    entries = disk.entries[:keep] + write.entries if write.entries else disk.entries
    return Stored(write.hard_state or disk.hard_state, disk.snapshot, entries)


def entries_of(terms: Sequence[int], first: int = 1) -> list[Entry]:
    return [Entry(term, f"{index}.{term}".encode()) for index, term in enumerate(terms, first)]


def stored(voters: str, terms: Sequence[int] = (), *, term: int = 0, vote: str | None = None) -> Stored:
    """A disk whose log is as the paper draws it; `voters` "abc" are in a snapshot at index 0."""
    snapshot = Snapshot(0, 0, Configuration(tuple(voters)))
    return Stored(HardState(max([term, *terms]), vote), snapshot, entries_of(terms))


def node(voters: str, terms: Sequence[int] = (), *, node_id: str = "a", term: int = 0, vote: str | None = None) -> Node:
    """One node whose last leader, if it had any, has been silent for long."""
    lone = Node(node_id, stored(voters, terms, term=term, vote=vote))
    lone.core.state.now = T  # nothing it heard before its start holds it back
    return lone


class Cluster:
    """Some nodes and the messages between them."""

    def __init__(self, voters: str, disks: dict[str, Stored] | None = None, settings: Settings = SETTINGS) -> None:
        start = founding(Configuration(tuple(voters)))
        self.nodes = {each: Node(each, (disks or {}).get(each, start), settings) for each in voters}
        self.cut: set[tuple[str, str]] = set()
        self.log: list[str] = []
        for each in self.nodes.values():
            each.core.state.now = T

    def __getitem__(self, node_id: str) -> Node:
        return self.nodes[node_id]

    def add(self, node_id: str) -> Node:
        """A newcomer with an empty disk."""
        self.nodes[node_id] = Node(node_id, Stored(), next(iter(self.nodes.values())).settings)
        return self.nodes[node_id]

    def isolate(self, *side: str) -> None:
        """Cut these off from the others, both ways."""
        for a in side:
            for b in self.nodes.keys() - set(side):
                self.cut |= {(a, b), (b, a)}

    def heal(self) -> None:
        self.cut.clear()

    def settle(self, keep: Callable[[Message], bool] = lambda _: True) -> None:
        """Deliver messages until none is left; those not kept are lost."""
        for _ in range(10_000):
            pending = [(each.id, to, message) for each in self.nodes.values() for to, message in each.take()]
            if not pending:
                return
            for source, to, message in pending:
                if (source, to) in self.cut or to not in self.nodes or not keep(message):
                    continue
                self.log.append(f"{source}->{to} {message}")
                self.nodes[to].step(source, message)
        raise AssertionError("messages without end")

    def elect(self, node_id: str) -> Node:
        """Let this node's timeout pass first, and the election run its course."""
        chosen = self.nodes[node_id]
        for each in self.nodes.values():
            each.core.state.heard_at = min(each.core.state.heard_at, each.core.state.now - T)
        chosen.expire()
        self.settle()
        assert chosen.core.role is Role.LEADER
        return chosen

    def tick(self, count: int = 1) -> None:
        """Time passes for all, messages included."""
        for _ in range(count):
            for each in self.nodes.values():
                each.tick()
            self.settle()

    def propose(self, leader: str, *commands: bytes) -> None:
        self.nodes[leader].do(self.nodes[leader].core.propose(commands))

    def leaders(self) -> list[str]:
        return [each.id for each in self.nodes.values() if each.core.role is Role.LEADER]


NOOP_OF = {term: Entry(term, b"", NOOP) for term in range(20)}
