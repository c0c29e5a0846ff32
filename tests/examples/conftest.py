from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from examples import docstrings
from examples.docstrings import Example


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory that `python -m examples.docstrings --out` wrote, from the Python that runs the tests."""
    directory = tmp_path_factory.mktemp("docstrings") / "data"
    if "PYTEST_XDIST_WORKER" not in os.environ:
        docstrings.main(["--out", str(directory)])
        return directory
    # Seconds of parsing, and the same for every worker: whoever is first has it for all.
    shared = tmp_path_factory.getbasetemp().parent / "docstrings"
    with shared.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not shared.exists():
            docstrings.main(["--out", str(directory)])
            directory.rename(shared)
    return shared


@pytest.fixture(scope="session")
def real(written: Path) -> tuple[list[Example], list[Example]]:
    """(train, dev)."""
    return docstrings.load(written)
