"""Pipelines: programs and functions as steps of a graph; what does not depend on each other runs side by side.

    pipeline = Pipeline("answer")
    pipeline.step("find", "retrieve")                                   # a program of the mesh, by name
    pipeline.step("facts", "look_up")                                   # runs while "find" does
    pipeline.step("draft", "write", after=["find", "facts"])
    pipeline.step("trim", lambda inputs: {"answer": inputs["answer"][:80]}, after=["draft"])     # a function, here

    result = await pipeline.run(node.mesh, {"question": "…"})
    result.output["answer"], result.steps["draft"].seconds

A step is given the pipeline's own inputs and, over them, the outputs of the steps it comes after, in their order; or
what its `inputs` makes of all results so far. A step that fails ends the pipeline: what runs is cancelled, what would
come after never starts, and the error tells what was done.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from typing import Any, TypeAlias

from meshnode.errors import AppError, InvalidInput, MeshError
from meshnode.evaluation.fleet import Distributed
from meshnode.evaluation.single import run_program
from meshnode.mesh import Mesh

Function: TypeAlias = Callable[[Mapping[str, Any]], Any]  # plain (called in a thread) or async
#: (name, attributes) -> a context that lasts as long as what it describes
Span: TypeAlias = Callable[[str, Mapping[str, str]], AbstractContextManager[Any]]


class StepFailed(MeshError):
    """A step raised; the cause is what it raised, and `result` holds the steps that were done."""

    code = "step_failed"

    def __init__(self, message: str, result: PipelineResult) -> None:
        super().__init__(message)
        self.result = result


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step. run: a program's name, or a function. inputs: from the results so far, by step's name, to its inputs;
    under "" are the pipeline's own."""

    name: str
    run: str | Function
    after: tuple[str, ...] = ()
    inputs: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None
    state: Mapping[str, Any] | None = None
    timeout_s: float = 120.0


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What a step gave. Times are seconds; `started_s` counts from the pipeline's start."""

    output: Any
    started_s: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class PipelineResult:
    """output: those of the steps nothing comes after, merged in the order they were declared."""

    output: dict[str, Any]
    steps: dict[str, StepResult] = field(default_factory=dict)
    seconds: float = 0.0


class Pipeline:
    """A graph of steps. Steps may be declared in any order; `check` and `run` refuse a graph that can't be run."""

    def __init__(self, name: str, steps: Iterable[Step] = ()) -> None:
        self.name = name
        self.steps: dict[str, Step] = {}
        for step in steps:
            self.add(step)

    def step(self, name: str, run: str | Function, *, after: Iterable[str] = (), **options: Any) -> Pipeline:
        """Declare a step; `options` are `Step`'s. Returns the pipeline."""
        if isinstance(after, str):
            after = (after,)
        return self.add(Step(name=name, run=run, after=tuple(after), **options))

    def add(self, step: Step) -> Pipeline:
        """Declare a step. Raises AppError for a name taken twice, or what can't be run."""
        if not step.name or step.name in self.steps:
            raise AppError(f"pipeline {self.name!r}: there is a step {step.name!r} already; name each its own")
        if not isinstance(step.run, str) and not callable(step.run):
            raise AppError(
                f"step {step.name!r}: run a program by its name or a function, not a {type(step.run).__name__}"
            )
        self.steps[step.name] = step
        return self

    def check(self) -> list[str]:
        """The steps in an order they can run in. Raises InvalidInput naming the cycle, or the step that is missing."""
        if not self.steps:
            raise InvalidInput(f"pipeline {self.name!r} has no steps")
        return list(self._sorter().static_order())

    async def run(
        self,
        mesh: Mesh,
        inputs: Mapping[str, Any],
        *,
        distributed: Distributed = "auto",
        on_step: Callable[[str, StepResult], None] | None = None,
        span: Span | None = None,
    ) -> PipelineResult:
        """Run all steps, each as soon as those before it are done.

        `on_step` is told of each step that is done. `span` is entered around the pipeline, and around each step with
        the pipeline's and the step's name. Raises StepFailed, and InvalidInput for a graph that can't be run.
        """
        self.check()
        run = _Run(self, mesh, inputs, distributed, on_step, span or _no_span)
        with run.span(f"pipeline {self.name}", {"pipeline": self.name}):
            return await run.all(self._sorter())

    def _sorter(self) -> TopologicalSorter[str]:
        for step in self.steps.values():
            for before in step.after:
                if before not in self.steps:
                    known = ", ".join(self.steps)
                    raise InvalidInput(
                        f"step {step.name!r} comes after {before!r}, which is no step; there is: {known}"
                    )
        sorter = TopologicalSorter({step.name: step.after for step in self.steps.values()})
        try:
            sorter.prepare()
        except CycleError as error:
            cycle = " -> ".join(error.args[1])
            raise InvalidInput(f"pipeline {self.name!r} goes in a circle: {cycle}; leave out one `after`") from None
        return TopologicalSorter({step.name: step.after for step in self.steps.values()})


class _Run:
    """One run of a pipeline."""

    def __init__(
        self,
        pipeline: Pipeline,
        mesh: Mesh,
        inputs: Mapping[str, Any],
        distributed: Distributed,
        on_step: Callable[[str, StepResult], None] | None,
        span: Span,
    ) -> None:
        self._pipeline = pipeline
        self._mesh = mesh
        self._inputs = inputs
        self._distributed = distributed
        self._on_step = on_step
        self.span = span
        self._started = time.perf_counter()
        self._done: dict[str, StepResult] = {}

    async def all(self, sorter: TopologicalSorter[str]) -> PipelineResult:
        """Keep running whatever is ready, until nothing is left."""
        running: dict[asyncio.Task[StepResult], str] = {}
        sorter.prepare()
        try:
            while sorter.is_active():
                for name in sorter.get_ready():
                    running[asyncio.create_task(self._step(self._pipeline.steps[name]), name=f"step {name}")] = name
                finished, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in finished:
                    name = running.pop(task)
                    if (error := task.exception()) is not None:
                        raise self._failed(name, error) from error
                    self._done[name] = task.result()
                    if self._on_step is not None:
                        self._on_step(name, task.result())
                    sorter.done(name)
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
        return self._result()

    async def _step(self, step: Step) -> StepResult:
        started = time.perf_counter()
        with self.span(f"step {step.name}", {"pipeline": self._pipeline.name, "step": step.name}):
            inputs = self._inputs_of(step)
            if isinstance(step.run, str):
                output = await run_program(
                    self._mesh,
                    step.run,
                    inputs,
                    state=step.state,
                    distributed=self._distributed,
                    timeout_s=step.timeout_s,
                )
            else:
                async with asyncio.timeout(step.timeout_s):
                    output = await _call(step.run, inputs)
        return StepResult(output=output, started_s=started - self._started, seconds=time.perf_counter() - started)

    def _inputs_of(self, step: Step) -> Mapping[str, Any]:
        if step.inputs is not None:
            made = step.inputs({"": self._inputs, **{name: done.output for name, done in self._done.items()}})
        else:
            made = dict(self._inputs)
            for before in step.after:
                made |= self._mapping(before)
        if not isinstance(made, Mapping):
            raise InvalidInput(f"its inputs are a {type(made).__name__}, not a mapping by name")
        return made

    def _mapping(self, name: str) -> Mapping[str, Any]:
        output = self._done[name].output
        if not isinstance(output, Mapping):
            raise InvalidInput(f"step {name!r} gave a {type(output).__name__}; give a dict, or say `inputs`")
        return output

    def _result(self) -> PipelineResult:
        needed = {before for step in self._pipeline.steps.values() for before in step.after}
        output: dict[str, Any] = {}
        for name in self._pipeline.steps:
            if name in self._done and name not in needed:
                given = self._done[name].output
                output |= given if isinstance(given, Mapping) else {name: given}
        steps = {name: self._done[name] for name in self._pipeline.steps if name in self._done}
        return PipelineResult(output=output, steps=steps, seconds=time.perf_counter() - self._started)

    def _failed(self, name: str, error: BaseException) -> StepFailed:
        kind = getattr(error, "code", type(error).__name__)
        return StepFailed(f"step {name!r} of pipeline {self._pipeline.name!r}: {kind}: {error}", self._result())


async def _call(function: Function, inputs: Mapping[str, Any]) -> Any:
    if inspect.iscoroutinefunction(function):
        return await function(inputs)
    value = await asyncio.to_thread(function, inputs)
    return await value if inspect.isawaitable(value) else value


def _no_span(_name: str, _attributes: Mapping[str, str]) -> AbstractContextManager[None]:
    return nullcontext()
