"""lamella segment in blocks, as a user meets it: the same labels, whoever runs what, and again."""

import json
import signal
import subprocess
import sys
import time

import pytest

from lamella.cli import main
from lamella.io.format import save_volume
from lamella.volume import Volume

CUT = ("--block", "16,64,64")


def answer(capsys, *words):
    """Exit code and JSON answer of a command run in this process."""
    capsys.readouterr()
    code = main(["segment", *map(str, words), "--no-preview", "--json"])
    captured = capsys.readouterr()
    return code, json.loads(captured.out or captured.err)


@pytest.fixture(scope="module")
def path(tmp_path_factory, scattered_balls):
    image = scattered_balls((80, 96, 64))
    volume = Volume.from_array(image, spacing=(4.0, 2.0, 2.0), unit="nm")
    return save_volume(volume, tmp_path_factory.mktemp("blocks") / "big.mrc")


@pytest.fixture(scope="module")
def whole(path, model_path, tmp_path_factory):
    """What a run in one piece says."""
    folder = tmp_path_factory.mktemp("whole") / "a.run"
    words = ["segment", str(path), "--model", str(model_path), "--instances", "components"]
    assert main([*words, "--run-dir", str(folder), "--no-preview"]) == 0
    return everything(folder)


def everything(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    return manifest["status"], manifest["labels"], (folder / "objects.csv").read_text()


def blocks_of(folder):
    return json.loads((folder / "manifest.json").read_text())["options_resolved"]["blocks"]


def words_for(path, model_path, folder):
    return path, "--model", model_path, "--instances", "components", "--run-dir", folder


class TestTheSameLabels:
    def test_from_processes_of_this_machine(self, path, model_path, whole, tmp_path, capsys):
        words = words_for(path, model_path, tmp_path / "a.run")
        code, document = answer(capsys, *words, "--block-workers", 2, *CUT)
        assert code == 0, document
        assert everything(tmp_path / "a.run") == whole
        facts = blocks_of(tmp_path / "a.run")
        assert facts["workers"] == 2
        assert facts["n"] > 2

    def test_from_workers_of_a_scheduler(
        self, path, model_path, whole, tmp_path, capsys, dask_site
    ):
        certificates = [
            word
            for name, value in dask_site.certificates.options.items()
            for word in ("--cluster-option", f"{name}={value}")
        ]
        words = words_for(path, model_path, tmp_path / "a.run")
        code, document = answer(
            capsys, *words, "--scheduler", dask_site.address, *certificates, *CUT
        )
        assert code == 0, document
        assert everything(tmp_path / "a.run") == whole
        assert blocks_of(tmp_path / "a.run")["n"] > 2

    def test_from_a_cluster_of_its_own(
        self, path, model_path, whole, tmp_path, capsys, monkeypatch
    ):
        monkeypatch.chdir(tmp_path)
        words = words_for(path, model_path, tmp_path / "a.run")
        options = ("--cluster-option", "maximum=1", "--cluster-option", "processes=false")
        code, document = answer(capsys, *words, "--cluster", "local", *options, *CUT)
        assert code == 0, document
        assert everything(tmp_path / "a.run") == whole
        assert [item.name for item in tmp_path.iterdir()] == ["a.run"], "nothing else stays"


def test_killed_and_again_is_as_if_nothing_had_been(path, model_path, whole, tmp_path):
    folder = tmp_path / "a.run"
    words = ["segment", *map(str, words_for(path, model_path, folder)), "--no-preview"]
    command = [sys.executable, "-m", "lamella", *words, "--block-workers", "1", *CUT]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    journal, end = folder / "blocks.jsonl", time.monotonic() + 120
    try:
        while not journal.exists() or journal.read_text().count("\n") < 3:
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    n_kept = journal.read_text().count("\n") - 1
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert everything(folder) == whole
    said = (folder / "events.jsonl").read_text()
    assert f"going on: {n_kept} of " in said


def test_a_block_that_fails_is_named_and_the_others_are_kept(
    path, model_path, whole, tmp_path, capsys
):
    """Where labels of a block cannot be written, as on a disk with bad sectors."""
    folder = tmp_path / "a.run"
    words = words_for(path, model_path, folder)
    # A folder where a file of labels belongs: only the block that writes it fails.
    obstacle = folder / "labels.ome.zarr" / "0" / "c" / "2" / "0" / "0"

    class Obstruct:
        def __init__(self, runner):
            self.runner = runner
            self.n_workers = runner.n_workers

        def run(self, function, documents):
            obstacle.mkdir(parents=True)
            return self.runner.run(function, documents)

    from lamella.jobs import blocks

    real = blocks.LocalBlocks
    blocks.LocalBlocks = lambda n: Obstruct(real(n))
    try:
        code, problem = answer(capsys, *words, "--block-workers", 1, *CUT)
    finally:
        blocks.LocalBlocks = real
    assert code != 0
    assert "block 3 of 5 (voxels 32-48 x 0-96 x 0-64, z y x) failed" in problem["message"]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["status"] == "failed"
    assert "block 3 of 5" in manifest["problem"]["message"]
    assert manifest["problem"]["details"]["block"] == 2
    n_kept = (folder / "blocks.jsonl").read_text().count("\n") - 1
    assert n_kept == 2
    obstacle.rmdir()
    code, document = answer(capsys, *words, "--block-workers", 1, *CUT)
    assert code == 0, document
    assert everything(folder) == whole


WRONG = [
    (["--block", "16,16,16"], "nobody is named", "--block-workers N"),
    (["--cluster-option", "cores=4"], "nobody is named", "--scheduler ADDRESS"),
    (["--block-workers", "2", "--cluster", "slurm"], "exclude each other", "give one"),
    (["--block-workers", "1", "--block", "16,16"], "has 2 numbers", "--block 128,512,512"),
    (["--block-workers", "1", "--block", "16,0,16"], "not a list of whole numbers", "64,128"),
    (["--block-workers", "0"], "0", None),
    (["--scheduler", "gpu.lab:8786"], "expected the address of a Dask scheduler", "tls://HOST"),
    (["--scheduler", "tcp://127.0.0.1:9"], "no Dask scheduler answers", "dask scheduler"),
    (["--scheduler", "tls://127.0.0.1:9"], "certificates", "tls_ca"),
    (
        ["--scheduler", "tcp://127.0.0.1:9", "--cluster-option", "cores=4"],
        "takes no --cluster-option cores",
        "tls_ca",
    ),
    (["--cluster", "slurm"], "does not take these options", "cores and memory"),
    (["--cluster", "local", "--cluster-option", "maximum=0"], "0 workers", "maximum"),
    (["--cluster", "local", "--cluster-option", "folder=/nowhere"], "cannot be written", "folder="),
    (["--server", "http://127.0.0.1:9", "--block-workers", "2"], "decides by itself", "leave out"),
    (["--block-workers", "2", "--restore", "denoise"], "do not go together", "lamella restore"),
]


@pytest.mark.parametrize(("words", "message", "hint"), WRONG)
def test_what_cannot_be_is_one_clear_error(
    path, model_path, tmp_path, capsys, monkeypatch, words, message, hint
):
    monkeypatch.setattr("lamella.jobs.batch_system._CONNECT_S", 0.5)
    monkeypatch.chdir(tmp_path)
    code, problem = answer(capsys, *words_for(path, model_path, tmp_path / "a.run"), *words)
    assert code == 2, problem
    assert message in problem["message"], problem
    assert hint is None or hint in problem["hint"], problem
    assert list(tmp_path.iterdir()) == []


def test_an_engine_that_cannot_is_refused(path, tmp_path, capsys):
    words = (path, "--model", "classical:otsu", "--run-dir", tmp_path / "a.run")
    code, problem = answer(capsys, *words, "--block-workers", 2)
    assert code == 2
    assert "cannot cut a volume into blocks" in problem["message"]
    assert not (tmp_path / "a.run").exists()
