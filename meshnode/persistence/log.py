"""The write-ahead log of one node: what Raft must not forget, on disk before anyone is told.

    log, recovered = open_log(directory, mesh_id, node_id)
    log.append([(index, term, kind, data), …])        # buffered; replaces entries from that index on
    log.set_hard_state(term, voted_for)               # buffered
    await log.sync()                                  # all of the above is on disk, for good
    await log.compact(snapshot_index)                 # whole segments below it are removed
    await log.close()

What is promised
    An awaited `sync` means: after a crash of process or machine, `open_log` returns everything appended before it.
    What was appended but not synced is there whole, in order, up to some point, or not at all.
    A torn tail is cut off and reported; damage elsewhere is refused and nothing is changed (format.py says how
    they are told apart).

Group commit
    One write is under way at a time, in the log's own thread: encode, one system call that writes and syncs, done.
    All that is appended meanwhile goes out in the next write, as one frame with one checksum. So under load a write
    carries what hundreds of callers appended, and its cost is shared; an idle log writes at once.

Failure
    After any failed write or sync the log is failed: every waiting and later call raises the same WriteFailed, and the
    sync is not tried again (errors.py says why). Opening the log anew finds out what is on disk.

A slow disk shows in `statistics()` (a histogram of sync times) and, while it hangs, in `sync_age_s()`: a leader whose
disk hangs should step down, for its heartbeats alone prove nothing (hashicorp/raft #503).

Not promised: replication (that is what Raft is for), encryption, sharing a directory between processes (it is locked).
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeAlias

import structlog

from channels.priority import hurry
from meshnode.errors import Closed
from meshnode.persistence.directory_lock import DirectoryLock
from meshnode.persistence.disk import Disk, OsDisk
from meshnode.persistence.durations import Durations
from meshnode.persistence.errors import LogDamaged, StorageError, failed, unusable
from meshnode.persistence.format import Batch, Entry, HardState
from meshnode.persistence.recovery import Recovered, recover
from meshnode.persistence.segments import LogFiles

logger = structlog.get_logger("meshnode.wal")

SEGMENT_BYTES = 16 << 20
#: The thread's time slices where there are more threads than cores: as short as those of urgent channels, for whoever
#: waits for the disk waits for it, and it needs little of the processor.
SLICE_S = 0.0001

Told: TypeAlias = Callable[[Exception | None], None]


def open_log(
    directory: Path,
    mesh_id: str,
    node_id: str,
    *,
    snapshot_index: int = 0,
    snapshot_term: int | None = None,
    segment_bytes: int = SEGMENT_BYTES,
    disk: Disk | None = None,
) -> tuple[Log, Recovered]:
    """Lock the directory, read the log back, cut a torn tail off. Blocks; call it before the node serves.

    `snapshot_index` is that of the newest snapshot (0: none): entries up to it are not returned, and a log that begins
    above it has a hole, which is damage. A crash between saving a leader's snapshot and `begin_at` leaves a log that
    the snapshot should have replaced: it ends below `snapshot_index`, or has an entry of another term than
    `snapshot_term` there. It begins anew.
    Raises DirectoryUnusable, DirectoryInUse, ForeignDirectory, LogDamaged, StorageFull, WriteFailed.
    """
    disk = OsDisk() if disk is None else disk
    lock = DirectoryLock(directory)
    try:
        recovered = recover(disk, directory, (mesh_id, node_id))
        if recovered.first_index > snapshot_index + 1:
            raise LogDamaged(
                recovered.segments[0].path,
                0,
                f"the log begins at entry {recovered.first_index}, the snapshot ends at {snapshot_index}",
            )
        replaced = bool(recovered.segments) and recovered.is_replaced_by(snapshot_index, snapshot_term)
        if not replaced:
            recovered.forget_up_to(snapshot_index)
        try:
            files = LogFiles(disk, directory, (mesh_id, node_id), recovered, segment_bytes)
            if replaced:
                # Only now: a segment begun above must say where the log on disk ended, not where it goes on.
                files.write(Batch(None, snapshot_index + 1, [], None))
                recovered.forget_up_to(recovered.next_index - 1)
                recovered.first_index = recovered.next_index = snapshot_index + 1
        except PermissionError as error:
            raise unusable(directory, error) from None
        except OSError as error:
            raise failed(directory, error) from None
    except BaseException:
        lock.release()
        raise
    if recovered.torn is not None:
        torn = recovered.torn
        logger.warning(
            "torn tail of the log cut off",
            file=str(torn.file),
            offset=torn.offset,
            bytes_cut=torn.bytes_cut,
            reason=torn.reason,
        )
    return Log(files, lock, recovered), recovered


class Log:
    """An open log; made by `open_log`. Its methods belong to one event loop; only `sync` and below wait.

    Invariants: durable_index <= last_index; a batch in flight ends where the buffer begins.
    """

    def __init__(self, files: LogFiles, lock: DirectoryLock, recovered: Recovered) -> None:
        self._files = files
        self._lock = lock
        self._failure: StorageError | None = None
        self._closed = False
        # The buffer, already reduced to what a batch holds: see `Batch` for the order.
        self._void_from: int | None = None
        self._begin_at: int | None = None
        self._entries: list[Entry] = []
        self._hard_state: HardState | None = None
        self._buffer_index = recovered.next_index  # index of the buffer's first entry, present or to come
        self.next_index = recovered.next_index
        self.durable_index = recovered.next_index - 1
        self._flying_index = self.durable_index  # what durable_index becomes when the write under way is done
        self._in_flight: list[Told] | None = None
        self._waiting: list[Told] = []
        self._is_lonely = False  # the last write was for one alone
        self._started = 0.0
        self._durations = Durations()
        self._frames = self._written_entries = self._written_bytes = self._batch_max = 0
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="meshnode-wal", daemon=True)
        self._thread.start()

    def append(self, entries: Sequence[Entry]) -> None:
        """Buffer contiguous entries; those already there from the first one's index on are replaced."""
        self._check_open()
        if not entries:
            return
        first, last = entries[0][0], entries[-1][0]
        if last - first + 1 != len(entries) or first > self.next_index:
            raise AssertionError(f"entries {first} to {last} ({len(entries)}) do not follow {self.next_index - 1}")
        if first < self.next_index:
            self.void_from(first)
        self._entries += entries
        self.next_index = last + 1

    def void_from(self, index: int) -> None:
        """Buffer that all entries from `index` on are void."""
        self._check_open()
        if index >= self.next_index:
            return
        if index < self._buffer_index:
            if self._begin_at is not None:
                raise AssertionError(f"entries voided from {index} on, below the snapshot at {self._begin_at - 1}")
            # What the buffer held of its own is gone; what is on disk, or under way, gets a mark.
            self._void_from = index
            self._entries = []
            self._buffer_index = index
        else:
            del self._entries[index - self._buffer_index :]
        self.next_index = index
        self.durable_index = min(self.durable_index, index - 1)
        self._flying_index = min(self._flying_index, index - 1)

    def begin_at(self, index: int) -> None:
        """Buffer that a snapshot, already on disk, replaces the whole log; the next entry has this index."""
        self._check_open()
        self._begin_at = self._buffer_index = self.next_index = index
        self._void_from = None
        self._entries = []
        self.durable_index = self._flying_index = index - 1

    def set_hard_state(self, term: int, voted_for: str | None) -> None:
        """Buffer the term and the vote in it."""
        self._check_open()
        self._hard_state = HardState(term, voted_for)

    def sync(self) -> asyncio.Future[None]:
        """Wait until all that was buffered before this call is on disk. Raises WriteFailed, StorageFull, Closed."""
        future = asyncio.get_running_loop().create_future()

        def told(error: Exception | None) -> None:
            if not future.done():
                future.set_result(None) if error is None else future.set_exception(error)

        self.tell_when_synced(told)
        return future

    def tell_when_synced(self, told: Told) -> None:
        """Call `told` once all that was buffered before is on disk, or with what makes that impossible.

        At once if nothing is buffered or under way; else as soon as the loop hears of it, without a turn in between.
        """
        self._check_open()
        if self._has_buffer():
            self._waiting.append(told)
            if self._in_flight is None and len(self._waiting) == 1:
                # At the end of this tick, so that all who append in it share one write.
                asyncio.get_running_loop().call_soon(self._flush)
        elif self._in_flight is not None:
            self._in_flight.append(told)
        else:
            told(None)

    def hurry(self) -> None:
        """Write at once what `tell_when_synced` would leave to the end of this tick, if of late that had no company."""
        if self._is_lonely and self._waiting and self._in_flight is None:
            self._flush()

    async def compact(self, index: int) -> int:
        """Remove the segments whose entries a snapshot up to `index`, already on disk, holds; returns how many."""
        self._check_open()
        removed: int = await self._in_thread(lambda: self._files.compact(index))
        return removed

    async def close(self) -> None:
        """Sync, close the files, release the directory. Safe to call twice."""
        if self._closed:
            return
        try:
            if self._failure is None:
                await self.sync()
        finally:
            self._closed = True
            healthy = self._failure is None
            try:
                await self._in_thread(self._files.close if healthy else self._files.abandon)
            finally:
                self._jobs.put(None)
                self._lock.release()

    def sync_age_s(self) -> float:
        """How long the write under way has been taking, in seconds; 0 if none is."""
        return time.monotonic() - self._started if self._in_flight is not None else 0.0

    def statistics(self) -> dict[str, Any]:
        """Counters since opening; durations in seconds."""
        return {
            "next_index": self.next_index,
            "durable_index": self.durable_index,
            "segments": self._files.segments,
            "frames": self._frames,
            "entries": self._written_entries,
            "bytes": self._written_bytes,
            "largest_batch": self._batch_max,
            "sync": self._durations.statistics(),
            "sync_age_s": self.sync_age_s(),
            "failed": None if self._failure is None else str(self._failure),
        }

    def _check_open(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._closed:
            raise Closed("the log is closed")

    def _has_buffer(self) -> bool:
        return (
            bool(self._entries)
            or self._hard_state is not None
            or self._void_from is not None
            or self._begin_at is not None
        )

    def _flush(self) -> None:
        if self._in_flight is not None or self._failure is not None or not self._waiting:
            return
        self._is_lonely = len(self._waiting) == 1
        batch = Batch(self._void_from, self._begin_at, self._entries, self._hard_state)
        self._void_from = self._begin_at = self._hard_state = None
        self._entries = []
        self._buffer_index = self.next_index
        self._flying_index = self.next_index - 1
        self._in_flight, self._waiting = self._waiting, []
        self._started = time.monotonic()
        loop = asyncio.get_running_loop()

        def write() -> None:
            error: Exception | None = None
            size = 0
            try:
                size = self._files.write(batch)
            except Exception as caught:  # whatever it is, the log can't be trusted after it
                error = caught
            loop.call_soon_threadsafe(self._written, batch, size, error)

        self._jobs.put(write)

    def _written(self, batch: Batch, size: int, error: Exception | None) -> None:
        done, self._in_flight = self._in_flight or [], None
        if error is not None:
            self._fail(error, done)
            return
        self._durations.add(time.monotonic() - self._started)
        self._frames += 1
        self._written_entries += len(batch.entries)
        self._written_bytes += size
        self._batch_max = max(self._batch_max, len(batch.entries))
        self.durable_index = self._flying_index
        if self._waiting:  # first, so that the disk works while we tell
            self._flush()
        for told in done:
            told(None)

    def _fail(self, error: Exception, done: list[Told]) -> None:
        self._failure = failed(self._files.path, error) if isinstance(error, OSError) else StorageError(repr(error))
        logger.error("the log failed", file=str(self._files.path), error=str(self._failure), exc_info=error)
        waiting, self._waiting = self._waiting, []
        for told in done + waiting:
            told(self._failure)

    async def _in_thread(self, job: Callable[[], Any]) -> Any:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()

        def resolve(result: Any, error: Exception | None) -> None:
            if not future.done():
                future.set_result(result) if error is None else future.set_exception(error)

        def work() -> None:
            result: Any = None
            error: Exception | None = None
            try:
                result = job()
            except OSError as caught:
                error = failed(self._files.path, caught)
            except Exception as caught:  # a defect of ours; the thread must live on to say so
                error = caught
            loop.call_soon_threadsafe(resolve, result, error)

        self._jobs.put(work)
        return await future

    def _work(self) -> None:
        hurry(0, SLICE_S)
        while (job := self._jobs.get()) is not None:
            with contextlib.suppress(RuntimeError):  # the loop was closed under us: no one is left to tell
                job()
