"""The node's HTTP side: health, metrics, members and status to read; call, evaluate and leave with a token.

`build(node, token=…)` is an ASGI app; `observe.server` serves it on the node's loop. Handlers only read the node or
await it, so none can hold the loop up. Who may ask is decided once, in `observe.guard`.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import msgspec
import structlog
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from meshnode.decoding import UNDECODABLE
from meshnode.errors import InvalidInput, MeshError
from meshnode.observe import page
from meshnode.observe.answers import answer, error_answer, mesh_error_answer
from meshnode.observe.body import read_body
from meshnode.observe.demos import DemoRoutes
from meshnode.observe.evaluate import EvaluateEndpoint
from meshnode.observe.events import EventsEndpoint
from meshnode.observe.gossip import GossipRoutes
from meshnode.observe.guard import Guard
from meshnode.observe.picture import Picture
from meshnode.observe.raft import RaftRoutes
from meshnode.observe.security import SecurityRoutes
from meshnode.observe.served import Served
from meshnode.observe.tap import TapRoutes
from meshnode.observe.variables import VariableRoutes
from meshnode.redaction import hide_secrets

MAX_CALL_BYTES = 16 * 1024 * 1024
_WHILE_JOINING = ("/healthz", "/readyz")

log = structlog.get_logger("meshnode.http")

_NOT_READY = {
    "joining": "this node is joining its mesh; its log says what it waits for",
    "serving": "this node has stopped serving; its log says why",
    "leaving": "this node is leaving: it ends what it runs and takes no more",
}


class CallBody(msgspec.Struct, forbid_unknown_fields=True):
    """What POST /call takes. `to` is a node's name or id; None asks this node. `timeout_s` None: the node's default."""

    method: str
    args: Any = None
    to: str | None = None
    timeout_s: float | None = None


def build(node: Served, *, token: str, hosts: Iterable[str] = ()) -> ASGIApp:
    """The ASGI app of a node. `token` is what state-changing requests must bear; `hosts` further names of this host."""
    routes = _Routes(node)
    picture = Picture(node)
    picture.serve()
    tap = TapRoutes(node)
    tap.serve()
    app = Starlette(
        routes=[
            Route("/healthz", routes.live),
            Route("/readyz", routes.ready),
            Route("/health", routes.health),
            *GossipRoutes(node).routes(),
            Route("/status", routes.status),
            Route("/programs", routes.programs),
            Route("/tools", routes.tools),
            Route("/config", routes.config),
            Route("/metrics", routes.metrics),
            Route("/call", _Cancellable(routes.call), methods=["POST"]),
            Route("/evaluate", EvaluateEndpoint(node), methods=["POST"]),
            Route("/leave", routes.leave, methods=["POST"]),
            *VariableRoutes(node).routes(),
            *RaftRoutes(node).routes(),
            *DemoRoutes(node).routes(),
            *SecurityRoutes(node).routes(),
            Route("/events", EventsEndpoint(picture)),
            *tap.routes(),
            *page.routes(),
        ],
        exception_handlers={MeshError: _on_mesh_error, HTTPException: _on_http_error, Exception: _on_crash},
    )
    return Guard(
        _Joined(node, app), token=token, hosts=[socket.gethostname(), str(node.ready.get("name") or ""), *hosts]
    )


class _Routes:
    def __init__(self, node: Served) -> None:
        self._node = node
        self._metrics: Callable[[], bytes] | None = None
        self._leaving: asyncio.Task[None] | None = None

    async def live(self, _: Request) -> Response:
        """The loop answers: that is all that `live` says."""
        return PlainTextResponse("ok\n")

    async def ready(self, _: Request) -> Response:
        """Whether to send work here, and why not."""
        if self._node.serving:
            return PlainTextResponse("ready\n")
        return PlainTextResponse(f"not ready: {_NOT_READY[self._node.standing]}\n", 503)

    async def health(self, _: Request) -> Response:
        """Each component, and the worst of them as the whole. 200 either way: `/readyz` is what steers traffic."""
        components = hide_secrets(self._node.health())  # what failed may quote what it was given
        degraded = any(part.get("status") not in ("ok", "off") for part in components.values())
        return answer({"status": "degraded" if degraded else "ok", "components": components})

    async def status(self, _: Request) -> Response:
        """As `meshnode status --json` prints it."""
        return answer(self._node.status())

    async def programs(self, _: Request) -> Response:
        """Which programs run where."""
        where: dict[str, list[str]] = {}
        for member in self._node.members():
            if member.state in ("alive", "suspect"):
                for program in member.programs:
                    where.setdefault(program, []).append(member.name)
        return answer([{"name": name, "nodes": sorted(nodes)} for name, nodes in sorted(where.items())])

    async def tools(self, _: Request) -> Response:
        """This node's tools with their schemas, as `meshnode tools --json` prints them."""
        return answer(self._node.tools())

    async def config(self, _: Request) -> Response:
        """What the node runs with, secrets hidden, and where each value came from."""
        config = self._node.config
        values = hide_secrets(config.model_dump(mode="json"))
        return answer({"values": values, "set": sorted(config.model_fields_set), "sources": config.sources})

    async def metrics(self, _: Request) -> Response:
        """The Prometheus text format."""
        if self._metrics is None:
            # Only a node that is scraped pays for the library.
            from meshnode.observe.metrics import exporter

            self._metrics = exporter(self._node)
        return Response(self._metrics(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def call(self, request: Request) -> Response:
        """Ask a handler, here or at a peer."""
        try:
            body = msgspec.json.decode(await read_body(request, MAX_CALL_BYTES), type=CallBody)
        except UNDECODABLE as error:
            raise InvalidInput(f"body: {error}; send {{method, args, to, timeout_s}} as JSON") from None
        if body.timeout_s is not None and not 0 < body.timeout_s <= 86_400:
            raise InvalidInput(f"timeout_s: must be above 0 and at most 86400, got {body.timeout_s}")
        peer = body.to if body.to is not None else str(self._node.ready["node_id"])
        return answer({"result": await self._node.call(peer, body.method, body.args, timeout_s=body.timeout_s)})

    async def leave(self, _: Request) -> Response:
        """Answer, then leave: the answer must be out before the server goes down with the node."""
        if self._leaving is None:
            self._leaving = asyncio.get_running_loop().create_task(self._node.leave(), name="leave")
            self._leaving.add_done_callback(_log_failed_leave)
        return answer({"leaving": self._node.ready["name"], "pid": self._node.ready["pid"]}, 202)


class _Joined:
    """While the node joins there is nothing yet to be asked: only whether it lives, and whether it is ready."""

    def __init__(self, node: Served, app: ASGIApp) -> None:
        self._node = node
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, or answer 503 with the reason."""
        if scope["type"] == "http" and self._node.standing == "joining" and scope["path"] not in _WHILE_JOINING:
            refusal = error_answer("starting", _NOT_READY["joining"], 503, retry_after_s=1.0)
            await refusal(scope, receive, send)
        else:
            await self.app(scope, receive, send)


class _Cancellable:
    """An endpoint whose work is cancelled when the client goes away before it is answered."""

    def __init__(self, endpoint: Callable[[Request], Awaitable[Response]]) -> None:
        self._endpoint = endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or stop working when nobody waits any more."""
        body_read = asyncio.Event()

        async def receive_and_note() -> Any:
            message = await receive()
            if message["type"] == "http.request" and not message.get("more_body", False):
                body_read.set()
            return message

        async def gone() -> None:
            await body_read.wait()
            while (await receive())["type"] != "http.disconnect":
                pass

        loop = asyncio.get_running_loop()
        work = loop.create_task(self._work(Request(scope, receive_and_note)))
        watcher = loop.create_task(gone())
        try:
            await asyncio.wait([work, watcher], return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                response = await work
                await response(scope, receive, send)
        finally:
            work.cancel()
            watcher.cancel()
            await asyncio.wait([work, watcher])

    async def _work(self, request: Request) -> Response:
        return await self._endpoint(request)


async def _on_mesh_error(_: Request, error: Any) -> Response:
    return mesh_error_answer(error)


async def _on_http_error(_: Request, error: Any) -> Response:
    codes = {404: "not_found", 405: "method_not_allowed"}
    return error_answer(codes.get(error.status_code, "http_error"), error.detail, error.status_code)


async def _on_crash(request: Request, error: Exception) -> Response:
    log.error("request failed", path=request.url.path, error=repr(error), exc_info=error)
    return error_answer("internal", f"{type(error).__name__} while answering; see the node's log", 500)


def _log_failed_leave(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("leaving failed", error=repr(error), exc_info=error)
