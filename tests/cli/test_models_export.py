"""``lamella models export``: files, JSON, exit codes."""

import json
import sys
import zipfile

import pytest

from lamella.cli import main


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
    assert "opset 17" in out


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
