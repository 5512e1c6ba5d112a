"""The one path: what a run leaves, resumes, refuses and never calls finished."""

import json

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import lamella as lm
from lamella.core.errors import (
    AxesError,
    GeometryError,
    InputError,
    LamellaError,
    MissingPathError,
    NarrowingError,
    OutputExistsError,
    RunCancelledError,
    RunError,
    StorageError,
    UnknownFormatError,
    UnknownModelError,
    UnreadableFileError,
)
from lamella.core.progress import CancelToken, SilentSink
from lamella.wire.event import LogEvent, ProgressEvent
from lamella.workflows import prepare
from lamella.workflows.api import make_request
from lamella.workflows.run_folder import RunFolder
from lamella.workflows.segment import RunOptions, segment

OTSU = "classical:otsu"


class Recording:
    """Keeps events; cancels when ``stop(event)`` says so."""

    def __init__(self, stop=lambda _event: False):
        self.events = []
        self.token = CancelToken()
        self._stop = stop

    def emit(self, event):
        self.events.append(event)
        if self._stop(event):
            self.token.cancel()

    def check(self):
        self.token.check()

    @property
    def said(self):
        return " ".join(event.message for event in self.events if isinstance(event, LogEvent))


def run(path, folder, model=OTSU, *, sink=None, fresh=False, overwrite=False, **options):
    export = options.pop("export", None)
    if model.__class__ is not str:
        # The test model's graph has no counterpart in PyTorch to be checked against.
        options["options"] = {"check": "never"}
    return segment(
        make_request(path, str(model), options),
        RunOptions(folder, fresh=fresh, overwrite=overwrite, export=export),
        sink=sink,
    )


class TestWhatARunLeaves:
    def test_everything_is_there_and_lies_on_the_input(self, image_path, volume, tmp_path):
        result = run(image_path, tmp_path / "a.run")
        left = {path.name for path in (tmp_path / "a.run").iterdir()}
        assert left >= {
            "labels.ome.zarr", "objects.ome.zarr", "objects.csv", "report.html", "report.json",
            "events.jsonl", "manifest.json", "preview.ome.zarr",
        }  # fmt: skip
        assert ".lock" not in left
        assert result.labels.same_grid(volume)
        assert result.is_finished
        assert len(result.objects) == result.manifest.labels.n_objects == 3
        assert result.manifest.tiles_done == result.manifest.tiles_planned > 0

    def test_the_manifest_says_what_was_done(self, image_path, tmp_path):
        manifest = run(image_path, tmp_path / "a.run").manifest
        assert manifest.input.sha256 == lm_sha(image_path)
        assert manifest.input.geometry.spacing.values == (4.0, 2.0, 2.0)
        assert manifest.options_resolved["method"] == "otsu"
        assert manifest.versions["lamella"] == lm.__version__
        assert manifest.status == "finished"
        assert {"engine", "objects", "measure", "report"} <= set(manifest.timings_s)

    def test_ids_of_the_table_are_those_on_disk(self, image_path, tmp_path):
        result = run(image_path, tmp_path / "a.run")
        ids = result.object_labels.load()
        counts = np.bincount(ids.ravel())[1:]
        assert_array_equal(result.objects["voxels"], counts)
        assert_array_equal(ids > 0, result.labels.load() > 0)

    def test_the_labels_hash_is_that_of_the_voxels(self, image_path, tmp_path):
        import hashlib

        result = run(image_path, tmp_path / "a.run")
        voxels = result.labels.load()
        assert result.manifest.labels.sha256 == hashlib.sha256(voxels.tobytes()).hexdigest()

    def test_export_in_any_format(self, image_path, volume, tmp_path):
        out = tmp_path / "labels.nii.gz"
        result = run(image_path, tmp_path / "a.run", export=out)
        assert_array_equal(lm.open(out).load(), result.labels.load())
        assert result.manifest.outputs["export"] == str(out)

    def test_two_runs_are_bit_identical(self, image_path, tmp_path, model_path):
        first = run(image_path, tmp_path / "a.run", model_path)
        second = run(image_path, tmp_path / "b.run", model_path)
        assert first.manifest.labels.sha256 == second.manifest.labels.sha256

    def test_zero_objects_is_a_warning(self, tmp_path, volume):
        result = lm.segment(
            volume, "classical:fixed", options={"threshold": 1e6}, run_dir=tmp_path / "a.run"
        )
        assert result.is_finished
        assert result.manifest.labels.n_objects == 0
        assert [note.code for note in result.manifest.warnings] == ["no_objects"]
        assert len(result.objects) == 0
        assert "nothing was found" in (tmp_path / "a.run" / "report.html").read_text()

    def test_images_too(self, tmp_path, volume):
        image = lm.Volume.from_array(volume.load()[6], spacing=(0.5, 0.5), unit="um")
        result = lm.segment(image, OTSU, run_dir=tmp_path / "a.run")
        assert result.labels.same_grid(image)
        assert "area_um2" in result.objects.columns


def lm_sha(path):
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()


class TestObjects:
    def test_components_become_the_labels(self, image_path, tmp_path):
        result = run(image_path, tmp_path / "a.run", instances="components")
        assert result.labels.is_instance
        assert sorted(np.unique(result.labels.load())) == [0, 1, 2, 3]
        assert (tmp_path / "a.run" / "engine.ome.zarr").exists()
        assert set(result.objects["class_name"]) == {"object"}

    def test_watershed_splits_what_touches(self, tmp_path):
        points = np.stack(np.indices((20, 40, 40)), axis=-1)
        image = np.zeros((20, 40, 40), np.float32)
        for x in (13, 26):
            image[((points - [10, 20, x]) ** 2).sum(-1) < 49] = 9
        touching = lm.Volume.from_array(image, spacing=(1, 1, 1), unit="um")
        options = {"smoothing": 0}
        joined = lm.segment(touching, OTSU, run_dir=tmp_path / "a.run", options=options)
        split = lm.segment(
            touching, OTSU, run_dir=tmp_path / "b.run", options=options, instances="watershed"
        )
        assert (len(joined.objects), len(split.objects)) == (1, 2)

    def test_small_objects_go_in_voxels_and_in_volume(self, image_path, tmp_path):
        whole = run(image_path, tmp_path / "a.run")
        sizes = sorted(whole.objects["voxels"])
        limit = sizes[1]
        kept = run(image_path, tmp_path / "b.run", min_size=str(limit))
        assert sorted(kept.objects["voxels"]) == sizes[1:]
        assert (kept.labels.load() > 0).sum() == sum(sizes[1:])
        # 4 x 2 x 2 nm: a voxel is 16 nm³.
        physical = run(image_path, tmp_path / "c.run", min_size=f"{limit * 16}nm3")
        assert physical.manifest.labels.sha256 == kept.manifest.labels.sha256

    def test_keep_largest_and_fill_holes(self, tmp_path):
        data = np.zeros((9, 20, 20), np.float32)
        data[2:7, 2:9, 2:9] = 5
        data[4, 5, 5] = 0
        data[2:4, 14:16, 14:16] = 5
        hollow = lm.Volume.from_array(data, spacing=(1, 1, 1), unit="nm")
        result = lm.segment(
            hollow, "classical:fixed", run_dir=tmp_path / "a.run", fill_holes=True,
            keep_largest=True, options={"threshold": 2.0, "smoothing": 0},
        )  # fmt: skip
        assert result.manifest.labels.n_objects == 1
        assert result.manifest.labels.n_foreground_voxels == 5 * 7 * 7

    def test_without_objects_there_is_a_row_a_class(self, image_path, tmp_path):
        result = run(image_path, tmp_path / "a.run", instances="none")
        assert list(result.objects["class_name"]) == ["object"]
        with pytest.raises(MissingPathError, match="did not tell objects apart"):
            _ = result.object_labels


class TestResume:
    def stop_in(self, stage, after=1):
        seen = []

        def stop(event):
            if isinstance(event, ProgressEvent) and event.stage == stage:
                seen.append(event)
            return len(seen) >= after

        return Recording(stop)

    @pytest.mark.parametrize("stage", ["tiles", "components", "counting", "measure"])
    def test_stopped_anywhere_it_ends_with_the_same_bits(
        self, image_path, model_path, tmp_path, stage
    ):
        options = {"min_size": "40", "instances": "components", "tile": (16, 16, 16)}
        whole = run(image_path, tmp_path / "whole.run", model_path, **options)
        folder = tmp_path / "a.run"
        with pytest.raises(RunCancelledError):
            run(image_path, folder, model_path, sink=self.stop_in(stage), **options)
        manifest = RunFolder(folder).read_manifest()
        assert manifest.status == "cancelled"
        with pytest.raises(RunError, match="is cancelled"):
            _ = lm.open_run(folder).labels
        sink = Recording()
        again = run(image_path, folder, model_path, sink=sink, **options)
        assert again.manifest.labels == whole.manifest.labels
        assert (folder / "objects.csv").read_text() == (
            tmp_path / "whole.run" / "objects.csv"
        ).read_text()
        assert "going on" in sink.said
        if stage != "tiles":
            assert "all tiles are on disk already" in sink.said

    def test_finished_and_the_same_is_not_run_again(self, image_path, tmp_path):
        first = run(image_path, tmp_path / "a.run")
        second = run(image_path, tmp_path / "a.run")
        assert second.was_finished
        assert second.manifest == first.manifest
        out = tmp_path / "late.nrrd"
        assert run(image_path, tmp_path / "a.run", export=out).was_finished
        assert out.exists()
        third = run(image_path, tmp_path / "a.run", overwrite=True)
        assert not third.was_finished

    def test_a_moved_input_is_the_same_input(self, image_path, tmp_path):
        run(image_path, tmp_path / "a.run")
        moved = image_path.rename(tmp_path / "elsewhere.mrc")
        assert run(moved, tmp_path / "a.run").was_finished

    def test_another_request_is_refused_until_fresh(self, image_path, tmp_path):
        run(image_path, tmp_path / "a.run")
        with pytest.raises(RunError, match="another value of min_size") as caught:
            run(image_path, tmp_path / "a.run", min_size="9")
        assert "--fresh" in caught.value.hint
        with pytest.raises(RunError, match="another model"):
            run(image_path, tmp_path / "a.run", "classical:li")
        assert run(image_path, tmp_path / "a.run", min_size="9", fresh=True).is_finished

    def test_a_run_that_failed_at_once_leaves_nothing_in_the_way(self, tmp_path):
        flat = tmp_path / "flat.npy"
        np.save(flat, np.zeros((8, 9, 10), np.float32))
        with pytest.raises(InputError):
            run(flat, tmp_path / "a.run")
        assert not (tmp_path / "a.run").exists()

    def test_every_event_is_on_record(self, image_path, tmp_path):
        sink = Recording()
        run(image_path, tmp_path / "a.run", sink=sink)
        text = (tmp_path / "a.run" / "events.jsonl").read_text()
        recorded = [json.loads(line) for line in text.splitlines()]
        assert [line["number"] for line in recorded] == list(range(1, len(recorded) + 1))
        assert recorded[0]["type"] == "started"
        assert recorded[-1]["type"] == "finished"
        told = [event.number for event in sink.events if hasattr(event, "number")]
        assert told == [line["number"] for line in recorded]


class TestBadInput:
    """One clear error each, and nothing left behind."""

    @pytest.fixture(autouse=True)
    def _nothing_left(self, tmp_path):
        yield
        assert not (tmp_path / "a.run").exists()

    def refuse(self, path, tmp_path, kind, match, model=OTSU, **options):
        with pytest.raises(kind, match=match or None) as caught:
            run(path, tmp_path / "a.run", model, **options)
        assert caught.value.hint
        return caught.value

    def test_no_such_file(self, tmp_path):
        self.refuse(tmp_path / "no.mrc", tmp_path, MissingPathError, "there is nothing at")

    def test_empty(self, tmp_path):
        (tmp_path / "e.mrc").write_bytes(b"")
        self.refuse(tmp_path / "e.mrc", tmp_path, UnreadableFileError, "is empty")

    def test_truncated(self, tmp_path, image_path):
        cut = tmp_path / "cut.mrc"
        cut.write_bytes(image_path.read_bytes()[:5000])
        self.refuse(cut, tmp_path, UnreadableFileError, "")

    def test_not_an_image(self, tmp_path):
        (tmp_path / "thesis.txt").write_text("To whom it may concern")
        self.refuse(tmp_path / "thesis.txt", tmp_path, UnknownFormatError, "no format recognises")

    @pytest.mark.parametrize("value", [0.0, 7.5])
    def test_all_constant(self, tmp_path, value):
        np.save(tmp_path / "f.npy", np.full((8, 9, 10), value, np.float32))
        self.refuse(tmp_path / "f.npy", tmp_path, InputError, "")

    def test_not_a_number(self, tmp_path, model_path):
        data = np.random.default_rng(0).normal(size=(20, 40, 40)).astype(np.float32)
        data[3, 4, 5] = np.nan
        np.save(tmp_path / "n.npy", data)
        error = self.refuse(tmp_path / "n.npy", tmp_path, InputError, "not finite|NaN", model_path)
        assert "replace_not_finite" in error.hint

    def test_unknown_model(self, tmp_path, image_path):
        error = self.refuse(image_path, tmp_path, UnknownModelError, "there is no", "membrain-3d")
        assert error.details["id"] == "membrain-3d"

    def test_unknown_method(self, tmp_path, image_path):
        self.refuse(image_path, tmp_path, InputError, "no method 'otzu'", "classical:otzu")

    def test_a_volume_model_on_an_image(self, tmp_path, model_path):
        np.save(tmp_path / "i.npy", np.random.default_rng(0).normal(size=(40, 40)))
        self.refuse(tmp_path / "i.npy", tmp_path, AxesError, "segments volumes", model_path)

    def test_a_volume_model_on_a_single_plane(self, tmp_path, model_path):
        np.save(tmp_path / "i.npy", np.random.default_rng(0).normal(size=(1, 40, 40)))
        self.refuse(tmp_path / "i.npy", tmp_path, AxesError, "single plane", model_path, axes="zyx")

    def test_several_times(self, tmp_path):
        np.save(tmp_path / "t.npy", np.random.default_rng(0).normal(size=(3, 4, 5, 6)))
        self.refuse(tmp_path / "t.npy", tmp_path, AxesError, "3 time points", axes="tzyx")

    def test_complex_numbers(self, tmp_path):
        volume = lm.Volume.from_array(np.ones((3, 4, 5), np.complex64))
        with pytest.raises(InputError, match="not intensities"):
            lm.segment(volume, OTSU, run_dir=tmp_path / "a.run")

    def test_the_output_is_there(self, tmp_path, image_path):
        out = tmp_path / "out.mrc"
        out.write_bytes(b"precious")
        self.refuse(image_path, tmp_path, OutputExistsError, "already there", export=out)
        assert out.read_bytes() == b"precious"

    def test_an_output_of_no_format(self, tmp_path, image_path):
        self.refuse(
            image_path,
            tmp_path,
            UnknownFormatError,
            "no format is written",
            export=tmp_path / "o.doc",
        )

    def test_the_disk_is_too_small(self, tmp_path, image_path, monkeypatch):
        usage = type("Usage", (), {"free": 1000})
        monkeypatch.setattr(prepare.shutil, "disk_usage", lambda _path: usage)
        self.refuse(image_path, tmp_path, StorageError, "MB free")

    def test_whole_volume_steps_that_do_not_fit_into_memory(
        self, tmp_path, image_path, monkeypatch
    ):
        from lamella.workflows import objects

        monkeypatch.setattr(objects, "available_bytes", lambda: 1000)
        self.refuse(image_path, tmp_path, InputError, "GB of memory", instances="watershed")

    def test_a_physical_size_of_an_image_that_is_not_calibrated(self, tmp_path):
        np.save(tmp_path / "v.npy", np.random.default_rng(0).normal(size=(8, 9, 10)))
        self.refuse(tmp_path / "v.npy", tmp_path, GeometryError, "voxel", min_size="5nm3")

    def test_options_that_do_not_exist(self, tmp_path, image_path):
        with pytest.raises(InputError, match="colour"):
            run(image_path, tmp_path / "a.run", colour="red")
        with pytest.raises(InputError, match="radiius"):
            run(image_path, tmp_path / "a.run", options={"radiius": 3})


def test_labels_that_do_not_fit_the_output_leave_the_run_finished(tmp_path, volume, monkeypatch):
    from lamella.workflows import segment as module

    def refuse(*_arguments):
        raise NarrowingError("ids go up to 70000", hint="use .ome.zarr")

    monkeypatch.setattr(module, "save_volume", refuse)
    request = make_request(volume, OTSU, {})
    with pytest.raises(NarrowingError):
        segment(request, RunOptions(tmp_path / "a.run", export=tmp_path / "o.mrc"), volume=volume)
    again = segment(request, RunOptions(tmp_path / "a.run"), volume=volume)
    assert again.is_finished


def test_a_volume_from_a_file_is_named_by_it_and_a_changed_one_is_not(image_path, tmp_path):
    opened = lm.open(image_path)
    assert lm.segment(opened, OTSU, run_dir=tmp_path / "a").manifest.input.path == str(image_path)
    cropped = opened.crop(lm.Box((0, 0, 0), (20, 40, 40)))
    manifest = lm.segment(cropped, OTSU, run_dir=tmp_path / "b").manifest
    assert manifest.input.path.startswith("memory:")


def test_errors_of_the_engine_come_through_as_they_are(tmp_path, image_path, monkeypatch):
    from lamella.workflows import segment as module

    class Broken:
        def segment(self, job, sink):
            raise ZeroDivisionError("a defect")

    monkeypatch.setattr(module, "load_engine", lambda *_: Broken())
    with pytest.raises(ZeroDivisionError):
        run(image_path, tmp_path / "a.run")
    manifest = RunFolder(tmp_path / "a.run").read_manifest()
    assert manifest.status == "failed"
    assert manifest.problem.code == "internal_error"
    assert not isinstance(manifest.problem.to_error(), RunCancelledError)
    assert isinstance(manifest.problem.to_error(), LamellaError)


def test_a_silent_sink_will_do(image_path, tmp_path):
    assert run(image_path, tmp_path / "a.run", sink=SilentSink()).is_finished
