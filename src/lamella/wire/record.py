"""The record of a stored model that is no Lamella folder: what it is, whose, and its files."""

from typing import Annotated, Literal

from pydantic import Field

from lamella.wire.card import ClassDoc
from lamella.wire.document import Document, JsonValue

__all__ = ["AcceptanceDoc", "FileDoc", "ModelRecord", "PulledDoc", "PulledFileDoc"]


class FileDoc(Document):
    """A file as it was stored."""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    n_bytes: Annotated[int, Field(ge=0)]


class ModelRecord(Document):
    """A foreign model in the store: ``record.json`` beside its ``files`` folder."""

    format_version: Literal[1] = 1
    id: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")]
    engine: str
    """Id of the engine that runs it."""
    version: str = ""
    title: str = ""
    description: str = ""
    task: Literal["semantic", "instance"] | None = None
    axes: Literal["zyx", "yx"] | None = None
    classes: tuple[ClassDoc, ...] = ()
    licence: str = ""
    licence_url: str = ""
    licence_text: str = ""
    must_accept: bool = False
    """Whether the licence has to be accepted before the model is used."""
    citation: str = ""
    source: str = ""
    """Where it came from: an address or a path, for people."""
    details: dict[str, JsonValue] = Field(default_factory=dict)
    """What its engine wants to know again without reading the files."""
    files: dict[str, FileDoc] = Field(default_factory=dict)
    """Every file by its path below ``files/``, with ``/`` between parts."""

    @property
    def n_bytes(self) -> int:
        """Size of all files."""
        return sum(file.n_bytes for file in self.files.values())


class AcceptanceDoc(Document):
    """That a licence was accepted: which text, and when."""

    format_version: Literal[1] = 1
    model: str
    version: str = ""
    licence: str
    licence_url: str = ""
    text_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    accepted_at: str
    """Date and time, ISO 8601, UTC."""


class PulledFileDoc(FileDoc):
    """A file as it came: the hash that later pulls are held to where nobody published one."""

    address: str = ""


class PulledDoc(Document):
    """Where a pulled model came from: ``pulled.json`` beside its record or card."""

    format_version: Literal[1] = 1
    id: str
    version: str = ""
    catalogue: str = ""
    pulled_at: str
    licence: str = ""
    licence_url: str = ""
    licence_text: str = ""
    must_accept: bool = False
    """Of the catalogue: a Lamella model's card says nothing of acceptance."""
    files: dict[str, PulledFileDoc]
