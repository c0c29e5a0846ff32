"""The serving side: what becomes of a handler's reply when it is not bytes at once.

A coroutine or stream runs as a task with the caller's deadline; it is cancelled when the caller cancels, goes away, or
the deadline passes, and then nothing is sent, for nobody waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from inspect import isawaitable
from types import CoroutineType
from typing import Any

from channels.eager import start
from channels.envelope import End, Part, Request, Response
from channels.errors import ChannelError, Fault
from channels.peers import Peer
from channels.statistics import Drops
from channels.streams import CREDIT
from channels.transport import FaultError

#: What a task returns that has answered by itself, or has nobody to answer.
_STREAMED = object()


class Work:
    """One request that is being served."""

    __slots__ = ("credit", "deadline", "peer", "refilled", "request", "task")

    def __init__(self, peer: Peer, request: Request, deadline: float) -> None:
        self.peer = peer
        self.request = request
        self.deadline = deadline
        self.credit = CREDIT
        self.refilled: asyncio.Event | None = None
        self.task: asyncio.Future[Any] | None = None


class Service:
    """The requests being served on one channel. `post(peer, message, body)` sends; body bytes are counted apart."""

    def __init__(self, post: Callable[[Peer, Any, int], None], drops: Drops, refused: Callable[[], None]) -> None:
        self._post = post
        self._drops = drops
        self._refused = refused
        self._casts = 0
        self._loop = asyncio.get_running_loop()
        self.works: dict[tuple[str, int], Work] = {}

    def start(self, peer: Peer, request: Request, reply: Any, deadline: float) -> None:
        """Carry on with what a handler returned."""
        if type(reply) is CoroutineType and not request.stream:
            task = start(reply, self._loop)
            if task.done():
                self._finish(peer, request, task)
            else:
                self._register(Work(peer, request, deadline), task)
        elif reply is None or isinstance(reply, bytes):
            self._answer(peer, request, reply or b"")
        elif hasattr(reply, "__aiter__"):
            if request.stream:
                work = Work(peer, request, deadline)
                self._register(work, self._loop.create_task(self._stream(work, aiter(reply))))
            else:
                self.fail(peer, request, Fault("internal", f"{request.command} answers by a stream; ask with stream()"))
        elif isawaitable(reply):
            self._register(Work(peer, request, deadline), asyncio.ensure_future(reply))
        else:
            raise _no_bytes(request, reply)

    def _register(self, work: Work, task: asyncio.Future[Any]) -> None:
        key = work.peer.id, work.request.id
        work.task = task
        work.peer.serving += 1
        self.works[key] = work

        def done(task: asyncio.Future[Any]) -> None:
            work.peer.serving -= 1
            self.works.pop(key, None)
            self._finish(work.peer, work.request, task)

        task.add_done_callback(done)

    def _finish(self, peer: Peer, request: Request, task: asyncio.Future[Any]) -> None:
        """Answer with a task's outcome; a stream has ended itself, and whoever cancelled waits for nothing."""
        if task.cancelled():
            return
        error = task.exception()
        try:
            if error is not None:
                self.fail(peer, request, self.fault(error))
            elif type(reply := task.result()) is bytes or reply is None:
                self._answer(peer, request, reply or b"")
            elif reply is not _STREAMED:
                raise _no_bytes(request, reply)
        except Exception as unsendable:
            self.fail(peer, request, self.fault(unsendable))

    def run(self, peer: Peer, awaitable: Awaitable[Any], deadline: float) -> None:
        """Run what the handler of a cast returned; nobody waits for it, so a failure is only counted."""
        task = start(self._run(awaitable), self._loop)
        if not task.done():
            self._casts += 1
            # Counted down from -1: never the id of a request.
            self._register(Work(peer, Request(-self._casts, "", b"", 0.0, 0.0), deadline), task)

    async def _run(self, awaitable: Awaitable[Any]) -> object:
        try:
            await awaitable
        except Exception:
            self._refused()
        return _STREAMED

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
        """Stop serving a peer that is gone, but for its casts, which it did not wait for; or everyone."""
        for work in list(self.works.values()):
            if work.task is not None and (peer is None or (work.peer is peer and work.request.id > 0)):
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

    async def _stream(self, work: Work, parts: AsyncIterator[bytes]) -> object:
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
        return _STREAMED


def _no_bytes(request: Request, reply: Any) -> TypeError:
    return TypeError(f"the handler of {request.command} returned {type(reply).__name__}, not bytes")
