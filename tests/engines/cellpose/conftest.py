"""Models of Cellpose made here: one trained on simulated nuclei, one small and random."""

import hashlib
import subprocess
from pathlib import Path

import numpy as np
import pytest

from lamella.core.places import Places
from lamella.isolation.environment import find_environment, is_ready, python_of
from lamella.simulation.nuclei import draw_nuclei
from lamella.simulation.nuclei_options import NucleiOptions

TRAINING = Path(__file__).with_name("training.py")


@pytest.fixture(scope="session")
def places():
    return Places.of_user()


def interpreter_or_skip(name, places):
    readiness = is_ready(name, places)
    if not readiness.is_ready:
        pytest.skip(readiness.reason)
    return python_of(name, places)


@pytest.fixture(scope="session")
def python3(places):
    """The interpreter of Cellpose 3; skips where its environment is not there."""
    return interpreter_or_skip("cellpose3", places)


@pytest.fixture(scope="session")
def python4(places):
    """The interpreter of Cellpose 4; skips where its environment is not there."""
    return interpreter_or_skip("cellpose4", places)


def nuclei(shape, n_nuclei, seed):
    return draw_nuclei(
        NucleiOptions(shape=shape, n_nuclei=n_nuclei, radius_um=4.5, photons=100), seed=seed
    )


@pytest.fixture(scope="session")
def trained(python3, tmp_path_factory, request):
    """A Cellpose 3 model trained on simulated nuclei (half a minute, once per machine)."""
    recipe = TRAINING.read_bytes() + find_environment("cellpose3").sha256.encode()
    kept = Path(request.config.cache.mkdir("cellpose3"))
    weights = kept / f"nuclei_{hashlib.sha256(recipe).hexdigest()[:12]}"
    if not weights.is_file():
        folder = tmp_path_factory.mktemp("training")
        drawn = [nuclei((128, 128), 22, seed) for seed in range(10)]
        np.save(folder / "images.npy", np.stack([one.image for one in drawn]))
        np.save(folder / "labels.npy", np.stack([one.labels for one in drawn]).astype(np.int32))
        arguments = [folder / "images.npy", folder / "labels.npy", folder / "weights"]
        subprocess.run(
            [python3, "-I", TRAINING, *arguments], check=True, capture_output=True, timeout=600
        )
        (folder / "weights").replace(weights)
    return weights


SMALL_SAM = """
import importlib, sys
import torch
from cellpose import vit

def build(checkpoint=None):
    module = importlib.import_module("segment_anything.build_sam")
    return module._build_sam(64, 2, 1, [1], checkpoint)

torch.manual_seed(0)
vit.sam_model_registry = {**vit.sam_model_registry, "vit_l": build}
net = vit.CPSAM()
torch.save(net.state_dict(), sys.argv[1])
"""


@pytest.fixture(scope="session")
def small_sam(python4, tmp_path_factory):
    """Weights of a Cellpose-SAM network of two thin blocks, at random."""
    path = tmp_path_factory.mktemp("sam") / "small"
    subprocess.run(
        [python4, "-I", "-c", SMALL_SAM, path], check=True, capture_output=True, timeout=300
    )
    return path
