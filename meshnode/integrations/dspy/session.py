"""`with mesh.session(run="…")`: while it lasts, every forward of the mesh's remote programs is kept."""

from __future__ import annotations

from types import TracebackType

from meshnode.errors import MeshError
from meshnode.integrations.dspy.journal import Journal
from meshnode.integrations.dspy.link import Link


class DspySession:
    """A run that can be resumed by running it again. `resumed`: forwards that an earlier run had done."""

    def __init__(self, link: Link, run: str, runs: str | None) -> None:
        self.run = run
        self._link = link
        self._runs = runs
        self._journal: Journal | None = None

    @property
    def resumed(self) -> int:
        """How many forwards were taken from an earlier run so far."""
        return 0 if self._journal is None else self._journal.resumed

    def __enter__(self) -> DspySession:
        if self._link.journal is not None:
            raise MeshError("a session is open already; one mesh keeps one run at a time")
        self._journal = self._link.journal = Journal(self.run, self._runs)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._link.journal = None
        if self._journal is not None:
            self._journal.close(done=kind is None)
