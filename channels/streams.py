"""A streamed reply, as its reader sees it: parts in order, a credit that the reader refills by reading."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from channels.errors import Fault
from channels.peers import Peer

#: Parts that may be on the way to a reader that does not read.
CREDIT = 32


class Stream:
    """An asynchronous iterator over one streamed reply. Closing or dropping it cancels the work at the peer.

    `on_credit(stream, parts)` and `on_close(stream)` reach the channel.
    """

    def __init__(
        self,
        stream_id: int,
        peer: Peer,
        deadline: float,
        on_credit: Callable[[Stream, int], None],
        on_close: Callable[[Stream], None],
    ) -> None:
        self.id = stream_id
        self.peer = peer
        self.deadline = deadline
        self._on_credit = on_credit
        self._on_close = on_close
        self._parts: deque[bytes] = deque()
        self._next = 0
        self._early: dict[int, bytes] = {}
        self.count: int | None = None  # of all parts, once the end is known
        self.fault: Fault | None = None  # that ends it after those
        self._taken = 0
        self._error: BaseException | None = None
        self._ended = False
        self._waiter: asyncio.Future[None] | None = None

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> bytes:
        while not self._parts:
            if self._error is not None:
                error, self._error = self._error, None
                raise error
            if self._ended:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        self._taken += 1
        if self._taken >= CREDIT // 2 and not self._ended:
            self._on_credit(self, self._taken)
            self._taken = 0
        return self._parts.popleft()

    async def aclose(self) -> None:
        """Stop reading; the peer is told to stop working."""
        self._parts.clear()
        if not self._ended:
            self.finish(None)
            self._on_close(self)

    def __del__(self) -> None:
        if not self._ended:
            self._ended = True
            self._on_close(self)

    def feed(self, index: int, body: bytes) -> bool:
        """Take a part; those that overtook others wait for them. False: it came twice."""
        if index < self._next or index in self._early or self._ended:
            return False
        self._early[index] = body
        while self._next in self._early:
            self._parts.append(self._early.pop(self._next))
            self._next += 1
        self._wake()
        return True

    def complete(self, count: int) -> bool:
        """Whether all `count` parts are here."""
        return self._next >= count

    def finish(self, error: BaseException | None) -> None:
        """No more parts come; what is here can still be read, then `error` is raised."""
        if not self._ended:
            self._ended = True
            self._error = error
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
