"""For all tests."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator

import pytest
from hypothesis import settings

# A busy machine may hold any example up for as long as it likes.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")

# The configuration file of whoever runs the tests is none of theirs; processes they start inherit this.
os.environ["MESHNODE_CONFIG_FILE"] = ""

# Started in the background of a script, tests would hand a deaf ear for Ctrl-C on to the processes they interrupt.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def import_path_as_it_was() -> Iterator[None]:
    """Loading an app puts its directory on the import path, where later tests and what they spawn would find it."""
    before = list(sys.path)
    yield
    sys.path[:] = before
