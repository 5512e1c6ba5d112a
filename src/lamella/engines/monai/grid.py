"""From the input's grid to the grid a bundle's network works on, and the order of its axes.

MONAI hands a network arrays in the order x, y, z of the file, turned to an anatomical orientation.
Here everything stays in the input's order (z, y, x) and direction; only the tiles are turned, just
before the network sees them (:class:`Turned`)::

    input voxel p  ──Space──▶  network voxel q = (p - offset) / scale  ──Turned──▶  q', x first

Spacing counts from the first voxel of the axis *as the network reads it*: an axis that is read from
its end is anchored at its end.

Examples:
    >>> line = Line(n=10, scale=1.0, offset=0.0, spacing=1.5).respaced(3.0, is_flipped=False)
    >>> line.n, line.scale, line.of_input(np.array([0.0, 2.0])).tolist()
    (6, 2.0, [0.0, 1.0])
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from lamella.core.errors import InputError
from lamella.inference.runtime import as_pipelined
from lamella.io.frames import orientation_code

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lamella.inference.runtime import Pending, Runtime
    from lamella.volume.affine import Affine

__all__ = ["Layout", "Line", "Turned"]

MAX_RATIO = 20.0
_SAME_SPACING = 1e-3
"""MONAI leaves an image alone whose affine differs by no more than this."""
_KINDS = {"L": 0, "R": 0, "P": 1, "A": 1, "I": 2, "S": 2}


@dataclass(frozen=True, slots=True)
class Line:
    """One axis of the network's grid, in the input's direction.

    Attributes:
        n: voxels.
        scale: input voxels per voxel.
        offset: position in the input of voxel 0.
        spacing: between voxels, in mm.
        crop: input voxels that are covered, half-open; None = all.
    """

    n: int
    scale: float
    offset: float
    spacing: float
    crop: tuple[int, int] | None = None

    @property
    def is_identity(self) -> bool:
        """Whether it is the input's own axis."""
        return self.scale == 1.0 and self.offset == 0.0 and self.crop is None

    def respaced(self, wanted: float, *, is_flipped: bool) -> Line:
        """The same axis at another spacing, first voxel on first voxel.

        Args:
            wanted: in mm.
            is_flipped: whether the network reads it from its end.

        Raises:
            InputError: when the two differ so much that one must be wrong.
        """
        ratio = wanted / self.spacing
        if not 1.0 / MAX_RATIO <= ratio <= MAX_RATIO:
            raise InputError(
                f"the input's spacing of {self.spacing:g} mm and the bundle's of {wanted:g} mm"
                f" differ by a factor of {max(ratio, 1 / ratio):.3g}",
                hint="check the header; set the true spacing with --spacing z,y,x --unit mm",
            )
        n = max(1, round((self.n - 1) / ratio + 1.0))
        start = (self.n - 1) - (n - 1) * ratio if is_flipped else 0.0
        return replace(
            self,
            n=n,
            scale=self.scale * ratio,
            offset=self.offset + start * self.scale,
            spacing=wanted,
        )

    def cropped(self, start: int, stop: int) -> Line:
        """Voxels ``start`` to ``stop`` alone."""
        first, last = (self.offset + self.scale * i for i in (start, stop - 1))
        return replace(
            self,
            n=stop - start,
            offset=first,
            # Linear interpolation back reaches less than a voxel beyond the last one kept.
            crop=(
                max(0, int(np.floor(first - self.scale)) + 1) if start > 0 else 0,
                int(np.ceil(last + self.scale)),
            ),
        )

    def of_input(self, positions: NDArray[np.float64]) -> NDArray[np.float64]:
        """Where positions of the input lie on this grid."""
        return (positions - self.offset) / self.scale


@dataclass(frozen=True, slots=True)
class Layout:
    """All axes, and how the network reads them.

    Attributes:
        lines: of z, y, x.
        order: input axis (0 = z) that is the network's axis i, spatial axes only.
        flips: input axes that the network reads from their end.
    """

    lines: tuple[Line, Line, Line]
    order: tuple[int, ...]
    flips: frozenset[int] = frozenset()

    @classmethod
    def of_input(
        cls, shape: tuple[int, int, int], spacing_mm: tuple[float, float, float], *, n_axes: int
    ) -> Layout:
        """The input as MONAI reads files: x first.

        Args:
            shape: of the input, (z, y, x).
            spacing_mm: per axis.
            n_axes: spatial axes of the network: 3, or 2 for slices.
        """
        z, y, x = (Line(n, 1.0, 0.0, s) for n, s in zip(shape, spacing_mm, strict=True))
        return cls((z, y, x), (2, 1, 0)[:n_axes])

    @property
    def shape(self) -> tuple[int, int, int]:
        """Extent of the network's grid in the input's order, (z, y, x)."""
        z, y, x = (line.n for line in self.lines)
        return z, y, x

    @property
    def is_identity(self) -> bool:
        """Whether the grid is the input's own."""
        return all(line.is_identity for line in self.lines)

    def oriented(self, affine: Affine, axcodes: str) -> Layout:
        """Axes turned to an anatomical orientation, as ``Orientationd`` does.

        Args:
            affine: of the input, in the RAS frame, 3-D.
            axcodes: such as ``RAS``.
        """
        have = orientation_code(affine)
        order: list[int] = []
        flips: set[int] = set()
        for wanted in axcodes:
            at = next(i for i, code in enumerate(have) if _KINDS[code] == _KINDS[wanted])
            axis = 2 - at
            order.append(axis)
            if have[at] != wanted:
                flips.add(axis)
        return replace(self, order=tuple(order), flips=frozenset(flips))

    def respaced(self, pixdim: tuple[float, ...]) -> Layout:
        """Another spacing, in mm in the network's order; itself where it has it already."""
        wanted = dict(zip(self.order, pixdim, strict=False))
        if all(abs(self.lines[axis].spacing - mm) <= _SAME_SPACING for axis, mm in wanted.items()):
            return self
        z, y, x = (
            line.respaced(wanted[axis], is_flipped=axis in self.flips) if axis in wanted else line
            for axis, line in enumerate(self.lines)
        )
        return replace(self, lines=(z, y, x))

    def cropped(self, start: tuple[int, ...], stop: tuple[int, ...]) -> Layout:
        """A box of the grid alone; itself where that is the whole."""
        if start == (0, 0, 0) and stop == self.shape:
            return self
        z, y, x = (line.cropped(a, b) for line, a, b in zip(self.lines, start, stop, strict=True))
        return replace(self, lines=(z, y, x))

    def in_order(self, extent: tuple[int, ...]) -> tuple[int, int, int]:
        """An extent in the network's order as (z, y, x); 1 along z for slices.

        Examples:
            >>> Layout.of_input((9, 8, 7), (1, 1, 1), n_axes=3).in_order((32, 64, 96))
            (96, 64, 32)
        """
        found = [1, 1, 1]
        for axis, size in zip(self.order, extent, strict=True):
            found[axis] = size
        return found[0], found[1], found[2]

    def network_extent(self, extent: tuple[int, int, int]) -> tuple[int, ...]:
        """An extent (z, y, x) in the network's order, spatial axes of the network only."""
        return tuple(extent[axis] for axis in self.order)

    @property
    def turning(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Axes of a batch in the network's order, the way back, and those that are flipped first.

        A batch of a 2-D network has no z.
        """
        drop = 3 - len(self.order)
        order = [axis - drop for axis in self.order]
        forth = (0, 1, *(2 + axis for axis in order))
        back = (0, 1, *(2 + order.index(axis) for axis in range(len(order))))
        return forth, back, tuple(sorted(2 + axis - drop for axis in self.flips))

    def turn(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """A batch in the input's order as the network reads it, C-contiguous."""
        forth, _, flips = self.turning
        return np.ascontiguousarray(np.flip(batch, flips).transpose(forth))


class Turned:
    """A runtime whose network wants its axes in another order or direction.

    Args:
        inner: opened for batches in the network's order.
        layout: says which order.
    """

    def __init__(self, inner: Runtime, layout: Layout) -> None:
        self._inner = as_pipelined(inner)
        self._layout = layout
        self.name = inner.name
        self.device = inner.device
        self.precision = inner.precision
        self.n_outputs = inner.n_outputs
        self.n_in_flight = self._inner.n_in_flight
        _, back, _ = layout.turning
        self.batch_shape = tuple(inner.batch_shape[axis] for axis in back)

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run the network and wait for it."""
        return self.submit(batch)()

    def submit(self, batch: NDArray[np.float32]) -> Pending:
        """Start a batch."""
        turned = self._layout.turn(batch)
        pending = self._inner.submit(turned)
        _, back, flips = self._layout.turning

        def fetch() -> NDArray[np.float32]:
            logits = pending()
            assert turned is not None, "read in place until the logits are there"
            return np.flip(logits.transpose(back), flips)

        return fetch
