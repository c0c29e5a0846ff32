"""A disk that keeps what was synced, and of the rest whatever it likes.

Records are framed with length and CRC. At a crash, of the bytes not yet synced some sectors made it and others hold
zeros or garbage; what recovery reads from there is judged by the CRCs alone, as on a real disk. Beside the bytes it
keeps an `Image` of what is certainly durable: the truth that messages are checked against.
"""

from __future__ import annotations

import random
import zlib
from dataclasses import dataclass, field
from typing import Any

import msgspec

from consensus.raft import Configuration, HardState, Snapshot, Stored
from consensus.raft.effects import Persist
from consensus.raft.messages import CONFIGURATION, Entry, configuration_of

SECTOR = 64


class Record(msgspec.Struct, array_like=True):
    hard_state: HardState | None
    first_index: int
    entries: list[Entry]
    snapshot: Snapshot | None
    data: bytes  # of the snapshot
    replaces_log: bool


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Record)


@dataclass
class Image:
    """What replaying records gives."""

    hard_state: HardState = field(default_factory=HardState)
    snapshot: Snapshot = field(default_factory=Snapshot)
    data: bytes = b""
    entries: list[Entry] = field(default_factory=list)
    configurations: list[tuple[int, Configuration]] = field(default_factory=list)  # those in `entries`

    @property
    def last_index(self) -> int:
        return self.snapshot.index + len(self.entries)

    @property
    def last_term(self) -> int:
        return self.entries[-1].term if self.entries else self.snapshot.term

    @property
    def configuration(self) -> Configuration:
        return self.configurations[-1][1] if self.configurations else self.snapshot.configuration

    def holds(self, index: int, term: int) -> bool:
        if index <= self.snapshot.index:
            return True
        return index <= self.last_index and self.entries[index - self.snapshot.index - 1].term == term

    def replay(self, record: Record) -> None:
        if record.hard_state is not None:
            self.hard_state = record.hard_state
        if record.entries:
            keep = record.first_index - self.snapshot.index - 1
            assert keep <= len(self.entries), "a gap in the log"
            # Entries before the snapshot may be written again by nobody: they are committed.
            assert keep >= 0
            self.entries[keep:] = record.entries
            self.configurations = [each for each in self.configurations if each[0] < record.first_index]
            for index, entry in enumerate(record.entries, record.first_index):
                if entry.kind == CONFIGURATION:
                    self.configurations.append((index, configuration_of(entry)))
        if record.snapshot is not None:
            gone = record.snapshot.index - self.snapshot.index
            self.entries = [] if record.replaces_log else self.entries[gone:]
            self.snapshot, self.data = record.snapshot, record.data
            floor = self.last_index if record.replaces_log else record.snapshot.index
            self.configurations = [each for each in self.configurations if each[0] > floor]

    def stored(self) -> Stored:
        return Stored(self.hard_state, self.snapshot, list(self.entries))


class Disk:
    def __init__(self, rng: random.Random, owner: str) -> None:
        self.owner = owner
        self._rng = rng
        self._synced = bytearray()
        self._written: list[tuple[Any, Record, bytes]] = []
        self.image = Image()

    def write(self, mark: Any, record: Record) -> None:
        payload = _encoder.encode(record)
        frame = len(payload).to_bytes(4, "little") + zlib.crc32(payload).to_bytes(4, "little") + payload
        self._written.append((mark, record, frame))

    def persist(self, effect: Persist, data: bytes) -> None:
        self.write(
            effect.number,
            Record(effect.hard_state, effect.first_index, effect.entries, effect.snapshot, data, True),
        )

    @property
    def has_unsynced(self) -> bool:
        return bool(self._written)

    def written(self) -> int:
        """How much there is to sync now: pass it to `sync` when that is done."""
        return len(self._written)

    def sync(self, count: int) -> list[Any]:
        """The first `count` writes are durable; returns their marks."""
        done, self._written = self._written[:count], self._written[count:]
        for _, record, frame in done:
            self._synced += frame
            self.image.replay(record)
        return [mark for mark, _, _ in done]

    def crash(self) -> Image:
        """Lose what the disk likes to lose, and read back what is left."""
        tail = b"".join(frame for _, _, frame in self._written)
        damaged = bytearray()
        fate = self._rng.random()
        for start in range(0, len(tail), SECTOR):
            sector = tail[start : start + SECTOR]
            if fate < 0.3 or self._rng.random() < 0.3:
                sector = self._rng.choice((bytes(len(sector)), self._rng.randbytes(len(sector))))
            damaged += sector
        if fate < 0.6:
            del damaged[self._rng.randrange(len(damaged) + 1) :]
        image, end = recover(bytes(self._synced + damaged))
        assert end >= len(self._synced), "what was synced can be read"
        self._synced = (self._synced + damaged)[:end]
        self._written = []
        self.image = image
        return image


def recover(data: bytes) -> tuple[Image, int]:
    """Replay whole records up to the first that is not."""
    image, at = Image(), 0
    while at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 4], "little")
        payload = data[at + 8 : at + 8 + size]
        if size == 0 or len(payload) < size or zlib.crc32(payload) != int.from_bytes(data[at + 4 : at + 8], "little"):
            break
        image.replay(_decoder.decode(payload))
        at += 8 + size
    return image, at
