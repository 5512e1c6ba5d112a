"""Room for what comes: size of one upload, quota of a user, limit of the server, free disk."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from lamella.core.errors import QuotaError, StorageError
from lamella.jobs.database import Database
from lamella.jobs.tables import users
from lamella.server.settings import Settings
from lamella.server.uploads.file import committed_offset
from lamella.server.uploads.protocol import TusError
from lamella.server.uploads.rows import UploadRecord, list_uploads, volume_bytes

__all__ = ["Space", "SpaceLimits"]

_LOCK = 0x75706C64
"""Number of the database lock: sums and the row that depends on them are one step."""


@dataclass(frozen=True, slots=True)
class SpaceLimits:
    """In bytes; 0 = no limit, except for ``max_upload``."""

    max_upload: int
    user_quota: int = 0
    total: int = 0
    min_free: int = 0

    @classmethod
    def of_settings(cls, settings: Settings) -> "SpaceLimits":
        """As the server was told."""
        return cls(
            settings.max_upload_bytes,
            settings.user_quota_bytes,
            settings.max_total_bytes,
            settings.min_free_bytes,
        )


class Space:
    """What uploads and volumes take, and whether more fits.

    Args:
        folder: of all uploads.
        database: of the server.
        limits: in bytes.
    """

    def __init__(self, folder: Path, database: Database, limits: SpaceLimits) -> None:
        self._folder = folder
        self._database = database
        self.limits = limits

    def check_size(self, n_bytes: int) -> None:
        """Refuse an upload that is too large whatever else is there.

        Raises:
            TusError: 413.
        """
        if n_bytes > self.limits.max_upload:
            raise TusError(
                f"the upload has {_told(n_bytes)}; this server takes at most"
                f" {_told(self.limits.max_upload)}",
                status=413,
                hint="crop the volume, or ask for a larger max_upload_bytes",
            )

    def check(
        self, connection: Connection, owner: str, n_bytes: int, *, n_replaced: int = 0
    ) -> None:
        """Refuse ``n_bytes`` more of a user, within the transaction that will add them.

        Args:
            connection: of the transaction.
            owner: user.
            n_bytes: to be added.
            n_replaced: bytes of the same user that go once the new ones are there. They count
                for the disk, which holds both for a while, and for no quota.

        Raises:
            QuotaError: the user, or the server, holds too much already.
            StorageError: the disk is too full.
        """
        self._database.lock(connection, _LOCK)
        more = n_bytes - n_replaced
        quota = self.quota_of(connection, owner)
        if quota:
            self._check_sum(f"the quota of {owner}", quota, self.used(connection, owner), more)
        if self.limits.total:
            used = self.used(connection)
            self._check_sum("what this server may hold", self.limits.total, used, more)
        self._check_disk(connection, n_bytes)

    def room(self, owner: str) -> int:
        """Bytes that a user could still add."""
        with self._database.read() as connection:
            free = shutil.disk_usage(self._folder).free - self.limits.min_free
            left = [free - self._promised(connection)]
            if quota := self.quota_of(connection, owner):
                left.append(quota - self.used(connection, owner))
            if self.limits.total:
                left.append(self.limits.total - self.used(connection))
        return max(0, min(left))

    def quota_of(self, connection: Connection, owner: str) -> int:
        """A user's own quota, or everybody's; 0 = none."""
        own = connection.execute(
            sa.select(users.c.quota_bytes).where(users.c.owner == owner)
        ).scalar_one_or_none()
        return self.limits.user_quota if own is None else int(own)

    def used(self, connection: Connection, owner: str | None = None) -> int:
        """Bytes that uploads (unfinished ones with their whole size) and volumes take."""
        found = list_uploads(connection, owner=owner)
        return volume_bytes(connection, owner) + sum(
            self._size(one) for one in found if one.has_data
        )

    def _size(self, record: UploadRecord) -> int:
        if record.parts is not None and record.state == "open":
            # It is being joined: its parts are still there, and counted.
            return 0
        return self._offset(record) if record.n_bytes is None else record.n_bytes

    def _offset(self, record: UploadRecord) -> int:
        return committed_offset(self._folder / record.id)

    def _check_sum(self, what: str, limit: int, used: int, more: int) -> None:
        if used + more > limit:
            raise QuotaError(
                f"{_told(more)} more do not fit: {what} is {_told(limit)}, {_told(used)} are used",
                hint="delete volumes, jobs or unfinished uploads that you do not need",
                details={"limit_bytes": limit, "used_bytes": used, "asked_bytes": more},
            )

    def _check_disk(self, connection: Connection, more: int) -> None:
        free = shutil.disk_usage(self._folder).free - self.limits.min_free
        if more > free:
            raise self._full(more, free)
        # What others were promised counts as well.
        promised = self._promised(connection)
        if more > free - promised:
            raise self._full(more, free - promised)

    def _promised(self, connection: Connection) -> int:
        """Bytes of unfinished uploads that have not come yet."""
        return sum(
            one.n_bytes - self._offset(one)
            for one in list_uploads(connection, state="open")
            if one.n_bytes is not None
        )

    def _full(self, more: int, left: int) -> StorageError:
        return StorageError(
            f"the server's disk has room for {_told(max(0, left))}; {_told(more)} are needed",
            hint="try again later, or ask whoever runs the server for space",
        )


def _told(n_bytes: int) -> str:
    if n_bytes < 10_000:
        return f"{n_bytes:,} bytes"
    return f"{n_bytes / 1e6:,.1f} MB" if n_bytes < 10**10 else f"{n_bytes / 1e9:,.1f} GB"
