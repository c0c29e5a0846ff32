"""Keeps the workers of a pool alive: starts, watches, kills, replaces them. It knows no task.

a worker dies        it is started again: at once if it was at work, else after a back-off that doubles;
                     `CRASH_LOOP` deaths in a row without work end that
it is silent         for `liveness_s`, and does not compute: killed as hung
its memory           above `memory_limit_bytes`: killed
it is to be replaced (reload, a run that can't be stopped): it retires, that is, ends when what it holds does
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from meshnode.errors import AppError
from meshnode.workers.hosts import Host, Worker
from meshnode.workers.jobs import Limits
from meshnode.workers.protocol import Ping, Ready, Stop

log = structlog.get_logger("meshnode.workers")

LOOK_S = 0.2
PING_S = 1.0
CRASH_LOOP = 5
BACKOFF_S = 0.1
BACKOFF_MAX_S = 10.0
STOP_S = 1.0


@dataclass(slots=True, eq=False)
class Member:
    """A worker and what is known of it. `place` is which of the pool's workers it stands for."""

    place: int
    worker: Worker
    ready: asyncio.Future[Ready]
    started_at: float
    heard_at: float
    pinged_at: float = 0.0
    cpu_ticks: int = -1
    retiring: bool = False
    stuck: set[int] = field(default_factory=set)  # its jobs that can't be stopped
    doom: str = ""  # why we killed it
    innocent: frozenset[int] | None = None  # of its jobs, those known not to have caused that

    @property
    def name(self) -> str:
        """The worker's, unique in its pool."""
        return self.worker.name


class Employer(Protocol):
    """What the staff asks of, and tells, the pool."""

    def may_leave(self, member: Member) -> bool:
        """Whether it holds nothing but what is stuck."""
        ...

    def on_retiring(self, member: Member) -> None:
        """It takes no more work."""
        ...

    def on_left(self, member: Member, why: str) -> bool:
        """It is gone; True if it was at work."""
        ...

    def on_crash_loop(self, why: str) -> None:
        """One place is given up."""
        ...


class Staff:
    """All workers by name. `gave_up`: places whose worker is not started any more, and why."""

    def __init__(self, host: Host, places: int, threads: int, limits: Limits, employer: Employer) -> None:
        self.members: dict[str, Member] = {}
        self.gave_up: dict[int, str] = {}
        self.restarts = 0
        self._host = host
        self._places = places
        self._threads = threads
        self._limits = limits
        self._employer = employer
        self._current: dict[int, str] = {}  # place -> the worker that stands there, or stood there last
        self._failures: dict[int, int] = {}  # place -> deaths in a row without work
        self._timers: set[asyncio.TimerHandle] = set()
        self._made = 0
        self._replacing = False
        self._looked_at = 0.0
        self._renewing = asyncio.Lock()
        self._gone = asyncio.Event()

    @property
    def broken(self) -> bool:
        """Whether every place is given up."""
        return len(self.gave_up) == self._places

    async def start(self) -> None:
        """Start all and wait until they are ready; raises AppError if the app does not load in one."""
        self._loop = asyncio.get_running_loop()
        await self._all_ready([self._launch(place) for place in range(self._places)])
        self._looked_at = self._loop.time()
        self._replacing = True

    async def renew(self) -> None:
        """Start as many new ones; when all are ready the old ones retire. Raises AppError and keeps the old ones."""
        async with self._renewing:
            await self._renew()

    async def _renew(self) -> None:
        old = [member for member in self.members.values() if not member.retiring]
        new = [self._launch(place, current=False) for place in range(self._places)]
        try:
            await self._all_ready(new)
        except BaseException:
            for member in new:
                self.retire(member)
            raise
        for member in new:
            self._current[member.place] = member.name
        self._failures.clear()
        self.gave_up.clear()
        for member in old:
            self.retire(member)

    async def close(self) -> None:
        """Ask all to stop, wait a little; the host kills the rest."""
        self._replacing = False
        for timer in self._timers:
            timer.cancel()
        for member in list(self.members.values()):
            if member.ready.done():
                member.worker.send(Stop())
            else:
                self.kill(member, "is not needed any more")  # it does not listen yet
        try:
            async with asyncio.timeout(STOP_S):
                while self.members:
                    self._gone.clear()
                    await self._gone.wait()
        except TimeoutError:
            pass
        finally:
            self._host.close()

    def retire(self, member: Member) -> None:
        """No more work for it; it ends when it holds none."""
        member.retiring = True
        self._employer.on_retiring(member)
        self.end_if_idle(member)

    def end_if_idle(self, member: Member) -> None:
        """End it if it retires and holds nothing."""
        if member.retiring and not member.doom and self._employer.may_leave(member):
            self.kill(member, "retired")

    def stuck(self, member: Member, job: int) -> None:
        """A job in it can't be stopped: another worker takes its place."""
        member.stuck.add(job)
        if not member.retiring:
            log.warning("a run can't be stopped; its worker is replaced", worker=member.name)
            self._relaunch(member.place, delay_s=0.0)
            self.retire(member)
        self.end_if_idle(member)

    def worked(self, member: Member) -> None:
        """It has done something: its place's past is forgiven."""
        self._failures[member.place] = 0

    def failed(self, member: Member, why: str) -> None:
        """It can't load the app."""
        if not member.ready.done():
            member.ready.set_exception(AppError(why))
        self.kill(member, f"can't load the app ({why})")

    def kill(self, member: Member, why: str, innocent: frozenset[int] | None = None) -> None:
        """End it now."""
        member.doom = why
        member.innocent = innocent
        member.worker.kill()

    def exited(self, name: str, how: str) -> None:
        """A worker has ended, for whatever reason."""
        member = self.members.pop(name, None)
        self._gone.set()
        if member is None:
            return
        why = member.doom or how
        if not member.ready.done():
            member.ready.set_exception(AppError(f"a worker {why} before the app was loaded; its stderr says more"))
        worked = self._employer.on_left(member, why)
        if not self._replacing or member.retiring or self._current.get(member.place) != name:
            return
        log.warning("a worker ended", worker=name, why=why)
        failures = self._failures[member.place] = 0 if worked else self._failures.get(member.place, 0) + 1
        if failures < CRASH_LOOP:
            delay_s = min(BACKOFF_MAX_S, BACKOFF_S * 2 ** (failures - 1)) if failures else 0.0
            self._relaunch(member.place, delay_s=delay_s)
            return
        self.gave_up[member.place] = why
        log.error("a worker ends again and again without work; it is not started any more", why=why, times=failures)
        self._employer.on_crash_loop(why)

    def look(self, now: float) -> None:
        """Look after all; called every `LOOK_S`.

        Time in which this process itself was paused or busy is nobody's silence.
        """
        paused_s = now - self._looked_at - 2 * LOOK_S
        self._looked_at = now
        if paused_s > 0:
            for member in self.members.values():
                member.heard_at += paused_s
        for member in list(self.members.values()):
            if not member.doom:
                why = self._judge(member, now)
                if why:
                    self.kill(member, why)

    def _judge(self, member: Member, now: float) -> str:
        """Why it must be killed; empty if it need not."""
        limits = self._limits
        if not member.ready.done():
            late = now - member.started_at > limits.start_timeout_s
            return f"did not load the app within {limits.start_timeout_s:g} s" if late else ""
        if now - member.pinged_at >= PING_S:
            member.pinged_at = now
            member.worker.send(Ping())
        silent_s = now - member.heard_at
        if limits.memory_limit_bytes is None and silent_s < limits.liveness_s / 2:
            return ""
        vitals = member.worker.vitals()
        if vitals is None:
            return ""
        if limits.memory_limit_bytes is not None and vitals.rss_bytes > limits.memory_limit_bytes:
            used, most = vitals.rss_bytes >> 20, limits.memory_limit_bytes >> 20
            return f"used {used} MiB of memory, the limit is {most} MiB"
        if silent_s < limits.liveness_s / 2:
            return ""
        if vitals.cpu_ticks != member.cpu_ticks or vitals.state in "RD":
            # It computes, in C code that keeps the interpreter, or waits for a core or a disk: not hung, and bounded by
            # its task's time.
            member.cpu_ticks = vitals.cpu_ticks
            member.heard_at = max(member.heard_at, now - limits.liveness_s / 2)
            return ""
        if silent_s < limits.liveness_s:
            return ""
        reason = "stopped" if vitals.state in "tT" else "blocked (in an async program, await what waits)"
        return f"did not answer for {limits.liveness_s:g} s: it was {reason}"

    def _launch(self, place: int, *, current: bool = True) -> Member:
        self._made += 1
        worker = self._host.launch(f"worker-{self._made}", self._threads)
        now = self._loop.time()
        member = Member(place, worker, self._loop.create_future(), now, now)
        member.ready.add_done_callback(_look_at)
        self.members[member.name] = member
        if current:
            self._current[place] = member.name
        return member

    def _relaunch(self, place: int, *, delay_s: float) -> None:
        def launch() -> None:
            self._timers.discard(timer)
            if self._replacing:
                self.restarts += 1
                self._launch(place)

        timer = self._loop.call_later(delay_s, launch)
        self._timers.add(timer)

    async def _all_ready(self, members: Iterable[Member]) -> None:
        limit_s = self._limits.start_timeout_s
        waited = [member.ready for member in members]
        done, pending = await asyncio.wait(waited, timeout=limit_s, return_when=asyncio.FIRST_EXCEPTION)
        for ready in done:
            ready.result()
        if pending:
            raise AppError(f"the app was not loaded within {limit_s:g} s; see what its import waits for")


def _look_at(future: asyncio.Future[Ready]) -> None:
    if not future.cancelled():
        future.exception()  # a failure nobody waits for is noticed by the worker's exit
