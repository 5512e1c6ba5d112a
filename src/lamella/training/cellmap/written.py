"""Where predicted classes of crops are written, and what of them is there already.

::

    OUT/DATASET.zarr/cropN/CLASS        zarr v2, voxel_size and translation (z, y, x, nm)

A class appears under its name when all of it is written; until then it has a hidden one. Each says
what it was made with, so that a prediction that was stopped goes on with what is missing, and one
with another model is not mixed with it.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lamella.core.errors import InputError, OutputExistsError
from lamella.io.format import storage_errors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lamella.training.cellmap.manifest import WantedLabel

__all__ = ["CHUNK", "MADE_WITH", "PredictionFolder"]

CHUNK = 128
MADE_WITH = "lamella"
"""Attribute that says what a prediction was made with."""
_SPARE = 0.1
"""Share of the disk's free space that is left alone."""


class PredictionFolder:
    """A folder of predictions.

    Args:
        path: of the folder; made when something is written.
        overwrite: replace what was made otherwise, instead of refusing.

    Raises:
        InputError: a file, or a folder that holds something else.
    """

    def __init__(self, path: Path, *, overwrite: bool = False) -> None:
        self.path = path
        self._overwrite = overwrite
        if path.exists() and not path.is_dir():
            raise InputError(f"{path} is a file", hint="give a folder, such as predictions.zarr")
        if path.is_dir() and (path / ".zarray").exists():
            raise InputError(f"{path} is a zarr array", hint="give a folder that is not there yet")

    def place(self, label: WantedLabel) -> Path:
        """Folder of a class of a crop."""
        return self.path / f"{label.data_set}.zarr" / label.crop / label.name

    def is_there(self, label: WantedLabel, made_with: Mapping[str, Any]) -> bool:
        """Whether a class of a crop was predicted with the same model and options.

        Raises:
            OutputExistsError: it was predicted otherwise, or by somebody else.
        """
        place = self.place(label)
        if not place.exists():
            return False
        try:
            attributes = json.loads((place / ".zattrs").read_text("utf-8"))
        except (OSError, ValueError):
            attributes = {}
        if attributes.get(MADE_WITH) == json.loads(json.dumps(made_with)):
            return True
        if self._overwrite:
            return False
        before = attributes.get(MADE_WITH) or {}
        differing = sorted(key for key in made_with if before.get(key) != made_with[key])
        raise OutputExistsError(
            f"{place} was predicted with another {', '.join(differing) or 'program'}",
            hint="choose another folder, or use --overwrite to replace it",
        )

    def create(self, label: WantedLabel, dtype: np.dtype[Any]) -> Any:
        """An empty array for a class of a crop, under its hidden name.

        Raises:
            StorageError: it cannot be written.
        """
        part = self._part(label)
        with storage_errors(part):
            for folder in (self.path, part.parent.parent, part.parent):
                folder.mkdir(parents=True, exist_ok=True)
                group = folder / ".zgroup"
                if not group.exists():
                    group.write_text('{"zarr_format": 2}\n', encoding="utf-8")
            return _new_array(part, label, dtype)

    def create_mask(self, label: WantedLabel, scratch: Path) -> Any:
        """An empty array of 0 and 1 in a scratch folder, to be made into objects."""
        with storage_errors(scratch):
            return _new_array(scratch / "mask", label, np.dtype(np.uint8))

    def scratch(self, label: WantedLabel, name: str) -> Path:
        """An empty hidden folder beside a class, for what is needed only while it is made."""
        folder = self._part(label).with_suffix(f".{name}")
        with storage_errors(folder):
            if folder.exists():
                shutil.rmtree(folder)
            folder.mkdir(parents=True)
        return folder

    def finish(self, label: WantedLabel, made_with: Mapping[str, Any]) -> None:
        """Give a class its name."""
        part, place = self._part(label), self.place(label)
        with storage_errors(place):
            path = part / ".zattrs"
            attributes = json.loads(path.read_text("utf-8"))
            attributes[MADE_WITH] = dict(made_with)
            path.write_text(json.dumps(attributes, indent=1), encoding="utf-8")
            if place.exists():
                shutil.rmtree(place)
            part.rename(place)

    def check_room(self, n_bytes: int) -> None:
        """Refuse to begin what cannot fit.

        Raises:
            StorageError: with what is needed and what is free.
        """
        from lamella.core.errors import StorageError

        folder = next(p for p in (self.path, *self.path.absolute().parents) if p.exists())
        free = int(shutil.disk_usage(folder).free * (1 - _SPARE))
        if n_bytes > free:
            raise StorageError(
                f"{self.path} needs about {n_bytes / 1e9:.1f} GB, {free / 1e9:.1f} GB are free",
                hint="choose another disk, or fewer crops with --crop",
            )

    def _part(self, label: WantedLabel) -> Path:
        place = self.place(label)
        return place.with_name(f".{place.name}.part")


def _new_array(path: Path, label: WantedLabel, dtype: np.dtype[Any]) -> Any:
    import zarr

    if path.exists():
        shutil.rmtree(path)
    grid = label.grid
    return zarr.create_array(
        str(path),
        shape=grid.shape,
        dtype=dtype,
        chunks=tuple(min(CHUNK, n) for n in grid.shape),
        fill_value=0,
        zarr_format=2,
        attributes={
            "voxel_size": list(grid.spacing),
            "translation": list(grid.origin),
            "unit": "nanometer",
        },
    )
