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
        nn.configuration_of((12, 16, 16), (2.0, 1.4, 1.0), torch_resampling=True),
        {},
        {},
        {},
    ),
    "small": (nn.configuration_of((24, 48, 32), (2.0, 1.4, 1.0)), {}, {}, {}),
    "step": (FULL, {}, {}, {"options": {"step_size": 0.7}}),
    "slices": (nn.configuration_of((16, 24), (1.4, 1.0)), {"name": "2d"}, {}, {}),
}


@pytest.mark.parametrize("kind", MODELS)
def test_labels_are_those_of_nnunet_to_its_half_precision(tmp_path, kind):
    settings, model, image, request = MODELS[kind]
    model, request = dict(model), dict(request)
    folder = one(tmp_path, settings, model.pop("dataset", None), **model)
    spacing = image.get("spacing", SPACING)
    voxels = nn.image_of(**{k: v for k, v in image.items() if k != "spacing"})
    options = dict(request.pop("options", {}))
    # Converting a network for OpenVINO takes a second; three cases show that nothing changes.
    options["runtime"] = "openvino" if kind in ("plain", "slices", "regions") else "torch"
    result = ours(
        folder,
        volume_of(voxels, spacing),
        tmp_path / "run",
        preview=False,
        options=options,
        **request,
    )
    assert result.runtime == options["runtime"]
    found = result.labels.load()
    options = {"tile_step_size": options.get("step_size", 0.5)}
    judge = {"tta": request.get("tta", False), **options}
    exact = nn.theirs([folder], voxels, spacing, exact=True, **judge)
    assert len(np.unique(exact)) > 1, "the judge finds nothing: the case proves nothing"
    assert np.mean(found == exact) >= 0.9999
    # Random weights decide between nearly equal logits: a worst case for half precision.
    half = nn.theirs([folder], voxels, spacing, **judge)
    assert np.mean(found == half) >= np.mean(exact == half) - 0.0005
    assert np.mean(found == half) >= 0.99


class TestContract(EngineContract):
    engine_id = "nnunet"
    folder: Path

    @pytest.fixture(autouse=True)
    def _folder(self, thresholds):
        self.folder = thresholds

    def make_request(self):
        return SegmentRequest(
            input=InputDoc(path="memory:balls"),
            model="nnunet:x",
            options={"unit": "nm", "runtime": "torch", "threads": 1},
        )

    def make_model(self):
        return find_model(str(self.folder), Places())

    def make_empty_volume(self):
        volume = self.make_volume()
        noise = np.random.default_rng(0).uniform(-1, 1, volume.shape).astype(np.float32)
        return replace(volume, data=noise)


@pytest.fixture(scope="module")
def thresholds(tmp_path_factory):
    """A model that finds what is bright, its weights written by hand."""
    base = tmp_path_factory.mktemp("thresholds")
    return nn.threshold_model(base / "nnUNetTrainer__nnUNetPlans__3d_fullres")


# --- Several configurations ---------------------------------------------------------------------


def test_an_ensemble_averages_probabilities(tmp_path):
    base = tmp_path / "Dataset902_Random"
    flat = nn.configuration_of((16, 24), (1.4, 1.0))
    plans = nn.plans_of({"3d_fullres": FULL, "2d": flat}, transpose=(1, 0, 2))
    folders = [
        nn.write_model(base / f"nnUNetTrainer__nnUNetPlans__{name}", plans, REGIONS, seed=seed)
        for seed, name in enumerate(plans["configurations"])
    ]
    image = nn.image_of(margin=2)
    options = {"configuration": "3d_fullres+2d", "runtime": "torch", "band_mb": 1}
    found = ours(base, volume_of(image), tmp_path / "run", options=options, confidence=True)
    exact = nn.theirs(folders, image, SPACING, exact=True)
    assert len(np.unique(exact)) > 2
    assert np.mean(found.labels.load() == exact) >= 0.9995
    assert found.confidence.measures == ("probability", "margin", "entropy")


def test_a_cascade_runs_its_first_stage_and_takes_its_labels(tmp_path):
    base = tmp_path / "Dataset902_Random"
    low = nn.configuration_of((12, 16, 16), (2.5, 2.0, 2.0))
    high = nn.configuration_of((12, 16, 16), (2.0, 1.4, 1.0), previous_stage="3d_lowres")
    plans = nn.plans_of({"3d_lowres": low, "3d_cascade_fullres": high})
    for seed, name in enumerate(plans["configurations"]):
        folder = base / f"nnUNetTrainer__nnUNetPlans__{name}"
        nn.write_model(folder, plans, nn.dataset_of(), seed=seed)
    image = nn.image_of()
    sink = RecordingSink()
    options = {"runtime": "torch"}
    result = ours(base, volume_of(image), tmp_path / "run", options=options, sink=sink)
    first = nn.theirs([base / "nnUNetTrainer__nnUNetPlans__3d_lowres"], image, SPACING, exact=True)
    second = base / "nnUNetTrainer__nnUNetPlans__3d_cascade_fullres"
    exact = nn.theirs([second], image, SPACING, exact=True, previous=first)
    assert np.mean(result.labels.load() == exact) >= 0.9995
    alone = ours(base, volume_of(image), tmp_path / "low", options={"configuration": "3d_lowres"})
    assert np.mean(alone.labels.load() == first) >= 0.9999
    stages = {event.stage for event in sink.events if isinstance(event, ProgressEvent)}
    assert {"tiles of 3d_lowres", "tiles", "preview"} <= stages
    assert "3d_lowres (fold 0) -> 3d_cascade_fullres" in result.options_resolved["configuration"]
    assert not (tmp_path / "run" / ".nnunet.partial").exists()


def test_an_image_is_a_volume_of_one_slice(tmp_path):
    settings = nn.configuration_of((16, 24), (1.0, 1.0))
    plans = nn.plans_of({"2d": settings}, image_reader_writer="NaturalImage2DIO")
    folder = tmp_path / "nnUNetTrainer__nnUNetPlans__2d"
    nn.write_model(folder, plans, nn.dataset_of())
    image = nn.image_of((1, 50, 60))
    volume = Volume.from_array(image[0, 0], axes="yx", spacing=(4.0, 4.0), unit="nm")
    result = ours(folder, volume, tmp_path / "run")
    exact = nn.theirs([folder], image, (999, 1, 1), exact=True)
    assert np.mean(result.labels.load() == exact[0]) >= 0.9999
    assert result.options_resolved["unit"] == "voxel"


# --- Previews, progress, cancelling and going on ------------------------------------------------


@pytest.mark.parametrize("transpose", [(0, 1, 2), (2, 0, 1)])
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(tmp_path, transpose):
    settings = nn.configuration_of((16, 16, 16), (2.0, 1.4, 1.0))
    folder = one(tmp_path, settings, transpose=transpose, mirror=(2,))
    shape = (96, 20, 18) if transpose == (0, 1, 2) else (18, 20, 96)
    volume = volume_of(nn.image_of(shape, margin=1))
    more = {"confidence": True, "tta": True, "options": {"runtime": "torch", "threads": 1}}
    steps = RecordingSink()
    whole = ours(folder, volume, tmp_path / "whole", sink=steps, **more)
    run_dir, n_kept = tmp_path / "stopped", []
    for share in (0.7, 0.3):  # the second counts from where the first stopped
        sink = RecordingSink(cancel_at=int(steps.n_checks * share))
        with pytest.raises(RunCancelledError):
            ours(folder, volume, run_dir, sink=sink, resume=True, **more)
        n_kept.append(len((run_dir / "journal.jsonl").read_text().splitlines()))
    assert n_kept[1] >= n_kept[0] > 1, "nothing was kept"
    sink = RecordingSink()
    last = ours(folder, volume, run_dir, sink=sink, resume=True, **more)
    assert_array_equal(last.labels.load(), whole.labels.load())
    assert_array_equal(maps_of(run_dir), maps_of(tmp_path / "whole"))
    assert last.tiles_done == last.tiles_planned == whole.tiles_planned
    assert not [e for e in sink.events if isinstance(e, PreviewEvent) and not e.is_final]
    done = [e.done for e in sink.events if isinstance(e, ProgressEvent) and e.stage == "tiles"]
    assert done[-1] == last.tiles_planned


def test_a_stopped_cascade_keeps_its_first_stage(tmp_path):
    base = tmp_path / "Dataset902_Random"
    low = nn.configuration_of((12, 16, 16), (2.5, 2.0, 2.0))
    high = nn.configuration_of((12, 16, 16), (2.0, 1.4, 1.0), previous_stage="3d_lowres")
    plans = nn.plans_of({"3d_lowres": low, "3d_cascade_fullres": high})
    for name in plans["configurations"]:
        nn.write_model(base / f"nnUNetTrainer__nnUNetPlans__{name}", plans, nn.dataset_of())
    volume = volume_of(nn.image_of())
    more = {"options": {"runtime": "torch"}}
    whole = RecordingSink()
    expected = ours(base, volume, tmp_path / "whole", sink=whole, **more).labels.load()
    run_dir = tmp_path / "stopped"
    with pytest.raises(RunCancelledError):
        ours(base, volume, run_dir, sink=RecordingSink(cancel_at=whole.n_checks - 4), **more)
    sink = RecordingSink()
    result = ours(base, volume, run_dir, sink=sink, resume=True, **more)
    assert_array_equal(result.labels.load(), expected)
    stages = {event.stage for event in sink.events if isinstance(event, ProgressEvent)}
    assert "tiles of 3d_lowres" not in stages


def test_the_preview_shows_what_the_labels_will(tmp_path, thresholds):
    image = nn.image_of((40, 60, 64), margin=3)
    image[:, 14:24, 22:38, 24:40] = 900
    result = ours(thresholds, volume_of(image), tmp_path / "run")
    from lamella.io.format import open_volume

    preview = open_volume(tmp_path / "run" / "preview.ome.zarr")
    fine = result.labels.load()
    assert fine[20, 30, 30] == 1
    points = preview.affine.apply(np.argwhere(preview.load() > 0)).T
    points = np.asarray(points).reshape(-1, 3) if points.shape[-1] != 3 else points
    there = result.labels.affine.apply(np.argwhere(fine > 0)).T
    there = np.asarray(there).reshape(-1, 3) if there.shape[-1] != 3 else there
    assert np.abs(points.mean(axis=0) - there.mean(axis=0)).max() < 4


def test_confidence_is_sure_inside_and_unsure_at_the_border(tmp_path, thresholds):
    image = nn.image_of((24, 40, 40))
    image[:, 9:15, 15:25, 15:25] = 900
    result = ours(
        thresholds, volume_of(image), tmp_path / "run", confidence=True, tta=True, preview=False
    )
    assert result.confidence.measures == ("probability", "margin", "entropy", "tta_spread")
    assert not result.confidence.is_calibrated
    probability, margin, entropy, spread = maps_of(tmp_path / "run").astype(int)
    labels = result.labels.load()
    assert labels[12, 20, 20] == 1
    assert labels.shape == probability.shape
    assert (probability >= 127).all()  # of two classes, the chosen one has at least half
    assert_array_equal(np.abs(2 * probability - 255 - margin) <= 2, True)
    order = np.argsort(margin.ravel())
    assert (np.diff(entropy.ravel()[order]) <= 2).all(), "a larger margin is a smaller entropy"
    assert spread.max() <= 128


def test_other_steps_or_folds_start_anew_and_say_so(tmp_path):
    folder = one(tmp_path, FULL, folds=("0", "1"))
    volume = volume_of(nn.image_of())
    more = {"options": {"runtime": "torch", "folds": "0"}}
    steps = RecordingSink()
    ours(folder, volume, tmp_path / "whole", sink=steps, **more)
    with pytest.raises(RunCancelledError):
        ours(folder, volume, tmp_path / "run", sink=RecordingSink(cancel_at=steps.n_checks), **more)
    sink = RecordingSink()
    more["options"]["folds"] = "1"
    ours(folder, volume, tmp_path / "run", sink=sink, resume=True, **more)
    assert any("starting anew: model changed" in getattr(e, "message", "") for e in sink.events)


def maps_of(run_dir):
    import zarr

    return np.asarray(zarr.open_array(str(run_dir / "confidence.zarr"), mode="r")[...])
