"""Layers brought back to another grid on their way out: the same as interpolating all at once."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamella.core.errors import StorageError
from lamella.inference.decode import Argmax
from lamella.inference.operator import Operator
from lamella.inference.outlet import LabelSink, OutputGrid, Place, ResamplingOutlet, write_outside
from lamella.inference.plan import make_plan
from lamella.volume import Box


@given(st.integers(1, 30), st.integers(1, 90), st.integers(0, 999))
def test_linear_operators_interpolate_as_numpy_does(n_in, n_out, seed):
    rng = np.random.default_rng(seed)
    values = rng.normal(0, 1, (2, n_in)).astype(np.float32)
    at = np.sort(rng.uniform(-2, n_in + 1, n_out))
    found = Operator.at(n_in, at, is_nearest=False).apply(values, axis=1)
    expected = [np.interp(at, np.arange(n_in), row) for row in values]
    np.testing.assert_allclose(found, expected, atol=1e-5)


@given(st.integers(1, 20), st.integers(1, 200), st.integers(0, 199), st.integers(0, 99))
def test_any_part_of_an_axis_has_the_same_bits(n_in, n_out, start, seed):
    rng = np.random.default_rng(seed)
    values = rng.normal(0, 1, (3, n_in)).astype(np.float32)
    operator = Operator.at(n_in, np.linspace(0, n_in - 1, n_out), is_nearest=False)
    start = start % n_out
    stop = min(n_out, start + 70)
    low, high = operator.block_sources(start, stop)
    part = operator.part(values[:, low:high], axis=1, start=start, stop=stop, offset=low)
    np.testing.assert_array_equal(part, operator.apply(values, axis=1)[:, start:stop])


def test_halfway_the_even_voxel_is_nearest():
    operator = Operator.at(4, np.array([0.5, 1.5, 2.5, -3.0, 9.0]), is_nearest=True)
    picked = operator.apply(np.arange(4, dtype=np.float32)[None], axis=1)
    assert picked.tolist() == [[0, 2, 2, 0, 3]]


def grid_of(shape, crop, network):
    along = []
    for n, m in zip(crop.shape, network, strict=True):
        at = np.linspace(0, m - 1, n)
        along.append(None if n == m else Operator.at(m, at, is_nearest=False))
    return OutputGrid(shape, crop, network, tuple(along))


@settings(max_examples=20)
@given(
    network=st.tuples(*[st.integers(2, 9)] * 3),
    crop=st.tuples(*[st.integers(2, 12)] * 3),
    before=st.tuples(*[st.integers(0, 3)] * 3),
    depth=st.integers(1, 5),
    piece=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_labels_are_those_of_interpolating_everything(
    kit, network, crop, before, depth, piece, seed
):
    shape = tuple(a + b + 2 for a, b in zip(before, crop, strict=True))
    box = Box(before, tuple(a + b for a, b in zip(before, crop, strict=True)))
    grid = grid_of(shape, box, network)
    logits = np.random.default_rng(seed).normal(0, 1, (3, *network)).astype(np.float32)
    whole = logits
    for axis, operator in enumerate(grid.along):
        if operator is not None:
            moved = np.moveaxis(whole, 1 + axis, -1)
            whole = np.moveaxis(operator.apply(np.ascontiguousarray(moved), axis=3), -1, 1 + axis)
    expected = np.zeros(shape, np.uint8)
    expected[box.slices()] = whole.argmax(axis=0)
    unit = (depth, 64, 64)
    store, maps = kit.MemoryStore(shape, unit), kit.MemoryStore((1, *shape), unit)
    output = Box((0, 0), shape[1:])
    place = Place(grid, output, 0)
    sink = LabelSink(place, Argmax(3, measures=("margin",)), (store, maps), background=(255,))
    outlet = ResamplingOutlet(
        grid, output, first_layer=place.first_crop_layer, sink=sink, n_threads=2
    )
    with outlet:
        for z in range(0, network[0], piece):
            outlet.put(logits[:, z : z + piece], z)
    near = np.sort(whole, axis=0)
    is_tie = np.zeros(shape, bool)
    is_tie[box.slices()] = near[-1] - near[-2] < 1e-5
    np.testing.assert_array_equal(store.array[~is_tie], expected[~is_tie])
    outside = np.ones(shape, bool)
    outside[box.slices()] = False
    assert (maps.array[0][outside] == 255).all()


def test_an_error_of_the_store_reaches_the_caller(kit):
    grid = grid_of((8, 4, 4), Box((0, 0, 0), (8, 4, 4)), (8, 4, 4))
    store = kit.MemoryStore((8, 4, 4), (2, 4, 4), fail_after=1)
    sink = LabelSink(Place(grid, Box((0, 0), (4, 4)), 0), Argmax(2), (store, None))
    outlet = ResamplingOutlet(grid, Box((0, 0), (4, 4)), first_layer=0, sink=sink, n_threads=1)

    def run():
        with outlet:
            for z in range(8):
                outlet.put(np.zeros((2, 1, 4, 4), np.float32), z)

    with pytest.raises((StorageError, OSError)):
        run()


def test_what_no_column_writes_is_filled_once(kit):
    store = kit.MemoryStore((2, 4, 8, 8), (4, 4, 4))
    write_outside(store, (4, 8, 8), Box((0, 0), (4, 8)), (7, 9))
    assert (store.array[0, :, 4:] == 7).all()
    assert (store.array[1, :, 4:] == 9).all()
    assert (store.array[:, :, :4] == 77).all(), "columns write these"


@given(st.tuples(*[st.integers(1, 40)] * 3), st.tuples(*[st.integers(1, 16)] * 3))
def test_tiles_counted_from_the_end_are_the_mirror_image(shape, tile):
    forth = make_plan(shape, tile=tile, overlap_fraction=0.5)
    back = make_plan(shape, tile=tile, overlap_fraction=0.5, from_end=(0, 2))
    for axis in range(3):
        spans = [(s.read, s.write) for s in forth.spans(axis)]
        n = shape[axis]
        turned = [((n - b, n - a), (n - d, n - c)) for (a, b), (c, d) in reversed(spans)]
        assert [(s.read, s.write) for s in back.spans(axis)] == (turned if axis != 1 else spans)
