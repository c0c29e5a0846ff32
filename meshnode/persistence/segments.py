"""The files of a log, written one frame at a time. Blocks; belongs to one thread at a time.

A frame is written only after the one before it is on disk, and only onto zeros: that is what lets recovery tell a torn
write from damage (format.py). A new segment's header is on disk before the first frame behind it is written.
"""

from __future__ import annotations

from pathlib import Path

from meshnode.persistence.disk import Disk, File
from meshnode.persistence.format import (
    FORMAT_VERSION,
    KIND_BATCH,
    KIND_SEGMENT,
    Batch,
    SegmentHeader,
    encode_batch,
    encode_frame,
    encode_segment_header,
    first_sequence,
)
from meshnode.persistence.recovery import Recovered, Segment, segment_path

#: Zeros are written this far ahead at a time. Overwriting zeros is a third cheaper to sync than growing the file, for
#: neither its size nor its extents change (figures in disk.py).
_AHEAD_BYTES = 1 << 20
#: A batch is split rather than written as one frame beyond this, so that recovery reads in bounded pieces.
_FRAME_BYTES = 8 << 20


class LogFiles:
    """The segments in `directory`, continued where `recovered` ends. `owner` is (mesh id, node id).

    Making it cuts a torn tail off and, if there is no segment yet, begins one.
    """

    def __init__(
        self, disk: Disk, directory: Path, owner: tuple[str, str], recovered: Recovered, segment_bytes: int
    ) -> None:
        self._disk = disk
        self._directory = directory
        self._owner = owner
        self._segment_bytes = segment_bytes
        self._zeros = bytes(min(_AHEAD_BYTES, segment_bytes))
        self._next_index = recovered.next_index
        self._hard_state = recovered.hard_state
        self._sequence = recovered.last_sequence
        # (number, first index) of each segment, oldest first; the last is the one written to.
        self._segments = [(segment.number, segment.first_index) for segment in recovered.segments]
        if recovered.segments:
            self._continue(recovered.segments[-1])
        else:
            self._begin(1)

    @property
    def path(self) -> Path:
        """The segment written to."""
        return segment_path(self._directory, self._segments[-1][0])

    @property
    def segments(self) -> int:
        """How many segments there are."""
        return len(self._segments)

    def write(self, batch: Batch) -> int:
        """Return when the batch is on disk: how many bytes that took. Raises OSError; then nothing may follow."""
        payload = encode_batch(batch)
        if len(payload) > _FRAME_BYTES and len(batch.entries) > 1:
            half = len(batch.entries) // 2
            first = Batch(batch.void_from, batch.begin_at, batch.entries[:half], None)
            return self.write(first) + self.write(Batch(None, None, batch.entries[half:], batch.hard_state))
        if self._offset >= self._segment_bytes:
            self.close()
            self._begin(self._segments[-1][0] + 1)
        written = self._put(KIND_BATCH, payload)
        if batch.begin_at is not None:
            self._next_index = batch.begin_at
        if batch.void_from is not None:
            self._next_index = batch.void_from
        if batch.entries:
            self._next_index = batch.entries[-1][0] + 1
        if batch.hard_state is not None:
            self._hard_state = batch.hard_state
        return written

    def compact(self, index: int) -> int:
        """Remove segments whose entries a snapshot up to `index` holds; returns how many. Raises OSError."""
        removed = 0
        # The oldest first, so that a crash between two leaves no gap.
        while len(self._segments) > 1 and self._segments[1][1] <= index + 1:
            self._disk.remove(segment_path(self._directory, self._segments[0][0]))
            self._disk.sync_directory(self._directory)
            del self._segments[0]
            removed += 1
        return removed

    def close(self) -> None:
        """Give the zeros ahead back and close. What was written is on disk already."""
        try:
            self._file.truncate(self._offset)
        finally:
            self._file.close()

    def abandon(self) -> None:
        """Close without touching the file: after a failure its content is not ours to guess."""
        self._file.close()

    def _continue(self, segment: Segment) -> None:
        self._file: File = self._disk.open(segment.path)
        self._offset = self._zeroed = segment.end
        if segment.end < segment.size:
            # What is cut must be gone from the disk before anything is written there, lest it return behind it.
            self._file.truncate(segment.end)
            self._file.sync()
        if segment.end == 0:
            del self._segments[-1]
            self._file.close()
            self._disk.remove(segment.path)
            self._begin(segment.number)

    def _begin(self, number: int) -> None:
        self._file = self._disk.create(segment_path(self._directory, number))
        header = SegmentHeader(FORMAT_VERSION, *self._owner, number, self._sequence, self._next_index, self._hard_state)
        self._offset = self._zeroed = 0
        self._sequence = first_sequence(number) - 1
        self._segments.append((number, self._next_index))
        self._put(KIND_SEGMENT, encode_segment_header(header))
        self._disk.sync_directory(self._directory)

    def _put(self, kind: int, payload: bytes) -> int:
        frame = encode_frame(kind, self._sequence + 1, payload)
        end = self._offset + len(frame)
        if self._zeroed < end:
            while self._zeroed < end:
                self._file.write(self._zeros, self._zeroed)
                self._zeroed += len(self._zeros)
            self._file.sync()  # without it their extents would be made one by one by the frames' own syncs
        self._file.write_durably(frame, self._offset)
        self._sequence += 1
        self._offset = end
        return len(frame)
