"""POST /evaluate: JSON lines in, JSON lines out, both at once.

The body's first line is the options, each further line one example; the answer is `{"progress": …}` lines, at most
one every `PROGRESS_EVERY_S`, then one `{"result": …}` or `{"error": {"code", "message"}}`. Examples are read only as
fast as the evaluation takes them, so a file of any size passes through in bounded memory. A client that goes away
cancels the evaluation. An error before anything was answered has its own status instead.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, Literal

import msgspec
import structlog
from starlette.types import Receive, Scope, Send

from meshnode.decoding import UNDECODABLE
from meshnode.errors import InvalidInput, MeshError, TooLarge
from meshnode.observe.answers import status_of, to_json
from meshnode.observe.served import Served

MAX_LINE_BYTES = 16 * 1024 * 1024
QUEUED_CHUNKS = 4
PROGRESS_EVERY_S = 0.1
HEARTBEAT_S = 2.0

log = structlog.get_logger("meshnode.http")


class Options(msgspec.Struct, forbid_unknown_fields=True):
    """The first line. `total` is how many examples follow, for the progress.

    `state`: the program's. `keep`: keep this run in the node's store of runs; `run`: the id of one kept there, to go on
    with.
    """

    program: str
    metric: str
    distributed: Literal["auto"] | bool = "auto"
    state: dict[str, Any] | None = None
    keep: bool = False
    run: str | None = None
    total: int | None = None


class EvaluateEndpoint:
    """The route's ASGI app."""

    def __init__(self, node: Served) -> None:
        self._node = node

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Evaluate while the client listens."""
        del scope
        body = _Body(receive)
        reply = _Reply(send)
        loop = asyncio.get_running_loop()
        reading = loop.create_task(body.read(), name="evaluate-read")
        work = loop.create_task(self._evaluate(body, reply), name="evaluate")
        progress = loop.create_task(reply.report(), name="evaluate-progress")
        tasks = [reading, work, progress]
        try:
            await asyncio.wait([reading, work], return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                log.info("evaluation cancelled: the client went away")
        finally:
            # Always all three, also when this request itself is cancelled: nothing may outlive it.
            for task in (progress, reading) if work.done() else tasks:
                task.cancel()
            await asyncio.wait(tasks)
        if not work.cancelled():
            await reply.finish(*await work)

    async def _evaluate(self, body: _Body, reply: _Reply) -> tuple[int, dict[str, Any]]:
        try:
            options = _decode_options(await anext(body.lines(), b""))
            state = None if options.state is None else msgspec.json.encode(options.state)
            runs = _store() if options.keep else None
            given = {"run": options.run, "total": options.total, "runs": runs, "state": state}
            result = await self._node.evaluate(
                options.program,
                _examples(body),
                metric=options.metric,
                distributed=options.distributed,
                on_progress=reply.note,
                **{name: value for name, value in given.items() if value is not None},
            )
        except MeshError as error:
            return status_of(error), {"error": {"code": error.code, "message": str(error)}}
        except Exception as error:
            log.error("evaluation failed", error=repr(error), exc_info=error)
            message = f"{type(error).__name__} in the evaluation; see the node's log"
            return 500, {"error": {"code": "internal", "message": message}}
        return 200, {"result": result.to_json() if hasattr(result, "to_json") else result}


class _Body:
    """The request body as lines, with a bounded queue between the socket and whoever takes them."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._chunks: asyncio.Queue[bytes | None] = asyncio.Queue(QUEUED_CHUNKS)
        self._rest = bytearray()
        self._ready: list[bytes] = []
        self._ended = False

    async def read(self) -> None:
        """Move the body into the queue; returns when the client has gone."""
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                return
            if message.get("body"):
                await self._chunks.put(message["body"])
            if not message.get("more_body", False):
                await self._chunks.put(None)

    async def lines(self) -> AsyncIterator[bytes]:
        """The lines not yet taken, without their ends; may be called again to go on."""
        while True:
            while self._ready:
                yield self._ready.pop()
            if self._ended:
                return
            chunk = await self._chunks.get()
            if chunk is None:
                self._ended = True
                self._ready = [bytes(self._rest)] if self._rest else []
                continue
            # Only the new part is looked through: a long line comes in hundreds of chunks.
            first, *others = chunk.split(b"\n")
            self._rest += first
            if others:
                self._ready = [*others[-2::-1], bytes(self._rest)]
                self._rest = bytearray(others[-1])
            if len(self._rest) > MAX_LINE_BYTES:
                raise TooLarge(f"a line exceeds {MAX_LINE_BYTES} bytes")


class _Reply:
    """Answers with JSON lines; the head goes out with the first of them."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._started = False
        self._one_at_a_time = asyncio.Lock()
        self._latest: Any = None
        self._noted = asyncio.Event()

    def note(self, progress: Any) -> None:
        """Keep the latest progress; older ones not yet sent are dropped."""
        self._latest = progress
        self._noted.set()

    async def report(self) -> None:
        """Send what was noted, not too often; repeat it (or null) now and then, so that a dead link is noticed."""
        while True:
            with contextlib.suppress(TimeoutError):
                # Not wait_for: before Python 3.12 it can swallow a cancellation.
                async with asyncio.timeout(HEARTBEAT_S):
                    await self._noted.wait()
            self._noted.clear()
            # Shielded: half a line would break the stream for the lines after it.
            await asyncio.shield(self._line(200, {"progress": self._latest}))
            await asyncio.sleep(PROGRESS_EVERY_S)

    async def finish(self, status: int, last: dict[str, Any]) -> None:
        """Send the last line and end the answer."""
        await self._line(status, last, more=False)

    async def _line(self, status: int, value: dict[str, Any], *, more: bool = True) -> None:
        async with self._one_at_a_time:
            if not self._started:
                self._started = True
                content_type = b"application/x-ndjson" if status == 200 else b"application/json"
                await self._send(
                    {"type": "http.response.start", "status": status, "headers": [(b"content-type", content_type)]}
                )
            await self._send({"type": "http.response.body", "body": to_json(value) + b"\n", "more_body": more})


def _store() -> str:
    # Imported when first asked for: an idle node should stay small.
    from meshnode.storage import default_url

    return default_url()


def _decode_options(line: bytes) -> Options:
    try:
        return msgspec.json.decode(line, type=Options)
    except UNDECODABLE as error:
        raise InvalidInput(
            f"line 1, the options: {error}; send {{program, metric}}, if need be {{distributed, total, keep, run}}"
        ) from None


async def _examples(body: _Body) -> AsyncIterator[dict[str, Any]]:
    number = 1
    async for line in body.lines():
        number += 1
        if not line.strip():
            continue
        try:
            yield msgspec.json.decode(line, type=dict[str, Any])
        except UNDECODABLE as error:
            raise InvalidInput(f"line {number}: {error}; each line is one JSON object") from None
