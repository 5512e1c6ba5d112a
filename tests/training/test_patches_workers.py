"""Worker processes of a training read zarr, and say what is wrong as if there were none."""

import numpy as np
import pytest
import zarr

from lamella.core.errors import UnreadableFileError
from lamella.training.chunk_order import PatchOrder
from lamella.training.configuration import ClassConfig, PairsConfig, SplitConfig, TaskConfig
from lamella.training.pairs.source import PairsSource
from lamella.training.patches import PatchDataset, PatchNumbers, make_loader
from lamella.training.task import build_task
from lamella.wire.card import NormalisationDoc


@pytest.fixture
def dataset(tmp_path):
    rng = np.random.default_rng(0)
    for kind, top in (("images", 255), ("labels", 2)):
        array = zarr.create_array(
            str(tmp_path / kind / "a.zarr"), shape=(64, 64, 64), chunks=(32,) * 3, dtype="u1"
        )
        array[...] = rng.integers(0, top, array.shape, np.uint8)
    task = TaskConfig(kind="semantic", classes=(ClassConfig(name="thing"),))
    config = PairsConfig(
        root=str(tmp_path),
        images="images/*.zarr",
        labels="labels/*.zarr",
        split=SplitConfig(validation_fraction=0.0),
    )
    source = PairsSource(config, task, NormalisationDoc(kind="none"), axes="zyx")
    return PatchDataset(source, build_task(task, "zyx"), PatchOrder(0, batch=2), (16,) * 3)


def test_workers_change_nothing(dataset):
    batches = {
        workers: list(make_loader(dataset, PatchNumbers(6), batch_size=2, workers=workers))
        for workers in (0, 1)
    }
    for alone, worked in zip(batches[0], batches[1], strict=True):
        assert alone["number"].tolist() == worked["number"].tolist()
        assert alone["image"].equal(worked["image"])
        assert alone["values"].equal(worked["values"])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_chunk_is_one_clear_error(dataset, tmp_path, workers):
    (tmp_path / "images" / "a.zarr" / "c" / "1" / "0" / "1").write_bytes(b"torn")
    with pytest.raises(UnreadableFileError) as caught:
        list(make_loader(dataset, PatchNumbers(20), batch_size=2, workers=workers))
    assert "chunk 1.0.1 of" in caught.value.message
    assert "Traceback" not in caught.value.message
    assert "download" in caught.value.hint
