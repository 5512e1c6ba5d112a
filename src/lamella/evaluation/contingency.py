"""How many voxels carry each pair of labels: the one table behind every overlap measure.

Both volumes are read once, slab by slab, and counted run by run; the table holds only the pairs
that occur, so memory does not grow with the volume or with the size of the ids.

Examples:
    >>> import numpy as np
    >>> prediction = np.array([[1, 1, 0], [1, 5, 5]])
    >>> reference = np.array([[1, 1, 0], [2, 2, 2]])
    >>> table = count_overlaps(prediction, reference)
    >>> list(zip(table.prediction.tolist(), table.reference.tolist(), table.voxels.tolist()))
    [(0, 0, 1), (1, 1, 2), (1, 2, 1), (5, 2, 2)]
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamella.core.errors import GeometryError, InputError
from lamella.volume.source import LazyArray

__all__ = ["ContingencyTable", "Marginal", "count_overlaps"]

# Bytes of one slab of one volume: large enough to read well, small enough for two threads' caches.
_SLAB_BYTES = 32 * 2**20
_CAPACITY = 4096


@dataclass(frozen=True, slots=True)
class Marginal:
    """Labels of one side of a table, ascending, and their voxels.

    Attributes:
        ids: integer, (n,).
        voxels: int64, (n,).
        index: int64, (pairs,): position of every pair's label in ``ids``.
    """

    ids: NDArray[Any]
    voxels: NDArray[np.int64]
    index: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ContingencyTable:
    """Voxels of every pair (label in the prediction, label in the reference) that occurs.

    Attributes:
        prediction: integer, (pairs,); sorted first by this,
        reference: integer, (pairs,); then by this.
        voxels: int64, (pairs,), all positive.
    """

    prediction: NDArray[Any]
    reference: NDArray[Any]
    voxels: NDArray[np.int64]
    _sides: dict[str, Marginal] = field(default_factory=dict, repr=False, compare=False)

    @property
    def total(self) -> int:
        """Voxels in all."""
        return int(self.voxels.sum())

    def without_reference(self, label: int) -> "ContingencyTable":
        """The table without the voxels whose reference is ``label`` (an ignore label)."""
        return self._select(self.reference != label)

    def as_foreground(self) -> "ContingencyTable":
        """The table of the two foregrounds: every positive label becomes 1."""
        which = 2 * (self.prediction != 0) + (self.reference != 0)
        voxels = np.array([self.voxels[which == k].sum() for k in range(4)], np.int64)
        found = np.flatnonzero(voxels)
        return ContingencyTable(found // 2, found % 2, voxels[found])

    def side_prediction(self) -> Marginal:
        """Labels of the prediction."""
        return self._side("prediction")

    def side_reference(self) -> Marginal:
        """Labels of the reference."""
        return self._side("reference")

    def _side(self, name: str) -> Marginal:
        # Every measure asks for both sides; tables do not change.
        if name not in self._sides:
            ids = getattr(self, name)
            self._sides[name] = _marginal(ids, self.voxels, is_sorted=name == "prediction")
        return self._sides[name]

    def _select(self, keep: NDArray[np.bool_]) -> "ContingencyTable":
        return ContingencyTable(self.prediction[keep], self.reference[keep], self.voxels[keep])


def count_overlaps(
    prediction: LazyArray,
    reference: LazyArray,
    *,
    ignore_label: int | None = None,
    n_threads: int = 2,
) -> ContingencyTable:
    """Count the voxels of every pair of labels.

    Args:
        prediction: integer or bool, any number of axes; 0 is background.
        reference: integer or bool, same shape.
        ignore_label: voxels with this reference label are not counted.
        n_threads: slabs counted at a time; the table does not depend on it.

    Returns:
        The pairs that occur.

    Raises:
        GeometryError: when the shapes differ.
        InputError: for labels that are not integers, or negative (but for ``ignore_label``).
    """
    if tuple(prediction.shape) != tuple(reference.shape):
        raise GeometryError(
            f"prediction has shape {tuple(prediction.shape)}, reference has"
            f" {tuple(reference.shape)}",
            hint="compare labels on the same grid; resample one of them first",
        )
    dtypes = [_label_dtype(side) for side in (prediction, reference)]
    common = np.promote_types(*dtypes)
    if common.kind == "f":
        # numpy has no integer for int64 with uint64; ids up to 2^63 fit both.
        common = np.dtype(np.int64)
    raw = _count(prediction, reference, common, n_threads)
    table = _sorted_table(raw, common)
    if ignore_label is not None:
        table = table.without_reference(ignore_label)
    sides = (table.prediction, table.reference)
    lowest = min((int(side.min()) for side in sides if side.size), default=0)
    if lowest < 0:
        raise InputError(
            f"labels go down to {lowest}, expected 0 (background) and positive ids",
            hint=f"if {lowest} marks voxels nobody annotated, pass it as the ignore label",
        )
    return table


def _count(
    prediction: LazyArray, reference: LazyArray, common: np.dtype[Any], n_threads: int
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Pairs (as unsigned bits) and voxels, merged over slabs."""
    bits = np.dtype(f"u{common.itemsize}")

    def count(extent: slice) -> tuple[NDArray[Any], NDArray[np.int64]]:
        lines = []
        for side in (prediction, reference):
            slab = np.ascontiguousarray(side[extent], dtype=common)
            lines.append(slab.view(bits).reshape(-1, slab.shape[-1]))
        return _count_slab(lines[0], lines[1])

    extents = _slabs(tuple(prediction.shape), common.itemsize)
    # Threads pay only for reading and counting (both release the GIL); the merge is small.
    with ThreadPoolExecutor(max(1, n_threads)) as pool:
        parts = list(pool.map(count, extents))
    if not parts:
        return np.empty((0, 2), bits), np.zeros(0, np.int64)
    return np.concatenate([p for p, _ in parts]), np.concatenate([c for _, c in parts])


def _count_slab(
    first: NDArray[Any], second: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Pairs and voxels of two unsigned arrays (rows, columns)."""
    from lamella.evaluation.pairs import count_pairs, enter_pairs

    capacity, n_pairs, row = 0, 0, 0
    pairs, counts = np.empty((0, 2), first.dtype), np.zeros(0, np.int64)
    while True:
        capacity = max(2 * capacity, n_pairs + 2 * first.shape[1], _CAPACITY)
        pairs = np.concatenate([pairs, np.empty((capacity - len(pairs), 2), first.dtype)])
        counts = np.concatenate([counts, np.zeros(capacity - len(counts), np.int64)])
        slots = np.full(2 << capacity.bit_length(), -1, np.int64)
        enter_pairs(pairs, n_pairs, slots)
        row, n_pairs = count_pairs((first, second), row, pairs, counts, slots, n_pairs)
        if row == len(first):
            return pairs[:n_pairs], counts[:n_pairs]


def _sorted_table(
    raw: tuple[NDArray[Any], NDArray[np.int64]], common: np.dtype[Any]
) -> ContingencyTable:
    """Sort the pairs and add up those that occur in several slabs."""
    pairs, voxels = raw
    pairs = pairs.view(common)
    order = np.lexsort((pairs[:, 1], pairs[:, 0]))
    pairs, voxels = pairs[order], voxels[order]
    if not len(pairs):
        return ContingencyTable(pairs[:, 0], pairs[:, 1], voxels)
    is_first = np.ones(len(pairs), bool)
    is_first[1:] = (pairs[1:] != pairs[:-1]).any(axis=1)
    first = np.flatnonzero(is_first)
    return ContingencyTable(
        pairs[first, 0].copy(), pairs[first, 1].copy(), np.add.reduceat(voxels, first)
    )


def _marginal(ids: NDArray[Any], voxels: NDArray[np.int64], *, is_sorted: bool) -> Marginal:
    """Voxels per label, in integers: exact beyond 2^53 voxels."""
    if not len(ids):
        return Marginal(ids, voxels, np.zeros(0, np.int64))
    order = np.arange(len(ids)) if is_sorted else np.argsort(ids, kind="stable")
    ranked = ids[order]
    is_first = np.ones(len(ids), bool)
    is_first[1:] = ranked[1:] != ranked[:-1]
    first = np.flatnonzero(is_first)
    index = np.empty(len(ids), np.int64)
    index[order] = np.cumsum(is_first) - 1
    return Marginal(ranked[first], np.add.reduceat(voxels[order], first), index)


def _label_dtype(side: LazyArray) -> np.dtype[Any]:
    dtype = np.dtype(side.dtype)
    if dtype == np.bool_:
        return np.dtype(np.uint8)
    if dtype.kind not in "ui":
        raise InputError(
            f"labels have dtype {dtype}, expected integers",
            hint="threshold probabilities first",
        )
    return dtype.newbyteorder("=")


def _slabs(shape: tuple[int, ...], itemsize: int) -> list[slice]:
    if 0 in shape:
        return []
    plane = max(1, int(np.prod(shape[1:], dtype=np.int64)))
    depth = max(1, _SLAB_BYTES // (plane * itemsize))
    return [slice(start, min(start + depth, shape[0])) for start in range(0, shape[0], depth)]
