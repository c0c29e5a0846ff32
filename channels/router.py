"""One channel: requests, replies, streams, casts and topics over a wire. The four differ only by their `ChannelSpec`.

The request path is short on purpose: one dictionary look-up, one struct, one future; the struct waits in the peer's
outbox, and everything for one peer leaves as one packet at the end of the loop's tick. No call has a timer of its own:
a sweep every 25 ms (`channels.sweep`) finds expired and cancelled calls. Statistics are counted per packet.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Mapping
from typing import Any

from channels.chunks import Chunks
from channels.codec import Codec, MessagePackCodec
from channels.coordination import Delivery, Kept
from channels.envelope import Cancel, Credit, Event, Request, Response
from channels.errors import Fault, TooLarge, error_from_fault
from channels.inbox import Inbox
from channels.links import Links
from channels.outbox import OVERHEAD, Outbox
from channels.peers import Peer, Peers
from channels.service import Service
from channels.spec import ChannelSpec, Limits, Timing
from channels.statistics import Drops, Traffic
from channels.streams import CREDIT, Stream
from channels.sweep import Sweep
from channels.topics import Topics
from channels.transport import ChannelName, Handler, MakeError, Subscriber
from channels.wire import Bytes, Path, Wire

#: How often a peer that takes nothing is tried again at most; each try encodes a packet.
UNBLOCK_S = 0.001


class _Done:
    """An awaitable that is done; one serves all casts that need no acknowledgement."""

    def __await__(self) -> Generator[Any, None, None]:
        return
        yield


_DONE = _Done()
Call = tuple["asyncio.Future[bytes]", Peer, float, float]  # (future, peer, deadline, started)


class Router:
    """Implements `Channel` and the wire's `Receiver`."""

    def __init__(
        self,
        node_id: str,
        spec: ChannelSpec,
        wire: Wire,
        handler: Handler,
        *,
        session: int,
        make_error: MakeError = error_from_fault,
        limits: Limits | None = None,
        timing: Timing | None = None,
        codec: Codec | None = None,
        joined: Callable[[str], None] | None = None,
        left: Callable[[str], None] | None = None,
    ) -> None:
        """`joined` and `left` hear of peers that become reachable and unreachable."""
        self.name: ChannelName = spec.name
        self.address = wire.address
        self.spec = spec
        self.limits = limits or Limits()
        self.timing = timing or Timing()
        self.drops = Drops()
        self.session = session
        self.make_error = make_error
        self._wire = wire
        self.joined = joined
        self.left = left
        self._loop = asyncio.get_running_loop()
        # Wall clock at opening plus monotonic time since: a stepped clock must not make messages late.
        self._wall = time.time() - time.monotonic()
        self.calls: dict[int, Call] = {}
        self.streams: dict[int, Stream] = {}
        self._last_id = 0
        self._events_sent = 0
        self._unblocked_at = 0.0
        self.closed = False
        self.gone = Traffic()  # of peers since forgotten
        codec = codec or MessagePackCodec()
        self.outbox = Outbox(
            spec,
            wire,
            codec.encode,
            session,
            self._wall,
            self.drops,
            lambda peer, messages: self._inbox.dispatch(peer, messages),
            lambda: self.sweep.arm(),
        )
        self.push = self.outbox.push
        self._mark = self.outbox.mark
        self.links = Links(self)
        self.peers = self.outbox.peers = Peers(
            wire,
            self.timing,
            spec.in_flight,
            self.limits.peers,
            ready=lambda peer: self.links.ready(peer),
            lost=lambda peer, why: self.links.lost(peer, why),
        )
        self.me = self.peers.known(node_id)
        # Its link is None: what we send to ourselves never reaches the wire.
        self.me.path = Path(node_id, None, outbound=False, address="", opened_at=0.0)
        self.me.lag = -self._wall
        # What is published is never large, so only acknowledged delivery needs more than a push.
        post = self.post if spec.loss_rule == "retry" else self.push
        self.topics = Topics(spec, self.limits, self.peers, post, self.drops)
        self.chunks = Chunks(
            spec,
            self.push,
            self.outbox.send_chunk,
            self._refused_body,
            self.drops,
            asyncio.get_running_loop().call_soon,
        )
        self.delivery = (
            Delivery(spec, self.timing, self.push, self._gave_up, self.drops) if spec.loss_rule == "retry" else None
        )
        self.whole_below = spec.chunk_from or spec.body_bytes
        # Acknowledged channels need more than the short path does, so nothing is short enough for it there.
        self._short_below = -1 if self.delivery else self.whole_below
        self.service = Service(self)
        self._inbox = Inbox(self, handler, codec.decode)
        self.on_packet: Callable[[Path, Bytes, Bytes | None], None] = self._inbox.on_packet
        self.fail = self._inbox.fail
        self.sweep = Sweep(self)
        self.arm = self.sweep.arm

    # Asking

    def request(
        self,
        peer: str,
        command: str,
        body: bytes,
        *,
        timeout_s: float = 30.0,
        context: Mapping[str, str] | None = None,
    ) -> Awaitable[bytes]:
        """Ask and await one reply. Errors come from awaiting. Cancelling the awaitable cancels the work there."""
        to = self.peers.get(peer)
        if to is None or to.path is None or to.in_flight >= to.window or len(body) > self._short_below:
            return self._request_slowly(peer, command, body, timeout_s, context)
        self._last_id = call_id = self._last_id + 1
        now = time.monotonic()
        deadline = now + timeout_s
        future = self._loop.create_future()
        self.calls[call_id] = (future, to, deadline, now)
        to.in_flight += 1
        wall = self._wall
        to.outbox.append(Request(call_id, command, body, now + wall, deadline + wall, False, context))  # type: ignore[arg-type]  # any mapping encodes
        to.out_bytes += len(body) + OVERHEAD
        if not to.dirty:
            self._mark(to)
        if self.sweep.timer is None:
            self.arm()
        return future

    def _request_slowly(
        self, peer: str, command: str, body: bytes, timeout_s: float, context: Mapping[str, str] | None
    ) -> Awaitable[bytes]:
        future: asyncio.Future[bytes] = self._loop.create_future()
        try:
            to = self._admit(peer, len(body))
            if to.in_flight >= to.window:
                raise self._overloaded(to, f"{to.in_flight} requests to {peer} are in flight, its window")
        except Exception as error:
            future.set_exception(error)
            return future
        self._last_id = call_id = self._last_id + 1
        now = time.monotonic()
        self.calls[call_id] = (future, to, now + timeout_s, now)
        to.in_flight += 1
        self._ask(to, Request(call_id, command, body, *self._times(now, timeout_s), False, _plain(context)), now)
        return future

    def stream(
        self,
        peer: str,
        command: str,
        body: bytes,
        *,
        timeout_s: float = 30.0,
        context: Mapping[str, str] | None = None,
    ) -> AsyncIterator[bytes]:
        """Ask and iterate over the parts of a streamed reply, in order; closing the iterator cancels the work."""
        self._last_id = stream_id = self._last_id + 1
        now = time.monotonic()
        stream = Stream(stream_id, self.me, now + timeout_s, self._give_credit, self._close_stream)
        try:
            to = self._admit(peer, len(body))
            if to.in_flight >= to.window:
                raise self._overloaded(to, f"{to.in_flight} requests to {peer} are in flight, its window")
        except Exception as error:
            stream.finish(error)
            return stream
        stream.peer = to
        self.streams[stream_id] = stream
        to.in_flight += 1
        self._ask(to, Request(stream_id, command, body, *self._times(now, timeout_s), True, _plain(context)), now)
        return stream

    def cast(self, peer: str, command: str, body: bytes, *, timeout_s: float = 30.0, key: str = "") -> Awaitable[None]:
        """Send without a reply; resolves when acknowledged (coordination) or handed over (elsewhere).

        `key` matters on real_time: of the messages with one key that wait, the newest wins; by default the command.
        """
        now = time.monotonic()
        try:
            to = self._admit(peer, len(body))
        except Exception as error:
            refused: asyncio.Future[None] = self._loop.create_future()
            refused.set_exception(error)
            return refused
        event = Event(command, body, *self._times(now, timeout_s))
        if self.spec.loss_rule == "newest":
            self._events_sent += 1
            event.sequence = self._events_sent
            event.key = key or command
        if self.delivery is not None and to is not self.me:
            future: asyncio.Future[None] = self._loop.create_future()
            self._keep(to, event, len(body), now, now + timeout_s, future)
            return future
        self.post(to, event, len(body))
        return _DONE

    def tell(self, peer: str, command: str, body: bytes) -> bool:
        """Send once, in order, neither kept nor acknowledged; what can't leave now is dropped and counted.

        For protocols that say again what matters. Returns whether there was a link to take it; it may be lost yet.
        """
        now, to = time.monotonic(), self.peers.get(peer)
        if self.closed or to is None or len(body) > self.whole_below or to.out_bytes > self.spec.queue_bytes:
            self.drops.count("untold")
            return False
        if to.path is not None:
            self.push(to, Event(command, body, *self._times(now, self.spec.stale_s)), len(body))
            return True
        self.drops.count("untold")
        self.peers.open(to, now)
        self.arm()
        return False

    def publish(self, topic: str, body: bytes, *, key: str = "") -> None:
        """Send to every subscribed peer; what a slow one can't take is dropped by the loss rule and counted."""
        if len(body) > self.whole_below:
            raise self._too_large(len(body), self.whole_below)
        if self.closed:
            raise self.error("closed", f"the {self.name} channel is closed")
        try:
            self.topics.publish(topic, body, *self._times(time.monotonic(), self.spec.stale_s), key or topic)
        except TooLarge as error:
            raise self.error(error.code, str(error)) from None

    def subscribe(self, topic: str, subscriber: Subscriber, *, replay: int = 0) -> Callable[[], None]:
        """Deliver what peers publish on `topic` and below it, with up to `replay` old messages; returns how to stop.

        "a" covers "a", "a.b" and "a/b"; "a." covers what begins so; "" covers all. What this node publishes itself is
        not delivered to it.
        """
        stop = self.topics.subscribe(topic, subscriber, replay)
        self.links.tell_subscriptions()

        def stop_and_tell() -> None:
            stop()
            if not self.closed:
                self.links.tell_subscriptions()

        return stop_and_tell

    # Sending

    def post(self, peer: Peer, message: Any, size: int) -> None:
        """Send a message under the channel's rules. Raises TooLarge, before anything is sent."""
        if size > self.whole_below and peer is not self.me:
            if size > self.spec.body_bytes or not self.spec.chunk_from:
                self.drops.count("too_large")
                raise TooLarge(f"a body of {size} bytes exceeds the limit of {self.spec.body_bytes} on {self.name}")
            self.chunks.start(peer, *_without_body(message))
            if peer.path is None:
                self.peers.open(peer, time.monotonic())
                self.arm()
        elif self.delivery is not None and peer is not self.me:
            now = time.monotonic()
            self._keep(peer, message, size, now, now + self.spec.stale_s)
        else:
            self.push(peer, message, size)

    def _keep(
        self,
        peer: Peer,
        message: Any,
        size: int,
        now: float,
        deadline: float,
        future: asyncio.Future[None] | None = None,
    ) -> None:
        """Send under acknowledged delivery."""
        assert self.delivery is not None
        self.delivery.send(peer, message, size, now, deadline, future)
        if peer.path is None:
            self.peers.open(peer, now)
        self.arm()

    def _ask(self, peer: Peer, request: Request, now: float) -> None:
        size = len(request.args)
        if self.delivery is not None and peer is not self.me:
            self._keep(peer, request, size, now, request.deadline - self._wall)
        else:
            self.post(peer, request, size)
        self.arm()

    def _refused_body(self, peer: Peer, message: Any, fault: Fault) -> None:
        """The peer refuses a large body: the call fails; a reply that can't be delivered becomes a fault."""
        if isinstance(message, Request):
            self.fail(peer, message.id, fault)
        elif isinstance(message, Response):
            self.push(peer, Response(message.id, False, fault), 0)
        else:
            self.drops.count(fault.code)

    # Links

    def on_up(self, path: Path) -> None:
        """The wire has a path for us."""
        self.peers.on_up(path, time.monotonic())

    def on_down(self, path: Path, why: str) -> None:
        """The wire has lost a path."""
        self.peers.on_down(path, time.monotonic(), why)

    def on_drained(self) -> None:
        """Answers to what just came in leave at once, not a tick later."""
        self.outbox.waits = False
        self.outbox.flush()

    def on_writable(self) -> None:
        """Try again where the wire was full."""
        if self.outbox.blocked and time.monotonic() - self._unblocked_at > UNBLOCK_S:
            self.unblock()

    def on_garbage(self, reason: str) -> None:
        """Count what is not from any peer."""
        self.drops.count(reason)

    def unblock(self) -> None:
        """Send again to peers that took nothing more."""
        self._unblocked_at = time.monotonic()
        for peer in list(self.outbox.blocked):
            self.outbox.unblock(peer)
            self.outbox.send(peer)
            self.chunks.pump(peer)

    def _gave_up(self, peer: Peer, kept: Kept) -> None:
        if kept.future is not None and not kept.future.done():
            code = "deadline_exceeded" if kept.sent else "unreachable"
            what = "no acknowledgement from" if kept.sent else "no link to"
            kept.future.set_exception(self.error(code, f"{what} {peer.id} on {self.name} in the time given"))

    def _give_credit(self, stream: Stream, parts: int) -> None:
        self.post(stream.peer, Credit(stream.id, min(parts, CREDIT)), 0)

    def _close_stream(self, stream: Stream) -> None:
        if self.streams.pop(stream.id, None) is not None and not self.closed:
            stream.peer.in_flight -= 1
            self.chunks.abandon(stream.peer, stream.id)
            if stream.peer.path is not None:
                self.post(stream.peer, Cancel(stream.id), 0)

    # Peers and the end

    def set_peer(self, peer: str, address: str, key: bytes | None = None) -> None:
        """Introduce a peer or move it. Subscriptions reach it at once, anything else at the first use."""
        if peer == self.me.id:
            return
        self.peers.introduce(peer, address, key, time.monotonic())
        if self.topics.wanted():
            self.links.tell_subscriptions(0.0)

    def connect(self, peer: str) -> None:
        """Connect to an introduced peer now instead of at the first use."""
        self.peers.open(self.peers.known(peer), time.monotonic())
        self.arm()

    def drop_peer(self, peer: str) -> None:
        """Forget a peer and close its links, whoever opened them."""
        if peer != self.me.id:
            self.peers.forget(peer, "it was dropped")

    def statistics(self) -> dict[str, Any]:
        """Counters since opening. Rates are for the reader to take; times are seconds."""
        total = Traffic()
        total.add(self.gone)
        others = [peer for peer in self.peers if peer is not self.me]
        for peer in others:
            total.add(peer.traffic)
        return {
            **total.summary(),
            "dropped": dict(self.drops.by_reason),
            "in_flight": len(self.calls) + len(self.streams),
            "serving": len(self.service.works),
            "queued": sum(peer.queued() for peer in others),
            "links": sum(1 for peer in others if peer.path is not None),
            "subscribers": sum(1 for peer in others if peer.prefixes),
            "published": self.topics.published,
            "gaps": self.topics.gaps,
            "retried": self.delivery.retried if self.delivery else 0,
            "peers": {peer.id: peer.summary() for peer in others},
        }

    def close(self) -> None:
        """Fail what waits with `Closed`, stop serving, close the wire."""
        if self.closed:
            return
        self.outbox.close()
        self.closed = True
        self.sweep.stop()
        self.service.cancel_all()
        fault = Fault("closed", f"the {self.name} channel is closed")
        for call_id, call in list(self.calls.items()):
            self.fail(call[1], call_id, fault)
        for stream in list(self.streams.values()):
            self.fail(stream.peer, stream.id, fault)
        if self.delivery is not None:
            for peer in self.peers:
                self.delivery.fail(peer, lambda: self.make_error(fault))
        for peer in self.peers:
            peer.path = None  # leaves the short path of `request`
        self._wire.close()

    # Errors

    def error(self, code: str, message: str, retry_after_s: float = 0.0) -> Exception:
        """An exception of the family that was asked for at opening."""
        return self.make_error(Fault(code, message, retry_after_s))

    def _overloaded(self, peer: Peer, what: str) -> Exception:
        self.drops.count("refused")
        return self.error("overloaded", f"{what}; retry later or elsewhere", max(0.001, peer.rtt_s))

    def _too_large(self, size: int, most: int) -> Exception:
        self.drops.count("too_large")
        return self.error("too_large", f"a body of {size} bytes exceeds the limit of {most} on {self.name}; split it")

    def _admit(self, peer: str, size: int) -> Peer:
        """The peer, if a message of `size` bytes may be sent to it now."""
        if self.closed:
            raise self.error("closed", f"the {self.name} channel is closed")
        if size > self.spec.body_bytes:
            raise self._too_large(size, self.spec.body_bytes)
        to = self.peers.get(peer)
        if to is None:
            self.drops.count("unknown_peer")
            raise self.error(
                "unreachable", f"{peer} is not known on {self.name}: not introduced yet (set_peer), or expelled"
            )
        if self.spec.loss_rule in ("refuse", "retry"):
            full = len(to.outbox) >= self.spec.queue_messages or (
                to.outbox and to.out_bytes + size > self.spec.queue_bytes
            )
            if self.delivery is not None and to is not self.me:
                full = full or not self.delivery.room(to, size)
            elif size > self.whole_below:
                full = full or not self.chunks.room(to, size)
            if full:
                raise self._overloaded(to, f"the queue to {peer} is full")
        return to

    def _times(self, now: float, timeout_s: float) -> tuple[float, float]:
        """(timestamp, deadline) on our wall clock."""
        return now + self._wall, now + timeout_s + self._wall


def _plain(context: Mapping[str, str] | None) -> dict[str, str] | None:
    return None if context is None else dict(context)


def _without_body(message: Any) -> tuple[Any, bytes]:
    """A message without its body, and the body."""
    field = "args" if isinstance(message, Request | Event) else "result" if isinstance(message, Response) else "body"
    body: bytes = getattr(message, field)
    setattr(message, field, b"")
    return message, body
