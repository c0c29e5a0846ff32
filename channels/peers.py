"""What one channel knows of its peers, and which path each is reached by.

A peer is reached by the path that is up first, whoever opened it, and stays with it while it lives: so order holds and
two nodes need one connection a channel, not two. Paths are opened at first use, again (with back-off) while something
waits for the peer, and closed when idle.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from channels.errors import ChannelError
from channels.spec import Timing
from channels.statistics import Histogram, Traffic
from channels.wire import Path, Wire

#: How long a peer that was never introduced is remembered after its link was lost.
STRANGER_S = 120.0


class Peer:
    """One peer on one channel."""

    __slots__ = (
        "address",
        "blocked",
        "delivery",
        "dirty",
        "failures",
        "granted",
        "id",
        "in_flight",
        "introduced",
        "key",
        "lag",
        "last_event",
        "opening",
        "out_bytes",
        "outbox",
        "path",
        "paths",
        "prefixes",
        "retired",
        "rtt",
        "rtt_s",
        "serving",
        "session",
        "subscribed_at",
        "topics",
        "traffic",
        "try_at",
        "used_at",
        "window",
    )

    def __init__(self, node_id: str, window: int) -> None:
        self.id = node_id
        self.address = ""  # where to connect to; "": only it can connect to us
        self.key: bytes | None = None
        self.introduced = False  # by set_peer; else known only because it connected
        self.path: Path | None = None  # the one we send by; always up
        self.paths: list[Path] = []  # all that are up
        self.opening: Path | None = None
        self.failures = 0
        self.try_at = 0.0
        self.outbox: list[Any] = []
        self.out_bytes = 0
        self.dirty = False  # waits for this tick's flush
        self.blocked = False  # its path was full at the last attempt
        self.in_flight = 0  # our requests there; in_flight <= window
        self.window = window
        self.serving = 0  # its requests here that took a task
        self.granted = window
        self.session = 0  # of its process, as its packets say; 0: none seen yet
        self.retired: deque[int] = deque(maxlen=8)
        # Smallest (our clock - its clock) seen: skew plus the least delay. A message's deadline + lag is ours.
        self.lag = math.inf
        self.last_event = 0
        self.topics: dict[str, int] = {}  # last sequence seen of what it publishes
        self.prefixes: dict[str, int] = {}  # what it subscribes to here
        self.subscribed_at = 0.0
        self.delivery: Any = None
        self.traffic = Traffic()
        self.rtt = Histogram()
        self.rtt_s = 0.0
        self.used_at = 0.0

    def stranger(self) -> bool:
        """Known only because it connected, and not connected now."""
        return not self.introduced and self.path is None and self.opening is None

    def queued(self) -> int:
        """Messages that wait to be sent or, where that is promised, acknowledged."""
        return len(self.delivery.waiting) if self.delivery else len(self.outbox)

    def summary(self) -> dict[str, Any]:
        """What statistics tell of this peer."""
        return {
            **self.traffic.summary(),
            "link": "up" if self.path else "opening" if self.opening else "down",
            "in_flight": self.in_flight,
            "serving": self.serving,
            "queued": self.queued(),
            "queued_bytes": self.out_bytes,
            "rtt": {**self.rtt.summary(), "last_s": self.rtt_s},
        }


class Peers:
    """All peers of one channel. `lost(peer, why)` is called when nothing reaches a peer any more."""

    def __init__(
        self,
        wire: Wire,
        timing: Timing,
        window: int,
        most: int,
        *,
        ready: Callable[[Peer], None],
        lost: Callable[[Peer, str], None],
    ) -> None:
        self._wire = wire
        self._timing = timing
        self._window = window
        self._most = most
        self._ready = ready
        self._lost = lost
        self._peers: dict[str, Peer] = {}
        self.get = self._peers.get  # the one lookup of the request path

    def __iter__(self) -> Iterator[Peer]:
        return iter(list(self._peers.values()))

    def __len__(self) -> int:
        return len(self._peers)

    def known(self, node_id: str) -> Peer:
        """The peer of that id, made if it is new; of too many strangers that are not connected the oldest goes."""
        peer = self._peers.get(node_id)
        if peer is None:
            if len(self._peers) >= self._most:
                absent = [one for one in self._peers.values() if one.stranger()]
                if absent:
                    self.forget(min(absent, key=lambda one: one.used_at).id, "it was not heard of for long")
            peer = self._peers[node_id] = Peer(node_id, self._window)
        return peer

    def introduce(self, node_id: str, address: str, key: bytes | None, now: float) -> Peer:
        """Set or change where a peer is. Links to an earlier address are closed."""
        peer = self.known(node_id)
        if peer.introduced:
            if (peer.address, peer.key) == (address, key):
                return peer
            # Only what we opened: it led to the old address. What the peer opened to us may be from the new one.
            self._close_paths(peer, f"{node_id} moved to {address}", [path for path in peer.paths if path.outbound])
        peer.address, peer.key, peer.introduced = address, key, True
        peer.failures, peer.try_at, peer.used_at = 0, 0.0, now
        return peer

    def forget(self, node_id: str, why: str) -> None:
        """Close what links there are and drop what is known."""
        peer = self._peers.get(node_id)
        if peer is not None:
            self._close_paths(peer, why, peer.paths)
            del self._peers[node_id]
            self._lost(peer, why)

    def _close_paths(self, peer: Peer, why: str, paths: list[Path]) -> None:
        opening, peer.opening = peer.opening, None
        lost = peer.path in paths or (opening is not None and peer.path is None)
        for path in [*paths, *([opening] if opening else [])]:
            self._wire.disconnect(path)
        peer.paths = [path for path in peer.paths if path not in paths]
        if peer.path not in peer.paths:
            peer.path = peer.paths[0] if peer.paths else None
        if lost:
            self._lost(peer, why)
            if peer.path is not None:
                self._ready(peer)

    def settle(self, peer: Peer, path: Path) -> bool:
        """Use this path and no other; whether that is a change."""
        others = [other for other in peer.paths if other is not path]
        moved = peer.path is not path
        peer.path, peer.paths = path, [path]
        for other in others:
            self._wire.disconnect(other)
        return moved

    def open(self, peer: Peer, now: float) -> None:
        """Begin to connect, unless that is under way, just failed, or impossible."""
        if peer.path is None and peer.opening is None and peer.address and now >= peer.try_at:
            try:
                peer.opening = self._wire.connect(peer.id, peer.address, peer.key)
            except ChannelError as error:
                self._failed(peer, now, str(error))
                return
            peer.opening.owner = peer

    def on_up(self, path: Path, now: float) -> None:
        """A path is ready: use it unless there is one already."""
        peer = self.known(path.peer)
        path.owner = peer
        peer.used_at = now
        if peer.opening is path:
            peer.opening = None
        peer.paths.append(path)
        peer.failures = 0
        peer.try_at = 0.0
        if peer.path is None:
            peer.path = path
            self._ready(peer)

    def on_down(self, path: Path, now: float, why: str) -> None:
        """A path is lost: use another if there is one."""
        peer = path.owner
        if peer is None:
            return
        if path in peer.paths:
            peer.paths.remove(path)
        if peer.opening is path:
            self._failed(peer, now, why)
        elif peer.path is path:
            peer.path = peer.paths[0] if peer.paths else None
            # What was under way on the lost path is lost even if another one is up.
            self._lost(peer, why)
            if peer.path is not None:
                self._ready(peer)

    def _failed(self, peer: Peer, now: float, why: str) -> None:
        peer.opening = None
        peer.failures += 1
        pause = min(self._timing.retry_max_s, self._timing.retry_s * 2 ** min(peer.failures - 1, 10))
        peer.try_at = now + pause
        if peer.path is None:
            self._lost(peer, why)

    def sweep(self, now: float) -> None:
        """Give up connecting where it takes too long."""
        for peer in self:
            path = peer.opening
            if path is not None and now - path.opened_at > self._timing.connect_s:
                self._wire.disconnect(path)
                self._failed(peer, now, f"no connection to {path.address} within {self._timing.connect_s:g} s")

    def close_idle(self, now: float) -> None:
        """Close the paths we opened that nothing has used for a while, and forget strangers that stay away.

        A stranger is kept until then, for what it sends again after a reconnect must be known as a repeat.
        """
        for peer in self:
            path = peer.path
            if peer.stranger() and now - peer.used_at > STRANGER_S:
                self.forget(peer.id, "it did not come back")
            idle = now - peer.used_at > self._timing.idle_s and not (peer.in_flight or peer.serving or peer.outbox)
            if path is not None and path.outbound and idle:
                self._wire.disconnect(path)
                peer.paths.remove(path)
                peer.path = peer.paths[0] if peer.paths else None
