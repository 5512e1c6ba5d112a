"""A stored model's record: made of what its engine sees in the files, or of a catalogue entry."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lamella.core.errors import ModelError
from lamella.wire.card import ClassDoc
from lamella.wire.catalogue import CatalogueEntry
from lamella.wire.record import FileDoc, ModelRecord

__all__ = ["hash_folder", "id_from_name", "make_record", "record_of_entry"]

_BUFFER_BYTES = 1 << 20
_FACTS = ("version", "title", "description", "task", "axes", "licence", "licence_url")
_MORE_FACTS = ("licence_text", "must_accept", "citation", "details")


def make_record(
    model_id: str,
    engine: str,
    facts: Mapping[str, Any],
    files: Mapping[str, FileDoc],
    *,
    source: str = "",
) -> ModelRecord:
    """Return the record of a model that an engine described.

    Args:
        model_id: its id in the store.
        engine: whose it is.
        facts: what the engine says, see :mod:`lamella.models.recogniser`.
        files: the files, by path below ``files/``.
        source: where it came from.

    Raises:
        ModelError: facts that make no record.
    """
    known = {name: facts[name] for name in (*_FACTS, *_MORE_FACTS) if facts.get(name) is not None}
    try:
        return ModelRecord(
            id=model_id,
            engine=engine,
            source=source,
            files=dict(files),
            classes=_classes(facts.get("classes")),
            **known,
        )
    except ValidationError as invalid:
        first = invalid.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ModelError(
            f"the model {model_id!r} cannot be recorded: {where}: {first['msg']}",
            hint="give another --id" if where == "id" else None,
        ) from None


def record_of_entry(
    entry: CatalogueEntry, facts: Mapping[str, Any], files: Mapping[str, FileDoc], *, source: str
) -> ModelRecord:
    """Return the record of a pulled model: the catalogue's words first, then the engine's."""
    told = {name: getattr(entry, name) for name in (*_FACTS, "citation")}
    merged = {**facts, **{name: value for name, value in told.items() if value}}
    # As they are, even where empty: what was accepted is this very text.
    for name in ("licence", "licence_url", "licence_text", "must_accept"):
        merged[name] = getattr(entry, name)
    return make_record(entry.id, entry.engine, merged, files, source=source)


def id_from_name(name: str) -> str:
    """Return an id made of a name.

    Examples:
        >>> id_from_name("Dataset291_Total Part 1")
        'dataset291_total-part-1'
        >>> id_from_name("../..")
        'model'
    """
    plain = re.sub(r"[^a-z0-9._-]+", "-", name.lower())
    return re.sub(r"^[^a-z0-9]+", "", plain).rstrip("-.")[:128] or "model"


def hash_folder(
    folder: Path, names: Sequence[str], on_bytes: Callable[[int], None]
) -> dict[str, FileDoc]:
    """Return size and SHA-256 of files.

    Args:
        folder: where they lie.
        names: their paths below it, with ``/``.
        on_bytes: called with the bytes read so far; may raise.
    """
    done = 0
    files: dict[str, FileDoc] = {}
    for name in names:
        digest, size = hashlib.sha256(), 0
        with (folder / name).open("rb") as stream:
            while piece := stream.read(_BUFFER_BYTES):
                digest.update(piece)
                size += len(piece)
                on_bytes(done + size)
        done += size
        files[name] = FileDoc(sha256=digest.hexdigest(), n_bytes=size)
    return files


def _classes(told: object) -> tuple[ClassDoc, ...]:
    """Classes as documents; a mapping of value to name, or of name to value, is understood too."""
    if not told:
        return ()
    if isinstance(told, Mapping):
        pairs = [
            (int(key), str(value)) if str(key).isdecimal() else (int(value), str(key))
            for key, value in told.items()
            if str(key).isdecimal() or isinstance(value, int)
        ]
        return tuple(ClassDoc(value=value, name=name) for value, name in sorted(pairs))
    if isinstance(told, Sequence):
        return tuple(ClassDoc.model_validate(one) for one in told)
    return ()
