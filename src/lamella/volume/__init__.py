"""Volumes and their geometry: axes, spacing, affine, box, grid, pyramid, labels.

Everything is in the order (z, y, x), positions are voxel centres, and every length has its unit
written beside it.
"""

from lamella.volume.affine import Affine, Frame
from lamella.volume.axes import Axes
from lamella.volume.box import Box
from lamella.volume.grid import Tile, cover
from lamella.volume.labels import LabelClass, Labels, label_color
from lamella.volume.source import FunctionArray, LazyArray, iter_slabs
from lamella.volume.spacing import Size, Spacing, Unit
from lamella.volume.volume import Note, Volume

__all__ = [
    "Affine",
    "Axes",
    "Box",
    "Frame",
    "FunctionArray",
    "LabelClass",
    "Labels",
    "LazyArray",
    "Note",
    "Size",
    "Spacing",
    "Tile",
    "Unit",
    "Volume",
    "cover",
    "iter_slabs",
    "label_color",
]
