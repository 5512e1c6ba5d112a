"""The engine through the real package, with hand-made weights and no network.

Needs the environment of TotalSegmentator (LAMELLA_ENVIRONMENTS). Every run starts its interpreter,
which takes seconds: runs are few, and each answers several questions.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr
from numpy.testing import assert_array_equal

from lamella.core.errors import EngineError, ModelError
from lamella.engines.engine import CONFIDENCE_NAME, LABELS_NAME, PREVIEW_NAME
from lamella.engines.totalsegmentator.listing import list_models
from lamella.engines.totalsegmentator.models import find_model
from lamella.engines.totalsegmentator.package import describe_package
from lamella.io.format import open_labels, save_volume
from lamella.isolation.environment import environment_path, interpreter
from lamella.testing.engine import RecordingSink
from lamella.testing.isolated import IsolatedEngineContract
from lamella.wire.event import LogEvent, PreviewEvent, ProgressEvent
from lamella.wire.request import InputDoc, SegmentRequest

SPLEEN, LIVER, L5, HEART = 1, 5, 27, 51
OBLIQUE = [[0.64, -0.48, 0.6], [0.6, 0.8, 0.0], [-0.48, 0.36, 0.8]]
TURNED = [[1, 0, 0], [0, 0, 1], [0, -1, 0]]


class TestContract(IsolatedEngineContract):
    """What every engine in a process of its own promises."""

    engine_id = "totalsegmentator"
    worker = "lamella.engines.totalsegmentator.engine:WORKER"

    @pytest.fixture(autouse=True)
    def _setting(self, places, make_ct):
        self.places, self.make_ct = places, make_ct

    def make_request(self):
        return SegmentRequest(
            input=InputDoc(path="ct"), model="totalsegmentator:total:fast", modality="CT"
        )

    def make_model(self):
        return find_model("total:fast", self.places)

    def make_volume(self):
        return self.make_ct(direction=TURNED)

    def make_empty_volume(self):
        volume = self.make_volume()
        return replace(volume, data=np.minimum(volume.load(), 60))


def plain_package(places, image, out, options):
    """What the package gives without us: its own main function in its own interpreter."""
    program = (
        "import json, sys\n"
        "def main():\n"
        "    import totalsegmentator.python_api as api\n"
        "    api.send_usage_stats = lambda *_: None\n"
        "    api.totalsegmentator(sys.argv[1], sys.argv[2], ml=True, device='cpu', quiet=True,"
        " nr_thr_saving=1, **json.loads(sys.argv[3]))\n"
        "if __name__ == '__main__':\n"
        "    main()\n"
    )
    script = out.with_name("plain.py")
    script.write_text(program)
    home = out.with_name("home")
    home.mkdir()
    weights = places.totalsegmentator_home / "nnunet" / "results"
    python = interpreter(environment_path("totalsegmentator", places))
    subprocess.run(
        [str(python), str(script), str(image), str(out), json.dumps(options)],
        env={**os.environ, "TOTALSEG_HOME_DIR": str(home), "TOTALSEG_WEIGHTS_PATH": str(weights)},
        check=True,
        capture_output=True,
    )
    return open_labels(out).load()


def test_labels_are_the_packages_own_on_an_oblique_anisotropic_scan(
    places, segment, make_ct, tmp_path
):
    volume = make_ct(direction=OBLIQUE)
    image = save_volume(volume, tmp_path / "ct.nii.gz")
    expected = plain_package(places, image, tmp_path / "plain.nii.gz", {"fast": True})
    result, _ = segment(volume, "total:fast", confidence=True)
    labels = result.labels.load()
    assert_array_equal(labels, expected)
    assert {SPLEEN, LIVER} == set(np.unique(labels)) - {0}
    assert result.labels.same_grid(volume)


@pytest.fixture
def silent_proxy(monkeypatch):
    """A proxy that would see every request a library sends; it must see none."""
    seen = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def listen():
            while True:
                try:
                    connection, address = server.accept()
                except OSError:
                    return
                seen.append(address)
                connection.close()

        threading.Thread(target=listen, daemon=True).start()
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{server.getsockname()[1]}")
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        yield seen


def test_all_parts_of_a_task_with_preview_progress_confidence_and_statistics(
    places, segment, make_ct, tmp_path, silent_proxy
):
    volume = make_ct(direction=np.diag([1.0, -1.0, -1.0]))
    home_before = sorted(places.totalsegmentator_home.rglob("*"))
    result, told = segment(volume, "total", preview=True, confidence=True)
    labels = result.labels.load()
    # Each ball has the class of the part that knows it; later parts win, as in the package.
    assert [int(labels[at]) for at in ((12, 12, 12), (12, 26, 34), (17, 30, 12))] == [
        SPLEEN,
        L5,
        HEART,
    ]
    _check_progress(told, result)
    _check_preview(told, tmp_path / "run", labels)
    _check_confidence(tmp_path / "run", result, labels)
    _check_statistics(tmp_path / "run", volume, labels)
    used = result.options_resolved["weights_used"]
    assert [one["dataset"] for one in used] == [291, 292, 293, 294, 295]
    assert all(len(one["sha256"]) == 64 for one in used)
    assert not (tmp_path / "run" / "parts").exists()
    assert silent_proxy == []
    assert sorted(places.totalsegmentator_home.rglob("*")) == home_before


def _check_progress(told, result):
    steps = [e for e in told.events if isinstance(e, ProgressEvent) and e.stage == "tiles"]
    done = [step.done for step in steps]
    assert done == sorted(done)
    assert result.tiles_done == result.tiles_planned == steps[-1].done == steps[-1].total
    # The total over all five models is known from the first step on, here exactly.
    assert {step.total for step in steps} == {steps[-1].total}
    assert len(set(done)) > 10


def _check_preview(told, run_dir, labels):
    previews = [event for event in told.events if isinstance(event, PreviewEvent)]
    assert [event.is_final for event in previews] == [False, True]
    coarse = open_labels(run_dir / PREVIEW_NAME)
    factors = previews[0].factors
    assert factors == (3.0, 6.0, 7.0)
    assert coarse.affine.is_close(open_labels(run_dir / LABELS_NAME).affine.downsampled(factors))
    at = tuple(int(i // f) for i, f in zip((12, 12, 12), factors, strict=True))
    assert int(coarse.load()[at]) == int(labels[12, 12, 12])
    said = [event.message for event in told.events if isinstance(event, LogEvent)]
    assert any("own model for 6 mm" in message for message in said)
    assert any("tiles in 5 models" in message for message in said)


def _check_confidence(run_dir, result, labels):
    maps = zarr.open_array(str(run_dir / CONFIDENCE_NAME))[:]
    assert result.confidence.measures == ("probability", "margin", "entropy")
    assert not result.confidence.is_calibrated
    assert maps.shape == (3, *labels.shape)
    probability, margin, entropy = maps.astype(int)
    assert (margin <= probability + 1).all()
    # Sure in the middle of a ball and of the tissue, unsure where two classes meet.
    assert probability[12, 26, 34] > 240
    assert probability[4, 30, 40] > 240
    edge = (labels[:, :, 1:] != labels[:, :, :-1]) & (labels[:, :, 1:] > 0)
    assert margin[:, :, 1:][edge].mean() < margin.mean() - 30
    assert entropy[:, :, 1:][edge].mean() > entropy.mean()


def _check_statistics(run_dir, volume, labels):
    found = json.loads((run_dir / "statistics.json").read_text())
    assert len(found) == 117
    mask = labels == SPLEEN
    row = found["spleen"]
    assert row["volume"] == pytest.approx(mask.sum() * 1.8)
    assert row["intensity"] == pytest.approx(volume.load()[mask].mean(), abs=1e-4)
    assert found["stomach"]["intensity"] is None


class TestGoingOn:
    @pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the process in /proc")
    def test_killed_between_parts_it_goes_on_and_gives_the_same(
        self, places, segment, make_ct, tmp_path
    ):
        volume = make_ct()
        whole, _ = segment(volume, folder="whole")
        with pytest.raises(EngineError, match="SIGKILL") as caught:
            segment(volume, sink=KillAfterFirstPart())
        assert "go on" in caught.value.hint
        parts = sorted(path.parent.name for path in (tmp_path / "run").glob("parts/*/part.json"))
        assert 1 <= len(parts) < 5
        again, told = segment(volume, resume=True)
        assert_array_equal(again.labels.load(), whole.labels.load())
        assert again.tiles_done == whole.tiles_done
        said = [event.message for event in told.events if isinstance(event, LogEvent)]
        assert f"going on: {len(parts)} finished parts are here already" in said
        done = [message for message in said if "is done" in message]
        assert len(done) == 5 - len(parts)

    def test_roi_subset_runs_the_crop_and_two_of_five_parts(self, segment, make_ct):
        result, told = segment(make_ct(), options={"roi_subset": "spleen,heart"})
        assert set(np.unique(result.labels.load())) == {0, SPLEEN, HEART}
        done = [
            e.message for e in told.events if isinstance(e, LogEvent) and "is done" in e.message
        ]
        assert [message.split()[1] for message in done] == ["298", "291", "293"]


class KillAfterFirstPart(RecordingSink):
    """Kills the package's process, hard, as soon as it has finished a part."""

    def __init__(self):
        super().__init__()
        self.process = None

    def emit(self, event, /):
        super().emit(event)
        if self.process is None and isinstance(event, ProgressEvent):
            self.process = _worker_process()
        if isinstance(event, LogEvent) and "is done" in event.message:
            os.kill(self.process, signal.SIGKILL)


def _worker_process():
    """Process id of the worker this process started (Linux)."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            stat = (folder / "stat").read_text()
            is_child = int(stat.rpartition(")")[2].split()[1]) == os.getpid()
            if is_child and b"totalsegmentator/worker.py" in (folder / "cmdline").read_bytes():
                return int(folder.name)
    raise AssertionError("no worker is running")


class TestBadWeights:
    @pytest.fixture
    def spoilt(self, places, tmp_path):
        """A copy of the weights of 3 mm, and where to look for them."""
        home = tmp_path / "home"
        (home / "nnunet").mkdir(parents=True)
        results = home / "nnunet" / "results"
        for path in (places.totalsegmentator_home / "nnunet" / "results").glob("Dataset29[78]*"):
            shutil.copytree(path, results / path.name)
        checkpoint = next(results.glob("Dataset297*/*/fold_0/checkpoint_final.pth"))
        return replace(places, totalsegmentator_home=home), checkpoint

    def test_truncated_weights_are_named(self, segment, make_ct, spoilt):
        where, checkpoint = spoilt
        checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
        with pytest.raises(ModelError, match=r"checkpoint_final\.pth is damaged") as caught:
            segment(make_ct(), "total:fast", where=where)
        assert "pull or import" in caught.value.hint

    def test_pickled_code_is_not_run_unless_trusted(self, segment, make_ct, spoilt, handmade):
        import torch

        where, path = spoilt
        checkpoint = torch.load(path, weights_only=False)
        checkpoint["extra"] = Fuse()
        handmade.save_checkpoint(path, checkpoint)
        with pytest.raises(ModelError, match="more than tensors and plain values") as caught:
            segment(make_ct(), "total:fast", where=where)
        assert "--trust" in caught.value.hint
        result, _ = segment(make_ct(), "total:fast", where=where, folder="trusted", trusted=True)
        assert result.labels.load().any()

    def test_plans_of_another_network_are_told(self, segment, make_ct, spoilt):
        where, path = spoilt
        plans = path.parent.parent / "plans.json"
        plans.write_text(plans.read_text().replace('[2, 2], "conv_op"', '[4, 4], "conv_op"'))
        with pytest.raises(ModelError, match="can't be used by this version"):
            segment(make_ct(), "total:fast", where=where)


class Fuse:
    """Pickles as a call: what a checkpoint must not be able to do."""

    def __reduce__(self):
        return (os.getcwd, ())


def test_the_installed_version_describes_all_of_its_tasks(places):
    package = describe_package(places)
    assert {"total", "total_mr", "body", "vertebrae_mr", "teeth"} <= set(package.tasks)
    total = package.tasks["total"]
    assert (total.classes[1], len(total.classes)) == ("spleen", 117)
    assert total.stages("default")[-1].datasets == (291, 292, 293, 294, 295)
    assert [s.datasets for s in package.tasks["lung_vessels"].stages("default")] == [(297,), (117,)]
    licensed = {name for name, task in package.tasks.items() if task.is_licensed}
    assert {"heartchambers_highres", "tissue_types", "face"} <= licensed
    assert "total" not in licensed
    listed = {entry["id"]: entry for entry in list_models(places)}
    entry = listed["totalsegmentator:total"]
    assert entry["spacing_mm"] == [1.5, 1.5, 1.5]
    assert entry["modes"]["fast"]["datasets"][0]["is_here"]
    assert entry["modes"]["fast"]["datasets"][0]["url"].startswith("https://github.com/wasserth/")
    assert listed["totalsegmentator:face"]["modes"]["default"]["datasets"][0]["url"] is None
