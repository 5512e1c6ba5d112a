"""``lamella models export`` and ``verify --run``: files, JSON, exit codes."""

import hashlib
import importlib.util
import json
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from lamella.cli import main
from lamella.io.format import save_volume
from lamella.models.folder import ModelFolder
from lamella.volume import Labels, Volume

_SPEC = importlib.util.spec_from_file_location(
    "lamella_models_of_cli", Path(__file__).parents[1] / "engines" / "lamella_models.py"
)
bright = importlib.util.module_from_spec(_SPEC)
sys.modules["lamella_models_of_cli"] = bright
_SPEC.loader.exec_module(bright)


@pytest.fixture(autouse=True)
def _models(tmp_path, monkeypatch):
    monkeypatch.setenv("LAMELLA_MODELS", str(tmp_path / "models"))


def run(capsys, *words):
    code = main(["models", "export", *map(str, words)])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return code, captured.out, captured.err


def test_onnx_of_a_starter_model(tmp_path, capsys):
    code, out, _ = run(capsys, "nuclei-2d", "--format", "onnx", "-o", tmp_path, "--json")
    answer = json.loads(out)
    assert code == 0
    assert answer["path"] == str(tmp_path / "nuclei-2d.onnx")
    assert 0 <= answer["difference"] < 1e-3
    code, _, err = run(capsys, "nuclei-2d", "--format", "onnx", "-o", tmp_path)
    assert code != 0
    assert "--overwrite" in err
    code, out, _ = run(capsys, "nuclei-2d", "--format", "onnx", "-o", tmp_path, "--overwrite")
    assert code == 0
    assert "opset 18" in out


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_package_of_a_starter_model(tmp_path, capsys):
    code, out, err = run(
        capsys, "nuclei-2d", "--format", "bioimageio", "-o", tmp_path, "--tag", "other"
    )
    assert code == 0
    assert "passed by BioImage.io's validator" in out
    assert "warning: no author is named: --author NAME" in err
    with zipfile.ZipFile(tmp_path / "nuclei-2d.bioimageio.zip") as archive:
        assert "cover.png" in archive.namelist()
    assert main(["models", "import", str(tmp_path / "nuclei-2d.bioimageio.zip"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["id"] == "nuclei-2d"


def test_zip_is_still_the_default(tmp_path, capsys):
    code, out, _ = run(capsys, "nuclei-2d", "-o", tmp_path)
    assert code == 0
    assert "nuclei-2d.zip" in out


def test_options_of_packages_go_with_packages(tmp_path, capsys):
    code, _, err = run(capsys, "nuclei-2d", "-o", tmp_path, "--author", "Jane Doe")
    assert code != 0
    assert "add --format bioimageio" in err


def test_what_is_not_installed_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    code, _, err = run(capsys, "nuclei-2d", "--format", "onnx", "-o", tmp_path)
    assert code != 0
    assert 'pip install "lamella[export]"' in err


def test_a_model_that_is_not_there(tmp_path, capsys):
    code, _, err = run(capsys, "no-such", "--format", "onnx", "-o", tmp_path)
    assert code != 0
    assert "no model" in err


# --- verify --run ---------------------------------------------------------------------------------


def with_example(folder, labels):
    """A model folder with an example: a bright square in noise."""
    made = bright.make_folder(folder, axes="yx")
    image = np.random.default_rng(0).normal(0, 0.1, (16, 16)).astype(np.float32)
    image[4:9, 4:9] += 10
    save_volume(Volume.from_array(image), folder / "example_input.tif")
    save_volume(Labels.from_array(labels), folder / "example_output.tif")
    files = dict(made.card.files) | {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in ("example_input.tif", "example_output.tif")
    }
    card = made.card.model_copy(update={"files": files})
    (folder / "model.json").write_text(card.to_json())
    return ModelFolder.open(folder)


def test_verify_tries_models_on_their_examples(tmp_path, capsys):
    right = np.zeros((16, 16), np.uint8)
    right[5:8, 5:8] = 1  # the mean around a voxel is bright
    folder = with_example(tmp_path / "bright", right)
    words = ["models", "verify", str(folder.path), "--run", "--json"]
    assert main(words) == 0
    (answer,) = json.loads(capsys.readouterr().out)["models"]
    assert answer["problem"] is None
    assert answer["example_agreement"] > 0.9

    other = with_example(tmp_path / "other", 1 - right)
    assert main(["models", "verify", str(other.path), "--run", "--json"]) == 3
    (answer,) = json.loads(capsys.readouterr().out)["models"]
    assert "gives other labels on its example" in answer["problem"]
    assert main(["models", "verify", str(other.path), "--json"]) == 0
    capsys.readouterr()


def test_verify_leaves_models_without_example_alone(capsys):
    assert main(["models", "verify", "nuclei-2d", "--run", "--json"]) == 0
    (answer,) = json.loads(capsys.readouterr().out)["models"]
    assert answer["example_agreement"] is None
