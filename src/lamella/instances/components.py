"""Connected components: from classes to objects, in memory or slab by slab.

Classes are kept apart: two touching voxels belong together when they carry the same positive value.
Objects are numbered 1..n by their first voxel in scan order (z slowest), so the ids depend on
neither the slab depth nor the algorithm: blockwise = whole, bit for bit.

Connectivity, as seen from the voxel in the middle::

    6 (4 in 2-D)      18                26 (8 in 2-D)
    . . .  . x .      . x .  x x x      x x x  x x x
    . x .  x o x      x x x  x o x      x x x  x o x
    . . .  . x .      . x .  x x x      x x x  x x x
    faces             faces, edges      faces, edges, corners

Examples:
    >>> import numpy as np
    >>> classes = np.array([[1, 1, 0, 2], [0, 0, 2, 0]], np.uint8)
    >>> label_components(classes, connectivity=8).labels.tolist()
    [[1, 1, 0, 2], [0, 0, 2, 0]]
    >>> label_components(classes, connectivity=4).count
    3
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from lamella.core.errors import InputError
from lamella.core.progress import Progress, ProgressSink, SilentSink
from lamella.volume.source import LazyArray

__all__ = [
    "Components",
    "ObjectCount",
    "WritableArray",
    "id_dtype",
    "label_components",
    "label_components_blockwise",
]


class WritableArray(Protocol):
    """An array whose regions can be written, such as a numpy or a zarr array."""

    def __setitem__(self, index: Any, value: NDArray[Any], /) -> None:
        """Write a region."""
        ...


@dataclass(frozen=True, slots=True)
class Components:
    """Labelled objects in memory.

    Attributes:
        labels: uint32 (uint64 from 2³² objects), shape of the input; 0 is background.
        count: number of objects; ids are 1..count.
        classes: class of each object, (count + 1,), dtype of the input; ``classes[id]``, 0 for 0.
    """

    labels: NDArray[Any]
    count: int
    classes: NDArray[Any]


@dataclass(frozen=True, slots=True)
class ObjectCount:
    """What :func:`label_components_blockwise` wrote.

    Attributes:
        count: number of objects; ids are 1..count.
        classes: class of each object, (count + 1,); ``classes[id]``.
        dtype: of the ids written, uint32 or uint64.
    """

    count: int
    classes: NDArray[Any]
    dtype: np.dtype[Any]


def id_dtype(count: int) -> np.dtype[Any]:
    """The dtype for ids 0..count: uint32, or uint64 where that would wrap.

    Examples:
        >>> id_dtype(70_000), id_dtype(2**32)
        (dtype('uint32'), dtype('uint64'))
    """
    return np.dtype(np.uint32 if count <= np.iinfo(np.uint32).max else np.uint64)


def label_components(labels: NDArray[Any], *, connectivity: int | None = None) -> Components:
    """Number the connected pieces of every class.

    Args:
        labels: classes (integer) or mask (bool), (z, y, x) or (y, x); 0 is background.
        connectivity: 6, 18 or 26 in 3-D, 4 or 8 in 2-D; default 26 and 8.

    Returns:
        The objects, numbered by their first voxel in scan order.

    Raises:
        InputError: for another dtype, number of axes or connectivity.
    """
    hops = _check(labels, connectivity)
    pieces, count, classes = _label_slab(np.asarray(labels), hops)
    return Components(pieces.astype(id_dtype(count), copy=False), count, classes)


def label_components_blockwise(
    labels: LazyArray,
    create: Callable[[np.dtype[Any]], WritableArray],
    *,
    connectivity: int | None = None,
    slab_depth: int | None = None,
    sink: ProgressSink | None = None,
) -> ObjectCount:
    """The same as :func:`label_components`, for volumes larger than memory.

    Two passes: the first labels every slab and joins objects across slab faces (union-find; only
    the last plane of a slab is remembered), the second labels again and writes final ids. Reading
    twice is cheaper than storing provisional ids, and every output region is written once.

    Args:
        labels: classes (integer) or mask (bool), (z, y, x) or (y, x); cut along the first axis.
        create: called once, with the dtype that the number of objects needs; returns the output,
            an array of the same shape.
        connectivity: as for :func:`label_components`.
        slab_depth: planes a slab; default about 64 Mi voxels. The result does not depend on it.
        sink: for progress and cancellation.

    Returns:
        Number, classes and dtype of the objects written.

    Raises:
        InputError: as for :func:`label_components`.
        RunCancelledError: when the sink says so.
    """
    hops = _check(labels, connectivity)
    sink = sink or SilentSink()
    extents = _slabs(labels.shape, slab_depth)
    final, classes = _join_slabs(labels, extents, hops, sink)
    count = len(classes) - 1
    dtype = id_dtype(count)
    output = create(dtype)
    offset = 0
    for done, extent in enumerate(extents):
        sink.check()
        pieces, n, _ = _label_slab(np.asarray(labels[extent]), hops)
        lut = np.zeros(n + 1, dtype)
        lut[1:] = final[offset : offset + n]
        output[extent] = lut[pieces]
        offset += n
        sink.emit(Progress("components", len(extents) + done + 1, 2 * len(extents), "slabs"))
    return ObjectCount(count, classes, dtype)


def _join_slabs(
    labels: LazyArray, extents: list[slice], hops: int, sink: ProgressSink
) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """First pass: final id of every provisional id (both counted from the first slab on)."""
    from lamella.instances.union import compress, join_planes

    parent = np.zeros(0, np.int64)
    classes: list[NDArray[Any]] = []
    last_plane: NDArray[Any] | None = None
    last_ids = np.zeros(0, np.int64)
    for done, extent in enumerate(extents):
        sink.check()
        slab = np.asarray(labels[extent])
        pieces, n, of_class = _label_slab(slab, hops)
        offset = len(parent)
        parent = np.concatenate([parent, np.arange(offset, offset + n)])
        classes.append(of_class[1:])
        first_ids = _as_plane(pieces[0]).astype(np.int64) + (offset - 1)
        if last_plane is not None:
            join_planes(
                _as_plane(last_plane), last_ids, _as_plane(slab[0]), first_ids, hops, parent
            )
        last_plane = slab[-1]
        last_ids = _as_plane(pieces[-1]).astype(np.int64) + (offset - 1)
        sink.emit(Progress("components", done + 1, 2 * len(extents), "slabs"))
    final = compress(parent)
    first = np.flatnonzero(parent == np.arange(len(parent)))
    of_class = np.concatenate(classes) if classes else np.zeros(0, labels.dtype)
    background = np.zeros(1, of_class.dtype)
    return final, np.concatenate([background, of_class[first]])


def _label_slab(slab: NDArray[Any], hops: int) -> tuple[NDArray[Any], int, NDArray[Any]]:
    """Objects of one slab, numbered by first voxel; their number; the class of each id."""
    import cc3d

    slab = np.ascontiguousarray(slab)
    if slab.size == 0:
        return np.zeros(slab.shape, np.uint32), 0, np.zeros(1, slab.dtype)
    # A typed table: cc3d takes these numbers and no others.
    known: dict[int, Literal[4, 6, 8, 18, 26]] = (
        {1: 6, 2: 18, 3: 26} if slab.ndim == 3 else {1: 4, 2: 8, 3: 8}
    )
    # A plane on its own has in-plane neighbours only: cc3d treats it as such.
    pieces, count = cc3d.connected_components(
        slab.view(np.uint8) if slab.dtype == np.bool_ else slab,
        connectivity=known[hops],
        return_N=True,
    )
    classes = np.zeros(count + 1, slab.dtype)
    # Any voxel of an object tells its class; writing all of them needs no search.
    classes[pieces.ravel()] = slab.ravel()
    return pieces, int(count), classes


def _as_plane(plane: NDArray[Any]) -> NDArray[Any]:
    """The plane between two slabs as (y, x); a line, for images, as (1, x)."""
    return np.ascontiguousarray(plane if plane.ndim == 2 else plane[None])


def _slabs(shape: tuple[int, ...], depth: int | None) -> list[slice]:
    if depth is None:
        plane = max(1, int(np.prod(shape[1:], dtype=np.int64)))
        depth = max(1, 2**26 // plane)
    if depth < 1:
        raise InputError(f"slab_depth is {depth}, expected 1 or more")
    return [slice(start, min(start + depth, shape[0])) for start in range(0, shape[0], depth)]


def _check(labels: LazyArray, connectivity: int | None) -> int:
    """Validate; return how many coordinates may differ by one between neighbours."""
    if labels.dtype.kind not in "uib":
        raise InputError(
            f"labels have dtype {labels.dtype}, expected integers or bool",
            hint="threshold probabilities first",
        )
    if labels.ndim not in (2, 3):
        raise InputError(f"labels have {labels.ndim} axes, expected (y, x) or (z, y, x)")
    known = {4: 1, 8: 2} if labels.ndim == 2 else {6: 1, 18: 2, 26: 3}
    if connectivity is None:
        return labels.ndim
    if connectivity not in known:
        raise InputError(
            f"connectivity is {connectivity}, expected one of {sorted(known)} for"
            f" {labels.ndim} axes"
        )
    return known[connectivity]
