"""The folder of a training stands for its model, or says how to finish."""

import json
import shutil

import pytest

from lamella.cli import main
from lamella.core.errors import ModelError
from lamella.core.places import Places
from lamella.core.progress import SilentSink
from lamella.models.adopt import import_model
from lamella.models.catalogue import starter_folder
from lamella.models.store import find_entry, find_model, find_model_path


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "my-run"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text("model: {}\n")
    return folder


@pytest.fixture
def finished(run):
    shutil.copytree(starter_folder() / "nuclei-2d", run / "model")
    return run


def test_a_finished_run_is_its_model(finished, monkeypatch):
    assert find_model(str(finished)).path == finished / "model"
    assert find_model_path(str(finished)) == finished / "model"
    # Also where it is named without a slash.
    monkeypatch.chdir(finished.parent)
    assert find_entry("my-run").card.id == "nuclei-2d"


def test_a_finished_run_can_be_imported(finished, tmp_path):
    result = import_model(finished, Places(models=tmp_path / "models"), SilentSink())
    assert result.id == "nuclei-2d"
    assert (tmp_path / "models" / "nuclei-2d" / "model.json").is_file()


@pytest.mark.parametrize("find", [find_model, find_model_path, find_entry])
def test_an_unfinished_run_says_how_to_finish(run, find):
    with pytest.raises(ModelError, match="has left no model yet") as raised:
        find(str(run))
    assert f"lamella train --resume {run}" in raised.value.hint


def test_importing_an_unfinished_run(run, tmp_path):
    with pytest.raises(ModelError, match="has left no model yet"):
        import_model(run, Places(models=tmp_path / "models"), SilentSink())


def test_other_folders_are_no_runs(tmp_path):
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(ModelError, match="no model folder"):
        find_model(str(tmp_path))


def test_show_of_a_run(finished, run, capsys):
    assert main(["models", "show", str(finished), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["card"]["id"] == "nuclei-2d"
    shutil.rmtree(finished / "model")
    assert main(["models", "show", str(run)]) != 0
    told = capsys.readouterr().err
    assert "lamella train --resume" in told
    assert "Traceback" not in told


def test_segment_with_a_run(finished, tmp_path, capsys):
    import tifffile

    from lamella.simulation.nuclei import NucleiOptions, draw_nuclei

    image = tmp_path / "image.tif"
    tifffile.imwrite(image, draw_nuclei(NucleiOptions(shape=(96, 96), n_nuclei=6)).image)
    words = ["segment", str(image), "--model", str(finished), "--run-dir", str(tmp_path / "out")]
    assert main([*words, "--json"]) == 0
    assert (tmp_path / "out" / "labels.ome.zarr").is_dir()
    capsys.readouterr()
