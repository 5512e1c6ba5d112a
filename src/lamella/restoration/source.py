"""One channel of a volume as restoration reads it: float32, (z, y, x), mirrored beyond its border.

Every method works on blocks with a halo of context around what it gives back. Where the halo
reaches beyond the volume, the volume is mirrored at its outermost voxels (not repeating them), so
that a voxel's result depends on its neighbourhood alone and never on how the volume was cut.

Examples:
    >>> import numpy as np
    >>> from lamella.volume.box import Box
    >>> from lamella.volume.volume import Volume
    >>> source = ChannelSource(Volume.from_array(np.arange(4, dtype=np.uint8).reshape(1, 4)))
    >>> source.read(Box((0, 0, -2), (1, 1, 6))).ravel().tolist()
    [2.0, 1.0, 0.0, 1.0, 2.0, 3.0, 2.0, 1.0]
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamella.core.errors import AxesError, InputError
from lamella.volume.box import Box
from lamella.volume.labels import Labels
from lamella.volume.volume import Volume

__all__ = ["MIN_EXTENT", "ChannelSource", "check_restorable", "iter_channels", "mirrored_index"]

MIN_EXTENT = 16
"""Images smaller than this along y or x tell too little about themselves."""


class ChannelSource:
    """A lazy volume of one channel as float32 blocks.

    Args:
        volume: with the axes (z) y x.
    """

    def __init__(self, volume: Volume) -> None:
        if volume.axes.n_leading:
            raise AxesError(
                f"one channel of one time point is restored at a time, not {volume.axes}",
                hint="choose with --channel and --time",
            )
        self.volume = volume
        spatial = volume.spatial_shape
        self.shape: tuple[int, int, int] = (
            spatial[0] if len(spatial) == 3 else 1,
            spatial[-2],
            spatial[-1],
        )

    @property
    def spacing_zyx(self) -> tuple[float, float, float]:
        """Distance of voxel centres in the volume's unit, (z, y, x); z as x where there is none."""
        values = self.volume.affine.spacing
        return (values[0] if len(values) == 3 else values[-1], values[-2], values[-1])

    def read(self, box: Box) -> NDArray[np.float32]:
        """Read a box, (z, y, x), which may reach beyond the volume.

        Raises:
            InputError: for voxels that are not finite.
        """
        index = [
            mirrored_index(a, b, n) for a, b, n in zip(box.start, box.stop, self.shape, strict=True)
        ]
        inside = Box(tuple(int(i.min()) for i in index), tuple(int(i.max()) + 1 for i in index))
        block = self._fetch(inside)
        for axis, (positions, start, shape) in enumerate(
            zip(index, inside.start, box.shape, strict=True)
        ):
            if (
                block.shape[axis] != shape
                or box.start[axis] < 0
                or box.stop[axis] > self.shape[axis]
            ):
                block = np.take(block, positions - start, axis=axis)
        return block

    def _fetch(self, box: Box) -> NDArray[np.float32]:
        slices = box.slices() if "z" in self.volume.axes else box.slices()[1:]
        block = np.asarray(self.volume.data[slices])
        # float64 beyond the range of float32 becomes infinite, and is refused as such.
        with np.errstate(over="ignore"):
            values = block.astype(np.float32).reshape(box.shape)
        if block.dtype.kind == "f" and not np.isfinite(values).all():
            n_bad = int(values.size - np.isfinite(values).sum())
            raise InputError(
                f"{n_bad} voxels near {box.start} are NaN, infinite or beyond float32",
                hint="fill or crop them first: a restoration would spread them",
            )
        return values


def mirrored_index(start: int, stop: int, length: int) -> NDArray[np.int64]:
    """Positions ``start`` to ``stop`` of an axis, those outside mirrored into it.

    Examples:
        >>> mirrored_index(-2, 5, 3).tolist()
        [2, 1, 0, 1, 2, 1, 0]
    """
    positions = np.arange(start, stop)
    if length == 1:
        return np.zeros_like(positions)
    period = 2 * (length - 1)
    wrapped = np.abs(positions) % period
    return np.where(wrapped < length, wrapped, period - wrapped)


def check_restorable(volume: Volume, *, what: str = "restored") -> None:
    """Refuse what is no image of intensities.

    Args:
        volume: any axes.
        what: the participle for messages.

    Raises:
        InputError: for labels, complex values, empty and tiny images.
        AxesError: for several time points.
    """
    if isinstance(volume, Labels):
        raise InputError(
            f"these are labels; only images of intensities are {what}",
            hint="name the image the labels were made from",
        )
    if volume.dtype.kind not in "uif":
        raise InputError(
            f"values of type {volume.dtype} are no intensities and cannot be {what}",
            hint="convert them to real numbers first",
        )
    if "t" in volume.axes and volume.shape[volume.axes.index("t")] != 1:
        raise AxesError(
            f"the input has {volume.shape[volume.axes.index('t')]} time points; one is {what} at a"
            " time",
            hint="choose one with --time N",
        )
    if min(volume.shape) < 1:
        raise InputError(f"the input is empty: its shape is {volume.shape}")
    y, x = volume.spatial_shape[-2:]
    if min(y, x) < MIN_EXTENT:
        raise InputError(
            f"an image of {y} x {x} pixels is too small to tell signal from noise",
            hint=f"give at least {MIN_EXTENT} x {MIN_EXTENT} pixels",
        )


def iter_channels(volume: Volume) -> list[tuple[str, Volume]]:
    """The channels of an image, each with the axes (z) y x, by name (empty without channels)."""
    if "t" in volume.axes:
        volume = volume.select("t", 0)
    if "c" not in volume.axes:
        return [("", volume)]
    names: tuple[Any, ...] = volume.channel_names or tuple(
        f"channel {k}" for k in range(volume.n_channels)
    )
    return [(str(names[k]), volume.select("c", k)) for k in range(volume.n_channels)]
