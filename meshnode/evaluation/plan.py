"""Decides which example goes to which node. It sends nothing, waits for nothing and knows no clock.

Each method takes one stimulus (an example is there, a node was seen or lost, a call was answered or failed, a tick
passed) and returns effects to be performed in order. The coordinator performs them over a mesh, the simulation under a
virtual clock; both run this very code.

The way of an example:

    add -> waiting -> Send -> in flight -> answered -> Count      its one row
              ^                  |
              +--- tried again --+        its call failed, or its node is gone
                                 +-> late -> a second Send (hedge); the first answer wins, the other is cancelled

What a failed call means (`Failure`), and for whom:

    REFUSED    the node is full              the node's window is halved, it rests; the example waits, unharmed
    UNREACHED  nothing was delivered         the node rests, longer each time; the example goes elsewhere, unharmed
    GONE       dead or silent after the send the same, and the example's losses are counted
    INCAPABLE  no such program there         the node is not asked again
    BROKE      its worker crashed, it hung   the example goes elsewhere; after `max_attempts` it is a failed row
    REJECTED   nobody will take this input   a failed row at once

Invariants: an example is counted or failed exactly once, whatever arrives late or twice (`_calls` forgets a call with
its first outcome, and all calls of an example when it is done). Only BROKE and REJECTED, which are the example's own
doing, can end in a failed row. An example that was lost with `max_losses` nodes stops the evaluation instead: it may
be what kills them, but that is not known, and so is no score.
"""

from __future__ import annotations

import enum
import heapq
import random
from collections import deque
from dataclasses import dataclass, field

from meshnode.errors import MeshError, Unreachable
from meshnode.evaluation.capacity import Capacity, choose
from meshnode.evaluation.effects import Cancel, Count, Effect, Fail, Send, Starved, Stuck

SAMPLES = 256  # latest durations, over all nodes, from which lateness is judged


class Failure(enum.Enum):
    """Why a call brought no reply; see the module's table."""

    REFUSED = enum.auto()
    UNREACHED = enum.auto()
    GONE = enum.auto()
    INCAPABLE = enum.auto()
    BROKE = enum.auto()
    REJECTED = enum.auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Sizes and times of a plan.

    hedge_factor: a call is late after this many times the 95th percentile of recent durations; 0 never hedges.
    hedge_share: hedges may be this share of all sends while examples wait; once none waits, all that is late is hedged.
    """

    tick_s: float = 0.02
    max_attempts: int = 3
    max_losses: int = 10
    patience_ticks: int = 50
    hedge_factor: float = 2.0
    hedge_share: float = 0.05
    hedge_least_ticks: int = 5
    hedge_samples: int = 8


@dataclass(slots=True)
class _Example:
    index: int
    sends: int = 0
    broke: int = 0
    losses: int = 0
    hedged: bool = False  # was in line for a second send; never is again
    avoid: set[str] = field(default_factory=set)  # nodes it failed at
    calls: list[int] = field(default_factory=list)  # in flight; more than one only while hedged


@dataclass(slots=True)
class _Call:
    example: _Example
    node: Capacity
    sent_at: int


class Plan:
    """The state of one evaluation. `waiting` examples are added but held by no node; `retries` and `hedges` count."""

    def __init__(self, limits: Limits, rng: random.Random) -> None:
        self._limits = limits
        self._rng = rng
        self._now = 0
        self._nodes: dict[str, Capacity] = {}
        self._open: dict[str, Capacity] = {}  # those of _nodes that may be given a task now
        self._blocked: set[str] = set()  # those that may open when time passes
        self._fresh: deque[_Example] = deque()
        self._again: list[tuple[int, _Example]] = []  # heap by index: the oldest first, so rows come in order
        self._calls: dict[int, _Call] = {}  # in the order sent
        self._late: deque[int] = deque()  # calls that wait for room to be hedged
        self._next_call = 0
        self._durations: deque[float] = deque(maxlen=SAMPLES)
        self._idle_since = 0
        self._reason: MeshError = Unreachable("there is no node to run it on")
        self.slots = 0  # of all nodes seen and not lost
        self.sends = 0
        self.retries = 0
        self.hedges = 0
        self.unwanted = 0  # outcomes of calls nobody waited for any more

    @property
    def waiting(self) -> int:
        """Examples that no node holds."""
        return len(self._fresh) + len(self._again)

    @property
    def in_flight(self) -> int:
        """Calls that have no outcome yet."""
        return len(self._calls)

    @property
    def nodes(self) -> frozenset[str]:
        """The nodes seen and not lost."""
        return frozenset(self._nodes)

    def add(self, index: int) -> list[Effect]:
        """One more example, `index` never used before."""
        self._fresh.append(_Example(index))
        return self._assign()

    def see(self, name: str, slots: int, busy: int = 0, *, ready: bool = True) -> list[Effect]:
        """A node that has the program is there, or has changed. Not ready (suspect): it keeps its calls, gets none."""
        node = self._nodes.get(name)
        if node is None:
            node = self._nodes[name] = Capacity(name)
        self.slots -= node.slots
        node.see(slots, busy, ready=ready)
        self.slots += node.slots
        self._refresh(node)
        return self._assign()

    def lose(self, name: str, reason: MeshError) -> list[Effect]:
        """A node is dead, has left or dropped the program: what it held goes elsewhere."""
        node = self._nodes.pop(name, None)
        if node is None:
            return []
        self.slots -= node.slots
        self._open.pop(name, None)
        self._blocked.discard(name)
        self._reason = reason
        effects: list[Effect] = []
        for call in [call for call, held in self._calls.items() if held.node is node]:
            example = self._calls.pop(call).example
            example.calls.remove(call)
            effects += [Cancel(call), *self._lost(example, name, reason)]
        return effects + self._assign()

    def answered(self, call: int, seconds: float) -> list[Effect]:
        """A reply came, `seconds` after its send."""
        held = self._calls.pop(call, None)
        if held is None:
            self.unwanted += 1
            return []
        example, node = held.example, held.node
        node.held -= 1
        node.answered(seconds)
        self._refresh(node)
        self._durations.append(seconds)
        example.calls.remove(call)
        return [*self._drop_calls(example), Count(call, example.index, node.name), *self._assign()]

    def failed(self, call: int, failure: Failure, reason: MeshError, *, retry_after_ticks: int = 0) -> list[Effect]:
        """A call ended without a reply."""
        held = self._calls.pop(call, None)
        if held is None:
            self.unwanted += 1
            return []
        example, node = held.example, held.node
        self._reason = reason
        node.held -= 1
        example.calls.remove(call)
        effects: list[Effect] = []
        match failure:
            case Failure.REFUSED:
                node.refused(self._now, retry_after_ticks)
                self._wait(example)
            case Failure.UNREACHED:
                node.failed(self._now)
                example.avoid.add(node.name)
                self._wait(example)
            case Failure.GONE:
                node.failed(self._now)
                effects += self._lost(example, node.name, reason)
            case Failure.INCAPABLE:
                node.incapable = reason
                self._wait(example)
            case Failure.BROKE:
                example.broke += 1
                example.avoid.add(node.name)
                if example.broke < self._limits.max_attempts:
                    self._wait(example)
                else:
                    effects += [*self._drop_calls(example), Fail(example.index, node.name, example.broke, reason)]
            case Failure.REJECTED:
                effects += [*self._drop_calls(example), Fail(example.index, node.name, example.sends, reason)]
        self._refresh(node)
        return effects + self._assign()

    def tick(self) -> list[Effect]:
        """One tick of time has passed."""
        self._now += 1
        for name in [name for name in self._blocked if self._now >= self._nodes[name].blocked_until]:
            self._refresh(self._nodes[name])
        self._find_late()
        return self._assign() + self._starve()

    def statistics(self) -> dict[str, dict[str, float]]:
        """Per node: calls held, window, slots, mean latency in seconds (0 if unknown), failures in a row."""
        return {
            node.name: {
                "held": node.held,
                "window": node.window,
                "slots": node.slots,
                "latency_s": node.latency_s or 0.0,
                "failures": node.failures,
            }
            for node in self._nodes.values()
        }

    # -- the parts of a step ------------------------------------------------------------------------------------------

    def _refresh(self, node: Capacity) -> None:
        """Keep `_open` and `_blocked` true for one node; called whenever anything about it changed."""
        if node.open(self._now):
            self._open[node.name] = node
        else:
            self._open.pop(node.name, None)
        if self._now < node.blocked_until:
            self._blocked.add(node.name)
        else:
            self._blocked.discard(node.name)

    def _lost(self, example: _Example, node: str, reason: MeshError) -> list[Effect]:
        """This example's call ended with its node; whether the program ran there is not known."""
        example.avoid.add(node)
        example.losses += 1
        if example.losses >= self._limits.max_losses:
            return [Stuck(example.index, example.losses, reason)]
        self._wait(example)
        return []

    def _wait(self, example: _Example) -> None:
        """The example waits again, unless a hedge of it is still under way."""
        if not example.calls:
            heapq.heappush(self._again, (example.index, example))

    def _drop_calls(self, example: _Example) -> list[Effect]:
        """The example is done: whatever else of it is in flight is cancelled and forgotten."""
        effects: list[Effect] = []
        for call in example.calls:
            held = self._calls.pop(call)
            held.node.held -= 1
            held.node.overtaken((self._now - held.sent_at) * self._limits.tick_s)
            self._refresh(held.node)
            effects.append(Cancel(call))
        example.calls.clear()
        return effects

    def _assign(self) -> list[Effect]:
        effects = self._hedge()
        passed_over: list[tuple[int, _Example]] = []
        while self._again and self._open:
            index, example = heapq.heappop(self._again)
            node = self._choose(example)
            if node is None:
                passed_over.append((index, example))
            else:
                self.retries += 1
                effects.append(self._send(example, node))
        for waiting in passed_over:
            heapq.heappush(self._again, waiting)
        while self._fresh and (node := choose(self._with_room(), self._rng)) is not None:
            effects.append(self._send(self._fresh.popleft(), node))
        return effects

    def _with_room(self) -> list[Capacity]:
        """Nodes that may be given one more: beyond their slots only while enough waits to fill all slots anew.

        Near the end a task queued behind another would be late, when a slot elsewhere is about to be free.
        """
        if self.waiting >= self.slots:
            return list(self._open.values())
        return [node for node in self._open.values() if node.held < node.slots]

    def _choose(self, example: _Example) -> Capacity | None:
        """A node with room where it has not failed; None to wait for one; if it failed everywhere, any with room."""
        room = self._with_room()
        others = [node for node in room if node.name not in example.avoid]
        if others:
            return choose(others, self._rng)
        if any(node.usable(self._now) and node.name not in example.avoid for node in self._nodes.values()):
            return None
        return choose(room, self._rng)

    def _send(self, example: _Example, node: Capacity) -> Send:
        call, self._next_call = self._next_call, self._next_call + 1
        example.sends += 1
        example.calls.append(call)
        self._calls[call] = _Call(example, node, self._now)
        node.held += 1
        self._refresh(node)
        self.sends += 1
        return Send(call, example.index, node.name, example.sends)

    def _find_late(self) -> None:
        """Put late calls in line for a second send; they go before fresh examples, so their share is bounded."""
        limits = self._limits
        if not limits.hedge_factor or len(self._durations) < limits.hedge_samples:
            return
        p95_s = sorted(self._durations)[int(0.95 * (len(self._durations) - 1))]
        late_after = max(limits.hedge_least_ticks, int(limits.hedge_factor * p95_s / limits.tick_s))
        for call, held in self._calls.items():
            if held.sent_at > self._now - late_after:
                break  # calls are in the order sent: all that follow are younger
            if held.example.hedged:
                continue
            if self.waiting and self.hedges + len(self._late) + 1 > limits.hedge_share * self.sends:
                break
            held.example.hedged = True
            self._late.append(call)

    def _hedge(self) -> list[Effect]:
        """Send late calls a second time, each to another node that has room."""
        effects: list[Effect] = []
        for call in list(self._late) if self._open else ():
            held = self._calls.get(call)
            if held is not None:
                avoid = held.example.avoid | {held.node.name}
                node = choose([node for node in self._open.values() if node.name not in avoid], self._rng)
                if node is None:
                    continue
                self.hedges += 1
                effects.append(self._send(held.example, node))
            self._late.remove(call)
        return effects

    def _starve(self) -> list[Effect]:
        if self._calls or self._open or not self.waiting:
            self._idle_since = self._now
            return []
        # Waiting helps only if a node may open by itself: one that is suspect, or rests.
        refusals = [node.incapable for node in self._nodes.values() if node.incapable is not None]
        hopeless = bool(refusals) and len(refusals) == len(self._nodes)
        if self._now - self._idle_since < self._limits.patience_ticks and not hopeless:
            return []
        self._idle_since = self._now
        return [Starved(refusals[0] if hopeless else self._reason, hopeless)]
