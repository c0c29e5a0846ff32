"""Performs a strategy over a mesh: runs what it proposes, tells it the scores, and keeps the best state.

strategy -> candidates -> Evaluation of each, `parallel` at a time, through one Pace -> trials -> strategy
                                      |-> history: rows, scores, checkpoints
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from meshnode.errors import AppError, InvalidInput
from meshnode.evaluation.coordinator import Evaluation, Settings
from meshnode.evaluation.dataset import Examples, as_mapping, batches
from meshnode.evaluation.fleet import Distributed
from meshnode.evaluation.metrics import Metric
from meshnode.evaluation.plan import Limits
from meshnode.evaluation.results import EvaluationResult, plain
from meshnode.mesh import Mesh
from meshnode.optimisation import registry
from meshnode.optimisation.history import History, begin, resume
from meshnode.optimisation.pace import Pace
from meshnode.optimisation.results import OptimisationProgress, OptimisationResult
from meshnode.optimisation.space import Candidate, Domain, Space, State, Trial, best_of, digest
from meshnode.optimisation.strategies import Strategy
from meshnode.storage import default_url, open_runs
from meshnode.storage.runs import Runs
from meshnode.values import pack


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How to optimise.

    budget: how many candidates to try, the base among them. parallel: how many of them side by side. rate: program
    runs a second over all of them, retries included; None: as fast as the mesh takes them. threshold: what a run must
    score, 0 to 1, for a teacher's prediction to become a demo. seed: of all choices. options: the strategy's own.
    """

    strategy: str = "random"
    metric: str | Metric = "exact"
    budget: int = 20
    parallel: int = 4
    rate: float | None = None
    threshold: float = 1.0
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
    distributed: Distributed = "auto"
    tags: Mapping[str, str] = field(default_factory=dict)
    task_timeout_s: float = 120.0
    checkpoint_every: int = 5


async def optimize(
    mesh: Mesh,
    program: str,
    examples: Examples,
    *,
    train: Examples | None = None,
    max_demos: int = 8,
    instructions: Sequence[str] = (),
    variables: Mapping[str, Domain] | None = None,
    base: State | None = None,
    on_progress: Callable[[OptimisationProgress], None] | None = None,
    on_run: Callable[[str], None] | None = None,
    run: str | None = None,
    runs: Runs | str | None = None,
    **settings: Any,
) -> OptimisationResult:
    """Look for the state with which a program scores best, and return it. `settings` are those of `Plan`.

    examples: what candidates are scored on. train: solved examples to take demos from; without it half of `examples`,
    drawn by the seed, and the other half is scored: what is shown is never asked. max_demos: shown at once, 0 for none.
    instructions: texts to choose among. variables: name to `OneOf` or `Range`. base: the state to start from.
    `runs`: a store of runs, or its URL, in which this one is kept; `run`: the id of one to go on with there, with all
    else as it was; what finished is not run again. Cancelling it keeps what is done. `on_run` is called with the id
    before anything is run, if it is kept.

    Raises InvalidInput (nothing varies, bad data, no such strategy), and what `evaluate` raises.
    """
    try:
        plan = Plan(**settings)
    except TypeError as error:
        raise InvalidInput(f"optimize: {error}") from None
    if plan.budget < 1 or plan.parallel < 1 or plan.checkpoint_every < 1:
        raise InvalidInput("budget, parallel and checkpoint_every must be 1 or more")
    scored, taught = await _split(examples, train, plan.seed, shown=max_demos > 0)
    space = Space(
        base=dict(base or {}),
        demos=taught,
        max_demos=max_demos,
        instructions=tuple(instructions),
        variables=dict(variables or {}),
    )
    if not space.axes:
        raise InvalidInput("nothing varies: allow demos (max_demos), or give instructions or variables to try")
    strategy = registry.make(plan.strategy, space, random.Random(plan.seed), plan.options)
    told = {**_told(plan, space), "examples": _digest(scored), "train": _digest(taught)}
    async with _open_history(run, runs, program, told, every=plan.checkpoint_every) as history:
        if on_run is not None and history is not None:
            on_run(history.run_id)
        return await Optimizer(mesh, program, scored, space, plan, history, on_progress=on_progress).run(strategy)


class Optimizer:
    """One optimisation; `run` it once. `done` are the trials so far, in the order they ended."""

    def __init__(
        self,
        mesh: Mesh,
        program: str,
        examples: Sequence[Mapping[str, Any]],
        space: Space,
        plan: Plan,
        history: History | None = None,
        *,
        on_progress: Callable[[OptimisationProgress], None] | None = None,
    ) -> None:
        self._mesh = mesh
        self._program = program
        self._examples = examples
        self._space = space
        self._plan = plan
        self._history = history
        self._on_progress = on_progress
        self._pace = Pace(plan.rate) if plan.rate is not None else None
        self._seats = asyncio.Semaphore(plan.parallel)
        self._scores: dict[str, Trial] = {}  # by the state's digest
        self._evaluated = 0
        self._started = asyncio.get_running_loop().time()
        self.done: list[Trial] = []

    async def run(self, strategy: Strategy) -> OptimisationResult:
        """Try candidates until the budget is used up or the strategy has no more; see `optimize`."""
        state: Any = "failed"
        try:
            candidates: Sequence[Candidate] = [Candidate(dict(self._space.base), note="base")]
            while candidates:
                strategy.learn(await self._try_all(candidates))
                candidates = list(strategy.propose())[: self._plan.budget - len(self.done)]
            state = "done"
        except asyncio.CancelledError:
            state = "stopped"
            raise
        finally:
            if self._history is not None:
                # Shielded: a second Ctrl-C must not lose what is done.
                await asyncio.shield(self._history.end(state, self.done if self._has_base() else []))
        return self.result()

    def result(self) -> OptimisationResult:
        """What was found so far; there is nothing before the base is done."""
        trials = sorted(self.done, key=lambda trial: trial.number)
        best = best_of(trials)
        return OptimisationResult(
            state=best.candidate.state,
            score=best.score,
            base_score=trials[0].score,
            best=best.number,
            trials=trials,
            strategy=self._plan.strategy,
            train=len(self._space.demos),
            examples=len(self._examples),
            evaluated=self._evaluated,
            seconds=asyncio.get_running_loop().time() - self._started,
            run=None if self._history is None else self._history.run_id,
        )

    async def _try_all(self, candidates: Sequence[Candidate]) -> list[Trial]:
        first = len(self.done)
        async with _group() as group:
            tasks = [
                group.create_task(self._try(number, candidate)) for number, candidate in enumerate(candidates, first)
            ]
        return [task.result() for task in tasks]

    async def _try(self, number: int, candidate: Candidate) -> Trial:
        key = digest(candidate.state)
        trial = self._known(number, key)
        if trial is None:
            async with self._seats:
                same = None if candidate.collect else self._scores.get(key)
                trial = await self._evaluate(number, candidate) if same is None else _repeat(number, candidate, same)
        if trial.is_scored:
            self._scores.setdefault(key, trial)
        self.done.append(trial)
        if self._history is not None:
            await self._history.add(trial, self.done)
        self._report()
        return trial

    def _known(self, number: int, key: str) -> Trial | None:
        known = None if self._history is None else self._history.known.get(number)
        if known is not None and digest(known.candidate.state) != key:
            raise InvalidInput(f"trial {number} of this run was of another state: its strategy has changed; start anew")
        return known

    async def _evaluate(self, number: int, candidate: Candidate) -> Trial:
        plan = self._plan
        over = [self._space.demos[place] for place in candidate.collect] if candidate.collect else self._examples
        settings = Settings(
            metric=plan.metric,
            distributed=plan.distributed,
            state=msgspec.json.encode(candidate.state) if candidate.state else None,
            tags=plan.tags,
            task_timeout_s=plan.task_timeout_s,
            keep_results=bool(candidate.collect),
            run_id="" if self._history is None else f"{self._history.run_id}.{number}",
            # A second send of what is merely late would be a run that the rate does not need.
            limits=Limits() if self._pace is None else replace(Limits(), hedge_factor=0.0),
            seed=plan.seed,
            pace=self._pace,
        )
        journal = None if self._history is None else self._history.journal(number)
        evaluation = Evaluation(self._mesh, self._program, over, settings, run=journal)
        try:
            result = await evaluation.run()
        except AppError as error:
            if number == 0:
                raise
            # Its state can't be built into a program: no score, but no reason to give up the others either.
            return Trial(
                number=number, candidate=candidate, score=0.0, examples=len(over), failed=len(over), error=str(error)
            )
        self._evaluated += result.examples - result.resumed
        return Trial(
            number=number,
            candidate=candidate,
            score=result.score,
            examples=result.examples,
            failed=result.failed,
            demos=self._solved(over, result) if candidate.collect else [],
        )

    def _solved(self, over: Sequence[Mapping[str, Any]], result: EvaluationResult) -> list[dict[str, Any]]:
        return [
            plain({**over[row.index], **row.prediction})
            for row in result.results
            if row.error is None and row.score >= self._plan.threshold and isinstance(row.prediction, Mapping)
        ]

    def _has_base(self) -> bool:
        return any(trial.number == 0 for trial in self.done)

    def _report(self) -> None:
        if self._on_progress is not None and self._has_base():
            so_far = self.result()
            self._on_progress(
                OptimisationProgress(
                    done=len(self.done),
                    budget=self._plan.budget,
                    best=so_far.best,
                    score=so_far.score,
                    base_score=so_far.base_score,
                    evaluated=self._evaluated,
                    seconds=so_far.seconds,
                    run=so_far.run,
                )
            )


def _repeat(number: int, candidate: Candidate, same: Trial) -> Trial:
    note = f"{candidate.note}, as {same.number}".lstrip(", ")
    return msgspec.structs.replace(same, number=number, candidate=msgspec.structs.replace(candidate, note=note))


async def _split(
    examples: Examples, train: Examples | None, seed: int, *, shown: bool
) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """(what is scored, what demos come from)."""
    scored = await _read(examples)
    if not scored:
        raise InvalidInput("the data set is empty; give at least one example")
    if train is not None:
        return scored, await _read(train)
    if not shown:
        return scored, []
    if len(scored) < 2:
        raise InvalidInput("one example can't be both shown and scored; give more, or a train set of its own")
    order = random.Random(seed).sample(range(len(scored)), len(scored))
    taught = set(order[: len(scored) // 2])
    return (
        [example for place, example in enumerate(scored) if place not in taught],
        [example for place, example in enumerate(scored) if place in taught],
    )


async def _read(examples: Examples) -> list[Mapping[str, Any]]:
    found: list[Any] = []
    async for batch in batches(str(examples) if isinstance(examples, Path) else examples):
        found += batch
    return [as_mapping(example, index) for index, example in enumerate(found)]


def _told(plan: Plan, space: Space) -> dict[str, Any]:
    """What a run of it must agree with to be gone on with, in plain values."""
    metric = plan.metric
    return {
        "strategy": plan.strategy,
        "options": dict(plan.options),
        "metric": metric if isinstance(metric, str) else getattr(metric, "__qualname__", "metric"),
        "budget": plan.budget,
        "seed": plan.seed,
        "threshold": plan.threshold,
        "max_demos": space.max_demos,
        "instructions": list(space.instructions),
        "variables": {name: msgspec.to_builtins(domain) for name, domain in space.variables.items()},
        "base": digest(space.base),
    }


def _digest(examples: Sequence[Mapping[str, Any]]) -> str:
    running = hashlib.sha256()
    for index, example in enumerate(examples):
        running.update(pack(dict(example), name=f"example {index}"))
    return f"{len(examples)} ({running.hexdigest()[:16]})"


@asynccontextmanager
async def _open_history(
    run: str | None, runs: Runs | str | None, program: str, told: Mapping[str, Any], *, every: int
) -> AsyncIterator[History | None]:
    """The history that was asked for, if any; a store opened here is closed here."""
    if run is None and runs is None:
        yield None
        return
    store = await asyncio.to_thread(open_runs, runs or default_url()) if isinstance(runs, str | None) else runs
    try:
        if run is None:
            yield await asyncio.to_thread(partial(begin, store, program, told, every=every))
        else:
            yield await asyncio.to_thread(partial(resume, store, run, program, told, every=every))
    finally:
        if store is not runs:
            await asyncio.to_thread(store.close)


@asynccontextmanager
async def _group() -> AsyncIterator[asyncio.TaskGroup]:
    """A task group whose one failure is raised as itself, as callers of `evaluate` know it."""
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
