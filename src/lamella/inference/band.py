"""The moving band: tiles are added, finished layers leave, nothing else is ever in memory.

The band holds the weighted sum of the logits for one tile's depth of z layers, as a ring: layer z
lives at ``z % depth``. A layer that no later tile can reach is decoded, its place is set to zero
and used for the layer one depth further.

The kernels are plain numpy over blocks that stay in the CPU cache: against numba they cost 0.35 ms
more per 64³ tile of four classes (1 % of the network's own time in fp32) and need no compilation,
which would cost a second in the first run of every installation (docs/design/0002-moving-band.md).
The order of additions per voxel is the order of the tiles, so results are bit-identical however
the volume is cut into columns and wherever a run was interrupted.

Examples:
    >>> from lamella.inference.decode import Argmax
    >>> band = Band(Argmax(2), depth=2, region=Box((0, 0), (1, 3)), n_layers=2)
    >>> logits = np.array([[0, 1, 0], [1, 0, 0]], np.float32).reshape(2, 1, 1, 3)
    >>> band.add(logits, np.ones((1, 1, 3), np.float32), Box((0, 0, 0), (1, 1, 3)))
    >>> band.leave(0, 1).labels.tolist()
    [[[1, 0, 0]]]
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lamella.core.errors import EngineError
from lamella.inference.decode import Decoder
from lamella.volume.box import Box

__all__ = ["Band", "Layers", "gaussian_weights"]

SIGMA_FRACTION = 0.125
MIN_WEIGHT = 1e-3
# Elements of the work array: 256 KiB of float32 stays in the L2 cache of one core.
BLOCK_ELEMENTS = 1 << 16


@dataclass(frozen=True, slots=True)
class Layers:
    """Decoded layers.

    Attributes:
        labels: unsigned integers, (z, y, x).
        probabilities: uint8, 255 = 1.0, (p, z, y, x); p is 0 for decoders that leave none.
    """

    labels: NDArray[np.unsignedinteger]
    probabilities: NDArray[np.uint8]


def gaussian_weights(
    tile: tuple[int, ...], *, sigma_fraction: float = SIGMA_FRACTION
) -> NDArray[np.float32]:
    """Weight of every voxel of a tile: a Gaussian around its centre, never below 1/1000.

    Sigma is 1/8 of the tile per axis unless given. Source: MONAI ``compute_importance_map``
    (Apache-2.0), same
    order of float32 operations.

    Args:
        tile: extent of a tile in voxels.
        sigma_fraction: standard deviation as a share of the tile.

    Returns:
        Positive weights, float32, of the tile's shape.
    """
    weights = np.ones((), np.float32)
    for size in tile:
        x = np.arange(-(size - 1) / 2.0, (size - 1) / 2.0 + 1, dtype=np.float32)[:size]
        sigma = np.float32(size * sigma_fraction)
        profile = np.exp(np.square(x) / (np.float32(-2.0) * np.square(sigma)))
        weights = weights[..., None] * profile
    return np.maximum(weights, max(float(weights.min()), MIN_WEIGHT)).astype(np.float32)


class Band:
    """Weighted sums of logits for the layers that tiles can still reach.

    Args:
        decoder: turns finished layers into labels; says how many outputs the network has.
        depth: z extent of a tile, in voxels.
        region: the (y, x) box of the volume that is kept; what tiles give outside is dropped.
        n_layers: z extent of the volume.
        has_means: whether :meth:`leave_means` shall be possible.
    """

    def __init__(
        self,
        decoder: Decoder,
        *,
        depth: int,
        region: Box,
        n_layers: int,
        has_means: bool = False,
    ) -> None:
        self._decoder = decoder
        self._depth = min(depth, n_layers)
        self._region = region
        self._n_layers = n_layers
        height, width = region.shape
        self._total = np.zeros((decoder.n_outputs, self._depth, height, width), np.float32)
        # Only probabilities need the division by the sum of weights: argmax and sign do not.
        self._weight = (
            np.zeros((self._depth, height, width), np.float32)
            if decoder.needs_weight or has_means
            else None
        )

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self._total.nbytes + (0 if self._weight is None else self._weight.nbytes)

    @property
    def layer_bytes(self) -> int:
        """Bytes of the sums of one layer."""
        return self._total[:, 0].nbytes

    def add(
        self,
        logits: NDArray[np.float32],
        weights: NDArray[np.float32],
        read: Box,
        write: Box | None = None,
    ) -> None:
        """Add a tile.

        Args:
            logits: float32, (k, z, y, x), of the extent of ``read``.
            weights: float32, (z, y, x), of the extent of ``read``.
            read: where the tile lies in the volume; may reach beyond it.
            write: the part of it that counts; all of it unless given.
        """
        start, stop = self._region.start, self._region.stop
        inside = Box((0, *start), (self._n_layers, *stop))
        part = read.intersect(inside if write is None else write.intersect(inside))
        if part.is_empty:
            return
        (z0, y0, x0), (z1, y1, x1) = part.relative_to(read).start, part.relative_to(read).stop
        to_y, to_x = part.start[1] - start[0], part.start[2] - start[1]
        n_outputs, width = logits.shape[0], x1 - x0
        step = max(1, BLOCK_ELEMENTS // max(1, n_outputs * width))
        work = np.empty((n_outputs, min(step, y1 - y0), width), np.float32)
        for z in range(z0, z1):
            at = (part.start[0] + z - z0) % self._depth
            for y in range(y0, y1, step):
                n = min(step, y1 - y)
                here = (slice(to_y + y - y0, to_y + y - y0 + n), slice(to_x, to_x + width))
                weight = weights[z, y : y + n, x0:x1]
                np.multiply(logits[:, z, y : y + n, x0:x1], weight, out=work[:, :n])
                total = self._total[(slice(None), at, *here)]
                np.add(total, work[:, :n], out=total)
                if self._weight is not None:
                    self._weight[(at, *here)] += weight

    def leave(self, start: int, stop: int) -> Layers:
        """Decode finished layers and free their places.

        Args:
            start: first layer, in z of the volume.
            stop: one past the last.

        Raises:
            EngineError: when the network gave NaN or infinite values.
        """
        height, width = self._region.shape
        decoder = self._decoder
        labels = np.empty((stop - start, height, width), decoder.label_dtype)
        probabilities = np.empty((decoder.n_probabilities, *labels.shape), np.uint8)
        step = max(1, BLOCK_ELEMENTS // max(1, decoder.n_outputs * width))
        for z in range(start, stop):
            at = z % self._depth
            for y in range(0, height, step):
                rows = slice(y, y + step)
                total = self._total[:, at, rows]
                weight = None if self._weight is None else self._weight[at, rows]
                with np.errstate(invalid="ignore", over="ignore"):
                    is_finite = bool(np.isfinite(total.sum()))
                if not is_finite:
                    raise EngineError(
                        f"the network gave values that are not finite in layer {z}",
                        hint="run again with --precision fp32",
                    )
                decoder.decode(
                    total,
                    weight,
                    labels[z - start, rows],
                    probabilities[:, z - start, rows],
                )
                total[...] = 0
                if weight is not None:
                    weight[...] = 0
        return Layers(labels, probabilities)

    def leave_means(self, start: int, stop: int) -> NDArray[np.float32]:
        """Give the weighted means of finished layers themselves, and free their places.

        Args:
            start: first layer, in z of the volume.
            stop: one past the last.

        Returns:
            Logits, float32, (k, z, y, x), a new array.

        Raises:
            EngineError: when the network gave NaN or infinite values.
        """
        assert self._weight is not None, "means are left by bands made with has_means"
        means = np.empty((self._total.shape[0], stop - start, *self._region.shape), np.float32)
        for z in range(start, stop):
            at = z % self._depth
            # Layers that no tile of a resumed run reaches have no weight; nobody reads them.
            weight = np.maximum(self._weight[at], np.float32(1e-12))
            with np.errstate(invalid="ignore", over="ignore"):
                np.divide(self._total[:, at], weight, out=means[:, z - start])
                is_finite = bool(np.isfinite(means[:, z - start].sum()))
            if not is_finite:
                raise EngineError(
                    f"the network gave values that are not finite in layer {z}",
                    hint="run again with --precision fp32",
                )
            self._total[:, at] = 0
            self._weight[at] = 0
        return means
