"""The in-memory twin: the same channels over a wire that loses, repeats, delays and cuts on purpose.

Everything above the wire is the production code; packets are encoded and decoded as on a real one. All chance comes
from one seeded generator. `Network.faults` may be changed at any time, for all channels or one of them.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from typing import Any

from channels.codec import Codec
from channels.errors import error_from_fault
from channels.four import FourChannels
from channels.router import Router
from channels.spec import CHANNELS, ChannelSpec, Limits, Timing
from channels.transport import ChannelName, Handler, MakeError
from channels.wire import Path, Receiver, Sent
from channels.zeromq import new_session


@dataclass
class Faults:
    """What happens to a packet. Rates are probabilities, delays are seconds; order is kept unless `reorder` hits."""

    delay_min_s: float = 0.0
    delay_max_s: float = 0.0
    loss: float = 0.0
    duplication: float = 0.0
    reorder: float = 0.0
    reorder_s: float = 0.02


class Network:
    """Nodes in one process. The same seed and the same order of sends give the same faults."""

    def __init__(self, seed: int = 0, faults: Faults | None = None) -> None:
        self.random = random.Random(seed)
        self.faults = faults or Faults()
        self.channel_faults: dict[ChannelName, Faults] = {}
        self.wires: dict[str, MemoryWire] = {}
        self.cuts: set[tuple[str, str]] = set()  # (source, target): nothing passes that way
        self.lost = 0

    def open(
        self,
        node_id: str,
        *,
        handler: Handler,
        make_error: MakeError = error_from_fault,
        limits: Limits | None = None,
        timing: Timing | None = None,
        codec: Codec | None = None,
        specs: tuple[ChannelSpec, ...] = CHANNELS,
    ) -> FourChannels:
        """The channels of a new node; must be called on a running loop."""
        session = new_session()
        routers: dict[ChannelName, Router] = {}
        for spec in specs:
            wire = MemoryWire(self, node_id, spec.name, session)
            wire.receiver = routers[spec.name] = Router(
                node_id,
                spec,
                wire,
                handler,
                session=session,
                make_error=make_error,
                limits=limits,
                timing=timing,
                codec=codec,
            )
        return FourChannels(node_id, routers)

    def partition(self, *sides: set[str]) -> None:
        """Cut every link between different sides, both ways. Packets vanish; nobody is told."""
        self.cuts |= {(a, b) for one in sides for other in sides if other is not one for a in one for b in other}

    def heal(self) -> None:
        """Undo all cuts."""
        self.cuts.clear()

    def break_links(self, node_id: str) -> None:
        """Lose all connections of a node, as when its network is pulled; both ends are told."""
        for wire in list(self.wires.values()):
            for path in list(wire.paths):
                if node_id in (wire.node_id, path.peer):
                    wire.lose(path)


class MemoryWire:
    """Implements `Wire`. A path's link is its other end."""

    receiver: Receiver

    def __init__(self, network: Network, node_id: str, channel: ChannelName, session: int) -> None:
        self._network = network
        self._channel = channel
        self._loop = asyncio.get_running_loop()
        self.node_id = node_id
        self.address = f"memory://{node_id}/{channel}/{session:x}"
        self.paths: set[Path] = set()
        self._arrives_at: dict[Path, float] = {}
        network.wires[self.address] = self

    def connect(self, peer: str, address: str, key: bytes | None) -> Path:
        """A path that is up after one delay, or never if nobody is there or the way is cut."""
        del key  # a process needs no keys against itself
        path = Path(peer, End(), outbound=True, address=address, opened_at=self._loop.time())
        self.paths.add(path)
        self._loop.call_later(self._delay(), self._connected, path)
        return path

    def _connected(self, path: Path) -> None:
        wire = self._network.wires.get(path.address)
        cuts = {(self.node_id, path.peer), (path.peer, self.node_id)}
        if path not in self.paths or wire is None or wire.node_id != path.peer or cuts & self._network.cuts:
            return  # the channel gives up by itself
        other = Path(self.node_id, End(self, path), outbound=False, address="", opened_at=self._loop.time())
        path.link = End(wire, other)
        path.up = True
        wire.paths.add(other)
        wire.receiver.on_up(other)
        self.receiver.on_up(path)

    def send(self, path: Path, frame: bytes, body: bytes | memoryview | None = None) -> Sent:
        """Lose, repeat or deliver later."""
        if path not in self.paths or not path.up:
            return "gone"
        network, end = self._network, path.link
        faults = self._faults()
        copy = bytes(body) if body is not None else None
        if (self.node_id, path.peer) in network.cuts or network.random.random() < faults.loss:
            network.lost += 1
            return "sent"
        for _ in range(2 if network.random.random() < faults.duplication else 1):
            arrives_at = self._loop.time() + self._delay()
            if network.random.random() < faults.reorder:
                arrives_at += network.random.uniform(0, faults.reorder_s)
            else:
                arrives_at = self._arrives_at[path] = max(arrives_at, self._arrives_at.get(path, 0.0))
            if arrives_at <= self._loop.time():
                self._loop.call_soon(end.deliver, frame, copy)
            else:
                self._loop.call_at(arrives_at, end.deliver, frame, copy)
        return "sent"

    def flushed(self) -> None:
        """Nothing is held back here."""

    def disconnect(self, path: Path) -> None:
        """Close a path; the other end notices."""
        end = path.link
        self._forget(path)
        if end.wire is not None:
            self._loop.call_soon(end.wire.lose, end.path)

    def lose(self, path: Path) -> None:
        """Tell our channel that a path is gone, and the other end after it."""
        if path in self.paths:
            self.disconnect(path)
            self.receiver.on_down(path, "the connection was lost")

    def _forget(self, path: Path) -> None:
        path.up = False
        self.paths.discard(path)
        self._arrives_at.pop(path, None)

    def close(self) -> None:
        """Leave the network."""
        self._network.wires.pop(self.address, None)
        for path in list(self.paths):
            self.disconnect(path)

    def _faults(self) -> Faults:
        return self._network.channel_faults.get(self._channel, self._network.faults)

    def _delay(self) -> float:
        faults = self._faults()
        return self._network.random.uniform(faults.delay_min_s, faults.delay_max_s)


class End:
    """The other end of a path: a wire, and what that wire calls the path."""

    __slots__ = ("path", "wire")

    def __init__(self, wire: MemoryWire | None = None, path: Any = None) -> None:
        self.wire = wire
        self.path = path

    def deliver(self, frame: bytes, body: bytes | None) -> None:
        """A packet arrives, unless the path was lost while it was under way."""
        if self.wire is not None and self.path in self.wire.paths:
            self.wire.receiver.on_packet(self.path, frame, body)
            self.wire.receiver.on_drained()
