"""Objects of a predicted class: connected pieces, a watershed in nanometres, or a network's maps.

Pieces are found slab by slab (:func:`lamella.instances.label_components_blockwise`), so that an
object has one id however the crop is cut; a watershed and the maps of a network need the crop
whole, and are refused where it does not fit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lamella.core.errors import InputError
from lamella.core.memory import available_bytes
from lamella.instances import (
    CleanOptions,
    WatershedOptions,
    clean_labels,
    count_voxels,
    id_dtype,
    label_components_blockwise,
    watershed_instances,
)
from lamella.training.cellmap.regrid import take_ids
from lamella.volume.source import FunctionArray
from lamella.volume.spacing import Size, Spacing

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from lamella.core.progress import ProgressSink
    from lamella.training.cellmap.grid import Grid
    from lamella.wire.card import DecoderDoc

__all__ = ["InstanceMethod", "ObjectOptions", "decode_objects", "split_objects"]

InstanceMethod = Literal["auto", "components", "watershed", "none"]
_SLAB_VOXELS = 1 << 24
_WATERSHED_BYTES = 24
_DECODE_BYTES = 48
"""What each holds per voxel, all temporary arrays together."""


@dataclass(frozen=True, slots=True)
class ObjectOptions:
    """What counts as an object.

    Attributes:
        method: ``components``, ``watershed``, ``none``; ``auto`` is what the model was made for,
            pieces where it gives classes.
        min_size: smaller objects are dropped: voxels of the crop, or a volume.
        seed_distance_nm: of a watershed; seeds nearer than this are one object.
    """

    method: InstanceMethod = "auto"
    min_size: Size = Size(0)  # noqa: RUF009 - frozen
    seed_distance_nm: float | None = None

    def min_voxels(self, grid: Grid) -> float:
        """Least size in voxels of a grid."""
        return self.min_size.to_voxels(Spacing(grid.spacing, "nm"))


def split_objects(
    mask: Any,
    grid: Grid,
    create: Callable[[np.dtype[Any]], Any],
    *,
    options: ObjectOptions,
    scratch: Path,
    sink: ProgressSink,
) -> int:
    """Number the objects of a class.

    Args:
        mask: uint8, (z, y, x), lazy; not 0 where the class is.
        grid: of its voxels, nm.
        create: called once with the type of the ids; returns the array to write.
        options: how.
        scratch: folder for provisional ids.
        sink: progress and cancellation.

    Returns:
        How many there are.

    Raises:
        InputError: a watershed of a crop that does not fit into memory.
        RunCancelledError: the sink asked to stop.
    """
    least = options.min_voxels(grid)
    if options.method == "watershed":
        _check_memory(grid, _WATERSHED_BYTES, "a watershed")
        found = watershed_instances(
            np.asarray(mask[...]) > 0,
            spacing=grid.spacing,
            options=WatershedOptions(
                min_seed_distance=options.seed_distance_nm, min_size=math.ceil(least)
            ),
        )
        return _write_whole(found, create)
    present = FunctionArray(mask.shape, np.bool_, lambda box: np.asarray(mask[box]) > 0)
    if least > 1:
        present = clean_labels(present, CleanOptions(min_size=least), scratch=scratch, sink=sink)
    plane = max(1, math.prod(mask.shape[1:]))
    depth = max(1, _SLAB_VOXELS // plane)
    # Whole chunks, so that none is written twice.
    chunk = int(getattr(mask, "chunks", (depth,))[0])
    return label_components_blockwise(
        present, create, slab_depth=max(chunk, depth // chunk * chunk), sink=sink
    ).count


def decode_objects(
    maps: NDArray[np.uint8],
    grid: Grid,
    wanted: Grid,
    decoder: DecoderDoc,
    create: Callable[[np.dtype[Any]], Any],
    *,
    options: ObjectOptions,
) -> int:
    """Make objects of a network's maps and bring their ids to other voxels.

    Args:
        maps: uint8, 255 = 1.0, (k, z, y, x), on the network's voxels.
        grid: of these, nm.
        wanted: voxels that are written.
        decoder: from the card.
        create: called once with the type of the ids; returns the array to write.
        options: least size.

    Returns:
        How many there are.

    Raises:
        InputError: a crop that does not fit into memory.
        ModelError: parameters that the decoder does not have.
    """
    from lamella.inference.instance_maps import decode_maps, decoder_options

    _check_memory(grid, _DECODE_BYTES, "finding objects in it")
    found = decode_maps(maps, decoder.kind, grid.spacing, decoder_options(decoder))
    ids = take_ids(found, grid, wanted)
    known, sizes = count_voxels(ids)
    kept = known[sizes >= options.min_voxels(wanted)]
    # 1..n, of what is left on the voxels that are written.
    index = np.searchsorted(kept, ids)
    index[index == len(kept)] = 0
    is_kept = (kept[index] == ids) if len(kept) else np.zeros(ids.shape, bool)
    numbered = np.where(is_kept, index + 1, 0).astype(id_dtype(len(kept)))
    return _write_whole(numbered, create)


def _write_whole(ids: NDArray[Any], create: Callable[[np.dtype[Any]], Any]) -> int:
    n = int(ids.max(initial=0))
    create(ids.dtype)[...] = ids
    return n


def _check_memory(grid: Grid, bytes_per_voxel: int, what: str) -> None:
    n_voxels = math.prod(grid.shape)
    available = available_bytes()
    if available is not None and bytes_per_voxel * n_voxels > available:
        raise InputError(
            f"{what} of {n_voxels:.3g} voxels needs about {bytes_per_voxel * n_voxels / 1e9:.0f} GB"
            f" of memory; {available / 1e9:.0f} GB are free",
            hint="use --instances components, which needs little",
        )
