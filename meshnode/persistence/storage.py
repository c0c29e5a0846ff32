"""What Raft's core asks of the disk, carried out: log and snapshots of one node, opened together, kept in order.

    storage = open_storage(directory, mesh_id, node_id)
    core = Raft(node_id, settings, rng, storage.stored)
    Persist     storage.persist(effect)      -> a future: done when durable; then core.persisted(effect.number)
    StoreChunk  storage.store_chunk(effect)
    LoadChunk   await storage.load_chunk(effect)   -> (data, done) for core.chunk_loaded
    Restore     storage.restore(effect)      -> chunks for the machine
    and now and then: await storage.save(core.snapshot(), machine.snapshot()); then core.compacted(snapshot)

Persists become durable in the order they were given, however many one sync covers. One that adopts a snapshot waits
for the snapshot's file, and those after it wait for that: the log begins anew only behind a snapshot that is on disk.
A future that fails (StorageError) ends the matter: stop the node.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from operator import attrgetter
from pathlib import Path
from typing import Any

import msgspec

from consensus.raft.configuration import Configuration
from consensus.raft.effects import LoadChunk, Persist, Restore, StoreChunk
from consensus.raft.messages import Entry, HardState, Snapshot
from consensus.raft.state import Stored
from meshnode.persistence.directory_lock import DirectoryLock
from meshnode.persistence.disk import Disk
from meshnode.persistence.errors import SnapshotDamaged
from meshnode.persistence.log import Log, Told, open_log
from meshnode.persistence.recovery import TornTail
from meshnode.persistence.snapshots import Description, Snapshots

_encoder = msgspec.msgpack.Encoder()
_configuration_decoder = msgspec.msgpack.Decoder(Configuration)
_term, _kind, _data = attrgetter("term"), attrgetter("kind"), attrgetter("data")


def open_storage(directory: Path, mesh_id: str, node_id: str, *, disk: Disk | None = None) -> Storage:
    """Lock and read `directory`; what it held is in `stored`. Blocks. Raises what open_log and Snapshots.load do."""
    lock = DirectoryLock(directory)  # before anything is read, for loading removes what another left half written
    try:
        snapshots = Snapshots(directory / "snapshots", mesh_id, node_id, disk=disk)
        newest = snapshots.load()
        held = newest.description if newest is not None else Description(0, 0)
        log, recovered = open_log(
            directory / "log", mesh_id, node_id, snapshot_index=held.index, snapshot_term=held.term, disk=disk
        )
    except BaseException:
        lock.release()
        raise
    stored = Stored(
        HardState(recovered.hard_state.term, recovered.hard_state.voted_for),
        Snapshot() if newest is None else _snapshot(held),
        [Entry(term, data, kind) for _, term, kind, data in recovered.entries],
    )
    return Storage(log, snapshots, lock, stored, recovered.torn)


class Storage:
    """The disk of one node as its core sees it; made by `open_storage`. `torn` is what was cut off, or None."""

    def __init__(
        self, log: Log, snapshots: Snapshots, lock: DirectoryLock, stored: Stored, torn: TornTail | None
    ) -> None:
        self.stored = stored
        self.torn = torn
        self.log = log
        self._snapshots = snapshots
        self._lock = lock
        # Snapshots belong to one thread at a time, and pieces are adopted after they were received.
        self._thread = ThreadPoolExecutor(1, "meshnode-snapshots")
        self._lost_chunk: Exception | None = None
        self._adopting: asyncio.Task[None] | None = None
        self._behind: deque[tuple[Persist, Told]] = deque()

    def persist(self, effect: Persist) -> asyncio.Future[None]:
        """Make durable what the effect says; the future is done when it is."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def told(error: Exception | None) -> None:
            if not done.done():
                done.set_result(None) if error is None else done.set_exception(error)

        self.persist_and_tell(effect, told)
        return done

    def persist_and_tell(self, effect: Persist, told: Told) -> None:
        """Make durable what the effect says, then call `told`; with an error if that can't be."""
        self._behind.append((effect, told))
        if self._adopting is None:
            self._proceed()

    def store_chunk(self, effect: StoreChunk) -> None:
        """Keep a piece of a coming snapshot; a failure shows when it is adopted."""
        self._thread.submit(self._receive, effect)

    async def load_chunk(self, effect: LoadChunk) -> tuple[bytes | None, bool]:
        """A piece of a snapshot and whether it is the last; (None, False) if that snapshot is gone."""
        found = self._snapshots.find(_description(effect.snapshot))
        if found is None:
            return None, False
        try:
            data = await asyncio.to_thread(found.read, effect.offset, effect.length)
        except SnapshotDamaged:  # or removed, for a newer one came meanwhile: then that one is streamed
            return None, False
        return data, effect.offset + len(data) >= found.size

    def restore(self, effect: Restore) -> Iterator[bytes]:
        """The content of the snapshot that was just adopted, or loaded at the start."""
        found = self._snapshots.find(_description(effect.snapshot))
        if found is None:
            raise AssertionError(f"snapshot {effect.snapshot.index} is durable, but not here")
        return found.chunks()

    async def save(self, snapshot: Snapshot, chunks: Iterable[bytes]) -> None:
        """Write a snapshot of this node's own, then drop what of the log is not needed any more.

        Raises WriteFailed or StorageFull: then nothing has changed.
        """
        await self._in_thread(self._snapshots.save, _description(snapshot), chunks)
        await self.log.compact(await self._in_thread(self._snapshots.oldest_index))

    async def close(self) -> None:
        """Finish what is under way, sync, and let the directory go. Safe to call twice."""
        if self._adopting is not None:
            await asyncio.wait([self._adopting])
        await asyncio.to_thread(self._thread.shutdown)
        try:
            await self.log.close()
        finally:
            self._lock.release()

    def _receive(self, effect: StoreChunk) -> None:
        if effect.offset == 0:
            self._lost_chunk = None
        if self._lost_chunk is None:
            try:
                self._snapshots.receive(_description(effect.snapshot), effect.offset, effect.data)
            except Exception as error:
                self._lost_chunk = error

    def _adopt_received(self, snapshot: Snapshot) -> None:
        if self._lost_chunk is not None:
            raise self._lost_chunk
        self._snapshots.adopt(_description(snapshot))

    def _proceed(self) -> None:
        while self._behind:
            effect, told = self._behind.popleft()
            if effect.snapshot is not None:
                self._adopting = asyncio.get_running_loop().create_task(self._adopt(effect, effect.snapshot, told))
                return
            try:
                self._buffer(effect)
                self.log.tell_when_synced(told)
            except Exception as error:
                told(error)

    def _buffer(self, effect: Persist) -> None:
        if effect.entries:
            entries = effect.entries
            # In C, for this runs for each entry on each node.
            self.log.append(
                list(zip(count(effect.first_index), map(_term, entries), map(_kind, entries), map(_data, entries)))
            )
        if effect.hard_state is not None:
            self.log.set_hard_state(effect.hard_state.term, effect.hard_state.vote)

    async def _adopt(self, effect: Persist, snapshot: Snapshot, told: Told) -> None:
        try:
            await self._in_thread(self._adopt_received, snapshot)
            self.log.begin_at(snapshot.index + 1)
            self._buffer(effect)
            self.log.tell_when_synced(told)
        except Exception as error:
            # Nothing behind it may be written: the core takes the log to have begun anew.
            lost = [(effect, told), *self._behind]
            self._behind.clear()
            for _, each in lost:
                each(error)
        self._adopting = None
        self._proceed()

    async def _in_thread(self, work: Any, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)


def _description(snapshot: Snapshot) -> Description:
    return Description(snapshot.index, snapshot.term, _encoder.encode(snapshot.configuration))


def _snapshot(description: Description) -> Snapshot:
    configuration = _configuration_decoder.decode(description.about)
    return Snapshot(description.index, description.term, configuration)
