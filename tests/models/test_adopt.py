"""What is taken in is what was given; what cannot be run is refused with what was expected."""

import hashlib
import os
import shutil
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.core.errors import (
    InputError,
    LicenceError,
    MissingPathError,
    ModelError,
    OutputExistsError,
    StorageError,
)
from lamella.core.places import Places
from lamella.core.progress import SilentSink
from lamella.models.adopt import ImportOptions, import_model
from lamella.models.archive import write_zip
from lamella.models.catalogue import starter_folder
from lamella.models.foreign import find_foreign, read_record
from lamella.models.package import export_model
from lamella.models.store import find_model, list_here
from lamella.models.stored import locked


@pytest.fixture
def take(places, listener, fake):
    def run(source, **options):
        return import_model(source, places, listener, (fake,), ImportOptions(**options))

    return run


@pytest.fixture
def folder(tmp_path):
    source = tmp_path / "My Model"
    (source / "fold_0").mkdir(parents=True)
    (source / "fake.json").write_text("{}")
    (source / "fold_0" / "w.bin").write_bytes(b"weights")
    return source


def tree(path):
    return {
        one.relative_to(path).as_posix(): one.read_bytes()
        for one in path.rglob("*")
        if one.is_file()
    }


def test_a_folder_of_an_engine(take, folder, places):
    result = take(folder)
    assert (result.id, result.engine, result.title) == ("fake-my-model", "fake", "A fake")
    model = find_foreign("fake-my-model", places)
    assert tree(model.path) == tree(folder)
    record = read_record(result.path)
    assert [known.name for known in record.classes] == ["background", "thing"]
    assert record.source == "My Model"
    assert str(folder) not in record.to_json()


def test_a_zip_is_the_same_as_its_folder(take, folder, places, tmp_path):
    write_zip(tmp_path / "z.zip", ((f"top/{n}", c) for n, c in tree(folder).items()))
    write_zip(tmp_path / "flat.zip", tree(folder).items())
    for name in ("z", "flat"):
        take(tmp_path / f"{name}.zip", id=name)
        assert tree(find_foreign(name, places).path) == tree(folder)
    assert not list((places.models / ".pulls").iterdir())


def test_a_file_of_weights(take, places, tmp_path):
    (tmp_path / "cyto.pth").write_bytes(b"FAKE weights")
    result = take(tmp_path / "cyto.pth")
    assert tree(find_foreign(result.id, places).path) == {"cyto.pth": b"FAKE weights"}


def test_only_the_files_the_engine_wants(take, folder, places, fake):
    describe = fake.describe
    fake.describe = lambda path: {**describe(path), "files": ["fake.json"]}
    take(folder, id="few")
    assert set(tree(find_foreign("few", places).path)) == {"fake.json"}


def test_a_link_copies_nothing_and_a_changed_byte_is_caught(take, folder, places):
    result = take(folder, id="linked", is_link=True)
    assert result.is_link
    assert (result.path / "files").is_symlink()
    assert find_foreign("linked", places) is not None
    assert next(m for m in list_here(places) if m.id == "linked").is_link
    (folder / "fold_0" / "w.bin").write_bytes(b"Weights")
    with pytest.raises(ModelError, match="was changed"):
        find_foreign("linked", places)


def test_a_linked_file(take, places, tmp_path):
    (tmp_path / "w.pth").write_bytes(b"FAKE")
    take(tmp_path / "w.pth", id="linked", is_link=True)
    assert tree(find_foreign("linked", places).path) == {"w.pth": b"FAKE"}


def test_an_archive_cannot_be_linked(take, folder, tmp_path):
    write_zip(tmp_path / "z.zip", tree(folder).items())
    with pytest.raises(InputError, match="cannot be linked"):
        take(tmp_path / "z.zip", is_link=True)


# --- Lamella's own ------------------------------------------------------------------------------


@pytest.fixture
def nuclei(tmp_path):
    return shutil.copytree(starter_folder() / "nuclei-2d", tmp_path / "copy of nuclei")


@pytest.mark.parametrize("is_link", [True, False])
def test_a_lamella_folder(take, nuclei, places, is_link):
    result = take(nuclei, is_link=is_link)
    assert (result.id, result.engine) == ("nuclei-2d", "lamella")
    assert find_model("nuclei-2d", places).path == places.models / "nuclei-2d"


def test_a_damaged_lamella_folder_is_refused(take, nuclei, places):
    (nuclei / "network.bin").write_bytes(b"")
    with pytest.raises(ModelError, match="was changed"):
        take(nuclei)
    assert not (places.models / "nuclei-2d").exists()


def test_the_id_of_a_lamella_model_is_its_cards(take, nuclei):
    with pytest.raises(InputError, match="its id stands in its card"):
        take(nuclei, id="other")


# --- export and import --------------------------------------------------------------------------


@given(
    st.dictionaries(
        st.text("abc", min_size=1, max_size=3).map(lambda name: f"d/{name}.bin"),
        st.binary(max_size=300),
        min_size=1,
        max_size=5,
    )
)
def test_export_and_import_is_the_identity(tmp_path_factory, fake, contents):
    base = tmp_path_factory.mktemp("law")
    (base / "source" / "d").mkdir(parents=True)
    (base / "source" / "fake.json").write_text("{}")
    for name, content in contents.items():
        (base / "source" / name).write_bytes(content)
    here, there = Places(models=base / "here"), Places(models=base / "there")
    import_model(base / "source", here, SilentSink(), (fake,), ImportOptions(id="m"))
    first = export_model("m", base / "first.zip", here, SilentSink())
    import_model(first, there, SilentSink(), (), ImportOptions())
    second = export_model("m", base / "second.zip", there, SilentSink())
    assert first.read_bytes() == second.read_bytes()
    assert find_foreign("m", here).sha256 == find_foreign("m", there).sha256
    assert tree(base / "here" / "m") == tree(base / "there" / "m")


def test_a_shipped_model_exported_and_imported_is_bit_identical(take, places, tmp_path):
    path = export_model("nuclei-2d", tmp_path, Places(), SilentSink())
    assert path.name == "nuclei-2d.zip"
    take(path)
    assert tree(places.models / "nuclei-2d") == tree(starter_folder() / "nuclei-2d")


def test_an_exported_model_may_get_another_id(take, folder, places, tmp_path):
    take(folder, id="one")
    take(export_model("one", tmp_path / "o.zip", places, SilentSink()), id="two")
    assert find_foreign("two", places).id == "two"


def test_a_changed_model_is_not_exported_and_a_changed_export_not_imported(
    take, folder, places, tmp_path
):
    result = take(folder, id="one")
    path = export_model("one", tmp_path / "o.zip", places, SilentSink())
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["one/files/fold_0/w.bin"] = b"Weights"
    write_zip(path, members.items())
    with pytest.raises(ModelError, match=r"was changed: fold_0/w\.bin"):
        take(path, id="two")
    (result.path / "files" / "fold_0" / "w.bin").write_bytes(b"Weights")
    with pytest.raises(ModelError, match="was changed"):
        export_model("one", tmp_path / "p.zip", places, SilentSink())
    assert not (tmp_path / "p.zip").exists()


def test_exports_are_not_replaced_unasked(places, tmp_path):
    export_model("nuclei-2d", tmp_path, places, SilentSink())
    with pytest.raises(OutputExistsError):
        export_model("nuclei-2d", tmp_path, places, SilentSink())
    export_model("nuclei-2d", tmp_path, places, SilentSink(), overwrite=True)
    with pytest.raises(InputError, match="no name of a zip"):
        export_model("nuclei-2d", tmp_path / "x.tar", places, SilentSink())
    with pytest.raises(StorageError):
        export_model("nuclei-2d", tmp_path / "y.zip", places, SilentSink(), free=lambda _p: 10)


def test_a_licensed_export_asks_again(take, folder, places, tmp_path, fake):
    describe = fake.describe
    fake.describe = lambda path: {**describe(path), "licence": "L", "must_accept": True}
    with pytest.raises(LicenceError) as caught:
        take(folder, id="one")
    assert "import again with --accept-licence" in caught.value.hint
    take(folder, id="one", accepts_licence=True)
    exported = export_model("one", tmp_path / "o.zip", places, SilentSink())
    elsewhere = Places(models=tmp_path / "elsewhere")
    with pytest.raises(LicenceError):
        import_model(exported, elsewhere, SilentSink())
    import_model(exported, elsewhere, SilentSink(), (), ImportOptions(accepts_licence=True))
    assert find_foreign("one", elsewhere) is not None


# --- refused ------------------------------------------------------------------------------------


def test_nothing_there(take, tmp_path):
    with pytest.raises(MissingPathError):
        take(tmp_path / "gone")


@pytest.mark.parametrize("kind", ["empty", "folder", "file", "zip"])
def test_what_nobody_knows_is_refused_with_what_was_expected(take, places, tmp_path, kind):
    source = tmp_path / "thing"
    if kind == "file":
        source.write_bytes(b"?")
    elif kind == "zip":
        source = tmp_path / "thing.zip"
        write_zip(source, [("readme.txt", b"hello")])
    else:
        source.mkdir()
        if kind == "folder":
            (source / "readme.txt").write_text("hello")
    with pytest.raises(ModelError, match="no model that can be run here") as caught:
        take(source)
    assert "a folder with fake.json" in caught.value.hint
    assert "model.json" in caught.value.hint
    assert ("readme.txt" in caught.value.message) == (kind in ("folder", "zip"))
    assert [one.name for one in places.models.iterdir() if not one.name.startswith(".")] == []


@pytest.mark.parametrize("in_zip", [True, False])
def test_a_bioimage_package_is_refused_by_name(take, tmp_path, in_zip):
    text = "format_version: 0.5.3\nweights:\n  torchscript:\n    source: w.pt\n  onnx:\n    s: x\n"
    if in_zip:
        source = tmp_path / "package.zip"
        write_zip(source, [("rdf.yaml", text.encode()), ("w.pt", b"x")])
    else:
        source = tmp_path / "package"
        source.mkdir()
        (source / "bioimageio.yaml").write_text(text)
    with pytest.raises(ModelError, match=r"BioImage\.io package with weights as torchscript, onnx"):
        take(source)


def test_an_engine_that_takes_nothing(take, folder):
    with pytest.raises(ModelError, match="takes no models from outside") as caught:
        take(folder, engine="classical")
    assert "fake" in caught.value.hint


def test_a_taken_id(take, folder, places):
    take(folder, id="one")
    with pytest.raises(OutputExistsError, match="is here already"):
        take(folder, id="one")
    (folder / "fold_0" / "w.bin").write_bytes(b"better")
    take(folder, id="one", replaces=True)
    assert tree(find_foreign("one", places).path)["fold_0/w.bin"] == b"better"


@pytest.mark.parametrize("model_id", ["", "UPPER", "../up", "a/b", ".hidden", "a b"])
def test_what_is_no_id(take, folder, model_id):
    with pytest.raises(InputError, match="is no id"):
        take(folder, id=model_id)


def test_no_room(take, folder):
    with pytest.raises(StorageError):
        take(folder, free=lambda _path: 3)


def test_an_archive_that_escapes_writes_nothing(take, tmp_path, places):
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.writestr("fake.json", "{}")
        archive.writestr("../../escaped", "x")
    with pytest.raises(ModelError, match="leads out of the folder"):
        take(tmp_path / "z.zip")
    assert not list(tmp_path.rglob("escaped"))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes there")
def test_a_pipe_in_a_folder_is_refused(take, folder):
    os.mkfifo(folder / "pipe")
    with pytest.raises(ModelError, match="no plain file"):
        take(folder)


def test_folders_that_link_to_themselves_end(take, folder, places):
    (folder / "again").symlink_to(folder)
    take(folder, id="one")
    assert "fake.json" in tree(find_foreign("one", places).path)


def test_a_cancelled_import_leaves_nothing(take, folder, places, listener):
    listener.token.cancel()
    with pytest.raises(Exception, match="cancelled"):
        take(folder)
    assert [one.name for one in places.models.iterdir() if not one.name.startswith(".")] == []
    assert not list((places.models / ".pulls").iterdir())


def test_the_hash_of_a_model_is_of_its_files_alone(take, folder, places):
    take(folder, id="one")
    take(folder, id="two")
    assert find_foreign("one", places).sha256 == find_foreign("two", places).sha256
    names = {"fake.json": b"{}", "fold_0/w.bin": b"weights"}
    parts = sorted((name, hashlib.sha256(data).hexdigest()) for name, data in names.items())
    expected = hashlib.sha256(repr(parts).encode()).hexdigest()
    assert find_foreign("one", places).sha256 == expected


def test_two_imports_of_one_name_come_one_after_the_other(take, folder, places, make_listener):
    places.models.mkdir()
    other = make_listener()
    with locked(places.models, "import-my-model", other):
        assert other.messages == []
    take(folder)
