"""Cellpose 3's restoration in its own environment, with weights made on the spot."""

import subprocess

import numpy as np
import pytest

from lamella.core.errors import ModelError
from lamella.core.places import Places
from lamella.isolation.environment import is_ready, python_of
from lamella.restoration.decision import RestoreOptions
from lamella.restoration.restore import restore_volume
from lamella.volume import Volume

MAKE = """
import sys, torch
from cellpose.denoise import DenoiseModel
torch.manual_seed(0)
torch.save(DenoiseModel(gpu=False).net.state_dict(), sys.argv[1])
"""


@pytest.fixture(scope="module")
def places():
    found = Places.of_user()
    readiness = is_ready("cellpose3", found)
    if not readiness.is_ready:
        pytest.skip(readiness.reason)
    return found


@pytest.fixture(scope="module")
def weights(places, tmp_path_factory):
    """A restoration model of the real layout; its weights are random."""
    path = tmp_path_factory.mktemp("weights") / "denoise_random"
    python = python_of("cellpose3", places)
    subprocess.run([python, "-I", "-c", MAKE, path], check=True, capture_output=True, timeout=300)
    return path


def noisy_volume(shape=(2, 40, 48)):
    image = np.random.default_rng(0).normal(100, 20, shape) + 80 * np.eye(shape[1], shape[2])
    return Volume.from_array(image.astype(np.float32))


def options(path):
    return RestoreOptions(mode="denoise", method="cellpose3", model=str(path))


def test_slices_come_back_in_their_place(places, weights, tmp_path):
    volume = noisy_volume()
    found = restore_volume(volume, options(weights), scratch=tmp_path / "raw", places=places)
    assert found.volume.shape == volume.shape
    voxels = found.volume.load()
    assert np.isfinite(voxels).all()
    last = restore_volume(
        Volume.from_array(volume.load()[1:]), options(weights), scratch=tmp_path / "one",
        places=places,
    )  # fmt: skip
    # Each slice for itself, up to the range that became 0..1.
    assert np.corrcoef(last.volume.load().ravel(), voxels[1].ravel())[0, 1] > 0.9
    parameters = found.channels[0].parameters
    assert len(parameters["model_sha256"]) == 64


def test_a_file_that_is_no_model_is_refused(places, tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(ModelError, match="no restoration model"):
        restore_volume(noisy_volume(), options(path), scratch=tmp_path / "raw", places=places)
