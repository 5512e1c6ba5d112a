"""The document of a data set: its pairs, what was found in them, and who stands on which side.

``lamella dataset index`` writes it once; a training that is given it (``data.index``) needs not
look for pairs, sizes and copies again.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field

from lamella.core.errors import InputError, LamellaError
from lamella.training.pairs.pairing import Pair
from lamella.wire.document import Document, JsonValue
from lamella.wire.request import SpacingDoc

__all__ = ["IndexDoc", "PairDoc"]


class PairDoc(Document):
    """A pair and what is known of it."""

    image: str
    """Path below the root, and ``::NAME`` for a data set inside the file."""
    labels: dict[str, str]
    """By class; one entry with an empty name where one file holds all classes."""
    mask: str = ""
    specimen: str
    split: Literal["", "train", "validation", "test"] = ""
    shape: tuple[int, ...]
    """(z, y, x) or (y, x), voxels."""
    n_channels: Annotated[int, Field(ge=1)]
    dtype: str
    spacing: SpacingDoc | None = None
    class_counts: dict[str, int] = Field(default_factory=dict)
    """Voxels of each class (``objects`` for ids), background left out."""
    n_valid: int = 0
    """Voxels that are known."""
    sizes: dict[str, int] = Field(default_factory=dict)
    """Bytes of each file by location."""
    sha256: dict[str, str] = Field(default_factory=dict)
    """Of each file by location, hex."""
    voxels_sha256: str = ""
    """Of the image's shape and voxels, whatever the format."""

    def to_pair(self) -> Pair:
        """As it is used."""
        return Pair(self.image, tuple(self.labels.items()), self.mask, self.specimen, self.split)


class IndexDoc(Document):
    """A data set, ``dataset.json``."""

    format_version: Literal[1] = 1
    root: str = "."
    """Folder that paths start from, seen from the document."""
    pairs: tuple[PairDoc, ...]
    data: dict[str, JsonValue] = Field(default_factory=dict)
    """How the files were found and understood: fields of ``data`` of a training."""
    classes: tuple[dict[str, JsonValue], ...] = ()
    """As in ``task.classes``."""
    ignore_values: tuple[int, ...] = ()
    task: str = "semantic"

    @classmethod
    def read(cls, path: Path, *, error: type[LamellaError] = InputError) -> Self:
        """A document from a file, or from the folder it lies in.

        Raises:
            MissingPathError: when there is none.
            InputError: when it is no such document.
        """
        return super().read(path / "dataset.json" if path.is_dir() else path, error=error)

    def hashes(self, sizes: Mapping[str, int]) -> dict[str, str]:
        """SHA-256 by location of files that still have the size they had."""
        return {
            place: digest
            for pair in self.pairs
            for place, digest in pair.sha256.items()
            if sizes.get(place) == pair.sizes.get(place)
        }
