"""For all tests."""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# A busy machine may hold any example up for as long as it likes. Other examples are drawn in each run.
settings.register_profile("no deadline", deadline=None, max_examples=int(os.environ.get("EXAMPLES", "50")))
settings.load_profile("no deadline")

# The configuration file of whoever runs the tests is none of theirs; processes they start inherit this.
os.environ["MESHNODE_CONFIG_FILE"] = ""

# Started in the background of a script, tests would hand a deaf ear for Ctrl-C on to the processes they interrupt.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


#: All that shares nodes whose workers import DSPy, which takes seconds: one worker of the test run takes them all.
DSPY = "tests/meshnode/integrations/dspy/"
#: Where files take long though their tests are few. They are begun first, so that nobody is left alone with one at the
#: end; the rest follows by the number of tests, as xdist would have it for all.
LONG = (DSPY, "tests/netns/", "tests/e2e/", "tests/examples/", "tests/meshnode/cli/", "tests/simulation/")


def unit_of(nodeid: str) -> str:
    """What `--dist loadfile` hands out as a whole."""
    return DSPY if nodeid.startswith(DSPY) else nodeid.partition("::")[0]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Units as above, in the order in which the workers of the run found them."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling  # type: ignore[import-untyped]  # it ships no types

    config.option.loadscopereorder = False
    scheduler = LoadFileScheduling(config, log)
    scheduler._split_scope = unit_of
    return scheduler


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session: pytest.Session) -> None:
    """Import all tests, each worker of the run beginning at another: what one has compiled is there for the others.

    In a fresh clone that is most of the time until the first test.
    """
    worker = os.environ.get("PYTEST_XDIST_WORKER", "").removeprefix("gw")
    if not worker or session.config.args_source is not pytest.Config.ArgsSource.TESTPATHS:
        return
    files = sorted(Path(__file__).parent.rglob("test_*.py"))
    first = len(files) * int(worker) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    for file in (*files[first:], *files[:first]):
        for name in (file.with_name("conftest.py"), file):  # as collected: some conftest sets up what its tests import
            with suppress(Exception, pytest.skip.Exception):  # collecting it says why
                if name.exists():
                    import_module(".".join(name.relative_to(session.config.rootpath).with_suffix("").parts))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return
    sizes = Counter(unit_of(item.nodeid) for item in items)

    def place(item: pytest.Item) -> tuple[int, int]:
        long = next((at for at, where in enumerate(LONG) if item.nodeid.startswith(where)), len(LONG))
        return long, -sizes[unit_of(item.nodeid)] if long == len(LONG) else 0

    items.sort(key=place)


@pytest.fixture(autouse=True)
def import_path_as_it_was() -> Iterator[None]:
    """Loading an app puts its directory on the import path, where later tests and what they spawn would find it."""
    before = list(sys.path)
    yield
    sys.path[:] = before
