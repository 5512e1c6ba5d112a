"""Catalogues: lists of models that can be pulled, each file with its addresses, size and hash.

A catalogue is one JSON document: shipped with the package, written by a user, or served by a web
server. Addresses may be relative; they count from where the catalogue itself lies, so a folder of
files with its catalogue can be carried to a machine without a network.
"""

from collections import Counter
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from lamella.wire.document import Document

__all__ = ["CatalogueDoc", "CatalogueEntry", "DownloadDoc"]

ModelId = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=128)]
_FORBIDDEN = frozenset('/\\:*?"<>|')


def _check_name(name: str) -> str:
    is_plain = name.isprintable() and not _FORBIDDEN & set(name) and name.strip(" .") == name
    if not is_plain or not name or len(name) > 200:
        raise ValueError(f"{name!r} is no plain file name")
    return name


class DownloadDoc(Document):
    """One file of a model: where it is, and how it is known to be the right one."""

    name: str
    urls: tuple[str, ...] = ()
    """Where the same bytes lie, the first choice first: http, https or file addresses, or relative
    ones."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """None where nobody published it: it is then recorded when the file first comes."""
    n_bytes: Annotated[int, Field(ge=0)] | None = None
    unpack: Literal["none", "zip"] = "none"
    """zip: what is inside is stored, the archive is not kept."""
    folder: str = ""
    """Folder below the model's files that it goes to; empty for the files themselves."""

    @field_validator("name")
    @classmethod
    def _plain_name(cls, name: str) -> str:
        return _check_name(name)

    @field_validator("folder")
    @classmethod
    def _plain_folder(cls, folder: str) -> str:
        for part in folder.split("/") if folder else ():
            _check_name(part)
        return folder


class CatalogueEntry(Document):
    """A model that can be pulled."""

    id: ModelId
    engine: str
    """Id of the engine that runs it; ``lamella`` for model folders of our own; empty for whichever
    knows what comes."""
    version: str = ""
    title: str
    description: str = ""
    task: Literal["semantic", "instance"] | None = None
    axes: Literal["zyx", "yx"] | None = None
    licence: str
    licence_url: str = ""
    licence_text: str = ""
    must_accept: bool = False
    """Whether the licence has to be accepted before the model comes and before it is used."""
    citation: str = ""
    homepage: str = ""
    files: tuple[DownloadDoc, ...]
    n_bytes_installed: Annotated[int, Field(ge=0)] | None = None
    """Size once unpacked, where it is known."""

    @model_validator(mode="after")
    def _consistent(self) -> "CatalogueEntry":
        if not self.files:
            raise ValueError(f"{self.id} has no files")
        names = Counter(file.name for file in self.files)
        if repeated := [name for name, n in names.items() if n > 1]:
            raise ValueError(f"file names repeat in {self.id}: {', '.join(repeated)}")
        return self

    @property
    def n_bytes(self) -> int | None:
        """What has to be fetched; None where the size of a file is not known."""
        sizes = [file.n_bytes for file in self.files]
        known = [size for size in sizes if size is not None]
        return sum(known) if len(known) == len(sizes) else None

    @property
    def is_pinned(self) -> bool:
        """Whether the hash of every file is known before it comes."""
        return all(file.sha256 is not None for file in self.files)


class CatalogueDoc(Document):
    """A list of models that can be pulled."""

    format_version: Literal[1] = 1
    title: str = ""
    models: tuple[CatalogueEntry, ...]

    @model_validator(mode="after")
    def _unique(self) -> "CatalogueDoc":
        ids = Counter(entry.id for entry in self.models)
        if repeated := [name for name, n in ids.items() if n > 1]:
            raise ValueError(f"ids repeat: {', '.join(repeated)}")
        return self
