"""A volume: a lazy array that knows its axes and where it lies.

Examples:
    >>> import numpy as np
    >>> volume = Volume.from_array(np.zeros((8, 16, 16), np.uint8), spacing=(4, 2, 2), unit="nm")
    >>> volume.spatial_shape, str(volume.spacing)
    ((8, 16, 16), '4 x 2 x 2 nm')
    >>> volume.crop(Box((2, 0, 0), (4, 8, 8))).affine.origin
    (8.0, 0.0, 0.0)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from lamella.core.errors import AxesError, BoxOutOfBoundsError, GeometryError
from lamella.volume.affine import Affine, Frame
from lamella.volume.axes import Axes
from lamella.volume.box import Box
from lamella.volume.source import FunctionArray, LazyArray
from lamella.volume.spacing import UNITS, Spacing, Unit

__all__ = ["Note", "Volume"]


@dataclass(frozen=True, slots=True)
class Note:
    """An odd thing found in a file: reported, never guessed over in silence.

    ``code`` is stable (``spacing_missing``, ``negative_z`` …), ``message`` is for people.
    """

    code: str
    message: str


@dataclass(frozen=True)
class Volume:
    """An intensity volume (or image, where there is no z) with its geometry.

    Args:
        data: lazy array in the order of ``axes``.
        axes: which axes ``data`` has.
        affine: geometry of the spatial axes, in ``unit``.
        unit: nm, um, mm, or voxel when nobody calibrated the image.
        name: short name for people.
        channel_names: one per channel, or empty.
        notes: odd things found while reading.
        metadata: facts from the file's own header, for people. Lamella itself looks at them only
            to check a scan's modality, and for ``source_path``, ``source_series``, ``engine``,
            ``model`` and ``model_version`` of labels: what they were made on, and by what.
        levels: coarser levels of a stored pyramid, level 1 first; empty without one.
        path: the file it came from.
    """

    data: LazyArray
    axes: Axes
    affine: Affine
    unit: Unit = "voxel"
    name: str = ""
    channel_names: tuple[str, ...] = ()
    notes: tuple[Note, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])
    levels: tuple["Volume", ...] = ()
    path: Path | None = None

    def __post_init__(self) -> None:
        if len(self.data.shape) != len(self.axes):
            raise AxesError(
                f"an array of shape {tuple(self.data.shape)} has {len(self.data.shape)} axes, but"
                f" {str(self.axes)!r} names {len(self.axes)}",
                hint="say which axes it has, for example --axes zyx",
            )
        if self.affine.ndim != self.axes.n_spatial:
            raise GeometryError(
                f"an affine of {self.affine.ndim} axes does not fit the axes {str(self.axes)!r}"
            )
        if self.unit not in UNITS:
            raise GeometryError(f"unknown unit {self.unit!r}", hint=f"use one of {UNITS}")

    @classmethod
    def from_array(
        cls,
        data: LazyArray,
        *,
        axes: str | Axes | None = None,
        spacing: Sequence[float] | Spacing | None = None,
        unit: Unit | None = None,
        origin: Sequence[float] | None = None,
        frame: Frame = "stage",
        name: str = "",
        **fields: Any,
    ) -> Self:
        """A volume around an array in memory (or any lazy array), axes along the world axes.

        Args:
            data: in the order of ``axes``.
            axes: ``"zyx"`` for three axes and ``"yx"`` for two unless given.
            spacing: distance per spatial axis, (z, y, x); 1 voxel unless given.
            unit: of spacing and origin; "voxel" without spacing.
            origin: world position of the first voxel's centre.
            frame: meaning of the world axes.
            name: short name.
            **fields: further fields of the class.

        Raises:
            AxesError: when the number of axes is ambiguous or wrong.
            GeometryError: for an impossible spacing.
        """
        if axes is None:
            if len(data.shape) not in (2, 3):
                raise AxesError(
                    f"an array of shape {tuple(data.shape)} could mean several things",
                    hint='name its axes, for example axes="czyx"',
                )
            axes = "zyx" if len(data.shape) == 3 else "yx"
        known = axes if isinstance(axes, Axes) else Axes.parse(axes)
        if isinstance(spacing, Spacing):
            unit = spacing.unit
            spacing = spacing.values
        values = (1.0,) * known.n_spatial if spacing is None else tuple(map(float, spacing))
        return cls(
            data=data,
            axes=known,
            affine=Affine.diagonal(values, origin, frame),
            unit=unit if unit is not None else "voxel",
            name=name,
            **fields,
        )

    @property
    def shape(self) -> tuple[int, ...]:
        """Extent per axis of ``axes``."""
        return tuple(int(n) for n in self.data.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the elements."""
        return np.dtype(self.data.dtype)

    @property
    def spatial_shape(self) -> tuple[int, ...]:
        """Extent along (z, y, x), or (y, x)."""
        return self.shape[self.axes.n_leading :]

    @property
    def spacing(self) -> Spacing:
        """Centre-to-centre distance per spatial axis, with its unit."""
        return Spacing(self.affine.spacing, self.unit)

    @property
    def n_channels(self) -> int:
        """Length of the c axis; 1 without one."""
        return self.shape[self.axes.index("c")] if "c" in self.axes else 1

    @property
    def nbytes(self) -> int:
        """Size of the whole array in memory, in bytes."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def load(self) -> NDArray[Any]:
        """Read everything into memory, in the order of ``axes``."""
        return np.asarray(self.data[(slice(None),) * len(self.shape)])

    def read(self, box: Box) -> NDArray[Any]:
        """Read a spatial box, all channels and times.

        Raises:
            BoxOutOfBoundsError: when the box reaches outside.
        """
        self._check_box(box)
        return np.asarray(self.data[(slice(None),) * self.axes.n_leading + box.slices()])

    def crop(self, box: Box) -> Self:
        """A lazy view of a spatial box; its affine puts every voxel where it was.

        Raises:
            BoxOutOfBoundsError: when the box reaches outside.
        """
        self._check_box(box)
        leading = self.axes.n_leading
        offset = (0,) * leading + box.start
        shape = self.shape[:leading] + box.shape
        source = self.data

        def read(slices: tuple[slice, ...]) -> NDArray[Any]:
            moved = tuple(
                slice(s.start + o, s.stop + o) for s, o in zip(slices, offset, strict=True)
            )
            return np.asarray(source[moved])

        return replace(
            self,
            data=FunctionArray(shape, self.dtype, read),
            affine=self.affine.cropped(box),
            levels=(),
        )

    def select(self, axis: str, at: int) -> Self:
        """A lazy view at one position of a channel or time axis, which is dropped.

        Raises:
            AxesError: when the axis is spatial or absent.
            BoxOutOfBoundsError: when the position lies outside.
        """
        if axis not in ("c", "t"):
            raise AxesError(f"select takes c or t, not {axis!r}", hint="crop spatial axes instead")
        index = self.axes.index(axis)
        length = self.shape[index]
        if not 0 <= at < length:
            raise BoxOutOfBoundsError(
                f"{'channel' if axis == 'c' else 'time point'} {at} does not exist:"
                f" there are {length}",
                hint=f"choose 0 to {length - 1}",
            )
        source = self.data
        shape = self.shape[:index] + self.shape[index + 1 :]

        def read(slices: tuple[slice, ...]) -> NDArray[Any]:
            full = (*slices[:index], slice(at, at + 1), *slices[index:])
            return np.asarray(source[full]).squeeze(axis=index)

        names = (self.channel_names[at],) if axis == "c" and self.channel_names else ()
        return replace(
            self,
            data=FunctionArray(shape, self.dtype, read),
            axes=self.axes.without(axis),
            channel_names=names if axis == "c" else self.channel_names,
            levels=tuple(level.select(axis, at) for level in self.levels),
        )

    def with_spacing(self, spacing: Spacing) -> Self:
        """The same voxels at another spacing (the user knows better than the header).

        A 3-value spacing is taken for a 2-D image by its last two values.

        Raises:
            GeometryError: when the number of axes differs otherwise.
        """
        n = self.axes.n_spatial
        if len(spacing.values) < n:
            raise GeometryError(
                f"spacing {spacing} has {len(spacing.values)} values, the image {n} axes"
            )
        values = spacing.values[-n:]
        ratio = [new / old for new, old in zip(values, self.affine.spacing, strict=True)]
        origin = (
            tuple(o * r for o, r in zip(self.affine.origin, ratio, strict=True))
            if self.affine.is_axis_aligned and self.unit != spacing.unit
            else self.affine.origin
        )
        affine = replace(self.affine, spacing=values, origin=origin)
        levels = tuple(
            level.with_spacing(
                Spacing(
                    tuple(s * r for s, r in zip(level.affine.spacing, ratio, strict=True)),
                    spacing.unit,
                )
            )
            for level in self.levels
        )
        return replace(self, affine=affine, unit=spacing.unit, levels=levels)

    def same_grid(self, other: "Volume", tolerance: float = 1e-3) -> bool:
        """Whether both have the same spatial shape and put their voxels at the same places."""
        if self.spatial_shape != other.spatial_shape:
            return False
        if self.unit == other.unit:
            return self.affine.is_close(other.affine, tolerance)
        if "voxel" in (self.unit, other.unit):
            return False
        factor = Spacing((1.0,) * other.affine.ndim, other.unit).to(self.unit).values[0]
        moved = replace(
            other.affine,
            spacing=tuple(s * factor for s in other.affine.spacing),
            origin=tuple(o * factor for o in other.affine.origin),
        )
        return self.affine.is_close(moved, tolerance)

    def _check_box(self, box: Box) -> None:
        if box.ndim != self.axes.n_spatial or not Box.from_shape(self.spatial_shape).contains(box):
            raise BoxOutOfBoundsError(
                f"{box} reaches outside the volume of shape {self.spatial_shape}",
                hint="clamp it to the volume's shape",
            )
