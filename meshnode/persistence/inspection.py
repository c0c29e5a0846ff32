"""A log in words, for people: each frame and each entry, what is torn or damaged. Reads only; needs no lock.

Inspecting the log of a running node may catch its newest write half done, and then calls it torn.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from consensus.machines import composite
from consensus.raft import messages
from consensus.raft import sessions as clients
from meshnode.persistence.disk import Disk, OsDisk
from meshnode.persistence.errors import DirectoryUnusable, unusable
from meshnode.persistence.format import Batch, Damage, Entry, SegmentHeader, Torn
from meshnode.persistence.recovery import frames, segment_numbers, segment_path

_clients_decoder = msgspec.msgpack.Decoder(clients.Open | clients.Close | clients.Run | clients.Runs)
_advance_decoder = msgspec.msgpack.Decoder(composite.Advance)


class Line(msgspec.Struct, frozen=True):
    """One thing the log says. `what`: segment, begin, void, entry, hard_state, torn, damaged, end."""

    file: str
    offset: int
    what: str
    text: str
    index: int | None = None
    term: int | None = None
    bytes: int = 0


def inspect(path: Path, *, disk: Disk | None = None) -> Iterator[Line]:
    """Each line of the log at `path`: a node's data directory, the log's own directory, or one segment.

    Ends after the first damaged line of a segment and goes on with the next segment. Raises DirectoryUnusable.
    """
    disk = OsDisk() if disk is None else disk
    for segment in _segments(path, disk):
        try:
            data = disk.read(segment)
        except OSError as error:
            raise unusable(segment, error) from None
        yield from _segment(segment, data)


def describe(entry: Entry) -> str:
    """What an entry says, in one line."""
    _, term, kind, data = entry
    try:
        if kind == messages.NOOP:
            return "no-op of a new leader"
        if kind == messages.CONFIGURATION:
            return f"configuration {messages.configuration_of(messages.Entry(term, data, kind))}"
        return _command(data)
    except msgspec.DecodeError:
        return f"{len(data)} bytes of kind {kind}: {_shortened(data.hex())}"


def _segments(path: Path, disk: Disk) -> list[Path]:
    if path.suffix == ".wal":
        return [path]
    places = [place for place in (path, path / "log", path / "raft" / "log") if place.is_dir()]
    found = [segment_path(place, number) for place in places for number in segment_numbers(disk, place)]
    if not found:
        raise DirectoryUnusable(f"{path}: there is no log here; name a node's data directory, or one .wal file")
    return found


def _segment(path: Path, data: bytes) -> Iterator[Line]:
    end = 0
    file = str(path)
    try:
        for offset, stop, content in frames(data, int(path.stem)):
            end = stop
            if isinstance(content, Batch):
                yield from _batch(file, offset, stop - offset, content)
            else:
                yield Line(file, offset, "segment", _header(content), content.first_index, bytes=stop - offset)
    except Torn as error:
        yield Line(file, end, "torn", f"{error}; it will be cut off", bytes=len(data) - end)
    except Damage as error:
        yield Line(file, end, "damaged", str(error), bytes=len(data) - end)
    except ValueError:
        yield Line(file, 0, "damaged", "the file's name is not the number of a segment", bytes=len(data))
    else:
        yield Line(file, end, "end", f"{len(data) - end} bytes of zeros ahead", bytes=len(data) - end)


def _header(header: SegmentHeader) -> str:
    return (
        f"segment {header.number} of node {header.node_id} in mesh {header.mesh_id}, "
        f"begun at entry {header.first_index}, term {header.hard_state.term}"
    )


def _batch(file: str, offset: int, size: int, batch: Batch) -> Iterator[Line]:
    if batch.begin_at is not None:
        yield Line(file, offset, "begin", "a snapshot replaced all before", batch.begin_at)
    if batch.void_from is not None:
        yield Line(file, offset, "void", "all entries from this one on are void", batch.void_from)
    for entry in batch.entries:
        yield Line(file, offset, "entry", describe(entry), entry[0], entry[1], len(entry[3]))
    if batch.hard_state is not None:
        vote = f"voted for {batch.hard_state.voted_for}" if batch.hard_state.voted_for else "no vote"
        yield Line(file, offset, "hard_state", vote, term=batch.hard_state.term, bytes=size)


def _command(data: bytes) -> str:
    try:
        run = _clients_decoder.decode(data)
    except msgspec.DecodeError:
        return f"time {_advance_decoder.decode(data).log_ms} ms"
    if isinstance(run, (clients.Open, clients.Close)):
        return "open a client session" if isinstance(run, clients.Open) else f"close client session {run.session}"
    who, held = f"client {run.session} #{run.sequence}", b""
    try:
        if isinstance(run, clients.Runs):
            who, held = f"{who} to #{run.sequence + run.count - 1}", run.commands
            return f"{who}: {_shortened(str(composite.decode_sets(held)))}"
        held = run.command
        return f"{who}: {_shortened(str(composite.decode_command(held)))}"
    except msgspec.DecodeError:
        return f"{who}: {len(held)} bytes: {_shortened(held.hex())}"


def _shortened(text: str) -> str:
    return text if len(text) <= 200 else text[:197] + "..."
