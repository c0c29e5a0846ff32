"""Performs the plan over a mesh: reads examples, sends tasks, scores replies, and gives rows on in input order.

    reader -> plan -> Send -> Mesh.request or `local` -> reply -> Count -> scoring -> journal -> Tally -> on_row, result

Everything runs on the event loop but a caller's own metric (threads) and the journal's commits (a thread). Memory is
bounded by the window: no example is read that lies more than a window beyond the oldest one without a row.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeAlias

from meshnode.errors import InvalidInput, MeshError, MeshTimeout, Unreachable, WorkerCrashed
from meshnode.evaluation.candidates import classify
from meshnode.evaluation.dataset import Examples, as_mapping, batches, size_of
from meshnode.evaluation.effects import Cancel, Count, Effect, Fail, Send, Starved, Stuck
from meshnode.evaluation.fleet import Distributed, Fleet, patience_s
from meshnode.evaluation.journal import Journal, open_journal
from meshnode.evaluation.messages import RunTask, TaskError, TaskReply
from meshnode.evaluation.metrics import Metric
from meshnode.evaluation.plan import Limits, Plan
from meshnode.evaluation.results import EvaluationResult, Progress, Row
from meshnode.evaluation.scoring import Scorer
from meshnode.evaluation.tally import Tally
from meshnode.mesh import Mesh
from meshnode.storage.runs import Runs
from meshnode.values import pack, unpack

#: Runs a task on this process's own workers; raises what `RunTask` says.
Local: TypeAlias = Callable[[RunTask], Awaitable[TaskReply]]

READ_AHEAD = 64  # examples that wait in the plan for a node, at least
PROGRESS_EVERY_S = 0.1
WAY_S = 5.0  # to a node and back, beside the task itself


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to evaluate.

    metric: the name of one that the workers compute, or a callable `(example, prediction) -> float | bool`, computed
    here in threads. distributed: "auto" uses peers that have the program and falls back to this process, also in
    mid-run; True needs a peer; False runs here only. state: the program's state as JSON. tags: only nodes that carry
    all of them. task_timeout_s: for one example. keep_results: False leaves the result without rows, for any number of
    examples in flat memory. total: how many examples there are, if they can't be counted. local_slots: how many tasks
    this process runs at once, where its node does not say. window: how far beyond the oldest unfinished example to
    read, at least. seed: of the plan's choices. pace: awaited before each send, retries included.
    """

    metric: str | Metric = "exact"
    distributed: Distributed = "auto"
    state: bytes | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    task_timeout_s: float = 120.0
    keep_results: bool = True
    total: int | None = None
    local_slots: int = 8
    run_id: str = ""
    window: int = 1024
    limits: Limits = field(default_factory=Limits)
    seed: int = 0
    pace: Callable[[], Awaitable[None]] | None = None


async def evaluate(
    mesh: Mesh,
    program: str,
    examples: Examples,
    *,
    metric: str | Metric = "exact",
    distributed: Distributed = "auto",
    state: bytes | None = None,
    tags: Mapping[str, str] | None = None,
    task_timeout_s: float = 120.0,
    keep_results: bool = True,
    total: int | None = None,
    local: Local | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    on_row: Callable[[Row], None] | None = None,
    run: Journal | str | None = None,
    runs: Runs | str | None = None,
) -> EvaluationResult:
    """Evaluate a program over all examples and return the rows in input order. The options are those of `Settings`.

    examples: a list, any iterator or asynchronous iterator of mappings, or the path of a file of JSON lines.
    `local` runs a task on this process's own workers; without it this node is asked over the mesh. `on_row` gets each
    row in input order, `on_progress` a snapshot now and then; both are called on the loop and must not block.
    `runs`: a store of runs, or its URL (see `storage.open_runs`), in which this evaluation is kept as a new run; `run`:
    the id of one to resume there, or a journal made by hand. What a run has finished is not evaluated again.
    Cancelling cancels what is in flight; use `Evaluation` to keep what was done.

    Raises InvalidInput (a bad or an empty data set), Unreachable (no node to run it on), UnknownMethod (no such
    program or metric), AppError (the program can't be built), and what `examples`, `on_row` or the journal raise.
    """
    settings = Settings(
        metric=metric,
        distributed=distributed,
        state=state,
        tags=tags or {},
        task_timeout_s=task_timeout_s,
        keep_results=keep_results,
        total=total,
    )
    async with open_journal(run, runs, program, metric=metric, state=state) as journal:
        return await Evaluation(
            mesh, program, examples, settings, local=local, on_progress=on_progress, on_row=on_row, run=journal
        ).run()


@dataclass(slots=True)
class _Sent:
    """One call: when it was sent, on the loop's clock, and how long it may take."""

    at: float
    within_s: float


@dataclass(slots=True)
class _Taken:
    """An example without a row yet."""

    example: Any
    packed: bytes
    reply: TaskReply | None = None
    prediction: Any = None


class Evaluation:
    """One evaluation: `run` it once, `stop` it to have what is done so far, ask for its `result` at any time."""

    def __init__(
        self,
        mesh: Mesh,
        program: str,
        examples: Examples,
        settings: Settings,
        *,
        local: Local | None = None,
        on_progress: Callable[[Progress], None] | None = None,
        on_row: Callable[[Row], None] | None = None,
        run: Journal | None = None,
    ) -> None:
        self._mesh = mesh
        self._program = program
        self._examples = examples
        self._settings = settings
        self._local = local
        self._on_progress = on_progress
        self._journal = run
        self._loop = asyncio.get_running_loop()
        self._me = mesh.me.node_id
        patience_ticks = int(patience_s(settings.distributed) / settings.limits.tick_s)
        limits = replace(settings.limits, patience_ticks=patience_ticks)
        self._plan = Plan(limits, random.Random(settings.seed))
        self._fleet = Fleet(
            mesh,
            program,
            self._plan,
            self._perform,
            distributed=settings.distributed,
            tags=settings.tags,
            local_slots=settings.local_slots,
        )
        self._scorer = Scorer(None if isinstance(settings.metric, str) else settings.metric, self._finish)
        self._tally = Tally(keep=settings.keep_results, on_row=on_row, now=self._loop.time())
        self._total = settings.total if settings.total is not None else size_of(examples)
        self._taken: dict[int, _Taken] = {}
        self._calls: dict[int, asyncio.Future[TaskReply]] = {}
        self._effects: deque[Effect] = deque()
        self._performing = False
        self._room = asyncio.Event()
        self._admitted = 0
        self._read_all = False
        self._done: asyncio.Future[bool] = self._loop.create_future()  # True: complete, False: stopped

    async def run(self) -> EvaluationResult:
        """Evaluate; see `evaluate`."""
        helpers: list[asyncio.Task[None]] = []
        try:
            self._fleet.open()
            for helper in (self._read(), self._keep_time(), self._fleet.follow()):
                helpers.append(self._loop.create_task(helper))
                helpers[-1].add_done_callback(self._helper_ended)
            await self._done
        finally:
            calls = list(self._calls.values())
            self._calls.clear()
            under_way: list[asyncio.Future[Any]] = [*helpers, *calls]
            for work in under_way:
                work.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)
            self._scorer.close()
            if self._journal is not None:
                failed = self._done.done() and not self._done.cancelled() and self._done.exception() is not None
                await self._journal.close(None if failed else self.result())
        self._report()
        return self.result()

    def stop(self) -> None:
        """End early: `run` cancels what is in flight and returns what is done, marked as not complete."""
        if not self._done.done():
            self._done.set_result(False)

    def result(self) -> EvaluationResult:
        """What is done so far."""
        ended = self._done.done() and not self._done.cancelled() and self._done.exception() is None
        return self._tally.result(
            self._loop.time(),
            self._fleet.mode,
            retries=self._plan.retries,
            hedges=self._plan.hedges,
            complete=ended and self._done.result(),
            run=None if self._journal is None else self._journal.run_id,
        )

    # -- examples -----------------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        earlier = None if self._journal is None else aiter(self._journal.rows())
        finished = None if earlier is None else await anext(earlier, None)
        async for batch in batches(self._examples):
            for example in batch:
                index = self._admitted
                packed = pack(dict(as_mapping(example, index)), name=f"example {index}")
                while not self._has_room():
                    self._room.clear()
                    await self._room.wait()
                self._admitted += 1
                if earlier is not None and finished is not None and finished[0].index == index:
                    if finished[1] != _digest(packed):
                        raise InvalidInput(f"example {index} is not what this run evaluated; resume with the same data")
                    self._tally.resumed += 1
                    self._accept(finished[0])
                    finished = await anext(earlier, None)
                else:
                    self._taken[index] = _Taken(example, packed)
                    self._perform(self._plan.add(index))
        if not self._admitted:
            raise InvalidInput("the data set is empty; give at least one example")
        self._total = self._admitted
        self._read_all = True
        self._maybe_done()

    def _has_room(self) -> bool:
        window = max(self._settings.window, 4 * self._plan.slots)
        ahead = max(READ_AHEAD, 2 * self._plan.slots)
        return self._plan.waiting < ahead and self._admitted < self._tally.next_index + window

    async def _keep_time(self) -> None:
        report_at = self._loop.time()
        while True:
            await asyncio.sleep(self._settings.limits.tick_s)
            self._perform(self._plan.tick())
            if self._loop.time() >= report_at:
                report_at = self._loop.time() + PROGRESS_EVERY_S
                self._report()

    def _report(self) -> None:
        if self._on_progress is not None:
            run = None if self._journal is None else self._journal.run_id
            self._on_progress(self._tally.progress(self._loop.time(), self._total, self._plan.retries, run=run))

    # -- the plan's effects -------------------------------------------------------------------------------------------

    def _perform(self, effects: Iterable[Effect]) -> None:
        """Perform in order; what a performed effect leads to comes after all that was decided before it."""
        self._effects.extend(effects)
        if self._performing:
            return
        self._performing = True
        try:
            while self._effects and not self._done.done():
                self._perform_one(self._effects.popleft())
        finally:
            self._performing = False
        self._room.set()

    def _perform_one(self, effect: Effect) -> None:
        match effect:
            case Send():
                self._send(effect)
            case Cancel(call):
                self._calls.pop(call).cancel()
            case Count(_, index, node):
                taken = self._taken[index]
                assert taken.reply is not None, "Count follows the reply it counts"
                name = self._fleet.names[node]
                self._scorer.score(index, taken.example, taken.reply, taken.prediction, name)
            case Fail(index, node, attempts, reason):
                what = f"{reason} (tried {attempts} times)" if attempts > 1 else str(reason)
                error = TaskError(type(reason).__name__, what)
                self._finish(Row(index, 0.0, None, error, self._fleet.names[node]))
            case Starved():
                if (failed := self._fleet.starved(effect, self._tally.done, self._loop.time())) is not None:
                    self._abort(failed)
            case Stuck(index, losses, reason):
                what = f"example {index} was lost with {losses} nodes, the last time by: {reason}"
                self._abort(WorkerCrashed(f"{what}; its score can't be known, evaluate without it"))

    def _send(self, send: Send) -> None:
        settings = self._settings
        task = RunTask(
            program=self._program,
            example=self._taken[send.index].packed,
            state=settings.state,
            metric=settings.metric if isinstance(settings.metric, str) else None,
            timeout_s=settings.task_timeout_s,
            attempt=send.attempt,
            run_id=settings.run_id,
        )
        # Behind another task in a worker's queue it may wait as long again.
        sent = _Sent(self._loop.time(), 2 * settings.task_timeout_s + WAY_S)
        try:
            paced = settings.pace is not None
            reply = self._paced(send.node, task, sent) if paced else self._request(send.node, task, sent)
        except MeshError as error:
            self._perform(self._plan.failed(send.call, classify(error, silent=False), error))
            return
        call = self._calls[send.call] = asyncio.ensure_future(reply)
        call.add_done_callback(partial(self._ended, send, sent))

    def _request(self, node: str, task: RunTask, sent: _Sent) -> Awaitable[TaskReply]:
        if self._local is not None and node == self._me:
            return asyncio.wait_for(self._local(task), sent.within_s)
        return self._mesh.request(node, task, timeout_s=sent.within_s)

    async def _paced(self, node: str, task: RunTask, sent: _Sent) -> TaskReply:
        assert self._settings.pace is not None
        await self._settings.pace()
        sent.at = self._loop.time()  # the wait is ours, not the node's
        return await self._request(node, task, sent)

    def _ended(self, send: Send, sent: _Sent, call: asyncio.Future[TaskReply]) -> None:
        error = None if call.cancelled() else call.exception()
        if self._calls.get(send.call) is not call or self._done.done():
            return  # cancelled by us
        del self._calls[send.call]
        seconds = self._loop.time() - sent.at
        try:
            if call.cancelled():
                error = Unreachable(f"the call to {self._fleet.names[send.node]} was cancelled under way")
            elif error is None and (error := self._take(send.index, call.result())) is None:
                self._perform(self._plan.answered(send.call, seconds))
                return
            if isinstance(error, TimeoutError) and not isinstance(error, MeshError):
                error = MeshTimeout(f"no answer within {sent.within_s:g} s")
            if not isinstance(error, MeshError):
                self._abort(error)
                return
            failure = classify(error, silent=seconds >= sent.within_s - 0.5)
            ticks = int(error.retry_after_s / self._settings.limits.tick_s) + 1
            self._perform(self._plan.failed(send.call, failure, error, retry_after_ticks=ticks))
        except Exception as unforeseen:  # a callback's exception would be lost in the loop's handler
            self._abort(unforeseen)

    def _take(self, index: int, reply: TaskReply) -> MeshError | None:
        """Keep a reply for `Count`; what can't be read is a broken worker's garbage, to be tried elsewhere."""
        taken = self._taken[index]
        try:
            taken.prediction = unpack(reply.prediction) if reply.prediction else None
        except MeshError as error:
            return WorkerCrashed(f"the worker's prediction can't be read: {error}")
        taken.reply = reply
        return None

    # -- rows ---------------------------------------------------------------------------------------------------------

    def _finish(self, row: Row) -> None:
        if self._done.done():
            return
        taken = self._taken.pop(row.index)
        if self._journal is None:
            self._written(row, None)
        else:
            self._journal.add(row, _digest(taken.packed), partial(self._written, row))

    def _written(self, row: Row, error: Exception | None) -> None:
        if error is not None:
            self._abort(error)
        elif not self._done.done():
            try:
                self._accept(row)
            except Exception as raised:  # by the caller's on_row
                self._abort(raised)

    def _accept(self, row: Row) -> None:
        self._tally.accept(row)
        self._room.set()
        self._maybe_done()

    def _maybe_done(self) -> None:
        if self._read_all and self._tally.done == self._admitted and not self._done.done():
            self._done.set_result(True)

    def _helper_ended(self, helper: asyncio.Task[None]) -> None:
        if not helper.cancelled() and (error := helper.exception()) is not None:
            self._abort(error)

    def _abort(self, error: BaseException) -> None:
        if not self._done.done():
            self._done.set_exception(error)


def _digest(packed: bytes) -> bytes:
    return hashlib.sha256(packed).digest()[:16]
