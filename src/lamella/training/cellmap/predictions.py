"""Predicted labels of crops, wherever they come from, found and opened with their geometry.

::

    ROOT/DATASET.zarr/cropN/CLASS        as the challenge's tools write them
    ROOT/cropN/CLASS                     a submission: crops of all data sets side by side

A class is a zarr array with ``voxel_size`` (or ``resolution``, ``scale``) and ``translation`` (or
``offset``) in nm among its attributes, or an OME-NGFF 0.4 pyramid, whose finest level counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lamella.core.errors import GeometryError
from lamella.training.cellmap.grid import Grid
from lamella.training.cellmap.tree import Tree

if TYPE_CHECKING:
    from lamella.training.cellmap.manifest import WantedLabel

__all__ = ["PredictedLabels", "find_prediction", "read_array_grid"]

_SPACING_NAMES = ("voxel_size", "resolution", "scale")
_ORIGIN_NAMES = ("translation", "offset")


@dataclass(frozen=True, slots=True)
class PredictedLabels:
    """One predicted class of one crop.

    Attributes:
        path: from the root of the predictions.
        grid: where its voxels lie.
        array: lazy, (z, y, x).
    """

    path: str
    grid: Grid
    array: Any


def find_prediction(tree: Tree, wanted: WantedLabel) -> PredictedLabels | None:
    """Open what was predicted for a class of a crop, None where nothing was.

    Raises:
        GeometryError: an array that does not say where it lies.
        UnreadableFileError: an array that cannot be opened.
    """
    for place in (f"{wanted.data_set}.zarr/{wanted.crop}", wanted.crop):
        path = f"{place}/{wanted.name}"
        if tree.document(f"{path}/.zarray") is not None:
            return PredictedLabels(path, read_array_grid(tree, path), tree.open_array(path))
        if tree.document(f"{path}/.zattrs") is not None:
            levels = tree.levels(path)
            if levels:
                finest = min(levels, key=lambda level: level.grid.spacing)
                return PredictedLabels(finest.path, finest.grid, tree.open_array(finest.path))
    return None


def read_array_grid(tree: Tree, path: str) -> Grid:
    """The grid that a single array's attributes tell.

    Raises:
        GeometryError: when they do not.
    """
    attributes = tree.document(f"{path}/.zattrs") or {}
    spacing = next((attributes[n] for n in _SPACING_NAMES if n in attributes), None)
    origin = next((attributes[n] for n in _ORIGIN_NAMES if n in attributes), None)
    shape = (tree.document(f"{path}/.zarray") or {}).get("shape", ())
    if spacing is None or origin is None or not len(spacing) == len(origin) == len(shape) == 3:
        raise GeometryError(
            f"{tree.address}/{path} does not say where it lies: shape {shape}, attributes"
            f" {sorted(attributes)}",
            hint="write voxel_size and translation (z, y, x, nm) into its .zattrs",
        )
    return Grid(
        (int(shape[0]), int(shape[1]), int(shape[2])),
        (float(spacing[0]), float(spacing[1]), float(spacing[2])),
        (float(origin[0]), float(origin[1]), float(origin[2])),
    )
