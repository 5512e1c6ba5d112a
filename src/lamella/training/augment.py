"""Random changes of training patches: drawn first, applied afterwards.

:func:`draw` turns a generator into an :class:`Augmentation`, plain numbers that can be logged and
applied again; applying it draws nothing but noise from a seed it carries. Space and intensity are
apart: space moves images, labels and masks together, intensity touches images alone.

* Flips and quarter turns move voxels and interpolate nothing.
* Rotation, scale and elastic deformation are joined into one map of coordinates, so that an image
  is interpolated once (linearly); labels take the nearest voxel and are never mixed; what comes
  from outside the patch is not valid.
* Along an axis that is much coarser than the others nothing is rotated or mixed.

Sources: the set of nnU-Net (Isensee et al. 2021), and missing and misaligned slices as they occur
in serial sections (Lee et al. 2017).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from lamella.core.errors import InputError
from lamella.training.intensity import Intensity, smooth_field

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["AugmentOptions", "Augmentation", "Intensity", "Movement", "Sample", "draw"]

COARSE_RATIO = 3.0
"""An axis with voxels this many times longer than the shortest is not rotated into others."""

MAX_REACH = 8.0
"""Pieces of images more than this many times longer than a patch are not drawn."""

_SHADING_POINTS = 5
"""Control points of an illumination per axis, two of which lie outside of the patch."""


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """A training patch.

    Attributes:
        image: float32, (c, *spatial), normalised.
        labels: (m, *spatial) of any dtype: classes, ids or channels.
        valid: bool, the shape of ``labels``: where they may be learnt from.
    """

    image: NDArray[np.float32]
    labels: NDArray[Any]
    valid: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class AugmentOptions:
    """How often, and how much. A chance of 0 leaves a change out.

    Attributes:
        flip_axes: axes that may be mirrored, counted from the first spatial one; None = all.
        quarter_turns: turn by multiples of 90° in planes with equal spacing and extent.
        rotation_chance: of a small rotation.
        rotation_degrees: largest angle.
        scale_chance: of a change of size.
        scale_range: smallest and largest factor; above 1 enlarges.
        elastic_chance: of a smooth deformation.
        elastic_sigma: standard deviation of displacements at its control points, voxels.
        elastic_spacing: distance of control points, voxels.
        noise_chance: of Gaussian noise.
        noise_sigma: largest standard deviation, in units of the normalised image.
        blur_chance: of a Gaussian blur.
        blur_sigma: smallest and largest, voxels of the finest axis.
        contrast_chance: of a change of contrast and brightness.
        contrast_range: factors of the deviation from the mean.
        brightness_sigma: standard deviation of what is added.
        gamma_chance: of a gamma curve over the patch's range.
        gamma_range: smallest and largest exponent.
        missing_chance: of a slice along the first axis to be blank, each on its own (3-D).
        misalign_chance: that all slices behind one are shifted in the plane (3-D).
        misalign_voxels: largest shift.
        shading_chance: of uneven illumination.
        shading_strength: largest standard deviation of the illumination's logarithm.
        reach: how many times longer than the patch, per axis, the piece may be that it is made of.
            Above 1 what turns or shrinks is filled with image, as far as there is any; at 1 with
            its reflection, which is not learnt from.
    """

    flip_axes: tuple[int, ...] | None = None
    quarter_turns: bool = True
    rotation_chance: float = 0.2
    rotation_degrees: float = 15.0
    scale_chance: float = 0.2
    scale_range: tuple[float, float] = (0.8, 1.25)
    elastic_chance: float = 0.0
    elastic_sigma: float = 3.0
    elastic_spacing: float = 24.0
    noise_chance: float = 0.15
    noise_sigma: float = 0.3
    blur_chance: float = 0.15
    blur_sigma: tuple[float, float] = (0.5, 1.0)
    contrast_chance: float = 0.3
    contrast_range: tuple[float, float] = (0.75, 1.3)
    brightness_sigma: float = 0.2
    gamma_chance: float = 0.15
    gamma_range: tuple[float, float] = (0.7, 1.5)
    missing_chance: float = 0.0
    misalign_chance: float = 0.0
    misalign_voxels: int = 8
    shading_chance: float = 0.0
    shading_strength: float = 0.3
    reach: float = 1.0

    def __post_init__(self) -> None:
        if not 1 <= self.reach <= MAX_REACH:
            raise InputError(f"reach is {self.reach}, expected 1 to {MAX_REACH:g}")
        for name in (n for n in self.__slots__ if n.endswith("_chance")):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} is {getattr(self, name)}, expected 0 to 1")
        for name in ("scale_range", "contrast_range", "gamma_range", "blur_sigma"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise InputError(
                    f"{name} is {(low, high)}, expected a positive number and one no smaller"
                )


@dataclass(frozen=True, slots=True, eq=False)
class Movement:
    """What happens to space.

    Attributes:
        flips: spatial axes that are mirrored.
        turns: plane and quarter turns, in order.
        matrix: (n, n) from centred output to centred input coordinates; None for the identity.
        displacements: (n, *control points) voxels at control points; None for none.
        shifts: per slice of the first axis, whole voxels in the other axes; None for none.
        shape: of the result; None for that of the sample.
    """

    flips: tuple[int, ...] = ()
    turns: tuple[tuple[tuple[int, int], int], ...] = ()
    matrix: NDArray[np.float64] | None = None
    displacements: NDArray[np.float64] | None = None
    shifts: NDArray[np.int64] | None = None
    shape: tuple[int, ...] | None = None

    def source_shape(self, shape: tuple[int, ...], reach: float) -> tuple[int, ...]:
        """Extents of the piece that a patch is made of, all of whose corners come from inside.

        Args:
            shape: of the patch.
            reach: times the patch that the piece may be long along each axis.
        """
        if self.matrix is None or reach == 1:
            return shape
        needed = np.abs(self.matrix) @ (np.array(shape, np.float64) - 1) + 1
        limits = zip(needed.tolist(), shape, strict=True)
        return tuple(min(max(n, math.ceil(m - 1e-6)), math.floor(n * reach)) for m, n in limits)

    def apply(self, sample: Sample) -> Sample:
        """Move image, labels and mask together."""
        image, labels, valid = sample.image, sample.labels, sample.valid
        if self.matrix is not None or self.displacements is not None:
            points = self._points(image.shape[1:], self.shape or image.shape[1:])
            inside = np.all(
                [(p > -0.5) & (p < n - 0.5) for p, n in zip(points, image.shape[1:], strict=True)],
                axis=0,
            )
            image = _sampled(image, points)
            index = tuple(
                np.clip(np.floor(p + 0.5).astype(np.int64), 0, n - 1)
                for p, n in zip(points, labels.shape[1:], strict=True)
            )
            labels = labels[(slice(None), *index)]
            valid = valid[(slice(None), *index)] & inside
        if self.shifts is not None:
            image, labels, valid = (
                _shifted(array, self.shifts, fill)
                for array, fill in ((image, None), (labels, None), (valid, False))
            )
        for plane, n in self.turns:
            axes = (plane[0] + 1, plane[1] + 1)
            image, labels, valid = (np.rot90(a, n, axes) for a in (image, labels, valid))
        if self.flips:
            axes = tuple(axis + 1 for axis in self.flips)
            image, labels, valid = (np.flip(a, axes) for a in (image, labels, valid))
        return Sample(*(np.ascontiguousarray(a) for a in (image, labels, valid)))

    def _points(self, source: tuple[int, ...], shape: tuple[int, ...]) -> NDArray[np.float64]:
        """Where each output voxel comes from, (n, *spatial); the middles lie on each other."""
        center = (np.array(shape, np.float64) - 1) / 2
        axes = [np.arange(n, dtype=np.float64) for n in shape]
        grid = np.stack(np.meshgrid(*axes, indexing="ij"))
        column = (slice(None), *(None,) * len(shape))
        points = grid - center[column]
        if self.matrix is not None:
            points = np.tensordot(self.matrix, points, axes=1)
        points = points + (np.array(source, np.float64)[column] - 1) / 2
        if self.displacements is not None:
            points += smooth_field(self.displacements, shape)
        return points


@dataclass(frozen=True, slots=True, eq=False)
class Augmentation:
    """Everything that happens to one sample."""

    movement: Movement = field(default_factory=Movement)
    intensity: Intensity = field(default_factory=Intensity)

    def apply(self, sample: Sample) -> Sample:
        """Apply it.

        Raises:
            InputError: when image, labels and mask do not lie on one grid.
        """
        if (
            sample.image.shape[1:] != sample.labels.shape[1:]
            or sample.labels.shape != sample.valid.shape
        ):
            raise InputError(
                f"image {sample.image.shape}, labels {sample.labels.shape} and mask"
                f" {sample.valid.shape} do not lie on one grid"
            )
        moved = self.movement.apply(sample)
        return Sample(self.intensity.apply(moved.image), moved.labels, moved.valid)


def draw(
    rng: np.random.Generator,
    options: AugmentOptions,
    shape: Sequence[int],
    spacing: Sequence[float] | None = None,
) -> Augmentation:
    """Draw an augmentation.

    Args:
        rng: gives all randomness; the same state gives the same augmentation.
        options: how often, and how much.
        shape: spatial shape of the patch, (z, y, x) or (y, x).
        spacing: of its voxels; None = the same along all axes.
    """
    sizes = tuple(float(s) for s in (spacing or (1.0,) * len(shape)))
    return Augmentation(
        _draw_movement(rng, options, tuple(shape), sizes),
        _draw_intensity(rng, options, tuple(shape), sizes),
    )


def _draw_movement(
    rng: np.random.Generator,
    options: AugmentOptions,
    shape: tuple[int, ...],
    spacing: tuple[float, ...],
) -> Movement:
    n = len(shape)
    allowed = range(n) if options.flip_axes is None else options.flip_axes
    flips = tuple(axis for axis in allowed if rng.random() < 0.5)
    turns = []
    for plane in ((a, b) for a in range(n) for b in range(a + 1, n)):
        is_square = shape[plane[0]] == shape[plane[1]] and spacing[plane[0]] == spacing[plane[1]]
        k = int(rng.integers(4))
        if options.quarter_turns and is_square and k:
            turns.append((plane, k))
    matrix = _draw_matrix(rng, options, spacing)
    fine = [axis for axis in range(n) if spacing[axis] < COARSE_RATIO * min(spacing)]
    displacements = None
    if rng.random() < options.elastic_chance:
        points = [max(4, round(size / options.elastic_spacing) + 3) for size in shape]
        displacements = rng.normal(0, options.elastic_sigma, (n, *points))
        for axis in range(n):
            if axis not in fine:
                displacements[axis] = 0.0
    shifts = None
    if n == 3 and shape[0] > 1 and rng.random() < options.misalign_chance:
        shifts = np.zeros((shape[0], 2), np.int64)
        limit = options.misalign_voxels
        shifts[int(rng.integers(1, shape[0])) :] = rng.integers(-limit, limit + 1, 2)
    return Movement(flips, tuple(turns), matrix, displacements, shifts, shape)


def _draw_matrix(
    rng: np.random.Generator, options: AugmentOptions, spacing: tuple[float, ...]
) -> NDArray[np.float64] | None:
    """Rotation and scale in physical space, from output to input, in voxels."""
    n = len(spacing)
    sizes = np.array(spacing)
    fine = [axis for axis in range(n) if spacing[axis] < COARSE_RATIO * min(spacing)]
    physical = np.eye(n)
    is_rotated = rng.random() < options.rotation_chance
    for plane in ((a, b) for a in range(n) for b in range(a + 1, n)):
        angle = np.deg2rad(rng.uniform(-options.rotation_degrees, options.rotation_degrees))
        if is_rotated and set(plane) <= set(fine):
            turn = np.eye(n)
            turn[np.ix_(plane, plane)] = [
                [np.cos(angle), -np.sin(angle)],
                [np.sin(angle), np.cos(angle)],
            ]
            physical = turn @ physical
    factor = float(np.exp(rng.uniform(*np.log(options.scale_range))))
    if rng.random() < options.scale_chance:
        for axis in fine:
            physical[axis] /= factor
    if np.array_equal(physical, np.eye(n)):
        return None
    return physical * sizes[None, :] / sizes[:, None]


def _draw_intensity(
    rng: np.random.Generator,
    options: AugmentOptions,
    shape: tuple[int, ...],
    spacing: tuple[float, ...],
) -> Intensity:
    # Everything is drawn, used or not: one option more or less changes nothing in the others.
    sigma = rng.uniform(*options.blur_sigma)
    contrast, brightness = (
        rng.uniform(*options.contrast_range),
        rng.normal(0, options.brightness_sigma),
    )
    gamma = float(np.exp(rng.uniform(*np.log(options.gamma_range))))
    noise, seed = rng.uniform(0, options.noise_sigma), int(rng.integers(2**31))
    chances = rng.random(4)
    blank = np.flatnonzero(rng.random(shape[0]) < options.missing_chance)
    strength = rng.uniform(0, options.shading_strength)
    points = [_SHADING_POINTS if n > 1 else 3 for n in shape]
    shading = rng.normal(0, strength, points) if rng.random() < options.shading_chance else None
    has_contrast = chances[1] < options.contrast_chance
    finest = min(spacing)
    return Intensity(
        blur=tuple(sigma * finest / s for s in spacing) if chances[0] < options.blur_chance else (),
        contrast=float(contrast) if has_contrast else 1.0,
        brightness=float(brightness) if has_contrast else 0.0,
        gamma=gamma if chances[2] < options.gamma_chance else 1.0,
        noise=float(noise) if chances[3] < options.noise_chance else 0.0,
        noise_seed=seed,
        blank=tuple(blank.tolist()) if len(shape) == 3 else (),
        shading=shading,
    )


def _sampled(image: NDArray[np.float32], points: NDArray[np.float64]) -> NDArray[np.float32]:
    from scipy.ndimage import map_coordinates

    result = np.empty((image.shape[0], *points.shape[1:]), np.float32)
    for channel, plane in enumerate(image):
        map_coordinates(plane, points, order=1, mode="reflect", output=result[channel])
    return result


def _shifted(array: NDArray[Any], shifts: NDArray[np.int64], fill: bool | None) -> NDArray[Any]:
    """Slices of the first spatial axis shifted in the plane; the border is repeated, or filled."""
    result = np.array(array)
    for index, (dy, dx) in enumerate(shifts.tolist()):
        if dy == 0 and dx == 0:
            continue
        rows, columns = (np.arange(n) - d for n, d in zip(array.shape[2:], (dy, dx), strict=True))
        inside = np.ix_(
            (rows >= 0) & (rows < array.shape[2]), (columns >= 0) & (columns < array.shape[3])
        )
        plane = array[:, index][
            :,
            np.clip(rows, 0, array.shape[2] - 1)[:, None],
            np.clip(columns, 0, array.shape[3] - 1)[None, :],
        ]
        if fill is not None:
            keep = np.zeros(array.shape[2:], bool)
            keep[inside] = True
            plane = np.where(keep, plane, fill)
        result[:, index] = plane
    return result
