"""Each store of runs that can be reached from here, freshly made."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from meshnode.storage import Runs, open_runs

POSTGRES = os.environ.get(
    "MESHNODE_TEST_POSTGRES", ""
)  # postgresql://user@host:port/database, whose schemas we may make

Open = Callable[[], Runs]


@pytest.fixture
def postgres() -> Iterator[str]:
    if not POSTGRES:
        assert not os.environ.get("CI"), "in CI PostgreSQL is a must: `.ci/postgres` starts one"
        pytest.skip("no PostgreSQL: MESHNODE_TEST_POSTGRES is not set")
    schema = f"test_{uuid.uuid4().hex[:12]}"
    engine = sa.create_engine(sa.make_url(POSTGRES).set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sa.text(f'CREATE SCHEMA "{schema}"'))
        yield f"{POSTGRES}{'&' if '?' in POSTGRES else '?'}options=-csearch_path%3D{schema}"
        connection.execute(sa.text(f'DROP SCHEMA "{schema}" CASCADE'))
    engine.dispose()


@pytest.fixture(params=["sqlite", "files", "postgres"])
def reopen(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    """Opens the same store anew, as another process would; all that were opened are closed at the end."""
    if request.param == "postgres":
        url = request.getfixturevalue("postgres")
    else:
        url = {"sqlite": f"sqlite:///{tmp_path}/runs.db", "files": f"file://{tmp_path}/runs"}[request.param]
    opened: list[Runs] = []

    def again() -> Runs:
        opened.append(open_runs(url))
        return opened[-1]

    yield again
    for runs in opened:
        runs.close()


@pytest.fixture
def runs(reopen: Open) -> Runs:
    return reopen()
