"""Volumes as the database knows them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from lamella.core.errors import MissingPathError
from lamella.server.tables import volumes
from lamella.server.uploads.rows import iso_time
from lamella.wire.manifest import GeometryDoc, NoteDoc
from lamella.wire.problem import Problem
from lamella.wire.upload import VolumeDoc

__all__ = [
    "VolumeRecord",
    "VolumeState",
    "delete_volume",
    "find_by_source",
    "find_volume",
    "insert_volume",
    "list_volumes",
    "no_volume",
    "update_volume",
]

VolumeState = Literal["preparing", "ready", "refused"]


@dataclass(frozen=True, slots=True)
class VolumeRecord:
    """A volume's row. Times are Unix seconds.

    Attributes:
        id: 32 hex digits.
        owner: user whose it is.
        name: for people; the file's or folder's.
        state: refused: ``problem`` says why.
        source: what it is made of: ``kind`` (upload, files, path, url) and its facts.
        n_bytes: size.
        created: when.
        last_used: when a job last asked for it.
        location: below the volume's folder, or an absolute path of the server.
        sha256: hex.
        facts: geometry, dtype and notes, as documents.
        problem: why it was refused, as a document.
        pyramid: where viewers read it.
    """

    id: str
    owner: str
    name: str
    state: VolumeState
    source: Mapping[str, Any]
    n_bytes: int
    created: float
    last_used: float
    location: str | None = None
    sha256: str | None = None
    facts: Mapping[str, Any] | None = None
    problem: Mapping[str, Any] | None = None
    pyramid: str | None = None

    def to_document(self) -> VolumeDoc:
        """The volume as its owner sees it."""
        facts = self.facts or {}
        geometry = facts.get("geometry")
        return VolumeDoc(
            id=self.id,
            owner=self.owner,
            name=self.name,
            state=self.state,
            n_bytes=self.n_bytes,
            sha256=self.sha256,
            geometry=None if geometry is None else GeometryDoc.model_validate(geometry),
            dtype=facts.get("dtype"),
            notes=tuple(NoteDoc.model_validate(note) for note in facts.get("notes", ())),
            problem=None if self.problem is None else Problem.model_validate(self.problem),
            created=iso_time(self.created),
            pyramid=self.pyramid,
        )


def no_volume(volume_id: str) -> MissingPathError:
    """The error for what is not there, and for what is somebody else's: nobody can tell which."""
    return MissingPathError(
        f"there is no volume {volume_id[:80]!r}", hint="GET /api/v1/volumes lists yours"
    )


def insert_volume(connection: Connection, record: VolumeRecord) -> None:
    """Write a new row."""
    values = {name: getattr(record, name) for name in VolumeRecord.__slots__}
    connection.execute(sa.insert(volumes).values(**(values | {"source": dict(record.source)})))


def find_volume(connection: Connection, volume_id: str) -> VolumeRecord | None:
    """One volume."""
    row = connection.execute(sa.select(volumes).where(volumes.c.id == volume_id)).first()
    return None if row is None else VolumeRecord(**row._mapping)


def find_by_source(
    connection: Connection, owner: str, source: Mapping[str, Any]
) -> VolumeRecord | None:
    """A volume of this owner that was made of just this, and not refused."""
    # JSON columns compare differently from database to database.
    found = list_volumes(connection, owner=owner)
    return next((one for one in found if one.source == source and one.state != "refused"), None)


def list_volumes(
    connection: Connection,
    *,
    owner: str | None = None,
    state: VolumeState | None = None,
    sha256: str | None = None,
    limit: int | None = None,
) -> list[VolumeRecord]:
    """Volumes, newest first; those of everybody without ``owner``."""
    asked = sa.select(volumes).order_by(volumes.c.created.desc(), volumes.c.id)
    for column, value in (("owner", owner), ("state", state), ("sha256", sha256)):
        if value is not None:
            asked = asked.where(volumes.c[column] == value)
    if limit is not None:
        asked = asked.limit(limit)
    return [VolumeRecord(**row._mapping) for row in connection.execute(asked)]


def update_volume(connection: Connection, volume_id: str, **values: Any) -> bool:
    """Change columns of one volume; whether it was there."""
    done = connection.execute(sa.update(volumes).where(volumes.c.id == volume_id).values(**values))
    return done.rowcount > 0


def delete_volume(connection: Connection, volume_id: str) -> bool:
    """Forget a volume; whether it was there."""
    done = connection.execute(sa.delete(volumes).where(volumes.c.id == volume_id))
    return done.rowcount > 0
