"""The sending side: messages wait in a peer's outbox and leave together, one packet per peer and tick of the loop.

Packing is what makes small messages cheap: 256 calls in flight cost a few packets, not 256. A packet is closed at
`packet_bytes`, so that no decode holds the loop for long; and where many wait, they leave over several turns of the
loop, for encoding thousands would hold it as well. When the wire takes nothing more, the messages stay and the
channel's loss rule is applied to them.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from typing import Any

from channels import backlog
from channels.envelope import VERSION, Event, Packet, Part, Publish, Reliable, Request, Response
from channels.peers import Peer, Peers
from channels.spec import ChannelSpec
from channels.statistics import Drops
from channels.wire import Wire

#: What an envelope adds to a body, about; counted so that many small messages fill a packet, too.
OVERHEAD = 48
#: A queue that is full is shortened by such a part of its length at a time.
SHORTEN = 16


class Outbox:
    """Sends for one channel.

    `local(messages)` takes what this node sends to itself; `busy()` asks for the sweep, which tries again.
    """

    def __init__(
        self,
        spec: ChannelSpec,
        wire: Wire,
        encode: Callable[[Packet], bytes],
        session: int,
        wall: float,
        drops: Drops,
        local: Callable[[Peer, list[Any]], None],
        busy: Callable[[], None],
    ) -> None:
        self._spec = spec
        self._wire = wire
        self._encode = encode
        self._session = session
        self._wall = wall  # wall clock minus monotonic clock
        self._drops = drops
        self._local = local
        self._busy = busy
        self._loop = asyncio.get_running_loop()
        self._dirty: list[Peer] = []
        self._flushing = False
        self.lonely = False  # in the last tick nobody got two messages
        self._turn_s = spec.drain_s
        self._count = 0  # of messages sent in this tick
        self.waits = False  # packets are being handed over; on_drained will flush
        self.peers: Peers  # set by the channel, which makes both
        self.closed = False
        self.blocked: set[Peer] = set()  # whose path took nothing more at the last attempt

    def push(self, peer: Peer, message: Any, size: int) -> None:
        """Put a message into the packet that leaves at the end of this tick."""
        peer.outbox.append(message)
        peer.out_bytes += size + OVERHEAD
        if not peer.dirty:
            self.mark(peer)
        if len(peer.outbox) > self._spec.queue_messages or peer.out_bytes > self._spec.queue_bytes:
            if not peer.blocked:
                self.send(peer)  # a burst within one tick is no overload as long as the wire takes it
            elif len(peer.outbox) > self._spec.queue_messages + self._spec.queue_messages // SHORTEN:
                self._shorten(peer)

    def mark(self, peer: Peer) -> None:
        """This peer has something to send in this tick."""
        if not self._flushing:
            self._flushing = True
            self._count = 0
            if not self.waits:
                self._loop.call_soon(self.flush)
        peer.dirty = True
        self._dirty.append(peer)
        if self.lonely and not self.waits:
            path = peer.path
            if path is not None and path.link is not None and not peer.blocked:
                # In the last tick nobody got two: don't let this one wait for company that mostly doesn't come. What
                # more this peer gets in this tick waits for its end.
                self.send(peer)

    def flush(self) -> None:
        """Send what this tick brought together."""
        if self.waits or not self._flushing or self.closed:
            return
        self._flushing = False
        dirty, self._dirty = self._dirty, []
        for peer in dirty:
            peer.dirty = False
            if not peer.blocked:  # else `unblock` sends, or each tick would encode in vain
                self.send(peer)
        self.lonely = self._count <= len(dirty)
        self._wire.flushed()

    def close(self) -> None:
        """Send what waits, as far as the wire takes it, and nothing more."""
        self._turn_s = math.inf
        self.flush()
        self.closed = True

    def send(self, peer: Peer) -> None:
        """Send what waits for one peer, or as much as the wire and this turn of the loop take."""
        path, outbox = peer.path, peer.outbox
        if not outbox:
            return
        if path is None:
            self.peers.open(peer, time.monotonic())
            self._busy()
            self._shorten(peer)
            return
        if path.link is None:
            peer.outbox, peer.out_bytes = [], 0
            self._local(peer, outbox)
            return
        now = time.monotonic()
        peer.used_at = now
        if peer.blocked:
            self.unblock(peer)
        until = now + self._turn_s
        while outbox:
            whole = peer.out_bytes <= self._spec.packet_bytes
            some, size = (outbox, 0) if whole else _packetful(outbox, self._spec.packet_bytes)
            frame = self._encode(Packet(VERSION, self._session, now + self._wall, some))
            sent = self._wire.send(path, frame)
            if sent == "sent":
                traffic = peer.traffic
                traffic.sent += len(some)
                self._count += len(some)
                traffic.packets_sent += 1
                traffic.bytes_sent += len(frame)
                if whole:
                    peer.outbox, peer.out_bytes = [], 0
                    return
                outbox = peer.outbox = outbox[len(some) :]
                peer.out_bytes -= size
                if outbox and time.monotonic() > until:
                    self._go_on(peer)
                    return
            elif sent == "full":
                self._blocked(peer)
                self._shorten(peer)
                return
            else:
                self._gone(peer, now)
                return
        peer.out_bytes = 0

    def _go_on(self, peer: Peer) -> None:
        """The rest leaves in the next turn of the loop."""
        if not peer.dirty:
            peer.dirty = True
            self._dirty.append(peer)
        if not self._flushing:
            self._flushing = True
            self._count = 0
            self._loop.call_soon(self.flush)

    def send_chunk(self, peer: Peer, messages: list[Any], piece: memoryview) -> bool:
        """Send a packet with one chunk of a large body at once; False if the wire takes nothing now."""
        path = peer.path
        if path is None:
            return False
        now = time.monotonic()
        frame = self._encode(Packet(VERSION, self._session, now + self._wall, messages))
        sent = self._wire.send(path, frame, piece)
        if sent != "sent":
            if sent == "full":
                self._blocked(peer)
            else:
                self._gone(peer, now)
            return False
        peer.used_at = now
        peer.traffic.sent += len(messages)
        peer.traffic.packets_sent += 1
        peer.traffic.bytes_sent += len(frame) + len(piece)
        if not peer.dirty:
            self.mark(peer)  # so that the wire is asked for arrivals when this tick's sending is done
        return True

    def _blocked(self, peer: Peer) -> None:
        peer.blocked = True
        self.blocked.add(peer)
        self._busy()

    def unblock(self, peer: Peer) -> None:
        """Its path may take packets again, or is another."""
        peer.blocked = False
        self.blocked.discard(peer)

    def _gone(self, peer: Peer, now: float) -> None:
        path = peer.path
        if path is not None:
            self._wire.disconnect(path)
            self.peers.on_down(path, now, "the connection was lost")

    def _shorten(self, peer: Peer) -> None:
        """Apply the loss rule to what waits."""
        waiting, rule, most = peer.outbox, self._spec.loss_rule, self._spec.queue_messages
        if rule == "oldest":
            dropped = backlog.drop_oldest(waiting, most)
            self._drops.count("overflow", len(dropped))
        elif rule == "newest":
            dropped = backlog.drop_stale(waiting, time.monotonic() + self._wall)
            self._drops.count("stale", len(dropped))
            old = backlog.drop_older(waiting, most)
            self._drops.count("superseded", len(old))
            dropped += old
        else:
            return
        peer.out_bytes -= _bytes(dropped)


def size_of(message: Any) -> int:
    """The bytes of a message's body."""
    if type(message) is Reliable:
        message = message.message
    kind = type(message)
    if kind is Publish or kind is Part:
        return len(message.body)
    if kind is Request or kind is Event:
        return len(message.args)
    return len(message.result) if kind is Response and message.success else 0


def _bytes(messages: list[Any]) -> int:
    return sum(map(size_of, messages)) + OVERHEAD * len(messages)


def _packetful(messages: list[Any], most: int) -> tuple[list[Any], int]:
    """As many of the first messages as fit a packet, at least one, and what they add to it."""
    total = 0
    for n, message in enumerate(messages):
        size = size_of(message) + OVERHEAD
        if total + size > most and n:
            return messages[:n], total
        total += size
    return messages, total
