"""Keeps finished rows of an evaluation in a store of runs, and finds them again when it is resumed.

Rows are committed in groups: while one commit is under way in the thread, those that finish meanwhile wait for the
next, so the loop never waits for a disk and a slow disk only makes the groups larger. A row is counted, reported and
given to `on_row` after its commit: what anyone was told of is never evaluated again, not after SIGKILL either.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Protocol, TypeVar

import msgspec

from meshnode.errors import InvalidInput
from meshnode.evaluation.messages import TaskError
from meshnode.evaluation.metrics import Metric
from meshnode.evaluation.results import EvaluationResult, Row
from meshnode.storage import default_url, open_runs
from meshnode.storage.runs import Finished, Run, Runs
from meshnode.values import pack, unpack

T = TypeVar("T")

PAGE = 500
SPAN = 1 << 32  # rows of one evaluation, at most


class Journal(Protocol):
    """Where finished rows are kept, so that a later run need not repeat them."""

    @property
    def run_id(self) -> str:
        """The run's id, to resume it by."""
        ...

    def rows(self) -> AsyncIterator[tuple[Row, bytes]]:
        """What an earlier run finished, ascending by index, each with its example's digest."""
        ...

    def add(self, row: Row, digest: bytes, written: Callable[[Exception | None], None]) -> None:
        """Keep a row; `written` is called on the loop once it is durable, or with what went wrong."""
        ...

    async def close(self, result: EvaluationResult | None) -> None:
        """Return once all that was added is durable; `result`: None if the evaluation failed."""
        ...


class _Outcome(msgspec.Struct, array_like=True, frozen=True):
    prediction: bytes
    node: str
    error: TaskError | None = None


class RunJournal:
    """The `Journal` of one run; made by `start_run` or `resume_run`. Use it for one evaluation.

    first: where this evaluation's rows begin among the run's, a multiple of SPAN: a run of many evaluations gives each
    its own. end: told the result in place of the run.
    """

    def __init__(
        self, runs: Runs, run: Run, *, first: int = 0, end: Callable[[EvaluationResult | None], None] | None = None
    ) -> None:
        self.run = run
        self.run_id = run.run_id
        self._runs = runs
        self._first = first
        self._end = end or self._end_run
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="journal")
        self._waiting: list[tuple[Finished, Callable[[Exception | None], None]]] = []
        self._writer: asyncio.Task[None] | None = None

    async def rows(self) -> AsyncIterator[tuple[Row, bytes]]:
        """What is finished, ascending by index, each with its example's digest."""
        after = self._first - 1
        load = partial(self._runs.load_finished, self.run_id, limit=PAGE)
        while page := await self._in_thread(partial(load, after=after)):
            for finished in page:
                if finished.index >= self._first + SPAN:
                    return
                yield _to_row(finished, self._first), finished.digest
            after = page[-1].index

    def add(self, row: Row, digest: bytes, written: Callable[[Exception | None], None]) -> None:
        """Keep a row; `written` is called on the loop once it is durable."""
        self._waiting.append((_to_finished(row, digest, self._first), written))
        if self._writer is None:
            self._writer = asyncio.get_running_loop().create_task(self._write())

    async def close(self, result: EvaluationResult | None) -> None:
        """Finish writing, and say how the run ended: None means that it failed."""
        if self._writer is not None:
            await self._writer
        await self._in_thread(partial(self._end, result))
        self._thread.shutdown(wait=False)

    async def _write(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting, []
                error: Exception | None = None
                try:
                    rows = [row for row, _ in batch]
                    await self._in_thread(partial(self._runs.add_finished, self.run_id, rows))
                except Exception as raised:  # told to whoever waits for these rows
                    error = raised
                for _, written in batch:
                    written(error)
        finally:
            self._writer = None

    def _end_run(self, result: EvaluationResult | None) -> None:
        if result is None:
            self._runs.end_run(self.run_id, "failed")
            return
        summary = {key: value for key, value in result.to_json().items() if key != "results"}
        self._runs.end_run(self.run_id, "done" if result.complete else "stopped", summary)
        if result.complete:
            self._runs.append_metric(self.run_id, "score", result.score, step=result.examples)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


def start_run(
    runs: Runs, program: str, *, metric: str | Metric, state: bytes | None = None, run_id: str = ""
) -> RunJournal:
    """A new run to journal an evaluation in. Blocks; raises StorageError, or InvalidInput if the id is taken."""
    return RunJournal(runs, runs.create_run(program, settings=_settings(metric, state), run_id=run_id))


def resume_run(
    runs: Runs, run_id: str, program: str, *, metric: str | Metric, state: bytes | None = None
) -> RunJournal:
    """Go on with a run: what it has finished is not evaluated again. Blocks.

    Raises StorageError, or InvalidInput if there is no such run or it evaluated something else.
    """
    run = runs.load_run(run_id)
    now: Mapping[str, Any] = {"program": program, **_settings(metric, state)}
    for name, before in {"program": run.program, **run.settings}.items():
        if name in now and now[name] != before:
            raise InvalidInput(
                f"run {run_id} has {name} {before!r}, not {now[name]!r}; resume it as it was, or start anew"
            )
    runs.end_run(run_id, "running")
    return RunJournal(runs, run)


@asynccontextmanager
async def open_journal(
    run: Journal | str | None, runs: Runs | str | None, program: str, *, metric: str | Metric, state: bytes | None
) -> AsyncIterator[Journal | None]:
    """The journal that `evaluate` was asked for by `run` and `runs`, if any; a store opened here is closed here."""
    if not isinstance(run, str) and (run is not None or runs is None):
        yield run
        return
    store = await asyncio.to_thread(open_runs, runs or default_url()) if isinstance(runs, str | None) else runs
    try:
        if run is None:
            made = await asyncio.to_thread(partial(start_run, store, program, metric=metric, state=state))
        else:
            made = await asyncio.to_thread(partial(resume_run, store, run, program, metric=metric, state=state))
        yield made
    finally:
        if store is not runs:
            await asyncio.to_thread(store.close)


def _settings(metric: str | Metric, state: bytes | None) -> dict[str, Any]:
    name = metric if isinstance(metric, str) else f"{metric.__module__}.{getattr(metric, '__qualname__', 'metric')}"
    return {"metric": name, "state": None if state is None else hashlib.sha256(state).hexdigest()[:16]}


def _to_finished(row: Row, digest: bytes, first: int) -> Finished:
    outcome = _Outcome(pack(row.prediction), row.node, row.error)
    return Finished(first + row.index, digest, row.score, row.error is not None, msgspec.msgpack.encode(outcome))


def _to_row(finished: Finished, first: int) -> Row:
    outcome = msgspec.msgpack.decode(finished.outcome, type=_Outcome)
    return Row(finished.index - first, finished.score, unpack(outcome.prediction), outcome.error, outcome.node)
