"""Hypothesis strategies: volumes, affines and shapes as formats and algorithms meet them.

Arrays are drawn by seed, not element by element: a failing example is still small (its shape
shrinks) and drawing costs microseconds.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from lamella.volume import Affine, Axes, Frame, Unit, Volume

__all__ = ["Directions", "affines", "boxes_of", "filled_array", "volumes"]

Directions = Literal["identity", "flips", "permutations", "rotations"]
"""How freely a format lets index axes run: each one includes those before it."""

Fill = Literal["noise", "zeros", "extremes", "ramp"]


def filled_array(shape: Sequence[int], dtype: str, *, fill: Fill, seed: int) -> NDArray[Any]:
    """An array with awkward content, the same for the same arguments.

    Args:
        shape: extent per axis.
        dtype: bool, integer, float or complex.
        fill: ``noise`` covers the type's whole range (floats: normal), ``extremes`` holds only the
            type's limits (floats: NaN, ±Inf, ±0, smallest and largest), ``ramp`` counts up.
        seed: of the noise.
    """
    kind = np.dtype(dtype)
    size = math.prod(shape)
    random = np.random.default_rng(seed)
    if fill == "zeros":
        flat = np.zeros(size, kind)
    elif fill == "ramp":
        flat = (np.arange(size) % (2 if kind.kind == "b" else 101)).astype(kind)
    elif fill == "extremes":
        flat = random.choice(_limits(kind), size)
    elif kind.kind == "b":
        flat = random.integers(0, 2, size).astype(kind)
    elif kind.kind in "ui":
        info = np.iinfo(kind)
        flat = random.integers(info.min, info.max, size, dtype=kind, endpoint=True)
    elif kind.kind == "c":
        flat = (random.normal(size=size) + 1j * random.normal(size=size)).astype(kind)
    else:
        flat = random.normal(scale=100.0, size=size).astype(kind)
    return flat.reshape(tuple(shape))


def _limits(kind: np.dtype[Any]) -> NDArray[Any]:
    if kind.kind == "b":
        return np.array([False, True])
    if kind.kind in "ui":
        info = np.iinfo(kind)
        return np.array([info.min, info.max, 0, 1], kind)
    real = np.dtype(f"f{kind.itemsize // 2}") if kind.kind == "c" else kind
    info = np.finfo(real)
    values = [np.nan, np.inf, -np.inf, 0.0, -0.0, info.max, info.min, info.tiny]
    return np.array(values, real).astype(kind)


@st.composite
def affines(
    draw: st.DrawFn,
    *,
    n: int = 3,
    frames: Sequence[Frame] = ("stage",),
    directions: Directions = "identity",
    has_origin: bool = True,
) -> Affine:
    """Affines with spacings between 0.05 and 500, also very anisotropic.

    Origins lie within a few hundred voxels, so that formats that store them as float32 can keep
    them to a thousandth of a voxel.
    """
    tenths = st.integers(1, 10_000).map(lambda value: value / 20.0)
    spacing = tuple(draw(tenths) for _ in range(n))
    origin = (0.0,) * n
    if has_origin:
        steps = st.integers(-600, 600).map(lambda value: value / 4.0)
        origin = tuple(draw(steps) * min(spacing) for _ in range(n))
    matrix = draw(_directions(n, directions))
    frame = draw(st.sampled_from(list(frames)))
    return Affine(spacing, origin, tuple(tuple(float(v) for v in row) for row in matrix), frame)


@st.composite
def _directions(draw: st.DrawFn, n: int, directions: Directions) -> NDArray[np.float64]:
    matrix = np.eye(n)
    if directions != "identity":
        signs = draw(st.lists(st.sampled_from([1.0, -1.0]), min_size=n, max_size=n))
        matrix = matrix * np.asarray(signs)
    if directions in ("permutations", "rotations"):
        matrix = matrix[:, draw(st.permutations(range(n)))]
    if directions == "rotations":
        degrees = draw(st.integers(-40, 40))
        cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        turn = np.eye(n)
        turn[:2, :2] = [[cos, -sin], [sin, cos]]
        matrix = turn @ matrix
    return matrix + 0.0


@st.composite
def volumes(
    draw: st.DrawFn,
    *,
    dtypes: Sequence[str] = ("uint8",),
    axes: Sequence[str] = ("zyx",),
    units: Sequence[Unit] = ("nm",),
    frames: Sequence[Frame] = ("stage",),
    directions: Directions = "identity",
    has_origin: bool = True,
    max_side: int = 7,
) -> Volume:
    """Small volumes with every combination of what is allowed; 1-voxel axes included.

    Args:
        draw: given by hypothesis.
        dtypes: of the voxels.
        axes: such as ``"zyx"`` and ``"tczyx"``.
        units: of the spacing; "voxel" means an uncalibrated volume (spacing 1, origin 0).
        frames: of the affine.
        directions: how freely the axes run.
        has_origin: whether the first voxel may lie elsewhere than at 0.
        max_side: longest axis.
    """
    names = Axes.parse(draw(st.sampled_from(list(axes))))
    side = st.integers(1, max_side)
    shape = tuple(draw(st.integers(1, 3) if name in "tc" else side) for name in names.names)
    array = filled_array(
        shape,
        draw(st.sampled_from(list(dtypes))),
        fill=draw(st.sampled_from(["noise", "zeros", "extremes", "ramp"])),
        seed=draw(st.integers(0, 2**31)),
    )
    if draw(st.booleans()):
        array = np.asfortranarray(array)
    unit = draw(st.sampled_from(list(units)))
    affine = draw(
        affines(n=names.n_spatial, frames=frames, directions=directions, has_origin=has_origin)
    )
    if unit == "voxel":
        affine = Affine.diagonal((1.0,) * names.n_spatial, frame=affine.frame)
    return Volume(data=array, axes=names, affine=affine, unit=unit, name="drawn")


@st.composite
def boxes_of(draw: st.DrawFn, shape: Sequence[int]) -> tuple[slice, ...]:
    """One slice per axis of ``shape``, each at least one long."""
    slices = []
    for length in shape:
        start = draw(st.integers(0, length - 1))
        slices.append(slice(start, draw(st.integers(start + 1, length))))
    return tuple(slices)
