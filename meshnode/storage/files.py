"""Runs in a directory, one folder each, readable with any editor:

    RUN/run.json            the run; replaced whole
    RUN/points.jsonl        its metrics, one a line; appended
    RUN/finished.jsonl      its finished examples, one a line, in the order they finished; appended
    RUN/checkpoint-STEP     states; each written whole

A file is replaced by writing a new one beside it, fsync, rename, fsync of the folder. An appended line counts once its
newline is there: a torn last line, left by a crash, is dropped by the next append and ignored by readers; damage
further up is an error that names the line. Appends take a lock, so two processes may write one run.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import msgspec

from meshnode.decoding import UNDECODABLE
from meshnode.errors import InvalidInput
from meshnode.storage.runs import (
    Checkpoint,
    Finished,
    Point,
    Run,
    Runs,
    State,
    StorageError,
    check_run_id,
    new_run,
    no_such_run,
)

T = TypeVar("T")


class FileRuns(Runs):
    """Runs below a directory, which is made if it is not there."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        # Where each finished example stands in its file, per run: (size read so far, index -> offset).
        self._places: dict[str, tuple[int, dict[int, int]]] = {}
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _storage_error(directory, error) from None

    def create_run(
        self, program: str, *, kind: str = "evaluation", settings: Mapping[str, Any] | None = None, run_id: str = ""
    ) -> Run:
        """A new run; see `Runs`."""
        run = new_run(program, kind, settings, run_id)
        folder = self._directory / run.run_id
        try:
            folder.mkdir()
        except FileExistsError:
            raise InvalidInput(f"there is a run {run.run_id!r} already; resume it, or choose another id") from None
        except OSError as error:
            raise _storage_error(folder, error) from None
        _replace(folder / "run.json", msgspec.json.encode(run))
        _sync_folder(self._directory)
        return run

    def end_run(self, run_id: str, state: State, summary: Mapping[str, Any] | None = None) -> None:
        """Say how it ended; see `Runs`."""
        with self._lock:
            run = self.load_run(run_id)
            ended = msgspec.structs.replace(run, state=state, summary=None if summary is None else dict(summary))
            _replace(self._directory / run_id / "run.json", msgspec.json.encode(ended))

    def load_run(self, run_id: str) -> Run:
        """The run as it is now."""
        file = self._directory / check_run_id(run_id) / "run.json"
        try:
            return msgspec.json.decode(file.read_bytes(), type=Run)
        except FileNotFoundError:
            raise no_such_run(run_id, self.list_runs(limit=5)) from None
        except (OSError, *UNDECODABLE) as error:
            raise _storage_error(file, error) from None

    def list_runs(self, *, limit: int = 100) -> list[Run]:
        """The newest first."""
        found = [self.load_run(file.parent.name) for file in self._directory.glob("*/run.json")]
        return sorted(found, key=lambda run: (run.created, run.run_id), reverse=True)[:limit]

    def append_metric(self, run_id: str, name: str, value: float, *, step: int = 0) -> None:
        """Add one value to the run's history."""
        self._append(run_id, "points.jsonl", [Point(name, value, step, time.time())])

    def load_history(self, run_id: str, name: str | None = None) -> list[Point]:
        """All values of one metric, or of all, in the order they were added."""
        self.load_run(run_id)
        points = (point for _, _, point in _lines(self._directory / run_id / "points.jsonl", Point))
        return [point for point in points if name is None or point.name == name]

    def checkpoint(self, run_id: str, step: int, state: bytes) -> None:
        """Keep the state after a step; the same step again replaces it."""
        self.load_run(run_id)
        _replace(self._directory / run_id / f"checkpoint-{step:012}", state)

    def load_checkpoint(self, run_id: str) -> Checkpoint | None:
        """The state of the highest step."""
        self.load_run(run_id)
        files = [file for file in (self._directory / run_id).glob("checkpoint-*") if file.name[11:].isdecimal()]
        if not files:
            return None
        last = max(files, key=lambda file: int(file.name[11:]))
        try:
            return Checkpoint(int(last.name[11:]), last.read_bytes())
        except OSError as error:
            raise _storage_error(last, error) from None

    def add_finished(self, run_id: str, rows: Sequence[Finished]) -> None:
        """Journal finished examples with one fsync; see `Runs`."""
        with self._lock:
            known = self._find_places(run_id)
            new = {row.index: row for row in reversed(rows) if row.index not in known}
        self._append(run_id, "finished.jsonl", [new[index] for index in sorted(new)])

    def load_finished(self, run_id: str, *, after: int = -1, limit: int = 500) -> list[Finished]:
        """Journalled rows with an index above `after`, ascending."""
        with self._lock:
            places = self._find_places(run_id)
            wanted = sorted(index for index in places if index > after)[:limit]
            if not wanted:
                return []
            file = self._directory / run_id / "finished.jsonl"
            try:
                with file.open("rb") as opened:
                    return [_read_at(opened, places[index]) for index in wanted]
            except OSError as error:
                raise _storage_error(file, error) from None

    def close(self) -> None:
        """Nothing is kept open."""

    def _find_places(self, run_id: str) -> dict[int, int]:
        """Where each finished example stands; reads only what was appended since it last looked."""
        self.load_run(run_id)
        start, places = self._places.get(run_id, (0, {}))
        for offset, end, row in _lines(self._directory / run_id / "finished.jsonl", Finished, start):
            places.setdefault(row.index, offset)
            start = end
        self._places[run_id] = (start, places)
        return places

    def _append(self, run_id: str, name: str, records: Sequence[msgspec.Struct]) -> None:
        self.load_run(run_id)
        file = self._directory / run_id / name
        data = b"".join(msgspec.json.encode(record) + b"\n" for record in records)
        if not data:
            return
        try:
            with self._lock, file.open("a+b") as opened:
                fcntl.flock(opened, fcntl.LOCK_EX)
                _cut_torn_line(opened)
                opened.write(data)
                opened.flush()
                os.fsync(opened.fileno())
            if file.stat().st_size == len(data):
                _sync_folder(file.parent)
        except OSError as error:
            raise _storage_error(file, error) from None


def _lines(file: Path, kind: type[T], start: int = 0) -> Iterator[tuple[int, int, T]]:
    """(offset, offset of the next, record) of each whole line from `start` on."""
    try:
        with file.open("rb") as opened:
            opened.seek(start)
            offset = start
            for line in opened:
                if not line.endswith(b"\n"):
                    return  # torn, or being written just now
                end = offset + len(line)
                yield offset, end, msgspec.json.decode(line, type=kind)
                offset = end
    except FileNotFoundError:
        return
    except UNDECODABLE as error:
        raise StorageError(f"{file}, at byte {offset}: damaged ({error}); restore it, or remove the run") from None
    except OSError as error:
        raise _storage_error(file, error) from None


def _read_at(opened: BinaryIO, offset: int) -> Finished:
    opened.seek(offset)
    return msgspec.json.decode(opened.readline(), type=Finished)


def _cut_torn_line(opened: BinaryIO) -> None:
    """Drop what follows the last newline; only under the lock, when nobody writes."""
    end = opened.seek(0, os.SEEK_END)
    at = end
    while at:
        start = max(0, at - 65536)
        opened.seek(start)
        newline = opened.read(at - start).rfind(b"\n")
        if newline >= 0:
            at = start + newline + 1
            break
        at = start
    if at != end:
        opened.truncate(at)
    opened.seek(0, os.SEEK_END)


def _replace(file: Path, data: bytes) -> None:
    new = file.with_name(f".{file.name}.{os.getpid()}.{threading.get_ident()}.new")
    try:
        with new.open("wb") as opened:
            opened.write(data)
            opened.flush()
            os.fsync(opened.fileno())
        new.replace(file)
        _sync_folder(file.parent)
    except OSError as error:
        new.unlink(missing_ok=True)
        raise _storage_error(file, error) from None


def _sync_folder(folder: Path) -> None:
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _storage_error(file: Path, error: Exception) -> StorageError:
    return StorageError(f"{file}: {getattr(error, 'strerror', None) or error}; make it readable and writable")
