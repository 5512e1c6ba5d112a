"""Kill -9 of server and workers at random moments: no byte, event or voxel is lost or changed."""

import random

import pytest

from lamella.io import save_volume
from lamella.simulation.tomogram import simulate_tomogram
from lamella.testing.chaos import Chaos
from lamella.volume import Volume


@pytest.mark.slow
def test_every_job_ends_with_the_labels_of_a_quiet_run(tmp_path):
    simulated = simulate_tomogram((48, 64, 64), seed=3)
    volume = Volume.from_array(simulated.intensity, spacing=(1.0, 1.0, 1.0), unit="nm")
    image = save_volume(volume, tmp_path / "tomogram.mrc")
    seed = random.randrange(1 << 30)
    chaos = Chaos(tmp_path, image, "membrane-3d")
    rounds = chaos.run(3, seed, n_kills=3)
    assert len(rounds) == 4, f"again: python benchmarks/chaos.py --seed {seed}"
