"""segment, preview, resume, reproduce and demo as a user meets them, in processes of their own."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import lamella as lm
from lamella.cli import main
from lamella.workflows.run_folder import RunFolder

OTSU = "classical:otsu"


def lamella(*words, **options):
    return subprocess.run(
        [sys.executable, "-m", "lamella", *map(str, words)],
        capture_output=True, text=True, timeout=300, check=False, **options,
    )  # fmt: skip


def answer(capsys, *words):
    """Exit code and JSON answer of a command run in this process."""
    capsys.readouterr()
    code = main([*map(str, words), "--json"])
    captured = capsys.readouterr()
    return code, json.loads(captured.out or captured.err)


class TestSegment:
    def test_the_answer_names_everything(self, image_path, tmp_path):
        done = lamella("segment", image_path, "--model", OTSU, "-o", "labels.mrc", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        folder = tmp_path / "balls.classical-otsu.run"
        for word in ("labels.ome.zarr", "3 (", "report.html", "labels.mrc", "preview after"):
            assert word in done.stdout
        assert lm.open(tmp_path / "labels.mrc").same_grid(lm.open(image_path))
        again = lamella("segment", image_path, "--model", OTSU, cwd=tmp_path)
        assert "finished before, nothing to do" in again.stdout
        assert lm.open_run(folder).is_finished

    def test_an_output_without_a_suffix_is_a_folder(self, image_path, tmp_path, capsys):
        code, document = answer(
            capsys, "segment", image_path, "--model", OTSU, "--run-dir", tmp_path / "a.run",
            "-o", f"{tmp_path / 'out'}/",
        )  # fmt: skip
        assert code == 0
        written = tmp_path / "out" / "balls.classical-otsu.mrc"
        assert document["runs"][0]["export"] == str(written)
        assert written.exists()

    def test_json_answers_with_one_document(self, image_path, tmp_path, capsys):
        code, document = answer(
            capsys, "segment", image_path, "--model", OTSU, "--run-dir", tmp_path / "a.run"
        )
        assert code == 0
        (run,) = document["runs"]
        assert run["n_objects"] == 3
        assert run["status"] == "finished"
        assert run["labels_sha256"] == lm.open_run(run["run"]).manifest.labels.sha256

    def test_several_inputs_and_a_bad_one_among_them(self, image_path, tmp_path, capsys):
        bad = tmp_path / "bad.mrc"
        bad.write_bytes(b"")
        code, document = answer(
            capsys, "segment", image_path, bad, "--model", OTSU, "--run-dir", tmp_path / "runs",
            "-o", tmp_path / "out",
        )  # fmt: skip
        assert code == 2
        assert [run["n_objects"] for run in document["runs"]] == [3]
        assert document["problems"][0]["code"] == "unreadable_file"
        assert (tmp_path / "out" / "balls.classical-otsu.mrc").exists()
        assert [path.name for path in (tmp_path / "runs").iterdir()] == ["balls.classical-otsu.run"]

    @pytest.mark.parametrize(
        ("words", "expected"), [((), None), (("--tta",), True), (("--no-tta",), False)]
    )
    def test_mirroring_is_left_to_the_card_unless_told(
        self, image_path, model_path, tmp_path, capsys, words, expected
    ):
        folder = tmp_path / "a.run"
        code, _ = answer(
            capsys, "segment", image_path, "--model", model_path, "--run-dir", folder, *words
        )
        assert code == 0
        assert lm.open_run(folder).manifest.request.tta is expected

    def test_options_reach_the_request(self, image_path, model_path, tmp_path, capsys):
        folder = tmp_path / "a.run"
        code, _ = answer(
            capsys, "segment", image_path, "--model", model_path, "--run-dir", folder,
            "--tile", "16,16,16", "--overlap-fraction", "0.25", "--min-size", "500nm3", "--tta",
            "--instances", "components", "--spacing", "40,20,20", "--unit", "angstrom",
            "--no-preview", "--option", "check=never", "--option", "batch=2",
        )  # fmt: skip
        assert code == 0
        request = lm.open_run(folder).manifest.request
        assert request.tile == (16, 16, 16)
        assert request.overlap_fraction == 0.25
        assert (request.min_size.value, request.min_size.unit) == (500, "nm")
        assert request.input.spacing.values == (4.0, 2.0, 2.0)
        assert (request.tta, request.preview, request.options) == (
            True,
            False,
            {"batch": 2, "check": "never"},
        )

    @pytest.mark.parametrize(
        ("words", "code", "match"),
        [
            (["no.mrc", "--model", OTSU], "not_found", "there is nothing at"),
            (["IMAGE", "--model", "nucleii"], "unknown_model", "nuclei"),
            (["IMAGE", "--model", "classical:x"], "invalid_input", "no method"),
            (["IMAGE", "--model", OTSU, "--tile", "a"], "invalid_input", "--tile"),
            (["IMAGE", "--model", OTSU, "--min-size", "9 furlong"], "invalid_geometry", "furlong"),
            (["IMAGE", "--model", OTSU, "-o", "a.doc"], "unknown_format", "a.doc"),
            (["IMAGE", "--model", OTSU, "--option", "x"], "invalid_input", "has no '='"),
            (["IMAGE", "--model", OTSU, "--unit", "nm"], "invalid_input", "without --spacing"),
            (["IMAGE", "--model", OTSU, "--spacing", "0,1,1"], "invalid_geometry", "positive"),
            (["IMAGE", "IMAGE", "--model", OTSU], "invalid_input", "share the run folder"),
            (["IMAGE", "IMAGE", "--model", OTSU, "-o", "a.mrc"], "invalid_input", "one file"),
            (["IMAGE", "--model", OTSU, "--device", "quantum"], "invalid_input", "quantum"),
        ],
    )
    def test_bad_input_is_one_error_and_exit_code_2(self, words, code, match, image_path, capsys):
        from pathlib import Path

        words = [str(image_path) if word == "IMAGE" else word for word in words]
        if "--device" in words:
            pytest.skip("the classical engine runs on the CPU whatever is asked")
        exit_code, problem = answer(capsys, "segment", *words)
        assert exit_code == 2
        assert problem["code"] == code
        assert match in problem["message"] + (problem["hint"] or "")
        assert not list(Path.cwd().iterdir())

    @pytest.mark.skipif(os.name != "posix", reason="file size limits are POSIX's")
    def test_a_full_disk_is_said_and_leaves_no_result(self, tmp_path, model_path):
        # A limit on file size fails writes as a full disk does, without needing one.
        np.save(tmp_path / "noise.npy", np.random.default_rng(0).normal(size=(64, 96, 96)))
        code = (
            "import resource, sys\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))\n"
            "from lamella.cli import main\n"
            f"sys.exit(main(['segment', 'noise.npy', '--model', {str(model_path)!r},"
            " '--run-dir', 'a.run', '-o', 'out.mrc', '--option', 'check=never', '--json']))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 2, done.stderr
        assert json.loads(done.stderr)["code"] == "storage"
        assert not (tmp_path / "out.mrc").exists()
        manifest = RunFolder(tmp_path / "a.run").read_manifest()
        assert manifest is None or manifest.status != "finished"


def bright(model_path):
    """The test model, whose graph has no counterpart in PyTorch to be checked against."""
    return ["--model", model_path, "--option", "check=never"]


def start(words, folder):
    return subprocess.Popen(
        [sys.executable, "-m", "lamella", *map(str, words)],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def wait_for_layers(process, folder, n):
    """Wait until the journal names ``n`` finished pieces."""
    journal = folder / "journal.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if journal.exists() and journal.read_bytes().count(b"\n") > n:
            return
        time.sleep(0.003)
    raise AssertionError(f"over before it could be stopped: {process.communicate()}")


@pytest.fixture
def long_job(tmp_path, model_path):
    """A run of some seconds: many small tiles over a long volume."""
    image = np.random.default_rng(0).normal(size=(192, 64, 64)).astype(np.float32)
    image[40:180, 20:30, 20:30] += 9
    np.save(tmp_path / "long.npy", image)
    return [
        "segment", tmp_path / "long.npy", "--model", model_path, "--tile", "16,16,16",
        "--overlap-fraction", "0.5", "--option", "check=never",
    ]  # fmt: skip


class TestInterruption:
    def test_killed_in_the_middle_the_same_command_ends_with_the_same_bits(
        self, long_job, tmp_path, capsys
    ):
        whole = answer(capsys, *long_job, "--run-dir", tmp_path / "whole.run")[1]["runs"][0]
        folder = tmp_path / "killed.run"
        words = [*long_job, "--run-dir", folder]
        for n in (1, 3):
            process = start(words, tmp_path)
            wait_for_layers(process, folder, n)
            os.kill(process.pid, signal.SIGKILL)
            process.communicate()
            assert RunFolder(folder).read_manifest().status == "running"
        done = lamella(*words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "going on" in done.stderr
        assert "layers are on disk already" in done.stderr
        assert lm.open_run(folder).manifest.labels.sha256 == whole["labels_sha256"]

    def test_ctrl_c_stops_cleanly_and_says_how_to_go_on(self, long_job, tmp_path):
        folder = tmp_path / "a.run"
        process = start([*long_job, "--run-dir", folder, "-o", tmp_path / "out.mrc"], tmp_path)
        wait_for_layers(process, folder, 1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 130, err
        assert f"lamella resume {folder}" in err
        assert "Traceback" not in err
        assert not (tmp_path / "out.mrc").exists()
        assert RunFolder(folder).read_manifest().status == "cancelled"
        done = lamella("resume", folder, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "out.mrc").exists(), "resuming also writes what was asked for"
        assert "nothing to do" in lamella("resume", folder, cwd=tmp_path).stdout


class TestReproduce:
    def test_identical(self, image_path, model_path, tmp_path, capsys):
        folder = tmp_path / "a.run"
        answer(capsys, "segment", image_path, *bright(model_path), "--run-dir", folder)
        code, document = answer(capsys, "reproduce", folder)
        assert (code, document["is_identical"], document["n_different_voxels"]) == (0, True, 0)

    def test_different_voxels_are_counted(self, image_path, tmp_path, capsys):
        folder = tmp_path / "a.run"
        answer(capsys, "segment", image_path, "--model", OTSU, "--run-dir", folder)
        labels = lm.open_run(folder).labels
        changed = labels.load()
        changed[0, 0, :5] = 1
        lm.save(lm.Labels.like(labels, changed), folder / "labels.ome.zarr", overwrite=True)
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["labels"]["sha256"] = "0" * 64
        (folder / "manifest.json").write_text(json.dumps(manifest))
        code, document = answer(capsys, "reproduce", folder)
        assert (code, document["n_different_voxels"]) == (3, 5)

    def test_another_input_is_an_error(self, image_path, volume, tmp_path, capsys):
        folder = tmp_path / "a.run"
        answer(capsys, "segment", image_path, "--model", OTSU, "--run-dir", folder)
        lm.save(lm.Volume.from_array(volume.load() + 1), image_path, overwrite=True)
        code, problem = answer(capsys, "reproduce", folder)
        assert (code, problem["code"]) == (2, "invalid_input")
        assert "not what it was" in problem["message"]

    def test_a_moved_input_can_be_named(self, image_path, tmp_path, capsys):
        folder = tmp_path / "a.run"
        answer(capsys, "segment", image_path, "--model", OTSU, "--run-dir", folder)
        moved = image_path.rename(tmp_path / "b.mrc")
        assert answer(capsys, "reproduce", folder)[1]["code"] == "not_found"
        again = tmp_path / "again.run"
        code, document = answer(capsys, "reproduce", folder, "--input", moved, "--run-dir", again)
        assert (code, document["is_identical"]) == (0, True)
        assert lm.open_run(again).is_finished

    def test_an_unfinished_run_cannot_be(self, tmp_path, capsys):
        code, problem = answer(capsys, "reproduce", tmp_path)
        assert (code, problem["code"]) == (2, "not_found")


class TestPreview:
    @pytest.mark.parametrize("which", ["network", "classical"])
    def test_labels_of_the_whole_and_a_picture(
        self, which, image_path, model_path, volume, tmp_path, capsys
    ):
        model = bright(model_path) if which == "network" else ["--model", OTSU]
        out = tmp_path / "seen.ome.zarr"
        code, document = answer(capsys, "preview", image_path, *model, "-o", out)
        assert code == 0, document
        labels = lm.open(out)
        for n, m, factor in zip(
            volume.spatial_shape, labels.spatial_shape, document["factors"], strict=True
        ):
            assert m >= n / factor - 1
        assert (tmp_path / "seen.png").read_bytes().startswith(b"\x89PNG")
        code, problem = answer(capsys, "preview", image_path, *model, "-o", out)
        assert (code, problem["code"]) == (2, "output_exists")


def test_demo(tmp_path, capsys):
    code, document = answer(
        capsys, "demo", "-o", tmp_path / "demo", "--model", OTSU, "--shape", "32,48,48"
    )
    assert code == 0
    assert 0 <= document["dice"] <= 1
    assert document["run_s"] > 0
    assert (tmp_path / "demo" / "result.png").exists()


def test_doctor_finds_a_sound_installation(capsys):
    code, document = answer(capsys, "doctor")
    assert code == 0, [check for check in document["checks"] if check["state"] == "broken"]
    assert {check["area"] for check in document["checks"]} >= {"Formats", "Engines", "Devices"}
