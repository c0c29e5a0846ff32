"""Reading a log back: what it holds, what of it was torn, whose it is. Changes nothing on disk."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from meshnode.persistence.disk import Disk
from meshnode.persistence.errors import DirectoryUnusable, ForeignDirectory, LogDamaged, unusable
from meshnode.persistence.format import (
    FORMAT_VERSION,
    KIND_BATCH,
    KIND_SEGMENT,
    Batch,
    Damage,
    Entry,
    HardState,
    SegmentHeader,
    Torn,
    decode_batch,
    decode_segment_header,
    first_sequence,
    read_frame,
)


@dataclass(frozen=True)
class TornTail:
    """What was cut off: `bytes_cut` from `offset` of `file` on; nothing in it was ever acknowledged."""

    file: Path
    offset: int
    bytes_cut: int
    reason: str


@dataclass(frozen=True)
class Segment:
    """One file of the log. `end` is the offset behind its last whole frame, `size` the file's length."""

    path: Path
    number: int
    first_index: int
    end: int
    size: int


@dataclass
class Recovered:
    """What a log holds: entries first_index … next_index - 1, and the hard state.

    `torn` is None if the log ended cleanly. `last_sequence` is the number of the last whole frame.
    """

    entries: list[Entry] = field(default_factory=list)
    first_index: int = 1
    next_index: int = 1
    hard_state: HardState = field(default_factory=HardState)
    segments: list[Segment] = field(default_factory=list)
    last_sequence: int = 0
    torn: TornTail | None = None

    def take(self, batch: Batch) -> None:
        """Replay one batch; raises Damage if it does not follow from what came before."""
        if batch.begin_at is not None:
            self.entries = []
            self.first_index = self.next_index = batch.begin_at
        if batch.void_from is not None:
            self._void(batch.void_from)
        if batch.entries:
            first, last = batch.entries[0][0], batch.entries[-1][0]
            if first != self.next_index or last - first + 1 != len(batch.entries):
                raise Damage(f"entries {first} to {last} where {self.next_index} should follow")
            self.entries += batch.entries
            self.next_index = last + 1
        if batch.hard_state is not None:
            self.hard_state = batch.hard_state

    def forget_up_to(self, index: int) -> None:
        """Drop entries up to and including `index`: a snapshot holds them."""
        if index >= self.first_index:
            del self.entries[: index + 1 - self.first_index]
            self.first_index = index + 1
            self.next_index = max(self.next_index, self.first_index)

    def is_replaced_by(self, index: int, term: int | None) -> bool:
        """Whether a snapshot up to `index`, whose last entry is of `term`, can't belong to this log."""
        if self.next_index <= index:
            return True
        held = index >= self.first_index and term is not None
        return held and self.entries[index - self.first_index][1] != term

    def _void(self, index: int) -> None:
        if index > self.next_index:
            raise Damage(f"entries voided from {index} on, but the log ends at {self.next_index - 1}")
        del self.entries[max(0, index - self.first_index) :]
        # Below our first: the voided ones were in segments that a snapshot has made dispensable.
        self.first_index = min(self.first_index, index)
        self.next_index = index


def segment_path(directory: Path, number: int) -> Path:
    """Where segment `number` lies."""
    return directory / f"{number:08d}.wal"


def segment_numbers(disk: Disk, directory: Path) -> list[int]:
    """The numbers of the segments in a directory, ascending."""
    stems = (name.removesuffix(".wal") for name in disk.names(directory) if name.endswith(".wal"))
    return sorted(int(stem) for stem in stems if stem.isdecimal())


def recover(disk: Disk, directory: Path, owner: tuple[str, str]) -> Recovered:
    """Read every segment; `owner` is (mesh id, node id).

    Raises LogDamaged, ForeignDirectory (its message says which mesh and node the log belongs to), DirectoryUnusable.
    """
    state = Recovered()
    numbers = segment_numbers(disk, directory)
    for number in numbers:
        path = segment_path(directory, number)
        if number != numbers[0] + len(state.segments):
            missing = segment_path(directory, number - 1)
            raise LogDamaged(missing, 0, f"this segment is missing, {path.name} is there")
        try:
            data = disk.read(path)
        except OSError as error:
            raise unusable(path, error) from None
        _read_segment(state, path, data, number, number == numbers[-1], owner)
    return state


def frames(data: bytes, number: int) -> Iterator[tuple[int, int, SegmentHeader | Batch]]:
    """Each frame of segment `number` as (offset, end, content), its header first; raises Torn or Damage."""
    offset = 0
    sequence = first_sequence(number)
    while (frame := read_frame(data, offset, sequence)) is not None:
        if frame.kind == KIND_SEGMENT and offset == 0:
            yield offset, frame.end, decode_segment_header(frame.payload)
        elif frame.kind == KIND_BATCH and offset > 0:
            yield offset, frame.end, decode_batch(frame.payload)
        else:
            raise Damage(f"a frame of kind {frame.kind} where none may be")
        offset = frame.end
        sequence += 1


def _read_segment(state: Recovered, path: Path, data: bytes, number: int, newest: bool, owner: tuple[str, str]) -> None:
    """Replay one segment into `state`."""
    end = 0
    sequence = first_sequence(number) - 1
    first_index = state.next_index
    try:
        for offset, stop, content in frames(data, number):
            end = offset
            if isinstance(content, Batch):
                state.take(content)
            else:
                _check_header(state, path, content, owner)
                first_index = content.first_index
            end = stop
            sequence += 1
    except Damage as error:
        raise LogDamaged(path, end, str(error)) from None
    except Torn as error:
        # The segment after this one was begun when all of this one was durable.
        if not newest:
            raise LogDamaged(path, end, f"{error}, but segments follow it") from None
        state.torn = TornTail(path, end, len(data) - end, str(error))
    if end == 0 and not newest:
        raise LogDamaged(path, 0, "the segment is empty, but segments follow it")
    if end == 0 and number > 1 and not state.segments:
        # Segments are dropped only when the one after them is durable, header and all.
        raise LogDamaged(path, 0, "the only segment has no header")
    if end > 0:
        state.last_sequence = sequence
    state.segments.append(Segment(path, number, first_index, end, len(data)))


def _check_header(state: Recovered, path: Path, header: SegmentHeader, owner: tuple[str, str]) -> None:
    if header.format_version != FORMAT_VERSION:
        raise DirectoryUnusable(
            f"{path}: written in format {header.format_version}, this version reads format {FORMAT_VERSION}"
        )
    check_owner(path, (header.mesh_id, header.node_id), owner)
    if not state.segments:
        state.first_index = state.next_index = header.first_index
        state.hard_state = header.hard_state
    elif header.follows != state.last_sequence:
        before = state.segments[-1]
        raise LogDamaged(before.path, before.end, f"frames are missing at its end, by what {path.name} says")
    elif header.first_index != state.next_index:
        raise Damage(f"begun at entry {header.first_index} where {state.next_index} should follow")


def check_owner(path: Path, found: tuple[str, str], owner: tuple[str, str]) -> None:
    """Raise ForeignDirectory unless (mesh id, node id) found in a file are ours."""
    if found[0] != owner[0]:
        raise ForeignDirectory(
            f"{path.parent}: belongs to mesh {found[0]!r}, this node is in mesh {owner[0]!r}; choose another directory"
        )
    if found[1] != owner[1]:
        raise ForeignDirectory(
            f"{path.parent}: belongs to node {found[1]!r}, this is node {owner[1]!r}; choose another directory"
        )
