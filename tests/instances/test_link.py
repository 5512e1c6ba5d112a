"""Linking: the laws first, then the rules one by one, then scores beside stitch3D."""

import importlib.util
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.core.errors import InputError, RunCancelledError
from lamella.core.progress import CancelToken, SilentSink
from lamella.instances import LinkOptions, link_slices
from lamella.volume.source import FunctionArray

_SHARED = importlib.util.spec_from_file_location("linking", Path(__file__).parent / "linking.py")
linking = importlib.util.module_from_spec(_SHARED)
_SHARED.loader.exec_module(linking)
link, as_slices, same_partition = linking.link, linking.as_slices, linking.same_partition


def discs(shape, items):
    """Slices with discs: (z, y, x, radius, label)."""
    labels = np.zeros(shape, np.uint32)
    y, x = np.mgrid[: shape[1], : shape[2]]
    for z, cy, cx, radius, value in items:
        labels[z][(y - cy) ** 2 + (x - cx) ** 2 <= radius**2] = value
    return labels


def random_slices(seed, n_slices, n_objects, size=24):
    """Overlapping discs that drift, appear, vanish, merge and split: everything can happen."""
    rng = np.random.default_rng(seed)
    at = rng.uniform(0, size, (n_objects, 2))
    radius = rng.uniform(1, 6, n_objects)
    items = []
    for z in range(n_slices):
        at += rng.normal(0, 1.0, at.shape)
        present = rng.random(n_objects) < 0.85
        values = rng.permutation(n_objects * 2)[:n_objects] + 1
        values = np.where(rng.random(n_objects) < 0.15, values[:1].sum(), values)
        items += [
            (z, *at[k], radius[k] * rng.uniform(0.6, 1.2), values[k])
            for k in range(n_objects)
            if present[k]
        ]
    return discs((n_slices, size, size), items)


slices = st.builds(
    random_slices,
    seed=st.integers(0, 2**32 - 1),
    n_slices=st.integers(1, 9),
    n_objects=st.integers(0, 7),
)
noise = st.builds(
    lambda seed, n, top: np.random.default_rng(seed).integers(0, top, (n, 4, 5)).astype(np.uint16),
    st.integers(0, 2**32 - 1),
    st.integers(1, 6),
    st.integers(1, 9),
)
any_slices = slices | noise
reach = st.integers(1, 3)


# --- Laws ---------------------------------------------------------------------------------------


@given(labels=any_slices, max_distance_z=reach)
def test_ids_are_1_to_n_in_scan_order_and_lie_where_labels_lie(labels, max_distance_z):
    ids, result = link(labels, max_distance_z=max_distance_z)
    np.testing.assert_array_equal(ids > 0, labels > 0)
    values, first = np.unique(ids[ids > 0], return_index=True)
    assert values.tolist() == list(range(1, result.n_objects + 1))
    assert (np.diff(first) > 0).all()
    n_slices = [(ids == k).any(axis=(1, 2)).sum() for k in range(1, result.n_objects + 1)]
    assert result.n_slices.tolist() == [0, *n_slices]


@given(labels=any_slices, max_distance_z=reach)
def test_objects_of_a_slice_are_never_cut(labels, max_distance_z):
    ids, _ = link(labels, max_distance_z=max_distance_z)
    for plane, found in zip(labels, ids, strict=True):
        for value in np.unique(plane):
            assert len(np.unique(found[plane == value])) == 1


@given(labels=any_slices, seed=st.integers(0, 1000), max_distance_z=reach)
def test_values_of_the_labels_mean_nothing(labels, seed, max_distance_z):
    ids, _ = link(labels, max_distance_z=max_distance_z)
    rng = np.random.default_rng(seed)
    renamed = np.zeros(labels.shape, np.uint64)
    for z, plane in enumerate(labels):
        table = rng.choice(2**40, int(plane.max()) + 1, replace=False).astype(np.uint64) + 2**62
        renamed[z] = np.where(plane > 0, table[plane], 0)
    again, _ = link(renamed, max_distance_z=max_distance_z)
    np.testing.assert_array_equal(again, ids)


@given(labels=any_slices, max_distance_z=reach)
def test_backwards_gives_the_same_objects(labels, max_distance_z):
    ids, forward = link(labels, max_distance_z=max_distance_z)
    back, backward = link(labels[::-1], max_distance_z=max_distance_z)
    assert same_partition(ids, back[::-1])
    assert (forward.n_links, forward.n_gaps_closed, forward.n_branches, forward.n_absorbed) == (
        backward.n_links, backward.n_gaps_closed, backward.n_branches, backward.n_absorbed,
    )  # fmt: skip


@given(labels=any_slices, slab_depth=st.integers(1, 10), max_distance_z=reach)
def test_slabs_change_nothing(labels, slab_depth, max_distance_z):
    ids, whole = link(labels, max_distance_z=max_distance_z)
    pieces, result = link(labels, slab_depth, max_distance_z=max_distance_z)
    np.testing.assert_array_equal(pieces, ids)
    np.testing.assert_array_equal(result.margin, whole.margin)


@given(labels=slices, max_distance_z=st.integers(2, 3), data=st.data())
def test_empty_slices_that_may_be_bridged_change_nothing(labels, max_distance_z, data):
    is_empty = ~labels.any(axis=(1, 2))
    labels = labels[~is_empty]
    ids, _ = link(labels, max_distance_z=max_distance_z)
    counts = data.draw(
        st.lists(
            st.integers(0, max_distance_z - 1), min_size=len(labels) + 1, max_size=len(labels) + 1
        )
    )
    # At the ends there may be any number.
    counts[0], counts[-1] = 5 * counts[0], 5 * counts[-1]
    at = np.repeat(np.arange(len(labels) + 1), counts)
    spread = np.insert(labels, at, 0, axis=0)
    again, _ = link(spread, max_distance_z=max_distance_z)
    np.testing.assert_array_equal(again[spread.any(axis=(1, 2))], ids)


@given(labels=slices, max_distance_z=reach)
def test_behind_a_long_empty_stretch_objects_are_new(labels, max_distance_z):
    ids, _ = link(labels, max_distance_z=max_distance_z)
    empty = np.zeros((max_distance_z, *labels.shape[1:]), labels.dtype)
    both, result = link(np.concatenate([labels, empty, labels]), max_distance_z=max_distance_z)
    top = int(ids.max(initial=0))
    n = len(labels)
    np.testing.assert_array_equal(both[:n], ids)
    np.testing.assert_array_equal(both[n + max_distance_z :], np.where(ids > 0, ids + top, 0))
    assert result.n_objects == 2 * top


@given(labels=slices, factor=st.floats(0.1, 10))
def test_unit_of_the_spacing_means_nothing(labels, factor):
    ids, _ = link(labels, spacing=(2.0, 1.0, 0.5), max_centroid_distance=3.0)
    scaled = tuple(factor * value for value in (2.0, 1.0, 0.5))
    again, _ = link(labels, spacing=scaled, max_centroid_distance=3.0 * factor)
    np.testing.assert_array_equal(again, ids)


def test_first_slices_empty_never_reuse_ids():
    """Where stitch3D gives the same id to two objects (it restarts before its first match)."""
    labels = discs((5, 20, 40), [(1, 9, 9, 5, 1), (4, 9, 30, 5, 1)])
    assert len(np.unique(linking.stitch3d(labels))) == 2
    ids, result = link(labels)
    assert result.n_objects == 2
    assert len(np.unique(ids)) == 3


def test_more_objects_than_uint16_holds():
    labels = np.zeros((5, 128, 128), np.uint16)
    labels.reshape(5, -1)[:] = np.arange(1, 128 * 128 + 1)
    ids, result = link(np.where(np.arange(5)[:, None, None] % 2, labels[:, ::-1], labels))
    assert ids.dtype == np.uint32
    assert result.n_objects == ids.max()
    far = np.zeros((5 * 3 - 2, 128, 128), np.uint16)
    far[::3] = labels
    ids, result = link(far)
    assert result.n_objects == 5 * 128 * 128
    assert len(np.unique(ids)) == 5 * 128 * 128 + 1


# --- Rules --------------------------------------------------------------------------------------


def column(z_values, y=20, x=20, radius=6, value=1):
    return [(z, y, x, radius, value) for z in z_values]


def n_objects(items, shape=(12, 40, 60), **options):
    return link(discs(shape, items), **options)[1].n_objects


def test_a_missing_slice_is_bridged():
    items = column([0, 1, 2, 4, 5, 6]) + column(range(7), x=45, value=2)
    assert n_objects(items) == 2
    assert n_objects(items, max_distance_z=1) == 3


def test_two_missing_slices_need_a_longer_reach():
    items = column([0, 1, 2, 5, 6, 7]) + column(range(8), x=45, value=2)
    assert n_objects(items) == 3
    assert n_objects(items, max_distance_z=3) == 2


def test_ends_that_taper_are_no_gap():
    radii = [3, 5, 6, 6, 5, 3]
    items = [(z, 20, 20, r, 1) for z, r in enumerate(radii)]
    items += [(z + 7, 20, 20, r, 1) for z, r in enumerate(radii[:5])]
    items += column(range(12), x=45, value=2)
    assert n_objects(items) == 3


def test_caps_belong_to_their_object():
    """IoU of a cap is small; stitch3D leaves it alone."""
    items = [(z, 20, 20, r, 1) for z, r in enumerate([2, 6, 8, 8, 6, 2])]
    assert n_objects(items) == 1
    assert len(np.unique(linking.stitch3d(discs((12, 40, 60), items)))) == 4


def test_a_waist_parts_objects_that_touch_along_z():
    items = [(z, 20, 20, r, 1) for z, r in enumerate([6, 8, 6, 2, 6, 8, 6])]
    assert n_objects(items) >= 2


def upon(shift, radii=(8, 8, 6, 8, 9, 9)):
    """An object that narrows, and upon it one that widens, so far to the side."""
    return [(z, 20, 20 + shift * (z > 2), r, 1) for z, r in enumerate(radii)]


def test_a_waist_beside_the_middle_parts_objects():
    assert n_objects(upon(4), (6, 40, 60)) == 2
    assert n_objects(upon(1), (6, 40, 60)) == 1  # beads on a string are one object
    assert n_objects(upon(4, (8, 8, 8, 8, 8, 8)), (6, 40, 60)) == 1  # tilted, never narrower


def test_what_a_waist_kept_apart_is_linked():
    """The end of one object and the beginning of the next lie on the second one's first slice."""
    items = [(0, 20, 20, 9, 1), (1, 20, 20, 7, 1), (2, 20, 27, 9, 1), (3, 20, 28, 10, 1)]
    items += [(1, 20, 32, 4, 2)]
    ids, result = link(discs((4, 40, 60), items))
    assert result.n_objects == 2
    assert ids[0, 20, 20] == ids[1, 20, 20] != ids[1, 20, 32] == ids[2, 20, 27]


def test_caps_in_the_last_slice_lie_wholly_inside():
    """What sticks out may be the first slice of another object: nobody sees how it goes on."""
    items = [(0, 20, 20, 9, 1), (1, 20, 20, 9, 1), (2, 20, 27, 4, 1)]
    assert n_objects(items, (3, 40, 60)) == 2
    assert n_objects([*items, (3, 5, 50, 4, 2)], (4, 40, 60)) == 2  # seen to end: one, and another
    items[2] = (2, 20, 23, 4, 1)
    assert n_objects(items, (3, 40, 60)) == 1


def test_two_objects_that_a_slice_takes_for_one_stay_two():
    items = column(range(9), x=20, radius=7, value=1) + column(range(9), x=35, radius=7, value=2)
    items = [(z, y, x, r, 1 if z == 4 else v) for z, y, x, r, v in items]
    ids, result = link(discs((9, 40, 60), items))
    assert result.n_objects == 2
    assert result.n_gaps_closed == 1
    assert ids[0, 20, 20] == ids[8, 20, 20] != ids[8, 20, 35] == ids[0, 20, 35]


def test_an_object_that_a_slice_cuts_in_pieces_stays_one():
    labels = discs((9, 40, 60), column(range(9), radius=9))
    labels[4, :, 20:][labels[4, :, 20:] > 0] = 2
    ids, result = link(labels)
    assert result.n_objects == 1
    assert result.n_absorbed == 1
    assert (ids[labels > 0] == 1).all()


def fork(direction=1):
    """A trunk of eight slices that splits into two branches of eight."""
    items = []
    for z in range(16):
        apart = max(0, z - 8) // 2
        items += [(z, 20, 26 - apart, 5, 1), (z, 20, 35 + apart, 4.2, 2 if z >= 8 else 1)]
    return discs((16, 40, 60), items)[::direction]


@pytest.mark.parametrize("direction", [1, -1])
def test_branches_join_their_trunk(direction):
    _, result = link(fork(direction))
    assert (result.n_objects, result.n_branches) == (1, 1)


def thick_fork(direction=1, n=2, aside=7):
    """A trunk of three thick slices; its branches lie half beside it and move on apart."""
    items = [(z, 20, 30 + side * 4, 5, 1) for z in range(3) for side in (-1, 1)]
    items += [
        (3 + z, 20, 30 + side * (aside + 3 * z), 5, 2 + side) for z in range(n) for side in (-1, 1)
    ]
    return discs((3 + n, 40, 60), items)[::direction]


@pytest.mark.parametrize("direction", [1, -1])
def test_branches_between_thick_slices_join_their_trunk(direction):
    """The stack ends before the branches are three slices long."""
    _, result = link(thick_fork(direction))
    assert (result.n_objects, result.n_branches) == (1, 1)


def test_branches_that_are_seen_to_end_are_none():
    labels = np.concatenate([thick_fork(), discs((1, 40, 60), [(0, 5, 5, 3, 1)])])
    assert link(labels)[1].n_branches == 0


def test_in_packed_tissue_equal_areas_say_nothing():
    """Where every voxel belongs to something, all outlines have the same area on both sides."""
    labels = thick_fork()
    labels[labels == 0] = 9
    assert link(labels)[1].n_branches == 0


def test_objects_that_touch_for_a_few_slices_do_not_branch():
    items = column(range(16), x=22, radius=6, value=1) + column(range(16), x=34, radius=6, value=2)
    items = [(z, y, x, r, 1 if z < 3 else v) for z, y, x, r, v in items]
    assert n_objects(items, (16, 40, 60)) == 2


def test_a_cross_is_two_objects():
    trunk = fork()[:8]
    ends = fork()[8:]
    _, result = link(np.concatenate([ends[::-1], trunk, ends]))
    assert result.n_branches == 0


def test_tilted_objects_are_followed():
    """Sections that move by more than half of themselves, always in the same direction."""
    items = [(z, 20, 8 + 6 * z, 7, 1) for z in range(7)]
    assert n_objects(items, (7, 40, 60)) == 1


def test_the_gate_is_in_units_of_the_spacing():
    items = [(z, 20, 15 + 4 * z, 9, 1) for z in range(4)]
    labels = discs((4, 40, 60), items)
    assert link(labels, spacing=(1, 0.5, 0.5), max_centroid_distance=2.1)[1].n_objects == 1
    assert link(labels, spacing=(1, 0.5, 0.5), max_centroid_distance=1.9)[1].n_objects == 4


def test_margin_tells_clear_links_from_doubtful_ones():
    clear = discs((3, 40, 60), column(range(3)))
    _, result = link(clear)
    assert result.margin[1] > 0.9
    doubtful = discs((2, 40, 60), column([0], radius=8))
    doubtful[1, 12:20, 15:26], doubtful[1, 20:29, 15:26] = 1, 2
    ids, result = link(doubtful)
    assert result.margin[ids[0, 20, 20]] < 0.3
    assert np.isnan(link(discs((1, 40, 60), column([0])))[1].margin[1])


def test_gaps_are_filled_where_asked_for():
    items = [(z, 20, 20, 6, 1) for z in (0, 1, 2, 4, 5, 6)] + column(
        range(7), x=45, radius=4, value=2
    )
    labels = discs((7, 40, 60), items)
    plain, result = link(labels)
    assert result.n_filled_voxels == 0
    filled, result = link(labels, fill_gaps=True)
    assert result.n_filled_voxels == (filled > 0).sum() - (labels > 0).sum()
    np.testing.assert_array_equal(filled[3] == filled[2, 20, 20], filled[2] == filled[2, 20, 20])
    np.testing.assert_array_equal(filled[labels > 0], plain[labels > 0])
    for depth in (1, 2, 5):
        np.testing.assert_array_equal(link(labels, depth, fill_gaps=True)[0], filled)


def test_whole_empty_slices_are_filled_too():
    labels = discs((5, 40, 60), column([0, 1, 3, 4]))
    filled, _ = link(labels, fill_gaps=True)
    np.testing.assert_array_equal(filled[2], filled[1])


# --- Scores -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def nuclei():
    from lamella.simulation.nuclei import NucleiOptions, draw_nuclei

    options = NucleiOptions(
        shape=(64, 128, 128), spacing_um=(0.5,) * 3, n_nuclei=90, touching_fraction=0.6
    )
    return draw_nuclei(options, seed=4).labels


def scores(reference, labels):
    ours = linking.average_precision(link(labels)[0], reference)
    theirs = linking.average_precision(linking.stitch3d(labels), reference)
    return ours, theirs


@pytest.mark.parametrize("step", [1, 2, 4, 8])
def test_nuclei_at_any_anisotropy(nuclei, step):
    reference = nuclei[step // 2 :: step]
    ours, theirs = scores(reference, as_slices(reference, seed=step))
    assert ours >= theirs + 0.1


@pytest.mark.parametrize("step", [1, 2, 4])
def test_nuclei_with_objects_missing(nuclei, step):
    reference = nuclei[step // 2 :: step]
    labels = as_slices(reference, seed=step)
    rng = np.random.default_rng(step)
    for plane in labels:
        plane[np.isin(plane, np.flatnonzero(rng.random(plane.max() + 1) < 0.1))] = 0
    ours, theirs = scores(reference, labels)
    assert ours >= theirs + 0.1


@pytest.mark.parametrize("step", [1, 2, 4])
def test_nuclei_with_slices_missing(nuclei, step):
    reference = nuclei[step // 2 :: step]
    labels = as_slices(reference, seed=step)
    labels[3::6] = 0
    ours, theirs = scores(reference, labels)
    assert ours >= theirs + 0.2


@pytest.mark.parametrize("step", [1, 2, 4, 8])
def test_tubes_that_branch_at_any_anisotropy(step):
    items = [
        (z, y, x + side * (4.5 + max(0, z - 24) * 0.35), 4.6 + side * 0.4, y * 40 + x)
        for z in range(2, 46) for y in (20, 60) for x in (20, 60) for side in (-1, 1)
    ]  # fmt: skip
    reference = discs((48, 80, 80), items)[::step]
    from lamella.instances import label_components

    ours, theirs = scores(reference, np.stack([label_components(p).labels for p in reference]))
    assert ours == 1
    assert theirs <= 0.5


@pytest.mark.parametrize("step", [2, 4, 8])
def test_ovule_with_slices_missing(data_dir, step):
    import h5py

    with h5py.File(data_dir / "fluorescence/plantseg/sample_ovule.h5") as file:
        volume = file["label"][...]
    found = []
    for start in range(0, step, max(1, step // 4)):
        reference = volume[start::step]
        labels = as_slices(reference, seed=start)
        labels[1:-1:5] = 0
        found.append(scores(reference, labels))
    ours, theirs = np.mean(found, axis=0)
    assert ours >= theirs + 0.05


@pytest.mark.parametrize("step", [1, 2, 4, 8])
def test_ovule_at_any_anisotropy(data_dir, step):
    import h5py

    with h5py.File(data_dir / "fluorescence/plantseg/sample_ovule.h5") as file:
        reference = file["label"][step // 2 :: step]
    ours, theirs = scores(reference, as_slices(reference, seed=step))
    assert ours >= theirs + 0.1


# --- Size and misuse ----------------------------------------------------------------------------


def test_memory_does_not_grow_with_depth():
    at = range(16, 256, 32)
    plane = discs((1, 256, 256), [(0, y, x, 9, y * 16 + x) for y in at for x in at])[0]

    def read(box):
        return np.repeat(plane[None, *box[1:]], box[0].stop - box[0].start, 0)

    def peak(depth):
        data = FunctionArray((depth, 256, 256), np.uint32, read)

        class Nowhere:
            def __setitem__(self, index, value):
                pass

        tracemalloc.start()
        link_slices(data, lambda dtype: Nowhere(), spacing=(1, 1, 1), slab_depth=8)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(8)
    assert peak(512) < peak(32) + 512 * 64 * 400


def test_cancel_stops():
    token = CancelToken()
    token.cancel()
    labels = discs((3, 40, 60), column(range(3)))
    with pytest.raises(RunCancelledError):
        link_slices(
            labels,
            lambda dtype: np.zeros(labels.shape, dtype),
            spacing=(1, 1, 1),
            sink=SilentSink(token),
        )


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int16, np.int64, np.uint64])
def test_any_integer_type(dtype):
    labels = discs((3, 40, 60), column(range(3))).astype(dtype)
    labels.flags.writeable = False
    assert link(labels)[1].n_objects == 1


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros((3, 4), np.uint8), "2 axes"),
        (np.zeros((3, 4, 5), np.float32), "expected integers"),
        (np.full((3, 4, 5), -1), "down to -1"),
    ],
)
def test_what_cannot_be_linked_is_said(labels, message):
    with pytest.raises(InputError, match=message):
        link(labels)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_overlap_ratio": 0}, "more than 0"),
        ({"min_overlap_ratio": 1.5}, "at most 1"),
        ({"max_distance_z": 0}, "1 or more"),
        ({"max_centroid_distance": -1.0}, "more than 0"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(InputError, match=message):
        LinkOptions(**options)


def test_spacing_must_be_three_values():
    with pytest.raises(InputError, match="three positive"):
        link(np.zeros((2, 3, 4), np.uint8), spacing=(1.0, 1.0))
