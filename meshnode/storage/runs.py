"""What is kept of a run, and what any store of runs must do."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, TypeAlias

import msgspec

from meshnode.errors import InvalidInput, MeshError

State: TypeAlias = Literal["running", "done", "stopped", "failed"]

_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class StorageError(MeshError):
    """The store can't be read or written; the message says which, and why."""

    code = "storage_error"


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One evaluation or optimisation. Times are seconds since 1970. `summary` is set once it ended."""

    run_id: str
    kind: str
    program: str
    created: float
    state: State = "running"
    settings: dict[str, Any] = {}
    summary: dict[str, Any] | None = None


class Point(msgspec.Struct, frozen=True):
    """One value of one metric."""

    name: str
    value: float
    step: int
    at: float


class Checkpoint(msgspec.Struct, frozen=True):
    """The state of a run after a step; what the bytes mean is the run's own."""

    step: int
    state: bytes


class Finished(msgspec.Struct, frozen=True):
    """One finished example: `digest` tells its input, `outcome` is the row as its writer packed it."""

    index: int
    digest: bytes
    score: float
    failed: bool
    outcome: bytes


class Runs(Protocol):
    """A store of runs. What a method has returned from is durable: it survives SIGKILL and a restart.

    Each raises StorageError if the store fails, and InvalidInput for a run that is not there.
    """

    def create_run(
        self, program: str, *, kind: str = "evaluation", settings: Mapping[str, Any] | None = None, run_id: str = ""
    ) -> Run:
        """A new run, by a new id or this one; raises InvalidInput if it is taken. `settings`: plain JSON values."""
        ...

    def end_run(self, run_id: str, state: State, summary: Mapping[str, Any] | None = None) -> None:
        """Say how it ended; "running" again for one that is resumed."""
        ...

    def load_run(self, run_id: str) -> Run:
        """The run as it is now."""
        ...

    def list_runs(self, *, limit: int = 100) -> list[Run]:
        """The newest first."""
        ...

    def append_metric(self, run_id: str, name: str, value: float, *, step: int = 0) -> None:
        """Add one value to the run's history."""
        ...

    def load_history(self, run_id: str, name: str | None = None) -> list[Point]:
        """All values of one metric, or of all, in the order they were added."""
        ...

    def checkpoint(self, run_id: str, step: int, state: bytes) -> None:
        """Keep the state after a step; the same step again replaces it."""
        ...

    def load_checkpoint(self, run_id: str) -> Checkpoint | None:
        """The state of the highest step."""
        ...

    def add_finished(self, run_id: str, rows: Sequence[Finished]) -> None:
        """Journal finished examples, all or none; an index that is there already keeps its first row."""
        ...

    def load_finished(self, run_id: str, *, after: int = -1, limit: int = 500) -> list[Finished]:
        """Journalled rows with an index above `after`, ascending."""
        ...

    def close(self) -> None:
        """Give back what is open; safe to call twice."""
        ...


def new_run(program: str, kind: str, settings: Mapping[str, Any] | None, run_id: str) -> Run:
    """A run as it begins; a made-up id begins with its time, so that ids sort by age."""
    now = time.time()
    chosen = run_id or f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime(now))}-{secrets.token_hex(3)}"
    return Run(run_id=check_run_id(chosen), kind=kind, program=program, created=now, settings=dict(settings or {}))


def check_run_id(run_id: str) -> str:
    """The id, if it is one; it becomes a file's name. Raises InvalidInput."""
    if not _RUN_ID.fullmatch(run_id):
        raise InvalidInput(f"{run_id!r} is no id of a run; use 1 to 64 letters, digits, '.', '_' or '-'")
    return run_id


def no_such_run(run_id: str, known: Sequence[Run]) -> InvalidInput:
    """The error for a run that is not there, with the newest ones that are."""
    there = ", ".join(run.run_id for run in known[:5]) or "none yet"
    return InvalidInput(f"there is no run {run_id!r}; the newest: {there}")
