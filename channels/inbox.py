"""The receiving side: packets are decoded in one go, each message finds its call, handler, stream or topic.

Whatever a peer sends, the loop lives on: a packet that is none is counted and told back, a handler that raises becomes
a fault, and no exception leaves this module.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections import deque
from collections.abc import Callable
from types import CoroutineType
from typing import TYPE_CHECKING, Any

from channels.chunks import JOIN_HERE, with_body
from channels.envelope import (
    Ack,
    Cancel,
    Chunk,
    ChunkAck,
    Credit,
    End,
    Event,
    Goodbye,
    Packet,
    Part,
    Publish,
    Request,
    Response,
    Subscribe,
    Whole,
    Window,
)
from channels.errors import Fault, Malformed
from channels.peers import Peer
from channels.service import Begun
from channels.transport import Handler, Incoming
from channels.wire import Bytes, Path

if TYPE_CHECKING:
    from channels.router import Router


class Inbox:
    """Takes what comes in for one channel."""

    def __init__(self, router: Router, handler: Handler, decode: Callable[[Bytes], Packet]) -> None:
        self._router = router
        self._handler = handler
        self._decode = decode
        self._name = router.name
        self._calls = router.calls
        self._drops = router.drops
        self._take: dict[type, Callable[[Peer, Any], None]] = {
            Part: self._on_part,
            End: self._on_end,
            Cancel: self._on_cancel,
            Credit: lambda peer, credit: router.service.refill(peer.id, credit.id, credit.parts),
            Event: self._on_event,
            Publish: self._on_publish,
            Subscribe: lambda peer, message: router.topics.on_subscribe(peer, message.prefixes),
            Ack: self._on_ack,
            Chunk: lambda peer, chunk: router.chunks.on_chunk(peer, chunk, self._body),
            ChunkAck: lambda peer, ack: router.chunks.on_ack(peer, ack),
            Whole: self._on_whole,
            Window: self._on_window,
            Goodbye: self._on_goodbye,
        }
        self._loop = asyncio.get_running_loop()
        self._body: Bytes | None = None
        self._now = 0.0
        self._joining: dict[tuple[str, int], Whole] = {}  # requests, by peer and id, whose body a thread puts together

    def on_packet(self, path: Path, frame: Bytes, body: Bytes | None) -> None:
        """Decode a packet and deliver what it holds."""
        router, peer = self._router, path.owner
        router.outbox.waits = True  # for on_drained, which sends the answers to all packets of this wake-up
        now = time.monotonic()
        traffic = peer.traffic
        traffic.packets_received += 1
        traffic.bytes_received += len(frame) + (len(body) if body is not None else 0)
        peer.used_at = now
        try:
            packet = self._decode(frame)
        except Malformed as error:
            self._drops.count("malformed")
            router.push(peer, Goodbye(Fault("malformed", str(error))), 0)
            return
        if packet.session != peer.session and not self._new_session(peer, packet.session, path):
            return
        messages = packet.messages
        traffic.received += len(messages)
        lag = now - packet.sent_at
        if lag < peer.lag:
            peer.lag = lag
        is_single = len(messages) == 1
        delivery = None if is_single and type(messages[0]) is Event else router.delivery  # an event is not numbered
        if is_single and delivery is None and router.outbox.lonely:
            router.outbox.waits = False  # its answer leaves at once: nothing else is likely to travel with it
        try:
            if delivery is not None:
                messages = delivery.unwrap(peer, messages)
            self.dispatch(peer, messages, body)
        except Exception:
            self._drops.count("failed")  # ours to mend, but no reason to stop taking packets
        if delivery is not None and peer.delivery is not None:
            delivery.acknowledge(peer)
            if delivery.owes(peer):
                router.arm()

    def dispatch(self, peer: Peer, messages: list[Any], body: Bytes | None = None) -> None:
        """Deliver messages in order."""
        now = self._now = time.monotonic()
        self._body = body
        calls, handler, name, lag = self._calls, self._handler, self._name, peer.lag
        answered = 0.0
        router = self._router
        whole_below, ordered = router.whole_below, router.delivery is not None
        begun: deque[Begun] = deque()  # coroutines to be run, in order
        for message in messages:
            kind = type(message)
            if kind is Response:
                call = calls.get(message.id)
                if call is None or call[1] is not peer:
                    self._drops.count("late")
                    continue
                del calls[message.id]
                peer.in_flight -= 1
                answered = call[3]
                future = call[0]
                if not future.done():
                    if message.success:
                        future.set_result(message.result)
                    else:
                        future.set_exception(self._error(message.result))
            elif kind is Request:
                deadline = message.deadline + lag
                if not deadline > now:
                    self._drops.count("expired")
                    continue
                try:
                    args, stream = message.args, message.stream
                    reply = handler(Incoming(name, peer.id, message.command, args, deadline, stream, message.context))
                    if type(reply) is bytes and not stream and len(reply) <= whole_below:
                        if ordered:
                            router.post(peer, Response(message.id, True, reply), len(reply))
                        else:
                            peer.outbox.append(Response(message.id, True, reply))
                            peer.out_bytes += len(reply) + 48
                            if not peer.dirty:
                                router.outbox.mark(peer)
                    elif type(reply) is CoroutineType and not stream:
                        begun.append((message, deadline, reply))
                        if ordered:
                            router.service.take_turns(peer, begun)
                    else:
                        router.service.start(peer, message, reply, deadline)
                except Exception as error:
                    router.service.fail(peer, message, router.service.fault(error))
            else:
                if begun:
                    router.service.take_turns(peer, begun)  # it may be about one of them
                try:
                    self._take[kind](peer, message)
                except Exception:
                    # A handler that fails is answered above; this is a message we could not make sense of.
                    self._drops.count("failed")
        if begun:
            router.service.take_turns(peer, begun)
        if answered:
            peer.rtt_s = now - answered
            peer.rtt.record(peer.rtt_s)

    def fail(self, peer: Peer, call_id: int, fault: Fault | None) -> None:
        """End a call or stream of ours with a fault; without one it was cancelled."""
        call = self._calls.get(call_id)
        if call is not None and call[1] is peer:
            del self._calls[call_id]
            peer.in_flight -= 1
            if fault is not None and not call[0].done():
                call[0].set_exception(self._router.make_error(fault))
            return
        stream = self._router.streams.get(call_id)
        if stream is not None and stream.peer is peer:
            del self._router.streams[call_id]
            peer.in_flight -= 1
            stream.finish(self._router.make_error(fault) if fault is not None else None)

    def _error(self, result: Any) -> Exception:
        fault = result if isinstance(result, Fault) else Fault("malformed", "the peer sent a failure without a fault")
        return self._router.make_error(fault)

    def _new_session(self, peer: Peer, session: int, path: Path) -> bool:
        if session in peer.retired:
            self._drops.count("retired_session")
            return False
        before, peer.session = peer.session, session
        peer.lag = float("inf")
        if before:
            peer.retired.append(before)
            self._router.links.restarted(peer, path)
        return True

    def _on_part(self, peer: Peer, part: Part) -> None:
        stream = self._router.streams.get(part.id)
        if stream is None or stream.peer is not peer:
            self._drops.count("late")
        elif not stream.feed(part.index, part.body):
            self._drops.count("duplicate")
        elif stream.count is not None and stream.complete(stream.count):
            self._end(peer, part.id)

    def _on_end(self, peer: Peer, end: End) -> None:
        stream = self._router.streams.get(end.id)
        if stream is None or stream.peer is not peer:
            self._drops.count("late")
            return
        stream.count, stream.fault = end.count, end.fault
        if stream.complete(end.count):
            self._end(peer, end.id)

    def _end(self, peer: Peer, stream_id: int) -> None:
        stream = self._router.streams.pop(stream_id)
        peer.in_flight -= 1
        stream.finish(self._router.make_error(stream.fault) if stream.fault is not None else None)

    def _on_cancel(self, peer: Peer, cancel: Cancel) -> None:
        joining = self._joining.pop((peer.id, cancel.id), None)
        if self._router.service.cancel(peer.id, cancel.id) or joining is not None:
            self._drops.count("cancelled")

    def _on_event(self, peer: Peer, event: Event) -> None:
        if event.sequence:
            if event.sequence <= peer.last_event:
                self._drops.count("out_of_order")
                return
            peer.last_event = event.sequence
        deadline = event.deadline + peer.lag
        if not deadline > self._now:
            self._drops.count("stale")
            return
        try:
            reply = self._handler(Incoming(self._name, peer.id, event.command, event.args, deadline))
        except Exception:
            self._drops.count("handler_failed")
            return
        if type(reply) is not bytes and inspect.isawaitable(reply):  # most are
            self._router.service.run(peer, reply, deadline)

    def _on_publish(self, peer: Peer, message: Publish) -> None:
        self._router.topics.on_publish(peer, message, message.deadline + peer.lag > self._now)

    def _on_ack(self, peer: Peer, ack: Ack) -> None:
        if self._router.delivery is not None:
            self._router.delivery.on_ack(peer, self._router.session, ack, self._now)

    def _on_whole(self, peer: Peer, whole: Whole) -> None:
        pieces = self._router.chunks.on_whole(peer, whole)
        if pieces is None:
            return
        if sum(map(len, pieces)) <= JOIN_HERE:
            self.dispatch(peer, [with_body(whole.message, b"".join(pieces))])
            return
        session = peer.session
        request = (peer.id, whole.message.id) if type(whole.message) is Request else None
        if request is not None:
            self._joining[request] = whole

        def joined(body: asyncio.Future[bytes]) -> None:
            if request is not None:
                if self._joining.get(request) is not whole:
                    return  # cancelled
                del self._joining[request]
            if peer.session == session and peer.path is not None and not body.cancelled() and not body.exception():
                self.dispatch(peer, [with_body(whole.message, body.result())])
            else:
                self._drops.count("incomplete")

        self._loop.run_in_executor(None, b"".join, pieces).add_done_callback(joined)

    def _on_window(self, peer: Peer, window: Window) -> None:
        peer.window = max(1, min(window.in_flight, self._router.spec.in_flight))

    def _on_goodbye(self, peer: Peer, goodbye: Goodbye) -> None:
        """The peer can't read us: no call to it will be answered."""
        self._drops.count("refused_by_peer")
        for call_id, call in list(self._calls.items()):
            if call[1] is peer:
                self.fail(peer, call_id, goodbye.fault)
