"""Finding models: by id, by path, the user's before the shipped; clear errors for the rest."""

import shutil

import pytest

from lamella.core.errors import MissingPathError, ModelError, UnknownModelError
from lamella.core.places import Places
from lamella.models.catalogue import list_models, starter_folder
from lamella.models.store import find_entry, find_model, find_model_path


@pytest.fixture
def user_folder(tmp_path):
    folder = tmp_path / "models"
    shutil.copytree(starter_folder() / "nuclei-2d", folder / "mine")
    card = folder / "mine" / "model.json"
    card.write_text(card.read_text().replace('"nuclei-2d"', '"my-nuclei"', 1))
    return folder


def test_a_shipped_model_is_found_by_its_id_and_verified():
    folder = find_model("nuclei-2d")
    assert folder.card.id == "nuclei-2d"
    assert folder.path == starter_folder() / "nuclei-2d"


def test_a_users_model_is_found_by_the_cards_id_whatever_its_folder_is_called(user_folder):
    assert find_model("my-nuclei", Places(models=user_folder)).path == user_folder / "mine"


def test_the_users_model_comes_before_the_shipped_one_of_the_same_id(tmp_path):
    shutil.copytree(starter_folder() / "nuclei-2d", tmp_path / "retrained")
    entry = find_entry("nuclei-2d", Places(models=tmp_path))
    assert entry.origin == "user"
    assert find_model_path("nuclei-2d", Places(models=tmp_path)) == tmp_path / "retrained"


def test_a_model_may_be_named_by_its_folder_or_its_card(user_folder):
    for path in (user_folder / "mine", user_folder / "mine" / "model.json"):
        assert find_model(str(path)).card.id == "my-nuclei"


def test_an_unknown_id_names_its_neighbours_and_all_others(user_folder):
    with pytest.raises(UnknownModelError, match="nuclei2d") as caught:
        find_model("nuclei2d", Places(models=user_folder))
    assert "did you mean nuclei-2d" in caught.value.hint
    assert "my-nuclei" in caught.value.hint


def test_a_path_with_nothing_there_is_not_taken_for_an_id(tmp_path):
    with pytest.raises(MissingPathError, match="no model folder at"):
        find_model(str(tmp_path / "gone"))


def test_a_folder_without_a_card_is_no_model(tmp_path):
    with pytest.raises(ModelError, match=r"holds no model\.json"):
        find_model(str(tmp_path))


def test_a_changed_file_is_noticed(user_folder):
    weights = user_folder / "mine" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00")
    with pytest.raises(ModelError, match="was changed"):
        find_model("my-nuclei", Places(models=user_folder))


def test_a_broken_card_is_listed_with_the_reason_and_refused(user_folder):
    broken = user_folder / "broken"
    broken.mkdir()
    (broken / "model.json").write_text('{"format_version": 1}')
    entry = next(e for e in list_models(user_folder) if e.path == broken)
    assert entry.card is None
    assert "not a valid model card" in entry.problem
    with pytest.raises(ModelError, match="broken"):
        find_model("broken", Places(models=user_folder))


def test_a_missing_user_folder_is_an_empty_one(tmp_path):
    assert {entry.origin for entry in list_models(tmp_path / "none")} == {"starter"}
