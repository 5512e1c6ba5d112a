"""A CT of three bright balls, hand-made weights for it, and the package where it is installed."""

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lamella.core.places import Places
from lamella.engines.engine import EngineJob
from lamella.engines.registry import check_engine, find_engine, load_engine
from lamella.engines.totalsegmentator.models import find_model
from lamella.isolation.environment import STAMP_NAME, find_environment
from lamella.testing.engine import RecordingSink
from lamella.volume import Affine, Volume
from lamella.wire.request import InputDoc, SegmentRequest

_SPEC = importlib.util.spec_from_file_location(
    "totalsegmentator_handmade", Path(__file__).with_name("handmade.py")
)
assert _SPEC is not None
assert _SPEC.loader is not None
handmade = importlib.util.module_from_spec(_SPEC)
sys.modules[_SPEC.name] = handmade
_SPEC.loader.exec_module(handmade)

FAST = "Dataset297_TotalSegmentator_total_3mm_1559subj"
FASTEST = "Dataset298_TotalSegmentator_total_6mm_1559subj"
LONG = "nnUNetTrainer_4000epochs_NoMirroring"
PARTS = {
    "Dataset291_TotalSegmentator_part1_organs_1559subj": (24, {1: 150.0, 5: 400.0}),
    "Dataset292_TotalSegmentator_part2_vertebrae_1532subj": (26, {3: 500.0}),
    "Dataset293_TotalSegmentator_part3_cardiac_1559subj": (18, {1: 700.0}),
    "Dataset294_TotalSegmentator_part4_muscles_1559subj": (23, {}),
    "Dataset295_TotalSegmentator_part5_ribs_1559subj": (26, {}),
}
"""Classes of each part of total, and from which intensity the found ones are found: spleen, liver,
vertebrae_L5 (the third of its part) and heart."""


@pytest.fixture(scope="session")
def environments():
    """The folder of environments; without TotalSegmentator's the test is skipped."""
    known = Places.of_user().environments
    availability = check_engine(find_engine("totalsegmentator"))
    if not availability.is_available:
        pytest.skip(availability.reason)
    return known


@pytest.fixture(scope="session")
def results(tmp_path_factory):
    """Hand-made weights of every model of the task total, as the package keeps them."""
    pytest.importorskip("dynamic_network_architectures")
    folder = tmp_path_factory.mktemp("totalsegmentator") / "nnunet" / "results"
    bright = {1: 150.0, 5: 400.0}
    # Small tiles: a run of this model has several, and can be stopped between them.
    handmade.make_dataset(folder, FAST, LONG, 117, bright, patch=(8, 8, 8))
    handmade.make_dataset(folder, FASTEST, LONG, 117, bright, spacing=6.0)
    for name, (n, thresholds) in PARTS.items():
        handmade.make_dataset(folder, name, "nnUNetTrainerNoMirroring", n, thresholds, spacing=1.5)
    return folder


@pytest.fixture(scope="session")
def places(environments, results, tmp_path_factory):
    """Where the engine looks: a store without models, weights in the package's own home."""
    return Places(
        models=tmp_path_factory.mktemp("store"),
        environments=environments,
        totalsegmentator_home=results.parent.parent,
    )


def _make_ct(shape=(24, 40, 48), direction=None, spacing=(2.0, 1.0, 0.9), frame="RAS"):
    """Soft tissue with a ball of 250 HU, one of 600 and one of 900, air at one side; int16."""
    points = np.moveaxis(np.indices(shape), 0, -1)
    image = np.random.default_rng(3).normal(40, 5, shape)
    for center, radius2, value in (
        ((12, 12, 12), 36, 250),
        ((12, 26, 34), 50, 600),
        ((17, 30, 12), 30, 900),
    ):
        image[((points - np.array(center)) ** 2).sum(-1) < radius2] = value
    image[:, :3] = -1000
    axes = np.eye(3) if direction is None else np.asarray(direction, dtype=float)
    affine = Affine(spacing, (10.0, -20.0, 30.0), tuple(map(tuple, axes.tolist())), frame)
    volume = Volume.from_array(image.astype(np.int16), axes="zyx", unit="mm", name="ct")
    return replace(volume, affine=affine)


@pytest.fixture(name="make_ct")
def _make_ct_fixture():
    return _make_ct


@pytest.fixture(name="handmade")
def _handmade_fixture():
    return handmade


@pytest.fixture
def segment(places, tmp_path):
    """Run the engine on a volume; what it said is the result's companion."""

    def run(
        volume,
        reference="total",
        *,
        folder="run",
        sink=None,
        resume=False,
        trusted=False,
        where=None,
        **fields,
    ):
        at = where or places
        run_dir = tmp_path / folder
        run_dir.mkdir(exist_ok=True)
        fields = {"modality": "CT", "preview": False, **fields}
        request = SegmentRequest(
            input=InputDoc(path="ct"), model=f"totalsegmentator:{reference}", **fields
        )
        job = EngineJob(
            volume=volume,
            request=request,
            model=find_model(reference, at),
            run_dir=run_dir,
            resume=resume,
            places=at,
            is_trusted=trusted,
        )
        told = sink or RecordingSink()
        return load_engine("totalsegmentator", at).segment(job, told), told

    return run


@pytest.fixture
def described(tmp_path):
    """Places with an environment that looks ready and a short description of a package."""
    spec = find_environment("totalsegmentator")
    folder = tmp_path / "environments" / "totalsegmentator"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").touch()
    (folder / "lib/python3.11/site-packages/TotalSegmentator-9.0.dist-info").mkdir(parents=True)
    stamp = json.dumps({"lock_sha256": spec.sha256})
    (folder / STAMP_NAME).write_text(stamp)
    key = f"1 TotalSegmentator-9.0.dist-info {stamp}"
    document = {"key": key, "package": _package()}
    (folder.parent / "totalsegmentator.tasks.json").write_text(json.dumps(document))
    home = tmp_path / "home"
    home.mkdir()
    return Places(
        models=tmp_path / "models",
        environments=folder.parent,
        totalsegmentator_home=home,
    )


def _package():
    def stage(*datasets, spacing=1.5, step=0.5):
        return {
            "datasets": list(datasets),
            "spacing_xyz": [spacing] * 3,
            "trainer": "nnUNetTrainer",
            "model": "3d_fullres",
            "plans": "nnUNetPlans",
            "folds": [0],
            "step": step,
        }

    def task(modality, classes, modes, *, licensed=False):
        return {
            "modality": modality,
            "is_licensed": licensed,
            "classes": {str(k): name for k, name in enumerate(classes, 1)},
            "modes": modes,
        }

    crop = stage(13, spacing=6.0)
    total = {
        "default": {"plain": [stage(11, 12)], "roi_subset": [crop, stage(11, 12)]},
        "fast": {"plain": [stage(14, spacing=3.0)], "roi_subset": [crop, stage(14, spacing=3.0)]},
        "fastest": {"plain": [crop], "roi_subset": [crop, crop]},
    }
    return {
        "version": "9.0",
        "versions": {"TotalSegmentator": "9.0"},
        "arguments": ["fast", "fastest", "body_seg", "robust_crop", "force_split"],
        "tasks": {
            "total": task("CT", ["spleen", "liver", "heart"], total),
            "total_mr": task("MR", ["spleen"], {"default": {"plain": [stage(20)]}}),
            "vessels": task("CT", ["artery"], {"default": {"plain": [crop, stage(30)]}}),
            "face": task("CT", ["face"], {"default": {"plain": [stage(40)]}}, licensed=True),
        },
        "weights": {
            "11": {"folder": "Dataset011_TotalSegmentator_a", "release": "v1"},
            "12": {"folder": "Dataset012_TotalSegmentator_b", "release": "v1"},
            "13": {"folder": "Dataset013_TotalSegmentator_6mm", "release": "v1"},
            "14": {"folder": "Dataset014_TotalSegmentator_3mm", "release": "v1"},
            "20": {"folder": "Dataset020_TotalSegMRI", "release": "v2"},
            "30": {"folder": "Dataset030_vessels_3subj", "release": "v1"},
            "40": {"folder": "Dataset040_face_9subj", "release": None},
            "body_stats": {"folder": "xgb", "release": "v1"},
        },
        "parts": {"11": ["spleen", "liver"], "12": ["heart"]},
        "base_url": "https://example.org/releases",
    }
