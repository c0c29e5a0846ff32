"""Runs in a database, by SQLAlchemy: SQLite by default, PostgreSQL with psycopg installed.

The tables are made and changed by `MIGRATIONS`, each step in one transaction with its number, under a lock, so that
several processes may open one database at once. A step that was released is never edited; add one.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import ArgumentError, IntegrityError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.pool import StaticPool

from meshnode.errors import ConfigError, InvalidInput
from meshnode.storage.runs import Checkpoint, Finished, Point, Run, Runs, State, StorageError, new_run, no_such_run

BUSY_S = 30  # how long to wait for another process's write to SQLite
BUSY_PAUSE_S = 0.01
_LOCK = 0x6D657368  # "mesh": PostgreSQL's advisory lock while tables are changed

_tables = sa.MetaData()
_version = sa.Table("meshnode_schema", _tables, sa.Column("version", sa.Integer, nullable=False))
_runs = sa.Table(
    "meshnode_runs",
    _tables,
    sa.Column("run_id", sa.String(64), primary_key=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("program", sa.Text, nullable=False),
    sa.Column("created", sa.Double, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("settings", sa.Text, nullable=False),
    sa.Column("summary", sa.Text),
)
_points = sa.Table(
    "meshnode_points",
    _tables,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("run_id", sa.String(64), sa.ForeignKey("meshnode_runs.run_id"), nullable=False, index=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("value", sa.Double, nullable=False),
    sa.Column("step", sa.BigInteger, nullable=False),
    sa.Column("at", sa.Double, nullable=False),
)
_checkpoints = sa.Table(
    "meshnode_checkpoints",
    _tables,
    sa.Column("run_id", sa.String(64), sa.ForeignKey("meshnode_runs.run_id"), primary_key=True),
    sa.Column("step", sa.BigInteger, primary_key=True),
    sa.Column("state", sa.LargeBinary, nullable=False),
)
_finished = sa.Table(
    "meshnode_finished",
    _tables,
    sa.Column("run_id", sa.String(64), sa.ForeignKey("meshnode_runs.run_id"), primary_key=True),
    sa.Column("index", sa.BigInteger, primary_key=True),
    sa.Column("digest", sa.LargeBinary, nullable=False),
    sa.Column("score", sa.Double, nullable=False),
    sa.Column("failed", sa.Boolean, nullable=False),
    sa.Column("outcome", sa.LargeBinary, nullable=False),
)

#: Step N brings a database from version N to N + 1.
MIGRATIONS: list[Sequence[sa.schema.ExecutableDDLElement]] = [
    [sa.schema.CreateTable(table) for table in (_runs, _points, _checkpoints)]
    + [sa.schema.CreateIndex(index) for index in _points.indexes],
    [sa.schema.CreateTable(_finished)],
]


class SqlRuns(Runs):
    """Runs in the database of an SQLAlchemy URL; "sqlite://" is one in memory."""

    def __init__(
        self, url: str, *, migrations: Sequence[Sequence[sa.schema.ExecutableDDLElement]] = MIGRATIONS
    ) -> None:
        self._engine = _make_engine(url)
        self._name = self._engine.url.render_as_string(hide_password=True)
        self._lock = threading.Lock()  # SQLite writes one at a time anyway, and in memory there is one connection
        try:
            with self._transaction() as connection:
                _migrate(connection, migrations, self._name)
        except BaseException:
            self.close()
            raise

    def create_run(
        self, program: str, *, kind: str = "evaluation", settings: Mapping[str, Any] | None = None, run_id: str = ""
    ) -> Run:
        """A new run; see `Runs`."""
        run = new_run(program, kind, settings, run_id)
        row = {**msgspec.structs.asdict(run), "settings": _json(run.settings), "summary": None}
        try:
            with self._transaction() as connection:
                connection.execute(_runs.insert(), row)
        except IntegrityError:
            raise InvalidInput(f"there is a run {run.run_id!r} already; resume it, or choose another id") from None
        return run

    def end_run(self, run_id: str, state: State, summary: Mapping[str, Any] | None = None) -> None:
        """Say how it ended; see `Runs`."""
        with self._transaction() as connection:
            self._find(connection, run_id)
            change = _runs.update().where(_runs.c.run_id == run_id)
            connection.execute(change.values(state=state, summary=None if summary is None else _json(summary)))

    def load_run(self, run_id: str) -> Run:
        """The run as it is now."""
        with self._transaction() as connection:
            return self._find(connection, run_id)

    def list_runs(self, *, limit: int = 100) -> list[Run]:
        """The newest first."""
        with self._transaction() as connection:
            return self._newest(connection, limit)

    def append_metric(self, run_id: str, name: str, value: float, *, step: int = 0) -> None:
        """Add one value to the run's history."""
        row = {"run_id": run_id, "name": name, "value": value, "step": step, "at": time.time()}
        self._insert(run_id, _points.insert(), [row])

    def load_history(self, run_id: str, name: str | None = None) -> list[Point]:
        """All values of one metric, or of all, in the order they were added."""
        columns = (_points.c.name, _points.c.value, _points.c.step, _points.c.at)
        query = sa.select(*columns).where(_points.c.run_id == run_id).order_by(_points.c.id)
        if name is not None:
            query = query.where(_points.c.name == name)
        with self._transaction() as connection:
            self._find(connection, run_id)
            return [Point(*row) for row in connection.execute(query)]

    def checkpoint(self, run_id: str, step: int, state: bytes) -> None:
        """Keep the state after a step; the same step again replaces it."""
        insert = self._upsert(_checkpoints)
        replace = insert.on_conflict_do_update(index_elements=["run_id", "step"], set_={"state": insert.excluded.state})
        self._insert(run_id, replace, [{"run_id": run_id, "step": step, "state": state}])

    def load_checkpoint(self, run_id: str) -> Checkpoint | None:
        """The state of the highest step."""
        query = sa.select(_checkpoints.c.step, _checkpoints.c.state).where(_checkpoints.c.run_id == run_id)
        with self._transaction() as connection:
            self._find(connection, run_id)
            row = connection.execute(query.order_by(_checkpoints.c.step.desc()).limit(1)).first()
        return None if row is None else Checkpoint(row.step, bytes(row.state))

    def add_finished(self, run_id: str, rows: Sequence[Finished]) -> None:
        """Journal finished examples in one transaction; see `Runs`."""
        insert = self._upsert(_finished).on_conflict_do_nothing()
        self._insert(run_id, insert, [{"run_id": run_id, **msgspec.structs.asdict(row)} for row in rows])

    def load_finished(self, run_id: str, *, after: int = -1, limit: int = 500) -> list[Finished]:
        """Journalled rows with an index above `after`, ascending."""
        table = _finished.c
        query = sa.select(table.index, table.digest, table.score, table.failed, table.outcome)
        query = query.where(table.run_id == run_id, table.index > after).order_by(table.index).limit(limit)
        with self._transaction() as connection:
            self._find(connection, run_id)
            return [
                Finished(index, bytes(digest), score, failed, bytes(outcome))
                for index, digest, score, failed, outcome in connection.execute(query)
            ]

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def _insert(self, run_id: str, statement: Any, rows: list[dict[str, Any]]) -> None:
        if not rows:
            return
        try:
            with self._transaction() as connection:
                connection.execute(statement, rows)
        except IntegrityError:
            raise no_such_run(run_id, self.list_runs(limit=5)) from None

    def _upsert(self, table: sa.Table) -> Any:
        # Each dialect has an `insert` of its own with ON CONFLICT; those we support spell it alike.
        if self._engine.dialect.name == "postgresql":
            from sqlalchemy.dialects import postgresql

            return postgresql.insert(table)
        from sqlalchemy.dialects import sqlite

        return sqlite.insert(table)

    def _find(self, connection: Connection, run_id: str) -> Run:
        row = connection.execute(sa.select(_runs).where(_runs.c.run_id == run_id)).first()
        if row is None:
            raise no_such_run(run_id, self._newest(connection, 5))
        return _to_run(row)

    def _newest(self, connection: Connection, limit: int) -> list[Run]:
        query = sa.select(_runs).order_by(_runs.c.created.desc(), _runs.c.run_id.desc()).limit(limit)
        return [_to_run(row) for row in connection.execute(query)]

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        try:
            with self._lock, self._engine.begin() as connection:
                yield connection
        except IntegrityError:
            raise
        except SQLAlchemyError as error:
            raise StorageError(f"{self._name}: {_first_line(error)}") from None


def _make_engine(url: str) -> sa.Engine:
    options: dict[str, Any] = {}
    try:
        parsed = sa.make_url(url)
        if parsed.drivername in ("postgres", "postgresql"):
            parsed = parsed.set(drivername="postgresql+psycopg")
        if parsed.get_backend_name() not in ("sqlite", "postgresql"):
            raise ConfigError(f"runs can't be kept in {parsed.get_backend_name()!r}; use sqlite, postgresql or file")
        if parsed.get_backend_name() == "sqlite":
            options = {"connect_args": {"timeout": BUSY_S, "check_same_thread": False}}
            if not parsed.database or parsed.database == ":memory:":
                options["poolclass"] = StaticPool
        engine = sa.create_engine(parsed, **options)
    except (ArgumentError, NoSuchModuleError) as error:
        raise ConfigError(f"{url!r} is no place for runs: {_first_line(error)}") from None
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{url.partition('://')[0]} needs the module {error.name}; pip install {error.name}"
        ) from None
    if engine.dialect.name == "sqlite":
        sa.event.listen(engine, "connect", _set_up_sqlite)
        sa.event.listen(engine, "begin", _begin_sqlite)
    return engine


def _set_up_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # the driver's own BEGIN comes too late for DDL; `_begin_sqlite` says it
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
        _patiently(connection, f"PRAGMA {pragma}")


def _patiently(connection: Any, statement: str) -> None:
    """Execute it, and wait for others where SQLite itself does not: to change a new database to WAL it makes a reading
    lock a writing one, which it gives up at once if another connection is about to do the same."""
    until = time.monotonic() + BUSY_S
    while True:
        try:
            connection.execute(statement)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
            time.sleep(BUSY_PAUSE_S)
        else:
            return


def _begin_sqlite(connection: Connection) -> None:
    # IMMEDIATE waits for another process's write; a plain BEGIN that reads first would fail instead of waiting.
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _migrate(connection: Connection, migrations: Sequence[Sequence[sa.schema.ExecutableDDLElement]], name: str) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
    connection.execute(sa.schema.CreateTable(_version, if_not_exists=True))
    version = connection.execute(sa.select(_version.c.version)).scalar()
    if version is None:
        connection.execute(_version.insert(), {"version": 0})
    if (version or 0) > len(migrations):
        raise StorageError(
            f"{name}: its tables are of version {version}, this meshnode knows {len(migrations)}; upgrade it"
        )
    for step in migrations[version or 0 :]:
        for statement in step:
            connection.execute(statement)
    connection.execute(_version.update().values(version=len(migrations)))


def _to_run(row: Any) -> Run:
    values = dict(row._mapping)
    values["settings"] = msgspec.json.decode(values["settings"])
    values["summary"] = None if values["summary"] is None else msgspec.json.decode(values["summary"])
    return Run(**values)


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _first_line(error: Exception) -> str:
    cause = getattr(error, "orig", None) or error
    return (str(cause).strip().splitlines() or [type(cause).__name__])[0]
