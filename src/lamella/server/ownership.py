"""Whose a database is: one server's, the one that holds the secret of its data folder.

Two servers at one PostgreSQL with a data folder each would take each other's jobs, whose volumes
lie in the other's folder, and refuse each other's tokens. A folder that moves takes its secret
along and stays the owner.
"""

from __future__ import annotations

import platform
import time
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from lamella.core.errors import ConflictError
from lamella.jobs.database import Database
from lamella.server.secret import Secret
from lamella.server.tables import owner

__all__ = ["take_database"]

_LOCK = 0x1A3E11C


def take_database(database: Database, secret: Secret, data_dir: Path) -> None:
    """Be the server whose database this is, from now on; nothing for the one that is already.

    Raises:
        ConflictError: when it is another's.
    """
    fingerprint = secret.key("owner").hex()
    with database.read() as connection:
        if _owner(connection, fingerprint, data_dir):
            return

    def work(connection: Connection) -> None:
        database.lock(connection, _LOCK)
        if _owner(connection, fingerprint, data_dir):
            return
        connection.execute(
            owner.insert().values(
                number=1,
                fingerprint=fingerprint,
                host=platform.node()[:255],
                data_dir=str(data_dir),
                since=time.time(),
            )
        )

    database.run(work)


def _owner(connection: Connection, fingerprint: str, data_dir: Path) -> bool:
    """Whether there is an owner, which is this server."""
    known = connection.execute(sa.select(owner)).mappings().first()
    if known is None:
        return False
    if known["fingerprint"] != fingerprint:
        raise ConflictError(
            "the database belongs to another server: the one with the data folder"
            f" {known['data_dir']} on {known['host']}, not {data_dir}",
            hint="give each server a database of its own. If this is that folder, its secret.key"
            " is missing: bring it back. If that server is gone for good: DELETE FROM owner",
        )
    return True
