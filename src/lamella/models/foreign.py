"""A model of another project, as engines receive it, and where the store keeps it.

::

    <places.models>/<id>/
    ├── record.json      lamella.wire.record.ModelRecord, with the SHA-256 of every file
    └── files/           the files as they came
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from lamella.core.errors import ModelError

if TYPE_CHECKING:
    from lamella.core.places import Places
    from lamella.wire.record import ModelRecord

__all__ = ["FILES_NAME", "RECORD_NAME", "ForeignModel", "find_foreign", "read_record"]

RECORD_NAME = "record.json"
FILES_NAME = "files"


@dataclass(frozen=True, slots=True)
class ForeignModel:
    """What an engine runs that is no Lamella model folder.

    Attributes:
        engine: id of the engine.
        id: how it is named in manifests: a stored id, a task, or the name of its folder.
        version: of the model, or of the package that brings it.
        path: folder or file with the weights; None where the engine finds them itself.
        sha256: of what decides its labels (weights and plans), hex; None where nobody knows.
        licence: of the weights.
        title: for people.
        details: further facts for the engine, plain values.
    """

    engine: str
    id: str
    version: str = ""
    path: Path | None = None
    sha256: str | None = None
    licence: str = ""
    title: str = ""
    details: Mapping[str, object] = field(default_factory=dict)


def read_record(folder: Path) -> ModelRecord:
    """Return the record of a stored foreign model.

    Raises:
        ModelError: a record that does not validate.
        MissingPathError: no record there.
    """
    from lamella.wire.record import ModelRecord

    return ModelRecord.read(folder / RECORD_NAME, error=ModelError)


def find_foreign(
    model_id: str, places: Places, *, engine: str | None = None
) -> ForeignModel | None:
    """Return the stored foreign model of an id, None where there is none.

    Args:
        model_id: id of the store; anything with a path separator is none.
        places: where models lie.
        engine: only a model of this engine.

    Raises:
        ModelError: a record that cannot be read, or files that are not the recorded ones.
    """
    if places.models is None or not model_id or Path(model_id).name != model_id:
        return None
    folder = places.models / model_id
    if not (folder / RECORD_NAME).is_file():
        return None
    record = read_record(folder)
    if engine is not None and record.engine != engine:
        return None
    _verify(folder / FILES_NAME, record)
    parts = sorted((name, file.sha256) for name, file in record.files.items())
    return ForeignModel(
        engine=record.engine,
        id=record.id,
        version=record.version,
        path=folder / FILES_NAME,
        sha256=hashlib.sha256(repr(parts).encode()).hexdigest(),
        licence=record.licence,
        title=record.title,
        details=dict(record.details),
    )


def _verify(folder: Path, record: ModelRecord) -> None:
    for name, expected in record.files.items():
        path = folder / name
        if not path.is_file():
            raise ModelError(
                f"model {record.id!r} is incomplete: {path} is missing",
                hint="remove it and pull or import it again",
            )
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != expected.sha256:
            raise ModelError(
                f"model {record.id!r} was changed: {path} has SHA-256 {found[:12]}..., its record"
                f" says {expected.sha256[:12]}...",
                hint="remove it and pull or import it again",
                details={"file": name, "expected": expected.sha256, "found": found},
            )
