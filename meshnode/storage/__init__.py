"""Runs: what was evaluated or optimised, its metrics, checkpoints and finished examples, kept where a URL says.

    runs     the protocol, and what it keeps
    sql      any database SQLAlchemy reaches: sqlite:///runs.db, :memory:, postgresql://…
    files    a directory: file:///var/lib/meshnode/runs

All pass one suite (`tests/meshnode/storage`). The methods block and are safe to call from many threads: on a loop, call
them in one.
"""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import unquote

from meshnode.errors import ConfigError
from meshnode.storage.runs import Runs

__all__ = ["Runs", "default_url", "open_runs"]


def default_url() -> str:
    """Where runs are kept if nothing else is said: `$MESHNODE_RUNS`, else SQLite in the user's state directory."""
    if url := os.environ.get("MESHNODE_RUNS"):
        return url
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "meshnode"
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    return f"sqlite:///{state / 'runs.db'}"


def open_runs(url: str) -> Runs:
    """The store a URL names: `sqlite:///FILE`, `:memory:`, `file://DIRECTORY`, or another database of SQLAlchemy's.

    Makes the file, directory or tables if there are none. Raises ConfigError (no such kind of URL, or its driver is not
    installed) and StorageError (it can't be opened).
    """
    if url in (":memory:", "sqlite://", "sqlite:///:memory:"):
        from meshnode.storage.sql import SqlRuns

        return SqlRuns("sqlite://")
    scheme, separator, rest = url.partition("://")
    if not separator or not scheme:
        raise ConfigError(
            f"{url!r} is no place for runs; write sqlite:///FILE, file://DIRECTORY or postgresql://HOST/NAME"
        )
    if scheme == "file":
        from meshnode.storage.files import FileRuns

        return FileRuns(Path(unquote(rest)))
    from meshnode.storage.sql import SqlRuns

    return SqlRuns(url)
