"""Whether the objects of a 3-D network are found in the whole volume at once, or in which blocks.

Examples:
    >>> object_grid((512, 512, 512), {"object_block": None, "object_halo": 32}) is None
    True
    >>> object_grid((1024, 1024, 1024), {"object_block": None, "object_halo": 32}).counts
    (3, 3, 3)
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from lamella.core.errors import InputError
from lamella.instances.stitch import BlockGrid

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["EDGE", "WHOLE_VOXELS", "decoded_voxels", "object_grid"]

WHOLE_VOXELS = 2**28
"""Volumes up to here are decoded whole unless the request says otherwise."""
EDGE = 384
"""Of the blocks of larger ones, voxels."""


def object_grid(
    shape: Sequence[int], options: Mapping[str, Any], unit: Sequence[int] = (1, 1, 1)
) -> BlockGrid | None:
    """The blocks in which objects are found; None where that is the whole volume.

    Args:
        shape: of the labels, (z, y, x) voxels.
        options: ``object_block`` and ``object_halo``, as the engine resolved them.
        unit: of the labels' storage; blocks are whole units.

    Raises:
        InputError: for a halo that does not fit.
    """
    edge, halo = options["object_block"], int(options["object_halo"])
    if len(shape) != 3 or (edge is None and math.prod(shape) <= WHOLE_VOXELS):
        return None
    z, y, x = (math.ceil((edge or EDGE) / one) * one for one in unit)
    if halo > min(z, y, x):
        raise InputError(
            f"object_halo={halo} is wider than blocks of {z} x {y} x {x} voxels",
            hint="make object_block larger or object_halo smaller",
        )
    grid = BlockGrid((shape[0], shape[1], shape[2]), (z, y, x), halo)
    return None if len(grid.boxes) == 1 else grid


def decoded_voxels(shape: Sequence[int], options: Mapping[str, Any]) -> int:
    """The most voxels that are decoded at once."""
    grid = object_grid(shape, options)
    if grid is None:
        return math.prod(shape)
    return max(grid.read_box(box).size for box in grid.boxes)
