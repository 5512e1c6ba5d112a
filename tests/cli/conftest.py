"""Small images and a small model for whole runs; no training, no PyTorch."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from lamella.volume import Volume

_SPEC = importlib.util.spec_from_file_location(
    "lamella_models", Path(__file__).parents[1] / "engines" / "lamella_models.py"
)
assert _SPEC is not None
assert _SPEC.loader is not None
lamella_models = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(lamella_models)


def balls(shape=(24, 48, 56), seed=0):
    """Noise with a large, a middle and a small bright ball, float32."""
    image = np.random.default_rng(seed).normal(0, 0.2, shape).astype(np.float32)
    points = np.stack(np.indices(shape), axis=-1)
    for share, radius in ((0.25, 5), (0.6, 4), (0.85, 2)):
        center = [share * n for n in shape]
        image[((points - center) ** 2).sum(-1) < radius**2] += 8
    return image


@pytest.fixture
def volume():
    return Volume.from_array(balls(), spacing=(4.0, 2.0, 2.0), unit="nm", origin=(10.0, 0.0, -5.0))


@pytest.fixture
def image_path(tmp_path, volume):
    from lamella.io.format import save_volume

    return save_volume(volume, tmp_path / "balls.mrc")


@pytest.fixture(scope="session")
def model_path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "bright"
    lamella_models.make_folder(folder)
    return folder
