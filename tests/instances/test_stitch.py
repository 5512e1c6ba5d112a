"""Stitching blocks: the objects are those of the volume in one piece, however it was cut."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.core.errors import InputError, RunCancelledError
from lamella.core.progress import SilentSink
from lamella.instances import WatershedOptions, label_components, watershed_instances
from lamella.instances.stitch import BlockGrid, stitch_blocks

GRIDS = st.builds(
    lambda shape, block, halo: BlockGrid(shape, block, min(halo, min(block))),
    st.tuples(st.integers(4, 30), st.integers(4, 30), st.integers(4, 30)),
    st.tuples(st.integers(3, 17), st.integers(3, 17), st.integers(3, 17)),
    st.integers(1, 8),
)


def balls(shape, seed, n=12, radius=(1.5, 3.0)):
    random = np.random.default_rng(seed)
    points = np.stack(np.indices(shape), axis=-1)
    mask = np.zeros(shape, bool)
    for _ in range(n):
        center = random.uniform(0, shape)
        mask |= ((points - center) ** 2).sum(-1) < random.uniform(*radius) ** 2
    return mask


def in_blocks(grid, find):
    """Objects found block by block, and stitched; the whole volume's labels."""
    found = [find(grid.read_box(box)) for box in grid.boxes]

    def read(number, box):
        start = grid.read_box(grid.boxes[number]).start
        return found[number][
            tuple(slice(a - s, b - s) for a, b, s in zip(box.start, box.stop, start, strict=True))
        ]

    stitched = stitch_blocks(grid, read)
    labels = np.zeros(grid.shape, np.int64)
    for number, box in enumerate(grid.boxes):
        labels[box.slices()] = stitched.tables[number][read(number, box)]
    return labels, stitched


@given(GRIDS)
def test_blocks_partition_the_volume_and_bands_lie_in_both(grid):
    covered = np.zeros(grid.shape, int)
    for box in grid.boxes:
        covered[box.slices()] += 1
    assert (covered == 1).all()
    for a, b, band in grid.bands():
        assert a < b
        for number in (a, b):
            box = grid.read_box(grid.boxes[number])
            assert all(
                s <= t and u <= v
                for s, t, u, v in zip(box.start, band.start, band.stop, box.stop, strict=True)
            )


@given(GRIDS, st.integers(0, 99))
def test_what_all_blocks_see_alike_is_the_whole(grid, seed):
    """Whatever the objects' size: labels of the whole, seen through blocks, come back."""
    whole = label_components(balls(grid.shape, seed, radius=(1.0, 7.0))).labels
    labels, stitched = in_blocks(grid, lambda box: label_components_seen(whole, box))
    np.testing.assert_array_equal(labels, whole)
    assert stitched.count == whole.max()


def label_components_seen(whole, box):
    """The whole's labels in a box, with ids of the box's own."""
    seen = whole[box.slices()]
    _, ids = np.unique(np.concatenate([[0], seen.ravel()]), return_inverse=True)
    return ids[1:].reshape(seen.shape)


@given(
    st.tuples(st.integers(12, 30), st.integers(12, 30), st.integers(12, 30)),
    st.integers(8, 20),
    st.integers(0, 99),
)
def test_objects_that_fit_into_the_halo_are_those_of_the_whole(shape, block, seed):
    mask = balls(shape, seed, n=8, radius=(1.2, 2.4))
    options = WatershedOptions(min_seed_distance=2.0)

    def find(box):
        return watershed_instances(mask[box.slices()], spacing=(1, 1, 1), options=options)

    pieces = label_components(mask, connectivity=6)
    extents = [
        np.ptp(np.argwhere(pieces.labels == n), axis=0).max() for n in range(1, pieces.count + 1)
    ]
    halo = max([1, *extents]) + 2
    if halo > block:
        return
    whole = watershed_instances(mask, spacing=(1, 1, 1), options=options)
    labels, stitched = in_blocks(BlockGrid(shape, block, int(halo)), find)
    np.testing.assert_array_equal(labels, whole)
    assert stitched.count == whole.max()


def test_a_fibre_through_many_blocks_is_one_object():
    mask = np.zeros((8, 8, 100), bool)
    mask[3:6, 3:6] = True
    grid = BlockGrid(mask.shape, (8, 8, 16), 4)
    labels, stitched = in_blocks(grid, lambda box: label_components(mask[box.slices()]).labels)
    np.testing.assert_array_equal(labels, mask)
    assert (stitched.count, stitched.n_joined) == (1, 1)


def test_objects_that_touch_across_a_face_stay_two():
    whole = np.zeros((4, 8, 32), int)
    whole[:, :, 10:16] = 1
    whole[:, :, 16:22] = 2
    labels, _ = in_blocks(BlockGrid(whole.shape, (4, 8, 16), 4), lambda box: whole[box.slices()])
    np.testing.assert_array_equal(labels, whole)


def test_pieces_that_one_block_sees_connected_are_one():
    """A fork whose prongs cross the face: only the block with the stem knows that they are one."""
    mask = np.zeros((4, 16, 40), bool)
    mask[:, 2:4, 4:36] = mask[:, 12:14, 4:36] = True
    mask[:, 2:14, 4:6] = True
    grid = BlockGrid(mask.shape, (4, 16, 20), 4)
    labels, _ = in_blocks(grid, lambda box: label_components(mask[box.slices()]).labels)
    np.testing.assert_array_equal(labels, mask)


def test_nothing_is_found_in_nothing():
    labels, stitched = in_blocks(BlockGrid((5, 6, 7), 4, 2), lambda box: np.zeros(box.shape, int))
    assert not labels.any()
    assert (stitched.count, stitched.n_joined) == (0, 0)


@pytest.mark.parametrize("halo", [0, 5])
def test_a_halo_that_cannot_be_is_refused(halo):
    with pytest.raises(InputError, match=f"halo of {halo} voxels does not fit blocks of 4 x 4 x 4"):
        BlockGrid((8, 8, 8), 4, halo)


def test_a_share_that_cannot_be_is_refused():
    with pytest.raises(InputError, match="min_share is 0"):
        stitch_blocks(
            BlockGrid((4, 4, 4), 4, 1), lambda n, box: np.zeros(box.shape, int), min_share=0
        )


def test_it_can_be_stopped():
    class Stop(SilentSink):
        def check(self):
            raise RunCancelledError("stopped")

    with pytest.raises(RunCancelledError):
        stitch_blocks(
            BlockGrid((4, 4, 4), 4, 1), lambda n, box: np.zeros(box.shape, int), sink=Stop()
        )
