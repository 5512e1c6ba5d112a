"""Confidence maps of own model folders: what they hold, and that labels do not notice them."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr
from numpy.testing import assert_array_equal

from lamella.core.errors import RunCancelledError
from lamella.engines.engine import CONFIDENCE_NAME, EngineJob
from lamella.engines.lamella.engine import LamellaEngine
from lamella.testing.engine import RecordingSink
from lamella.volume import Volume
from lamella.wire.card import CalibrationDoc, DecoderDoc
from lamella.wire.request import InputDoc, SegmentRequest

sys.path.insert(0, str(Path(__file__).parent))
from lamella_models import bright_weights, make_folder

sys.path.pop(0)

THREE = ("probability", "margin", "entropy")
KINDS = ("argmax", "threshold", "boundary_watershed", "distance_watershed")


def balls(shape=(20, 40, 44), seed=0):
    image = np.random.default_rng(seed).normal(0, 0.2, shape).astype(np.float32)
    points = np.stack(np.indices(shape), axis=-1)
    for center in (tuple(n // 4 for n in shape), tuple(3 * n // 4 for n in shape)):
        image[((points - center) ** 2).sum(-1) < 16] += 8
    return Volume.from_array(image)


def segment(volume, model, run_dir, *, resume=False, sink=None, **fields):
    run_dir.mkdir(parents=True, exist_ok=True)
    request = SegmentRequest(input=InputDoc(path="image"), model="bright", **fields)
    job = EngineJob(volume, request, model, run_dir, resume)
    return LamellaEngine().segment(job, sink or RecordingSink())


def maps_of(run_dir):
    return zarr.open_array(str(run_dir / CONFIDENCE_NAME), mode="r")[:]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {
        kind: make_folder(root / kind, weights=bright_weights(3), decoder=DecoderDoc(kind=kind))
        for kind in KINDS
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tta", [False, True])
def test_labels_are_bit_identical_with_and_without(models, tmp_path, kind, tta):
    plain = segment(balls(), models[kind], tmp_path / "plain", tta=tta)
    sure = segment(balls(), models[kind], tmp_path / "sure", tta=tta, confidence=True)
    assert_array_equal(plain.labels.load(), sure.labels.load())
    assert plain.confidence is None
    assert not (tmp_path / "plain" / CONFIDENCE_NAME).exists()
    assert sure.confidence.measures == (*THREE, "tta_spread")[: 4 if tta else 3]
    assert not sure.confidence.is_calibrated
    maps = maps_of(tmp_path / "sure")
    assert maps.dtype == np.uint8
    assert maps.shape == (4 if tta else 3, *plain.labels.spatial_shape)


def test_sure_inside_and_outside_but_not_at_the_rim(models, tmp_path):
    result = segment(balls(), models["argmax"], tmp_path, confidence=True)
    probability, margin, entropy = maps_of(tmp_path) / 255
    assert result.labels.load()[5, 10, 11] == 1
    assert margin[5, 10, 11] > 0.99
    assert entropy[5, 10, 11] < 0.05
    assert probability.min() >= 0.498, "the larger of two"
    np.testing.assert_allclose(margin, 2 * probability - 1, atol=1.6 / 255)
    assert margin.min() < 0.3


def test_a_calibration_makes_it_less_sure_and_changes_no_label(tmp_path):
    fields = {"calibration": CalibrationDoc(temperature=3.0, data="made up")}
    plain = make_folder(tmp_path / "plain")
    calibrated = make_folder(tmp_path / "calibrated", **fields)
    first = segment(balls(), plain, tmp_path / "a", confidence=True)
    second = segment(balls(), calibrated, tmp_path / "b", confidence=True)
    assert second.confidence.is_calibrated
    assert_array_equal(first.labels.load(), second.labels.load())
    assert (maps_of(tmp_path / "b")[1] <= maps_of(tmp_path / "a")[1] + 1).all()
    assert maps_of(tmp_path / "b")[1].mean() < maps_of(tmp_path / "a")[1].mean() - 5


def test_the_option_alone_leaves_what_it_always_did(models, tmp_path):
    options = {"confidence": True}
    old = segment(balls(), models["argmax"], tmp_path / "old", options=options)
    assert old.confidence is None
    segment(balls(), models["argmax"], tmp_path / "both", options=options, confidence=True)
    probability = zarr.open_array(str(tmp_path / "old" / "probabilities.zarr"), mode="r")[:]
    beside = zarr.open_array(str(tmp_path / "both" / "probabilities.zarr"), mode="r")[:]
    assert_array_equal(probability, beside)
    assert_array_equal(probability[0], maps_of(tmp_path / "both")[0])


def test_an_interrupted_run_ends_with_the_same_maps(models, tmp_path):
    volume = balls((64, 32, 32))
    whole = segment(volume, models["argmax"], tmp_path / "whole", confidence=True)
    folder = tmp_path / "parts"
    with pytest.raises(RunCancelledError):
        segment(
            volume,
            models["argmax"],
            folder,
            sink=RecordingSink(cancel_at=60),
            confidence=True,
        )
    again = segment(volume, models["argmax"], folder, resume=True, confidence=True)
    assert_array_equal(whole.labels.load(), again.labels.load())
    assert_array_equal(maps_of(tmp_path / "whole"), maps_of(folder))


def test_maps_that_are_gone_are_made_again(models, tmp_path):
    volume = balls((64, 32, 32))
    with pytest.raises(RunCancelledError):
        segment(
            volume,
            models["argmax"],
            tmp_path,
            sink=RecordingSink(cancel_at=60),
            confidence=True,
        )
    shutil.rmtree(tmp_path / CONFIDENCE_NAME)
    segment(volume, models["argmax"], tmp_path, resume=True, confidence=True)
    assert maps_of(tmp_path)[0].min() >= 127


def test_slices_of_a_2d_network(tmp_path):
    model = make_folder(tmp_path / "model", axes="yx", tile=(16, 24))
    volume = balls()
    segment(volume, model, tmp_path / "run", confidence=True, tta=True)
    assert maps_of(tmp_path / "run").shape == (4, *volume.shape)
    image = Volume.from_array(volume.load()[5], axes="yx")
    segment(image, model, tmp_path / "image", confidence=True)
    assert maps_of(tmp_path / "image").shape == (3, *image.shape)
