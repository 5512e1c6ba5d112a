"""Crop manifests: which classes of which crops are wanted, on which grid.

The challenge's files have the columns ``crop_name, dataset, class_label, voxel_size, translation,
shape``; the last three are lists in z, y, x, written ``[2.0;2.0;2.0]``. Crop names are bare numbers
there and ``crop234`` on a disk.

Examples:
    >>> row = "234,jrc_cos7-1a,echrom,[2.0;2.0;2.0],[2760.0;5160.0;10670.0],[400;400;400]"
    >>> wanted = parse_manifest(["crop_name,dataset,class_label,voxel_size,translation,shape", row])
    >>> wanted[0].crop, wanted[0].grid.shape
    ('crop234', (400, 400, 400))
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lamella.core.errors import InputError, LamellaError, MissingPathError, UnreadableFileError
from lamella.training.cellmap.grid import Grid

if TYPE_CHECKING:
    from lamella.training.cellmap.index import CellmapIndex

__all__ = ["WantedLabel", "manifest_of_index", "parse_manifest", "read_manifest"]

_COLUMNS = ("crop_name", "dataset", "class_label", "voxel_size", "translation", "shape")


@dataclass(frozen=True, slots=True)
class WantedLabel:
    """One class of one crop.

    Attributes:
        data_set: name of the data set.
        crop: such as ``"crop234"``.
        name: of the class.
        grid: voxels on which it is wanted.
    """

    data_set: str
    crop: str
    name: str
    grid: Grid


def read_manifest(path: Path) -> tuple[WantedLabel, ...]:
    """Read a manifest.

    Raises:
        MissingPathError: no such file.
        UnreadableFileError: no manifest.
        InputError: a row that makes no sense, by its number.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise MissingPathError(f"there is no manifest at {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UnreadableFileError(f"the manifest {path} cannot be read: {error}") from None
    try:
        return parse_manifest(lines)
    except LamellaError as error:
        raise InputError(f"{path}: {error.message}", hint=error.hint) from None


def parse_manifest(lines: Iterable[str]) -> tuple[WantedLabel, ...]:
    """Read the lines of a manifest; errors are those of :func:`read_manifest`."""
    rows = csv.DictReader(lines)
    lacking = [name for name in _COLUMNS if name not in (rows.fieldnames or ())]
    if lacking:
        raise UnreadableFileError(
            f"no crop manifest: the columns {', '.join(lacking)} are missing",
            hint=f"expected a CSV file with {', '.join(_COLUMNS)}",
        )
    wanted = []
    for number, row in enumerate(rows, start=2):
        try:
            grid = Grid(
                tuple(int(n) for n in _numbers(row["shape"])),  # type: ignore[arg-type]
                _numbers(row["voxel_size"]),
                _numbers(row["translation"]),
            )
        except (ValueError, TypeError, AttributeError) as error:
            raise InputError(
                f"line {number} of the manifest makes no sense: {error}",
                hint="lists are written [z;y;x]",
            ) from None
        crop = row["crop_name"].strip()
        crop = crop if crop.startswith("crop") else f"crop{crop}"
        wanted.append(WantedLabel(row["dataset"].strip(), crop, row["class_label"].strip(), grid))
    return tuple(wanted)


def manifest_of_index(index: CellmapIndex) -> tuple[WantedLabel, ...]:
    """Every annotated class of every crop, on the grid of its finest labels."""
    return tuple(
        WantedLabel(known.name, crop.name, annotated.name, annotated.levels[0].grid)
        for known in index.data_sets
        for crop in known.crops
        for annotated in crop.classes
    )


def _numbers(text: str) -> tuple[float, float, float]:
    values = [float(part) for part in text.strip().strip("[]").split(";")]
    if len(values) != 3:
        raise ValueError(f"expected three numbers, got {text!r}")
    return values[0], values[1], values[2]
