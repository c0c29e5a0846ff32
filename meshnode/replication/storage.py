"""Where a replica keeps what it must not forget: term, vote, log and snapshots.

Writes are carried out strictly in the order they were asked for; `done` is called once one is durable, and one sync may
cover many. Nothing here blocks the loop: the log syncs in its own thread, snapshots are written in another.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import msgspec

from consensus.raft import messages
from consensus.raft.configuration import Configuration
from consensus.raft.effects import Persist
from consensus.raft.messages import Entry, HardState
from consensus.raft.state import Stored
from meshnode.runtime.snapshots import Description, Snapshots
from meshnode.runtime.wal import Log, open_log

_encode = msgspec.msgpack.Encoder().encode
_decode_configuration = msgspec.msgpack.Decoder(Configuration).decode


class Store(Protocol):
    """What a replica needs of its disk. `failed` (given at opening) is called once if it can't be trusted any more."""

    stored: Stored

    def write(self, persist: Persist, done: Callable[[], None]) -> None:
        """Make it durable, in order, then call `done`."""
        ...

    def store_chunk(self, snapshot: messages.Snapshot, offset: int, data: bytes) -> None:
        """Keep a piece of a coming snapshot aside."""
        ...

    async def load_chunk(self, snapshot: messages.Snapshot, offset: int, length: int) -> tuple[bytes | None, bool]:
        """A piece of our newest snapshot, and whether it is the last; None if that snapshot is gone."""
        ...

    async def save(self, snapshot: messages.Snapshot, chunks: Iterable[bytes]) -> None:
        """Make a snapshot of our own durable; what it covers may be dropped from the log."""
        ...

    def chunks(self) -> Iterable[bytes]:
        """The content of the newest snapshot; blocks."""
        ...

    def statistics(self) -> dict[str, Any]:
        """Counters of the log."""
        ...

    async def close(self) -> None:
        """Make durable what is not yet, and close."""
        ...


class MemoryStore:
    """For a node that keeps nothing: all is as durable as the node itself."""

    def __init__(self, stored: Stored) -> None:
        self.stored = stored
        self._snapshot: tuple[messages.Snapshot, bytes] = (stored.snapshot, b"")
        self._incoming: tuple[messages.Snapshot, bytearray] | None = None

    def write(self, persist: Persist, done: Callable[[], None]) -> None:
        """Nothing to wait for; but the core expects the answer later, not within its own step."""
        if persist.snapshot is not None:
            assert self._incoming is not None
            assert self._incoming[0] == persist.snapshot
            self._snapshot, self._incoming = (persist.snapshot, bytes(self._incoming[1])), None
        asyncio.get_running_loop().call_soon(done)

    def store_chunk(self, snapshot: messages.Snapshot, offset: int, data: bytes) -> None:
        """Keep a piece of a coming snapshot aside."""
        if offset == 0:
            self._incoming = (snapshot, bytearray())
        assert self._incoming is not None
        assert len(self._incoming[1]) == offset
        self._incoming[1].extend(data)

    async def load_chunk(self, snapshot: messages.Snapshot, offset: int, length: int) -> tuple[bytes | None, bool]:
        """A piece of our newest snapshot."""
        known, content = self._snapshot
        return (
            (content[offset : offset + length], offset + length >= len(content)) if known == snapshot else (None, True)
        )

    async def save(self, snapshot: messages.Snapshot, chunks: Iterable[bytes]) -> None:
        """Keep a snapshot of our own."""
        self._snapshot = (snapshot, b"".join(chunks))

    def chunks(self) -> Iterable[bytes]:
        """The content of the newest snapshot."""
        return [self._snapshot[1]]

    def statistics(self) -> dict[str, Any]:
        """There is no log."""
        return {}

    async def close(self) -> None:
        """Nothing to close."""


class DiskStore:
    """The write-ahead log and the snapshots under one data directory."""

    def __init__(self, log: Log, snapshots: Snapshots, stored: Stored, failed: Callable[[Exception], None]) -> None:
        self.stored = stored
        self._log = log
        self._snapshots = snapshots
        self._failed = failed
        # Snapshot work and the writes behind it wait here, so that the order on disk is the order asked for.
        self._jobs: deque[Callable[[], Awaitable[None]]] = deque()
        self._working: asyncio.Task[None] | None = None
        self._pieces: deque[tuple[messages.Snapshot, int, bytes]] = deque()

    def write(self, persist: Persist, done: Callable[[], None]) -> None:
        """Append to the log; behind snapshot work under way, if there is any."""
        if self._working is None and persist.snapshot is None:
            self._append(persist, done)
        else:
            self._do(lambda: self._write_later(persist, done))

    def store_chunk(self, snapshot: messages.Snapshot, offset: int, data: bytes) -> None:
        """Write a piece of a coming snapshot aside, in a thread."""
        description = describe(snapshot)
        self._do(lambda: asyncio.to_thread(self._snapshots.receive, description, offset, data))

    async def load_chunk(self, snapshot: messages.Snapshot, offset: int, length: int) -> tuple[bytes | None, bool]:
        """Read a piece of our newest snapshot, in a thread."""
        found = self._snapshots.find(describe(snapshot))
        if found is None:
            return None, True
        data = await asyncio.to_thread(found.read, offset, length)
        return data, offset + length >= found.size

    async def save(self, snapshot: messages.Snapshot, chunks: Iterable[bytes]) -> None:
        """Write our own snapshot, then drop the log's segments below it."""
        await asyncio.to_thread(self._snapshots.save, describe(snapshot), chunks)
        await self._log.compact(snapshot.index)

    def chunks(self) -> Iterator[bytes]:
        """The content of the newest snapshot, read from disk piece by piece."""
        newest = self._snapshots.newest
        assert newest is not None, "asked for only when there is one"
        return newest.chunks()

    def statistics(self) -> dict[str, Any]:
        """The log's counters."""
        return self._log.statistics()

    async def close(self) -> None:
        """Finish what was asked for, and close the log."""
        while self._working is not None:
            await asyncio.wait([self._working])
        await self._log.close()

    def _append(self, persist: Persist, done: Callable[[], None]) -> None:
        log, hard_state, first = self._log, persist.hard_state, persist.first_index
        try:
            if hard_state is not None:
                log.set_hard_state(hard_state.term, hard_state.vote)
            if first:
                log.void_from(first)
            if persist.entries:
                log.append([(i, e.term, e.kind, e.data) for i, e in enumerate(persist.entries, first)])
            synced = asyncio.ensure_future(log.sync())
        except Exception as error:
            self._failed(error)
            return
        synced.add_done_callback(lambda future: self._synced(future, done))

    def _synced(self, future: asyncio.Future[None], done: Callable[[], None]) -> None:
        error = None if future.cancelled() else future.exception()
        if isinstance(error, Exception):
            self._failed(error)
        elif not future.cancelled():
            done()

    async def _write_later(self, persist: Persist, done: Callable[[], None]) -> None:
        if persist.snapshot is not None:
            await asyncio.to_thread(self._snapshots.adopt, describe(persist.snapshot))
            self._log.begin_at(persist.snapshot.index + 1)
        self._append(persist, done)

    def _do(self, job: Callable[[], Awaitable[None]]) -> None:
        self._jobs.append(job)
        if self._working is None:
            self._working = asyncio.get_running_loop().create_task(self._work())

    async def _work(self) -> None:
        try:
            while self._jobs:
                await self._jobs.popleft()()
        except Exception as error:
            self._failed(error)
        finally:
            self._working = None


def describe(snapshot: messages.Snapshot) -> Description:
    """A snapshot as the disk names it."""
    return Description(snapshot.index, snapshot.term, _encode(snapshot.configuration))


def open_disk_store(
    directory: Path,
    mesh_id: str,
    node_id: str,
    founding: Callable[[], Stored] | None,
    failed: Callable[[Exception], None],
) -> DiskStore:
    """Open what is kept under a data directory; blocks. An empty one begins with what `founding` makes, if given.

    Raises the errors of `open_log` and `Snapshots.load`: each names the file and what to do.
    """
    snapshots = Snapshots(directory / "snapshots", mesh_id, node_id)
    newest = snapshots.load()
    index = newest.description.index if newest is not None else 0
    log, recovered = open_log(directory / "log", mesh_id, node_id, snapshot_index=index)
    snapshot = messages.Snapshot()
    if newest is not None:
        about = newest.description
        snapshot = messages.Snapshot(about.index, about.term, _decode_configuration(about.about))
    entries = [Entry(term, data, kind) for _, term, kind, data in recovered.entries]
    hard_state = recovered.hard_state
    stored = Stored(
        HardState(hard_state.term, hard_state.voted_for) if hard_state is not None else HardState(), snapshot, entries
    )
    if stored == Stored() and founding is not None:
        stored = founding()
        log.set_hard_state(stored.hard_state.term, stored.hard_state.vote)
        log.append([(i, e.term, e.kind, e.data) for i, e in enumerate(stored.entries, 1)])
    return DiskStore(log, snapshots, stored, failed)
