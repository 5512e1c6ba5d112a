"""A database by its address: a SQLite file for one machine, PostgreSQL for many.

SQLite runs in WAL mode, and a commit is on the disk before it is acknowledged. Transactions that
write take its lock at once (``BEGIN IMMEDIATE``), so that two of them wait for each other instead
of failing half way. What a database refuses only for the moment (locked, deadlock, serialisation,
a dropped connection) is repeated by :meth:`Database.run`.
"""

import random
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

import sqlalchemy as sa
from sqlalchemy import event, exc
from sqlalchemy.engine import URL, Connection, Engine, make_url

from lamella.core.errors import InputError, MissingDependencyError, StorageError

__all__ = ["Database", "open_database", "sqlite_url"]

Result = TypeVar("Result")

_N_TRIES = 8
_FIRST_PAUSE_S = 0.02
_BUSY_TIMEOUT_S = 30
_READS = "lamella_reads"
# serialization_failure, deadlock_detected, lock_not_available, admin_shutdown, crash_shutdown,
# cannot_connect_now; unique_violation.
_PASSING_STATES = frozenset({"40001", "40P01", "55P03", "57P01", "57P02", "57P03", "23505"})


class Database:
    """Connections to one database; safe to share between threads, not between processes."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._sleep: Callable[[float], None] = time.sleep

    @property
    def dialect(self) -> str:
        """``sqlite`` or ``postgresql``."""
        return self.engine.dialect.name

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        """A transaction that may write: committed at the end, rolled back by an exception."""
        with self.engine.begin() as connection:
            yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that only reads: it waits for nobody and sees one state."""
        with self.engine.connect().execution_options(**{_READS: True}) as connection:
            yield connection

    def run(self, work: Callable[[Connection], Result]) -> Result:
        """What ``work`` returns, in one transaction, repeated when it collided with another.

        ``work`` must do nothing but read and write this database: it may be called again.

        Raises:
            StorageError: when the database refused it every time, or cannot be reached.
        """
        for n_tries in range(1, _N_TRIES + 1):
            try:
                with self.begin() as connection:
                    return work(connection)
            except exc.DBAPIError as error:
                if not _is_passing(error):
                    raise
                # A key that two transactions made at once is seen by the second try; a key that
                # is there anyway is the caller's matter.
                if isinstance(error, exc.IntegrityError) and n_tries > 1:
                    raise
                if n_tries == _N_TRIES:
                    raise _unavailable(error) from error
                # Full jitter: those who collided must not meet again.
                self._sleep(random.uniform(0, _FIRST_PAUSE_S * 2**n_tries))
        raise AssertionError

    def lock(self, connection: Connection, number: int) -> None:
        """Wait until no other transaction holds the lock ``number``; kept until the commit.

        On SQLite every transaction that writes is alone already.
        """
        if self.dialect == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(number)))

    def close(self) -> None:
        """Close every connection that is not in use."""
        self.engine.dispose()


def sqlite_url(path: Path) -> str:
    """The address of a SQLite file."""
    return URL.create("sqlite", database=str(path)).render_as_string()


def open_database(url: str) -> Database:
    """The database at an address; nothing is created in it.

    Args:
        url: ``sqlite:////absolute/path.db`` or ``postgresql://user:password@host/name``.

    Raises:
        InputError: for an address of no or of another database.
        MissingDependencyError: when the driver of PostgreSQL is not installed.
    """
    try:
        address = make_url(url)
    except (exc.ArgumentError, ValueError):
        # The text may hold a password: it is not repeated.
        raise InputError(
            "the address of the database cannot be read",
            hint="write sqlite:////path/lamella.db or postgresql://user:password@host/name",
        ) from None
    kind = address.get_backend_name()
    if kind == "sqlite":
        return Database(_open_sqlite(address))
    if kind in ("postgresql", "postgres"):
        return Database(_open_postgresql(address))
    raise InputError(
        f"expected an address of SQLite or PostgreSQL, got one of {kind}",
        hint="write sqlite:////path/lamella.db or postgresql://user:password@host/name",
    )


def _open_sqlite(address: URL) -> Engine:
    if not address.database or address.database == ":memory:":
        raise InputError(
            "expected the path of a SQLite file, got a database in memory",
            hint="write sqlite:////path/lamella.db: a queue must survive its process",
        )
    engine = sa.create_engine(
        address.set(drivername="sqlite+pysqlite"),
        connect_args={"timeout": _BUSY_TIMEOUT_S, "check_same_thread": False},
        pool_size=16,
        max_overflow=48,
    )
    event.listen(engine, "connect", _set_up_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _set_up_sqlite(connection: Any, _record: object) -> None:
    # The driver would begin transactions on its own, and only before the first write.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout={_BUSY_TIMEOUT_S * 1000}")
    _switch_to_wal(cursor)
    for pragma in ("synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _switch_to_wal(cursor: Any) -> None:
    """Ask for the write-ahead log; SQLite waits for nobody here, whatever its busy timeout."""
    until = time.monotonic() + _BUSY_TIMEOUT_S
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > until:
                raise
            time.sleep(random.uniform(0, _FIRST_PAUSE_S))
        else:
            return


def _begin_sqlite(connection: Connection) -> None:
    reads = connection.get_execution_options().get(_READS, False)
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")


def _open_postgresql(address: URL) -> Engine:
    try:
        return sa.create_engine(
            address.set(drivername="postgresql+psycopg"),
            pool_size=16,
            max_overflow=48,
            pool_pre_ping=True,
            connect_args={"connect_timeout": 10, "application_name": "lamella"},
        )
    except ImportError as error:
        raise MissingDependencyError(
            "the driver of PostgreSQL is not installed", hint="pip install 'psycopg[binary]'"
        ) from error


def _is_passing(error: exc.DBAPIError) -> bool:
    if error.connection_invalidated:
        return True
    cause = cast("Any", error.orig)
    state = getattr(cause, "sqlstate", None)
    if state is not None:
        return state in _PASSING_STATES
    if isinstance(error, exc.IntegrityError):
        return "UNIQUE" in str(cause)
    # psycopg gives no state where no connection came about; SQLite never gives one.
    text = str(cause).lower()
    return isinstance(error, exc.OperationalError) and any(
        part in text for part in ("locked", "busy", "connection", "connect")
    )


def _unavailable(error: exc.DBAPIError) -> StorageError:
    return StorageError(
        f"the database refused a transaction {_N_TRIES} times: {type(error.orig).__name__}",
        hint="check that it runs and that its disk has space; nothing was changed",
    )
