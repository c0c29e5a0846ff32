"""The committed stream, from any node that has it to any that has not: so leaders serve voters, and replicas the rest.

A feed keeps the newest commands in memory. Who follows from further back first gets a snapshot of the machine. A
follower that loses its source goes on from where it is with another: the index is the cursor.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any

import structlog

from consensus.machines.composite import Change, Machine
from meshnode.errors import MeshError
from meshnode.mesh import Mesh
from meshnode.replication.messages import Follow, Part

log = structlog.get_logger("meshnode.following")

KEPT = 20_000  # commands
COMMANDS_A_PART = 1024
PART_BYTES = 256 << 10
SNAPSHOT_PART_BYTES = 64 << 10
BEAT_S = 1.0
SILENCE_S = 5.0
DAY_S = 24 * 3600.0


class Feed:
    """What a node has applied lately, for those who follow it. `leader()` says whom it follows itself."""

    def __init__(self, machine: Machine, leader: Callable[[], str | None]) -> None:
        self._machine = machine
        self._leader = leader
        self._recent: deque[list[tuple[int, bytes]]] = deque()  # as they were applied together; none is empty
        self._kept = 0
        # Commands after this index are all in `_recent`.
        self._complete_after = machine.index
        self.applied_index = machine.index
        self._news: set[asyncio.Event] = set()

    def add(self, applied_index: int, commands: list[tuple[int, bytes]]) -> None:
        """More was applied."""
        self.applied_index = max(self.applied_index, applied_index)
        if commands:
            self._recent.append(commands)
            self._kept += len(commands)
            while self._kept - len(self._recent[0]) >= KEPT:
                oldest = self._recent.popleft()
                self._kept -= len(oldest)
                self._complete_after = oldest[-1][0]
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

    async def stream(self, index: int) -> AsyncIterator[Part]:
        """Everything after `index`, as it comes, without end."""
        news = asyncio.Event()
        self._news.add(news)
        told_leader: str | None = None
        try:
            while True:
                news.clear()
                leader = self._leader()
                if index < self._complete_after:
                    index, told_leader = self.applied_index, leader
                    for part in _parts(self._machine.snapshot(), index, leader):
                        yield part
                elif self.applied_index > index or leader != told_leader:
                    commands, is_all = self._after(index)
                    index = self.applied_index if is_all else commands[-1][0]
                    told_leader = leader
                    yield Part(index, leader, commands=commands)
                else:
                    try:
                        async with asyncio.timeout(BEAT_S):
                            await news.wait()
                    except TimeoutError:
                        yield Part(index, leader)
        finally:
            self._news.discard(news)

    def _after(self, index: int) -> tuple[list[tuple[int, bytes]], bool]:
        """The next commands for one part, and whether these are all there are."""
        groups = []
        for group in reversed(self._recent):
            if group[-1][0] <= index:
                break
            groups.append(group)
        found: list[tuple[int, bytes]] = []
        size = 0
        for group in reversed(groups):
            for command in group:
                if command[0] <= index:
                    continue
                if found and (len(found) >= COMMANDS_A_PART or size + len(command[1]) > PART_BYTES):
                    return found, False
                found.append(command)
                size += len(command[1])
        return found, True


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
    restored: as a replica tells them. heard(leader): whom the source follows.
    """

    def __init__(
        self,
        mesh: Mesh,
        machine: Machine,
        *,
        sources: Callable[[], list[str]],
        is_needed: Callable[[], bool],
        applied: Callable[[int, list[tuple[int, bytes]], list[Change]], None],
        restored: Callable[[int], None],
        heard: Callable[[str | None], None],
    ) -> None:
        self._mesh = mesh
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
        try:
            while self._is_needed():
                # Not wait_for: up to Python 3.11 it loses a cancellation that comes together with a result.
                async with asyncio.timeout(SILENCE_S):
                    part = await anext(parts)
                self._has_heard = True
                self._heard(part.leader)
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
        changes: list[Change] = []
        commands = []
        for index, data in part.commands:
            if index > self._machine.index:
                changes += self._machine.apply(index, data)[1]
                commands.append((index, data))
        self._applied(part.applied_index, commands, changes)
