"""The shipped neurite model: small, no image of others in it, better than given superpixels."""

from pathlib import Path

import h5py
import numpy as np
import pytest

import lamella as lm
import lamella.models
from lamella.evaluation.contingency import count_overlaps
from lamella.evaluation.instance import variation_of_information
from lamella.models.folder import ModelFolder
from lamella.volume.volume import Volume

FOLDER = Path(lamella.models.__file__).parent / "starter" / "neurite-3d"


@pytest.fixture(scope="module")
def model():
    return ModelFolder.open(FOLDER)


def test_is_complete_and_at_most_five_megabytes(model):
    assert model.n_bytes <= 5_000_000
    assert model.has_graph, "it runs without PyTorch"
    assert not list(FOLDER.glob("example*")), "no crop of the images it was trained on is shipped"


def test_card_says_on_what_it_was_trained_and_judged(model):
    card = model.card
    assert card.training.data_licence == "BSD-3-Clause"
    assert card.calibration is not None
    scores = {metric.name: metric.value for metric in card.metrics}
    assert scores["VOI split"] + scores["VOI merge"] < 0.6
    assert "too good" in card.training.notes, "both halves are of one specimen"


def test_half_that_it_did_not_learn_from_against_superpixels(data_dir, tmp_path):
    def read(name: str) -> np.ndarray:
        with h5py.File(data_dir / "em" / "gala" / name) as file:
            return file["stack"][:, :, 100:]

    volume = Volume.from_array(read("train-image.h5"))
    run = lm.segment(volume, model="neurite-3d", run_dir=tmp_path / "run")
    reference = read("train-gt.lzf.h5").astype(np.uint32)

    def voi(labels: np.ndarray) -> float:
        found = variation_of_information(count_overlaps(labels.astype(np.uint32), reference))
        return found.split + found.merge

    ours, superpixels = voi(np.asarray(run.labels.data[:])), voi(read("train-ws.lzf.h5"))
    assert superpixels == pytest.approx(1.907, abs=0.01)
    assert ours < 1.0
