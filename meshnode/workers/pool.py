"""The worker pool of a node: tasks go in, results come out, whatever happens to the workers between.

`Assignment` decides who runs what, `Staff` keeps the workers alive; the pool sends, times, and answers. Everything here
runs on the node's loop and never calls user code.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from channels.errors import Fault
from meshnode.app import App
from meshnode.errors import Closed, InvalidInput, MeshError, Overloaded, WorkerCrashed, from_fault
from meshnode.lm.usage import Tally
from meshnode.values import pack, unpack
from meshnode.workers.assignment import Assignment
from meshnode.workers.hosts import Host, ThreadHost
from meshnode.workers.jobs import Job, Limits
from meshnode.workers.protocol import (
    MAX_ATTEMPTS,
    Asked,
    Cancel,
    Declined,
    Done,
    Failed,
    FromWorker,
    Ready,
    Run,
    RunTool,
    Stuck,
    Task,
    TaskResult,
    TimedOut,
    ToolCall,
    Variables,
)
from meshnode.workers.staff import LOOK_S, Member, Staff
from meshnode.workers.tool_calls import OnToolCall, ToolCalls

OVERDUE_S = 2.0  # past its time, before a worker that does not speak is held to be the reason
MAX_TOOL_CALLS = 256
MAX_TIMEOUT_S = 7 * 86400.0
_COUNTED = "done raised timed_out declined cancelled refused crashes retried tasks_given_up reloads"


class WorkerPool:
    """`workers` workers with `threads` slots each. `async with` starts and closes it.

    They are processes if the app can be loaded again by its location and `workers` is above 0, else threads of this
    process; `host` puts them elsewhere. `on_tool_call` routes the tools that programs call; by default they are this
    app's own. `on_crash_loop(why)` is told when a worker is not started any more, `on_change()` when `slots` changes.
    `environment`: variables that worker processes have beside this one's.
    """

    def __init__(
        self,
        app: App,
        *,
        workers: int = 1,
        threads: int = 8,
        limits: Limits | None = None,
        on_tool_call: OnToolCall | None = None,
        on_crash_loop: Callable[[str], None] | None = None,
        on_change: Callable[[], None] | None = None,
        host: Host | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        limits = limits or Limits()
        self._host = host or _host_for(app, workers, environment)
        workers = max(1, workers)
        self._threads = threads
        self._queue_limit = limits.queue if limits.queue is not None else max(8, workers * threads)
        self._crash_loop_seam = on_crash_loop
        self._on_change = on_change or _do_nothing
        self._staff = Staff(self._host, workers, threads, limits, self)
        self._assignment = Assignment()
        self._jobs: dict[int, Job] = {}
        self._calls = ToolCalls(on_tool_call or self._own_tool)
        self._programs = frozenset(app.programs)
        self._variables: Variables | None = None
        self._numbers = 0
        self._state = "not started"
        self._idle = asyncio.Event()
        self._watch: asyncio.TimerHandle | None = None
        self._run_s = 0.0
        self._counts = dict.fromkeys(_COUNTED.split(), 0)
        self.models = Tally()  # what programs asked of models

    # Life.

    async def start(self) -> None:
        """Start the workers and wait until all are ready; raises AppError if the app does not load in one."""
        if self._state != "not started":
            raise MeshError("this pool was started before; make a new one")
        self._loop = asyncio.get_running_loop()
        self._state = "starting"
        self._host.open(self._received, self._staff.exited)
        try:
            await self._staff.start()
        except BaseException:
            await self.close()
            raise
        self._state = "serving"
        self._watch = self._loop.call_later(LOOK_S, self._look)

    async def reload(self) -> None:
        """Load the app anew in new workers; once all are ready they take over and the old ones end with their work.

        Raises AppError if the app does not load; then everything stays as it was.
        """
        if self._state != "serving":
            raise Closed(f"the worker pool is {self._state}")
        await self._staff.renew()
        self._counts["reloads"] += 1
        self._assign()

    async def drain(self, timeout_s: float) -> bool:
        """Refuse new tasks, let those that are here end; True if none is left after at most `timeout_s`."""
        if self._state == "serving":
            self._state = "draining"
        try:
            async with asyncio.timeout(timeout_s):
                while self._jobs:
                    self._idle.clear()
                    await self._idle.wait()
        except TimeoutError:
            return False
        return True

    async def close(self) -> None:
        """End all workers; what runs or waits fails with Closed. Safe to call twice."""
        started = self._state not in ("closed", "not started")
        self._state = "closed"
        if not started:
            return
        if self._watch is not None:
            self._watch.cancel()
        self._calls.close()
        for job in self._jobs.values():
            job.end(Closed("the worker pool is closed"))
        self._jobs.clear()
        self._idle.set()
        await self._staff.close()

    async def __aenter__(self) -> WorkerPool:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # Work.

    async def run(self, task: Task) -> TaskResult:
        """Run a task in a worker; what the program raises is in the result.

        Raises Overloaded, MeshTimeout (it ran longer than `task.timeout_s`), WorkerCrashed, UnknownMethod, AppError
        (its builder failed), InvalidInput, Closed. Cancelling it cancels a coroutine; a thread's outcome is dropped.
        """
        self._check_serving()
        if not 0 < task.timeout_s <= MAX_TIMEOUT_S:  # also refuses nan
            raise InvalidInput(f"timeout_s must be above 0 and at most {MAX_TIMEOUT_S:g} s, not {task.timeout_s}")
        if self._assignment.queued >= self._queue_limit:
            wait_s = self._waiting_time()
            raise self._refusal(f"{self._assignment.queued} tasks wait for a worker already", wait_s)
        self._numbers += 1
        job = Job(self._numbers, Run(self._numbers, task), self._loop.create_future(), task.timeout_s)
        self._jobs[job.number] = job
        self._assignment.add(job.number)
        self._assign()
        return await self._outcome(job)

    async def call_tool(self, name: str, args: Mapping[str, Any], *, timeout_s: float = 30.0) -> Any:
        """Call one of this app's tools in a worker, beside the slots: a program that waits for one can't block it.

        Raises UnknownMethod, InvalidInput naming the argument, MeshTimeout, Overloaded, WorkerCrashed, and RemoteError
        with what the tool raised.
        """
        self._check_serving()
        packed = pack(dict(args), name=f"{name}'s arguments")
        seats = [seat.name for seat in self._assignment.seats.values() if seat.open]
        calls = [job.worker for job in self._jobs.values() if job.worker]
        if not seats or len(calls) >= MAX_TOOL_CALLS:
            raise self._refusal("no worker is free to call a tool", 0.5)
        worker = min(seats, key=calls.count)
        self._numbers += 1
        message = RunTool(self._numbers, name, packed, timeout_s)
        job = Job(self._numbers, message, self._loop.create_future(), timeout_s, self._loop.time(), worker)
        self._jobs[job.number] = job
        self._staff.members[worker].worker.send(message)
        result = await self._outcome(job)
        if result.error is not None:
            raise from_fault(Fault(result.error.type, result.error.message))
        return unpack(result.prediction)

    def set_variables(self, values: Mapping[str, Any]) -> None:
        """Push all variables to every worker, now and at its start; runs that start later see them."""
        self._variables = Variables(pack(dict(values), name="variables"))
        for member in self._staff.members.values():
            if member.ready.done():
                member.worker.send(self._variables)

    @property
    def slots(self) -> int:
        """How many tasks the workers that live run at once."""
        return self._assignment.slots

    @property
    def busy(self) -> int:
        """How many tasks run or wait."""
        return self._assignment.running + self._assignment.queued

    def programs(self) -> frozenset[str]:
        """The names of the programs that can be run."""
        return self._programs

    def statistics(self) -> dict[str, Any]:
        """Counters since the start, and each worker as it is.

        `given_up` says, for each worker that is not started any more, why; `tasks_given_up` counts tasks.
        """
        return {
            "slots": self.slots,
            "busy": self.busy,
            "waiting": self._assignment.queued,
            **self._counts,
            "restarts": self._staff.restarts,
            "given_up": list(self._staff.gave_up.values()),
            "run_seconds": round(self._run_s, 6),
            "workers": [self._describe(member) for member in self._staff.members.values()],
        }

    def _describe(self, member: Member) -> dict[str, Any]:
        seat = self._assignment.seats.get(member.name)
        vitals = member.worker.vitals()
        return {
            "name": member.name,
            "pid": member.worker.pid,
            "state": "retiring" if member.retiring else "ready" if seat is not None else "starting",
            "busy": len(seat.held) if seat is not None else 0,
            "rss_bytes": vitals.rss_bytes if vitals is not None else None,
            "age_s": round(self._loop.time() - member.started_at, 3),
            "silent_s": round(self._loop.time() - member.heard_at, 3),
        }

    # Jobs.

    async def _outcome(self, job: Job) -> TaskResult:
        try:
            return await job.future
        except asyncio.CancelledError:
            self._cancel(job)
            raise

    def _assign(self) -> None:
        given = self._assignment.assign()
        if given:
            now = self._loop.time()
            for name, number in given:
                job = self._jobs[number]
                job.sent_at = now if self._assignment.runs(number) else 0.0
                self._staff.members[name].worker.send(job.message)

    def _cancel(self, job: Job) -> None:
        if job.number not in self._jobs:
            return
        self._counts["cancelled"] += 1
        self._calls.cancel(job.number)
        holder = self._staff.members.get(job.worker or self._assignment.holder(job.number) or "")
        if holder is None:
            self._forget(job.number)
        else:
            holder.worker.send(Cancel(job.number))  # it keeps its slot until the worker says that it is over

    def _forget(self, number: int) -> None:
        self._jobs.pop(number, None)
        begun = self._jobs.get(self._assignment.free(number) or 0)
        if begun is not None:
            begun.sent_at = self._loop.time()
        self._calls.cancel(number)
        if not self._jobs:
            self._idle.set()

    def _waiting_time(self) -> float:
        rounds = (self._assignment.queued + 1) / max(1, self.slots)
        return min(10.0, max(0.05, self._run_s / max(1, self._counts["done"]) * rounds))

    def _refusal(self, why: str, wait_s: float) -> Overloaded:
        self._counts["refused"] += 1
        return Overloaded(f"{why}; retry in {wait_s:.2f} s", retry_after_s=wait_s)

    def _check_serving(self) -> None:
        if self._state != "serving":
            raise Closed(f"this node's worker pool is {self._state}; send the task to another")
        if self._staff.broken:
            raise self._broken()

    def _broken(self) -> WorkerCrashed:
        why = next(iter(self._staff.gave_up.values()))
        return WorkerCrashed(f"no worker of this node stays alive (the last one {why}); mend the app and reload it")

    async def _own_tool(self, name: str, args: dict[str, Any], task: Task) -> Any:
        return await self.call_tool(name, args, timeout_s=task.timeout_s)

    # What workers say.

    def _received(self, name: str, messages: list[FromWorker]) -> None:
        member = self._staff.members.get(name)
        for message in messages:
            if isinstance(message, Done):
                self._done(member, message)
            elif isinstance(message, Asked):
                self.models.add(message.uses)
            elif member is None:
                continue
            elif isinstance(message, Declined):
                self._declined(message)
            elif isinstance(message, TimedOut):
                self._timed_out(message.job)
            elif isinstance(message, Stuck):
                self._staff.stuck(member, message.job)
            elif isinstance(message, ToolCall):
                self._calls.start(member.worker, self._jobs.get(message.job), message)
            elif isinstance(message, Ready):
                self._ready(member, message)
            elif isinstance(message, Failed):
                self._staff.failed(member, message.message)
        if member is not None:
            member.heard_at = self._loop.time()
            if member.retiring:
                self._staff.end_if_idle(member)
        self._assign()

    def _done(self, member: Member | None, message: Done) -> None:
        job = self._jobs.get(message.job)
        if job is None:
            return
        if job.end(message.result):
            self._counts["done"] += 1
            self._counts["raised"] += message.result.error is not None
            self._run_s += message.result.seconds
        if member is not None:
            self._staff.worked(member)
            member.stuck.discard(message.job)
        holder = self._staff.members.get(self._assignment.holder(job.number) or "")
        if holder is not None and holder is not member:
            # Its first worker had answered before it died; the second one works in vain.
            holder.worker.send(Cancel(job.number))
        self._forget(message.job)

    def _declined(self, message: Declined) -> None:
        job = self._jobs.get(message.job)
        if job is not None:
            self._counts["declined"] += job.end(from_fault(Fault(message.code, message.message)))
            self._forget(message.job)

    def _timed_out(self, number: int) -> None:
        job = self._jobs.get(number)
        if job is not None:
            self._counts["timed_out"] += job.end_late()
            self._calls.cancel(number)

    def _ready(self, member: Member, message: Ready) -> None:
        if self._variables is not None:
            member.worker.send(self._variables)
        self._programs = frozenset(message.programs)
        if not member.ready.done():
            member.ready.set_result(message)
        if not member.retiring:
            self._assignment.seat(member.name, self._threads)
            self._on_change()

    # What happens to workers (`staff.Employer`).

    def may_leave(self, member: Member) -> bool:
        """Whether it holds nothing but what is stuck."""
        seat = self._assignment.seats.get(member.name)
        held = {job.number for job in self._jobs.values() if job.worker == member.name}
        return (held | seat.held if seat is not None else held) <= member.stuck

    def on_retiring(self, member: Member) -> None:
        """It takes no more work."""
        self._assignment.close(member.name)
        self._on_change()

    def on_left(self, member: Member, why: str) -> bool:
        """Its jobs go to others, or are given up; True if it had any."""
        self._assignment.take_back(member.name)
        seat = self._assignment.seats.get(member.name)
        held = tuple(seat.held) if seat is not None else ()
        for number in held:
            job = self._jobs.get(number)
            if job is None or job.future.done():  # it timed out or was cancelled: nobody waits for it
                self._forget(number)
        given_up = self._assignment.unseat(member.name, member.innocent)
        for number in given_up:
            job = self._jobs[number]
            job.end(WorkerCrashed(f"{job.name} took its worker down {MAX_ATTEMPTS} times; the last one {why}"))
            self._forget(number)
        for job in [job for job in self._jobs.values() if job.worker == member.name]:
            job.end(WorkerCrashed(f"{job.name}: its worker {why}"))
            self._forget(job.number)
        for number in held:
            self._calls.cancel(number)  # the run begins anew elsewhere
        if not member.retiring:
            self._counts["crashes"] += 1
            self._counts["tasks_given_up"] += len(given_up)
            self._counts["retried"] += sum(number in self._jobs for number in held)
        self._assign()
        self._on_change()
        return bool(held)

    def on_crash_loop(self, why: str) -> None:
        """One worker less; without any, whatever waits fails."""
        if self._crash_loop_seam is not None:
            self._crash_loop_seam(why)
        if self._staff.broken:
            for job in list(self._jobs.values()):
                job.end(self._broken())
                self._forget(job.number)

    def _look(self) -> None:
        now = self._loop.time()
        self._watch = self._loop.call_later(LOOK_S, self._look)
        for job in list(self._jobs.values()):
            self._look_at_job(job, now)
        self._staff.look(now)

    def _look_at_job(self, job: Job, now: float) -> None:
        """Past its time, and its worker too busy to notice: end the worker. Its other jobs are not to blame."""
        due = job.sent_at + job.timeout_s
        if not job.sent_at or now < due + OVERDUE_S or job.future.done():
            return
        member = self._staff.members.get(job.worker or self._assignment.holder(job.number) or "")
        if member is None or member.doom or member.heard_at > due:
            return
        seat = self._assignment.seats.get(member.name)
        self._counts["timed_out"] += job.end_late()
        self._staff.kill(
            member, "was blocked past its task's time", None if seat is None else frozenset((*seat.held, *seat.ahead))
        )


def ThreadPool(app: App, *, threads: int = 8, limits: Limits | None = None, **seams: Any) -> WorkerPool:  # noqa: N802 - reads as the class it stands in for
    """A `WorkerPool` whose one worker lives in threads of this process: for notebooks and clients."""
    return WorkerPool(app, workers=1, threads=threads, limits=limits, host=ThreadHost(app), **seams)


def _host_for(app: App, workers: int, environment: Mapping[str, str] | None) -> Host:
    location = app.location if workers > 0 else None
    if location is None:
        return ThreadHost(app)
    from meshnode.workers.process_host import ProcessHost  # only where there are processes

    return ProcessHost(location, environment)


def _do_nothing() -> None:
    pass


__all__ = ["Limits", "ThreadPool", "WorkerPool"]
