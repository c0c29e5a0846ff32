"""What can go wrong with what a node keeps on disk.

    StorageError
    ├── DirectoryUnusable   it can't be made, read or written (permission, read-only, not a directory)
    ├── DirectoryInUse      another process holds its lock
    ├── ForeignDirectory    it belongs to another mesh or another node
    ├── LogDamaged          bytes that were once durable have changed or are missing (`file`, `offset`)
    ├── SnapshotDamaged     the same, in a snapshot
    └── WriteFailed         a write or a sync failed; a log takes nothing more until it is opened again
        └── StorageFull     because there is no space left, or a quota or size limit was met

A failed sync is never tried again: the kernel may have dropped the pages it could not write and report success the
next time (Rebello et al., "Can Applications Recover from fsync Failures?", USENIX ATC '20). What is on disk is only
known after the log was opened again.
"""

from __future__ import annotations

import errno
from pathlib import Path

from meshnode.errors import MeshError

_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class StorageError(MeshError):
    """Base of what goes wrong with a node's data directory."""

    code = "storage_error"


class DirectoryUnusable(StorageError):
    """The data directory can't be made, read or written."""

    code = "directory_unusable"


class DirectoryInUse(StorageError):
    """Another process works on this data directory."""

    code = "directory_in_use"


class ForeignDirectory(StorageError):
    """The data directory belongs to another mesh or another node."""

    code = "foreign_directory"


class LogDamaged(StorageError):
    """Bytes of the log that were once durable have changed or are missing, from `offset` of `file` on."""

    code = "log_damaged"

    def __init__(self, file: Path, offset: int, what: str) -> None:
        super().__init__(
            f"{file}: damaged at offset {offset}: {what}; nothing was changed, for what follows may be committed. "
            "Restore the file, or move the directory away and let this node join anew under another name"
        )
        self.file = file
        self.offset = offset
        self.what = what


class SnapshotDamaged(StorageError):
    """A snapshot's bytes have changed or are missing, from `offset` of `file` on."""

    code = "snapshot_damaged"

    def __init__(self, file: Path, offset: int, what: str) -> None:
        super().__init__(f"{file}: damaged at offset {offset}: {what}")
        self.file = file
        self.offset = offset
        self.what = what


class WriteFailed(StorageError):
    """A write or a sync failed: what is on disk is unknown until the log is opened again."""

    code = "write_failed"


class StorageFull(WriteFailed):
    """There is no space left, or a quota or size limit was met."""

    code = "storage_full"


def failed(path: Path, error: OSError) -> WriteFailed:
    """The typed error a failed write or sync stands for."""
    if error.errno in _NO_SPACE:
        return StorageFull(f"{path}: no space left to write ({error.strerror}); free some and start the node again")
    return WriteFailed(
        f"{path}: writing failed ({error.strerror or error}); it is not tried again, for what is on disk "
        "is unknown now. Check the disk and start the node again"
    )


def unusable(path: Path, error: OSError) -> DirectoryUnusable:
    """The typed error for a directory or file that can't be used at all."""
    return DirectoryUnusable(f"{path}: can't be used as a data directory ({error.strerror or error})")
