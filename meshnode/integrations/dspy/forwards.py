"""Gives single calls to nodes, as they come, by evaluation's plan: the freer of two drawn, retries, hedges.

An evaluation knows its examples; here each call of a program is one example that turns up by itself and is answered by
itself. What no node could do is given back to the caller, to be run there.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

from meshnode.errors import MeshError, MeshTimeout, Unreachable, WorkerCrashed
from meshnode.evaluation.candidates import can_run, classify, why_none
from meshnode.evaluation.effects import Cancel, Count, Effect, Fail, Send, Starved, Stuck
from meshnode.evaluation.messages import RunTask, TaskReply
from meshnode.evaluation.plan import Failure, Limits, Plan
from meshnode.mesh import Mesh

LOOK_EVERY_S = 0.2
WAY_S = 5.0  # to a node and back, beside the task itself
#: A call of a model takes seconds: nothing younger than half of one is late.
LIMITS = Limits(hedge_least_ticks=25, max_losses=4, patience_ticks=150)


@dataclass(slots=True)
class _Forward:
    example: bytes
    state: bytes
    outcome: asyncio.Future[TaskReply]
    reply: TaskReply | None = None


class Forwards:
    """The calls of one program that are under way. Lives on the node's loop; `timeout_s` is for one call."""

    def __init__(self, mesh: Mesh, program: str, *, timeout_s: float, limits: Limits = LIMITS) -> None:
        self._mesh = mesh
        self._program = program
        self._timeout_s = timeout_s
        self._limits = limits
        self._plan = Plan(limits, random.Random())
        self._numbers = itertools.count()
        self._forwards: dict[int, _Forward] = {}
        self._calls: dict[int, tuple[asyncio.Future[TaskReply], int, float]] = {}  # the call, whose, since when
        self._effects: deque[Effect] = deque()
        self._performing = False
        self._clock: asyncio.Task[None] | None = None
        self._looked_at = -1.0

    async def run(self, example: bytes, state: bytes) -> TaskReply:
        """The reply of the first node that gives one. Raises the last MeshError if none does; cancelling ends it."""
        loop = asyncio.get_running_loop()
        self._look(loop.time())
        if not self._plan.nodes:
            others = [member for member in self._mesh.members() if member.node_id != self._mesh.me.node_id]
            raise why_none(others, self._program, {})
        number = next(self._numbers)
        forward = self._forwards[number] = _Forward(example, state, loop.create_future())
        if self._clock is None or self._clock.done():
            self._clock = loop.create_task(self._keep_time())
        try:
            self._perform(self._plan.add(number))
            return await forward.outcome
        finally:
            del self._forwards[number]
            self._abandon(number)

    def statistics(self) -> dict[str, int]:
        """Sends, and how many of them were retries and hedges."""
        return {"sends": self._plan.sends, "retries": self._plan.retries, "hedges": self._plan.hedges}

    async def _keep_time(self) -> None:
        loop = asyncio.get_running_loop()
        while self._forwards or self._calls:
            await asyncio.sleep(self._limits.tick_s)
            self._look(loop.time())
            self._perform(self._plan.tick())

    def _look(self, now: float) -> None:
        if now < self._looked_at + LOOK_EVERY_S:
            return
        self._looked_at = now
        able = {member.node_id: member for member in self._mesh.members() if can_run(member, self._program, {})}
        for node_id, member in able.items():
            self._perform(self._plan.see(node_id, member.slots, member.busy, ready=member.state == "alive"))
        for gone in self._plan.nodes - able.keys():
            self._perform(self._plan.lose(gone, Unreachable("the node is dead, or dropped the program")))

    def _perform(self, effects: Iterable[Effect]) -> None:
        """In order; what a performed effect leads to comes after all that was decided before it."""
        self._effects.extend(effects)
        if self._performing:
            return
        self._performing = True
        try:
            while self._effects:
                self._perform_one(self._effects.popleft())
        finally:
            self._performing = False

    def _perform_one(self, effect: Effect) -> None:
        match effect:
            case Send():
                self._send(effect)
            case Cancel(call):
                self._calls.pop(call)[0].cancel()
            case Count(_, number, _):
                forward = self._forwards.get(number)
                if forward is not None and forward.reply is not None and not forward.outcome.done():
                    forward.outcome.set_result(forward.reply)
            case Fail(number, _, _, reason) | Stuck(number, _, reason):
                self._give_back(number, reason)
            case Starved(reason, _):
                for number in list(self._forwards):
                    self._give_back(number, reason)

    def _give_back(self, number: int, reason: MeshError) -> None:
        forward = self._forwards.get(number)
        if forward is not None and not forward.outcome.done():
            forward.outcome.set_exception(reason)

    def _send(self, send: Send) -> None:
        forward = self._forwards.get(send.index)
        if forward is None or forward.outcome.done():  # given back or cancelled while it waited in the plan
            nobody = Unreachable("nobody waits for it")
            self._perform(self._plan.failed(send.call, Failure.REJECTED, nobody))
            return
        loop = asyncio.get_running_loop()
        task = RunTask(
            program=self._program,
            example=forward.example,
            state=forward.state,
            timeout_s=self._timeout_s,
            attempt=send.attempt,
        )
        within_s = 2 * self._timeout_s + WAY_S
        try:
            reply = self._mesh.request(send.node, task, timeout_s=within_s)
        except MeshError as error:
            self._perform(self._plan.failed(send.call, classify(error, silent=False), error))
            return
        call = asyncio.ensure_future(reply)
        self._calls[send.call] = call, send.index, loop.time()
        call.add_done_callback(partial(self._ended, send, within_s))

    def _ended(self, send: Send, within_s: float, call: asyncio.Future[TaskReply]) -> None:
        error = None if call.cancelled() else call.exception()
        if send.call not in self._calls:
            return  # cancelled by us
        _, number, since = self._calls.pop(send.call)
        seconds = asyncio.get_running_loop().time() - since
        forward = self._forwards.get(number)
        if error is None and not call.cancelled():
            if forward is not None:
                forward.reply = call.result()
            self._perform(self._plan.answered(send.call, seconds))
            return
        if call.cancelled():
            failed: MeshError = Unreachable("the call was cancelled under way")
        elif isinstance(error, MeshError):
            failed = error
        elif isinstance(error, TimeoutError):
            failed = MeshTimeout(f"no answer within {within_s:g} s")
        else:
            failed = WorkerCrashed(f"{type(error).__name__}: {error}")
        failure = classify(failed, silent=seconds >= within_s - 0.5)
        ticks = int(failed.retry_after_s / self._limits.tick_s) + 1
        self._perform(self._plan.failed(send.call, failure, failed, retry_after_ticks=ticks))

    def _abandon(self, number: int) -> None:
        """Nobody waits any more: what is in flight is cancelled, and counts for its node as answered."""
        for call, (reply, whose, since) in list(self._calls.items()):
            if whose == number:
                del self._calls[call]
                reply.cancel()
                self._perform(self._plan.answered(call, asyncio.get_running_loop().time() - since))
