"""A model of another project, as engines receive it, and where the store keeps it.

::

    <places.models>/<id>/
    ├── record.json      lamella.wire.record.ModelRecord, with the SHA-256 of every file
    └── files/           the files as they came
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from lamella.core.errors import ModelError
from lamella.core.storage import storage_error
from lamella.models.licence import Terms, check_accepted

if TYPE_CHECKING:
    from lamella.core.places import Places
    from lamella.wire.record import ModelRecord

__all__ = [
    "FILES_NAME",
    "RECORD_NAME",
    "ForeignModel",
    "find_foreign",
    "read_record",
    "verify_files",
]

RECORD_NAME = "record.json"
FILES_NAME = "files"
_BUFFER_BYTES = 1 << 20
_AGAIN = "pull it again with `lamella models pull`, or remove it and import it again"


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
    model_id: str, places: Places, *, engine: str | None = None, verify: bool = True
) -> ForeignModel | None:
    """Return the stored foreign model of an id, None where there is none.

    Every file is read and hashed (about 2 GB/s where the processor has SHA instructions, half a
    GB/s where not: little beside loading the weights), so that a changed byte never runs.

    Args:
        model_id: id of the store; anything with a path separator is none.
        places: where models lie.
        engine: only a model of this engine.
        verify: False reads the record only, to tell whose model it is; not for running it.

    Raises:
        ModelError: a record that cannot be read, or files that are not the recorded ones.
        LicenceError: its licence has to be accepted first.
    """
    if places.models is None or not model_id or Path(model_id).name != model_id:
        return None
    folder = places.models / model_id
    if not (folder / RECORD_NAME).is_file():
        return None
    record = read_record(folder)
    if engine is not None and record.engine != engine:
        return None
    if verify:
        check_accepted(Terms.of(record), places)
        verify_files(folder / FILES_NAME, record)
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


def verify_files(
    folder: Path, record: ModelRecord, *, on_bytes: Callable[[int], None] | None = None
) -> None:
    """Compare every file of a stored model with its hash in the record.

    Args:
        folder: the model's ``files``.
        record: of the model.
        on_bytes: called with the bytes read so far; may raise.

    Raises:
        ModelError: naming the file that is missing or differs.
        StorageError: a file that may not be read.
    """
    done = 0
    for name, expected in record.files.items():
        path = folder / name
        if not path.is_file():
            raise ModelError(
                f"model {record.id!r} is incomplete: {path} is missing",
                hint=_AGAIN,
                details={"file": name},
            )
        digest = hashlib.sha256()
        try:
            with path.open("rb") as stream:
                while piece := stream.read(_BUFFER_BYTES):
                    digest.update(piece)
                    done += len(piece)
                    if on_bytes is not None:
                        on_bytes(done)
        except OSError as error:
            raise storage_error(error, path) from error
        found = digest.hexdigest()
        if found != expected.sha256:
            raise ModelError(
                f"model {record.id!r} was changed: {path} has SHA-256 {found[:12]}..., its record"
                f" says {expected.sha256[:12]}...",
                hint=_AGAIN,
                details={"file": name, "expected": expected.sha256, "found": found},
            )
