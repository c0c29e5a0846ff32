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
COMMANDS_A_PART = 512
SNAPSHOT_PART_BYTES = 64 << 10
BEAT_S = 1.0
SILENCE_S = 5.0
DAY_S = 24 * 3600.0


class Feed:
    """What a node has applied lately, for those who follow it. `leader()` says whom it follows itself."""

    def __init__(self, machine: Machine, leader: Callable[[], str | None]) -> None:
        self._machine = machine
        self._leader = leader
        self._recent: deque[tuple[int, bytes]] = deque()
        # Commands after this index are all in `_recent`.
        self._complete_after = machine.index
        self.applied_index = machine.index
        self._news: set[asyncio.Event] = set()

    def add(self, applied_index: int, commands: list[tuple[int, bytes]]) -> None:
        """More was applied."""
        self.applied_index = max(self.applied_index, applied_index)
        self._recent.extend(commands)
        while len(self._recent) > KEPT:
            self._complete_after = self._recent.popleft()[0]
        self.wake()

    def jumped(self) -> None:
        """The machine was restored from a snapshot: the commands before are not known."""
        self._recent.clear()
        self._complete_after = self.applied_index = self._machine.index
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
                    commands = self._after(index)
                    full = len(commands) == COMMANDS_A_PART
                    index = commands[-1][0] if full else self.applied_index
                    yield Part(index, leader, commands=commands)
                    told_leader = leader
                    if full:
                        continue
                else:
                    try:
                        await asyncio.wait_for(news.wait(), BEAT_S)
                    except TimeoutError:
                        yield Part(index, leader)
        finally:
            self._news.discard(news)

    def _after(self, index: int) -> list[tuple[int, bytes]]:
        found: list[tuple[int, bytes]] = []
        for entry in reversed(self._recent):
            if entry[0] <= index:
                break
            found.append(entry)
        found.reverse()
        return found[:COMMANDS_A_PART]


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

    sources(): nodes to ask, best first. applied, restored: as a replica tells them. heard(leader): whom the source
    follows.
    """

    def __init__(
        self,
        mesh: Mesh,
        machine: Machine,
        *,
        sources: Callable[[], list[str]],
        applied: Callable[[int, list[tuple[int, bytes]], list[Change]], None],
        restored: Callable[[int], None],
        heard: Callable[[str | None], None],
    ) -> None:
        self._mesh = mesh
        self._machine = machine
        self._sources = sources
        self._applied = applied
        self._restored = restored
        self._heard = heard
        self.index = machine.index

    async def run(self) -> None:
        """Follow until cancelled."""
        failures = 0
        while True:
            for source in self._sources():
                try:
                    await self._follow(source)
                except (MeshError, TimeoutError) as error:
                    log.debug("source lost", source=source, error=str(error))
                else:
                    failures = -1
            failures += 1
            await asyncio.sleep(min(0.05 * 2**failures, 2.0))

    async def _follow(self, source: str) -> None:
        parts = self._mesh.stream(source, Follow(self.index), timeout_s=DAY_S)
        chunks: list[bytes] = []
        try:
            while True:
                part = await asyncio.wait_for(anext(parts), SILENCE_S)
                self._heard(part.leader)
                if part.snapshot or part.done:
                    chunks.append(part.snapshot)
                    if part.done:
                        self._machine.restore(chunks)
                        chunks = []
                        self.index = part.applied_index
                        self._restored(self.index)
                    continue
                self._apply(part)
        except StopAsyncIteration:
            return
        finally:
            close: Any = getattr(parts, "aclose", None)
            if close is not None:
                await close()

    def _apply(self, part: Part) -> None:
        changes: list[Change] = []
        commands = []
        for index, data in part.commands:
            if index > self._machine.index:
                changes += self._machine.apply(index, data)[1]
                commands.append((index, data))
        self.index = max(self.index, part.applied_index)
        self._applied(self.index, commands, changes)
