"""A node's data directory for one process at a time: made, checked for use, locked."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from meshnode.persistence.errors import DirectoryInUse, unusable

_LOCK_NAME = "lock"


class DirectoryLock:
    """Holds `directory` until `release`; the kernel releases it when the process ends, however it ends.

    Raises DirectoryInUse if another process (or this one) holds it, DirectoryUnusable if it can't be made or written.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / _LOCK_NAME
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise unusable(directory, error) from None
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._descriptor, 32, 0).decode("ascii", "replace").strip()
            os.close(self._descriptor)
            raise DirectoryInUse(
                f"{directory}: in use by process {holder or 'unknown'}; stop it or choose another data directory"
            ) from None
        except OSError as error:
            os.close(self._descriptor)
            raise unusable(directory, error) from None
        try:
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:  # a full disk shows here first
            os.close(self._descriptor)
            raise unusable(directory, error) from None

    def release(self) -> None:
        """Let another process in. Safe to call twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
