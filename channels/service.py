"""The serving side: what becomes of a handler's reply when it is not bytes at once.

A coroutine or stream runs as a task with the caller's deadline; it is cancelled when the caller cancels, goes away, or
the deadline passes, and then nothing is sent, for nobody waits.

Most coroutines finish without ever waiting, and a task for each would cost more than all the rest of a request. So one
task, a turn, takes coroutines one after the other, each to its end. The first that has to wait keeps the task to
itself, and another turn takes those that are left. To a handler it looks like a task of its own: it may use timeouts
and task groups, and nobody else sees the context variables it sets.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextvars import Context, copy_context
from inspect import isawaitable
from typing import TYPE_CHECKING, Any

from channels.eager import Pause, start
from channels.envelope import End, Part, Request, Response, Window
from channels.errors import ChannelError, Fault
from channels.peers import Peer
from channels.streams import CREDIT
from channels.transport import FaultError

if TYPE_CHECKING:
    from channels.router import Router

#: What a task returns that has answered by itself, or has nobody to answer.
_ANSWERED = object()
#: Times that a turn may be resumed: a task that never ends would surprise whoever waits for the end of his.
TURN = 256
#: No request is served longer, whatever deadline it claims.
LONGEST_S = 86400.0


class Work:
    """One request that is being served."""

    __slots__ = ("credit", "deadline", "peer", "refilled", "request", "task")

    def __init__(self, peer: Peer, request: Request, deadline: float) -> None:
        self.peer = peer
        self.request = request
        self.deadline = min(deadline, time.monotonic() + LONGEST_S)
        self.credit = CREDIT
        self.refilled: asyncio.Event | None = None
        self.task: asyncio.Future[Any] | None = None


#: A request whose handler returned a coroutine: (request, deadline, coroutine).
Begun = tuple[Request, float, Coroutine[Any, Any, Any]]


class Turn:
    """A task that runs what handlers returned: what it is at, what comes next, and how to resume it when it is idle."""

    __slots__ = ("at", "begun", "pause", "peer", "work")

    def __init__(self, loop: asyncio.AbstractEventLoop, peer: Peer, begun: deque[Begun]) -> None:
        self.peer = peer
        self.begun = begun
        self.at: Begun | None = None
        self.work: Work | None = None  # the record of what it is at, once that had to wait
        self.pause = Pause(loop)


class Service:
    """The requests being served on one channel."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._drops = router.drops
        self._post = router.post
        self._in_flight = router.spec.in_flight
        self._most = router.limits.serving
        # Acknowledged channels need more than the short way does, so nothing is short enough for it there.
        self._whole_below = -1 if router.delivery is not None else router.whole_below
        self._casts = 0
        self._loop = asyncio.get_running_loop()
        self.works: dict[tuple[str, int], Work] = {}
        self._idle: tuple[Turn, asyncio.Task[None]] | None = None

    def take_turns(self, peer: Peer, begun: deque[Begun]) -> None:
        """Run what handlers returned for this peer, each to its end or until it waits; empties `begun`."""
        if asyncio.current_task(self._loop) is not None:
            for one in begun:
                turn = Turn(self._loop, peer, deque((one,)))
                turn.at = one
                self._wait(turn, task := self._loop.create_task(self._turn(turn)))
                task.add_done_callback(_closes(one))
            begun.clear()
        while begun:
            if (idle := self._idle) is not None:
                turn, task = idle
                turn.peer, turn.begun, self._idle = peer, begun, None
                turn.pause.resume()
            else:
                turn = Turn(self._loop, peer, begun)
                task = start(self._turn(turn), self._loop)
            if turn.at is not None and not task.done():
                self._wait(turn, task)

    def _wait(self, turn: Turn, task: asyncio.Task[Any]) -> None:
        assert turn.at is not None
        request, deadline, _ = turn.at
        turn.work = Work(turn.peer, request, deadline)
        self._enter(turn.work, task)

    async def _turn(self, turn: Turn) -> None:
        """Answer one after the other; no other after one that had to wait, or that left something behind."""
        task, context = asyncio.current_task(), copy_context()
        assert task is not None
        outbox, whole_below, works = self._router.outbox, self._whole_below, self.works
        for _ in range(TURN):
            peer, begun = turn.peer, turn.begun
            while begun:
                turn.at = request, _, coroutine = begun.popleft()
                if (peer.serving >= self._in_flight or len(works) >= self._most) and turn.work is None:
                    coroutine.close()
                    self._refuse(peer, request)
                    continue
                try:
                    reply = await coroutine
                    if type(reply) is bytes and len(reply) <= whole_below:
                        outbox.push(peer, Response(request.id, True, reply), len(reply))
                    elif type(reply) is bytes or reply is None:
                        self._post(peer, Response(request.id, True, reply or b""), len(reply or b""))
                    else:
                        raise _no_bytes(request, reply)
                except Exception as error:
                    self.fail(peer, request, self.fault(error))
                finally:
                    if turn.work is not None:
                        self._leave(turn.work)
                if turn.work is not None or task.cancelling() or not _is_still(context):
                    return
            turn.at = None
            if self._idle is not None or self._router.closed:
                return
            self._idle = turn, task
            try:
                await turn.pause
            finally:
                if self._idle is not None and self._idle[0] is turn:
                    self._idle = None

    def start(self, peer: Peer, request: Request, reply: Any, deadline: float) -> None:
        """Carry on with what a handler returned that is neither its answer nor a coroutine with one."""
        if reply is None or isinstance(reply, bytes):
            self._answer(peer, request, reply or b"")
        elif peer.serving >= self._in_flight or len(self.works) >= self._most:
            if asyncio.iscoroutine(reply):
                reply.close()
            self._refuse(peer, request)
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

    def _refuse(self, peer: Peer, request: Request) -> None:
        self._drops.count("overloaded")
        router = self._router
        what = f"{router.me.id} serves {len(self.works)} requests on {router.name}, its limit"
        self.fail(peer, request, Fault("overloaded", what, 0.05))

    def _enter(self, work: Work, task: asyncio.Future[Any]) -> None:
        router, peer = self._router, work.peer
        work.task = task
        peer.serving += 1
        self.works[peer.id, work.request.id] = work
        router.arm()
        serving = len(self.works)
        if serving > self._most // 2:
            # A fair share of what may be served becomes the window of those who use it, while it is scarce.
            share = max(1, self._most // max(1, sum(1 for one in router.peers if one.serving)))
            if share < peer.granted:
                peer.granted = share
                router.push(peer, Window(share), 0)

    def _leave(self, work: Work) -> None:
        if self.works.pop((work.peer.id, work.request.id), None) is not None:
            work.peer.serving -= 1

    def _register(self, work: Work, task: asyncio.Future[Any]) -> None:
        def done(task: asyncio.Future[Any]) -> None:
            self._leave(work)
            self._finish(work.peer, work.request, task)

        self._enter(work, task)
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
            elif reply is not _ANSWERED:
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
            self._drops.count("handler_failed")
        return _ANSWERED

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
        """Stop serving a peer that is gone, but for its casts, which it did not wait for; or everyone, for good."""
        if peer is None and self._idle is not None:
            self._idle[1].cancel()
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
        self._drops.count("handler_failed")
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
        return _ANSWERED


def _no_bytes(request: Request, reply: Any) -> TypeError:
    return TypeError(f"the handler of {request.command} returned {type(reply).__name__}, not bytes")


def _is_still(before: Context) -> bool:
    """Whether the context variables here are as they were."""
    try:
        return copy_context() == before
    except Exception:  # values that refuse to be compared
        return False


def _closes(begun: Begun) -> Callable[[object], None]:
    """For a task that may be cancelled before it begins: a coroutine that nobody awaits would complain."""
    return lambda _: begun[2].close()
