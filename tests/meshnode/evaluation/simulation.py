"""The production plan under a virtual clock, on nodes that die, pause, refuse, answer late or twice.

The simulation performs effects as the coordinator does. It keeps its own book of what happened, so that a test can
compare: which examples were really run, which outcome each was given, and which nodes were to blame.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from meshnode.errors import MeshTimeout, Overloaded, Unreachable, WorkerCrashed
from meshnode.evaluation.effects import Cancel, Count, Effect, Fail, Send, Starved, Stuck
from meshnode.evaluation.plan import Failure, Limits, Plan
from tests.simulation.network import Clock

TIMEOUT_S = 60.0  # the coordinator's own, for a call nobody answers


@dataclass
class Worker:
    """A node of the simulation. `takes`: how many tasks it runs before it refuses; its plan may believe otherwise."""

    name: str
    slots: int
    takes: int
    service_s: float
    alive: bool = True
    paused_until: float = 0.0
    known: bool = True  # the mesh believes it alive
    running: set[int] = field(default_factory=set)


@dataclass
class Faults:
    """Chances per call, and per second and node."""

    death: float = 0.0  # per second; comes back after a while
    pause: float = 0.0  # per second; for up to `pause_s`
    pause_s: float = 20.0
    refusal: float = 0.0
    twice: float = 0.0  # the reply comes a second time
    lost: float = 0.0  # the reply never comes
    late: float = 0.0  # the reply takes a hundred times as long
    crash: float = 0.0  # the worker's; at most twice for one example, so that it never is the example's fault


class Simulation:
    """One evaluation of `examples` examples; those in `poison` bring down whichever worker runs them."""

    def __init__(
        self,
        seed: int,
        workers: Iterable[Worker],
        examples: int,
        faults: Faults,
        *,
        poison: frozenset[int] = frozenset(),
        limits: Limits | None = None,
    ) -> None:
        self.clock = Clock()
        self.rng = random.Random(seed)
        self.workers = {worker.name: worker for worker in workers}
        self.faults = faults
        self.poison = poison
        self.limits = limits or Limits(max_losses=1000, patience_ticks=10_000)
        self.plan = Plan(self.limits, random.Random(seed + 1))
        self.examples = examples
        self.outcomes: dict[int, Effect] = {}
        self.twice: list[int] = []  # indexes that were given a second outcome
        self.ran: Counter[int] = Counter()  # how often an example was really run to its end
        self.sent: dict[int, Send] = {}
        self.sent_at: dict[int, float] = {}
        self.cancelled: set[int] = set()
        self.crashes: Counter[int] = Counter()
        self.stopped: list[Effect] = []
        self.refusals = 0
        self.finished_at = 0.0

    def run(self, until_s: float = 10_000.0) -> None:
        for worker in self.workers.values():
            self.perform(self.plan.see(worker.name, worker.slots))
        for index in range(self.examples):
            self.perform(self.plan.add(index))
        self.clock.call_later(self.limits.tick_s, self._tick)
        self.clock.call_later(1.0, self._misfortune)
        self.clock.run_until(until_s, stop=lambda: len(self.outcomes) == self.examples or bool(self.stopped))
        self.finished_at = self.clock.now

    def perform(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send():
                    self.sent[effect.call] = effect
                    self.sent_at[effect.call] = self.clock.now
                    self._send(effect)
                case Cancel(call):
                    self.cancelled.add(call)
                    self.workers[self.sent[call].node].running.discard(call)
                case Count(index=index) | Fail(index=index):
                    if index in self.outcomes:
                        self.twice.append(index)
                    self.outcomes[index] = effect
                case Starved() | Stuck():
                    self.stopped.append(effect)

    # -- what happens to a call ---------------------------------------------------------------------------------------

    def _send(self, send: Send) -> None:
        worker, rng = self.workers[send.node], self.rng
        way_s = rng.uniform(0.0005, 0.002)
        self.clock.call_later(TIMEOUT_S, lambda: self._fail(send, Failure.GONE, MeshTimeout("silence")))
        if not worker.alive:
            self.clock.call_later(way_s, lambda: self._fail(send, Failure.UNREACHED, Unreachable("link down")))
        elif len(worker.running) >= worker.takes or rng.random() < self.faults.refusal:
            self.refusals += 1
            self.clock.call_later(way_s, lambda: self._fail(send, Failure.REFUSED, Overloaded("full"), ticks=5))
        else:
            worker.running.add(send.call)
            service_s = worker.service_s * rng.uniform(0.5, 1.5)
            if rng.random() < self.faults.late:
                service_s *= 100
            self.clock.call_later(way_s + service_s, lambda: self._end(send, worker))

    def _end(self, send: Send, worker: Worker) -> None:
        if not worker.alive or send.call in self.cancelled or send.call not in worker.running:
            return
        if self.clock.now < worker.paused_until:
            self.clock.call_at(worker.paused_until, lambda: self._end(send, worker))
            return
        worker.running.discard(send.call)
        by_chance = self.rng.random() < self.faults.crash and self.crashes[send.index] < 2
        if send.index in self.poison or by_chance:
            self.crashes[send.index] += 1
            self._fail(send, Failure.BROKE, WorkerCrashed("signal 11"))
            return
        self.ran[send.index] += 1
        if self.rng.random() < self.faults.lost:
            return
        seconds = self.clock.now - self.sent_at[send.call]
        way_s = self.rng.uniform(0.0005, 0.002)
        self.clock.call_later(way_s, lambda: self.perform(self.plan.answered(send.call, seconds)))
        if self.rng.random() < self.faults.twice:
            self.clock.call_later(way_s * 2, lambda: self.perform(self.plan.answered(send.call, seconds)))

    def _fail(self, send: Send, failure: Failure, error: Exception, ticks: int = 0) -> None:
        self.perform(self.plan.failed(send.call, failure, error, retry_after_ticks=ticks))  # type: ignore[arg-type]  # all are MeshErrors

    # -- what happens to nodes ----------------------------------------------------------------------------------------

    def _tick(self) -> None:
        self.perform(self.plan.tick())
        self.clock.call_later(self.limits.tick_s, self._tick)

    def _misfortune(self) -> None:
        for worker in self.workers.values():
            if worker.alive and self.rng.random() < self.faults.death:
                self._die(worker)
            elif self.rng.random() < self.faults.pause:
                worker.paused_until = self.clock.now + self.rng.uniform(0, self.faults.pause_s)
        self.clock.call_later(1.0, self._misfortune)

    def _die(self, worker: Worker) -> None:
        worker.alive = False
        for call in sorted(worker.running):
            if self.rng.random() < 0.5:  # the link's end is noticed at once, or only by gossip or timeout
                self._fail(self.sent[call], Failure.UNREACHED, Unreachable("link broke"))
        worker.running.clear()
        self.clock.call_later(self.rng.uniform(0.5, 5.0), lambda: self._found_dead(worker))
        self.clock.call_later(self.rng.uniform(6.0, 15.0), lambda: self._back(worker))

    def _found_dead(self, worker: Worker) -> None:
        worker.known = False
        self.perform(self.plan.lose(worker.name, Unreachable(f"{worker.name} is dead")))

    def _back(self, worker: Worker) -> None:
        worker.alive = worker.known = True
        self.perform(self.plan.see(worker.name, worker.slots))


def fleet(count: int, *, slots: int = 4, takes: int = 6, service_s: float = 0.1) -> list[Worker]:
    return [Worker(f"n{number}", slots, takes, service_s) for number in range(count)]
