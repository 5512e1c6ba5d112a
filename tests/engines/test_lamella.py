"""The engine for own model folders: the contract, and what a demanding user would try."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from lamella.core.errors import AxesError, InputError, ModelError, RunCancelledError
from lamella.engines.engine import EngineJob
from lamella.engines.lamella.engine import LamellaEngine
from lamella.engines.lamella.settings import resolve
from lamella.testing.engine import EngineContract, RecordingSink
from lamella.volume import Volume
from lamella.wire.card import DecoderDoc, NormalisationDoc
from lamella.wire.event import LogEvent, PreviewEvent
from lamella.wire.request import InputDoc, SegmentRequest, SpacingDoc

sys.path.insert(0, str(Path(__file__).parent))
from lamella_models import bright_weights, make_folder

sys.path.pop(0)


def request(**fields):
    return SegmentRequest(**{"input": InputDoc(path="image"), "model": "bright", **fields})


def segment(volume, model, run_dir, *, resume=False, sink=None, **fields):
    run_dir.mkdir(parents=True, exist_ok=True)
    job = EngineJob(volume, request(**fields), model, run_dir, resume)
    return LamellaEngine().segment(job, sink or RecordingSink())


def balls(shape=(20, 40, 44), seed=0, radius=4):
    """Noise with two bright balls, float32."""
    image = np.random.default_rng(seed).normal(0, 0.2, shape).astype(np.float32)
    points = np.stack(np.indices(shape), axis=-1)
    for center in (tuple(n // 4 for n in shape), tuple(3 * n // 4 for n in shape)):
        image[((points - center) ** 2).sum(-1) < radius**2] += 8
    return image


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model_2d(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("model"), axes="yx", tile=(16, 24))


def maps_weights():
    """Foreground where it is bright, a boundary where a column is dark: (2, 1, 3, 3)."""
    weights = np.zeros((2, 1, 3, 3))
    weights[0] = 1.0
    weights[1, 0, 1, 1] = -20.0
    return weights


class TestVolumes(EngineContract):
    engine_id = "lamella"

    @pytest.fixture(autouse=True)
    def _model(self, model):
        self.model = model

    def make_model(self):
        return self.model

    def make_request(self):
        return request()

    def make_empty_volume(self):
        volume = self.make_volume()
        noise = np.random.default_rng(0).normal(100, 5, volume.shape).astype(np.float32)
        return replace(volume, data=noise)


class TestImages(TestVolumes):
    axes = "yx"

    @pytest.fixture(autouse=True)
    def _model(self, model_2d):
        self.model = model_2d


class TestSlices(TestVolumes):
    @pytest.fixture(autouse=True)
    def _model(self, model_2d):
        self.model = model_2d


class TestInstances(TestVolumes):
    axes = "yx"

    @pytest.fixture(autouse=True)
    def _model(self, tmp_path_factory):
        self.model = make_folder(
            tmp_path_factory.mktemp("model"),
            axes="yx",
            tile=(16, 24),
            weights=maps_weights(),
            bias=(-9.0, -30.0),
            task="instance",
            decoder=DecoderDoc(kind="boundary_watershed"),
        )

    def test_objects_have_ids_of_their_own(self, tmp_path):
        result = self.run(tmp_path)
        labels = result.labels.load()
        assert result.labels.is_instance
        assert labels.dtype == np.uint32
        assert labels[12, 12] != labels[26, 34]

    def test_a_request_for_no_instances_gives_the_foreground(self, tmp_path):
        result = self.run(tmp_path, instances="none")
        assert not result.labels.is_instance
        assert set(np.unique(result.labels.load())) == {0, 1}

    def test_ids_are_unique_over_the_slices_of_a_volume(self, tmp_path):
        image = self.make_volume().load()
        volume = Volume.from_array(np.stack([image] * 3), spacing=(2, 1, 1), unit="nm")
        assert self.run(tmp_path / "linked later", volume=volume).is_per_slice
        result = self.run(tmp_path / "slices", volume=volume, instances="slices")
        labels = result.labels.load()
        ids = [set(np.unique(layer)) - {0} for layer in labels]
        assert all(ids)
        assert not ids[0] & ids[1]
        assert not ids[1] & ids[2]
        assert "instances_per_slice" in {note.code for note in result.warnings}


def test_a_killed_run_goes_on_and_ends_with_the_same_bits(model, tmp_path):
    image = balls((160, 48, 48))
    np.save(tmp_path / "image.npy", image)
    volume = Volume.from_array(np.load(tmp_path / "image.npy", mmap_mode="r"))
    expected = segment(volume, model, tmp_path / "whole").labels.load()
    script = f"""
import sys, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_lamella as t
import lamella.inference.openvino_runtime as runtime
submit = runtime.OpenVinoRuntime.submit
journal = t.Path({str(tmp_path / "killed" / "journal.jsonl")!r})
def slow(self, batch):
    n_lines = journal.read_bytes().count(b"\\n") if journal.exists() else 0
    # It stands where it is to be killed: however late that is, it is not over.
    time.sleep(0.01 if n_lines < 6 else 600)
    return submit(self, batch)
runtime.OpenVinoRuntime.submit = slow
from lamella.models.folder import ModelFolder
model = ModelFolder.open({str(model.path)!r})
volume = t.Volume.from_array(t.np.load({str(tmp_path / "image.npy")!r}, mmap_mode="r"))
t.segment(volume, model, t.Path({str(tmp_path / "killed")!r}), resume=True)
"""
    journal = tmp_path / "killed" / "journal.jsonl"
    n_lines = 0
    for kill_after in (2, 4):
        process = subprocess.Popen([sys.executable, "-c", script], cwd=Path(__file__).parent)
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            n_lines = journal.read_bytes().count(b"\n") if journal.exists() else 0
            if n_lines > kill_after:
                os.kill(process.pid, signal.SIGKILL)
            time.sleep(0.005)
        assert process.wait(10) == -signal.SIGKILL, "the run was over before it was killed"
    sink = RecordingSink()
    result = segment(volume, model, tmp_path / "killed", resume=True, sink=sink)
    assert_array_equal(result.labels.load(), expected)
    assert result.tiles_done == result.tiles_planned
    said = [event.message for event in sink.events if isinstance(event, LogEvent)]
    assert any("going on" in message for message in said)
    assert not [e for e in sink.events if isinstance(e, PreviewEvent) and not e.is_final]


def test_a_run_on_the_cpu_imports_nothing_heavy(model, tmp_path):
    np.save(tmp_path / "image.npy", balls())
    script = f"""
import sys
from pathlib import Path
import numpy as np
from lamella.engines.engine import EngineJob
from lamella.engines.registry import load_engine
from lamella.core.progress import SilentSink
from lamella.models.folder import ModelFolder
from lamella.volume import Volume
from lamella.wire.request import InputDoc, SegmentRequest
volume = Volume.from_array(np.load({str(tmp_path / "image.npy")!r}))
request = SegmentRequest(input=InputDoc(path="image"), model="bright")
model = ModelFolder.open({str(model.path)!r})
job = EngineJob(volume, request, model, Path({str(tmp_path)!r}))
load_engine("lamella").segment(job, SilentSink())
print(sorted({{"torch", "monai", "scipy", "pandas", "skimage"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_a_changed_request_starts_anew_and_says_why(model, tmp_path):
    volume = Volume.from_array(balls((64, 32, 32)))
    with pytest.raises(RunCancelledError):
        segment(volume, model, tmp_path, sink=RecordingSink(cancel_at=60))
    assert json.loads((tmp_path / "journal.jsonl").read_text().splitlines()[-1])["layers"] > 0
    sink = RecordingSink()
    result = segment(volume, model, tmp_path, resume=True, sink=sink, overlap_fraction=0.25)
    said = " ".join(e.message for e in sink.events if isinstance(e, LogEvent))
    assert "starting anew: options, plan changed" in said
    fresh = segment(volume, model, tmp_path / "fresh", overlap_fraction=0.25)
    assert_array_equal(result.labels.load(), fresh.labels.load())


def test_wide_volumes_run_in_columns_without_a_seam(model, tmp_path):
    volume = Volume.from_array(balls((20, 300, 280)))
    whole = segment(volume, model, tmp_path / "whole", preview=False)
    options = {"band_mb": 5}
    cut = segment(volume, model, tmp_path / "cut", options=options, preview=False)
    assert cut.options_resolved["columns"] > whole.options_resolved["columns"] == 1
    assert cut.tiles_planned > whole.tiles_planned
    assert_array_equal(cut.labels.load(), whole.labels.load())


def test_another_spacing_is_resampled_and_labels_lie_on_the_input(tmp_path):
    spacing = SpacingDoc(values=(2.0, 2.0, 2.0), unit="nm")
    model = make_folder(tmp_path / "model", spacing=spacing)
    shape = (24, 60, 64)
    image = balls(shape, radius=10)
    volume = Volume.from_array(image, spacing=(2.05, 1.0, 1.0), unit="nm")
    result = segment(volume, model, tmp_path / "run")
    assert result.options_resolved["network_shape"] == [24, 30, 32], "z is within tolerance"
    assert "resampled" in {note.code for note in result.warnings}
    labels = result.labels.load()
    assert labels.shape == shape
    assert result.labels.same_grid(volume)
    truth = image > 4
    dice = 2 * (truth & (labels > 0)).sum() / (truth.sum() + (labels > 0).sum())
    assert dice > 0.85, "balls of radius 10 through a 3³ mean at half the resolution"
    same = segment(replace(volume, unit="voxel"), model, tmp_path / "uncalibrated")
    assert "spacing_unknown" in {note.code for note in same.warnings}
    absurd = Volume.from_array(image, spacing=(2000.0, 1000.0, 1000.0), unit="nm")
    with pytest.raises(InputError, match="differ by a factor"):
        segment(absurd, model, tmp_path / "absurd")


def test_values_that_are_not_finite_are_refused_or_replaced(model, tmp_path):
    image = balls()
    image[0, 0, 0], image[5, 5, 5] = np.nan, np.inf
    volume = Volume.from_array(image)
    with pytest.raises(InputError, match=r"2 voxel\(s\)") as caught:
        segment(volume, model, tmp_path / "refused")
    assert "replace_not_finite" in caught.value.hint
    result = segment(volume, model, tmp_path / "replaced", options={"replace_not_finite": "true"})
    assert "not_finite_replaced" in {note.code for note in result.warnings}
    clean = segment(Volume.from_array(balls()), model, tmp_path / "clean")
    assert (result.labels.load() == clean.labels.load()).mean() > 0.999


@pytest.mark.parametrize("value", [0, 7])
def test_a_constant_volume_is_refused(model, tmp_path, value):
    volume = Volume.from_array(np.full((8, 8, 8), value, np.uint8))
    with pytest.raises(InputError, match=f"every voxel of the input is {value}"):
        segment(volume, model, tmp_path)
    assert not (tmp_path / "labels.ome.zarr").exists()


def test_one_slice_is_run_with_a_warning(model, tmp_path):
    volume = Volume.from_array(balls()[5:6])
    result = segment(volume, model, tmp_path)
    assert result.labels.shape == volume.shape
    assert "single_slice" in {note.code for note in result.warnings}


def test_a_volume_model_refuses_an_image(model, tmp_path):
    with pytest.raises(AxesError, match="segments volumes"):
        segment(Volume.from_array(np.eye(8)), model, tmp_path)


def test_several_time_points_are_refused(model, tmp_path):
    series = Volume.from_array(np.stack([balls()] * 2), axes="tzyx")
    with pytest.raises(AxesError, match="2 time points") as caught:
        segment(series, model, tmp_path)
    assert "--time" in caught.value.hint


def test_several_channels_are_used_together(tmp_path):
    weights = bright_weights(3, n_channels=2)
    model = make_folder(tmp_path / "model", weights=weights)
    one, other = balls(seed=1), balls(seed=2)
    volume = Volume.from_array(np.stack([one, other * 100 + 7]), axes="czyx")
    labels = segment(volume, model, tmp_path / "run").labels.load()
    assert labels.shape == one.shape
    assert labels[5, 10, 11] == 1
    assert labels[0, 0, 0] == 0


def test_mirrored_copies_of_a_symmetric_network_change_nothing(model, tmp_path):
    volume = Volume.from_array(balls())
    plain = segment(volume, model, tmp_path / "plain", preview=False)
    mirrored = segment(volume, model, tmp_path / "mirrored", preview=False, tta=True)
    assert (plain.labels.load() == mirrored.labels.load()).mean() > 0.9999
    assert mirrored.options_resolved["tta"]


@pytest.mark.parametrize("asked", [None, False, True])
@pytest.mark.parametrize("of_card", [False, True])
def test_a_card_asks_for_mirrored_copies_unless_the_request_says(tmp_path, asked, of_card):
    folder = make_folder(tmp_path / "model", tta=of_card)
    result = segment(Volume.from_array(balls()), folder, tmp_path / "run", preview=False, tta=asked)
    assert result.options_resolved["tta"] == (of_card if asked is None else asked)


def test_confidence_lies_beside_the_labels(model, tmp_path):
    import zarr

    volume = Volume.from_array(balls())
    segment(volume, model, tmp_path, options={"confidence": True})
    confidence = zarr.open_array(str(tmp_path / "probabilities.zarr"), mode="r")[0]
    assert confidence.shape == volume.shape
    assert confidence.min() >= 127, "the larger of two probabilities"


def test_maps_that_are_gone_are_not_taken_for_finished(model, tmp_path):
    import shutil

    import zarr

    volume = Volume.from_array(balls((64, 32, 32)))
    options = {"confidence": True}
    with pytest.raises(RunCancelledError):
        segment(volume, model, tmp_path, sink=RecordingSink(cancel_at=60), options=options)
    shutil.rmtree(tmp_path / "probabilities.zarr")
    segment(volume, model, tmp_path, resume=True, options=options)
    confidence = zarr.open_array(str(tmp_path / "probabilities.zarr"), mode="r")[0]
    assert confidence.min() >= 127


def test_crop_and_blending_agree_for_a_local_network(model, tmp_path):
    volume = Volume.from_array(balls())
    cropped = segment(volume, model, tmp_path / "crop", options={"blend": "crop"})
    untiled = segment(volume, model, tmp_path / "one", tile=(32, 48, 48))
    assert_array_equal(cropped.labels.load(), untiled.labels.load())


def test_thresholds_and_percentiles_come_from_the_card(tmp_path):
    weights = np.zeros((1, 1, 1, 1, 1))
    weights[...] = 10.0
    model = make_folder(
        tmp_path / "model",
        weights=weights,
        bias=(-5.0,),
        decoder=DecoderDoc(kind="threshold", parameters={"threshold": 0.9}),
        normalisation=NormalisationDoc(kind="percentile", low=0, high=100),
    )
    image = np.linspace(0, 1, 20 * 10 * 10, dtype=np.float32).reshape(20, 10, 10)
    labels = segment(Volume.from_array(image * 300 - 50), model, tmp_path / "run").labels.load()
    expected = 1 / (1 + np.exp(-(image * 10 - 5))) > 0.9
    assert (labels == expected).mean() > 0.999


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tile": (16, 16)}, "does not fit the model's axes"),
        ({"tile": (16, 16, 20)}, "must be a multiple of"),
        ({"options": {"blend": "cubic"}}, "blend"),
        ({"device": "cuda", "options": {"runtime": "openvino"}}, "OpenVINO runs on the CPU"),
    ],
)
def test_settings_that_cannot_be_are_refused(model, fields, message):
    card = model.card.model_copy(update={"divisor": (8, 8, 8)})
    with pytest.raises(InputError, match=message):
        resolve(request(**fields), card)


def test_a_tile_the_network_cannot_take_and_a_broken_graph_are_model_errors(model, tmp_path):
    broken = make_folder(tmp_path / "broken")
    broken.openvino_path.write_text("<net")
    with pytest.raises(ModelError, match="not a readable OpenVINO graph"):
        segment(Volume.from_array(balls()), broken, tmp_path / "run")
    card = model.card.model_copy(update={"n_channels": 2})
    volume = Volume.from_array(np.stack([balls()] * 2), axes="czyx")
    with pytest.raises(ModelError, match="cannot be run on tiles"):
        segment(volume, replace(model, card=card), tmp_path / "channels")
