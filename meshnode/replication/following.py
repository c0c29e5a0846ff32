"""The committed stream, from any node that has it to any that has not: so leaders serve voters, and replicas the rest.

A feed keeps the newest commands in memory. Who follows from further back first gets a snapshot of the machine. A
follower that loses its source goes on from where it is with another: the index is the cursor.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import msgspec
import structlog

from consensus.machines.composite import Change, Machine
from meshnode.decoding import UNDECODABLE
from meshnode.errors import MeshError, Unreachable
from meshnode.mesh import Mesh
from meshnode.replication.messages import Follow, Part, Reached, Stretch

log = structlog.get_logger("meshnode.following")

KEPT = 20_000  # entries
KEPT_BYTES = 8 << 20
COMMANDS_A_PART = 1024
PART_BYTES = 256 << 10
SNAPSHOT_PART_BYTES = 64 << 10
BEAT_S = 1.0
PAUSE_S = 0.003  # between two parts with commands: while much is written, one carries what several writes brought
OWN_PAUSE_S = 0.025  # the same for who writes itself, and so has most of it before
KEPT_OWN = 2_000  # entries of its own that wait for what comes before them
KEPT_OWN_BYTES = 8 << 20  # of these: one may hold many writes
SILENCE_S = 3.0
LEADERLESS_S = 2.0  # a source may be cut off from the others; an election is over sooner
DAY_S = 24 * 3600.0

_encode = msgspec.msgpack.Encoder().encode
_decode_reached = msgspec.msgpack.Decoder(Reached).decode


class _Follower:
    """How far who follows has come by itself, and when it last said so."""

    __slots__ = ("index", "told_at")

    def __init__(self) -> None:
        self.index = 0
        self.told_at = -math.inf


class Feed:
    """What a node has applied lately, for those who follow it. `leader()` says whom it follows itself."""

    def __init__(self, machine: Machine, leader: Callable[[], str | None]) -> None:
        self._machine = machine
        self._leader = leader
        self._recent: deque[Stretch] = deque()
        self._kept = self._kept_bytes = 0
        # Commands after this index are all in `_recent`.
        self._complete_after = machine.index
        self.applied_index = machine.index
        self._news: set[asyncio.Event] = set()
        self._pausing: set[asyncio.Event] = set()
        self._followers: dict[tuple[str, int], _Follower] = {}

    def add(self, applied_index: int, stretches: list[Stretch]) -> None:
        """More was applied."""
        self.applied_index = max(self.applied_index, applied_index)
        for stretch in stretches:
            self._recent.append(stretch)
            self._kept += len(stretch[1])
            self._kept_bytes += sum(map(len, stretch[1]))
            while self._kept - len(self._recent[0][1]) >= KEPT or (
                self._kept_bytes > KEPT_BYTES and len(self._recent) > 1
            ):
                first, oldest = self._recent.popleft()
                self._kept -= len(oldest)
                self._kept_bytes -= sum(map(len, oldest))
                self._complete_after = first + len(oldest) - 1
        if self._news:
            self.wake()

    def jumped(self) -> None:
        """The machine was restored from a snapshot: the commands before are not known."""
        self._recent.clear()
        self._kept = self._kept_bytes = 0
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

    def reached(self, peer: str, raw: bytes) -> None:
        """Who follows says how far it has come by itself."""
        with contextlib.suppress(*UNDECODABLE):
            message = _decode_reached(raw)
            follower = self._followers.get((peer, message.number))
            if follower is not None:
                follower.index = max(follower.index, message.index)
                follower.told_at = asyncio.get_running_loop().time()

    async def stream(self, index: int, follower: tuple[str, int] = ("", 0)) -> AsyncIterator[Part]:
        """Everything after `index`, as it comes, without end, for (node, the number it gave this stream).

        What that one says it has by itself is left out, and as long as it says so, the rest has time.
        """
        news = asyncio.Event()
        self._news.add(news)
        itself = self._followers[follower] = _Follower()
        told_leader: str | None = None
        clock, told_at = asyncio.get_running_loop().time, 0.0
        try:
            while True:
                news.clear()
                leader = self._leader()
                index = max(index, min(itself.index, self.applied_index))
                if index < self._complete_after:
                    index, told_leader = self.applied_index, leader
                    for part in _parts(self._machine.snapshot(), index, leader):
                        yield part
                elif self.applied_index > index or leader != told_leader:
                    is_ahead = clock() - itself.told_at < 2 * OWN_PAUSE_S
                    pause = told_at + (OWN_PAUSE_S if is_ahead else PAUSE_S) - clock()
                    if pause > 0 and self.applied_index - index < COMMANDS_A_PART:
                        await self._pause(pause)
                        index = max(index, min(itself.index, self.applied_index))
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
            if self._followers.get(follower) is itself:
                del self._followers[follower]

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
    tell(source, bytes): a `Reached`.
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
        tell: Callable[[str, bytes], object],
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
        self._tell = tell
        self._source = ""
        self._number = 0
        self._told_at = -math.inf
        # What this node wrote and knows to stand in the log, by index, behind what it has not got yet.
        self._own: dict[int, list[bytes]] = {}
        self._own_kept = self._own_bytes = 0

    def wrote(self, first_index: int, entries: list[bytes]) -> None:
        """What this node wrote itself stands here: it need not wait for the stream to bring that."""
        has_room = self._own_kept < KEPT_OWN and self._own_bytes < KEPT_OWN_BYTES
        if first_index > self._machine.index and first_index not in self._own and has_room:
            self._own[first_index] = entries
            self._own_kept += len(entries)
            self._own_bytes += sum(map(len, entries))
        if self._apply_own() and self._source:
            now = asyncio.get_running_loop().time()
            if now >= self._told_at + OWN_PAUSE_S / 2:
                self._told_at = now
                self._tell(self._source, _encode(Reached(self._number, self._machine.index)))

    @property
    def source(self) -> str | None:
        """Whom it follows and has told lately that it has all by itself: that one gives it the rest at leisure."""
        is_ahead = asyncio.get_running_loop().time() < self._told_at + 2 * OWN_PAUSE_S
        return self._source if self._source and is_ahead else None

    def _apply_own(self) -> bool:
        """Apply what follows on what the machine has; whether there was any."""
        machine, applied = self._machine, False
        while self._own:
            first_index = min(self._own)
            if first_index > machine.index + 1:
                break
            entries = self._own.pop(first_index)
            self._own_kept -= len(entries)
            self._own_bytes -= sum(map(len, entries))
            if first_index == machine.index + 1:
                changes = machine.apply_all(first_index, entries)[1]
                self._applied(machine.index, [(first_index, entries)], changes)
                applied = True
        return applied

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
        self._number = random.getrandbits(48)  # not that of a stream of an earlier process
        parts = self._mesh.stream(source, Follow(index, self._number), timeout_s=DAY_S)
        self._source = source
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
            self._source = ""
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
        self._apply_own()
