"""Licences that have to be accepted, and the record of who they were shown to here.

Acceptances lie in ``<models>/.licences/<id>.json``: the model, its licence, when, and the SHA-256
of the very text that was accepted. Another text has to be accepted anew.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from lamella.core.errors import InputError, LamellaError, LicenceError
from lamella.core.storage import storage_error
from lamella.wire.record import AcceptanceDoc, ModelRecord, PulledDoc

if TYPE_CHECKING:
    from pathlib import Path

    from lamella.core.places import Places
    from lamella.wire.catalogue import CatalogueEntry

__all__ = ["Terms", "accept", "check_accepted", "is_accepted"]


@dataclass(frozen=True, slots=True)
class Terms:
    """A licence as it is shown.

    Examples:
        >>> print(Terms("m", "1", "CC BY-NC 4.0", "https://example.org", "", must_accept=True).text)
        CC BY-NC 4.0
        https://example.org
    """

    model: str
    version: str
    licence: str
    url: str
    words: str
    must_accept: bool

    @classmethod
    def of(cls, document: CatalogueEntry | ModelRecord | PulledDoc) -> Terms:
        """The terms of an entry, of a stored model, or of where one came from."""
        return cls(
            model=document.id,
            version=document.version,
            licence=document.licence,
            url=document.licence_url,
            words=document.licence_text,
            must_accept=document.must_accept,
        )

    @property
    def text(self) -> str:
        """What is shown, and what is accepted."""
        return "\n".join(part for part in (self.licence, self.url, self.words.strip()) if part)

    @property
    def sha256(self) -> str:
        """Of :attr:`text`."""
        return hashlib.sha256(self.text.encode()).hexdigest()


def is_accepted(terms: Terms, places: Places) -> bool:
    """Whether a model may be used: no acceptance is asked for, or this very text was accepted."""
    if not terms.must_accept:
        return True
    if places.models is None:
        return False
    path = _path(places.models, terms.model)
    try:
        return path.is_file() and AcceptanceDoc.read(path).text_sha256 == terms.sha256
    except (LamellaError, OSError):
        return False


def check_accepted(terms: Terms, places: Places) -> None:
    """Refuse a model whose licence nobody accepted here.

    Raises:
        LicenceError: with the licence and how to accept it.
    """
    if is_accepted(terms, places):
        return
    told = " ".join(part for part in (terms.licence, terms.url) if part)
    raise LicenceError(
        f"the licence of {terms.model!r} was not accepted here: {told}",
        hint=f"read it (`lamella models show {terms.model}`), then: lamella models pull"
        f" {terms.model} --accept-licence",
        details={
            "model": terms.model,
            "licence": terms.licence,
            "licence_url": terms.url,
            "text": terms.text,
        },
    )


def accept(terms: Terms, places: Places) -> AcceptanceDoc:
    """Record that the licence was accepted, now.

    Raises:
        InputError: there is no folder for models.
        StorageError: it may not be written.
    """
    if places.models is None:
        raise InputError("there is no folder for models", hint="set LAMELLA_MODELS to a folder")
    document = AcceptanceDoc(
        model=terms.model,
        version=terms.version,
        licence=terms.licence,
        licence_url=terms.url,
        text_sha256=terms.sha256,
        accepted_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    path = _path(places.models, terms.model)
    fresh = path.with_suffix(".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh.write_text(document.to_json(), encoding="utf-8")
        fresh.replace(path)
    except OSError as error:
        raise storage_error(error, path) from error
    return document


def _path(models: Path, model_id: str) -> Path:
    return models / ".licences" / f"{model_id}.json"
