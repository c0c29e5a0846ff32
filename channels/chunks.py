"""Large bodies, in pieces: no body holds the loop, the wire, or the peer's memory beyond its limit.

A body above `chunk_from` is cut into chunks; only the bytes of a few are on the way to one peer at a time, whatever the
number of bodies, which take turns of a few chunks: long enough for most to be finished in one, so that the receiver has
few of them half done and still in its caches. Each chunk is acknowledged when it was taken. The message itself travels
with the last chunk, without its body, and is put together again before it is dispatched. Chunks travel as a frame of
their own, so they are neither encoded nor decoded.

How many are a few is measured (`Pace`): `chunk_window` to begin with and at least, more only where the round trip is
long and does not grow with it, as on a link of 20 ms; where it grows, chunks wait in a queue and more would only
lengthen it for everyone (the idea of LEDBAT, RFC 6817).
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from channels.envelope import Chunk, ChunkAck, Event, Request, Response, Whole
from channels.errors import Fault
from channels.peers import Peer
from channels.spec import ChannelSpec
from channels.statistics import Drops
from channels.wire import Bytes

#: Transfers that one peer may have begun and not finished here.
MAX_TRANSFERS = 256
#: Chunks' worth of bytes on the way to one peer at most, 16 MiB.
MAX_WINDOW = 16
#: Chunks of one body that go before the next body has its turn.
TURN = 2
#: Bodies up to this size are put together on the loop, which takes 0.1 ms a MiB. For larger ones a thread does it, from
#: pieces that are bytes: only then does joining leave the interpreter to others.
JOIN_HERE = 2 * 1024 * 1024
#: So many small chunks count as a full one: each costs both loops as many calls as a large one does.
SMALL = 4


class Outgoing:
    """A body on its way."""

    __slots__ = ("abandoned", "body", "chunks", "message", "next", "transfer")

    def __init__(self, transfer: int, message: Any, body: bytes, chunk_bytes: int) -> None:
        self.transfer = transfer
        self.message = message
        self.body = memoryview(body)
        self.chunks = -(-len(body) // chunk_bytes)
        self.next = 0
        self.abandoned = False  # leaves `Lane.waiting` when its turn comes


class Pace:
    """The window of chunks to one peer, from the round trips of chunks."""

    __slots__ = ("_least", "_most", "_round", "_rounds", "_shortest", "_slow", "base_s", "window")

    def __init__(self, least: int, most: int = MAX_WINDOW) -> None:
        self.window = least
        self._least = least
        self._most = most
        self.base_s = math.inf  # the round trip of an empty way, as far as we know
        self._shortest = math.inf  # of the last rounds, to become the base: the way may have changed
        self._round = 0  # acknowledgements in this window
        self._slow = 0  # of them, those that took notably longer than the base
        self._rounds = 0

    def acknowledged(self, round_trip_s: float) -> None:
        """One chunk took so long. Once per window, widen or narrow it."""
        self.base_s = min(self.base_s, round_trip_s)
        self._shortest = min(self._shortest, round_trip_s)
        self._round += 1
        self._slow += round_trip_s > self.base_s * 1.25
        if self._round < self.window:
            return
        if self._slow * 2 > self._round:
            self.window = max(self._least, self.window * 3 // 4)
        else:
            self.window = min(self._most, self.window * 5 // 4 + 1)
        self._round = self._slow = 0
        self._rounds += 1
        if self._rounds >= 64:
            self.base_s, self._shortest, self._rounds = self._shortest, math.inf, 0


class Lane:
    """All that goes to and comes from one peer in chunks."""

    __slots__ = (
        "incoming",
        "incoming_bytes",
        "pace",
        "refused",
        "requests",
        "sent_at",
        "turn_ends",
        "under_way",
        "waiting",
        "waiting_bytes",
    )

    def __init__(self, window: int) -> None:
        self.pace = Pace(window)
        self.turn_ends: float | None = None  # None: nothing was sent in this turn of the loop
        self.sent_at: deque[tuple[float, int]] = deque()  # of the chunks under way, each with its size, in order
        self.under_way = 0  # their bytes
        self.waiting: deque[Outgoing] = deque()
        self.waiting_bytes = 0
        self.requests: dict[int, Outgoing] = {}  # of those that wait, by the request's id
        self.incoming: dict[int, list[Bytes]] = {}
        self.incoming_bytes = 0
        self.refused: deque[int] = deque(maxlen=MAX_TRANSFERS)

    def waits_no_more(self, out: Outgoing) -> None:
        """It has left, or is not to."""
        self.waiting_bytes -= len(out.body)
        if type(out.message) is Request:
            self.requests.pop(out.message.id, None)


class Chunks:
    """The chunked bodies of one channel.

    `post(peer, message, size)` sends a message with the tick's packet, `send(peer, messages, body)` one chunk at once
    (False: not now), `refuse(peer, message, fault)` tells that a message could not be delivered, and
    `later(callback, peer)` calls back in the loop's next turn.
    """

    def __init__(
        self,
        spec: ChannelSpec,
        post: Callable[[Peer, Any, int], None],
        send: Callable[[Peer, list[Any], memoryview], bool],
        refuse: Callable[[Peer, Any, Fault], None],
        drops: Drops,
        later: Callable[[Callable[[Peer], None], Peer], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._spec = spec
        self._later = later
        self._clock = clock
        self._post = post
        self._send = send
        self._refuse = refuse
        self._drops = drops
        self._lanes: dict[str, Lane] = {}
        self._count = 0

    def room(self, peer: Peer, size: int) -> bool:
        """Whether a body of `size` bytes may wait for this peer."""
        lane = self._lanes.get(peer.id)
        return lane is None or not lane.waiting or lane.waiting_bytes + size <= self._spec.queue_bytes

    def window(self, peer: str) -> int:
        """The chunks that may be on the way to a peer now."""
        lane = self._lanes.get(peer)
        return self._spec.chunk_window if lane is None else lane.pace.window

    def start(self, peer: Peer, message: Any, body: bytes) -> None:
        """Send `message`, whose body field is empty, with `body`."""
        self._count += 1
        lane = self._lane(peer)
        out = Outgoing(self._count, message, body, self._spec.chunk_bytes)
        lane.waiting.append(out)
        lane.waiting_bytes += len(body)
        if type(message) is Request:
            lane.requests[message.id] = out
        self.pump(peer)

    def pump(self, peer: Peer) -> None:
        """Send what the window and this turn of the loop allow."""
        lane = self._lanes.get(peer.id)
        if lane is None or peer.path is None:
            return
        size = self._spec.chunk_bytes
        while lane.waiting and lane.under_way < lane.pace.window * size:
            # Many acknowledgements come at once, and many callers begin at once: what is urgent goes in between.
            if lane.turn_ends is not None and self._clock() > lane.turn_ends:
                return
            out = lane.waiting[0]
            if out.abandoned:
                lane.waiting.popleft()
                continue
            piece = out.body[out.next * size : (out.next + 1) * size]
            messages: list[Any] = [Chunk(out.transfer, out.next, len(out.body))]
            if out.next + 1 == out.chunks:
                messages.append(Whole(out.transfer, out.chunks, out.message))
            began = self._clock()
            if not self._send(peer, messages, piece):
                return
            if lane.turn_ends is None:
                lane.turn_ends = began + self._spec.drain_s
                self._later(self._next_turn, peer)
            out.next += 1
            weight = max(len(piece), -(-size // SMALL))
            lane.sent_at.append((time.monotonic(), weight))
            lane.under_way += weight
            if out.next == out.chunks:
                lane.waiting.popleft()
                lane.waits_no_more(out)
            elif out.next % TURN == 0:
                lane.waiting.rotate(-1)

    def _next_turn(self, peer: Peer) -> None:
        lane = self._lanes.get(peer.id)
        if lane is not None:
            lane.turn_ends = None
            self.pump(peer)

    def abandon(self, peer: Peer, request_id: int) -> None:
        """Nobody waits for this request of ours any more: what is left of its body stays here."""
        lane = self._lanes.get(peer.id)
        out = lane.requests.get(request_id) if lane is not None else None
        if lane is not None and out is not None:
            lane.waits_no_more(out)
            out.abandoned, out.body = True, memoryview(b"")
            if out.next:
                self._post(peer, Whole(out.transfer, 0, out.message), 0)

    def on_chunk(self, peer: Peer, chunk: Chunk, body: Bytes | None) -> None:
        """Take a chunk, or refuse its transfer."""
        lane = self._lane(peer)
        if chunk.transfer in lane.refused:
            self._post(peer, ChunkAck(chunk.transfer, chunk.index), 0)
            return
        pieces = lane.incoming.get(chunk.transfer)
        fault = self._check(lane, pieces, chunk, body)
        if fault is not None:
            self._drops.count(fault.code)
            self._forget(lane, chunk.transfer)
            lane.refused.append(chunk.transfer)
            self._post(peer, ChunkAck(chunk.transfer, chunk.index, fault), 0)
            return
        if pieces is None:
            pieces = lane.incoming[chunk.transfer] = []
        if body is not None and chunk.index == len(pieces):
            pieces.append(body if chunk.size <= JOIN_HERE else bytes(body))
            lane.incoming_bytes += len(body)
            self._post(peer, ChunkAck(chunk.transfer, chunk.index), 0)

    def _check(self, lane: Lane, pieces: list[Bytes] | None, chunk: Chunk, body: Bytes | None) -> Fault | None:
        if chunk.size > self._spec.body_bytes:
            return Fault("too_large", f"a body of {chunk.size} bytes exceeds the limit of {self._spec.body_bytes}")
        if body is None or len(body) > self._spec.chunk_bytes:
            return Fault("malformed", f"chunk {chunk.index} of transfer {chunk.transfer} has no proper body frame")
        if pieces is None and (chunk.index != 0 or len(lane.incoming) >= MAX_TRANSFERS):
            return Fault("overloaded", "too many transfers, or one that began before we did", 0.1)
        if lane.incoming_bytes + len(body) > max(self._spec.queue_bytes, self._spec.body_bytes):
            return Fault("overloaded", "too many bytes in unfinished transfers", 0.1)
        return None

    def on_ack(self, peer: Peer, ack: ChunkAck) -> None:
        """A chunk has arrived there: send the next, or stop if the transfer is refused."""
        lane = self._lane(peer)
        if lane.sent_at:
            sent_at, size = lane.sent_at.popleft()
            lane.under_way -= size
            lane.pace.acknowledged(time.monotonic() - sent_at)
        if ack.fault is not None:
            for out in lane.waiting:
                if out.transfer == ack.transfer and not out.abandoned:
                    lane.waiting.remove(out)
                    lane.waits_no_more(out)
                    self._refuse(peer, out.message, ack.fault)
                    break
        self.pump(peer)

    def on_whole(self, peer: Peer, whole: Whole) -> list[Bytes] | None:
        """The pieces of the message's body, or None if one is missing."""
        lane = self._lane(peer)
        pieces = lane.incoming.get(whole.transfer)
        self._forget(lane, whole.transfer)
        if pieces is None or len(pieces) != whole.chunks:
            self._drops.count("incomplete" if whole.chunks else "cancelled")
            return None
        return pieces

    def reset(self, peer: Peer) -> None:
        """The link is lost: nothing of what was under way will be completed."""
        lane = self._lanes.pop(peer.id, None)
        if lane is not None:
            self._drops.count("unreachable", sum(1 for out in lane.waiting if not out.abandoned))

    def _forget(self, lane: Lane, transfer: int) -> None:
        lane.incoming_bytes -= sum(map(len, lane.incoming.pop(transfer, ())))

    def _lane(self, peer: Peer) -> Lane:
        lane = self._lanes.get(peer.id)
        if lane is None:
            lane = self._lanes[peer.id] = Lane(self._spec.chunk_window)
        return lane


def with_body(message: Any, body: bytes) -> Any:
    """The message that was sent without its body."""
    if isinstance(message, Request | Event):
        message.args = body
    elif isinstance(message, Response):
        message.result = body
    else:
        message.body = body
    return message
