"""Labels of a preview's box, small enough to be sent: read, thinned and compressed.

A box of more voxels than a preview needs is read from a coarser level where the labels have one,
and thinned to every so many voxels: labels are chosen, never mixed.
"""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from lamella.volume.pyramid import downsample_labels
from lamella.wire.event import LabelsDelta

__all__ = ["MAX_VOXELS", "decode_labels", "labels_delta"]

MAX_VOXELS = 2**19
"""Of one event: a plane of 724 x 724, a volume of 80³."""
_MAX_READ_VOXELS = 2**28
"""A larger box whose labels have no coarser level yet is announced without labels."""
_LEVEL = 5

_Dtype = Literal["uint8", "uint16", "uint32", "uint64"]
_DTYPES: Final[tuple[_Dtype, ...]] = ("uint8", "uint16", "uint32", "uint64")


@dataclass(frozen=True, slots=True)
class _Level:
    """One array of the labels, with its voxels per voxel of the input."""

    array: Any
    factors: tuple[float, ...]


def labels_delta(
    run_folder: Path, event: Mapping[str, Any], *, max_voxels: int = MAX_VOXELS
) -> LabelsDelta | None:
    """The labels of a preview event.

    Args:
        run_folder: of the run that emitted it.
        event: a :class:`lamella.wire.event.PreviewEvent` as a document.
        max_voxels: to send at most.

    Returns:
        None where the labels are no longer what the event speaks of, or cannot be thinned cheaply.
    """
    start, stop = tuple(event["box_start"]), tuple(event["box_stop"])
    if not start or any(b <= a for a, b in zip(start, stop, strict=True)):
        return None
    levels = _levels(run_folder, str(event["path"]), tuple(event["factors"]))
    level = _suitable(levels, start, stop, max_voxels)
    if level is None:
        return None
    first, last = _indices(level, start, stop)
    if any(b <= a for a, b in zip(first, last, strict=True)):
        return None
    block = np.asarray(level.array[tuple(slice(a, b) for a, b in zip(first, last, strict=True))])
    strides = _strides(block.shape, max_voxels)
    thin = downsample_labels(block, strides)
    factors = tuple(f * s for f, s in zip(level.factors, strides, strict=True))
    return _encoded(thin, factors)


def decode_labels(delta: LabelsDelta) -> NDArray[Any]:
    """The labels of a delta, unsigned integers of its shape.

    Examples:
        >>> import numpy as np
        >>> decode_labels(_encoded(np.array([[0, 300]]), (1.0, 1.0))).tolist()
        [[0, 300]]
    """
    data = zlib.decompress(base64.b64decode(delta.data))
    return np.frombuffer(data, np.dtype(delta.dtype).newbyteorder("<")).reshape(delta.shape)


def _encoded(block: NDArray[Any], factors: tuple[float, ...]) -> LabelsDelta:
    largest = int(block.max(initial=0))
    name: _Dtype = next(name for name in _DTYPES if largest <= np.iinfo(name).max)
    data = np.ascontiguousarray(block, np.dtype(name).newbyteorder("<")).tobytes()
    return LabelsDelta(
        dtype=name,
        shape=block.shape,
        factors=factors,
        data=base64.b64encode(zlib.compress(data, _LEVEL)).decode("ascii"),
    )


def _levels(run_folder: Path, name: str, factors: tuple[float, ...]) -> list[_Level]:
    """Arrays of the labels, the finest first; labels that are being written have only that one."""
    import zarr

    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts:
        return []
    levels: list[_Level] = []
    for path, ratios in _listed(run_folder / relative, len(factors)):
        try:
            array = zarr.open_array(run_folder / relative / path, mode="r")
        except (FileNotFoundError, ValueError, KeyError):
            # Replaced between the event and now: cleaned labels have another name.
            break
        if array.ndim != len(factors) or array.dtype.kind not in "ui":
            break
        levels.append(_Level(array, tuple(f * r for f, r in zip(factors, ratios, strict=True))))
    return levels


def _listed(folder: Path, n_axes: int) -> list[tuple[str, tuple[float, ...]]]:
    """Paths of the levels, and voxels of the finest per voxel of each."""
    alone = [("0", (1.0,) * n_axes)]
    try:
        document = json.loads((folder / "zarr.json").read_bytes())
        datasets = document["attributes"]["ome"]["multiscales"][0]["datasets"]
        scales = [
            (str(item["path"]), tuple(item["coordinateTransformations"][0]["scale"]))
            for item in datasets
        ]
        finest = scales[0][1]
        listed = [
            (path, tuple(a / b for a, b in zip(scale, finest, strict=True)))
            for path, scale in scales
        ]
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return alone
    return listed if all(len(ratios) == n_axes for _, ratios in listed) else alone


def _suitable(
    levels: Sequence[_Level], start: Sequence[int], stop: Sequence[int], max_voxels: int
) -> _Level | None:
    """The coarsest level that still fills what may be sent."""
    best: _Level | None = None
    for level in levels:
        first, last = _indices(level, start, stop)
        size = math.prod(b - a for a, b in zip(first, last, strict=True))
        if best is not None and size < max_voxels:
            break
        best = level if size <= _MAX_READ_VOXELS else None
    return best


def _indices(
    level: _Level, start: Sequence[int], stop: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The box on the grid of a level, within it."""
    shape = level.array.shape
    first = tuple(min(n, int(a // f)) for a, f, n in zip(start, level.factors, shape, strict=True))
    last = tuple(
        min(n, math.ceil(b / f - 1e-9)) for b, f, n in zip(stop, level.factors, shape, strict=True)
    )
    return first, last


def _strides(shape: Sequence[int], max_voxels: int) -> tuple[int, ...]:
    """How far to thin: the longest axis first, until it fits."""
    strides = [1] * len(shape)

    def lengths() -> list[int]:
        return [-(-n // s) for n, s in zip(shape, strides, strict=True)]

    while math.prod(lengths()) > max_voxels:
        longest = max(range(len(shape)), key=lambda axis: lengths()[axis])
        strides[longest] += 1
    return tuple(strides)
