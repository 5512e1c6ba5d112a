"""Geometry in nanometres: nothing is rounded, levels are found by size."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.core.errors import GeometryError
from lamella.training.cellmap.grid import Grid, choose_level

sizes = st.floats(0.5, 200, allow_nan=False)
places = st.floats(-1e5, 1e5, allow_nan=False)
triples = st.tuples(sizes, sizes, sizes)
grids = st.builds(
    Grid, st.tuples(*[st.integers(1, 500)] * 3), triples, st.tuples(places, places, places)
)


@given(grids, st.tuples(*[st.floats(-100, 1000)] * 3))
def test_index_and_world_are_inverse(grid, index):
    np.testing.assert_allclose(grid.index_of(grid.world_of(index)), index, atol=1e-6)


@given(grids, st.integers(1, 5))
def test_a_pyramid_level_covers_the_same_extent(grid, k):
    # Level k of a pyramid by two is shifted by (2^k - 1) / 2 voxels of the finest.
    factor = 2**k
    shape = tuple(n * factor for n in grid.shape)
    fine = Grid(shape, grid.spacing, grid.origin)
    coarse = Grid(
        grid.shape,
        tuple(s * factor for s in grid.spacing),
        tuple(o + (factor - 1) / 2 * s for o, s in zip(grid.origin, grid.spacing, strict=True)),
    )
    np.testing.assert_allclose(coarse.low, fine.low, rtol=1e-9, atol=1e-6)
    np.testing.assert_allclose(coarse.high, fine.high, rtol=1e-9, atol=1e-6)
    assert fine.box_around(coarse).shape == fine.shape
    assert coarse.box_around(fine).shape == coarse.shape


@given(grids, st.tuples(*[st.floats(-50, 50)] * 3), st.sampled_from([0.25, 0.5, 1.0, 2.0]))
def test_a_box_holds_every_voxel_it_is_made_around(raw, shift, ratio):
    labels = Grid(
        (4, 5, 6),
        tuple(s * ratio for s in raw.spacing),
        tuple(o + d * s for o, d, s in zip(raw.origin, shift, raw.spacing, strict=True)),
    )
    box = raw.box_around(labels)
    for index in ((0, 0, 0), (3, 4, 5)):
        nearest = raw.index_of(labels.world_of(index))
        for i, a, b in zip(nearest, box.start, box.stop, strict=True):
            assert a - 0.5 - 1e-3 <= i <= b - 0.5 + 1e-3


def test_a_label_on_half_voxels_is_not_rounded():
    raw = Grid((20, 1024, 1024), (50.0, 4.6, 4.6), (0.0, 0.0, 0.0))
    labels = Grid((20, 768, 768), (50.0, 2.3, 2.3), (0.0, 182.85, 228.85))
    np.testing.assert_allclose(raw.index_of(labels.origin), (0, 39.75, 49.75), atol=1e-9)
    assert raw.box_around(labels).shape == (20, 384, 384)


@given(st.lists(triples, min_size=1, max_size=6), triples)
def test_no_level_is_nearer_on_its_worst_axis(levels, wanted):
    def worst(spacing):
        return max(abs(math.log2(s / w)) for s, w in zip(spacing, wanted, strict=True))

    choice = choose_level(levels, wanted)
    assert worst(levels[choice.index]) <= min(map(worst, levels)) + 1e-6
    assert choice.is_far == (choice.worst > 1.25)


def test_the_mean_over_axes_would_choose_wrongly():
    # Its mean error is zero, and one axis is four times off.
    assert choose_level([(2.0, 10.0, 12.0), (9.0, 9.0, 9.0)], (8.0, 8.0, 8.0)).index == 1


def test_what_is_no_grid_is_refused():
    with pytest.raises(GeometryError, match="do not make a grid"):
        Grid((1, 1, 1), (1.0, 0.0, 1.0), (0.0, 0.0, 0.0))
    with pytest.raises(GeometryError, match="no levels"):
        choose_level([], (1.0, 1.0, 1.0))
