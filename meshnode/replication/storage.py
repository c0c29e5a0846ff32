"""Where a replica keeps what it must not forget: term, vote, log and snapshots.

Writes are carried out strictly in the order they were asked for; `done` is called once one is durable, and one sync may
cover many. Nothing blocks the loop: the log syncs in its own thread, snapshots are written in another.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

from consensus.raft.effects import LoadChunk, Persist, Restore, StoreChunk
from consensus.raft.messages import Snapshot
from consensus.raft.state import Stored
from meshnode.persistence import Storage, open_storage


class Store(Protocol):
    """What a replica needs of its disk. `failed` (given at opening) is called once if it can't be trusted any more."""

    stored: Stored

    def write(self, persist: Persist, done: Callable[[], None]) -> None:
        """Make it durable, in order, then call `done`."""
        ...

    def hurry(self) -> None:
        """Nothing more comes in this step: write, if that waits only for company."""
        ...

    def store_chunk(self, chunk: StoreChunk) -> None:
        """Keep a piece of a coming snapshot aside."""
        ...

    async def load_chunk(self, request: LoadChunk) -> tuple[bytes | None, bool]:
        """A piece of our newest snapshot, and whether it is the last; None if that snapshot is gone."""
        ...

    async def save(self, snapshot: Snapshot, chunks: Iterable[bytes]) -> None:
        """Make a snapshot of our own durable; what it covers may be dropped from the log."""
        ...

    def restore(self, effect: Restore) -> Iterable[bytes]:
        """The content of that snapshot, which is the newest; blocks."""
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
        self._snapshot: tuple[Snapshot, bytes] = (stored.snapshot, b"")
        self._incoming: tuple[Snapshot, bytearray] | None = None

    def write(self, persist: Persist, done: Callable[[], None]) -> None:
        """Nothing to wait for; but the core expects the answer later, not within its own step."""
        if persist.snapshot is not None:
            assert self._incoming is not None
            assert self._incoming[0] == persist.snapshot
            self._snapshot, self._incoming = (persist.snapshot, bytes(self._incoming[1])), None
        asyncio.get_running_loop().call_soon(done)

    def hurry(self) -> None:
        """There is nothing to write to."""

    def store_chunk(self, chunk: StoreChunk) -> None:
        """Keep a piece of a coming snapshot aside."""
        if chunk.offset == 0:
            self._incoming = (chunk.snapshot, bytearray())
        assert self._incoming is not None
        assert len(self._incoming[1]) == chunk.offset
        self._incoming[1].extend(chunk.data)

    async def load_chunk(self, request: LoadChunk) -> tuple[bytes | None, bool]:
        """A piece of our newest snapshot."""
        known, content = self._snapshot
        if known != request.snapshot:
            return None, False
        end = request.offset + request.length
        return content[request.offset : end], end >= len(content)

    async def save(self, snapshot: Snapshot, chunks: Iterable[bytes]) -> None:
        """Keep a snapshot of our own."""
        self._snapshot = (snapshot, b"".join(chunks))

    def restore(self, effect: Restore) -> Iterable[bytes]:
        """The content of that snapshot."""
        assert effect.snapshot == self._snapshot[0], "only the newest is kept"
        return [self._snapshot[1]]

    def statistics(self) -> dict[str, Any]:
        """There is no log."""
        return {}

    async def close(self) -> None:
        """Nothing to close."""


class DiskStore:
    """The write-ahead log and the snapshots under one data directory (see `meshnode.persistence`)."""

    def __init__(self, storage: Storage, failed: Callable[[Exception], None]) -> None:
        self.stored = storage.stored
        self._storage = storage
        self._failed = failed

    def write(self, persist: Persist, done: Callable[[], None]) -> None:
        """Make it durable, in order, then call `done`."""
        self._storage.persist_and_tell(persist, lambda error: done() if error is None else self._failed(error))

    def hurry(self) -> None:
        """Begin the write, if that waits only for company."""
        self._storage.log.hurry()

    def store_chunk(self, chunk: StoreChunk) -> None:
        """Write a piece of a coming snapshot aside, in a thread."""
        self._storage.store_chunk(chunk)

    async def load_chunk(self, request: LoadChunk) -> tuple[bytes | None, bool]:
        """Read a piece of our newest snapshot, in a thread."""
        return await self._storage.load_chunk(request)

    async def save(self, snapshot: Snapshot, chunks: Iterable[bytes]) -> None:
        """Write our own snapshot, then drop the log's segments below it."""
        await self._storage.save(snapshot, chunks)

    def restore(self, effect: Restore) -> Iterable[bytes]:
        """The content of the snapshot that was adopted, or loaded at the start; read piece by piece."""
        return self._storage.restore(effect)

    def statistics(self) -> dict[str, Any]:
        """The log's counters."""
        return self._storage.log.statistics()

    async def close(self) -> None:
        """Finish what was asked for, and close the log."""
        await self._storage.close()


async def open_disk_store(
    directory: Path,
    mesh_id: str,
    node_id: str,
    founding: Callable[[], Stored] | None,
    failed: Callable[[Exception], None],
) -> DiskStore:
    """Open what is kept under a data directory. An empty one begins with what `founding` makes, if given.

    Raises the errors of `open_storage`: each names the file and what to do.
    """
    storage = await asyncio.to_thread(open_storage, directory, mesh_id, node_id)
    if storage.stored == Stored() and founding is not None:
        storage.stored = stored = founding()
        storage.log.set_hard_state(stored.hard_state.term, stored.hard_state.vote)
        storage.log.append([(i, e.term, e.kind, e.data) for i, e in enumerate(stored.entries, 1)])
        try:
            await storage.log.sync()
        except BaseException:
            await storage.close()
            raise
    return DiskStore(storage, failed)
