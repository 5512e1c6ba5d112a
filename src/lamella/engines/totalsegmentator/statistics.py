"""Volume and mean intensity of every class, as TotalSegmentator's ``statistics.json`` has them.

The names and units are the package's: ``volume`` in mm3 and ``intensity``, the mean of the image.
What differs is what happens at the border. There the package writes 0 for every class within three
voxels of a face, which reads as "absent"; here the part that is in the image is measured and
``is_incomplete`` says that there may be more. A class that was not found has the volume 0 and no
intensity (null), for 0 HU is water.

Examples:
    >>> import numpy as np
    >>> labels = np.zeros((8, 8, 8), np.uint8); labels[3:5, 3:5, 3:5] = 1; labels[0, :4, :4] = 2
    >>> found = class_statistics(labels, labels * 10, {1: "spleen", 2: "liver"}, voxel_mm3=2.0)
    >>> found["spleen"]["volume"], found["spleen"]["intensity"], found["liver"]["is_incomplete"]
    (16.0, 10.0, True)
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from lamella.core.progress import SilentSink
from lamella.volume.source import iter_slabs

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from lamella.core.progress import ProgressSink
    from lamella.volume.source import LazyArray

__all__ = ["BORDER", "STATISTICS_NAME", "class_statistics", "write_statistics"]

STATISTICS_NAME = "statistics.json"
BORDER = 3
"""Voxels next to a face within which a class counts as cut, as in TotalSegmentator."""
_SLAB_BYTES = 16 * 2**20


def class_statistics(
    labels: LazyArray,
    image: LazyArray,
    classes: Mapping[int, str],
    *,
    voxel_mm3: float,
    sink: ProgressSink | None = None,
) -> dict[str, dict[str, Any]]:
    """Measure every class in one pass.

    Args:
        labels: unsigned integers, (z, y, x).
        image: intensities (HU for CT), (z, y, x); voxels that are not finite are left out of them.
        classes: names by label value.
        voxel_mm3: volume of a voxel.
        sink: asked for cancellation.

    Returns:
        By name: ``volume`` (mm3), ``volume_ml``, ``n_voxels``, ``intensity`` and
        ``intensity_std`` (None where there is no voxel), ``is_incomplete`` (within three voxels of
        a face of the image).
    """
    listener = sink or SilentSink()
    # Values that are no class are counted together, behind the last class.
    other = max(classes, default=0) + 1
    size = other + 1
    counts, finite = np.zeros(size, np.int64), np.zeros(size, np.int64)
    sums, squares = np.zeros(size), np.zeros(size)
    is_cut = np.zeros(size, dtype=bool)
    shape = labels.shape
    for extent, block in iter_slabs(labels, max_bytes=_SLAB_BYTES):
        listener.check()
        values = np.asarray(image[extent]).astype(np.float64).ravel()
        flat = np.minimum(block, other).ravel()
        counts += np.bincount(flat, minlength=size)
        is_finite = np.isfinite(values)
        if not is_finite.all():
            flat, values = flat[is_finite], values[is_finite]
        finite += np.bincount(flat, minlength=size)
        sums += np.bincount(flat, weights=values, minlength=size)
        squares += np.bincount(flat, weights=values * values, minlength=size)
        is_cut[np.minimum(_at_faces(block, extent.start, shape[0]), other)] = True
    return {
        name: _row(
            int(counts[value]),
            (int(finite[value]), float(sums[value]), float(squares[value])),
            is_incomplete=bool(is_cut[value]),
            voxel_mm3=voxel_mm3,
        )
        for value, name in sorted(classes.items())
    }


def write_statistics(path: Path, statistics: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the document whole or not at all.

    Raises:
        StorageError: it cannot be written.
    """
    from lamella.io.format import storage_errors

    partial = path.with_name(f".{path.name}.partial")
    with storage_errors(path):
        partial.write_text(json.dumps(statistics, indent=2) + "\n", encoding="utf-8")
        partial.replace(path)


def _row(
    n_voxels: int,
    moments: tuple[int, float, float],
    *,
    is_incomplete: bool,
    voxel_mm3: float,
) -> dict[str, Any]:
    n_finite, total, square = moments
    mean = total / n_finite if n_finite else None
    spread = None
    if mean is not None:
        spread = math.sqrt(max(0.0, square / n_finite - mean * mean))
    return {
        "volume": n_voxels * voxel_mm3,
        "intensity": None if mean is None else round(mean, 5),
        "volume_ml": n_voxels * voxel_mm3 / 1000.0,
        "n_voxels": n_voxels,
        "intensity_std": None if spread is None else round(spread, 5),
        "is_incomplete": is_incomplete,
    }


def _at_faces(block: NDArray[Any], start: int, depth: int) -> NDArray[np.intp]:
    """Values within :data:`BORDER` voxels of a face of the whole volume."""
    stop = start + block.shape[0]
    faces = [
        block[: max(0, BORDER - start)],
        block[block.shape[0] - max(0, stop - (depth - BORDER)) :]
        if stop > depth - BORDER
        else None,
        block[:, :BORDER],
        block[:, -BORDER:],
        block[:, :, :BORDER],
        block[:, :, -BORDER:],
    ]
    found = [np.unique(face) for face in faces if face is not None and face.size]
    return np.unique(np.concatenate(found)).astype(np.intp)
