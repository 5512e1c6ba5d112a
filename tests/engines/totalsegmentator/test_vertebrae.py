"""``lamella detect vertebrae`` with the real package and hand-made weights, no network."""

from dataclasses import replace

import numpy as np
import pytest

import lamella as lm
from lamella.io.format import save_volume

LONG = "nnUNetTrainer_4000epochs_NoMirroring"


@pytest.fixture
def spine_places(places, handmade, tmp_path_factory):
    """Weights of the vertebrae's part, and of the coarse model that finds where to crop."""
    pytest.importorskip("dynamic_network_architectures")
    home = tmp_path_factory.mktemp("spine")
    folder = home / "nnunet" / "results"
    coarse = "Dataset298_TotalSegmentator_total_6mm_1559subj"
    handmade.make_dataset(folder, coarse, LONG, 117, {27: 500.0}, spacing=6.0)
    part = "Dataset292_TotalSegmentator_part2_vertebrae_1532subj"
    handmade.make_dataset(folder, part, "nnUNetTrainerNoMirroring", 26, {3: 500.0}, spacing=1.5)
    return replace(places, totalsegmentator_home=home)


@pytest.mark.slow
def test_a_ct_becomes_levels_with_confidence(spine_places, make_ct, tmp_path):
    """The hand-made vertebrae model calls L5 what is denser than 500 HU: two balls here."""
    path = save_volume(make_ct(), tmp_path / "ct.nii.gz")
    words = {"modality": "CT", "places": spine_places, "run_dir": tmp_path / "spine.run"}
    found = lm.detect_vertebrae(path, **words)
    (known,) = found.vertebrae
    assert known.level == "L5"
    labels = found.run.labels.load()
    index = np.argwhere(labels == known.value).mean(axis=0)
    assert np.allclose(known.centroid_voxel_zyx, index)
    s, a, r = lm.open(path).affine.apply(index)
    assert np.allclose(known.centroid_ras_mm, (r, a, s))
    assert known.confidence is not None
    assert 0 < known.confidence.measures["probability"] <= 1
    assert not known.confidence.is_calibrated
    assert "uncalibrated" in found.report.confidence_note
    assert found.report.labels.engine == "totalsegmentator"
    again = lm.detect_vertebrae(path, **words)
    assert again.run.was_finished
    assert again.vertebrae == found.vertebrae
