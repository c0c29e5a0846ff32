"""Acknowledged delivery: what coordination promises and the other channels don't.

Each message to a peer gets the next number of this process's session. The receiver delivers in order of numbers, once,
and acknowledges the highest it has delivered; the sender keeps a message until then, sends all it keeps again when a
link comes up, and, with growing pauses, while no acknowledgement comes.

An acknowledgement of a request or a response travels with the next message, at the latest 25 ms later; of all else at
once, for somebody may wait for it.

    sender keeps   3 4 5        3 lost with its link    receiver waits for 3
    sends again    3 4 5   ->   delivers 3 4 5, drops repeats                 -> Ack 5

A message past its deadline is given up; `first` on every later one tells the receiver not to wait for it. What may
wait is bounded: a sender over the bound is refused with `Overloaded`.

Not promised: once only across a restart of the *receiver*. What it had delivered but not acknowledged when it died is
delivered to its next process again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import islice
from typing import Any

from channels.envelope import Ack, Reliable, Request, Response
from channels.peers import Peer
from channels.spec import ChannelSpec, Timing
from channels.statistics import Drops

#: Messages sent again when an acknowledgement is missing; if those arrive, the rest did or will be due soon.
RESEND = 64

#: Nobody waits for these to be acknowledged: a request is answered, and a response has been waited for.
_ANSWERED = (Request, Response)


class Kept:
    """A message that is not yet acknowledged."""

    __slots__ = ("deadline", "future", "message", "sent", "size")

    def __init__(self, message: Any, size: int, deadline: float, future: asyncio.Future[None] | None) -> None:
        self.message = message
        self.size = size
        self.deadline = deadline
        self.future = future  # resolved by the acknowledgement
        self.sent = False


class Order:
    """Both directions of one peer. Numbers in `waiting` ascend and are all < `next`."""

    __slots__ = ("ack_due", "ack_late", "early", "expected", "next", "pause", "retry_at", "waiting", "waiting_bytes")

    def __init__(self, first: int) -> None:
        self.next = first
        self.waiting: dict[int, Kept] = {}
        self.waiting_bytes = 0
        self.retry_at = 0.0
        self.pause = 0.0
        self.expected = 0  # the number we deliver next; 0: nothing seen of this session
        self.early: dict[int, Any] = {}
        self.ack_due = False
        self.ack_late = False  # an acknowledgement may wait for a message to travel with, or for the next sweep


class Delivery:
    """Acknowledged delivery on one channel.

    `push(peer, message, size)` puts a message into the tick's packet; `give_up(peer, kept)` hears of expired ones.
    """

    def __init__(
        self,
        spec: ChannelSpec,
        timing: Timing,
        push: Callable[[Peer, Any, int], None],
        give_up: Callable[[Peer, Kept], None],
        drops: Drops,
    ) -> None:
        self._spec = spec
        self._timing = timing
        self._push = push
        self._give_up = give_up
        self._drops = drops
        # A peer that was forgotten and is known again must not see a number of this session twice.
        self._first = 1
        self.retried = 0

    def room(self, peer: Peer, size: int) -> bool:
        """Whether one more message of `size` bytes may wait for this peer."""
        order = self._order(peer)
        return len(order.waiting) < self._spec.queue_messages and (
            not order.waiting or order.waiting_bytes + size <= self._spec.queue_bytes
        )

    def send(
        self, peer: Peer, message: Any, size: int, now: float, deadline: float, future: asyncio.Future[None] | None
    ) -> None:
        """Number a message, keep it, and send it if there is a link."""
        order = self._order(peer)
        sequence = order.next
        order.next += 1
        kept = order.waiting[sequence] = Kept(message, size, deadline, future)
        order.waiting_bytes += size
        if len(order.waiting) == 1:
            order.pause = self._timing.retry_s
            order.retry_at = now + order.pause
        if peer.path is not None:
            kept.sent = True
            if order.ack_late:
                self._acknowledge(peer, order)
            self._push(peer, Reliable(sequence, next(iter(order.waiting)), message), size)

    def resend(self, peer: Peer, now: float, most: int | None = None) -> None:
        """Send what is kept, the oldest first: a link came up, or no acknowledgement came for long."""
        order = self._order(peer)
        if not order.waiting:
            return
        first = next(iter(order.waiting))
        for sequence, kept in islice(order.waiting.items(), most):
            self.retried += kept.sent
            kept.sent = True
            self._push(peer, Reliable(sequence, first, kept.message), kept.size)
        order.retry_at = now + order.pause

    def on_ack(self, peer: Peer, session: int, ack: Ack, now: float) -> None:
        """Let go of what has been delivered."""
        order = self._order(peer)
        if ack.session != session or ack.sequence >= order.next:
            return
        progress = False
        while order.waiting:
            sequence = next(iter(order.waiting))
            if sequence > ack.sequence:
                break
            kept = order.waiting.pop(sequence)
            order.waiting_bytes -= kept.size
            progress = True
            if kept.future is not None and not kept.future.done():
                kept.future.set_result(None)
        if progress:
            order.pause = self._timing.retry_s
            order.retry_at = now + order.pause

    def unwrap(self, peer: Peer, messages: list[Any]) -> list[Any]:
        """A packet's messages as they are to be delivered now; those that come too early wait, repeats go."""
        order = self._order(peer)
        ready: list[Any] = []
        for message in messages:
            if type(message) is not Reliable:
                ready.append(message)
                continue
            if message.sequence == order.expected and not order.early:
                order.expected += 1
                ready.append(message.message)
                if type(message.message) in _ANSWERED:
                    order.ack_late = True
                else:
                    order.ack_due = True
            else:
                order.ack_due = True
                ready += self._sort_in(order, message)
        return ready

    def _sort_in(self, order: Order, reliable: Reliable) -> list[Any]:
        """What a message out of turn makes ready."""
        if order.expected < reliable.first:
            # New to us, or the sender has given up what we waited for.
            for sequence in [s for s in order.early if s < reliable.first]:
                del order.early[sequence]
            order.expected = reliable.first
        if reliable.sequence < order.expected or reliable.sequence in order.early:
            self._drops.count("duplicate")
        elif reliable.sequence - order.expected < self._spec.queue_messages:
            order.early[reliable.sequence] = reliable.message
        else:
            self._drops.count("ahead")
        ready = []
        while order.expected in order.early:
            ready.append(order.early.pop(order.expected))
            order.expected += 1
        return ready

    def acknowledge(self, peer: Peer) -> None:
        """Put one acknowledgement for all that this packet brought into the tick's packet, if somebody waits for it."""
        order = self._order(peer)
        if order.ack_due:
            self._acknowledge(peer, order)

    def _acknowledge(self, peer: Peer, order: Order) -> None:
        order.ack_due = order.ack_late = False
        self._push(peer, Ack(peer.session, order.expected - 1), 0)

    @staticmethod
    def owes(peer: Peer) -> bool:
        """Whether an acknowledgement waits for the sweep."""
        return peer.delivery is not None and peer.delivery.ack_late

    def restarted(self, peer: Peer) -> None:
        """The peer is a new process: it numbers from the start, and knows nothing of ours."""
        order = self._order(peer)
        order.expected = 0
        order.ack_due = order.ack_late = False
        order.early.clear()

    def sweep(self, peer: Peer, now: float) -> bool:
        """Give up what is past its deadline and send again what is due; whether anything is still kept."""
        order = peer.delivery
        if order is None:
            return False
        if order.ack_late and peer.path is not None:
            self._acknowledge(peer, order)
        if not order.waiting:
            return False
        for sequence in [s for s, kept in order.waiting.items() if now >= kept.deadline]:
            kept = order.waiting.pop(sequence)
            order.waiting_bytes -= kept.size
            self._drops.count("expired")
            self._give_up(peer, kept)
        if order.waiting and peer.path is not None and not peer.blocked and now >= order.retry_at:
            order.pause = min(order.pause * 2, self._timing.retry_max_s)
            self.resend(peer, now, RESEND)
        return bool(order.waiting)

    def fail(self, peer: Peer, error: Callable[[], Exception]) -> None:
        """Give up everything for a peer that is gone for good."""
        order = self._order(peer)
        for kept in order.waiting.values():
            if kept.future is not None and not kept.future.done():
                kept.future.set_exception(error())
        self._drops.count("unreachable", len(order.waiting))
        order.waiting.clear()
        order.waiting_bytes = 0
        self._first = max(self._first, order.next)

    def _order(self, peer: Peer) -> Order:
        order: Order | None = peer.delivery
        if order is None:
            order = peer.delivery = Order(self._first)
        return order
