"""A disk in memory that forgets what was not synced, tears writes at sectors, and fails when told to.

A crash keeps, of each file, what was synced and a random subset of the sectors written since; of each directory, the
names that were synced and a random subset of the changes since. Both are harsher than journaling file systems are.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

SECTOR = 512


class PowerLoss(OSError):
    """The machine goes down in the middle of a call."""


class Content:
    """One file's bytes, as the page cache and as the platter have them."""

    def __init__(self) -> None:
        self.cached = bytearray()
        self.durable = bytearray()
        self.dirty: set[int] = set()

    def persist(self, sectors: set[int]) -> None:
        for sector in sorted(sectors & self.dirty):
            start = sector * SECTOR
            piece = self.cached[start : start + SECTOR]
            if len(self.durable) < start + len(piece):
                self.durable += bytes(start + len(piece) - len(self.durable))
            self.durable[start : start + len(piece)] = piece
        self.dirty -= sectors

    def crash(self, rng: random.Random) -> None:
        self.persist({sector for sector in self.dirty if rng.random() < 0.5})
        # A size that was not synced may be lost, or kept with zeros behind it.
        if rng.random() < 0.5 and len(self.durable) < len(self.cached):
            self.durable += bytes(len(self.cached) - len(self.durable))
        self.cached = bytearray(self.durable)
        self.dirty = set()


class SimulatedFile:
    def __init__(self, disk: SimulatedDisk, content: Content) -> None:
        self._disk = disk
        self._content = content

    def write(self, data: bytes, offset: int) -> None:
        self._disk.step("write", lambda: self._put(data, offset))
        self._put(data, offset)

    def write_durably(self, data: bytes, offset: int) -> None:
        self._disk.step("write_durably", lambda: self._put(data, offset))
        self._put(data, offset)
        self._content.persist(_sectors(offset, offset + len(data)))

    def sync(self) -> None:
        self._disk.step("sync", lambda: None)
        content = self._content
        content.persist(set(content.dirty))
        del content.durable[len(content.cached) :]

    def truncate(self, size: int) -> None:
        self._disk.step("truncate", lambda: None)
        del self._content.cached[size:]
        self._content.dirty = {sector for sector in self._content.dirty if sector * SECTOR < size}

    def close(self) -> None:
        pass

    def _put(self, data: bytes, offset: int) -> None:
        cached = self._content.cached
        if len(cached) < offset:
            self._content.dirty |= _sectors(len(cached), offset)
            cached += bytes(offset - len(cached))
        cached[offset : offset + len(data)] = data
        self._content.dirty |= _sectors(offset, offset + len(data))


class SimulatedDisk:
    """`fail` is asked before each step; what it returns is raised, a PowerLoss once the step's bytes are cached."""

    def __init__(self) -> None:
        self.fail: Callable[[str], OSError | None] = lambda step: None
        self._cached: dict[Path, Content] = {}
        self._durable: dict[Path, Content] = {}

    def crash(self, rng: random.Random) -> None:
        for path in sorted(set(self._cached) | set(self._durable)):
            if self._cached.get(path) is not self._durable.get(path) and rng.random() < 0.5:
                _set(self._durable, path, self._cached.get(path))
        self._cached = dict(self._durable)
        for path in sorted(self._cached):
            self._cached[path].crash(rng)

    def step(self, name: str, before_power_loss: Callable[[], None]) -> None:
        error = self.fail(name)
        if isinstance(error, PowerLoss):
            before_power_loss()
        if error is not None:
            raise error

    def names(self, directory: Path) -> list[str]:
        return sorted(path.name for path in self._cached if path.parent == directory)

    def make_directory(self, directory: Path) -> None:
        pass

    def read(self, path: Path) -> bytes:
        self.step("read", lambda: None)
        return bytes(self._cached[path].cached)

    def read_part(self, path: Path, offset: int, size: int) -> bytes:
        return self.read(path)[offset : offset + size]

    def create(self, path: Path) -> SimulatedFile:
        self.step("create", lambda: None)
        if path in self._cached:
            raise FileExistsError(path)
        self._cached[path] = Content()
        return SimulatedFile(self, self._cached[path])

    def open(self, path: Path) -> SimulatedFile:
        return SimulatedFile(self, self._cached[path])

    def rename(self, source: Path, target: Path) -> None:
        self.step("rename", lambda: None)
        self._cached[target] = self._cached.pop(source)

    def remove(self, path: Path) -> None:
        self.step("remove", lambda: None)
        self._cached.pop(path, None)

    def sync_directory(self, directory: Path) -> None:
        self.step("sync_directory", lambda: None)
        for path in set(self._cached) | set(self._durable):
            if path.parent == directory:
                _set(self._durable, path, self._cached.get(path))

    # For tests that damage a file on purpose.
    def overwrite(self, path: Path, data: bytes) -> None:
        content = self._cached[path]
        content.cached = bytearray(data)
        content.durable = bytearray(data)
        content.dirty = set()


def _sectors(start: int, end: int) -> set[int]:
    return set(range(start // SECTOR, (end - 1) // SECTOR + 1)) if end > start else set()


def _set(names: dict[Path, Content], path: Path, content: Content | None) -> None:
    if content is None:
        names.pop(path, None)
    else:
        names[path] = content
