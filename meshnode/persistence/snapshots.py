"""Snapshots on disk: written aside, synced, renamed, so that one is there whole or not at all.

    store = Snapshots(directory, mesh_id, node_id)
    store.newest                                  # the newest that is valid, or None
    store.save(Description(index, term, about), chunks)       # one of our own
    store.receive(description, offset, data); store.adopt(description)    # one that a leader streams to us
    snapshot.chunks()                             # to restore the machine
    snapshot.read(offset, length)                 # to stream it to a follower

A file `<index>-<term>.snapshot` is a sequence of frames (format.py): the header, pieces of 64 KiB of content (the
last may be shorter), and an end that names the length. Each frame has its checksum, so every piece is verified when it
is read, and reading at an offset needs no index. A snapshot under way is `<index>-<term>.part`; those left by a crash
are removed.

All methods block: call them from a thread. They belong to one thread at a time, except those of a `Snapshot`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import msgspec
import structlog

from meshnode.persistence.disk import Disk, File, OsDisk
from meshnode.persistence.errors import SnapshotDamaged, failed, unusable
from meshnode.persistence.format import (
    FORMAT_VERSION,
    KIND_CHUNK,
    KIND_END,
    KIND_SNAPSHOT,
    OVERHEAD_BYTES,
    Damage,
    Frame,
    Torn,
    encode_frame,
    read_frame,
)
from meshnode.persistence.recovery import check_owner

logger = structlog.get_logger("meshnode.snapshots")

PIECE_BYTES = 64 << 10
_FRAME_BYTES = PIECE_BYTES + OVERHEAD_BYTES
_HEADER_LIMIT_BYTES = 4 << 20  # far above what a configuration of any size takes


class Description(msgspec.Struct, array_like=True, frozen=True):
    """Which state a snapshot holds: that after entry `index`, of `term`. `about` is the core's own, kept as it is."""

    index: int
    term: int
    about: bytes = b""


class _Header(msgspec.Struct, array_like=True, frozen=True):
    format_version: int
    mesh_id: str
    node_id: str
    description: Description


class _End(msgspec.Struct, array_like=True, frozen=True):
    size: int


T = TypeVar("T")
_encoder = msgspec.msgpack.Encoder()
_header_decoder = msgspec.msgpack.Decoder(_Header)
_end_decoder = msgspec.msgpack.Decoder(_End)


class Snapshot:
    """A snapshot that was found valid. `size` is that of its content in bytes. Raises SnapshotDamaged when read."""

    def __init__(self, disk: Disk, path: Path, description: Description, start: int, size: int) -> None:
        self._disk = disk
        self._start = start
        self.path = path
        self.description = description
        self.size = size

    def chunks(self) -> Iterator[bytes]:
        """The content, in pieces of up to 64 KiB."""
        for number in range(-(-self.size // PIECE_BYTES)):
            yield self._piece(number)

    def read(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset` on."""
        end = min(offset + length, self.size)
        if end <= offset:
            return b""
        first = offset // PIECE_BYTES
        pieces = b"".join(self._piece(number) for number in range(first, (end - 1) // PIECE_BYTES + 1))
        return pieces[offset - first * PIECE_BYTES : end - first * PIECE_BYTES]

    def _piece(self, number: int) -> bytes:
        offset = self._start + number * _FRAME_BYTES
        return _frame(self._disk, self.path, offset, _FRAME_BYTES, number + 1, KIND_CHUNK).payload


class Snapshots:
    """The snapshots in a directory, of which the newest `keep` are kept. Call `load` before the rest.

    Raises DirectoryUnusable, ForeignDirectory; when writing WriteFailed, StorageFull: then the snapshot is not there,
    and those that were still are.
    """

    def __init__(self, directory: Path, mesh_id: str, node_id: str, *, keep: int = 2, disk: Disk | None = None) -> None:
        self._directory = directory
        self._owner = (mesh_id, node_id)
        self._keep = keep
        self._disk: Disk = OsDisk() if disk is None else disk
        self._incoming: _Writer | None = None
        self.newest: Snapshot | None = None

    def load(self) -> Snapshot | None:
        """Find the newest valid one; those that are damaged are reported and passed over, none is removed."""
        try:
            self._disk.make_directory(self._directory)
            for name in self._disk.names(self._directory):
                if name.endswith(".part"):
                    self._disk.remove(self._directory / name)
            for path in reversed(self._paths()):
                try:
                    self.newest = self._verify(path)
                    break
                except SnapshotDamaged as error:
                    logger.error("a snapshot is damaged, an older one is tried", file=str(path), error=str(error))
        except OSError as error:
            raise unusable(self._directory, error) from None
        return self.newest

    def oldest_index(self) -> int:
        """Index of the oldest snapshot kept, 0 if fewer than `keep` are: compact the log no further than this.

        So that if the newest turns out damaged, the one before it and the log lead to the same state.
        """
        paths = self._paths()
        return int(paths[0].stem.partition("-")[0]) if len(paths) >= self._keep else 0

    def find(self, description: Description) -> Snapshot | None:
        """That snapshot, if it is the newest: older ones may be removed at any moment."""
        newest = self.newest
        return newest if newest is not None and newest.description == description else None

    def save(self, description: Description, chunks: Iterable[bytes]) -> Snapshot:
        """Write a snapshot of our own; returns when it is on disk."""
        writer = _Writer(self._disk, self._directory, self._owner, description)
        try:
            for chunk in chunks:
                writer.write(chunk)
            return self._finish(writer)
        except BaseException:
            writer.abandon()
            raise

    def receive(self, description: Description, offset: int, data: bytes) -> None:
        """Keep a piece of a snapshot that is coming in, aside; offset 0 begins anew."""
        if offset == 0:
            if self._incoming is not None:
                self._incoming.abandon()
            self._incoming = _Writer(self._disk, self._directory, self._owner, description)
        writer = self._incoming
        if writer is None or writer.description != description or writer.size != offset:
            raise AssertionError(f"a piece at {offset} of snapshot {description.index} does not follow")
        try:
            writer.write(data)
        except BaseException:
            self._incoming = None
            writer.abandon()
            raise

    def adopt(self, description: Description) -> Snapshot:
        """All pieces of the incoming snapshot are here: returns when it is on disk, the newest."""
        writer, self._incoming = self._incoming, None
        if writer is None or writer.description != description:
            raise AssertionError(f"snapshot {description.index} was not received")
        try:
            return self._finish(writer)
        except BaseException:
            writer.abandon()
            raise

    def _finish(self, writer: _Writer) -> Snapshot:
        self.newest = writer.finish()
        # The name that came last must be on disk before an older file goes.
        paths = self._paths()
        for path in paths[: -self._keep]:
            try:
                self._disk.remove(path)
            except OSError as error:  # it costs space, nothing else
                logger.warning("an old snapshot can't be removed", file=str(path), error=str(error))
        return self.newest

    def _paths(self) -> list[Path]:
        # Zero-padded names: their order is that of (index, term).
        return [self._directory / name for name in self._disk.names(self._directory) if name.endswith(".snapshot")]

    def _verify(self, path: Path) -> Snapshot:
        header_frame = _frame(self._disk, path, 0, _HEADER_LIMIT_BYTES, 0, KIND_SNAPSHOT)
        header = _decode(_header_decoder, path, 0, header_frame.payload)
        if header.format_version != FORMAT_VERSION:
            raise SnapshotDamaged(path, 0, f"it is of format {header.format_version}, not {FORMAT_VERSION}")
        check_owner(path, (header.mesh_id, header.node_id), self._owner)
        offset, sequence, size = header_frame.end, 1, 0
        while True:
            frame = _frame(self._disk, path, offset, _FRAME_BYTES, sequence, None)
            if frame.kind != KIND_CHUNK:
                break
            offset += frame.end
            sequence += 1
            size += len(frame.payload)
        end = _decode(_end_decoder, path, offset, frame.payload)
        if frame.kind != KIND_END or end.size != size or sequence - 1 != -(-size // PIECE_BYTES):
            raise SnapshotDamaged(path, offset, f"{size} bytes in {sequence - 1} pieces where {end.size} should be")
        return Snapshot(self._disk, path, header.description, header_frame.end, size)


class _Writer:
    """One snapshot under way: content is cut into pieces as it comes."""

    def __init__(self, disk: Disk, directory: Path, owner: tuple[str, str], description: Description) -> None:
        self._disk = disk
        self._directory = directory
        self._name = f"{description.index:020d}-{description.term:020d}"
        self._part = directory / f"{self._name}.part"
        self._rest = bytearray()
        self._sequence = self._offset = self.size = 0
        self.description = description
        try:
            disk.remove(self._part)
            self._file: File = disk.create(self._part)
        except OSError as error:
            raise failed(self._part, error) from None
        try:
            self._put(KIND_SNAPSHOT, _encoder.encode(_Header(FORMAT_VERSION, *owner, description)))
        except BaseException:
            self.abandon()
            raise
        self._start = self._offset

    def write(self, data: bytes) -> None:
        """Add content."""
        self.size += len(data)
        self._rest += data
        while len(self._rest) >= PIECE_BYTES:
            self._put(KIND_CHUNK, bytes(self._rest[:PIECE_BYTES]))
            del self._rest[:PIECE_BYTES]

    def finish(self) -> Snapshot:
        """Put the end, sync, and give the file its name."""
        if self._rest:
            self._put(KIND_CHUNK, bytes(self._rest))
        self._put(KIND_END, _encoder.encode(_End(self.size)))
        path = self._directory / f"{self._name}.snapshot"
        try:
            self._file.sync()
            self._file.close()
            self._disk.rename(self._part, path)
            self._disk.sync_directory(self._directory)
        except OSError as error:
            raise failed(path, error) from None
        return Snapshot(self._disk, path, self.description, self._start, self.size)

    def abandon(self) -> None:
        """Remove what was written, if the disk still lets us."""
        for step in (self._file.close, lambda: self._disk.remove(self._part)):
            try:
                step()
            except OSError:  # closed already, or the disk is gone; the next start removes it
                continue

    def _put(self, kind: int, payload: bytes) -> None:
        frame = encode_frame(kind, self._sequence, payload)
        try:
            self._file.write(frame, self._offset)
        except OSError as error:
            raise failed(self._part, error) from None
        self._sequence += 1
        self._offset += len(frame)


def _frame(disk: Disk, path: Path, offset: int, size: int, sequence: int, kind: int | None) -> Frame:
    """One frame, read and verified; `end` counts from `offset`."""
    try:
        frame = read_frame(disk.read_part(path, offset, size), 0, sequence)
    except OSError as error:
        raise SnapshotDamaged(path, offset, f"it can't be read ({error.strerror})") from None
    except (Torn, Damage) as error:
        raise SnapshotDamaged(path, offset, str(error)) from None
    if frame is None or (kind is not None and frame.kind != kind):
        raise SnapshotDamaged(path, offset, "it ends too early" if frame is None else f"a frame of kind {frame.kind}")
    return frame


def _decode(decoder: msgspec.msgpack.Decoder[T], path: Path, offset: int, payload: bytes) -> T:
    try:
        return decoder.decode(payload)
    except msgspec.DecodeError as error:
        raise SnapshotDamaged(path, offset, f"it can't be understood ({error})") from None
