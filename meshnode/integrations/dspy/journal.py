"""Keeps every finished forward of a run, so that the same program run again asks nothing twice.

A forward is known by its program's state, its inputs, its language model and the like, and by how many equal ones came
before it in this run: an uncached model at a temperature answers equal questions differently, and each answer counts.
What was kept is durable before its caller sees it. What the program raised is not kept: it is tried again.
"""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from collections.abc import Mapping
from typing import Any

from meshnode.errors import InvalidInput
from meshnode.storage import default_url, open_runs
from meshnode.storage.runs import Finished
from meshnode.values import pack, unpack

PAGE = 500
KIND = "dspy"


def key_of(example: bytes, state: bytes) -> bytes:
    """What tells a forward: all that travels."""
    whole = hashlib.sha256(len(state).to_bytes(8, "big"))
    whole.update(state)
    whole.update(example)
    return whole.digest()


class Journal:
    """One run's forwards in a store of runs. Safe to use from many threads; `close` when done.

    Raises InvalidInput if the run is of another kind, StorageError if the store can't be used.
    """

    def __init__(self, run: str, runs: str | None = None) -> None:
        self._runs = open_runs(runs or default_url())
        self._run = run
        self._lock = threading.Lock()
        self._seen: Counter[bytes] = Counter()
        self._kept: dict[bytes, bytes] = {}
        self._next = 0
        self.resumed = 0
        try:
            known = self._runs.load_run(run)
        except InvalidInput:
            self._runs.create_run("*", kind=KIND, run_id=run)
        else:
            if known.kind != KIND:
                raise InvalidInput(f"run {run!r} is of kind {known.kind!r}, not a session of DSPy; take another id")
            self._runs.end_run(run, "running")
            self._load()

    def occurrence(self, key: bytes) -> bytes:
        """The key of the next forward that is known by `key`."""
        with self._lock:
            number = self._seen[key]
            self._seen[key] += 1
        return hashlib.sha256(key + number.to_bytes(8, "big")).digest()[:16]

    def find(self, key: bytes) -> dict[str, Any] | None:
        """What was kept of this forward by an earlier run."""
        kept = self._kept.get(key)
        if kept is None:
            return None
        with self._lock:
            self.resumed += 1
        return dict(unpack(kept))

    def keep(self, key: bytes, reply: Mapping[str, Any]) -> None:
        """Keep a forward; it is durable once this returns. One that is kept already stays as it is."""
        with self._lock:
            if key in self._kept:
                return
            data = self._kept[key] = pack(dict(reply), name="reply")
            index, self._next = self._next, self._next + 1
            self._runs.add_finished(self._run, [Finished(index, key, 0.0, False, data)])

    def close(self, *, done: bool) -> None:
        """Say how the run ended, and close the store."""
        self._runs.end_run(self._run, "done" if done else "stopped", {"forwards": self._next, "resumed": self.resumed})
        self._runs.close()

    def _load(self) -> None:
        after = -1
        while page := self._runs.load_finished(self._run, after=after, limit=PAGE):
            self._kept.update((finished.digest, finished.outcome) for finished in page)
            after = page[-1].index
        self._next = after + 1
