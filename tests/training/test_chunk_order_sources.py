"""Data sources in a chunk-aware order: the same patches as ever, near each other."""

import itertools

import numpy as np
import pytest
import zarr
from scipy import stats

from lamella.training.chunk_order import PatchOrder
from lamella.training.configuration import ClassConfig, PairsConfig, SplitConfig, TaskConfig
from lamella.training.mixture import MixtureSource
from lamella.training.pairs import store
from lamella.training.pairs.source import PairsSource
from lamella.training.source import NearbySource
from lamella.wire.card import NormalisationDoc

SHAPE, CHUNK = (40, 48, 56), 8
PATCH = (8, 8, 8)


def write_image(folder, data):
    """OME-Zarr 0.5, one level."""
    group = zarr.create_group(str(folder))
    array = group.create_array("0", shape=data.shape, chunks=(CHUNK,) * 3, dtype=data.dtype)
    array[...] = data
    axes = [{"name": name, "type": "space"} for name in "zyx"]
    scale = {"type": "scale", "scale": [1.0] * 3}
    level = {"path": "0", "coordinateTransformations": [scale]}
    group.attrs["ome"] = {
        "version": "0.5",
        "multiscales": [{"axes": axes, "datasets": [level]}],
    }


@pytest.fixture
def config(tmp_path):
    """A volume whose voxels tell where they are, and a class in it."""
    where = np.arange(np.prod(SHAPE)).reshape(SHAPE).astype("u4")
    labels = np.zeros(SHAPE, "u1")
    labels[5:30, 10:40:3, 7:50] = 1
    write_image(tmp_path / "images" / "a.ome.zarr", where)
    write_image(tmp_path / "labels" / "a.ome.zarr", labels)
    return PairsConfig(
        root=str(tmp_path),
        images="images/*.ome.zarr",
        labels="labels/*.ome.zarr",
        split=SplitConfig(validation_fraction=0.0),
    )


def open_source(config, **changes):
    task = TaskConfig(kind="semantic", classes=(ClassConfig(name="thing"),))
    config = config.model_copy(update=changes)
    return PairsSource(config, task, NormalisationDoc(kind="none"), axes="zyx")


def start_of(sample):
    return np.unravel_index(int(sample.image[0, 0, 0, 0]), SHAPE)


def test_small_images_are_drawn_independently(config):
    source = open_source(config)
    assert isinstance(source, NearbySource)
    assert not source.has_chunks
    sample = PatchOrder(0, 2).draw(source, 5, PATCH)
    alone = source.draw(np.random.default_rng([0, 5]), PATCH)
    np.testing.assert_array_equal(sample.image, alone.image)


@pytest.mark.parametrize("fraction", [0.0, 1.0])
@pytest.mark.parametrize("is_mixed", [False, True])
def test_groups_of_large_images_share_a_block(config, monkeypatch, fraction, is_mixed):
    monkeypatch.setattr(store, "LARGE_BYTES", 1000)
    source = open_source(config, foreground_fraction=fraction)
    if is_mixed:
        source = MixtureSource([source, open_source(config, foreground_fraction=fraction)])
    assert source.has_chunks
    order = PatchOrder(0, batch=1, lanes=1, group=6)
    for group in range(20):
        samples = [order.draw(source, 6 * group + n, PATCH) for n in range(6)]
        starts = np.array([start_of(sample) for sample in samples])
        assert np.ptp(starts, axis=0).max() < 2 * CHUNK
        assert len(np.unique(starts, axis=0)) > 1
        if fraction:
            assert all(sample.labels.any() for sample in samples)


def test_near_or_alone_the_same_places_are_seen(config, monkeypatch):
    """Of one patch a group: how often each part of the volume is drawn."""
    monkeypatch.setattr(store, "LARGE_BYTES", 1000)
    source = open_source(config)
    order = PatchOrder(0, batch=1, lanes=1, group=2)
    near = [start_of(order.draw(source, n, PATCH)) for n in range(0, 4000, 2)]
    alone = [start_of(source.draw(np.random.default_rng([9, n]), PATCH)) for n in range(2000)]
    edges = [np.linspace(0, n - 7, 4) for n in SHAPE]
    table = [np.histogramdd(np.array(found), edges)[0].ravel() for found in (near, alone)]
    assert stats.chi2_contingency(np.array(table) + 0.5).pvalue > 1e-3


def test_patches_follow_from_seed_and_number_alone(config, monkeypatch):
    monkeypatch.setattr(store, "LARGE_BYTES", 1000)
    order = PatchOrder(3, batch=2, lanes=2, group=4)
    source = open_source(config)
    whole = [order.draw(source, n, PATCH) for n in range(40)]
    for start, step in itertools.product((0, 17), (1, 3)):
        fresh = open_source(config)
        for n in range(start, 40, step):
            sample = order.draw(fresh, n, PATCH)
            np.testing.assert_array_equal(sample.image, whole[n].image)
            np.testing.assert_array_equal(sample.labels, whole[n].labels)
