"""Surface areas: bodies whose surface is known, on grids of any shape."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.measurement import MeasureOptions, measure_objects
from lamella.volume.spacing import Spacing

GRIDS = [(1, 1, 1), (2, 1, 1), (4, 1, 1), (1, 2, 2), (3, 2, 1), (8, 1, 1), (1.2, 1, 1)]


def sample(inside, half, spacing, shift):
    """A body around the origin on a grid that is shifted by parts of a voxel."""
    spacing = np.asarray(spacing, float)
    shape = np.ceil(2 * np.asarray(half) / spacing).astype(int) + 4
    axes = [(np.arange(n) - n / 2 + o) * s for n, s, o in zip(shape, spacing, shift, strict=True)]
    return inside(np.stack(np.meshgrid(*axes, indexing="ij"), -1))


def surface_of(mask, spacing):
    spacing = Spacing(tuple(map(float, spacing)), "nm")
    table = measure_objects(mask.astype(np.uint8), spacing=spacing)
    return float(table.surface[0]), float(table.volume[0])


def rotation(rng):
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    return q * np.sign(np.diag(r))


def ellipsoid_surface(a, b, c):
    theta, phi = np.meshgrid(
        (np.arange(200) + 0.5) * math.pi / 200, (np.arange(400) + 0.5) * math.pi / 200
    )
    s, k = np.sin(theta), np.cos(theta)
    part = (b * c * s * np.cos(phi)) ** 2 + (a * c * s * np.sin(phi)) ** 2 + (a * b * k) ** 2
    return float((s * np.sqrt(part)).sum() * (math.pi / 200) ** 2)


@pytest.mark.parametrize("spacing", GRIDS)
@pytest.mark.parametrize("radius", [5, 7, 12])
def test_balls_within_four_percent(spacing, radius):
    r = radius * max(spacing)
    rng = np.random.default_rng(radius)
    for _ in range(2):
        mask = sample(lambda p: (p**2).sum(-1) <= r * r, [r] * 3, spacing, rng.random(3))
        surface, volume = surface_of(mask, spacing)
        assert surface == pytest.approx(4 * math.pi * r * r, rel=0.04 if radius == 5 else 0.025)
        if radius > 5:
            assert volume == pytest.approx(4 / 3 * math.pi * r**3, rel=0.02)


@pytest.mark.parametrize("spacing", GRIDS)
@pytest.mark.parametrize("n_voxels", [(10, 10, 10), (20, 30, 40), (8, 12, 50)])
def test_boxes_within_one_percent(spacing, n_voxels):
    mask = np.zeros(np.add(n_voxels, 3), bool)
    mask[1:-2, 1:-2, 1:-2] = True
    a, b, c = np.multiply(n_voxels, spacing)
    surface, volume = surface_of(mask, spacing)
    assert surface == pytest.approx(2 * (a * b + a * c + b * c), rel=0.01)
    assert volume == pytest.approx(a * b * c)


@pytest.mark.parametrize("spacing", GRIDS)
@pytest.mark.parametrize(
    "n", [(1, 1, 1), (2, 1, 1), (1, 1, 10), (1, 10, 10), (12, 9, 1), (2, 9, 9)]
)
def test_specks_rods_and_sheets_of_one_voxel_keep_their_rims(spacing, n):
    mask = np.pad(np.ones(n, bool), 1)
    a, b, c = np.multiply(n, spacing)
    expected = 2 * (a * b + a * c + b * c)
    assert surface_of(mask, spacing)[0] == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("spacing", GRIDS[:4])
def test_turned_sheets_within_five_percent(spacing):
    rng = np.random.default_rng(5)
    sheet = np.array([3, 24, 24]) * max(spacing)
    for _ in range(3):
        turn = rotation(rng)
        half = [np.linalg.norm(sheet) / 2] * 3
        mask = sample(
            lambda p, turn=turn: (abs(p @ turn) <= sheet / 2).all(-1), half, spacing, rng.random(3)
        )
        expected = 2 * (sheet[0] * sheet[1] + sheet[0] * sheet[2] + sheet[1] * sheet[2])
        assert surface_of(mask, spacing)[0] == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("spacing", GRIDS)
def test_turned_ellipsoids_within_three_percent(spacing):
    rng = np.random.default_rng(7)
    coarse = max(spacing)
    a, b, c = 5 * coarse, 7 * coarse, 10 * coarse
    turn = rotation(rng)
    mask = sample(
        lambda p: (((p @ turn) / (a, b, c)) ** 2).sum(-1) <= 1, [c] * 3, spacing, rng.random(3)
    )
    assert surface_of(mask, spacing)[0] == pytest.approx(ellipsoid_surface(a, b, c), rel=0.03)


@pytest.mark.parametrize("spacing", GRIDS[:4])
def test_turned_boxes_and_cylinders_within_five_percent(spacing):
    rng = np.random.default_rng(3)
    coarse = max(spacing)
    box = np.array([16, 18, 22]) * coarse
    for _ in range(2):
        turn = rotation(rng)
        half = [np.linalg.norm(box) / 2] * 3
        mask = sample(
            lambda p, turn=turn: (abs(p @ turn) <= box / 2).all(-1), half, spacing, rng.random(3)
        )
        expected = 2 * (box[0] * box[1] + box[0] * box[2] + box[1] * box[2])
        assert surface_of(mask, spacing)[0] == pytest.approx(expected, rel=0.05)
        r, h = 6 * coarse, 16 * coarse

        def in_cylinder(p, turn=turn, r=r, h=h):
            q = p @ turn
            return (q[..., 1] ** 2 + q[..., 2] ** 2 <= r * r) & (abs(q[..., 0]) <= h / 2)

        mask = sample(in_cylinder, [math.hypot(r, h / 2)] * 3, spacing, rng.random(3))
        expected = 2 * math.pi * r * (r + h)
        assert surface_of(mask, spacing)[0] == pytest.approx(expected, rel=0.05)


def test_marching_cubes_on_the_mask_would_not_do():
    # The reason for a method of our own, kept as a test.
    from skimage.measure import marching_cubes, mesh_surface_area

    spacing, r = (4.0, 1.0, 1.0), 40.0
    mask = sample(lambda p: (p**2).sum(-1) <= r * r, [r] * 3, spacing, (0.3, 0.1, 0.7))
    vertices, faces, _, _ = marching_cubes(mask.astype(np.float32), 0.5, spacing=spacing)
    expected = 4 * math.pi * r * r
    assert mesh_surface_area(vertices, faces) > 1.15 * expected
    assert surface_of(mask, spacing)[0] == pytest.approx(expected, rel=0.02)


@given(seed=st.integers(0, 2**32 - 1), axes=st.permutations([0, 1, 2]))
def test_turning_by_right_angles_changes_nothing(seed, axes):
    rng = np.random.default_rng(seed)
    mask = np.pad(rng.random((4, 5, 6)) < 0.7, 1)
    spacing = rng.uniform(1, 4, 3)
    turned = np.flip(mask.transpose(axes), int(rng.integers(3)))
    first = surface_of(mask, spacing)[0]
    assert surface_of(turned, spacing[list(axes)])[0] == pytest.approx(first, rel=1e-6)


@given(seed=st.integers(0, 2**32 - 1), factor=st.sampled_from([1e-3, 2.0, 1000.0]))
def test_units_scale(seed, factor):
    rng = np.random.default_rng(seed)
    mask = np.pad(rng.random((4, 5, 6)) < 0.7, 1)
    spacing = rng.uniform(1, 4, 3)
    first = surface_of(mask, spacing)[0]
    assert surface_of(mask, spacing * factor)[0] == pytest.approx(first * factor**2, rel=1e-5)


def test_neighbours_do_not_change_an_object():
    alone = np.zeros((20, 20, 30), np.uint8)
    alone[4:15, 5:15, 5:15] = 1
    both = alone.copy()
    both[3:18, 3:18, 15:28] = 2
    spacing = Spacing((2.0, 1.0, 1.0), "nm")
    tables = [measure_objects(labels, spacing=spacing) for labels in (alone, both)]
    assert tables[0].surface[0] == tables[1].surface[0]


def test_the_border_of_the_volume_closes_the_body():
    whole = np.ones((10, 12, 14), np.uint8)
    table = measure_objects(whole, spacing=Spacing((2.0, 1.0, 1.0), "nm"))
    assert table.surface[0] == pytest.approx(2 * (20 * 12 + 20 * 14 + 12 * 14), rel=0.01)


@pytest.mark.parametrize("spacing", [(1, 1), (3, 1), (1, 2)])
def test_discs_and_rectangles_within_two_percent(spacing):
    spacing = np.asarray(spacing, float)
    r = 12 * spacing.max()
    y, x = np.ogrid[: int(2 * r / spacing[0]) + 4, : int(2 * r / spacing[1]) + 4]
    far = ((y - 1.4) * spacing[0] - r) ** 2 + ((x - 1.8) * spacing[1] - r) ** 2
    disc = (far <= r * r).astype(np.uint8)
    known = Spacing(tuple(spacing), "um")
    table = measure_objects(disc, spacing=known)
    assert table.surface[0] == pytest.approx(2 * math.pi * r, rel=0.02)
    assert table.sphericity[0] == pytest.approx(1, abs=0.04)
    rectangle = np.zeros((20, 30), np.uint8)
    rectangle[3:15, 4:24] = 1
    table = measure_objects(rectangle, spacing=known)
    assert table.surface[0] == pytest.approx(2 * (12 * spacing[0] + 20 * spacing[1]), rel=0.02)


def test_sphericity_orders_shapes():
    ball = sample(lambda p: (p**2).sum(-1) <= 144, [12] * 3, (1, 1, 1), (0.2, 0.5, 0.8))
    cube = np.pad(np.ones((20, 20, 20), bool), 1)
    rod = np.pad(np.ones((60, 6, 6), bool), 1)
    values = []
    for mask in (ball, cube, rod):
        spacing = Spacing((1.0, 1.0, 1.0), "um")
        values.append(float(measure_objects(mask, spacing=spacing).sphericity[0]))
    assert values[0] == pytest.approx(1, abs=0.02)
    assert values[1] == pytest.approx((math.pi / 6) ** (1 / 3), rel=0.01)
    assert values == sorted(values, reverse=True)


def test_surfaces_can_be_left_out():
    cube = np.pad(np.ones((4, 4, 4), np.uint8), 1)
    options = MeasureOptions(surface=False)
    table = measure_objects(cube, spacing=Spacing((1.0, 1.0, 1.0), "um"), options=options)
    assert np.isnan(table.surface[0])
    assert np.isnan(table.sphericity[0])
