"""Between (z, y, x) RAS and the formats' worlds: exact, and as nibabel sees it."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from lamella.core.errors import GeometryError
from lamella.io.frames import (
    IDENTITY_XYZ,
    World,
    XyzGeometry,
    affine_from_xyz,
    affine_from_xyz_matrix,
    affine_in_unit,
    affine_to_xyz,
    angstrom_to_nm,
    decimal_float32,
    nm_to_angstrom,
    orientation_code,
)
from lamella.io.rescale import Rescale
from lamella.testing.strategies import affines
from lamella.volume import Affine

nib = pytest.importorskip("nibabel")

_WORLDS: tuple[World, ...] = ("RAS", "LPS", "xyz")


@given(affine=affines(frames=("RAS",), directions="rotations"))
@pytest.mark.parametrize("world", ["RAS", "LPS"])
def test_there_and_back_changes_no_bit(affine: Affine, world: World) -> None:
    assert affine_from_xyz(affine_to_xyz(affine, world), world) == affine


@given(affine=affines(frames=("stage",), directions="rotations"))
def test_stage_there_and_back(affine: Affine) -> None:
    assert affine_from_xyz(affine_to_xyz(affine, "xyz"), "xyz") == affine


@given(affine=affines(frames=("RAS",), directions="rotations"), data=st.data())
def test_lps_is_ras_with_two_signs(affine: Affine, data: st.DataObject) -> None:
    index = np.array([data.draw(st.floats(-100, 100)) for _ in range(affine.ndim)])
    world = affine.apply(index)[::-1]
    signs = np.array([-1, -1, 1])[: affine.ndim]
    for name, expected in (("RAS", world), ("LPS", world * signs)):
        matrix = affine_to_xyz(affine, name).matrix  # type: ignore[arg-type]
        got = matrix[:-1, :-1] @ index[::-1] + matrix[:-1, -1]
        reach = 1 + np.abs(affine.origin).max() + 100 * sum(affine.spacing)
        assert_allclose(got, expected, atol=1e-12 * reach)


@given(affine=affines(frames=("RAS",), directions="rotations"))
def test_spacing_given_apart_survives_the_matrix(affine: Affine) -> None:
    geometry = affine_to_xyz(affine, "LPS")
    rounded = geometry.matrix.astype(np.float32).astype(np.float64)
    again = affine_from_xyz_matrix(rounded, "LPS", spacing_xyz=geometry.spacing)
    assert again.spacing == affine.spacing
    # A spacing that is not the matrix's own does not count.
    other = tuple(2 * value for value in geometry.spacing)
    again = affine_from_xyz_matrix(geometry.matrix, "LPS", spacing_xyz=other)
    assert_allclose(again.spacing, affine.spacing, rtol=1e-12)


@given(affine=affines(frames=("RAS",), directions="rotations"))
def test_codes_are_nibabels(affine: Affine) -> None:
    if affine.ndim != 3:
        return
    # Exactly between two directions both answers are right.
    strongest = np.sort(np.abs(np.asarray(affine.direction)), axis=0)
    if np.any(strongest[-1] - strongest[-2] < 1e-3):
        return
    expected = nib.aff2axcodes(affine_to_xyz(affine, "RAS").matrix)
    assert orientation_code(affine) == "".join(expected)


def test_codes_of_the_stage() -> None:
    geometry = XyzGeometry((1, 1, 1), (0, 0, 0), ((0, 1, 0), (-1, 0, 0), (0, 0, 1)))
    assert orientation_code(affine_from_xyz(geometry, "xyz")) == "-y +x +z"
    assert orientation_code(affine_from_xyz(geometry, "LPS")) == "ALS"


@pytest.mark.parametrize(
    "geometry",
    [
        XyzGeometry((1, 1, math.nan), (0, 0, 0), IDENTITY_XYZ),
        XyzGeometry((1, 1, 0), (0, 0, 0), IDENTITY_XYZ),
        XyzGeometry((1, 1, -1), (0, 0, 0), IDENTITY_XYZ),
        XyzGeometry((1, 1, 1), (0, math.inf, 0), IDENTITY_XYZ),
        XyzGeometry((1, 1, 1), (0, 0, 0), ((1, 1, 0), (0, 0, 0), (0, 0, 1))),
        XyzGeometry((1, 1, 1), (0, 0, 0), ((0.5, 0, 0), (0, 1, 0), (0, 0, 1))),
    ],
)
@pytest.mark.parametrize("world", _WORLDS)
def test_impossible_grids(geometry: XyzGeometry, world: World) -> None:
    with pytest.raises(GeometryError):
        affine_from_xyz(geometry, world)


@pytest.mark.parametrize("bad", [np.full((4, 4), np.nan), np.zeros((4, 4)), np.ones((4, 4))])
def test_impossible_matrices(bad: np.ndarray) -> None:
    with pytest.raises(GeometryError) as caught:
        affine_from_xyz_matrix(bad, "RAS")
    assert caught.value.hint


@given(value=st.floats(1e-6, 1e6))
def test_angstrom(value: float) -> None:
    assert math.isclose(nm_to_angstrom(angstrom_to_nm(value)), value, rel_tol=1e-15)
    assert angstrom_to_nm(25.0) == 2.5


@given(digits=st.integers(1, 999_999), exponent=st.integers(-6, 4))
def test_decimals_come_back_from_float32(digits: int, exponent: int) -> None:
    value = float(f"{digits}e{exponent - 5}")
    assert decimal_float32(float(np.float32(value))) == value


@given(affine=affines(frames=("RAS",), directions="flips"))
def test_units_move_the_whole_grid(affine: Affine) -> None:
    moved = affine_in_unit(affine, "mm", "um")
    assert_allclose(moved.spacing, np.array(affine.spacing) * 1e3, rtol=1e-15)
    assert affine_in_unit(moved, "um", "mm").is_close(affine, 1e-12)
    with pytest.raises(GeometryError):
        affine_in_unit(affine, "voxel", "mm")


@given(
    stored=st.sampled_from(["u1", "i1", "u2", "i2", "u4", "i4"]),
    slope=st.sampled_from([1.0, 2.0, -1.0, 0.5, 0.1]),
    intercept=st.sampled_from([0.0, -1024.0, 0.25, 1e6]),
    seed=st.integers(0, 99),
)
def test_rescaled_values(stored: str, slope: float, intercept: float, seed: int) -> None:
    info = np.iinfo(stored)
    numbers = np.random.default_rng(seed).integers(info.min, info.max, 20, stored, endpoint=True)
    rescale = Rescale(slope, intercept)
    dtype = rescale.dtype_of(np.dtype(stored))
    values = rescale.apply(numbers, dtype)
    expected = numbers.astype(np.float64) * slope + intercept
    assert values.dtype == dtype
    if dtype.kind in "iu":
        assert_array_equal(values.astype(np.float64), expected)
    else:
        assert_allclose(values, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())
