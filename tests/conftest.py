"""For all tests."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def import_path_as_it_was() -> Iterator[None]:
    """Loading an app puts its directory on the import path, where later tests and what they spawn would find it."""
    before = list(sys.path)
    yield
    sys.path[:] = before
