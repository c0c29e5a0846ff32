"""Frames: how the log and the snapshots lie on disk, and how a torn write is told from damage. Pure functions.

    offset  bytes
    0       4      b"MNwl"
    4       4      length of the payload
    8       8      sequence: number of the file << 32, plus one for each frame before it in the file
    16      4      kind
    20      4      CRC32C of the 20 bytes above
    24      n      payload, padded with zeros to n, a multiple of 8
    24+n    4      CRC32C of sequence and padded payload
    28+n    4      b"MNok"

All integers are little-endian. Frames start at multiples of 8, so a frame that crosses a sector has at least 8 of its
bytes, never all zero at its end, on either side. Behind the last frame there is nothing, or zeros.

Torn or damaged? (Alagappan et al., "Protocol-Aware Recovery for Consensus-Based Storage", FAST '18.) A torn write was
never acknowledged and may be cut off; damage may hit what is committed and must not. Two rules of the writer make
them distinguishable: a frame is written only after the one before it is on disk, and only onto zeros or past the end
of the file. So a frame that can't be read is

    damaged   if any later frame is found, in this file or the next: the bad one was durable once;
    damaged   if its header is whole and no sector of it is missing or blank: it was written to its end, then changed;
    damaged   if its header is not, but payload and trailer fit the sequence expected here;
    torn      otherwise.

What is given up: damage that hits header and payload of the very last frame at once, or blanks a whole sector of it,
passes for torn; so does the loss of whole frames at the very end.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import google_crc32c
import msgspec

FORMAT_VERSION = 1
SECTOR = 512  # the smallest unit a disk writes as a whole

KIND_SEGMENT = 1
KIND_BATCH = 2
KIND_SNAPSHOT = 3
KIND_CHUNK = 4
KIND_END = 5

_MAGIC = b"MNwl"
_END = b"MNok"
_HEADER = struct.Struct("<4sIQI")
_CRC = struct.Struct("<I")
_SEQUENCE = struct.Struct("<Q")
_TRAILER = struct.Struct("<I4s")
HEADER_BYTES = _HEADER.size + _CRC.size
TRAILER_BYTES = _TRAILER.size
OVERHEAD_BYTES = HEADER_BYTES + TRAILER_BYTES
MAX_PAYLOAD_BYTES = 1 << 30

_value = google_crc32c.value
_extend = google_crc32c.extend

#: One entry of the replicated log as the disk sees it: (index, term, kind, data). A plain tuple, for a million of them
#: are made while recovering; what `kind` and `data` mean is the core's business.
Entry = tuple[int, int, int, bytes]


class HardState(msgspec.Struct, array_like=True, frozen=True):
    """What Raft must not forget besides the log: the current term, and whom this node voted for in it (or None)."""

    term: int = 0
    voted_for: str | None = None


class SegmentHeader(msgspec.Struct, array_like=True, frozen=True):
    """The first frame of a segment. It makes the segments before it dispensable once a snapshot covers their entries.

    `follows` is the sequence of the last frame of the segment before (0: there was none); `first_index` the index the
    next entry had when the segment was begun, `hard_state` what held then.
    """

    format_version: int
    mesh_id: str
    node_id: str
    number: int
    follows: int
    first_index: int
    hard_state: HardState


class Batch(msgspec.Struct, array_like=True, frozen=True):
    """What one write adds, in this order: void all from `void_from` on; or begin anew at `begin_at`; then entries.

    `begin_at` says that a snapshot replaced the whole log: all entries are void and the next has this index.
    Entries are contiguous.
    """

    void_from: int | None
    begin_at: int | None
    entries: list[Entry]
    hard_state: HardState | None


class Frame(NamedTuple):
    """One frame as read; `end` is the offset behind it."""

    kind: int
    sequence: int
    payload: bytes
    end: int


class Damage(Exception):
    """Bytes that were once durable can't be read."""


class Torn(Exception):
    """A write that was under way when the power or the process went."""


_batch_decoder = msgspec.msgpack.Decoder(Batch)
_segment_decoder = msgspec.msgpack.Decoder(SegmentHeader)
_encoder = msgspec.msgpack.Encoder()


def encode_frame(kind: int, sequence: int, payload: bytes) -> bytes:
    """One frame, ready to be written at a multiple of 8."""
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise ValueError(f"a frame of {len(payload)} bytes is too large")
    header = _HEADER.pack(_MAGIC, len(payload), sequence, kind)
    payload += bytes(-len(payload) % 8)
    crc = _extend(_value(_SEQUENCE.pack(sequence)), payload)
    return b"".join((header, _CRC.pack(_value(header)), payload, _TRAILER.pack(crc, _END)))


def read_frame(data: bytes, offset: int, sequence: int) -> Frame | None:
    """The frame at `offset`; None at the end of the log, that is where only zeros or nothing follow.

    Raises Torn or Damage, by the rules above.
    """
    header = _read_header(data, offset)
    if header is None:
        if not any(data[offset : offset + HEADER_BYTES]) and not data[offset:].strip(b"\0"):
            return None
        raise _judge(data, offset, sequence, None)
    length, found, kind = header
    if found != sequence:
        raise Damage(f"frame {found} where {sequence} should be")
    padded = _padded(length)
    if not _fits(data, offset, padded, sequence):
        raise _judge(data, offset, sequence, padded)
    start = offset + HEADER_BYTES
    return Frame(kind, found, data[start : start + length], start + padded + TRAILER_BYTES)


def first_sequence(number: int) -> int:
    """The sequence of the first frame in file `number` of a log."""
    return number << 32


def encode_batch(batch: Batch) -> bytes:
    """A batch as a payload."""
    return _encoder.encode(batch)


def decode_batch(payload: bytes) -> Batch:
    """Reverse of encode_batch; raises Damage."""
    try:
        return _batch_decoder.decode(payload)
    except msgspec.DecodeError as error:
        raise Damage(f"a batch that can't be understood ({error})") from None


def encode_segment_header(header: SegmentHeader) -> bytes:
    """A segment's header as a payload."""
    return _encoder.encode(header)


def decode_segment_header(payload: bytes) -> SegmentHeader:
    """Reverse of encode_segment_header; raises Damage."""
    try:
        return _segment_decoder.decode(payload)
    except msgspec.DecodeError as error:
        raise Damage(f"a segment header that can't be understood ({error})") from None


def _read_header(data: bytes, offset: int) -> tuple[int, int, int] | None:
    if offset + HEADER_BYTES > len(data) or data[offset : offset + 4] != _MAGIC:
        return None
    raw = data[offset : offset + _HEADER.size]
    if _CRC.unpack_from(data, offset + _HEADER.size)[0] != _value(raw):
        return None
    _, length, sequence, kind = _HEADER.unpack(raw)
    return length, sequence, kind


def _fits(data: bytes, offset: int, padded: int, sequence: int) -> bool:
    trailer = offset + HEADER_BYTES + padded
    if trailer + TRAILER_BYTES > len(data):
        return False
    crc, end = _TRAILER.unpack_from(data, trailer)
    payload = data[offset + HEADER_BYTES : trailer]
    return bool(end == _END and crc == _extend(_value(_SEQUENCE.pack(sequence)), payload))


def _judge(data: bytes, offset: int, sequence: int, padded: int | None) -> Torn | Damage:
    """Why the frame at `offset` can't be read; `padded` (its payload's length) is None if its header can't be."""
    later = _find_later_frame(data, offset + 8, sequence)
    if later is not None:
        return Damage(f"frame {sequence} can't be read, but a later one stands at offset {later}")
    if padded is not None:
        end = offset + OVERHEAD_BYTES + padded
        if end <= len(data) and not _has_blank_sector(data, offset, end):
            return Damage(f"frame {sequence} was written to its end, but its checksum is wrong")
    elif _find_end(data, offset, sequence):
        return Damage(f"the header of frame {sequence} is wrong, what follows it is whole")
    return Torn(f"frame {sequence} was not written to its end")


def _find_later_frame(data: bytes, start: int, sequence: int) -> int | None:
    at = data.find(_MAGIC, start)
    while at >= 0:
        header = _read_header(data, at)
        # A whole header is proof enough, its frame itself may be torn: it was written after ours was durable.
        if at % 8 == 0 and header is not None and header[1] > sequence:
            return at
        at = data.find(_MAGIC, at + 1)
    return None


def _find_end(data: bytes, offset: int, sequence: int) -> bool:
    start = offset + HEADER_BYTES
    at = data.find(_END, start)
    while at >= 0:
        padded = at + len(_END) - TRAILER_BYTES - start
        if padded >= 0 and padded % 8 == 0 and _fits(data, offset, padded, sequence):
            return True
        at = data.find(_END, at + 1)
    return False


def _has_blank_sector(data: bytes, start: int, end: int) -> bool:
    at = start
    while at < end:
        stop = min(end, at - at % SECTOR + SECTOR)
        if not any(data[at:stop]):
            return True
        at = stop
    return False


def _padded(length: int) -> int:
    return length + -length % 8
