"""GET /tap: the live stream of what all nodes do, spans and events, as JSON lines.

Each node is asked for its spans by one streamed request over telemetry that lasts while somebody reads, so a mesh that
nobody listens to sends nothing. A node filters before it sends. What a reader is too slow for is dropped and counted.

    {"kind": "span", "name": …, "node": …, "trace": …, "id": …, "parent": …, "start_ns": …, "seconds": …, "error": …, …}
    {"kind": "event", "what": "member" | "variable", "text": …}
    {"kind": "dropped", "node": …, "count": …}
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any, ClassVar

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from meshnode.errors import InvalidInput, MeshError
from meshnode.mesh import Caller, ChannelName, Request
from meshnode.observe.answers import to_json
from meshnode.observe.served import Served
from meshnode.spans import Span

WAITING = 1000  # spans that may wait for a slow reader
BATCH_S = 0.1
BEAT_S = 5.0
AGAIN_S = 1.0
STREAM_S = 3600.0
MAX_FILTER = 256


class Batch(msgspec.Struct, frozen=True):
    """Spans that ended lately, and how many there was no room for."""

    spans: list[Span]
    dropped: int = 0


class Tap(Request[Batch], array_like=True, frozen=True):
    """Stream your spans that fit this filter."""

    command: ClassVar[str] = "mesh.observe.tap"
    channel: ClassVar[ChannelName] = "telemetry"
    reply: ClassVar[Any] = Batch

    filter: str = ""


def matcher(text: str) -> Callable[[Span], bool]:
    """A test of spans: each word of `text` must occur in the name, node, trace, error or `key=value`.

    `slow>0.1` keeps spans of more than so many seconds, `error` those that failed. Raises InvalidInput.
    """
    if len(text) > MAX_FILTER:
        raise InvalidInput(f"filter: at most {MAX_FILTER} characters")
    words, slow, failed = [], 0.0, False
    for word in text.lower().split():
        if word == "error":
            failed = True
        elif word.startswith("slow>"):
            try:
                slow = float(word[5:])
            except ValueError:
                raise InvalidInput(f"filter {word!r}: write seconds, as in slow>0.1") from None
        else:
            words.append(word)

    def fits(span: Span) -> bool:
        if span.seconds < slow or (failed and not span.error):
            return False
        said = " ".join(
            (span.name, span.node, span.trace, span.error, *(f"{k}={v}" for k, v in span.attributes.items()))
        )
        return all(word in said.lower() for word in words)

    return fits


class TapRoutes:
    """The route, and the answer to other nodes that tap this one."""

    def __init__(self, node: Served) -> None:
        self._node = node

    def routes(self) -> list[Route]:
        """Where it hangs."""
        return [Route("/tap", self.tap)]

    def serve(self) -> None:
        """Let other nodes tap this one."""
        self._node.mesh.serve(Tap, self._answer)

    def _answer(self, message: Tap, _caller: Caller) -> AsyncIterator[Batch]:
        return self._own(matcher(message.filter))

    async def _own(self, fits: Callable[[Span], bool]) -> AsyncGenerator[Batch, None]:
        waiting: deque[Span] = deque()
        dropped = 0
        came = asyncio.Event()

        def take(span: Span) -> None:
            nonlocal dropped
            if fits(span):
                if len(waiting) < WAITING:
                    waiting.append(span)
                else:
                    dropped += 1
                came.set()

        stop = self._node.spans.listen(take) if self._node.spans is not None else lambda: None
        try:
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(BEAT_S):
                        await came.wait()
                came.clear()
                batch, dropped_now, dropped = list(waiting), dropped, 0
                waiting.clear()
                yield Batch(batch, dropped_now)  # an empty one now and then notices that the reader is gone
                await asyncio.sleep(BATCH_S)
        finally:
            stop()

    async def tap(self, request: HttpRequest) -> Response:
        """All nodes' spans and this node's view of events, merged, without end."""
        wanted = request.query_params.get("filter", "")
        fits = matcher(wanted)
        if request.method == "HEAD":  # has no end to wait for
            return Response(media_type="application/x-ndjson")
        return StreamingResponse(self._merged(wanted, fits), media_type="application/x-ndjson")

    async def _merged(self, wanted: str, fits: Callable[[Span], bool]) -> AsyncIterator[bytes]:
        lines: asyncio.Queue[bytes] = asyncio.Queue(WAITING)
        loop = asyncio.get_running_loop()
        own = str(self._node.ready["node_id"])
        tasks = [
            loop.create_task(self._put_spans(lines, self._own(fits), str(self._node.ready["name"]))),
            loop.create_task(self._put_members(lines)),
            loop.create_task(self._put_variables(lines)),
        ]
        peers: dict[str, asyncio.Task[None]] = {}
        try:
            while True:
                for member in self._node.members():
                    running = peers.get(member.node_id)
                    if member.node_id != own and member.state == "alive" and (running is None or running.done()):
                        peers[member.node_id] = loop.create_task(
                            self._put_peer(lines, member.node_id, member.name, wanted)
                        )
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(AGAIN_S):
                        yield await lines.get()
                        continue
                yield b"\n"
        finally:
            for task in (*tasks, *peers.values()):
                task.cancel()
            await asyncio.gather(*tasks, *peers.values(), return_exceptions=True)

    async def _put_peer(self, lines: asyncio.Queue[bytes], node_id: str, name: str, wanted: str) -> None:
        with contextlib.suppress(MeshError):
            await self._put_spans(lines, self._node.mesh.stream(node_id, Tap(wanted), timeout_s=STREAM_S), name)
        await asyncio.sleep(AGAIN_S)

    async def _put_spans(self, lines: asyncio.Queue[bytes], batches: AsyncIterator[Batch], name: str) -> None:
        async for batch in batches:
            for span in batch.spans:
                await lines.put(_line("span", {field: getattr(span, field) for field in span.__struct_fields__}))
            if batch.dropped:
                await lines.put(_line("dropped", {"node": name, "count": batch.dropped}))

    async def _put_members(self, lines: asyncio.Queue[bytes]) -> None:
        async for change in self._node.mesh.watch():
            if change.member.state != change.before:
                text = f"{change.member.name} is {change.member.state}"
                await lines.put(_line("event", {"what": "member", "text": text}))

    async def _put_variables(self, lines: asyncio.Queue[bytes]) -> None:
        watch = self._node.variables.watch()
        try:
            async for change in watch:
                text = f"{change.name} {change.what}: {change.value!r} by {change.writer}"
                await lines.put(_line("event", {"what": "variable", "text": text}))
        finally:
            watch.close()


def _line(kind: str, value: dict[str, Any]) -> bytes:
    return to_json({"kind": kind, **value}) + b"\n"
