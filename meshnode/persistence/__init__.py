"""What a node must not forget: Raft's term, vote and log, and the snapshots that shorten it, safe on this node's disk.

From the bytes up; each sees only what stands above it:

    errors      the tree of what can go wrong with a data directory
    disk        the operating system's files behind two small protocols, so that tests can fail and forget
    format      frames: how log and snapshots lie on disk, and how a torn write is told from damage
    recovery    a log read back after a crash
    segments    a log's files, written one frame at a time
    log         the write-ahead log: group commit, and what an awaited sync promises
    snapshots   whole states: written aside, synced, renamed
    storage     both together, as Raft's core asks for them

The front is `open_storage` with its `Storage`, and the errors. Two more doors are for people: `inspection`
(a log in words) and `disaster_recovery` (when a majority of the voters is gone for good).
"""

from meshnode.persistence.errors import (
    DirectoryInUse,
    DirectoryUnusable,
    ForeignDirectory,
    LogDamaged,
    SnapshotDamaged,
    StorageError,
    StorageFull,
    WriteFailed,
)
from meshnode.persistence.storage import Storage, open_storage

__all__ = [
    "DirectoryInUse",
    "DirectoryUnusable",
    "ForeignDirectory",
    "LogDamaged",
    "SnapshotDamaged",
    "Storage",
    "StorageError",
    "StorageFull",
    "WriteFailed",
    "open_storage",
]
