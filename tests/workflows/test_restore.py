"""Runs that restore first: engines see the restored image, everything is measured on the raw."""

import json

import numpy as np
import pytest

import lamella as lm
from lamella.core.errors import InputError, MissingDependencyError, RunCancelledError
from lamella.core.progress import CancelToken
from lamella.io.format import save_volume
from lamella.volume.volume import Volume
from lamella.wire.event import LogEvent
from lamella.workflows.api import make_request
from lamella.workflows.segment import RunOptions, segment

DENOISE = {"mode": "denoise", "method": "non_local_means"}


class Listening:
    """Keeps what is said, and stops in a stage."""

    def __init__(self, stop_in=None):
        self.said, self.stages = [], []
        self.token, self._stop_in = CancelToken(), stop_in

    def emit(self, event):
        if isinstance(event, LogEvent):
            self.said.append(event.message)
        stage = getattr(event, "stage", None)
        if stage is not None and stage not in self.stages:
            self.stages.append(stage)
        if stage is not None and stage == self._stop_in:
            self.token.cancel()

    def check(self):
        self.token.check()


@pytest.fixture
def noisy_path(tmp_path):
    """Two bright squares under heavy noise, in two slices."""
    rng = np.random.default_rng(0)
    image = np.full((2, 64, 72), 300.0)
    image[:, 10:30, 10:30] += 60
    image[:, 35:58, 40:65] += 60
    image += rng.normal(0, 60, image.shape)
    volume = Volume.from_array(image.astype(np.float32), spacing=(2.0, 0.5, 0.5), unit="um")
    return save_volume(volume, tmp_path / "noisy.nrrd")


def run(path, folder, *, sink=None, restore=DENOISE, **options):
    request = make_request(path, "classical:otsu", {"restore": restore, **options})
    return segment(request, RunOptions(folder), sink=sink)


def test_segmented_on_restored_measured_on_raw(noisy_path, tmp_path):
    raw = lm.open(noisy_path)
    plain = run(noisy_path, tmp_path / "plain.run", restore=None)
    found = run(noisy_path, tmp_path / "restored.run")
    # Noise alone makes hundreds of objects; on the restored image there are the two.
    assert plain.manifest.labels.n_objects > 20
    assert found.manifest.labels.n_objects == 2
    restored = lm.open(tmp_path / "restored.run" / "restored.ome.zarr")
    assert restored.same_grid(raw)
    ids = lm.open(tmp_path / "restored.run" / "objects.ome.zarr").load()
    for row in found.objects.to_dict("records"):
        inside = ids == row["id"]
        of_raw, of_restored = raw.load()[inside], restored.load()[inside]
        assert row["intensity_mean"] == pytest.approx(of_raw.mean(dtype=np.float64), rel=1e-5)
        # The spread gives it away: the restored image has next to none.
        assert row["intensity_std"] == pytest.approx(of_raw.std(dtype=np.float64), rel=1e-4)
        assert of_restored.std() < 0.6 * of_raw.std()


def test_the_manifest_tells_all(noisy_path, tmp_path):
    from lamella.workflows.fingerprint import voxel_sha256

    sink = Listening()
    found = run(noisy_path, tmp_path / "a.run", sink=sink, restore={"mode": "auto"} | {
        "method": "non_local_means"
    })  # fmt: skip
    record = found.manifest.restoration
    assert record["mode"] == "auto"
    assert record["measured_on"] == "the image as it came"
    channel = record["channels"][0]
    assert (channel["action"], channel["method"]) == ("denoise", "non_local_means")
    assert "the image is noisy" in channel["why"]
    assert channel["parameters"]["stabiliser"]["variance"] > 0
    before, after = channel["quality_before"], channel["quality_after"]
    assert before["contrast_to_noise"] < after["contrast_to_noise"]
    restored = lm.open(tmp_path / "a.run" / record["path"])
    assert voxel_sha256(restored.data) == record["sha256"]
    assert any("denoised by non-local means" in text for text in sink.said)
    on_disk = json.loads((tmp_path / "a.run" / "manifest.json").read_text())
    assert on_disk["restoration"] == record


@pytest.mark.parametrize("stage", ["denoise", "finding", "components"])
def test_stopped_and_resumed_it_ends_with_the_same_bits(noisy_path, tmp_path, stage):
    whole = run(noisy_path, tmp_path / "whole.run")
    with pytest.raises(RunCancelledError):
        run(noisy_path, tmp_path / "a.run", sink=Listening(stage))
    assert not (tmp_path / "a.run" / ".restoration.partial").exists()
    sink = Listening()
    again = run(noisy_path, tmp_path / "a.run", sink=sink)
    assert again.manifest.labels.sha256 == whole.manifest.labels.sha256
    assert again.manifest.restoration["sha256"] == whole.manifest.restoration["sha256"]
    is_kept = "the restored image is on disk already" in sink.said
    assert is_kept == (stage != "denoise")
    assert ("denoise" in sink.stages) != is_kept


def test_a_restoration_that_was_changed_is_done_again(noisy_path, tmp_path):
    with pytest.raises(RunCancelledError):
        run(noisy_path, tmp_path / "a.run", sink=Listening("finding"))
    stored = tmp_path / "a.run" / "restored.ome.zarr"
    good = lm.open(stored)
    save_volume(
        Volume.from_array(good.load() + 1, spacing=good.spacing), stored,
        lm.SaveOptions(overwrite=True),
    )  # fmt: skip
    sink = Listening()
    run(noisy_path, tmp_path / "a.run", sink=sink)
    assert "denoise" in sink.stages


def test_a_clean_image_and_mode_none_leave_no_restored_volume(tmp_path):
    image = np.full((64, 64), 10.0, np.float32)
    image[20:40, 20:40] = 200
    image += np.random.default_rng(0).normal(0, 1, image.shape).astype(np.float32)
    path = save_volume(Volume.from_array(image), tmp_path / "clean.nrrd")
    for mode in ("auto", "none"):
        found = run(path, tmp_path / f"{mode}.run", restore={"mode": mode})
        assert found.manifest.restoration["is_changed"] is False
        assert not (found.folder / "restored.ome.zarr").exists()
    assert found.manifest.labels.n_objects == 1


def test_a_missing_engine_fails_before_anything_is_written(noisy_path, tmp_path, monkeypatch):
    monkeypatch.setenv("LAMELLA_ENVIRONMENTS", str(tmp_path / "none"))
    with pytest.raises(MissingDependencyError) as caught:
        run(noisy_path, tmp_path / "a.run", restore={"mode": "denoise", "method": "cellpose3"})
    assert "lamella engines install cellpose3" in caught.value.hint
    with pytest.raises(InputError, match="no meaning"):
        run(noisy_path, tmp_path / "a.run", restore={"mode": "deblur", "method": "blind_spot"})
    assert not (tmp_path / "a.run").exists()


def test_a_disk_that_is_too_small_is_refused_first(noisy_path, tmp_path, monkeypatch):
    import shutil
    from types import SimpleNamespace

    from lamella.core.errors import StorageError

    monkeypatch.setattr("lamella.workflows.segment.check_disk", lambda *_: None)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(StorageError, match="needs about"):
        run(noisy_path, tmp_path / "a.run")
    assert not (tmp_path / "a.run").exists()
