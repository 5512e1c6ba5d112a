"""Laws of the plan: partitions, covers, and MONAI's positions."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.core.errors import InputError
from lamella.inference.plan import Column, column_extent, cut_columns, make_plan, overlap_of
from lamella.volume.box import Box

shapes = st.tuples(*[st.integers(1, 40)] * 3)
tiles = st.tuples(*[st.integers(1, 16)] * 3)
fractions = st.sampled_from([0.0, 0.25, 0.5, 0.6, 0.75])
blends = st.sampled_from(["gaussian", "crop"])


@given(shapes, tiles, fractions, blends)
def test_write_boxes_partition_and_read_boxes_cover(shape, tile, fraction, blend):
    plan = make_plan(shape, tile=tile, overlap_fraction=fraction, blend=blend)
    (column,) = plan.columns
    written = np.zeros(shape, int)
    for row in plan.rows:
        for one in plan.tiles(column, row):
            written[one.write.slices()] += 1
            assert one.read.shape == tile
            assert one.read.contains(one.write)
            for start, stop, length, size in zip(
                one.read.start, one.read.stop, shape, tile, strict=True
            ):
                if length >= size:
                    assert start >= 0
                    assert stop <= length
                else:
                    assert start <= 0
                    assert stop >= length
    assert (written == 1).all()


@given(shapes, tiles, fractions, blends)
def test_bands_partition_and_are_final(shape, tile, fraction, blend):
    plan = make_plan(shape, tile=tile, overlap_fraction=fraction, blend=blend)
    (column,) = plan.columns
    left = np.zeros(shape, int)
    bands = list(plan.iter_bands(column))
    for i, (row, box) in enumerate(bands):
        left[box.slices()] += 1
        later = [t for r, _ in bands[i + 1 :] for t in plan.tiles(column, r)]
        for one in later:
            reach = one.write if blend == "crop" else one.read
            assert reach.intersect(box).is_empty
        assert row.leave[0] >= row.span.read[0]
        assert row.leave[1] <= max(row.span.read[1], shape[0])
    assert (left == 1).all()


@given(st.tuples(*[st.integers(8, 60)] * 3), tiles, fractions, blends, st.integers(0, 2**32))
def test_columns_keep_all_tiles_that_touch_them(shape, tile, fraction, blend, seed):
    rng = np.random.default_rng(seed)
    cut = int(rng.integers(1, shape[2]))
    boxes = (Box((0, 0), (shape[1], cut)), Box((0, cut), (shape[1], shape[2])))
    whole = make_plan(shape, tile=tile, overlap_fraction=fraction, blend=blend)
    plan = make_plan(
        shape,
        tile=tile,
        overlap_fraction=fraction,
        blend=blend,
        columns=tuple(Column(box, box) for box in boxes),
    )
    row = whole.rows[0]
    every = whole.tiles(whole.columns[0], row)
    for column in plan.columns:
        kept = set(plan.tiles(column, row))
        for one in every:
            reach = one.write if blend == "crop" else one.read
            touches = not Box(reach.start[1:], reach.stop[1:]).intersect(column.region).is_empty
            assert (one in kept) == touches
    assert plan.n_tiles == sum(
        len(plan.tiles(c, r)) for c, r in itertools.product(plan.columns, plan.rows)
    )


@pytest.mark.parametrize("shape", [(40, 33, 70), (10, 64, 65), (1, 1, 1), (32, 32, 32)])
@pytest.mark.parametrize("fraction", [0.0, 0.25, 0.5, 0.7])
def test_positions_are_those_of_monai(shape, fraction):
    utils = pytest.importorskip("monai.data.utils")
    inferers = pytest.importorskip("monai.inferers.utils")
    tile = (16, 32, 24)
    padded = tuple(max(n, t) for n, t in zip(shape, tile, strict=True))
    interval = inferers._get_scan_interval(padded, tile, 3, (fraction,) * 3)
    expected = [
        tuple(s.start - max(0, t - n) // 2 for s, n, t in zip(window, shape, tile, strict=True))
        for window in utils.dense_patch_slices(padded, tile, interval)
    ]
    plan = make_plan(shape, tile=tile, overlap_fraction=fraction)
    ours = [t.read.start for row in plan.rows for t in plan.tiles(plan.columns[0], row)]
    assert ours == expected


def test_overlap_of_fraction_matches_the_stride():
    assert overlap_of((64, 64, 1), 0.5) == (32, 32, 0)
    assert overlap_of((5,), 0.9) == (4,)
    with pytest.raises(InputError, match="overlap fraction"):
        overlap_of((64,), 1.0)


def test_column_extent_stays_within_budget_or_is_one_chunk():
    assert column_extent((1000, 1000), (128, 128), 100.0, 10**9) == (1000, 1000)
    height, width = column_extent((1000, 3000), (128, 128), 1000.0, 10**9)
    assert height * width * 1000 <= 10**9
    assert width % 128 == 0
    assert column_extent((1000, 1000), (128, 128), 1e9, 10**6) == (128, 128)


@given(
    st.tuples(st.integers(0, 3), st.integers(0, 3)),
    st.tuples(st.integers(1, 60), st.integers(1, 60)),
    st.tuples(st.integers(1, 16), st.integers(1, 16)),
    st.integers(1, 4000),
)
def test_columns_partition_what_is_written_along_its_chunks(first, extent, unit, budget):
    start = (first[0] * unit[0], first[1] * unit[1])
    stop = (start[0] + extent[0], start[1] + extent[1])
    columns = cut_columns(Box(start, stop), unit, 1.0, budget, region=lambda box: box)
    written = np.zeros(stop, int)
    for column in columns:
        written[column.output.slices()] += 1
        assert column.region == column.output
        assert all(n % u == 0 for n, u in zip(column.output.start, unit, strict=True))
        n_chunks = [-(-n // u) for n, u in zip(column.output.shape, unit, strict=True)]
        assert np.prod(column.output.shape) <= budget or n_chunks == [1, 1]
    assert (written[start[0] :, start[1] :] == 1).all()
    assert written.sum() == np.prod(extent)


def test_columns_that_nothing_is_run_for_are_left_out():
    def region(box):
        return None if box.start[1] < 32 else box

    columns = cut_columns(Box((0, 0), (16, 64)), (16, 16), 1.0, 256, region=region)
    assert [column.output.start for column in columns] == [(0, 32), (0, 48)]


@pytest.mark.parametrize(
    ("shape", "tile"), [((0, 4, 4), (2, 2, 2)), ((4, 4), (2, 2)), ((4, 4, 4), (0, 2, 2))]
)
def test_impossible_shapes_are_refused(shape, tile):
    with pytest.raises(InputError):
        make_plan(shape, tile=tile)
