"""The serving side: what becomes of a handler's reply when it is not bytes at once.

A coroutine or stream runs as a task with the caller's deadline; it is cancelled when the caller cancels, goes away, or
the deadline passes, and then nothing is sent, for nobody waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from channels.envelope import End, Part, Request, Response
from channels.errors import ChannelError, Fault
from channels.peers import Peer
from channels.statistics import Drops
from channels.streams import CREDIT
from channels.transport import FaultError


class Work:
    """One request that is being served."""

    __slots__ = ("credit", "deadline", "peer", "refilled", "request", "task")

    def __init__(self, peer: Peer, request: Request, deadline: float) -> None:
        self.peer = peer
        self.request = request
        self.deadline = deadline
        self.credit = CREDIT
        self.refilled: asyncio.Event | None = None
        self.task: asyncio.Task[None] | None = None


class Service:
    """The requests being served on one channel. `post(peer, message, body)` sends; body bytes are counted apart."""

    def __init__(self, post: Callable[[Peer, Any, int], None], drops: Drops, refused: Callable[[], None]) -> None:
        self._post = post
        self._drops = drops
        self._refused = refused
        self._casts = 0
        self.works: dict[tuple[str, int], Work] = {}

    def start(self, peer: Peer, request: Request, reply: Any, deadline: float) -> None:
        """Carry on with what a handler returned."""
        if reply is None or isinstance(reply, bytes):
            self._answer(peer, request, reply or b"")
            return
        work = Work(peer, request, deadline)
        if hasattr(reply, "__anext__") or hasattr(reply, "__aiter__"):
            if not request.stream:
                self.fail(peer, request, Fault("internal", f"{request.command} answers by a stream; ask with stream()"))
                return
            run = self._stream(work, aiter(reply))
        elif hasattr(reply, "__await__"):
            run = self._await(work, reply)
        else:
            kind = type(reply).__name__
            self.fail(peer, request, Fault("internal", f"the handler of {request.command} returned {kind}, not bytes"))
            return
        peer.serving += 1
        self.works[peer.id, request.id] = work
        work.task = asyncio.get_running_loop().create_task(run)
        work.task.add_done_callback(lambda _: self._done(work, reply))

    def run(self, peer: Peer, awaitable: Awaitable[Any], deadline: float) -> None:
        """Run what the handler of a cast returned; nobody waits for it, so a failure is only counted."""
        self._casts += 1
        # Counted down from -1: never the id of a request.
        work = Work(peer, Request(-self._casts, "", b"", 0.0, 0.0), deadline)
        peer.serving += 1
        self.works[peer.id, work.request.id] = work
        work.task = asyncio.get_running_loop().create_task(self._run(awaitable))
        work.task.add_done_callback(lambda _: self._done(work, awaitable))

    async def _run(self, awaitable: Awaitable[Any]) -> None:
        try:
            await awaitable
        except Exception:
            self._refused()

    def fail(self, peer: Peer, request: Request, fault: Fault) -> None:
        """Answer a request with a fault, in the form its caller waits for."""
        message = End(request.id, 0, fault) if request.stream else Response(request.id, False, fault)
        self._post(peer, message, len(fault.message))

    def cancel(self, peer_id: str, request_id: int) -> bool:
        """Stop serving a request; whether it was being served."""
        work = self.works.get((peer_id, request_id))
        if work is None or work.task is None:
            return False
        return work.task.cancel()

    def cancel_all(self, peer: Peer | None = None) -> None:
        """Stop serving a peer that is gone, or everyone."""
        for work in list(self.works.values()):
            if work.task is not None and (peer is None or work.peer is peer):
                work.task.cancel()

    def refill(self, peer_id: str, request_id: int, parts: int) -> None:
        """The reader of a stream takes more."""
        work = self.works.get((peer_id, request_id))
        if work is not None:
            work.credit = min(work.credit + parts, CREDIT)
            if work.refilled is not None:
                work.refilled.set()

    def sweep(self, now: float) -> None:
        """Stop what is past its deadline: its caller has stopped waiting."""
        for work in list(self.works.values()):
            if now >= work.deadline and work.task is not None:
                self._drops.count("expired")
                work.task.cancel()

    def fault(self, error: BaseException) -> Fault:
        """How a handler's exception travels."""
        if isinstance(error, FaultError):
            return error.fault
        if isinstance(error, ChannelError):
            return Fault(error.code, str(error), error.retry_after_s)
        self._refused()
        return Fault("internal", f"{type(error).__name__}: {error}")

    def _answer(self, peer: Peer, request: Request, reply: bytes) -> None:
        if request.stream:
            self._post(peer, Part(request.id, 0, reply), len(reply))
            self._post(peer, End(request.id, 1), 0)
        else:
            self._post(peer, Response(request.id, True, reply), len(reply))

    async def _await(self, work: Work, reply: Awaitable[bytes | None]) -> None:
        try:
            result = await reply
            if result is not None and not isinstance(result, bytes):
                raise TypeError(f"the handler of {work.request.command} returned {type(result).__name__}, not bytes")
            self._answer(work.peer, work.request, result or b"")
        except Exception as error:
            self.fail(work.peer, work.request, self.fault(error))

    async def _stream(self, work: Work, parts: AsyncIterator[bytes]) -> None:
        request, count, fault = work.request, 0, None
        try:
            async for part in parts:
                while work.credit <= 0:
                    work.refilled = asyncio.Event()
                    await work.refilled.wait()
                work.credit -= 1
                self._post(work.peer, Part(request.id, count, part), len(part))
                count += 1
        except Exception as error:
            fault = self.fault(error)
        finally:
            close = getattr(parts, "aclose", None)
            if close is not None:
                await close()
        self._post(work.peer, End(request.id, count, fault), 0)

    def _done(self, work: Work, reply: Any) -> None:
        work.peer.serving -= 1
        self.works.pop((work.peer.id, work.request.id), None)
        if asyncio.iscoroutine(reply):
            reply.close()  # cancelled before its first step: never awaited
