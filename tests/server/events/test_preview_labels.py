"""Preview labels as deltas: of the right box, of bounded size, and what is on disk."""

import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.core.progress import SilentSink
from lamella.io.label_store import create_labels
from lamella.server.events.coalesce import coalesce
from lamella.server.events.entry import entries_of
from lamella.server.events.labels import decode_labels, labels_delta
from lamella.volume import Volume
from lamella.volume.box import Box

SHAPE = (20, 30, 40)


def labels_of(dtype="uint16"):
    z, y, x = np.indices(SHAPE)
    return ((z * 37 + y * 5 + x) % 251).astype(dtype)


def store_in(folder, data, name="labels.ome.zarr", *, is_finished=False):
    like = Volume.from_array(np.zeros(data.shape, np.uint8), spacing=(2, 1, 1), unit="nm")
    store = create_labels(folder / name, like=like, dtype=data.dtype, pyramid=True)
    store.write(Box((0, 0, 0), data.shape), data)
    if is_finished:
        store.finish(SilentSink())
    return store


def event(start, stop, factors=(1.0, 1.0, 1.0), path="labels.ome.zarr", *, is_final=True):
    return {
        "type": "preview",
        "path": path,
        "factors": list(factors),
        "box_start": list(start),
        "box_stop": list(stop),
        "is_final": is_final,
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    store_in(folder, labels_of())
    store_in(folder, labels_of()[::2, ::2, ::2], "preview.ome.zarr")
    return folder


@given(
    st.tuples(*(st.tuples(st.integers(0, n - 1), st.integers(1, n)) for n in SHAPE)),
    st.integers(1, 3000),
)
def test_a_delta_is_every_so_many_labels_of_its_box(run, box, max_voxels):
    start = [min(a, b - 1) for a, b in box]
    stop = [max(a + 1, b) for a, b in box]
    delta = labels_delta(run, event(start, stop), max_voxels=max_voxels)
    assert delta is not None
    sent = decode_labels(delta)
    assert sent.size <= max_voxels
    assert sent.shape == tuple(
        -(-(b - a) // int(f)) for a, b, f in zip(start, stop, delta.factors, strict=True)
    )
    region = labels_of()[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))]
    # Every voxel sent is one of those that it stands for.
    index = np.indices(sent.shape)
    for axis, factor in enumerate(delta.factors):
        index[axis] = np.minimum(
            index[axis] * int(factor) + min(int(factor), region.shape[axis]) // 2,
            region.shape[axis] - 1,
        )
    if all(f == 1 for f in delta.factors):
        assert np.array_equal(sent, region)
    else:
        assert set(np.unique(sent)) <= set(np.unique(region))


def paint(canvas, told, delta):
    """Put what a preview sends where it says, every label onto the voxels that it stands for."""
    start, stop = told["box_start"], told["box_stop"]
    picks = [
        np.minimum(((np.arange(a, b) + 0.5 - a) / f).astype(int), n - 1)
        for a, b, f, n in zip(start, stop, delta.factors, delta.shape, strict=True)
    ]
    labels = decode_labels(delta)[np.ix_(*picks)]
    canvas[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))] = labels


CUTS = st.lists(st.integers(1, SHAPE[0] - 1), max_size=5, unique=True).map(sorted)


@given(CUTS, CUTS, st.integers(0, 200), st.randoms(use_true_random=False))
def test_all_deltas_together_are_the_labels(run, cuts, again, n_known, order):
    """A coarse pass, then boxes that cover the volume in any order, some of them twice."""
    boxes = [(a, b) for a, b in zip([0, *cuts], [*cuts, SHAPE[0]], strict=True)]
    boxes += [(a, b) for a, b in pairwise([0, *again, SHAPE[0]])][: len(again)]
    order.shuffle(boxes)
    told = [
        event((0, 0, 0), SHAPE, (2.0, 2.0, 2.0), "preview.ome.zarr", is_final=False),
        *(event((a, 0, 0), (b, *SHAPE[1:])) for a, b in boxes),
    ]
    whole, part = (np.full(SHAPE, 999, np.uint16) for _ in range(2))
    lines = [(number, json.dumps(one)) for number, one in enumerate(told, 1)]
    entries = entries_of(lines)
    cut = min(n_known, len(entries))
    for canvas, heard in (
        (whole, entries),
        # One who was behind, went away in the middle, and came again.
        (part, [*coalesce(entries[:cut]), *coalesce(entries[cut:])]),
    ):
        for entry in heard:
            delta = labels_delta(run, entry.document)
            assert delta is not None
            paint(canvas, entry.document, delta)
    assert np.array_equal(whole, labels_of())
    assert np.array_equal(part, whole)


def test_finished_labels_are_read_from_their_coarser_level(tmp_path):
    data = np.zeros((64, 600, 600), np.uint32)
    data[:, 100:500, 100:500] = 70_000
    store_in(tmp_path, data, is_finished=True)
    delta = labels_delta(tmp_path, event((0, 0, 0), data.shape), max_voxels=50_000)
    assert delta is not None
    sent = decode_labels(delta)
    assert sent.size <= 50_000
    assert delta.dtype == "uint32"
    assert set(np.unique(sent)) == {0, 70_000}
    share = float((sent > 0).mean())
    assert share == pytest.approx((400 / 600) ** 2, abs=0.05)


def test_a_coarse_preview_keeps_its_factors(tmp_path):
    coarse = labels_of("uint8")[::2, ::2, ::2]
    store_in(tmp_path, coarse, "preview.ome.zarr")
    told = event((0, 0, 0), SHAPE, (2.0, 2.0, 2.0), "preview.ome.zarr", is_final=False)
    delta = labels_delta(tmp_path, told)
    assert delta is not None
    assert delta.factors == (2.0, 2.0, 2.0)
    assert np.array_equal(decode_labels(delta), coarse)


@pytest.mark.parametrize(
    "told",
    [
        event((0, 0, 0), SHAPE, path="gone.ome.zarr"),
        event((0, 0, 0), SHAPE, path="../labels.ome.zarr"),
        event((0, 0, 0), SHAPE, path="/etc"),
        event((5, 5, 5), (5, 6, 6)),
        event((0, 0), (4, 4), (1.0, 1.0)),
    ],
)
def test_labels_that_are_not_there_are_not_sent(run, told):
    assert labels_delta(run, told) is None


def test_the_narrowest_type_is_sent(tmp_path):
    store_in(tmp_path, np.full((4, 5, 6), 200, np.uint64))
    delta = labels_delta(tmp_path, event((0, 0, 0), (4, 5, 6)))
    assert delta is not None
    assert delta.dtype == "uint8"
