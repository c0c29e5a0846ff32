"""Spans: who did what, for how long, on whose behalf; one trace over all the nodes and workers that take part.

    evaluate qa                 host-a    4.1 s
      mesh.run_task             host-a    0.21 s    the question to host-b ...
        mesh.run_task           host-b    0.20 s    ... and its answer there
          task qa               host-b    0.19 s    in worker 1234

A span that goes over the wire travels as the header `traceparent` (W3C Trace Context, level 1) in the envelope's
context. What arrives without it is not part of a trace, and costs one comparison. What begins here and is not part of
one begins one, up to ROOTS_PER_S a second: under a flood of calls some are traced, the others only counted, so that
tracing stays cheap. Finished spans stay in a ring until newer ones push them out; nothing is sent unless asked for.

The span that is open here and now is a context variable, so tasks inherit it. A task that outlives it must not go on
in its name: a span that has ended no longer counts as open.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, TypeVar

import msgspec

from channels.transport import FaultError
from meshnode.errors import to_fault

KEPT = 2048
ROOTS_PER_S = 100
SPANS_PER_S = 2000
PASSED_BY = 64  # operations let by, once there were enough, before the clock is asked whether a new second began
HEADER = "traceparent"

T = TypeVar("T")


class Span(msgspec.Struct, array_like=True, frozen=True):
    """A finished one. Ids are hex; `parent` is "" for a root; `error` is our error's code, "" if all went well."""

    trace: str
    id: str
    parent: str
    name: str
    node: str
    start_ns: int  # Unix time
    seconds: float
    error: str = ""
    attributes: dict[str, str] = {}


class Open:
    """A span under way. Belongs to the `Spans` that began it."""

    __slots__ = ("attributes", "began", "ended", "id", "name", "owner", "parent", "start_ns", "trace")

    def __init__(self, owner: Spans, trace: str, parent: str, name: str, attributes: dict[str, str]) -> None:
        self.owner = owner
        self.trace = trace
        self.parent = parent
        self.id = f"{_random(64):016x}"
        self.name = name
        self.attributes = attributes
        self.ended = False
        self.start_ns = time.time_ns()
        self.began = time.perf_counter()

    @property
    def context(self) -> dict[str, str]:
        """What the envelope carries, so that the other side goes on from here."""
        return {HEADER: f"00-{self.trace}-{self.id}-01"}

    def tell_work(self, name: str, seconds: float, **attributes: str) -> None:
        """A part of this one that a worker measured itself, as far from here as its own clock: it ends now."""
        part = Open(self.owner, self.trace, self.id, name, attributes)
        part.start_ns -= int(seconds * 1e9)
        part.ended = True
        self.owner.keep(part, seconds, "")

    def end(self, error: BaseException | None = None) -> None:
        """It is over; once."""
        if not self.ended:
            self.ended = True
            self.owner.keep(self, time.perf_counter() - self.began, _code(error))


_current: ContextVar[Open | None] = ContextVar("span", default=None)
_random = random.Random().getrandbits
#: The innermost span that was opened here, which may have ended: for who can't afford `current`.
opened_here: Callable[[], Open | None] = _current.get


def current() -> Open | None:
    """The span that is open here and now."""
    span = _current.get()
    return None if span is None or span.ended else span


class Spans:
    """The finished spans of one node, newest last, and the count of those there was no room for."""

    def __init__(self, node: str, *, kept: int = KEPT) -> None:
        self.node = node
        self.ring: deque[Span] = deque(maxlen=kept)
        self.counted = 0
        self._skipped = 0  # all that were let by, those to come included
        self._listeners: list[Callable[[Span], None]] = []
        self._second = 0
        self.passing = 0  # so many more of them are let by
        self._roots_left = ROOTS_PER_S
        self._spans_left = SPANS_PER_S

    @property
    def skipped(self) -> int:
        """Operations that were let by, only counted."""
        return self._skipped - self.passing

    def begin(
        self, name: str, context: Mapping[str, str] | None = None, attributes: dict[str, str] | None = None
    ) -> Open | None:
        """Open a span: of the trace that `context` names, else of the one open here, else of a new one.

        None if this second has had its share: then there is nothing to end.
        """
        if context is None and self.lets_by():
            return None
        now = int(time.monotonic())
        if now != self._second:
            self._second, self._roots_left, self._spans_left = now, ROOTS_PER_S, SPANS_PER_S
        trace, parent = _parse(context)
        if not trace and (around := current()) is not None:
            trace, parent = around.trace, around.id
        if self._spans_left <= 0 or (not trace and self._roots_left <= 0):
            self._skipped += 1 + PASSED_BY - self.passing
            self.passing = PASSED_BY
            return None
        self._spans_left -= 1
        if not trace:
            self._roots_left -= 1
            trace = f"{_random(128):032x}"
        return Open(self, trace, parent, name, {} if attributes is None else attributes)

    def lets_by(self) -> bool:
        """Whether there were enough of late, so that what begins here is only counted: all that most calls pay."""
        if self.passing > 0 and ((around := _current.get()) is None or around.ended):
            self.passing -= 1
            return True
        return False

    @contextlib.contextmanager
    def span(self, name: str, context: Mapping[str, str] | None = None) -> Iterator[Open | None]:
        """Open a span around a block."""
        span = self.begin(name, context)
        if span is None:
            yield None
            return
        token = _current.set(span)
        try:
            yield span
        except BaseException as error:
            span.end(error)
            raise
        finally:
            span.end()
            _current.reset(token)

    def keep(self, span: Open, seconds: float, error: str) -> None:
        """Take a finished span in, and tell whoever listens."""
        self.counted += 1
        done = Span(
            span.trace, span.id, span.parent, span.name, self.node, span.start_ns, seconds, error, span.attributes
        )
        self.ring.append(done)
        for listener in self._listeners:
            listener(done)

    def listen(self, listener: Callable[[Span], None]) -> Callable[[], None]:
        """Call `listener` with each span that ends; it must not block. Returns the way to stop."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener) if listener in self._listeners else None

    # What a responder returns, in a span of its own.

    def around_reply(self, span: Open, respond: Callable[[], Any]) -> Any:
        """Call a responder within a span that ends with its reply: bytes at once, an awaitable, or a stream."""
        token = _current.set(span)
        try:
            reply = respond()
        except BaseException as error:
            span.end(error)
            raise
        finally:
            _current.reset(token)
        if hasattr(reply, "__aiter__"):
            return _stream_within(span, reply)
        if hasattr(reply, "__await__"):
            return await_within(span, reply)
        span.end()
        return reply


async def await_within(span: Open, work: Awaitable[T]) -> T:
    """Await `work` with the span open; it ends with it."""
    token = _current.set(span)
    try:
        return await work
    except BaseException as error:
        span.end(error)
        raise
    finally:
        span.end()
        _current.reset(token)


async def _stream_within(span: Open, reply: AsyncIterator[T]) -> AsyncIterator[T]:
    _current.set(span)  # in the task that the channel reads this stream with, and in no other
    try:
        async for part in reply:
            yield part
    except BaseException as error:
        span.end(error)
        raise
    finally:
        span.end()


@contextlib.contextmanager
def within(spans: Spans | None, name: str) -> Iterator[None]:
    """A span around a block, if spans are kept."""
    if spans is None:
        yield
    else:
        with spans.span(name):
            yield


def _parse(context: Mapping[str, str] | None) -> tuple[str, str]:
    """(trace, parent) of a traceparent; ("", "") if there is none we can read: a broken one starts a new trace."""
    if not context:
        return "", ""
    parts = context.get(HEADER, "").split("-")
    if len(parts) < 4 or len(parts[1]) != 32 or len(parts[2]) != 16:
        return "", ""
    return parts[1], parts[2]


def _code(error: BaseException | None) -> str:
    if error is None:
        return ""
    if isinstance(error, FaultError):
        return error.fault.code
    return to_fault(error).code if isinstance(error, Exception) else "cancelled"
