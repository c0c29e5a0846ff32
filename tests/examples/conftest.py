from __future__ import annotations

from pathlib import Path

import pytest

from examples import docstrings
from examples.docstrings import Example


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory that `python -m examples.docstrings --out` wrote, from the Python that runs the tests."""
    directory = tmp_path_factory.mktemp("docstrings") / "data"
    docstrings.main(["--out", str(directory)])
    return directory


@pytest.fixture(scope="session")
def real(written: Path) -> tuple[list[Example], list[Example]]:
    """(train, dev)."""
    return docstrings.load(written)
