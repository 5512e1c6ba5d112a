"""Interpolation along one axis as weighted sums, for any part of it and always the same bits.

Interpolation on a grid is separable and linear: along one axis every new value is a fixed weighted
sum of a few old ones. The sums are taken as matrix products over fixed blocks of the axis, so a
value does not depend on the part it is asked for in.

Examples:
    >>> half = Operator.at(4, np.array([0.5, 2.5]), is_nearest=False)
    >>> half.apply(np.array([[0.0, 1.0, 2.0, 3.0]], np.float32), axis=1).tolist()
    [[0.5, 2.5]]
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["Operator"]

_SMALLEST_WEIGHT = 1e-7
# Output rows per matrix product: enough for BLAS, few enough that most of a block is not zero.
_BLOCK = 64


class Operator:
    """Weighted sums along one axis.

    Args:
        weights: float64, (n_out, n_in).
    """

    def __init__(self, weights: NDArray[np.float64]) -> None:
        self.n_out, self.n_in = weights.shape
        is_used = np.abs(weights) > _SMALLEST_WEIGHT
        first = is_used.argmax(axis=1)
        last = self.n_in - is_used[:, ::-1].argmax(axis=1)
        self.start: NDArray[np.int64] = first.astype(np.int64)
        self.stop: NDArray[np.int64] = last.astype(np.int64)
        width = int((last - first).max())
        index = np.minimum(first[:, None] + np.arange(width), self.n_in - 1)
        taps = np.take_along_axis(weights, index, axis=1)
        taps[first[:, None] + np.arange(width) >= last[:, None]] = 0.0
        # What was cut away is given back: a constant stays exactly that constant.
        taps /= taps.sum(axis=1, keepdims=True)
        self.taps: NDArray[np.float32] = taps.astype(np.float32)
        self._blocks: dict[int, NDArray[np.float32]] = {}

    @classmethod
    def at(cls, n_in: int, positions: NDArray[np.float64], *, is_nearest: bool) -> Operator:
        """Linear between the two old voxels around every new one, or the nearest of them.

        Beyond the border the outermost voxel goes on; halfway between two the even one is nearest,
        as in PyTorch.

        Args:
            n_in: voxels of the axis as it is.
            positions: where each new voxel lies among them.
            is_nearest: no interpolation.
        """
        at = np.clip(positions, 0.0, n_in - 1.0)
        weights = np.zeros((len(at), n_in))
        rows = np.arange(len(at))
        if is_nearest:
            weights[rows, np.rint(at).astype(np.int64)] = 1.0
            return cls(weights)
        low = np.minimum(np.floor(at).astype(np.int64), max(0, n_in - 2))
        weights[rows, low] = 1.0 - (at - low)
        weights[rows, np.minimum(low + 1, n_in - 1)] += at - low
        return cls(weights)

    @property
    def is_identity(self) -> bool:
        """Whether nothing changes."""
        return self.n_in == self.n_out and bool(np.all(self.start == np.arange(self.n_out)))

    def sources(self, start: int, stop: int) -> tuple[int, int]:
        """The old voxels that new voxels ``start`` to ``stop`` are made of."""
        return int(self.start[start:stop].min()), int(self.stop[start:stop].max())

    def apply(self, values: NDArray[np.float32], *, axis: int) -> NDArray[np.float32]:
        """Resample a whole axis.

        Args:
            values: float32, of any shape.
            axis: which one, not negative.
        """
        return self.part(values, axis=axis, start=0, stop=self.n_out, offset=0)

    def part(
        self, values: NDArray[np.float32], *, axis: int, start: int, stop: int, offset: int
    ) -> NDArray[np.float32]:
        """New voxels ``start`` to ``stop`` of an axis.

        Every value is the same whatever part it is asked for in: products are always taken over
        the same blocks of the axis.

        Args:
            values: float32; of the axis, the old voxels from ``offset`` on, at least those that
                :meth:`block_sources` names.
            axis: the last one or the last but one.
            start: first new voxel.
            stop: one past the last.
            offset: position of the first old voxel of ``values``.
        """
        shape = list(values.shape)
        shape[axis] = stop - start
        result = np.empty(shape, np.float32)
        is_last = axis == values.ndim - 1
        for block in range(start // _BLOCK, -(-stop // _BLOCK)):
            first, last = block * _BLOCK, min((block + 1) * _BLOCK, self.n_out)
            low, high = self.sources(first, last)
            matrix = self._matrix(block)
            rows = slice(max(start, first) - start, min(stop, last) - start)
            inner = slice(max(start, first) - first, min(stop, last) - first)
            if is_last:
                part = np.matmul(values[..., low - offset : high - offset], matrix.T)
                result[..., rows] = part[..., inner]
            else:
                part = np.matmul(matrix, values[..., low - offset : high - offset, :])
                result[..., rows, :] = part[..., inner, :]
        return result

    def block_sources(self, start: int, stop: int) -> tuple[int, int]:
        """The old voxels that :meth:`part` needs for new voxels ``start`` to ``stop``."""
        first = start // _BLOCK * _BLOCK
        return self.sources(first, min(-(-stop // _BLOCK) * _BLOCK, self.n_out))

    def _matrix(self, block: int) -> NDArray[np.float32]:
        known = self._blocks.get(block)
        if known is not None:
            return known
        first, last = block * _BLOCK, min((block + 1) * _BLOCK, self.n_out)
        low, high = self.sources(first, last)
        matrix = np.zeros((last - first, high - low), np.float32)
        for row in range(first, last):
            n = int(self.stop[row] - self.start[row])
            at = int(self.start[row]) - low
            matrix[row - first, at : at + n] = self.taps[row, :n]
        self._blocks[block] = matrix
        return matrix
