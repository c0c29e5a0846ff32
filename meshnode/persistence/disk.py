"""The seam between the log and the operating system's files: two small protocols and their real implementation.

Tests put a disk behind it that fails, or that forgets what was not synced
(`tests/meshnode/persistence/simulated_disk.py`). Every call blocks; the log calls them from its own thread.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

# One system call that writes and waits until the bytes are on disk (Linux 4.7). Measured on ext4 over bytes that were
# zeroed before: 512 B 55 us, 20 kB 86 us; appending with fdatasync after it takes 89 us and 150 us, for the file's
# size and extents change each time.
_DSYNC = getattr(os, "RWF_DSYNC", None)


class File(Protocol):
    """An open file, written at offsets."""

    def write(self, data: bytes, offset: int) -> None:
        """Write all of `data`, without waiting for the disk; raises OSError."""
        ...

    def write_durably(self, data: bytes, offset: int) -> None:
        """Write all of `data` and return when it is on disk; raises OSError."""
        ...

    def sync(self) -> None:
        """Return when all that was written, and the size, is on disk; raises OSError."""
        ...

    def truncate(self, size: int) -> None:
        """Cut the file to `size` bytes."""
        ...

    def close(self) -> None:
        """Close the file; syncs nothing."""
        ...


class Disk(Protocol):
    """What the log asks of a file system. Names are those inside `directory`."""

    def names(self, directory: Path) -> list[str]:
        """The names in a directory, sorted; none if there is no such directory."""
        ...

    def make_directory(self, directory: Path) -> None:
        """Make a directory and those above it, if they are missing."""
        ...

    def read(self, path: Path) -> bytes:
        """The whole content of a file."""
        ...

    def read_part(self, path: Path, offset: int, size: int) -> bytes:
        """Up to `size` bytes from `offset` on."""
        ...

    def create(self, path: Path) -> File:
        """Make a new file; raises FileExistsError."""
        ...

    def open(self, path: Path) -> File:
        """Open a file that exists for writing."""
        ...

    def rename(self, source: Path, target: Path) -> None:
        """Move a file in one step."""
        ...

    def remove(self, path: Path) -> None:
        """Delete a file, if it is there."""
        ...

    def sync_directory(self, directory: Path) -> None:
        """Return when names that were made, moved or removed are on disk."""
        ...


class OsFile:
    """A file of the operating system."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def write(self, data: bytes, offset: int) -> None:
        """Write all of `data`: a short write is continued until it is done or fails."""
        written = os.pwrite(self._descriptor, data, offset)
        while written < len(data):  # a full disk or a limit shows as a short write first, then as an error
            written += os.pwrite(self._descriptor, memoryview(data)[written:], offset + written)

    def write_durably(self, data: bytes, offset: int) -> None:
        """Write and sync, in one system call where there is one."""
        if _DSYNC is None:
            self.write(data, offset)
            self.sync()
            return
        written = os.pwritev(self._descriptor, [data], offset, _DSYNC)
        while written < len(data):
            written += os.pwritev(self._descriptor, [memoryview(data)[written:]], offset + written, _DSYNC)

    def sync(self) -> None:
        """fdatasync, which also covers a changed size; fsync where there is no such call."""
        getattr(os, "fdatasync", os.fsync)(self._descriptor)

    def truncate(self, size: int) -> None:
        """Cut the file."""
        os.ftruncate(self._descriptor, size)

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self._descriptor)


class OsDisk:
    """The file system of this machine. Files are readable by their owner only."""

    def names(self, directory: Path) -> list[str]:
        """The names in a directory, sorted."""
        try:
            return sorted(os.listdir(directory))
        except FileNotFoundError:
            return []

    def make_directory(self, directory: Path) -> None:
        """Make it, for the owner only."""
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def read(self, path: Path) -> bytes:
        """Read the whole file."""
        return path.read_bytes()

    def read_part(self, path: Path, offset: int, size: int) -> bytes:
        """Read a part of the file."""
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(size)

    def create(self, path: Path) -> OsFile:
        """Make a new file."""
        return OsFile(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))

    def open(self, path: Path) -> OsFile:
        """Open for writing."""
        return OsFile(os.open(path, os.O_RDWR | os.O_CLOEXEC))

    def rename(self, source: Path, target: Path) -> None:
        """Move, replacing what is there."""
        source.replace(target)

    def remove(self, path: Path) -> None:
        """Delete, if it is there."""
        path.unlink(missing_ok=True)

    def sync_directory(self, directory: Path) -> None:
        """fsync the directory itself."""
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
