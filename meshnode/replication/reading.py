"""Linearizable reads: learn an index that was committed when the read began, then wait until it is applied here.

Reads share rounds. One that begins while a round is under way waits for the next, which begins when that ends; so
however many read, one question is on its way, and it is always younger than the reads it answers.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

from meshnode.errors import Closed, MeshError, NoLeader
from meshnode.replication.deadlines import Deadlines

PAUSE_S = 0.02


class Read:
    """Somebody waits to read."""

    __slots__ = ("deadline", "future")

    def __init__(self, deadline: float, future: asyncio.Future[None]) -> None:
        self.deadline = deadline
        self.future = future


class Barriers:
    """ask(): the index, None if nobody could tell now. applied(): up to where this node's machine has come."""

    def __init__(self, *, ask: Callable[[], Awaitable[int | None]], applied: Callable[[], int]) -> None:
        self._ask = ask
        self._applied = applied
        self._coming: list[Read] = []
        self._reached: deque[tuple[int, list[Read]]] = deque()  # wait to be applied; indexes never fall
        self._round: asyncio.Task[None] | None = None
        self._open: Deadlines[Read] = Deadlines(self._expire)
        self._is_closed = False

    def wait(self, timeout_s: float) -> asyncio.Future[None]:
        """Done once the machine shows all that was acknowledged before this call. Fails with NoLeader, Closed."""
        read = self._begin(timeout_s)
        if not self._is_closed:
            self._coming.append(read)
            if self._round is None:
                self._round = asyncio.get_running_loop().create_task(self._run())
        return read.future

    def reach(self, index: int, timeout_s: float) -> asyncio.Future[None]:
        """Done once the machine holds what stands at `index`. Fails with NoLeader, Closed."""
        read = self._begin(timeout_s)
        if not self._is_closed:
            self._learned(index, [read])
        return read.future

    def moved(self) -> None:
        """More was applied."""
        index = self._applied()
        while self._reached and self._reached[0][0] <= index:
            self._settle(self._reached.popleft()[1])

    async def close(self) -> None:
        """Fail what waits."""
        self._is_closed = True
        for read in self._open.close():
            if not read.future.done():
                read.future.set_exception(Closed("the node is stopping"))
        if self._round is not None:
            self._round.cancel()
            await asyncio.wait([self._round])

    def _begin(self, timeout_s: float) -> Read:
        loop = asyncio.get_running_loop()
        read = Read(loop.time() + timeout_s, loop.create_future())
        if self._is_closed:
            read.future.set_exception(Closed("the node is stopping"))
        else:
            self._open.add(read)
        return read

    async def _run(self) -> None:
        try:
            while self._coming:
                reads, self._coming = self._coming, []
                while (index := await self._asked()) is None:
                    reads = [read for read in reads if not read.future.done()]
                    if not reads:
                        break
                    await asyncio.sleep(PAUSE_S)
                else:
                    self._learned(index, reads)
        finally:
            self._round = None

    async def _asked(self) -> int | None:
        try:
            return await self._ask()
        except (MeshError, TimeoutError):
            return None

    def _learned(self, index: int, reads: list[Read]) -> None:
        if index <= self._applied() and not self._reached:
            self._settle(reads)
        else:
            index = max(index, self._reached[-1][0]) if self._reached else index
            self._reached.append((index, reads))
            self.moved()

    def _settle(self, reads: list[Read]) -> None:
        for read in reads:
            self._open.drop(read)
            if not read.future.done():
                read.future.set_result(None)

    def _expire(self, read: Read) -> None:
        if not read.future.done():
            read.future.set_exception(
                NoLeader("no leader confirmed the read in time; retry, or read with consistency='stale'")
            )
