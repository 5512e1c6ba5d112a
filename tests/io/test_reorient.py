"""Labels counted along other axes: the same voxels at the same places."""

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from lamella.core.errors import GeometryError
from lamella.io.reorient import covered_box, onto_grid
from lamella.volume import Affine, Labels, Volume

_SHAPE = (4, 5, 6)


def _grid() -> Volume:
    turn = np.linalg.qr(np.random.default_rng(2).normal(size=(3, 3)))[0]
    affine = Affine((3.0, 2.0, 1.5), (10.0, -5.0, 7.0), tuple(map(tuple, turn)), "RAS")
    data = np.zeros(_SHAPE, np.int16)
    return Volume(data=data, axes=Volume.from_array(data).axes, affine=affine, unit="mm")


def _turned(volume: Volume, values: np.ndarray, order, flips) -> Labels:
    """The same voxels with axes swapped and turned around, as another program stores them."""
    affine = volume.affine
    start = [volume.shape[k] - 1 if k in flips else 0 for k in range(3)]
    direction = np.asarray(affine.direction).copy()
    for k in flips:
        direction[:, k] *= -1
    turned = Affine(
        tuple(affine.spacing[k] for k in order),
        tuple(affine.apply(start)),
        tuple(map(tuple, direction[:, list(order)])),
        "RAS",
    )
    data = np.flip(values, flips).transpose(order)
    return Labels(data=data, axes=volume.axes, affine=turned, unit="mm")


@given(
    order=st.sampled_from(list(permutations(range(3)))),
    flips=st.sets(st.integers(0, 2)),
    part=st.tuples(*[st.tuples(st.integers(0, n), st.integers(0, n)) for n in _SHAPE]),
)
def test_every_voxel_stays_where_it_is(order, flips, part) -> None:
    volume = _grid()
    values = np.random.default_rng(1).integers(0, 9, _SHAPE).astype(np.uint8)
    labels = onto_grid(_turned(volume, values, order, tuple(flips)), volume)
    assert labels.same_grid(volume)
    assert_array_equal(labels.load(), values)
    window = tuple(slice(min(p), max(p)) for p in part)
    assert_array_equal(labels.data[window], values[window])


@given(st.tuples(*[st.tuples(st.integers(0, n - 1), st.integers(1, n)) for n in _SHAPE]))
def test_what_labels_do_not_reach_is_background(part) -> None:
    from lamella.volume import Box

    box = Box(tuple(min(a, b - 1) for a, b in part), tuple(max(a + 1, b) for a, b in part))
    volume = _grid()
    values = np.ones(_SHAPE, np.uint8)
    whole = Labels.like(volume, values)
    labels = onto_grid(whole.crop(box), volume)
    expected = np.zeros(_SHAPE, np.uint8)
    expected[box.slices()] = 1
    assert_array_equal(labels.load(), expected)
    assert covered_box(whole.crop(box), volume) == box
    assert covered_box(labels, volume) == Box.from_shape(_SHAPE)


def test_other_grids_are_refused() -> None:
    volume = _grid()
    labels = Labels.like(volume, np.ones(_SHAPE, np.uint8))
    assert onto_grid(labels, volume) is labels
    half = replace(labels, affine=replace(labels.affine, origin=volume.affine.apply((0.5, 0, 0))))
    with pytest.raises(GeometryError, match=r"0\.5 voxels off"):
        onto_grid(half, volume)
    coarse = replace(labels, affine=replace(labels.affine, spacing=(6.0, 4.0, 3.0)))
    with pytest.raises(GeometryError, match="6 x 4 x 3 against 3 x 2 x"):
        onto_grid(coarse, volume)
    flat = Labels.from_array(np.ones((5, 6), np.uint8), spacing=(1, 1), unit="mm", frame="RAS")
    with pytest.raises(GeometryError, match="do not lie on an image"):
        onto_grid(flat, volume)
