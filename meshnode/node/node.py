"""One node of the mesh, as programs hold it: its life, what it knows, what it does.

    identity -> parts (assembly.py) -> HTTP -> join -> serving -> leave -> everything closed, in reverse

Everything that decides stands elsewhere: membership's core, the pool, dispatch, the evaluation's plan. A growing
`match` in this file belongs in one of those.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping
from contextlib import AsyncExitStack
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import structlog

from meshnode.errors import Closed, ConfigError, MeshError
from meshnode.evaluation.under_way import UnderWay
from meshnode.identity import load_identity
from meshnode.local_nodes import node_token
from meshnode.mesh import Member, MemberChange
from meshnode.node.addresses import host_of
from meshnode.node.assembly import Assembly
from meshnode.node.directory import Directory
from meshnode.node.dispatch import Dispatch
from meshnode.node.events import NodeEvents
from meshnode.node.facade import NodeMesh
from meshnode.node.parts import Parts
from meshnode.observe.health import state_health
from meshnode.observe.logs import log_as_a_library, logging_of, the_node_here
from meshnode.spans import Spans, within

if TYPE_CHECKING:
    from meshnode.app import App
    from meshnode.config import Config
    from meshnode.demos import Demos
    from meshnode.evaluation.results import EvaluationResult, Progress
    from meshnode.optimisation.results import OptimisationResult
    from meshnode.pipelines import Pipeline, PipelineResult
    from meshnode.security.setup import Secured
    from meshnode.sessions import Session
    from meshnode.variables import Variables

log = structlog.get_logger("meshnode.node")


class Node:
    """A member of the mesh. Use it as `async with Node(Config(seeds=["host-a:7700"]), app=app) as node`.

    `mesh` is its facade, for what is built on top. Starting raises ConfigError (a port is taken, a setting is wrong),
    AppError (the app does not load) or JoinError (no seed let us in); nothing stays open then.
    """

    def __init__(self, config: Config | None = None, *, app: App | None = None) -> None:
        log_as_a_library()
        if config is None:
            from meshnode.config import Config  # loads pydantic, which a node that is given its settings does without

            config = Config()
        self.config = config
        self.app = app
        self.identity = load_identity(self.config.data_dir)
        self.name = self.config.name or f"{os.uname().nodename.split('.')[0]}-{self.identity.node_id[:4]}"
        self.token = node_token(self.config.token_file)
        self.directory = Directory()
        self.spans = Spans(self.name) if self.config.spans else None
        self.dispatch = Dispatch(self.spans)
        self.mesh = NodeMesh(self.identity.node_id, self.directory, self.dispatch)
        self.under_way = UnderWay()
        self._parts: Parts | None = None
        self._stack: AsyncExitStack | None = None
        self._serving = self._joined = False
        self._left = asyncio.Event()
        self._leaving = False
        self._failure: Exception | None = None
        self._stopping: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start all parts, join, and serve. Once only."""
        with logging_of(self._where):
            await self._start()

    async def _start(self) -> None:
        if self._stack is not None:
            raise MeshError("this node was started before; make a new one")
        self._stack = AsyncExitStack()
        self._stack.callback(the_node_here(self._where))
        try:
            if self.spans is not None and self.config.otlp is not None:
                from meshnode.integrations.otel import export

                self._stack.push_async_callback(asyncio.to_thread, export(self.spans, self.config.otlp))
            if self.app is None and self.config.app is not None:
                from meshnode.app import load_app

                self.app = load_app(self.config.app)
            self._parts = await self._assembly(self._stack).make()
            if self._parts.http_listener is not None:
                await self._serve_http(self._parts.http_listener, self._stack)
            await self._parts.join()
        except BaseException:
            await self._stack.aclose()
            raise
        self._serving = self._joined = True
        log.info("serving", node=self.name, node_id=self.node_id, mesh=self.mesh_id, gossip=self.ready["gossip"])

    def _assembly(self, stack: AsyncExitStack) -> Assembly:
        return Assembly(
            config=self.config,
            app=self.app,
            identity=self.identity,
            name=self.name,
            directory=self.directory,
            dispatch=self.dispatch,
            mesh=self.mesh,
            spans=self.spans,
            fail=self.fail,
            stack=stack,
        )

    async def _serve_http(self, listener: socket.socket, stack: AsyncExitStack) -> None:
        from meshnode.observe.http import build
        from meshnode.observe.server import HttpServer

        server = HttpServer(build(self, token=self.token, hosts=[host_of(self.config)]), listener)
        stack.push_async_callback(server.close)
        await server.start()

    async def leave(self) -> None:
        """Tell the mesh that this node goes, and take no more work; `stop` then frees everything."""
        self._serving = False
        self._leaving = True
        if self._parts is not None and not self._left.is_set():
            await self._parts.leave()
        self._left.set()

    async def wait_left(self) -> None:
        """Until somebody asked this node to leave; raises what made it impossible to go on."""
        await self._left.wait()
        if self._failure is not None:
            raise self._failure

    def fail(self, error: Exception) -> None:
        """A part can't go on: serve no more, and let who waits for `wait_left` stop the node."""
        self._serving = False
        if self._failure is None:
            # Told now: ending takes a while, and may be cut short.
            log.error("can't go on", error=str(error), exc_info=None if isinstance(error, MeshError) else error)
            self._failure = error
        self._left.set()

    async def stop(self) -> None:
        """Leave, and close everything in reverse order. Safe to call twice; cancelled, it still runs to its end."""
        if self._stopping is None:
            with logging_of(self._where):
                self._stopping = asyncio.get_running_loop().create_task(self._stop())
        await asyncio.shield(self._stopping)

    async def __aenter__(self) -> Node:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    # What a node is and knows.

    @property
    def node_id(self) -> str:
        """32 hex digits, the hash of the node's key."""
        return self.identity.node_id

    @property
    def mesh_id(self) -> str:
        """The mesh it belongs to."""
        return self._running().membership.mesh_id or ""

    @property
    def serving(self) -> bool:
        """True from the end of `start` until it leaves."""
        return self._serving

    @property
    def standing(self) -> Literal["joining", "serving", "leaving"]:
        """Where it is in its life."""
        return "leaving" if self._left.is_set() or self._leaving else "serving" if self._joined else "joining"

    @property
    def ready(self) -> dict[str, Any]:
        """What `--ready-file` holds."""
        me = self.mesh.me
        return {
            "name": self.name,
            "node_id": self.node_id,
            "mesh_id": self.mesh_id,
            "pid": os.getpid(),
            "gossip": me.address,
            "http": self._running().http,
            "channels": dict(me.channels),
        }

    def members(self) -> list[Member]:
        """All known members, this node included, sorted by name."""
        return self.directory.members()

    def watch(self) -> AsyncIterator[MemberChange]:
        """Every change of membership from this call on, in order."""
        return self.directory.watch()

    def status(self) -> dict[str, Any]:
        """The public `status` document; `leader` is None while none is known, ids throughout."""
        state = self._running().replication.status()
        return {
            "name": self.name,
            "node_id": self.node_id,
            "mesh_id": self.mesh_id,
            "members": sum(member.state == "alive" for member in self.members()),
            "leader": state.leader,
            "term": state.term,
            "commit_index": state.commit_index,
            "applied_index": state.applied_index,
            "voters": list(state.voters),
            "learners": list(state.learners),
            "channels": self._running().channels.statistics(),
            "security": self.security(),
            "log": self._running().replication.statistics(),
            "evaluated": {"examples": self.under_way.examples, "failed": self.under_way.failed},
        }

    @property
    def events(self) -> NodeEvents:
        """Short messages to every node: `send`, `query`, and who hears and answers them."""
        return self._running().events

    def round_trips(self) -> Mapping[str, float]:
        """Smoothed round trip of gossip's probes in seconds, by node id; of those probed so far."""
        return self._running().membership.round_trips()

    def health(self) -> dict[str, Any]:
        """Each component by name, with a status of "ok", "degraded" or "failed"."""
        return {**self._running().health(), **state_health(self.status())}

    def progress(self) -> list[dict[str, Any]]:
        """The evaluations this node runs now and the last few it ran, in plain values."""
        return self.under_way.describe()

    def security(self) -> dict[str, Any]:
        """How this node is protected: ids of keys, never keys."""
        secured = self._running().secured
        return secured.describe() if secured is not None else {"encrypted": False}

    def reload_keys(self) -> dict[str, Any]:
        """Read the mesh key file again and use it from now on; returns what `security` does, and who was shut out.

        Raises ConfigError if it can't be used: nothing has changed then.
        """
        return self._secured().reload()

    def revoke(self, statement: bytes) -> dict[str, Any]:
        """Tell the mesh what its certificate authority has revoked. Raises ConfigError for anything else."""
        return self._secured().revoke(statement)

    @property
    def variables(self) -> Variables:
        """The mesh's shared variables."""
        return self._running().variables

    @property
    def demos(self) -> Demos:
        """Demos that the whole mesh chooses: `await node.demos.select("qa", train, k=8)`."""
        return self._running().demos

    def session(self, *, ttl_s: float = 30.0, metadata: Mapping[str, str] | None = None) -> Session:
        """A session to be entered by `async with`: what is registered in it goes when it ends.

        ttl_s: seconds it outlives this node's death. Entering raises InvalidInput, NoLeader, OutcomeUnknown.
        """
        return self._running().sessions.make(ttl_s, metadata)

    # What a node does.

    def call(
        self, peer: str, method: str, args: Any = None, *, timeout_s: float | None = None
    ) -> Coroutine[Any, Any, Any]:
        """Ask a peer's `@app.handler`; `peer` is a name or an id, `args` and the answer anything that packs.

        Raises Unreachable, Overloaded, MeshTimeout, UnknownMethod, InvalidInput, or RemoteError with what it raised.
        """
        return self.mesh.call(peer, method, args, timeout_s=timeout_s or self.config.call_timeout_s)

    def tools(self) -> list[dict[str, Any]]:
        """This node's tools: name, description, and parameters as JSON Schema; sorted by name."""
        return [tool.listing() for _, tool in sorted(self.app.tools.items())] if self.app is not None else []

    async def call_tool(self, peer: str, name: str, args: Mapping[str, Any], *, timeout_s: float = 30.0) -> Any:
        """Call a peer's `@app.tool` (or one of this node's own), by the peer's name or id.

        Raises UnknownMethod, InvalidInput naming the argument, MeshTimeout, Unreachable, or RemoteError.
        """
        from meshnode.tool_calls import call_tool

        return await call_tool(self.mesh, peer, name, args, timeout_s=timeout_s)

    async def evaluate(
        self,
        program: str,
        examples: Iterable[Any] | AsyncIterator[Any] | str | Path,
        *,
        metric: str | Callable[..., Any] = "exact",
        distributed: bool | Literal["auto"] = "auto",
        on_progress: Callable[[Progress], None] | None = None,
        **options: Any,
    ) -> EvaluationResult:
        """Run every example through a program, on the mesh or here, and score the predictions.

        See `meshnode.evaluation.coordinator.evaluate` for the options, the result and the errors.
        """
        from meshnode.evaluation.coordinator import evaluate

        if self._left.is_set():
            raise Closed("this node is leaving; ask another")
        with self.under_way.watch(program, on_progress) as note, within(self.spans, f"evaluate {program}"):
            return await evaluate(
                self.mesh,
                program,
                examples,
                metric=metric,
                distributed=distributed,
                on_progress=note,
                **{"task_timeout_s": self.config.task_timeout_s, **options},
            )

    async def optimize(
        self,
        program: str,
        examples: Iterable[Any] | AsyncIterator[Any] | str | Path,
        *,
        variables: Mapping[str, Any] | Iterable[str] = (),
        **options: Any,
    ) -> OptimisationResult:
        """Look for the state with which a program scores best: instructions, demos, variables.

        variables: names of shared variables to vary within their bounds or choices, or a mapping of name to a list of
        values (None: within their own). See `meshnode.optimisation.optimizer.optimize` for the options, the result and
        the errors.
        """
        from meshnode.optimisation.optimizer import optimize
        from meshnode.optimisation.space import domains

        if self._left.is_set():
            raise Closed("this node is leaving; ask another")
        declared = [{"type": one.kind, **asdict(one)} for one in self.variables.declared.values()]
        if wanted := variables if isinstance(variables, Mapping) else dict.fromkeys(variables):
            await self.mesh.state.synced()
        given = domains(wanted, [*declared, *self.variables.describe()])
        options = {"task_timeout_s": self.config.task_timeout_s, **options}
        with within(self.spans, f"optimize {program}"):
            return await optimize(self.mesh, program, examples, variables=given, **options)

    async def run_pipeline(self, pipeline: Pipeline, inputs: Mapping[str, Any], **options: Any) -> PipelineResult:
        """Run a graph of steps over the mesh, each step a span; see `meshnode.pipelines`."""
        return await pipeline.run(self.mesh, inputs, **{"span": lambda name, _: within(self.spans, name), **options})

    def _secured(self) -> Secured:
        secured = self._running().secured
        if secured is None:
            raise ConfigError("this mesh has no key; make one with `meshnode keygen` and start its nodes with it")
        return secured

    def _where(self, operation: str | None) -> dict[str, Any]:
        """What each log record tells of this node."""
        where: dict[str, Any] = {"node": self.name}
        if self._parts is not None and (term := self._parts.replication.status().term):
            where["term"] = term
        if operation is not None and (channel := self.dispatch.channel_of(operation)) is not None:
            where["channel"] = channel
        return where

    def _running(self) -> Parts:
        if self._parts is None:
            raise MeshError("the node is not started; use `async with Node(...)`")
        return self._parts

    async def _stop(self) -> None:
        try:
            await self.leave()
        finally:
            if self._stack is not None:
                await self._stack.aclose()
