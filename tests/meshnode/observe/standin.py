"""A node's outside without its inside: what the HTTP server needs, settable by a test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, Literal

from meshnode.config import Config
from meshnode.demos.select import Recent
from meshnode.errors import ConfigError, UnknownMethod, Unreachable
from meshnode.mesh import Member
from meshnode.observe.http import build
from meshnode.observe.server import HttpServer, listen
from meshnode.spans import Spans
from meshnode.variables import Variables
from tests.meshnode.instant_state import InstantState

TOKEN = "correct-horse"
PATIENCE_S = 60.0  # only reached when something is wrong


class Echoes:
    """Events and queries of a mesh in which node-a says back what it is asked."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, Any]] = []

    def send(self, name: str, payload: Any = None) -> None:
        self.sent.append((name, payload))

    async def query(self, name: str, payload: Any = None, *, timeout_s: float = 5.0) -> dict[str, Any]:
        return {"aa": [payload, timeout_s]} if name == "echo" else {}


class Alone:
    """The facade of a mesh in which nobody answers and nothing happens."""

    me = Member(name="node-a", node_id="aa", state="alive", address="127.0.0.1:7700")

    def __init__(self) -> None:
        self.state = InstantState()
        self.subscribed: dict[type[Any], Callable[[str, Any], None]] = {}

    def serve(self, kind: Any, responder: Any) -> None:
        del kind, responder

    async def watch(self) -> AsyncIterator[Any]:
        await asyncio.Event().wait()
        yield

    def subscribe(self, kind: type[Any], receive: Callable[[str, Any], None]) -> Callable[[], None]:
        self.subscribed[kind] = receive
        return lambda: self.subscribed.pop(kind, None) and None

    async def request(self, peer: str, message: Any, *, timeout_s: float) -> Any:
        if peer == self.me.node_id and isinstance(message, Recent):
            return []
        raise Unreachable("nobody is here")


class StandIn:
    def __init__(self) -> None:
        self.serving = True
        self.standing: Literal["joining", "serving", "leaving"] = "serving"
        self.config = Config(name="node-a", port=0)
        self.left = asyncio.Event()
        self.called: list[tuple[str, str, Any, float | None]] = []
        self.evaluated: list[dict[str, Any]] = []
        self.cancelled = asyncio.Event()
        self.working = asyncio.Event()
        self.answer: Callable[[Any], Any] = lambda args: args
        self.pause = asyncio.Event()
        self.pause.set()
        self.components: dict[str, Any] = {"membership": {"status": "ok"}}
        self.mesh: Any = Alone()
        self.spans: Spans | None = Spans("node-a")
        self.variables = Variables(self.mesh.state, {}, "node-a")
        self.events = Echoes()
        self.ready: dict[str, Any] = {
            "name": "node-a",
            "node_id": "aa",
            "mesh_id": "m",
            "pid": 1,
            "gossip": "127.0.0.1:7700",
            "http": "127.0.0.1:7705",
            "channels": {},
        }

    def members(self) -> list[Member]:
        return [
            Member(
                name="node-a",
                node_id="aa",
                state="alive",
                address="127.0.0.1:7700",
                tags={"gpu": "no"},
                incarnation=3,
                programs=frozenset({"qa"}),
                slots=8,
                busy=2,
            ),
            Member(name="node-b", node_id="bb", state="dead", address="127.0.0.1:7800", programs=frozenset({"qa"})),
        ]

    def round_trips(self) -> dict[str, float]:
        return {"bb": 0.0125}

    def status(self) -> dict[str, Any]:
        return {
            "node_id": "aa",
            "mesh_id": "m",
            "members": [],
            "leader": None,
            "term": None,
            "commit_index": None,
            "applied_index": None,
            "voters": None,
            "channels": {
                "inference": {
                    "sent": 7,
                    "bytes_sent": 700,
                    "dropped": {"late": 2},
                    "queued": 1,
                    "peers": {
                        "bb": {"rtt": {"count": 4, "p50_s": 0.5, "p99_s": 0.75}},
                        "cc": {"rtt": {"count": 0, "p50_s": 0.0, "p99_s": 0.0}},
                    },
                }
            },
        }

    def security(self) -> dict[str, Any]:
        return {"encrypted": False}

    def reload_keys(self) -> dict[str, Any]:
        raise ConfigError("this mesh has no key")

    def revoke(self, statement: bytes) -> dict[str, Any]:
        raise ConfigError("this mesh has no key")

    def progress(self) -> list[dict[str, Any]]:
        return [{"number": 1, "program": "qa", "state": "running", "done": 3, "total": 9}]

    def health(self) -> dict[str, Any]:
        return self.components

    def tools(self) -> list[dict[str, Any]]:
        parameters = {"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]}
        return [{"name": "lookup", "description": "Synonyms of a word.", "parameters": parameters}]

    async def call(self, peer: str, method: str, args: Any, *, timeout_s: float | None = None) -> Any:
        self.called.append((peer, method, args, timeout_s))
        if method == "unknown":
            raise UnknownMethod("this node has no handler 'unknown'; its handlers: echo")
        if method == "hang":
            self.working.set()
            try:
                await asyncio.Event().wait()
            finally:
                self.cancelled.set()
        return self.answer(args)

    async def evaluate(
        self,
        program: str,
        examples: AsyncIterator[dict[str, Any]],
        *,
        metric: str,
        distributed: Any = "auto",
        on_progress: Callable[[Any], None] | None = None,
        **options: Any,
    ) -> Any:
        if program == "unknown":
            raise UnknownMethod("no node has a program 'unknown'")
        try:
            async for example in examples:
                self.evaluated.append(example)
                self.working.set()
                if on_progress is not None:
                    on_progress({"done": len(self.evaluated)})
                await self.pause.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return {"score": 100.0, "examples": len(self.evaluated), "metric": metric, "distributed": distributed}

    async def leave(self) -> None:
        self.left.set()


async def serve(node: StandIn) -> HttpServer:
    server = HttpServer(build(node, token=TOKEN), listen("127.0.0.1", 0))
    await server.start()
    return server
