"""Many production cores of membership on the virtual clock: the same `Swim` that the service drives.

Datagrams are really encoded and decoded, so their sizes count; state exchanges go without loss, as they do over the
coordination channel, unless the link is cut. One thing differs from a real node: decoded claims are shared by the nodes
of a simulation (they are immutable) and digests are computed once, so that a million table rows fit in memory and time.
"""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache

import msgspec

from meshnode.membership import beliefs, members
from meshnode.membership.effects import Changed, Duplicated, Effect, Heard, Send, SendReliable
from meshnode.membership.messages import (
    Alive,
    Exchange,
    Ping,
    Record,
    Shout,
    decode_datagram,
    decode_update,
    encode,
)
from meshnode.membership.settings import LAN, Settings
from meshnode.membership.swim import Swim
from meshnode.mesh import MemberChange
from tests.simulation.network import Clock, Faults, Network

_UDP_HEADER = 28 + 16  # IPv4 and UDP, and the envelope
vars(beliefs)["decode_update"] = lru_cache(maxsize=200_000)(decode_update)
vars(members)["digest_of"] = lru_cache(maxsize=200_000)(members.digest_of)


def make_record(name: str, *, started: int = 1000, address: str | None = None, node_id: str | None = None) -> Record:
    """A record of typical size."""
    host = address or f"{name}:7700"
    return Record(
        node_id=node_id or f"{random.Random(name).getrandbits(128):032x}",
        name=name,
        incarnation=started,
        address=host,
        started=started,
        channels={
            "inference": f"tcp://{name}:7701",
            "coordination": f"tcp://{name}:7702",
            "telemetry": f"tcp://{name}:7703",
            "real_time": f"tcp://{name}:7704",
        },
        http=f"{name}:7705",
        tags={"zone": "a"},
        programs=("qa", "summarize"),
    )


@dataclass
class Node:
    """One simulated process."""

    swim: Swim
    address: str
    running: bool = True
    stalled_until: float = 0.0
    timers_run: bool = False  # what arrives waits during a stall, but time is noticed
    inbox: list[Callable[[], None]] = field(default_factory=list)
    sent_messages: int = 0
    sent_bytes: int = 0
    exchanged_bytes: int = 0
    heard: list[Shout] = field(default_factory=list)
    stopped_as_twin: bool = False

    @property
    def node_id(self) -> str:
        return self.swim.me.node_id

    @property
    def name(self) -> str:
        return self.swim.me.name


class Cluster:
    """Nodes on one clock and one faulty network; everything is drawn from one seed."""

    def __init__(self, settings: Settings = LAN, *, seed: int = 1, faults: Faults | None = None) -> None:
        self.settings = settings
        self.clock = Clock()
        self.rng = random.Random(seed)
        self.network = Network(self.clock, self.rng, faults or Faults())
        self.nodes: dict[str, Node] = {}  # by address
        self.watchers: list[Callable[[Node, MemberChange], None]] = []
        self.largest_datagram = 0

    def start(self, record: Record) -> Node:
        """A new process that knows nobody."""
        swim = Swim(record, self.settings, random.Random(self.rng.getrandbits(64)))
        node = Node(swim, record.address)
        self.nodes[node.address] = node
        self.network.attach(node.address, lambda source, datagram: self._receive(node, source, datagram))
        self.clock.call_later(self.rng.random() * self.settings.tick_s, lambda: self._tick(node))
        return node

    def warm(self, count: int) -> list[Node]:
        """Nodes that all know each other and have nothing left to say."""
        nodes = [self.start(make_record(f"n{i}")) for i in range(count)]
        everyone = [(node.swim.me, encode(Alive(node.swim.me))) for node in nodes]
        gc.disable()  # a million new rows, none of them garbage
        for node in nodes:
            table = node.swim._beliefs.table
            for record, alive in everyone:
                if record is not node.swim.me:
                    table.add(members.Known(record, alive, "alive", record.incarnation, b"", 0))
        gc.enable()
        return nodes

    def join(self, node: Node, seed: Node) -> None:
        """What the service does at a join: a full exchange with the seed."""
        self._ask(node, seed.node_id, node.swim.offer())

    def kill(self, node: Node) -> None:
        """As SIGKILL does."""
        node.running = False
        if self.nodes.get(node.address) is node:
            self.network.detach(node.address)
            del self.nodes[node.address]

    def stall(self, node: Node, seconds: float) -> None:
        """The process gets no CPU: no ticks, and what arrives waits."""
        node.stalled_until = self.clock.now + seconds
        self.clock.call_later(seconds, lambda: self._wake(node))

    def starve(self, node: Node, *, stall_s: tuple[float, float], run_s: tuple[float, float]) -> None:
        """Stall again and again, with little time to run between; see `Node.timers_run`."""

        def again() -> None:
            if node.running:
                seconds = self.rng.uniform(*stall_s)
                self.stall(node, seconds)
                self.clock.call_later(seconds + self.rng.uniform(*run_s), again)

        again()

    def run(self, seconds: float, until: Callable[[], bool] | None = None) -> bool:
        """Let time pass, or until something is true; returns whether it came true."""
        return self.clock.run_until(self.clock.now + seconds, until)

    def perform(self, node: Node, effects: Iterable[Effect]) -> None:
        """Carry out a core's effects."""
        for effect in effects:
            match effect:
                case Send():
                    datagram = encode(effect.message)
                    self.largest_datagram = max(self.largest_datagram, len(datagram))
                    node.sent_messages += 1
                    node.sent_bytes += len(datagram) + _UDP_HEADER
                    self.network.send(node.address, effect.address, datagram)
                case SendReliable():
                    self._ask(node, effect.peer, effect.message)
                case Changed():
                    for watcher in self.watchers:
                        watcher(node, effect.change)
                case Heard():
                    node.heard.append(effect.shout)
                case Duplicated():
                    node.stopped_as_twin = True
                    self.kill(node)
                case _:
                    pass

    def all_agree(self, state: str = "alive") -> bool:
        """Whether every running node believes exactly the running ones to be alive."""
        running = {node.node_id for node in self.nodes.values()}
        return all(
            {member.node_id for member in node.swim.members() if member.state == state} == running
            for node in self.nodes.values()
        )

    def _tick(self, node: Node) -> None:
        if not node.running:
            return
        if self.clock.now < node.stalled_until and not node.timers_run:
            # As the driver does: ticks that were missed are not made up for.
            self.clock.call_at(node.stalled_until, lambda: self._tick(node))
            return
        self.clock.call_later(self.settings.tick_s, lambda: self._tick(node))
        self.perform(node, node.swim.tick())

    def _receive(self, node: Node, source: str, datagram: bytes) -> None:
        if not node.running:
            return
        if self.clock.now < node.stalled_until:
            if len(node.inbox) < 1000:  # a socket's buffer is finite
                node.inbox.append(lambda: self._receive(node, source, datagram))
            return
        message = decode_datagram(datagram)
        self.perform(node, node.swim.step(message, source))  # type: ignore[arg-type]  # no join datagrams here

    def _wake(self, node: Node) -> None:
        if self.clock.now >= node.stalled_until:
            waiting, node.inbox = node.inbox, []
            for receive in waiting:
                receive()

    def _ask(self, node: Node, peer: str, message: Exchange | Ping) -> None:
        record = node.swim.record(peer)
        target = self._by_id(peer) if record is None else self.nodes.get(record.address)
        cuts = self.network.cuts
        if target is None or target.node_id != peer or target is node:
            return
        if (node.address, target.address) in cuts or (target.address, node.address) in cuts:
            return
        if isinstance(message, Exchange):
            node.exchanged_bytes += len(msgspec.msgpack.encode(message))
        self.clock.call_later(self.rng.uniform(0.001, 0.004), lambda: self._asked(node, target, message))

    def _asked(self, node: Node, target: Node, message: Exchange | Ping) -> None:
        if not target.running:
            return
        if self.clock.now < target.stalled_until:
            target.inbox.append(lambda: self._asked(node, target, message))
            return
        if isinstance(message, Ping):
            ack = target.swim.reached(message)
            self._answer(node, lambda: self.perform(node, node.swim.step(ack, target.address)))
            return
        answer, effects = target.swim.answer_exchange(message)
        target.exchanged_bytes += len(msgspec.msgpack.encode(answer))
        self.perform(target, effects)
        self._answer(node, lambda: self.perform(node, node.swim.finish_exchange(target.node_id, answer)))

    def _answer(self, node: Node, take: Callable[[], None]) -> None:
        def arrive() -> None:
            if node.running and self.clock.now < node.stalled_until:
                node.inbox.append(arrive)
            elif node.running:
                take()

        self.clock.call_later(self.rng.uniform(0.001, 0.004), arrive)

    def _by_id(self, node_id: str) -> Node | None:
        return next((node for node in self.nodes.values() if node.node_id == node_id), None)
