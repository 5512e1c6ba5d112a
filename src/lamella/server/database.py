"""The server's database as its settings name it, in our words where it cannot be had."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy.exc import DBAPIError

from lamella.core.errors import StorageError
from lamella.jobs.database import open_database, sqlite_url
from lamella.server.migrations import migrate
from lamella.server.settings import masked

if TYPE_CHECKING:
    from lamella.jobs.database import Database
    from lamella.server.settings import Settings

__all__ = ["open_server_database"]

_FILE_NAME = "lamella.db"


def open_server_database(settings: Settings) -> Database:
    """The database of a server, brought to the newest version.

    Raises:
        InputError: an address that is none.
        ConflictError: a newer Lamella has used it, or something else does.
        StorageError: it does not answer, or is no database.
    """
    path = settings.data_dir / _FILE_NAME
    database = open_database(settings.database_url or sqlite_url(path))
    try:
        migrate(database)
    except DBAPIError as error:
        database.close()
        raise _unusable(error, settings) from error
    return database


def _unusable(error: DBAPIError, settings: Settings) -> StorageError:
    # The driver's first line; what follows is advice for programmers.
    reason = str(error.orig).strip().partition("\n")[0]
    if not settings.database_url:
        path = settings.data_dir / _FILE_NAME
        return StorageError(
            f"the database {path} cannot be used: {reason}",
            hint="restore it from a backup, or name another folder with --data-dir",
        )
    return StorageError(
        f"the database {masked('database_url', settings.database_url)} cannot be used: {reason}",
        hint="check that it runs, and the user, password, host and name in database_url",
    )
