"""A whole cluster under a virtual clock: `World(seed).run()` lives through one history and raises if a promise broke.

The seed decides everything: how many nodes, their settings, every delay and every fault.
"""

from __future__ import annotations

import random
import zlib
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec

from consensus.raft import Configuration, Settings, Stored, founding
from consensus.raft.messages import Message
from tests.simulation.network import Clock, Network
from tests.simulation.raft.checker import Operation, is_linearizable
from tests.simulation.raft.clients import KEYS, Client
from tests.simulation.raft.host import Host
from tests.simulation.raft.invariants import Truth, check
from tests.simulation.raft.nemesis import Nemesis

CHAOS_S = 5.0
HEALING_S = 12.0


T = TypeVar("T")


@dataclass(frozen=True)
class Aim:
    """What a history is made of, where the seed alone would draw it: so that a rule that seldom matters does so soon.

    acts: what the nemesis does, by the names of its methods, with weights; nothing else then. None: as the seed has it.
    """

    acts: Mapping[str, int] = field(default_factory=dict)
    settings: Mapping[str, int] = field(default_factory=dict)
    think_s: float | None = None
    pace_s: float | None = None
    founders: int | None = None
    churns: bool | None = None
    jumps: bool | None = None
    leases: bool | None = None
    write_share: float | None = None
    pack_share: float | None = None
    reply_loss: float | None = None
    hunts_leaders: bool | None = None


def _aimed(wanted: T | None, drawn: T) -> T:
    return drawn if wanted is None else wanted


class World:
    def __init__(self, seed: int, aim: Aim = Aim()) -> None:
        self.seed = seed
        self.aim = aim
        self.rng = rng = random.Random(seed)
        self.clock = Clock()
        self.network = Network(self.clock, rng)
        self.trace = 0
        self.notes: deque[str] = deque(maxlen=60)
        self.tick_s = 0.02
        self.settings = Settings(
            election_timeout_ticks=10,
            heartbeat_ticks=rng.choice((2, 3)),
            retry_ticks=3,
            lease_ticks=8,
            disk_timeout_ticks=20,
            max_append_bytes=rng.choice((60, 400, 100_000)),
            max_append_entries=rng.choice((1, 3, 1000)),
            window_messages=rng.choice((1, 2, 8)),
            window_bytes=rng.choice((100, 100_000)),
            chunk_bytes=rng.choice((40, 1000)),
            retained_entries=rng.choice((0, 0, 5)),
            reserve_ticks=random.Random(f"reserve {seed}").choice((0, 1, 3)),
        )
        self.settings = msgspec.structs.replace(self.settings, **aim.settings)
        self.membership_churns = _aimed(aim.churns, rng.random() < 0.5)
        self.clocks_jump = _aimed(aim.jumps, rng.random() < 0.3)
        # A lease trusts clocks: it is not offered where they jump.
        self.lease_reads = not self.clocks_jump and _aimed(aim.leases, rng.random() < 0.5)
        self.snapshot_every = rng.choice((10, 30, 1_000_000))
        self.think_s = _aimed(aim.think_s, rng.choice((0.005, 0.03)))
        self.write_share = _aimed(aim.write_share, rng.choice((0.02, 0.6, 0.8) if self.lease_reads else (0.6, 0.8)))
        self.pack_share = _aimed(aim.pack_share, rng.choice((0.0, 0.3)))
        self.reply_loss = _aimed(aim.reply_loss, rng.choice((0.0, 0.1)))
        self.effects_until_crash: int | None = None
        self.lease_reads_served = 0
        self.acknowledged = 0
        self.most_hosts = 7
        self.written: dict[str, list[Any]] = {key: [None] for key in KEYS}
        self.history: dict[str, list[Operation]] = {key: [] for key in KEYS}
        count = _aimed(aim.founders, rng.choice((1, 2, 3, 3, 3, 5, 5)))
        founders = Configuration(tuple(f"n{number}" for number in range(1, count + 1)))
        self.truth = Truth(founders)
        self.hosts: dict[str, Host] = {}
        for _ in founders.voters:
            self.add_host(founding(founders))
        self.clients = [Client(self, f"c{number}") for number in range(1, 7)]
        self.nemesis = Nemesis(self)

    def add_host(self, stored: Stored | None = None) -> None:
        """A founder, or a newcomer with nothing on its disk."""
        name = f"n{len(self.hosts) + 1}"
        host = self.hosts[name] = Host(self, name, stored or Stored())
        if self.lease_reads:
            host.tick_s *= self.rng.uniform(0.99, 1.01)  # clocks drift
        self.network.attach(name, host.receive)

    def send(self, source: str, target: str, message: Message) -> None:
        self.note(source, target, type(message).__name__)
        self.network.send(source, target, message)

    def leader_at_peace(self) -> str | None:
        """Once all is mended, clients that are lost are told where to go: they might ask removed nodes forever."""
        leaders = [host for host in self.hosts.values() if host.core.leader == host.name]
        return max(leaders, key=lambda host: host.core.term).name if self.nemesis.is_over and leaders else None

    def is_crash_due(self) -> bool:
        if self.effects_until_crash is None:
            return False
        self.effects_until_crash -= 1
        if self.effects_until_crash > 0:
            return False
        self.effects_until_crash = None
        return True

    def note(self, *what: str) -> None:
        """One step of the trace: all notes, in order, make its fingerprint."""
        line = f"{self.clock.now:.4f} {' '.join(what)}"
        self.trace = zlib.crc32(line.encode(), self.trace)
        self.notes.append(line)

    def run(self) -> World:
        """Chaos, then healing, then all must agree, serve, and have told clients nothing but the truth."""
        self.clock.run_until(CHAOS_S)
        self.nemesis.end()
        goal = {client.name: client.done + 2 for client in self.clients}
        served = self.clock.run_until(
            self.clock.now + HEALING_S, lambda: all(client.done >= goal[client.name] for client in self.clients)
        )
        check(served, "a healed cluster serves; only", *(f"{each.name}:{each.done}" for each in self.clients))
        for client in self.clients:
            client.is_stopped = True
        check(self.clock.run_until(self.clock.now + HEALING_S, self._has_converged), "a healed cluster converges")
        self._judge()
        return self

    def _has_converged(self) -> bool:
        if any(client.outstanding for client in self.clients):
            return False
        leaders = [host for host in self.hosts.values() if host.core.leader == host.name]
        if len(leaders) != 1:
            return False
        configuration, index = leaders[0].core.configuration, leaders[0].core.state.log.last_index
        states = [self.hosts[node].core.state for node in configuration.members]
        return not configuration.outgoing and all(
            state.applied_index == index and state.restoring is None for state in states
        )

    def _judge(self) -> None:
        members = next(host for host in self.hosts.values() if host.core.leader == host.name).core.configuration.members
        for node in members:
            machine = self.hosts[node].machine
            check(machine.values == self.truth.reference.values, f"{node} has the state all agreed on")
        writes = [each for key in KEYS for each in self.history[key] if each.action[0] != "read"]
        check(self.truth.reference.runs == len(writes), "every command was applied once")
        for key in KEYS:
            check(is_linearizable(self.history[key]), f"the history of {key} is linearizable")
