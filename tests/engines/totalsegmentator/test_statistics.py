"""Volume and mean of every class: against a plain loop, whatever the labels are."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.engines.totalsegmentator import statistics
from lamella.engines.totalsegmentator.statistics import class_statistics, write_statistics

CLASSES = {1: "spleen", 2: "liver", 5: "heart"}


def plain(labels, image, value):
    mask = labels == value
    inside = np.zeros(labels.shape, dtype=bool)
    inside[3:-3, 3:-3, 3:-3] = True
    values = image[mask].astype(float)
    values = values[np.isfinite(values)]
    return int(mask.sum()), values, bool((mask & ~inside).any())


@given(
    seed=st.integers(0, 10_000),
    shape=st.tuples(st.integers(1, 14), st.integers(1, 9), st.integers(1, 9)),
    slab=st.integers(1, 400),
)
def test_equals_a_plain_loop_for_any_slab(seed, shape, slab):
    random = np.random.default_rng(seed)
    labels = random.choice(np.array([0, 0, 0, 1, 2, 5, 7], np.uint8), shape)
    image = random.normal(40, 300, shape).astype(np.float32)
    image.flat[:: 1 + seed % 7] = np.nan
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "_SLAB_BYTES", slab)
        found = class_statistics(labels, image, CLASSES, voxel_mm3=3.0)
    for value, name in CLASSES.items():
        n_voxels, values, is_cut = plain(labels, image, value)
        row = found[name]
        assert row["n_voxels"] == n_voxels
        assert row["volume"] == pytest.approx(3.0 * n_voxels)
        assert row["volume_ml"] == pytest.approx(0.003 * n_voxels)
        assert row["is_incomplete"] == is_cut
        if values.size:
            assert row["intensity"] == pytest.approx(values.mean(), rel=1e-5, abs=1e-3)
            assert row["intensity_std"] == pytest.approx(values.std(), rel=1e-4, abs=1e-2)
        else:
            assert row["intensity"] is None


def test_a_structure_at_the_border_is_measured_and_flagged_never_zero():
    labels = np.zeros((12, 12, 12), np.uint8)
    labels[:4, 5:7, 5:7] = 1
    labels[5:7, 5:7, 5:7] = 2
    found = class_statistics(labels, labels * 10, CLASSES, voxel_mm3=1.0)
    assert found["spleen"]["volume"] == 16.0
    assert found["spleen"]["is_incomplete"]
    assert not found["liver"]["is_incomplete"]


def test_what_was_not_found_has_no_intensity(tmp_path):
    labels = np.zeros((8, 8, 8), np.uint8)
    found = class_statistics(labels, labels, CLASSES, voxel_mm3=1.0)
    assert found["heart"]["volume"] == 0.0
    assert found["heart"]["intensity"] is None
    write_statistics(tmp_path / "statistics.json", found)
    assert json.loads((tmp_path / "statistics.json").read_text()) == found
