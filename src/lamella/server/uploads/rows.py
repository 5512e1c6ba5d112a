"""Uploads as the database knows them: everything but how many bytes there are."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from lamella.core.errors import MissingPathError
from lamella.server.tables import uploads, volumes
from lamella.server.uploads.protocol import clean_name
from lamella.wire.upload import UploadDoc

__all__ = [
    "UploadRecord",
    "UploadState",
    "delete_upload",
    "find_by_key",
    "find_upload",
    "insert_upload",
    "iso_time",
    "list_uploads",
    "no_upload",
    "update_upload",
    "volume_bytes",
]

UploadState = Literal["open", "finished", "rejected", "joined"]


@dataclass(frozen=True, slots=True)
class UploadRecord:
    """An upload's row. Times are Unix seconds.

    Attributes:
        id: 32 hex digits.
        owner: user whose it is.
        state: ``joined``: it was a part, and its bytes are in the upload ``joined`` now.
        n_bytes: whole size; None while it is deferred.
        metadata: what the client said, decoded.
        is_partial: whether it waits for a concatenation.
        parts: what it was joined from.
        joined: the upload that it became a part of.
        volume: what was made of it.
        sha256: hex, once it is finished.
        problem: why it was rejected.
        created: when.
        expires: when it is removed.
        idempotency_key: the client's, so that creating it again finds it.
    """

    id: str
    owner: str
    state: UploadState
    n_bytes: int | None
    metadata: Mapping[str, str]
    is_partial: bool
    created: float
    expires: float
    parts: tuple[str, ...] | None = None
    joined: str | None = None
    volume: str | None = None
    sha256: str | None = None
    problem: Mapping[str, Any] | None = None
    idempotency_key: str | None = None

    @property
    def name(self) -> str:
        """A safe file name."""
        return clean_name(self.metadata)

    @property
    def has_data(self) -> bool:
        """Whether its bytes lie in its own folder."""
        return self.state in ("open", "finished") and self.volume is None

    def to_document(self, offset: int) -> UploadDoc:
        """The upload as its owner sees it; ``offset`` in bytes."""
        return UploadDoc(
            id=self.id,
            owner=self.owner,
            name=self.name,
            state="finished" if self.state == "joined" else self.state,
            offset=offset,
            n_bytes=self.n_bytes,
            sha256=self.sha256,
            is_partial=self.is_partial,
            volume=self.volume,
            created=iso_time(self.created),
            expires=iso_time(self.expires),
        )


def no_upload(upload_id: str) -> MissingPathError:
    """The error for what is not there, and for what is somebody else's: nobody can tell which."""
    return MissingPathError(
        f"there is no upload {upload_id[:80]!r}", hint="GET /api/v1/uploads lists yours"
    )


def iso_time(time_s: float) -> str:
    """Unix time as ISO 8601, UTC.

    Examples:
        >>> iso_time(0.25)
        '1970-01-01T00:00:00.250+00:00'
    """
    return datetime.fromtimestamp(time_s, UTC).isoformat(timespec="milliseconds")


def insert_upload(connection: Connection, record: UploadRecord) -> None:
    """Write a new row."""
    connection.execute(
        sa.insert(uploads).values(
            id=record.id,
            owner=record.owner,
            name=record.name,
            state=record.state,
            n_bytes=record.n_bytes,
            metadata=dict(record.metadata),
            is_partial=record.is_partial,
            parts=None if record.parts is None else list(record.parts),
            created=record.created,
            expires=record.expires,
            idempotency_key=record.idempotency_key,
        )
    )


def find_upload(connection: Connection, upload_id: str) -> UploadRecord | None:
    """One upload."""
    row = connection.execute(sa.select(uploads).where(uploads.c.id == upload_id)).first()
    return None if row is None else _record(row._mapping)


def find_by_key(connection: Connection, owner: str, key: str) -> UploadRecord | None:
    """The upload that was created with an idempotency key."""
    asked = sa.select(uploads).where(
        uploads.c.owner == owner, uploads.c.idempotency_key == key
    )  # fmt: skip
    row = connection.execute(asked).first()
    return None if row is None else _record(row._mapping)


def list_uploads(
    connection: Connection,
    *,
    owner: str | None = None,
    state: UploadState | None = None,
    expired_by: float | None = None,
    limit: int | None = None,
) -> list[UploadRecord]:
    """Uploads, newest first; those of everybody without ``owner``."""
    asked = sa.select(uploads).order_by(uploads.c.created.desc(), uploads.c.id)
    if owner is not None:
        asked = asked.where(uploads.c.owner == owner)
    if state is not None:
        asked = asked.where(uploads.c.state == state)
    if expired_by is not None:
        asked = asked.where(uploads.c.expires < expired_by)
    if limit is not None:
        asked = asked.limit(limit)
    return [_record(row._mapping) for row in connection.execute(asked)]


def update_upload(connection: Connection, upload_id: str, **values: Any) -> None:
    """Change columns of one upload."""
    connection.execute(sa.update(uploads).where(uploads.c.id == upload_id).values(**values))


def delete_upload(connection: Connection, upload_id: str) -> bool:
    """Forget an upload; whether it was there."""
    done = connection.execute(sa.delete(uploads).where(uploads.c.id == upload_id))
    return done.rowcount > 0


def volume_bytes(connection: Connection, owner: str | None = None) -> int:
    """What volumes in the data folder take together, of one user or of all, in bytes."""
    asked = sa.select(sa.func.coalesce(sa.func.sum(volumes.c.n_bytes), 0)).where(
        volumes.c.state != "refused",
        sa.or_(volumes.c.location.is_(None), ~volumes.c.location.startswith("/")),
    )
    if owner is not None:
        asked = asked.where(volumes.c.owner == owner)
    return int(connection.execute(asked).scalar_one())


def _record(row: Mapping[Any, Any]) -> UploadRecord:
    parts = row["parts"]
    return UploadRecord(
        id=row["id"],
        owner=row["owner"],
        state=row["state"],
        n_bytes=row["n_bytes"],
        metadata=row["metadata"],
        is_partial=row["is_partial"],
        created=row["created"],
        expires=row["expires"],
        parts=None if parts is None else tuple(parts),
        joined=row["joined"],
        volume=row["volume"],
        sha256=row["sha256"],
        problem=row["problem"],
        idempotency_key=row["idempotency_key"],
    )
