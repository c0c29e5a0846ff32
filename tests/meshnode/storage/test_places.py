"""Which store a URL means, how tables grow, and what damage looks like."""

from __future__ import annotations

import contextlib
import sqlite3
import sys
import threading
from pathlib import Path

import pytest
import sqlalchemy as sa

from meshnode.errors import ConfigError, InvalidInput
from meshnode.storage import open_runs
from meshnode.storage.files import FileRuns
from meshnode.storage.runs import Finished, StorageError
from meshnode.storage.sql import MIGRATIONS, SqlRuns


def ddl(statement: str) -> sa.DDL:
    made: sa.DDL = sa.DDL(statement)  # type: ignore[no-untyped-call]  # SQLAlchemy left it untyped
    return made


def row(index: int) -> Finished:
    return Finished(index, b"d", 1.0, False, b"o")


@pytest.mark.parametrize("url", [":memory:", "sqlite://", "sqlite:///:memory:"])
def test_memory_keeps_a_run_as_long_as_it_is_open(url: str) -> None:
    runs = open_runs(url)
    run = runs.create_run("qa").run_id
    seen: list[str] = []
    thread = threading.Thread(target=lambda: seen.append(runs.load_run(run).program))
    thread.start()
    thread.join()
    assert seen == ["qa"]
    runs.close()
    other = open_runs(url)
    assert other.list_runs() == []
    other.close()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("runs.db", "write sqlite:///FILE"),
        ("", "write sqlite:///FILE"),
        ("mysql://host/db", "can't be kept in 'mysql'"),
        ("nonsense://x", "can't be kept in 'nonsense'; use sqlite, postgresql or file"),
    ],
)
def test_url_that_names_no_store_is_refused(url: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_runs(url)


def test_missing_driver_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigError, match="pip install psycopg"):
        open_runs("postgresql://nobody@127.0.0.1:1/none")


def test_password_never_appears_in_an_error() -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(StorageError) as caught:
        open_runs("postgresql://me:s3cret@127.0.0.1:1/none?connect_timeout=1")
    assert "s3cret" not in str(caught.value)
    assert "127.0.0.1" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_file_that_is_no_database_is_a_one_line_error(tmp_path: Path) -> None:
    file = tmp_path / "runs.db"
    file.write_text("not a database, but long enough to look at" * 50)
    with pytest.raises(StorageError, match=r"runs\.db: file is not a database"):
        open_runs(f"sqlite:///{file}")
    with pytest.raises(StorageError, match="unable to open database file"):
        open_runs(f"sqlite:///{tmp_path}/no/such/folder/runs.db")
    with pytest.raises(StorageError, match=r"runs\.db: File exists|Not a directory"):
        open_runs(f"file://{file}")


def test_tables_grow_step_by_step_and_keep_what_is_there(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/runs.db"
    old = SqlRuns(url, migrations=MIGRATIONS[:1])
    run = old.create_run("qa").run_id
    old.close()
    new = SqlRuns(url)
    assert new.load_run(run).program == "qa"
    new.add_finished(run, [row(0)])
    new.close()
    newer = SqlRuns(url, migrations=[*MIGRATIONS, [ddl("ALTER TABLE meshnode_runs ADD COLUMN note TEXT")]])
    assert newer.load_finished(run) == [row(0)]
    newer.close()
    with pytest.raises(StorageError, match="its tables are of version 3, this meshnode knows 2; upgrade it"):
        SqlRuns(url)


def test_failed_step_changes_nothing(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/runs.db"
    SqlRuns(url).close()
    broken = [ddl("CREATE TABLE half (x INTEGER)"), ddl("ALTER TABLE nowhere ADD COLUMN x INTEGER")]
    with pytest.raises(StorageError, match="no such table: nowhere"):
        SqlRuns(url, migrations=[*MIGRATIONS, broken])
    with sqlite3.connect(tmp_path / "runs.db") as connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
        version = connection.execute("SELECT version FROM meshnode_schema").fetchone()
    connection.close()
    assert "half" not in tables
    assert version == (len(MIGRATIONS),)


def test_many_may_open_a_new_database_at_once(tmp_path: Path) -> None:
    failures: list[BaseException] = []

    def work() -> None:
        try:
            open_runs(f"sqlite:///{tmp_path}/runs.db").close()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(90)
    assert not failures


def test_torn_last_line_is_ignored_and_cut_off_by_the_next_append(tmp_path: Path) -> None:
    runs = FileRuns(tmp_path)
    run = runs.create_run("qa").run_id
    runs.add_finished(run, [row(0), row(1)])
    file = tmp_path / run / "finished.jsonl"
    whole = file.read_bytes()
    for torn in (whole[-20:-1], b"{", b"x" * 200_000):
        file.write_bytes(whole + torn)
        after_crash = FileRuns(tmp_path)
        assert after_crash.load_finished(run) == [row(0), row(1)]
        after_crash.add_finished(run, [row(2)])
        assert after_crash.load_finished(run) == [row(0), row(1), row(2)]
        assert file.read_bytes().startswith(whole + b'{"index":2')


def test_first_of_two_lines_for_one_example_stays(tmp_path: Path) -> None:
    runs = FileRuns(tmp_path)
    run = runs.create_run("qa").run_id
    runs.add_finished(run, [row(0)])
    file = tmp_path / run / "finished.jsonl"
    line = file.read_bytes()
    file.write_bytes(line + line.replace(b'"score":1.0', b'"score":0.5'))  # two processes that did not see each other
    assert FileRuns(tmp_path).load_finished(run) == [row(0)]


def test_damage_further_up_is_an_error_that_names_file_and_place(tmp_path: Path) -> None:
    runs = FileRuns(tmp_path)
    run = runs.create_run("qa").run_id
    runs.add_finished(run, [row(0), row(1)])
    file = tmp_path / run / "finished.jsonl"
    first, second = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(first + b"#" * (len(second) - 1) + b"\n" + second)
    with pytest.raises(StorageError, match=rf"finished\.jsonl, at byte {len(first)}: damaged"):
        FileRuns(tmp_path).load_finished(run)
    (tmp_path / run / "run.json").write_text("{}")
    with pytest.raises(StorageError, match=r"run\.json: .*missing required field"):
        runs.load_run(run)


def test_half_made_run_is_not_there(tmp_path: Path) -> None:
    runs = FileRuns(tmp_path)
    (tmp_path / "half").mkdir()
    assert runs.list_runs() == []
    with pytest.raises(InvalidInput, match="there is no run 'half'; the newest: none yet"):
        runs.load_run("half")


def test_opening_waits_for_who_is_about_to_change_a_new_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite gives up at once, whatever its timeout: one of many that opened a new database failed now and then."""
    waited, opened = threading.Event(), threading.Event()

    def sleep(_seconds: float) -> None:
        waited.set()

    monkeypatch.setattr("meshnode.storage.sql.time.sleep", sleep)
    with contextlib.closing(sqlite3.connect(tmp_path / "runs.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")

        def work() -> None:
            open_runs(f"sqlite:///{tmp_path}/runs.db").close()
            opened.set()

        opening = threading.Thread(target=work)
        opening.start()
        assert waited.wait(30)
        assert not opened.is_set()
        other.execute("COMMIT")
        opening.join(30)
        assert opened.is_set()
