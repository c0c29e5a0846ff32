"""The committed stream, from any node that has it to any that has not: so leaders serve voters, and replicas the rest.

A feed keeps the newest commands in memory. Who follows from further back first gets a snapshot of the machine. A
follower that loses its source goes on from where it is with another: the index is the cursor.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import structlog

from consensus.machines.composite import Change, Machine
from meshnode.errors import MeshError, Unreachable
from meshnode.mesh import Mesh
from meshnode.replication.messages import Follow, Part, Stretch

log = structlog.get_logger("meshnode.following")

KEPT = 20_000  # commands
COMMANDS_A_PART = 1024
PART_BYTES = 256 << 10
SNAPSHOT_PART_BYTES = 64 << 10
BEAT_S = 1.0
PAUSE_S = 0.003  # between two parts with commands: while much is written, one carries what several writes brought
SILENCE_S = 3.0
LEADERLESS_S = 2.0  # a source may be cut off from the others; an election is over sooner
DAY_S = 24 * 3600.0


class Feed:
    """What a node has applied lately, for those who follow it. `leader()` says whom it follows itself."""

    def __init__(self, machine: Machine, leader: Callable[[], str | None]) -> None:
        self._machine = machine
        self._leader = leader
        self._recent: deque[Stretch] = deque()
        self._kept = 0
        # Commands after this index are all in `_recent`.
        self._complete_after = machine.index
        self.applied_index = machine.index
        self._news: set[asyncio.Event] = set()
        self._pausing: set[asyncio.Event] = set()

    def add(self, applied_index: int, stretches: list[Stretch]) -> None:
        """More was applied."""
        self.applied_index = max(self.applied_index, applied_index)
        for stretch in stretches:
            self._recent.append(stretch)
            self._kept += len(stretch[1])
            while self._kept - len(self._recent[0][1]) >= KEPT:
                first, oldest = self._recent.popleft()
                self._kept -= len(oldest)
                self._complete_after = first + len(oldest) - 1
        if self._news:
            self.wake()

    def jumped(self) -> None:
        """The machine was restored from a snapshot: the commands before are not known."""
        self._recent.clear()
        self._kept = 0
        self._complete_after = self._machine.index
        self.applied_index = max(self.applied_index, self._machine.index)
        self.wake()

    def wake(self) -> None:
        """Let the streams look again."""
        for event in self._news:
            event.set()

    def hurry(self) -> None:
        """Let the streams bring what there is without a pause: somebody waits for it."""
        for event in self._pausing:
            event.set()

    async def _pause(self, seconds: float) -> None:
        event = asyncio.Event()
        self._pausing.add(event)
        timer = asyncio.get_running_loop().call_later(seconds, event.set)
        try:
            await event.wait()
        finally:
            timer.cancel()
            self._pausing.discard(event)

    async def stream(self, index: int) -> AsyncIterator[Part]:
        """Everything after `index`, as it comes, without end."""
        news = asyncio.Event()
        self._news.add(news)
        told_leader: str | None = None
        clock, told_at = asyncio.get_running_loop().time, 0.0
        try:
            while True:
                news.clear()
                leader = self._leader()
                if index < self._complete_after:
                    index, told_leader = self.applied_index, leader
                    for part in _parts(self._machine.snapshot(), index, leader):
                        yield part
                elif self.applied_index > index or leader != told_leader:
                    pause = told_at + PAUSE_S - clock()
                    if pause > 0 and self.applied_index - index < COMMANDS_A_PART:
                        await self._pause(pause)
                    told_at = clock()
                    stretches, end = self._after(index)
                    index, told_leader = end, leader
                    yield Part(index, leader, stretches=stretches)
                else:
                    try:
                        async with asyncio.timeout(BEAT_S):
                            await news.wait()
                    except TimeoutError:
                        yield Part(index, leader)
        finally:
            self._news.discard(news)

    def _after(self, index: int) -> tuple[list[Stretch], int]:
        """The next commands for one part, and up to where it tells all."""
        groups = []
        for group in reversed(self._recent):
            if group[0] + len(group[1]) - 1 <= index:
                break
            groups.append(group)
        found: list[Stretch] = []
        room, room_bytes = COMMANDS_A_PART, PART_BYTES
        for first, commands in reversed(groups):
            begin = max(0, index + 1 - first)
            end = min(len(commands), begin + room)
            size = sum(map(len, islice(commands, begin, end)))
            while size > room_bytes and (end - begin > 1 or (found and end > begin)):
                end -= 1
                size -= len(commands[end])
            if end > begin:
                found.append((first + begin, commands[begin:end]))
            if end < len(commands):
                return found, first + end - 1
            room -= end - begin
            room_bytes -= size
        return found, self.applied_index


def _parts(chunks: Iterable[bytes], index: int, leader: str | None) -> Iterator[Part]:
    waiting = bytearray()
    for chunk in chunks:
        waiting += chunk
        while len(waiting) >= SNAPSHOT_PART_BYTES:
            yield Part(index, leader, bytes(waiting[:SNAPSHOT_PART_BYTES]))
            del waiting[:SNAPSHOT_PART_BYTES]
    yield Part(index, leader, bytes(waiting), done=True)


class Following:
    """Keeps a machine up to date from whichever node has the stream.

    sources(): nodes to ask, best first. is_needed(): false while this node has it from Raft itself. applied,
    restored: as a replica tells them. heard(leader): whom the source follows. lost(source): it was of no use.
    """

    def __init__(
        self,
        mesh: Mesh,
        machine: Machine,
        *,
        sources: Callable[[], list[str]],
        is_needed: Callable[[], bool],
        applied: Callable[[int, list[Stretch], list[Change]], None],
        restored: Callable[[int], None],
        heard: Callable[[str], None],
        lost: Callable[[str], None],
    ) -> None:
        self._mesh = mesh
        self._lost = lost
        self._machine = machine
        self._sources = sources
        self._is_needed = is_needed
        self._applied = applied
        self._restored = restored
        self._heard = heard
        self._has_heard = False

    async def run(self) -> None:
        """Follow until cancelled."""
        failures = 0
        while True:
            for source in self._sources() if self._is_needed() else []:
                try:
                    await self._follow(source)
                except (MeshError, TimeoutError) as error:
                    log.debug("source lost", source=source, error=str(error))
                    self._lost(source)
                else:
                    break
                if self._has_heard:
                    failures = 0
                    break  # ask who is nearest now, from the start
            failures += 1
            await asyncio.sleep(min(0.02 * 2**failures, 1.0) if self._is_needed() else BEAT_S)

    async def _follow(self, source: str) -> None:
        self._has_heard = False
        # What a replica of this node's own applied counts, too: the machine is one.
        index = self._machine.index
        parts = self._mesh.stream(source, Follow(index), timeout_s=DAY_S)
        chunks: list[bytes] = []
        clock = asyncio.get_running_loop().time
        led_at = clock()
        try:
            while self._is_needed():
                # Not wait_for: up to Python 3.11 it loses a cancellation that comes together with a result.
                async with asyncio.timeout(SILENCE_S):
                    part = await anext(parts)
                self._has_heard = True
                if part.leader is not None:
                    led_at = clock()
                    self._heard(part.leader)
                elif clock() - led_at > LEADERLESS_S:
                    raise Unreachable(f"{source} follows nobody")
                if part.snapshot or part.done:
                    chunks.append(part.snapshot)
                    if part.done:
                        self._restore(part.applied_index, chunks)
                        chunks = []
                else:
                    self._apply(part)
        except StopAsyncIteration:
            return
        finally:
            close: Any = getattr(parts, "aclose", None)
            if close is not None:
                await close()

    def _restore(self, index: int, chunks: list[bytes]) -> None:
        if index > self._machine.index:  # a machine never goes back
            self._machine.restore(chunks)
            self._restored(index)

    def _apply(self, part: Part) -> None:
        machine = self._machine
        changes: list[Change] = []
        fresh: list[Stretch] = []
        for first, commands in part.stretches:
            known = max(0, machine.index + 1 - first)  # a replica of this node's own may have been ahead
            if known < len(commands):
                fresh.append((first + known, commands[known:]))
                changes += machine.apply_all(*fresh[-1])[1]
        self._applied(part.applied_index, fresh, changes)
