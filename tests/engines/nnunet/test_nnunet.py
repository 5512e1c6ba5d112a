"""Labels of the engine are those of nnU-Net itself, for every kind of model it trains."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from lamella.core.errors import RunCancelledError
from lamella.core.places import Places
from lamella.engines.engine import EngineJob
from lamella.engines.nnunet.models import find_model
from lamella.engines.registry import load_engine
from lamella.testing.engine import EngineContract, RecordingSink
from lamella.volume import Volume
from lamella.wire.event import PreviewEvent, ProgressEvent
from lamella.wire.request import InputDoc, SegmentRequest

pytest.importorskip("nnunetv2")

_SPEC = importlib.util.spec_from_file_location("nn", Path(__file__).with_name("conftest.py"))
nn = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(nn)

SPACING = (2.0, 1.0, 1.2)


def volume_of(image, spacing=SPACING, unit="mm"):
    axes = "czyx" if len(image) > 1 else "zyx"
    return Volume.from_array(
        image if len(image) > 1 else image[0], axes=axes, spacing=spacing, unit=unit
    )


def ours(folder, volume, run_dir, *, sink=None, resume=False, is_trusted=False, **request):
    run_dir.mkdir(parents=True, exist_ok=True)
    job = EngineJob(
        volume=volume,
        request=SegmentRequest(input=InputDoc(path="memory:x"), model="nnunet:x", **request),
        model=find_model(str(folder), Places()),
        run_dir=run_dir,
        resume=resume,
        is_trusted=is_trusted,
    )
    return load_engine("nnunet").segment(job, sink or RecordingSink())


def one(tmp_path, settings, dataset=None, *, name="3d_fullres", transpose=(0, 1, 2), **more):
    """A model of one configuration."""
    folder = tmp_path / "Dataset902_Random" / f"nnUNetTrainer__nnUNetPlans__{name}"
    plans = nn.plans_of({name: settings}, transpose)
    return nn.write_model(folder, plans, dataset or nn.dataset_of(), **more)


FULL = nn.configuration_of((12, 16, 16), (2.0, 1.4, 1.0))
REGIONS = nn.dataset_of(
    {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "middle": 3, "ignore": 4},
    regions_class_order=[1, 2, 3],
)
MODELS = {
    "plain": (FULL, {}, {}, {}),
    "mirrored": (FULL, {}, {}, {"tta": True}),
    "folds": (FULL, {"folds": ("0", "2")}, {}, {}),
    "regions": (FULL, {"dataset": REGIONS}, {}, {}),
    "same grid": (nn.configuration_of((12, 16, 16), SPACING), {}, {}, {}),
    "separate z": (nn.configuration_of((8, 16, 16), (5.0, 1.3, 1.3)), {}, {}, {}),
    "far slices": (FULL, {}, {"spacing": (4.0, 1.0, 1.0)}, {}),
    "finer": (nn.configuration_of((16, 16, 16), (1.1, 0.9, 1.0)), {}, {}, {}),
    "transposed": (FULL, {"transpose": (2, 0, 1)}, {"spacing": (1.2, 1.0, 2.0)}, {}),
    "cropped": (FULL, {"transpose": (1, 0, 2)}, {"margin": 4}, {}),
    "masked": (
        nn.configuration_of((12, 16, 16), (2.0, 1.4, 1.0), masks=[True]),
        {},
        {"margin": 4},
        {},
    ),
    "ct": (
        nn.configuration_of((12, 16, 16), (2.0, 1.4, 1.0), schemes=["CTNormalization"]),
        {},
        {},
        {},
    ),
    "channels": (
        nn.configuration_of(
            (12, 16, 16),
            (2.0, 1.4, 1.0),
            schemes=["RescaleTo01Normalization", "NoNormalization", "ZScoreNormalization"],
        ),
        {"dataset": nn.dataset_of(channels=("a", "b", "c"))},
        {"channels": 3, "margin": 3},
        {},
    ),
    "torch": (
        nn.configuration_of((12, 16, 16), (2.0, 1.4, 1.0), torch_resampling=True), {}, {}, {}
    ),
    "small": (nn.configuration_of((24, 48, 32), (2.0, 1.4, 1.0)), {}, {}, {}),
    "step": (FULL, {}, {}, {"options": {"step_size": 0.7}}),
    "slices": (nn.configuration_of((16, 24), (1.4, 1.0)), {"name": "2d"}, {}, {}),
}


@pytest.mark.parametrize("kind", MODELS)
def test_labels_are_those_of_nnunet_to_its_half_precision(tmp_path, kind):
    settings, model, image, request = MODELS[kind]
    model = dict(model)
    folder = one(tmp_path, settings, model.pop("dataset", None), **model)
    spacing = image.get("spacing", SPACING)
    voxels = nn.image_of(**{k: v for k, v in image.items() if k != "spacing"})
    result = ours(folder, volume_of(voxels, spacing), tmp_path / "run", preview=False, **request)
    found = result.labels.load()
    options = {"tile_step_size": request.get("options", {}).get("step_size", 0.5)}
    judge = {"tta": request.get("tta", False), **options}
    exact = nn.theirs([folder], voxels, spacing, exact=True, **judge)
    assert len(np.unique(exact)) > 1, "the judge finds nothing: the case proves nothing"
    assert np.mean(found == exact) >= 0.9999
    # Random weights decide between nearly equal logits: a worst case for half precision.
    half = nn.theirs([folder], voxels, spacing, **judge)
    assert np.mean(found == half) >= np.mean(exact == half) - 0.0005
    assert np.mean(found == half) >= 0.99
