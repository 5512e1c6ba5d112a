"""``lamella models``: lists, shows and finds; broken folders are told, not hidden."""

import json
import shutil

import pytest

from lamella.cli import main
from lamella.models.catalogue import starter_folder


@pytest.fixture(autouse=True)
def user_folder(tmp_path, monkeypatch):
    folder = tmp_path / "models"
    monkeypatch.setenv("LAMELLA_MODELS", str(folder))
    return folder


def test_list_shows_the_shipped_models(capsys):
    assert main(["models", "list"]) == 0
    out = capsys.readouterr().out
    assert "nuclei-2d" in out
    assert "starter" in out


def test_list_as_json_has_paths_and_licences(capsys):
    assert main(["models", "list", "--json"]) == 0
    models = json.loads(capsys.readouterr().out)["models"]
    nuclei = next(model for model in models if model["id"] == "nuclei-2d")
    assert nuclei["path"] == str(starter_folder() / "nuclei-2d")
    assert nuclei["licence"] == "Apache-2.0"
    assert nuclei["problem"] is None


def test_list_names_a_broken_folder_and_why(user_folder, capsys):
    (user_folder / "broken").mkdir(parents=True)
    (user_folder / "broken" / "model.json").write_text("{}")
    assert main(["models", "list"]) == 0
    captured = capsys.readouterr()
    assert "broken" in captured.err
    assert "not a valid model card" in captured.err


def test_show_tells_data_licence_and_scores(capsys):
    assert main(["models", "show", "nuclei-2d"]) == 0
    out = capsys.readouterr().out
    for word in ("CC0", "recipes/nuclei_2d.py", "AP at IoU 0.5", "Apache-2.0", "nucleus"):
        assert word in out


def test_show_as_json_is_the_card(capsys):
    assert main(["models", "show", "nuclei-2d", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["card"]["id"] == "nuclei-2d"


def test_path_prints_a_folder_that_can_be_used_as_a_model(capsys):
    assert main(["models", "path", "nuclei-2d"]) == 0
    path = capsys.readouterr().out.strip()
    assert main(["models", "show", path]) == 0


def test_a_damaged_model_has_no_path(user_folder, capsys):
    shutil.copytree(starter_folder() / "nuclei-2d", user_folder / "nuclei-2d")
    (user_folder / "nuclei-2d" / "network.bin").write_bytes(b"")
    assert main(["models", "path", "nuclei-2d"]) == 2
    assert "was changed" in capsys.readouterr().err


def test_an_unknown_model_is_one_clear_error(capsys):
    assert main(["models", "show", "nuclei2d"]) == 2
    err = capsys.readouterr().err
    assert "did you mean nuclei-2d" in err
    assert "Traceback" not in err
