"""Confidence of a whole run: table, manifest, report, and the word "uncalibrated" everywhere."""

import csv
import json
import shutil

import numpy as np
import pytest
import zarr

from lamella.core.errors import EngineError, GeometryError, InputError, RunCancelledError
from lamella.core.progress import SilentSink
from lamella.engines.engine import LABELS_NAME, ConfidenceMaps, EngineResult
from lamella.io.label_store import create_labels
from lamella.testing.engine import RecordingSink
from lamella.volume import Box, Labels, Volume
from lamella.wire.request import InputDoc, SegmentRequest
from lamella.workflows import segment as workflow
from lamella.workflows.confidence import confidence_sentence
from lamella.workflows.segment import RunOptions, segment


def request(path, model, **fields):
    return SegmentRequest(input=InputDoc(path=str(path)), model=str(model), **fields)


def rows(run):
    with (run.folder / "objects.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_object_says_how_sure(image_path, model_path, tmp_path):
    run = segment(request(image_path, model_path, confidence=True), RunOptions(tmp_path / "run"))
    maps = zarr.open_array(str(run.folder / "confidence.zarr"), mode="r")[:]
    ids = run.object_labels.load()
    table = rows(run)
    assert len(table) == 3
    for row in table:
        own = ids == int(row["id"])
        for k, name in enumerate(("probability", "margin", "entropy")):
            assert float(row[f"confidence_{name}"]) == pytest.approx(maps[k][own].mean() / 255)
        assert row["confidence_calibrated"] == "0"
    found = run.manifest.confidence
    assert not found["is_calibrated"]
    assert "uncalibrated" in found["note"]
    foreground = ids > 0
    assert found["classes"]["bright"]["margin"] == pytest.approx(
        maps[1][foreground].mean() / 255, abs=1e-4
    )
    margins = [float(row["confidence_margin"]) for row in table]
    assert found["objects"]["margin"]["lowest"] == pytest.approx(min(margins), abs=1e-4)
    assert run.manifest.outputs["confidence"] == "confidence.zarr"


def test_a_run_without_says_nothing_of_it(image_path, model_path, tmp_path):
    plain = segment(request(image_path, model_path), RunOptions(tmp_path / "plain"))
    sure = segment(request(image_path, model_path, confidence=True), RunOptions(tmp_path / "sure"))
    assert plain.manifest.labels.sha256 == sure.manifest.labels.sha256
    assert plain.manifest.confidence is None
    assert not any(name.startswith("confidence") for name in rows(plain)[0])
    assert "onfidence" not in json.loads((plain.folder / "report.json").read_text())


def test_classes_as_objects_have_it_too(image_path, model_path, tmp_path):
    wanted = request(image_path, model_path, confidence=True, instances="none")
    run = segment(wanted, RunOptions(tmp_path / "run"))
    (row,) = rows(run)
    assert float(row["confidence_margin"]) == pytest.approx(
        run.manifest.confidence["classes"]["bright"]["margin"], abs=1e-4
    )


def test_an_engine_that_cannot_tell_says_so(image_path, tmp_path):
    run = segment(
        request(image_path, "classical:otsu", confidence=True), RunOptions(tmp_path / "run")
    )
    assert run.manifest.confidence is None
    assert "no_confidence" in [note.code for note in run.manifest.warnings]


def test_a_run_stopped_while_measuring_goes_on_with_its_maps(image_path, model_path, tmp_path):
    class StopsWhileMeasuring(RecordingSink):
        def emit(self, event, /):
            super().emit(event)
            if getattr(event, "stage", "") == "measure":
                raise RunCancelledError("stopped")

    wanted = request(image_path, model_path, confidence=True)
    with pytest.raises(RunCancelledError):
        segment(wanted, RunOptions(tmp_path / "run"), sink=StopsWhileMeasuring())
    run = segment(wanted, RunOptions(tmp_path / "run"))
    whole = segment(wanted, RunOptions(tmp_path / "whole"))
    assert run.manifest.confidence == whole.manifest.confidence


class Numbered:
    """An engine that gives three instances, maps of its own and a number for each instance."""

    def __init__(self, *, n_maps=2, keeps_maps=True):
        self.n_maps, self.keeps_maps = n_maps, keeps_maps

    def segment(self, job, sink):
        shape = job.volume.spatial_shape
        ids = np.zeros(shape, np.uint32)
        for number, size in ((3, 2), (5, 6), (9, 4)):
            ids[number, :size, :size] = number
        store = create_labels(
            job.run_dir / LABELS_NAME, like=job.volume, dtype=np.uint32, is_instance=True
        )
        store.write(Box((0, 0, 0), shape), ids)
        maps = np.stack([np.full(shape, 255, np.uint8), (ids * 20).astype(np.uint8)])
        array = zarr.create_array(
            str(job.run_dir / "confidence.zarr"), shape=maps.shape, dtype=np.uint8
        )
        array[:] = maps
        quality = np.full(8, np.nan)
        quality[[3, 5]] = 0.25, 0.75
        result = EngineResult(
            labels=store.finish(SilentSink()),
            tiles_done=1,
            tiles_planned=1,
            device="cpu",
            runtime="test",
            precision="exact",
            confidence=ConfidenceMaps(("sureness", "flow_error")[: self.n_maps], False),
            columns={"linking_margin": quality},
        )
        if not self.keeps_maps:
            shutil.rmtree(job.run_dir / "confidence.zarr")
        return result


@pytest.fixture
def volume16():
    return Volume.from_array(np.arange(16**3, dtype=np.float32).reshape(16, 16, 16))


def run_numbered(monkeypatch, volume, folder, engine, **fields):
    monkeypatch.setattr(workflow, "load_engine", lambda *_: engine)
    wanted = SegmentRequest(
        input=InputDoc(path="memory:x"), model="classical:otsu", confidence=True, **fields
    )
    return segment(wanted, RunOptions(folder), volume=volume)


def test_any_maps_and_columns_of_an_engine_reach_the_table(monkeypatch, volume16, tmp_path):
    run = run_numbered(monkeypatch, volume16, tmp_path / "run", Numbered())
    table = rows(run)
    assert [row["id"] for row in table] == ["3", "5", "9"]
    assert [float(row["confidence_flow_error"]) for row in table] == pytest.approx(
        [60 / 255, 100 / 255, 180 / 255]
    )
    assert [float(row["confidence_sureness"]) for row in table] == [1, 1, 1]
    assert [row["linking_margin"] for row in table] == ["0.25", "0.75", ""]
    assert list(table[0])[-1] == "linking_margin"


def test_columns_follow_objects_that_are_renumbered(monkeypatch, volume16, tmp_path):
    size = {"value": 10, "unit": "voxel"}
    run = run_numbered(monkeypatch, volume16, tmp_path / "run", Numbered(), min_size=size)
    table = rows(run)
    assert [(row["id"], row["voxels"]) for row in table] == [("1", "36"), ("2", "16")]
    assert [row["linking_margin"] for row in table] == ["0.75", ""]
    assert [float(row["confidence_flow_error"]) for row in table] == pytest.approx(
        [100 / 255, 180 / 255]
    )


@pytest.mark.parametrize(
    ("engine", "words"),
    [(Numbered(n_maps=1), "the engine named 1"), (Numbered(keeps_maps=False), "are gone")],
)
def test_maps_that_are_not_as_named_are_an_error(monkeypatch, volume16, tmp_path, engine, words):
    with pytest.raises(EngineError, match=words) as caught:
        run_numbered(monkeypatch, volume16, tmp_path / "run", engine)
    assert caught.value.hint


def test_one_line_for_people():
    objects = {"flow_error": {"lowest": 0.1, "median": 0.2, "highest": 0.7}}
    text = confidence_sentence({"objects": objects, "is_calibrated": True})
    assert text == "flow_error 0.20 in the middle, 0.70 for the least sure object (calibrated)"
    assert confidence_sentence({"objects": {}}) == "no objects to tell of"


def test_reliability_of_a_run_against_a_reference(image_path, model_path, tmp_path):
    import lamella

    run = segment(request(image_path, model_path, confidence=True), RunOptions(tmp_path / "run"))
    labels = run.labels
    curve = lamella.reliability(run, labels)
    assert curve.n == labels.load().size
    maps = zarr.open_array(str(run.folder / "confidence.zarr"), mode="r")[:]
    assert curve.expected_error == pytest.approx(1 - maps[0].mean() / 255, abs=1e-6)
    wrong = labels.load().copy()
    wrong[:8] = 1 - wrong[:8]
    wrong[8:12] = 7
    judged = lamella.reliability(tmp_path / "run", Labels.from_array(wrong), ignore_label=7)
    assert judged.n == wrong[12:].size + wrong[:8].size
    assert judged.expected_error > curve.expected_error + 0.1


def test_reliability_needs_maps_and_the_same_grid(image_path, model_path, tmp_path):
    import lamella

    plain = segment(request(image_path, model_path), RunOptions(tmp_path / "plain"))
    with pytest.raises(InputError, match="no map of probabilities") as caught:
        lamella.reliability(plain, plain.labels)
    assert "--confidence" in caught.value.hint
    sure = segment(request(image_path, model_path, confidence=True), RunOptions(tmp_path / "sure"))
    with pytest.raises(GeometryError):
        lamella.reliability(sure, Labels.from_array(np.zeros((2, 3, 4), np.uint8)))
