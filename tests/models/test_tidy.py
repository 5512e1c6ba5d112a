"""What is cleared away, removed and moved is what it says, and nothing else."""

import shutil

import pytest

from lamella.core.errors import InputError, OutputExistsError, StorageError, UnknownModelError
from lamella.core.places import Places
from lamella.core.progress import SilentSink
from lamella.models.adopt import ImportOptions, import_model
from lamella.models.catalogue import starter_folder
from lamella.models.foreign import find_foreign
from lamella.models.store import find_model, list_all, list_here
from lamella.models.stored import lock_path, locked, pulls_folder
from lamella.models.tidy import (
    find_leftovers,
    move_store,
    remove_leftovers,
    remove_model,
    verify_models,
)

SINK = SilentSink()


@pytest.fixture
def stored(places, fake, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "fake.json").write_text("{}")
    (source / "w.bin").write_bytes(b"w" * 1000)
    import_model(source, places, SINK, (fake,), ImportOptions(id="mine"))
    shutil.copytree(starter_folder() / "nuclei-2d", places.models / "retrained")
    return places


def names(places):
    return sorted(one.name for one in places.models.iterdir() if not one.name.startswith("."))


def test_verify_reads_everything(stored, listener):
    # The two of the user, and those that are shipped.
    n_shipped = sum(1 for _ in starter_folder().glob("*/model.json"))
    assert [one.problem for one in verify_models(stored, listener)] == [""] * (2 + n_shipped)
    (stored.models / "mine" / "files" / "w.bin").write_bytes(b"W" * 1000)
    problems = {one.model.id: one.problem for one in verify_models(stored, listener)}
    assert "was changed" in problems["mine"]
    assert listener.events[-1].done == pytest.approx(listener.events[-1].total, rel=0.01)
    with pytest.raises(UnknownModelError):
        verify_models(stored, listener, model_id="none")


def test_remove_takes_only_what_is_the_users(stored):
    assert remove_model("mine", stored, SINK) == stored.models / "mine"
    assert remove_model("nuclei-2d", stored, SINK) == stored.models / "retrained"
    assert names(stored) == []
    with pytest.raises(InputError, match="shipped with the package"):
        remove_model("nuclei-2d", stored, SINK)
    with pytest.raises(UnknownModelError):
        remove_model("mine", stored, SINK)
    with pytest.raises(InputError, match="is no id"):
        remove_model("../models/mine", stored, SINK)
    find_model("nuclei-2d")


def test_remove_of_a_link_leaves_what_it_points_to(stored, fake, tmp_path):
    options = ImportOptions(id="linked", is_link=True)
    import_model(tmp_path / "source", stored, SINK, (fake,), options)
    remove_model("linked", stored, SINK)
    assert (tmp_path / "source" / "w.bin").is_file()


def test_a_broken_model_can_be_removed(stored):
    (stored.models / "mine" / "record.json").write_text("{")
    broken = next(model for model in list_here(stored) if model.id == "mine")
    assert "not a valid ModelRecord" in broken.problem
    remove_model("mine", stored, SINK)
    assert names(stored) == ["retrained"]


def test_nothing_is_left_over_after_ordinary_work(stored):
    assert find_leftovers(stored) == ()
    assert find_leftovers(Places()) == ()


def test_leftovers_are_told_with_their_sizes_and_cleared_away(stored):
    unfinished = pulls_folder(stored.models, "big")
    unfinished.mkdir(parents=True)
    (unfinished / "w.part").write_bytes(b"x" * 5000)
    lock_path(stored.models, "gone").write_text("{}")
    (stored.models / ".m-1234").mkdir()
    kept = stored.models / ".catalogues"
    kept.mkdir()
    (kept / "a.json").write_text("{}")
    (kept / "a.note").write_text('{"address": "https://old.example", "etag": ""}')
    found = find_leftovers(stored)
    assert sorted(one.kind for one in found) == [
        "catalogue",
        "catalogue",
        "lock",
        "staging",
        "unfinished",
    ]
    assert sum(one.n_bytes for one in found) >= 5000
    before = {model.id for model in list_here(stored)}
    assert remove_leftovers(found, stored, SINK) >= 5000
    assert find_leftovers(stored) == ()
    assert {model.id for model in list_here(stored)} == before


def test_what_somebody_works_on_is_left_alone(stored, listener):
    unfinished = pulls_folder(stored.models, "big")
    unfinished.mkdir(parents=True)
    (unfinished / "w.part").write_bytes(b"x")
    found = find_leftovers(stored)
    with locked(stored.models, "big", listener):
        assert find_leftovers(stored) == ()
        assert remove_leftovers(found, stored, SINK) == 0
    assert unfinished.exists()


@pytest.mark.parametrize("across", [True, False])
def test_the_store_moves_and_works_there(stored, tmp_path, monkeypatch, across):
    import errno
    from pathlib import Path

    rename = Path.rename

    def refuse(self, target):
        if self == stored.models:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return rename(self, target)

    if across:
        monkeypatch.setattr(Path, "rename", refuse)
    target = tmp_path / "other disk" / "models"
    assert move_store(stored, target, SINK) == target
    assert not stored.models.exists()
    moved = Places(models=target)
    assert find_foreign("mine", moved) is not None
    assert find_model("nuclei-2d", moved).path == target / "retrained"


def test_a_store_is_not_moved_into_trouble(stored, tmp_path, listener):
    with pytest.raises(InputError, match="lies in the folder"):
        move_store(stored, stored.models / "below", SINK)
    with pytest.raises(OutputExistsError):
        move_store(stored, tmp_path, SINK)
    with locked(stored.models, "mine", listener), pytest.raises(StorageError, match="being pulled"):
        move_store(stored, tmp_path / "new", SINK)
    assert find_foreign("mine", stored) is not None


def test_everything_is_listed_once_with_what_is_known(stored):
    listed = {model.id: model for model in list_all(stored)}
    assert listed["mine"].engine == "fake"
    assert listed["mine"].n_bytes == 1002
    assert listed["nuclei-2d"].path in (stored.models / "retrained", listed["nuclei-2d"].path)
    offered = listed["cellpose4-cpsam"]
    assert (offered.is_here, offered.origin, offered.is_pinned) == (False, "catalogue", True)


def test_an_id_that_can_be_pulled_says_so(stored):
    with pytest.raises(UnknownModelError, match="not here yet") as caught:
        find_model("cellpose4-cpsam", stored)
    assert "`lamella models pull cellpose4-cpsam` fetches it, 1,234 MB" in caught.value.hint
    with pytest.raises(UnknownModelError) as caught:
        find_model("cellpose4-cpsamm", stored)
    assert "cellpose4-cpsam (to be pulled)" in caught.value.hint
