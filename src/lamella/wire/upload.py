"""Uploads and the volumes that they become."""

from typing import Annotated, Literal

from pydantic import Field

from lamella.wire.document import Document
from lamella.wire.manifest import GeometryDoc, NoteDoc
from lamella.wire.problem import Problem

__all__ = ["UploadDoc", "VolumeDoc", "VolumeFile", "VolumeSpec"]


class UploadDoc(Document):
    """An upload, finished or not."""

    id: str
    owner: str
    name: str
    state: Literal["open", "finished", "rejected"]
    """Rejected: all bytes came, and their SHA-256 was not the one announced."""
    offset: int
    """Bytes that are on the server's disk."""
    n_bytes: int | None = None
    """Whole size; None while it is deferred."""
    sha256: str | None = None
    """Of the whole file, once it is finished."""
    is_partial: bool = False
    """A part for a later concatenation."""
    volume: str | None = None
    created: str
    expires: str | None = None
    """When an unfinished upload, or a finished one that nothing uses, is removed."""


class VolumeFile(Document):
    """One file of a volume of many: an upload and its path within the volume."""

    path: Annotated[str, Field(min_length=1, max_length=1024)]
    upload: str


class VolumeSpec(Document):
    """A volume to be made from uploads, a path on the server, or an S3 address: exactly one."""

    name: str = Field(default="", max_length=255)
    files: tuple[VolumeFile, ...] = ()
    path: str | None = None
    url: str | None = None
    """``s3://bucket/key``."""


class VolumeDoc(Document):
    """An input that jobs can name as ``volume:ID``."""

    id: str
    owner: str
    name: str
    state: Literal["preparing", "ready", "refused"]
    """Refused: ``problem`` says why; nothing of it is kept."""
    n_bytes: int
    sha256: str | None = None
    """Of the bytes; of the sorted (name, SHA-256) list for a folder."""
    geometry: GeometryDoc | None = None
    dtype: str | None = None
    notes: tuple[NoteDoc, ...] = ()
    problem: Problem | None = None
    created: str
    pyramid: str | None = None
    """Address of its OME-Zarr below the server, where viewers read it."""
