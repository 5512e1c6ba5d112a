"""Who did what, when and from where: one row for every change, kept with the data.

Reading is not recorded, nor what was refused: the access log has every request with its status.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from lamella.server.tables import audit as table

if TYPE_CHECKING:
    from starlette.requests import HTTPConnection

    from lamella.jobs.database import Database

__all__ = ["AuditLog"]

logger = logging.getLogger(__name__)

_MAX_TARGET = 255


@dataclass(frozen=True, slots=True)
class AuditLog:
    """What is recorded of changes.

    Args:
        database: where it is kept.
        clock: Unix time in seconds.
    """

    database: Database
    clock: Callable[[], float] = time.time

    def record(
        self,
        connection: HTTPConnection | None,
        *,
        action: str,
        target: str,
        status: int = 200,
        user: str | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        """Record a change.

        Args:
            connection: the request that asked for it; None for the server's own command line.
            action: ``thing.verb``, as ``job.create``.
            target: id of what was changed.
            status: of the answer.
            user: who asked, where no request says so.
            details: facts as JSON values; never secrets.
        """
        who = getattr(connection.state, "principal", None) if connection is not None else None
        row = {
            "at": self.clock(),
            "user": who.user if who is not None else user,
            "token": who.token_id if who is not None else None,
            "action": action,
            "target": target[:_MAX_TARGET],
            "status": status,
            "request_id": getattr(connection.state, "request_id", "") if connection else "",
            "address": connection.client.host if connection and connection.client else "",
            "details": dict(details) if details else None,
        }
        with self.database.begin() as transaction:
            transaction.execute(sa.insert(table).values(**row))
        # The command line says itself what it did.
        level = logging.DEBUG if connection is None else logging.INFO
        logger.log(level, "%s %s", action, target, extra={"audit": {**row, "at": None}})

    def list(self, *, limit: int = 100, before: int | None = None) -> list[dict[str, Any]]:
        """The newest records, newest first.

        Args:
            limit: how many.
            before: number of a record: only older ones.
        """
        query = sa.select(table).order_by(table.c.number.desc()).limit(limit)
        if before is not None:
            query = query.where(table.c.number < before)
        with self.database.read() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    def forget(self, before: float) -> int:
        """Delete what is older than ``before`` (Unix time), and say how many records that were."""
        with self.database.begin() as connection:
            return connection.execute(sa.delete(table).where(table.c.at < before)).rowcount
