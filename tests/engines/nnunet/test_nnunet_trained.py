"""A model that nnU-Net itself trained: whole runs beside ``nnUNetv2_predict``, file to file."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lamella.core.errors import RunCancelledError
from lamella.core.places import Places
from lamella.io.format import open_labels
from lamella.testing.engine import RecordingSink
from lamella.wire.request import InputDoc, SegmentRequest
from lamella.workflows.segment import RunOptions, segment

pytest.importorskip("nnunetv2")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def image(trained):
    return trained.parents[2] / "raw" / "Dataset901_Balls" / "imagesTr" / "case3_0000.nii.gz"


@pytest.fixture(scope="module")
def reference(trained, image, tmp_path_factory):
    """What the command ``nnUNetv2_predict`` writes."""
    base = trained.parents[2]
    out = tmp_path_factory.mktemp("predicted")
    (base / "one").mkdir()
    (base / "one" / image.name).symlink_to(image)
    command = [Path(sys.executable).with_name("nnUNetv2_predict"), "-i", base / "one", "-o", out]
    command += ["-d", "901", "-c", "3d_fullres", "-f", "0", "--disable_tta", "-device", "cpu"]
    names = ("raw", "preprocessed", "results")
    done = subprocess.run(
        [*map(str, command), "-npp", "1", "-nps", "1", "--disable_progress_bar"],
        env={**os.environ, **{f"nnUNet_{name}": str(base / name) for name in names}},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return open_labels(out / "case3.nii.gz").load()


def request_of(image, model="nnunet:901"):
    return SegmentRequest(input=InputDoc(path=str(image)), model=model)


def options_of(trained, run_dir, **more):
    places = Places(nnunet_results=trained.parents[1])
    return RunOptions(run_dir=run_dir, places=places, **more)


def test_the_command_and_the_run_give_the_same_labels(trained, image, reference, tmp_path):
    sink = RecordingSink()
    options = options_of(trained, tmp_path / "run", export=tmp_path / "own.nii.gz")
    run = segment(request_of(image), options, sink=sink)
    found = open_labels(tmp_path / "own.nii.gz")
    assert len(np.unique(reference)) > 1, "the model learned nothing: the test proves nothing"
    assert np.mean(found.load() == reference) >= 0.999
    assert found.spacing.values == open_labels(run.folder / "labels.ome.zarr").spacing.values
    events = [json.loads(line) for line in (run.folder / "events.jsonl").read_text().splitlines()]
    kinds = [event["kind"] if "kind" in event else event["type"] for event in events]
    assert "preview" in kinds
    tiles = [event for event in events if event.get("stage") == "tiles"]
    assert tiles[-1]["done"] == tiles[-1]["total"] > 4
    assert all(event["eta_s"] is not None for event in tiles)
    assert run.manifest.model.sha256
    assert run.manifest.tiles_done == run.manifest.tiles_planned


def test_a_run_is_cancelled_and_goes_on_inside_the_tile_loop(trained, image, reference, tmp_path):
    class StopAtTile(RecordingSink):
        def check(self):
            done = [e for e in self.events if getattr(e, "stage", "") == "tiles"]
            if done:
                raise RunCancelledError("cancelled by the test")

    options = options_of(trained, tmp_path / "run")
    with pytest.raises(RunCancelledError):
        segment(request_of(image), options, sink=StopAtTile())
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["status"] != "finished"
    run = segment(request_of(image), options)
    assert run.manifest.status == "finished"
    assert np.mean(run.labels.load() == reference) >= 0.999
