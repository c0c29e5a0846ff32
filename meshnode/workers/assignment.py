"""Decides which job goes to which worker. It sends nothing, waits for nothing and knows no clock.

    add -> waiting -> given to a worker -> freed
              ^             |
              +-- lost -----+     its worker died: it is a suspect from then on

A worker of many slots is given a few jobs ahead, which it starts by itself, in the order given, whenever one of those
it runs ends: the way to the pool and back then costs no slot any time. Of a worker with few slots the next end may be
far away, so it gets none ahead, lest a job wait there while another worker is free.

Who killed a worker can't be told when it ran several jobs, so each of them is a suspect: a suspect runs alone in its
worker, and one that loses `MAX_ATTEMPTS` workers is given up. So a job that kills its worker fails by itself and takes
no other with it. At most half of the workers (one, if there is one) run suspects while ordinary jobs wait.

Invariants: a job is in exactly one of `waiting`, `suspects`, or one worker's `held` or `ahead`; a worker that holds a
suspect holds nothing else; one that has a job ahead has no free slot.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from meshnode.workers.protocol import MAX_ATTEMPTS

SLOTS_FOR_ONE_AHEAD = 4


@dataclass(slots=True)
class Seat:
    """One worker that can be given jobs. `open`: it takes new ones. `reserved`: it empties itself for a suspect.

    held: what it runs. ahead: what it will run next, in this order.
    """

    name: str
    slots: int
    held: set[int] = field(default_factory=set)
    ahead: OrderedDict[int, None] = field(default_factory=OrderedDict)
    open: bool = True
    reserved: bool = False

    @property
    def free(self) -> int:
        """How many ordinary jobs it takes now."""
        return self.slots - len(self.held) if self.open and not self.reserved else 0

    @property
    def room_ahead(self) -> int:
        """How many it takes beyond those it can run at once."""
        return self.slots // SLOTS_FOR_ONE_AHEAD - len(self.ahead) if self.open and not self.reserved else 0


class Assignment:
    """The jobs of a pool by number, and its workers by name."""

    def __init__(self) -> None:
        self.seats: dict[str, Seat] = {}
        self.waiting: OrderedDict[int, None] = OrderedDict()
        self.suspects: OrderedDict[int, None] = OrderedDict()
        self._holders: dict[int, Seat] = {}
        self._losses: dict[int, int] = {}

    @property
    def slots(self) -> int:
        """How many jobs the open workers run at once."""
        return sum(seat.slots for seat in self.seats.values() if seat.open)

    @property
    def queued(self) -> int:
        """How many jobs wait for a slot."""
        return len(self.waiting) + len(self.suspects) + sum(len(seat.ahead) for seat in self.seats.values())

    @property
    def running(self) -> int:
        """How many jobs hold a slot."""
        return sum(len(seat.held) for seat in self.seats.values())

    def add(self, job: int) -> None:
        """A new job."""
        self.waiting[job] = None

    def seat(self, name: str, slots: int) -> None:
        """A worker is ready."""
        self.seats[name] = Seat(name, slots)

    def close(self, name: str) -> None:
        """Give this worker no more jobs; it keeps what it holds."""
        seat = self.seats.get(name)
        if seat is not None:
            seat.open = False

    def take_back(self, name: str) -> None:
        """A worker will not begin what it was given ahead: let that wait again, before all that came later."""
        seat = self.seats.get(name)
        while seat is not None and seat.ahead:
            job, _ = seat.ahead.popitem()
            del self._holders[job]
            self.waiting[job] = None
            self.waiting.move_to_end(job, last=False)

    def unseat(self, name: str, innocent: frozenset[int] | None = None) -> list[int]:
        """A worker is gone. Its jobs wait again, those it had not begun as if nothing were; returns those given up.

        `innocent`: those of its jobs that are known not to be the cause; None: nothing is known, all are suspects.
        """
        self.take_back(name)
        seat = self.seats.pop(name, None)
        given_up = []
        for job in sorted(seat.held, reverse=True) if seat is not None else ():
            del self._holders[job]
            if innocent is not None and job in innocent:
                queue = self.suspects if job in self._losses else self.waiting
            else:
                self._losses[job] = self._losses.get(job, 0) + 1
                if self._losses[job] >= MAX_ATTEMPTS:
                    given_up.append(job)
                    del self._losses[job]
                    continue
                queue = self.suspects
            queue[job] = None
            queue.move_to_end(job, last=False)  # it has waited before
        return given_up

    def free(self, job: int) -> int | None:
        """A job is over, wherever it is; returns the one that its worker begins in its place."""
        self.waiting.pop(job, None)
        self.suspects.pop(job, None)
        suspected = self._losses.pop(job, 0) > 0
        seat = self._holders.pop(job, None)
        if seat is not None:
            seat.ahead.pop(job, None)
            seat.held.discard(job)
            if suspected:
                seat.reserved = False
            if seat.ahead and len(seat.held) < seat.slots:
                begun, _ = seat.ahead.popitem(last=False)
                seat.held.add(begun)
                return begun
        return None

    def holder(self, job: int) -> str | None:
        """The worker that holds this job."""
        seat = self._holders.get(job)
        return seat.name if seat is not None else None

    def losses(self, job: int) -> int:
        """How many workers this job has lost."""
        return self._losses.get(job, 0)

    def runs(self, job: int) -> bool:
        """Whether it has a slot, as far as is known."""
        seat = self._holders.get(job)
        return seat is not None and job in seat.held

    def assign(self) -> list[tuple[str, int]]:
        """Give waiting jobs to workers with room: (worker, job), to be sent in this order."""
        given: list[tuple[str, int]] = []
        if self.suspects:
            self._assign_suspects(given)
        else:
            for seat in self.seats.values():
                # The suspect it made room for was cancelled.
                seat.reserved = seat.reserved and not seat.held.isdisjoint(self._losses)
        while self.waiting:
            best = max(self.seats.values(), key=lambda seat: seat.free, default=None)
            if best is None or best.free <= 0:
                break
            job, _ = self.waiting.popitem(last=False)
            self._give(best, job, given)
        while self.waiting:
            best = max(self.seats.values(), key=lambda seat: seat.room_ahead, default=None)
            if best is None or best.room_ahead <= 0:
                break
            job, _ = self.waiting.popitem(last=False)
            best.ahead[job] = None
            self._holders[job] = best
            given.append((best.name, job))
        return given

    def _assign_suspects(self, given: list[tuple[str, int]]) -> None:
        usable = [seat for seat in self.seats.values() if seat.open]
        alone = sum(seat.reserved for seat in usable)
        most = max(1, len(usable) // 2) if self.waiting else len(usable)
        usable.sort(key=lambda seat: (not seat.reserved, len(seat.held)))
        for seat in usable:
            if not self.suspects:
                break
            if not seat.reserved:
                if alone >= most:
                    break
                seat.reserved = True
                alone += 1
            if not seat.held:
                job, _ = self.suspects.popitem(last=False)
                self._give(seat, job, given)

    def _give(self, seat: Seat, job: int, given: list[tuple[str, int]]) -> None:
        seat.held.add(job)
        self._holders[job] = seat
        given.append((seat.name, job))
