"""A PostgreSQL server of one's own for tests: in a folder, on a socket, gone with the process.

Debian's package (``apt install postgresql``) is enough; no server that is running is touched.
PostgreSQL refuses to run as root: root starts it as the user ``postgres`` of the package.
"""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from lamella.core.errors import MissingDependencyError, RunError
from lamella.testing.processes import ending_with_parent

__all__ = ["PostgresServer", "find_programs", "run_postgres"]

_USER = "lamella"
_START_S = 60.0


class PostgresServer:
    """A running server; databases are made in it by name.

    Args:
        folder: where its socket is.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._n_databases = self._n_schemas = 0
        self._shared = ""

    def url(self, name: str) -> str:
        """The address of one of its databases."""
        return f"postgresql://{_USER}@/{name}?host={self.folder}"

    def create_database(self) -> str:
        """The address of a new, empty database."""
        self._n_databases += 1
        name = f"test_{os.getpid()}_{self._n_databases}"
        self._execute(f"CREATE DATABASE {name}")
        return self.url(name)

    def create_schema(self) -> str:
        """The address of a new, empty schema of one shared database: there in a millisecond."""
        if self._n_schemas == 0:
            self._shared = self.create_database()
        self._n_schemas += 1
        name = f"test_{self._n_schemas}"
        self._execute(f"CREATE SCHEMA {name}", self._shared)
        return f"{self._shared}&options=-csearch_path%3D{name}"

    def drop_database(self, url: str) -> None:
        """Remove a database, whoever is still connected to it."""
        self._execute(f"DROP DATABASE IF EXISTS {sa.make_url(url).database} WITH (FORCE)")

    def _execute(self, statement: str, url: str = "") -> None:
        engine = sa.create_engine(
            sa.make_url(url or self.url("postgres")).set(drivername="postgresql+psycopg"),
            isolation_level="AUTOCOMMIT",
            poolclass=sa.NullPool,
        )
        with engine.connect() as connection:
            connection.exec_driver_sql(statement)
        engine.dispose()


def find_programs() -> Path:
    """The folder of ``initdb`` and ``postgres``.

    Raises:
        MissingDependencyError: when PostgreSQL is not installed.
    """
    versions = Path("/usr/lib/postgresql")
    folders = sorted(versions.glob("*/bin"), key=lambda path: path.parent.name.zfill(4))
    on_path = shutil.which("initdb")
    candidates = [*reversed(folders), *([Path(on_path).resolve().parent] if on_path else [])]
    for folder in candidates:
        if (folder / "initdb").is_file() and (folder / "postgres").is_file():
            return folder
    raise MissingDependencyError("PostgreSQL is not installed", hint="apt install postgresql")


@contextmanager
def run_postgres(*, is_durable: bool = False) -> Iterator[PostgresServer]:
    """A server that runs until the block ends, or this process dies.

    Args:
        is_durable: whether commits wait for the disk. Tests kill clients, not this server: it need
            not survive a loss of power.

    Raises:
        MissingDependencyError: when PostgreSQL is not installed.
        RunError: when it does not start.
    """
    programs = find_programs()
    # Not below pytest's folder: that is closed to other users, and sockets have short paths.
    folder = Path(tempfile.mkdtemp(prefix="lamella-pg-"))
    user = "postgres" if os.geteuid() == 0 else None
    try:
        if user:
            shutil.chown(folder, user, user)
        _initialise(programs, folder, user)
        process = _start(programs, folder, user, is_durable=is_durable)
        try:
            _wait(process, folder)
            yield PostgresServer(folder)
        finally:
            # Immediate shutdown: nothing is written any more, for nobody will read it.
            process.send_signal(signal.SIGQUIT)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _initialise(programs: Path, folder: Path, user: str | None) -> None:
    done = subprocess.run(
        [
            programs / "initdb",
            *("-D", folder / "data", "-U", _USER, "-A", "trust", "-E", "UTF8"),
            *("--locale=C", "--no-sync"),
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        **_as_user(user),
    )
    if done.returncode != 0:
        raise RunError(f"initdb failed: {done.stderr.strip()}", hint="check the package")


def _start(
    programs: Path, folder: Path, user: str | None, *, is_durable: bool
) -> "subprocess.Popen[Any]":
    settings = {
        "listen_addresses": "",
        "unix_socket_directories": str(folder),
        "max_connections": "200",
        "shared_buffers": "32MB",
    }
    if not is_durable:
        settings |= dict.fromkeys(("fsync", "synchronous_commit", "full_page_writes"), "off")
    options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(
            [programs / "postgres", "-D", folder / "data", *options],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=folder,
            preexec_fn=ending_with_parent(signal.SIGINT),
            **_as_user(user),
        )


def _as_user(user: str | None) -> dict[str, Any]:
    return {"user": user, "group": user, "extra_groups": []} if user else {}


def _wait(process: "subprocess.Popen[Any]", folder: Path) -> None:
    import psycopg

    end = time.monotonic() + _START_S
    while True:
        try:
            psycopg.connect(host=str(folder), user=_USER, dbname="postgres").close()
        except psycopg.OperationalError:
            if process.poll() is None and time.monotonic() < end:
                time.sleep(0.05)
                continue
            text = (folder / "log").read_text(errors="replace")[-2000:]
            raise RunError(f"PostgreSQL did not start: {text}", hint="look at the text") from None
        else:
            return
