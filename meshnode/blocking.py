"""A mesh for blocking code: notebooks, scripts, DSPy. `connect` runs a client node on a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import Future
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from meshnode.blocking_state import BlockingSession, BlockingVariables
from meshnode.config import Config
from meshnode.errors import AppError, Closed
from meshnode.mesh import Member

if TYPE_CHECKING:
    from meshnode.app import App
    from meshnode.evaluation.results import EvaluationResult, Progress
    from meshnode.integrations.dspy.consensus import DemoConsensus
    from meshnode.integrations.dspy.link import Link
    from meshnode.integrations.dspy.optimizers import MeshBootstrapFewShot, MeshEvaluate, MeshRandomSearch
    from meshnode.integrations.dspy.session import DspySession
    from meshnode.integrations.dspy.sharing import SharedCache
    from meshnode.node import Node
    from meshnode.optimisation.results import OptimisationResult
    from meshnode.pipelines import Pipeline, PipelineResult

T = TypeVar("T")


class BlockingMesh:
    """A client node driven from blocking code; safe to use from many threads. `with` closes it.

    Each method waits for the node's loop, which runs on a thread of its own, and raises what the node raises.
    Ctrl-C while waiting cancels the work at the node.
    """

    def __init__(self, config: Config, app: App | None = None) -> None:
        self._closed = False
        self._link: Link | None = None
        self._shared_cache: SharedCache | None = None
        self._loop = _new_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="meshnode", daemon=True)
        self._thread.start()
        try:
            self._node = self._run(_start(config, app))
        except BaseException:
            self._stop_loop()
            raise

    @property
    def me(self) -> Member:
        """This client as others see it."""
        return self._node.mesh.me

    def members(self) -> list[Member]:
        """All known members, sorted by name."""
        return self._run(self._now(self._node.members))

    @property
    def variables(self) -> BlockingVariables:
        """The mesh's shared variables; see `Node.variables`."""
        return BlockingVariables(self._run, self._node.variables)

    @overload
    def session(self, *, run: str, runs: str | None = None) -> DspySession: ...

    @overload
    def session(self, *, ttl_s: float = 30.0, metadata: Mapping[str, str] | None = None) -> BlockingSession: ...

    def session(
        self,
        *,
        run: str | None = None,
        runs: str | None = None,
        ttl_s: float = 30.0,
        metadata: Mapping[str, str] | None = None,
    ) -> DspySession | BlockingSession:
        """A session to be entered by `with`; see `Node.session`.

        With `run` it keeps every forward of remote DSPy programs, so that the same run again asks none twice; `runs`:
        where, as `storage.open_runs` takes it, the user's own store if it is not said.
        """
        if run is not None:
            kept: DspySession = self._dspy("session").DspySession(self._linked(), run, runs)
            return kept
        return BlockingSession(self._run, self._node.session(ttl_s=ttl_s, metadata=metadata))

    def slots(self) -> int:
        """How many tasks the living nodes run at once, at least 1: a good number of threads for `dspy.Evaluate`."""
        return max(1, sum(member.slots for member in self.members() if member.state == "alive"))

    def call(self, peer: str, method: str, args: Any = None, *, timeout_s: float | None = None) -> Any:
        """Ask a user's handler on a peer, by id or name; see `Node.call`."""
        return self._run(self._node.call(peer, method, args, timeout_s=timeout_s))

    def call_tool(self, peer: str, name: str, args: Mapping[str, Any], *, timeout_s: float = 30.0) -> Any:
        """Call a peer's tool; see `Node.call_tool`."""
        return self._run(self._node.call_tool(peer, name, args, timeout_s=timeout_s))

    def evaluate(
        self,
        program: str,
        examples: Iterable[Any] | AsyncIterator[Any] | str | Path,
        *,
        metric: str | Callable[..., Any] = "exact",
        distributed: bool | Literal["auto"] = "auto",
        on_progress: Callable[[Progress], None] | None = None,
        **options: Any,
    ) -> EvaluationResult:
        """Evaluate a program over the mesh and wait for the result; see `Node.evaluate`.

        `on_progress` is called on the node's thread.
        """
        return self._run(
            self._node.evaluate(
                program, examples, metric=metric, distributed=distributed, on_progress=on_progress, **options
            )
        )

    # DSPy; needs `pip install meshnode[dspy]`, and raises AppError, saying so, without.

    def remote(self, name: str, program: Any = None) -> Any:
        """The app's program `name`, a `dspy.Module`, with its forward run by the mesh; here while there are no peers.

        program: one of the same shape to begin with, compiled before, say. Raises AppError (no such program).
        """
        return self._dspy("proxy").remote(self._linked(), name, program)

    def local(self, program: Any) -> Any:
        """A copy of a remote program that runs in this process, to be saved or used without a mesh."""
        return self._dspy("proxy").local(program)

    def Evaluate(self, **options: Any) -> MeshEvaluate:  # noqa: N802 - it stands for DSPy's class of that name
        """A `dspy.Evaluate` with as many threads as the mesh has slots, that keeps what is done on Ctrl-C."""
        made: MeshEvaluate = self._dspy("optimizers").MeshEvaluate(mesh_slots=self.slots, **options)
        return made

    def BootstrapFewShot(self, **options: Any) -> MeshBootstrapFewShot:  # noqa: N802 - as above
        """A `dspy.BootstrapFewShot` that tries many examples at once and compiles the same program."""
        made: MeshBootstrapFewShot = self._dspy("optimizers").MeshBootstrapFewShot(mesh_slots=self.slots, **options)
        return made

    def RandomSearch(self, **options: Any) -> MeshRandomSearch:  # noqa: N802 - as above
        """A `dspy.BootstrapFewShotWithRandomSearch` that tries all seeds at once and finds the same program."""
        made: MeshRandomSearch = self._dspy("optimizers").MeshRandomSearch(mesh_slots=self.slots, **options)
        return made

    def DemoConsensus(self, **options: Any) -> DemoConsensus:  # noqa: N802 - an optimizer as those above
        """An optimizer whose demos the whole mesh agreed on: `mesh.DemoConsensus(metric="exact").compile(…)`."""
        node = self._node
        make = self._dspy("consensus").DemoConsensus
        made: DemoConsensus = make(node.mesh, node.demos, node.app, self._run, **options)
        return made

    def share_cache(self) -> SharedCache:
        """Put the mesh behind DSPy's cache in this process: what any node has paid a model for is found, and shared.

        Nodes take part that were started with `--lm-cache SIZE`. It lasts until this mesh is closed, or for a `with`.
        """
        if self._shared_cache is not None:
            self._shared_cache.close()
        config = self._node.config
        self._shared_cache = self._dspy("sharing").SharedCache(
            self._node.mesh, self._submit, loop_thread=self._thread, timeout_s=config.lm_cache_timeout_s
        )
        return self._shared_cache

    def dspy_statistics(self) -> dict[str, int]:
        """Forwards of remote programs by where they ran ("mesh", "here"), sends, retries and hedges.

        With a shared cache also what it found for this process: "cache_hits_local", "cache_hits_mesh", and so on.
        """
        shared = {} if self._shared_cache is None else self._shared_cache.statistics()
        return {**self._linked().statistics(), **{f"cache_{name}": number for name, number in shared.items()}}

    def _linked(self) -> Link:
        if self._link is None:
            self._link = self._dspy("link").Link(
                self._node.mesh, self._node.app, self._submit, timeout_s=self._node.config.task_timeout_s
            )
        return self._link

    @staticmethod
    def _dspy(part: str) -> Any:
        try:
            return import_module(f"meshnode.integrations.dspy.{part}")
        except ModuleNotFoundError as error:
            if error.name != "dspy":
                raise
            raise AppError("DSPy is not installed here; pip install 'meshnode[dspy]'") from None

    def optimize(
        self, program: str, examples: Iterable[Any] | AsyncIterator[Any] | str | Path, **options: Any
    ) -> OptimisationResult:
        """Look for the best state of a program and wait for the result; see `Node.optimize`."""
        return self._run(self._node.optimize(program, examples, **options))

    def run_pipeline(self, pipeline: Pipeline, inputs: Mapping[str, Any], **options: Any) -> PipelineResult:
        """Run a graph of steps over the mesh and wait for the result; see `meshnode.pipelines`."""
        return self._run(self._node.run_pipeline(pipeline, inputs, **options))

    def close(self) -> None:
        """Leave the mesh and stop the thread; safe to call twice."""
        if self._closed:
            return
        if self._shared_cache is not None:
            self._shared_cache.close()
        try:
            self._run(self._node.stop())
        finally:
            self._closed = True
            self._stop_loop()

    def __enter__(self) -> BlockingMesh:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        if self._closed:
            work.close()
            raise Closed("this mesh is closed; connect again")
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        future = self._submit(work)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    @staticmethod
    async def _now(read: Callable[[], T]) -> T:
        return read()

    def _stop_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def connect(*seeds: str, app: App | None = None, **settings: Any) -> BlockingMesh:
    """Join a mesh as a client, by any nodes' gossip addresses, and return it for blocking use.

    `settings` are those of `Config`. Raises JoinError if no seed lets us in within `join_timeout_s`.
    """
    return BlockingMesh(Config(**{"port": 0, "role": "client", "http": False, **settings, "seeds": seeds}), app)


async def _start(config: Config, app: App | None) -> Node:
    from meshnode.node import Node

    node = Node(config, app=app)
    await node.start()
    return node


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:  # not on Windows
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


__all__: Sequence[str] = ["BlockingMesh", "connect"]
