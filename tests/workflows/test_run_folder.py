"""A run folder belongs to one process, and never holds half a document."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest

import lamella as lm
from lamella.core.errors import InputError, MissingPathError, RunError
from lamella.workflows.run_folder import RunFolder, write_text


def test_two_runs_never_share_a_folder(tmp_path):
    folder = RunFolder(tmp_path / "a.run")
    with folder.locked(), pytest.raises(RunError, match=f"in use by process {os.getpid()}"):
        folder.locked().__enter__()
    with folder.locked():
        pass
    assert list(folder.path.iterdir()) == []


def test_the_lock_of_a_killed_process_is_no_lock(tmp_path):
    code = (
        "import sys, time, pathlib\n"
        "from lamella.workflows.run_folder import RunFolder\n"
        "with RunFolder(pathlib.Path(sys.argv[1])).locked():\n"
        "    print('held', flush=True)\n"
        "    time.sleep(60)\n"
    )
    folder = RunFolder(tmp_path / "a.run")
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(folder.path)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(RunError, match=f"process {holder.pid}"):
        folder.locked().__enter__()
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    holder.stdout.close()
    with folder.locked():
        assert (folder.path / ".lock").exists()


def test_clearing_leaves_what_people_put_there(tmp_path):
    folder = RunFolder(tmp_path)
    (tmp_path / "labels.ome.zarr").mkdir()
    for name in ("manifest.json", "objects.csv", "notes.txt", "export.mrc"):
        (tmp_path / name).write_text("x")
    folder.clear()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["export.mrc", "notes.txt"]


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.docx").write_text("x")
    with pytest.raises(InputError, match="holds no run but thesis"):
        RunFolder(tmp_path).check_ours()
    with pytest.raises(InputError, match="is a file"):
        RunFolder(tmp_path / "thesis.docx").check_ours()


KILLED = """
import os, sys
import lamella as lm
from lamella.core import storage
from lamella.workflows import run_folder
n_left = int(sys.argv[1])
def replace_file(path, partial, content):
    global n_left
    n_left -= 1
    if n_left == 0:
        partial.write_bytes(content[: len(content) // 2])
        os._exit(9)
    storage.replace_file(path, partial, content)
run_folder.replace_file = replace_file
lm.segment(sys.argv[2], "classical:otsu", run_dir=sys.argv[3])
"""


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_a_run_killed_while_it_writes_a_document_can_be_run_again(tmp_path, nth):
    rng = np.random.default_rng(0)
    image = lm.Volume.from_array(rng.random((8, 16, 16)).astype(np.float32))
    path = lm.save(image, tmp_path / "image.ome.zarr")
    command = [sys.executable, "-c", KILLED, str(nth), str(path), str(tmp_path / "a.run")]
    assert subprocess.run(command, check=False, timeout=120).returncode == 9
    assert list((tmp_path / "a.run").glob(".*.partial"))
    found = lm.segment(path, "classical:otsu", run_dir=tmp_path / "a.run")
    expected = lm.segment(path, "classical:otsu", run_dir=tmp_path / "b.run")
    assert np.array_equal(found.labels.load(), expected.labels.load())
    assert not list((tmp_path / "a.run").glob(".*.partial"))


@pytest.mark.parametrize("left", [".manifest.json.partial", ".remote.json.partial"])
def test_half_a_first_document_is_nothing(tmp_path, left):
    (tmp_path / left).write_text("{")
    RunFolder(tmp_path).check_ours()


def test_a_folder_that_waits_for_its_run_is_refused_while_it_comes_too(tmp_path):
    (tmp_path / "remote.json").write_text("{}")
    (tmp_path / ".download").mkdir()
    with pytest.raises(InputError, match="waits for a run of a server"):
        RunFolder(tmp_path).check_ours()


def test_a_download_that_was_cut_is_nobodys(tmp_path):
    (tmp_path / ".download").mkdir()
    (tmp_path / "labels.ome.zarr").mkdir()
    RunFolder(tmp_path).check_ours()


def test_what_is_no_run_is_said(tmp_path):
    with pytest.raises(MissingPathError, match="is not a run folder"):
        RunFolder.existing(tmp_path)


def test_a_broken_manifest_is_an_error_not_a_crash(tmp_path):
    (tmp_path / "manifest.json").write_text('{"status": "runn')
    with pytest.raises(RunError, match="is not a valid RunManifest"):
        RunFolder(tmp_path).read_manifest()


def test_a_text_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_text(path, "old")

    def fail(_handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk is full"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
