"""Patches of crops in a chunk-aware order."""

import numpy as np
import pytest
from scipy import stats

from lamella.training.cellmap import source as module
from lamella.training.cellmap.source import CellmapSource
from lamella.training.chunk_order import PatchOrder
from lamella.training.configuration import CellmapConfig, ClassConfig, SplitConfig, TaskConfig
from lamella.wire.card import NormalisationDoc

SHAPE = (4, 6, 6)


@pytest.fixture
def source(root, write_pyramid):
    """Two crops; in one the class fills the half, in the other it is rare."""
    base = root / "jrc_test" / "jrc_test.zarr" / "recon-1" / "labels" / "groundtruth"
    mito = np.zeros((20, 20, 20), np.uint8)
    mito[:, :, 10:] = 1
    write_pyramid(base / "crop8" / "mito", [mito], spacing=(8.0,) * 3, origin=(64.0,) * 3)
    config = CellmapConfig(
        root=str(root), spacing=(8.0,) * 3, split=SplitConfig(validation_fraction=0.0)
    )
    task = TaskConfig(kind="multilabel", classes=(ClassConfig(name="mito"),))
    return CellmapSource(config, task, NormalisationDoc(kind="fixed"))


@pytest.fixture
def drawn(source, monkeypatch):
    """What is read for each patch: crop and corner."""
    found = []
    read = source.read

    def watched(place, box):
        found.append((place.key, *box.start))
        return read(place, box)

    monkeypatch.setattr(source, "read", watched)
    return found


def test_what_fits_into_memory_is_drawn_independently(source):
    assert not source.has_chunks
    sample = PatchOrder(0, 2).draw(source, 3, SHAPE)
    alone = source.draw(np.random.default_rng([0, 3]), SHAPE)
    np.testing.assert_array_equal(sample.image, alone.image)


def test_a_group_stays_in_one_crop_and_block(source, drawn, monkeypatch):
    monkeypatch.setattr(module, "_KEPT_BYTES", 0)
    assert source.has_chunks
    order = PatchOrder(0, batch=1, lanes=1, group=6)
    for n in range(120):
        order.draw(source, n, SHAPE)
    for first in range(0, 120, 6):
        group = drawn[first : first + 6]
        assert len({key for key, *_ in group}) == 1
        spread = np.ptp(np.array([start for _, *start in group]), axis=0)
        # A block (with what its neighbour left over), and the jitter around a voxel.
        assert (spread <= 2 * np.array(SHAPE) + np.array(SHAPE) // 2).all()


def test_near_or_alone_the_same_places_are_seen(source, drawn, monkeypatch):
    monkeypatch.setattr(module, "_KEPT_BYTES", 0)
    order = PatchOrder(1, batch=1, lanes=1, group=2)
    for n in range(0, 3000, 2):
        order.draw(source, n, SHAPE)
    near = drawn.copy()
    drawn.clear()
    for n in range(1500):
        source.draw(np.random.default_rng([7, n]), SHAPE)
    keys = sorted({key for key, *_ in near + drawn})
    assert len(keys) == 2
    table = [
        [sum(key == k and x // 4 == b for key, *_, x in found) for k in keys for b in range(8)]
        for found in (near, drawn)
    ]
    table = np.array(table)[:, np.sum(table, axis=0) > 10]
    assert stats.chi2_contingency(table).pvalue > 1e-3
