"""What the plan knows of one node: how much it may be given now, and how long it is left alone after a failure.

Pure: time is the plan's tick, chance comes in as an argument.

`window` is how many tasks we let a node hold, between 1 and `full`, its slots and a few more that hide the way there
and back. It grows by one with each answer, is halved by a refusal and falls to one by a failure: additive increase,
multiplicative decrease, as TCP does (Jacobson 1988), so several coordinators share a mesh without knowing each other.
A node that failed is blocked for a time that doubles with each further failure; the one task it then gets is the probe.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from meshnode.errors import MeshError

LATENCY_WEIGHT = 0.2  # of the newest sample in the moving average
FIRST_BLOCK_TICKS = 5
LONGEST_BLOCK_TICKS = 500


class Capacity:
    """One node. `held` counts our calls it holds; `busy` is all the tasks it says it runs, whoever sent them."""

    __slots__ = (
        "blocked_until",
        "busy",
        "failures",
        "full",
        "held",
        "incapable",
        "latency_s",
        "name",
        "present",
        "ready",
        "slots",
        "window",
    )

    def __init__(self, name: str) -> None:
        self.name = name
        self.slots = 0
        self.full = 0
        self.busy = 0
        self.held = 0  # invariant: the number of live calls whose node is this one
        self.window = 0  # invariant: 1 <= window <= full, once seen
        self.ready = False  # gossip believes it alive
        self.present = False  # a candidate at all: known, alive or suspect, has the program
        self.incapable: MeshError | None = None  # why it can't run this program; asked again only when it is seen anew
        self.blocked_until = 0
        self.failures = 0  # in a row
        self.latency_s: float | None = None

    def see(self, slots: int, busy: int, *, ready: bool) -> None:
        """Take what membership says of it."""
        full = slots + max(1, slots // 4)
        # A node starts with all its slots; one that grew is trusted with the new ones at once, too.
        self.window = max(1, min(full, self.window + full - self.full if self.full else full))
        self.slots, self.full, self.busy = slots, full, busy
        self.ready, self.present = ready, True

    def usable(self, now: int) -> bool:
        """Whether it may be given work at all, room or not."""
        return self.ready and self.present and self.incapable is None and now >= self.blocked_until

    def open(self, now: int) -> bool:
        """Whether it may be given a task now."""
        return self.held < self.window and self.usable(now)

    def answered(self, seconds: float) -> None:
        """It ran a task to an end, good or bad."""
        self.failures = 0
        self.window = min(self.full, self.window + 1)
        self.observe(seconds)

    def observe(self, seconds: float) -> None:
        """Take one more sample of how long it takes."""
        known = self.latency_s
        self.latency_s = seconds if known is None else known + LATENCY_WEIGHT * (seconds - known)

    def overtaken(self, seconds: float) -> None:
        """Another node answered first. It is slow or silent: what it took so far is the least it takes."""
        self.window = max(1, self.window // 2)
        self.observe(seconds)

    def refused(self, now: int, ticks: int) -> None:
        """It is full: fewer at once, and none for `ticks`."""
        self.window = max(1, min(self.window, self.held) // 2)
        self.blocked_until = max(self.blocked_until, now + max(1, ticks))

    def failed(self, now: int) -> None:
        """It did not do what it took on: leave it alone, each time for twice as long.

        Calls that fail together, as all do when a link breaks, are one failure.
        """
        if now < self.blocked_until:
            return
        self.blocked_until = now + min(LONGEST_BLOCK_TICKS, FIRST_BLOCK_TICKS << min(self.failures, 10))
        self.failures += 1
        self.window = 1

    def cost(self) -> float:
        """About how long one more task takes here; an untried node costs nothing, so it is tried."""
        load = max(self.held, self.busy) + 1
        return (self.latency_s or 0.0) * max(1.0, load / max(1, self.slots)) + 1e-6 * load / max(1, self.slots)


def choose(candidates: Sequence[Capacity], rng: random.Random) -> Capacity | None:
    """The better of two drawn at random (Mitzenmacher 2001): near the best choice, without a herd running to it."""
    if len(candidates) < 2:
        return candidates[0] if candidates else None
    first, second = rng.sample(candidates, 2)
    return first if first.cost() <= second.cost() else second
