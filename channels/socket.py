"""One ZeroMQ socket on the event loop, without zmq.asyncio.

A ZeroMQ socket's file descriptor is edge-triggered: it signals that *something* happened inside, once. So after every
drain and every round of sends its events are read again, and a slow timer, one for all sockets of a loop, looks in
case a signal was missed all the same. A drain is bounded in packets and in time: a flooded socket gives the loop back
after `budget` packets, or the first one that ends after `budget_s`, and queues itself behind what waits. Packets alone
are no bound: what a handler does with sixty of them may take milliseconds, in which no other socket of the node would
be looked at.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import ClassVar

import zmq
from zmq.backend import Socket, zmq_poll

SAFETY_S = 0.5
#: A socket that has had its share of the loop's time rests for so long; it can save up as much for a burst.
REST_S = 0.001
_NOBLOCK = int(zmq.NOBLOCK)
# Asking costs a third of an `Again` that is raised, so it pays for the first packets of a wake-up; most have one.
ASK_FIRST = 2
# pyzmq's socket without the conveniences of its outer class, which cost more than the call itself.
receive = Socket.recv


class LoopSocket:
    """Drives a socket by the loop's reader: `take` gets each first frame, `drained` is called after each wake-up."""

    def __init__(
        self,
        socket: zmq.Socket[bytes],
        loop: asyncio.AbstractEventLoop,
        take: Callable[[bytes], None],
        drained: Callable[[], None],
        *,
        budget: int = 64,
        budget_s: float = 0.001,
        share: float = 1.0,
    ) -> None:
        self.socket = socket
        self.loop = loop
        self._take = take
        self._drained = drained
        self._budget = budget
        self._budget_s = budget_s
        self._share = share
        self._left_s = REST_S  # of the loop's time
        self._counted_at = 0.0  # when `_left_s` was last brought up to date
        self._again = False
        self._fruitful = False
        self._single = True  # the last wake-up brought one packet at most
        self._after_one = False  # this wake-up looks for what came with the packet of the last one
        self._closed = False
        self._rest: asyncio.TimerHandle | None = None
        # zmq_poll reads the events as getsockopt(EVENTS) does, at a third of what that costs in pyzmq.
        self._items = [(socket, zmq.POLLIN)]
        self._fd: int = socket.FD
        loop.add_reader(self._fd, self._wake)
        _Look.after(self)
        loop.call_soon(self._wake)

    def check(self) -> None:
        """Read the events again: to be called after sending, for a send may swallow the signal of an arrival."""
        if not self._again and not self._closed and zmq_poll(self._items, 0):
            self._again = True
            self.loop.call_soon(self._wake)

    def close(self) -> None:
        """Leave the loop; the socket itself stays its owner's to close."""
        if not self._closed:
            self._closed = True
            _Look.no_more_after(self)
            if self._rest is not None:
                self._rest.cancel()
            self.loop.remove_reader(self._fd)

    def _has_closed(self) -> bool:
        return self._closed

    def _wake(self) -> None:
        if self._share >= 1.0 or self._closed:
            self._drain()
        elif self._rest is not None:
            zmq_poll(self._items, 0)  # or the descriptor would go on telling what we know
        else:
            began = time.monotonic()
            self._left_s = min(REST_S, self._left_s + (began - self._counted_at) * self._share)
            self._counted_at = began
            self._drain()
            self._left_s -= time.monotonic() - began
            if self._left_s <= 0 and not self._has_closed():
                self._again = True
                self._rest = self.loop.call_later(max(REST_S, -self._left_s / self._share), self._rested)

    def _rested(self) -> None:
        self._rest = None
        self._wake()

    def _drain(self) -> None:
        self._again = False
        if self._closed:
            return
        after_one, self._after_one = self._after_one, False
        socket, take, clock = self.socket, self._take, time.monotonic
        until = clock() + self._budget_s
        taken = 0
        while taken < self._budget:
            # A wake-up after one that brought something mostly brings something, too: then not even that is asked.
            ask = taken < ASK_FIRST and (taken or after_one or not self._fruitful)
            if ask and not zmq_poll(self._items, 0):
                self._fruitful = after_one or taken > 0
                self._single = taken <= 1 and not (after_one and taken)
                self._drained()
                return
            try:
                first: bytes = receive(socket, _NOBLOCK)
            except zmq.Again:
                self._fruitful = taken > 0
                break
            take(first)
            if self._has_closed():  # `take` may have
                return
            taken += 1
            if taken == 1 and self._single and not after_one:
                # Packets came one by one of late: let the loop act on this one before anybody looks for another.
                self._drained()
                self._again = self._after_one = True
                self.loop.call_soon(self._wake)
                return
            if clock() > until:
                break
        self._single = taken <= 1 and not after_one
        self._drained()
        self.check()


class _Look:
    """The slow timer of one loop: a node has some sixteen sockets, which need not wake it up one by one."""

    _of: ClassVar[dict[asyncio.AbstractEventLoop, _Look]] = {}

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._sockets: dict[LoopSocket, None] = {}
        self._timer = loop.call_later(SAFETY_S, self._look)

    @classmethod
    def after(cls, socket: LoopSocket) -> None:
        """Look after this one, too."""
        look = cls._of.get(socket.loop)
        if look is None:
            look = cls._of[socket.loop] = cls(socket.loop)
        look._sockets[socket] = None

    @classmethod
    def no_more_after(cls, socket: LoopSocket) -> None:
        """It was closed."""
        look = cls._of[socket.loop]
        del look._sockets[socket]
        if not look._sockets:
            look._timer.cancel()
            del cls._of[socket.loop]

    def _look(self) -> None:
        self._timer = self._loop.call_later(SAFETY_S, self._look)
        for socket in tuple(self._sockets):
            socket.check()
