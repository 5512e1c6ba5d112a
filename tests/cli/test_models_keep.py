"""``lamella models pull|import|export|remove|gc|verify|move``: exit codes, JSON, clear errors."""

import hashlib
import importlib.util
import json
import shutil
import sys
from pathlib import Path

import pytest

from lamella.cli import main
from lamella.models.catalogue import starter_folder
from lamella.models.download import TransferSettings, fetch_file

_SPEC = importlib.util.spec_from_file_location(
    "wild_server_of_cli", Path(__file__).parents[1] / "models" / "wild_server.py"
)
wild = importlib.util.module_from_spec(_SPEC)
sys.modules["wild_server_of_cli"] = wild
_SPEC.loader.exec_module(wild)

WEIGHTS = bytes(range(256)) * 400


@pytest.fixture(autouse=True)
def models(tmp_path, monkeypatch):
    folder = tmp_path / "models"
    monkeypatch.setenv("LAMELLA_MODELS", str(folder))
    monkeypatch.delenv("LAMELLA_OFFLINE", raising=False)
    return folder


@pytest.fixture
def server():
    with wild.WildServer({"weights.bin": WEIGHTS}) as running:
        yield running


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    settings = TransferSettings(timeout_s=10, sleep=lambda _s: None)

    def impatient(*words, **more):
        return fetch_file(*words, **{**more, "settings": settings})

    monkeypatch.setattr("lamella.models.pull.fetch_file", impatient)


def offer(server, monkeypatch, **changes):
    file = {"name": "weights.bin", "urls": ["weights.bin"], "n_bytes": len(WEIGHTS)}
    file["sha256"] = hashlib.sha256(WEIGHTS).hexdigest()
    entry = {
        "id": "thing",
        "engine": "none-here",
        "title": "A thing",
        "licence": "CC0",
        "files": [file],
    }
    entry |= {name: value for name, value in changes.items() if name != "file"}
    file |= changes.get("file", {})
    document = {"title": "the lab's", "models": [entry]}
    server.files["models.json"] = json.dumps(document).encode()
    monkeypatch.setenv("LAMELLA_CATALOGUES", server.url("models.json"))


@pytest.fixture
def offered(server, monkeypatch):
    offer(server, monkeypatch)
    return server


def run(capsys, *words):
    code = main(["models", *map(str, words)])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return code, captured.out, captured.err


def answer(capsys, *words):
    code, out, err = run(capsys, *words, "--json")
    return code, json.loads(out) if out else json.loads(err)


# --- pull ---------------------------------------------------------------------------------------


def test_pull_and_pull_again(offered, models, capsys):
    code, document = answer(capsys, "pull", "thing")
    assert code == 0
    pulled = document["models"][0]
    assert pulled["n_bytes_moved"] == len(WEIGHTS)
    assert not pulled["was_here"]
    assert Path(pulled["path"]) == models / "thing"
    code, out, _ = run(capsys, "pull", "thing")
    assert (code, "is here already" in out) == (0, True)


def test_a_bad_server_is_exit_two_and_what_came_is_kept(offered, capsys, models):
    assert answer(capsys, "list")[0] == 0
    bad = [wild.Fault("drop", at=50_000)] + [wild.Fault("hang_up")] * 9
    offered.faults = [wild.Fault(), *bad]
    code, out, err = run(capsys, "pull", "thing")
    assert (code, out) == (2, "")
    assert "weights.bin could not be fetched" in err
    assert "0.1 MB of it are kept" in err
    offered.faults = []
    code, out, _ = run(capsys, "pull", "thing")
    assert code == 0
    assert "50.0 kB of it were here" in out or "of it were here" in out
    assert offered.log[-1].start == 50_000


def test_offline_names_what_is_missing(offered, capsys, monkeypatch):
    assert answer(capsys, "list")[0] == 0
    for words in (("--offline",), ()):
        if not words:
            monkeypatch.setenv("LAMELLA_OFFLINE", "1")
        n_asked = len(offered.log)
        code, problem = answer(capsys, "pull", "thing", *words)
        assert (code, problem["code"]) == (2, "offline")
        assert "--from" in problem["hint"]
        assert len(offered.log) == n_asked


def test_from_a_file_and_mirrors(offered, capsys, tmp_path):
    (tmp_path / "w").write_bytes(WEIGHTS)
    assert run(capsys, "pull", "thing", "--from", tmp_path / "w")[0] == 0
    assert run(capsys, "remove", "thing", "--yes")[0] == 0
    assert run(capsys, "pull", "thing", "--mirror", tmp_path)[0] == 0, "falls back to the server"
    assert run(capsys, "pull", "thing", "--from", tmp_path / "gone")[0] == 2


def test_a_licence_has_to_be_accepted(server, monkeypatch, capsys, models):
    offer(server, monkeypatch, must_accept=True, licence="Research only", licence_url="https://l")
    code, problem = answer(capsys, "pull", "thing")
    assert (code, problem["code"]) == (2, "licence_not_accepted")
    assert problem["details"]["text"] == "Research only\nhttps://l"
    assert answer(capsys, "show", "thing")[1]["entry"]["must_accept"]
    assert run(capsys, "pull", "thing", "--accept-licence")[0] == 0
    assert answer(capsys, "show", "thing")[1]["is_accepted"]
    (models / ".licences" / "thing.json").unlink()
    assert not answer(capsys, "show", "thing")[1]["is_accepted"]
    assert "licence not accepted" in run(capsys, "list", "--here")[1]


def test_an_interactive_terminal_is_asked(server, monkeypatch, capsys):
    offer(server, monkeypatch, must_accept=True, licence="Research only")
    monkeypatch.setattr("lamella.cli.models_keep._is_interactive", lambda _console: True)
    answers = iter([False, True])
    asked = []

    def confirm(question, *, abort, err):
        asked.append(question)
        if not next(answers):
            import click

            raise click.Abort
        assert abort
        assert err
        return True

    monkeypatch.setattr("click.confirm", confirm)
    code, _, err = run(capsys, "pull", "thing")
    assert code == 130
    assert "Research only" in err
    assert run(capsys, "pull", "thing")[0] == 0
    assert asked == ["do you accept it?"] * 2


def test_unpublished_hashes_are_told(server, monkeypatch, capsys):
    offer(server, monkeypatch, file={"sha256": None, "n_bytes": None})
    assert "not published" in run(capsys, "list")[1]
    assert "SHA-256 not published" in run(capsys, "show", "thing")[1]
    code, document = answer(capsys, "pull", "thing")
    assert document["models"][0]["unpublished_hashes"] == ["weights.bin"]
    assert code == 0


def test_unknown_models_and_engines_without_downloads(offered, capsys):
    code, _, err = run(capsys, "pull", "thingg")
    assert code == 2
    assert "thing (to be pulled)" in err
    code, _, err = run(capsys, "pull", "classical:otsu")
    assert (code, "pulls nothing by name" in err) == (2, True)
    code, _, err = run(capsys, "pull", "nonesuch:x")
    assert (code, "unknown engine" in err) == (2, True)
    assert run(capsys, "pull", "nuclei-2d")[0] == 0, "a shipped model is here already"


def test_segment_says_how_to_get_a_model(offered, capsys, tmp_path):
    answer(capsys, "list")
    import numpy as np

    np.save(tmp_path / "image.npy", np.zeros((8, 8), np.uint8))
    assert main(["segment", str(tmp_path / "image.npy"), "--model", "thing"]) == 2
    assert "`lamella models pull thing` fetches it" in capsys.readouterr().err


def test_a_plain_address(server, capsys, models):
    from lamella.models.archive import write_zip

    source = starter_folder() / "nuclei-2d"
    write_zip(models.parent / "n.zip", [(f"n/{one.name}", one) for one in source.iterdir()])
    content = (models.parent / "n.zip").read_bytes()
    server.files["nuclei-2d.zip"] = content
    url = server.url("nuclei-2d.zip")
    code, _, err = run(capsys, "pull", url, "--sha256", "0" * 64)
    assert (code, "SHA-256" in err) == (2, True)
    digest = hashlib.sha256(content).hexdigest()
    assert run(capsys, "pull", url, "--sha256", digest)[0] == 0
    assert answer(capsys, "path", "nuclei-2d")[1]["path"] == str(models / "nuclei-2d")
    code, _, err = run(capsys, "pull", url, "--id", "other")
    assert (code, "--id nuclei-2d" in err) == (2, True)


def test_a_plain_address_of_nothing_that_runs(server, capsys, models):
    code, _, err = run(capsys, "pull", server.url("weights.bin"), "--id", "x")
    assert (code, "is no model of any engine" in err) == (2, True)
    assert not (models / "x").exists()
    assert run(capsys, "pull", server.url("weights.bin"), "--id", "Not An Id")[0] == 2
    assert run(capsys, "pull", server.url("weights.bin"), "--sha256", "abc")[0] == 2
    assert run(capsys, "pull", "cellpose4-cpsam", "--id", "x")[0] == 2


# --- the others ---------------------------------------------------------------------------------


def test_export_import_remove(capsys, tmp_path, models):
    code, document = answer(capsys, "export", "nuclei-2d", "-o", tmp_path / "n.zip")
    assert code == 0
    code, document = answer(capsys, "import", document["path"])
    assert (code, document["id"], document["engine"]) == (0, "nuclei-2d", "lamella")
    assert answer(capsys, "path", "nuclei-2d")[1]["path"] == str(models / "nuclei-2d")
    assert run(capsys, "import", tmp_path / "n.zip")[0] == 2
    assert run(capsys, "import", tmp_path / "n.zip", "--replace")[0] == 0
    code, _, err = run(capsys, "remove", "nuclei-2d")
    assert (code, "add --yes" in err) == (2, True)
    assert answer(capsys, "remove", "nuclei-2d", "--yes") == (
        0,
        {"removed": [str(models / "nuclei-2d")]},
    )
    code, _, err = run(capsys, "remove", "nuclei-2d", "--yes")
    assert (code, "shipped with the package" in err) == (2, True)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("import", "gone"), "there is nothing at"),
        (("export", "none"), "there is no model"),
        (("remove", "none", "--yes"), "there is no model"),
        (("verify", "none"), "there is no model"),
        (("show", "none"), "there is no model"),
        (("path", "none"), "there is no model"),
        (("pull",), "missing argument"),
    ],
)
def test_bad_words_are_one_clear_error(capsys, words, told):
    code, _, err = run(capsys, *words)
    assert code == 2
    assert told in err


def test_verify_is_exit_three_where_a_byte_changed(capsys, models):
    shutil.copytree(starter_folder() / "nuclei-2d", models / "mine")
    assert run(capsys, "verify")[0] == 0
    (models / "mine" / "network.bin").write_bytes(b"?")
    code, document = answer(capsys, "verify", "nuclei-2d")
    assert code == 3
    assert "was changed" in document["models"][0]["problem"]


def test_gc_says_what_goes(offered, capsys, models):
    assert run(capsys, "gc")[1] == "nothing is left over\n"
    folder = models / ".pulls" / "thing"
    folder.mkdir(parents=True)
    (folder / "w.part").write_bytes(bytes(2_000_000))
    code, out, _ = run(capsys, "gc", "--dry-run")
    assert (code, "2.0 MB would go" in out) == (0, True)
    assert run(capsys, "gc")[0] == 2, "nobody is there to be asked"
    code, document = answer(capsys, "gc", "--yes")
    assert (code, document["n_bytes"], document["is_removed"]) == (0, 2_000_000, True)
    assert not folder.exists()


def test_move(offered, capsys, tmp_path, monkeypatch):
    run(capsys, "pull", "thing")
    code, out, _ = run(capsys, "move", tmp_path / "there", "--yes")
    assert (code, f"LAMELLA_MODELS={tmp_path / 'there'}" in out) == (0, True)
    monkeypatch.setenv("LAMELLA_MODELS", str(tmp_path / "there"))
    assert answer(capsys, "verify", "thing")[0] == 0


def test_a_broken_catalogue_is_a_warning(capsys, tmp_path, monkeypatch):
    (tmp_path / "bad.json").write_text("{")
    monkeypatch.setenv("LAMELLA_CATALOGUES", str(tmp_path / "bad.json"))
    code, out, err = run(capsys, "list")
    assert code == 0
    assert "not a valid CatalogueDoc" in err
    assert "nuclei-2d" in out
    assert answer(capsys, "list")[1]["problems"]


def test_list_by_engine_and_here(offered, capsys):
    ids = {model["id"] for model in answer(capsys, "list", "--engine", "none-here")[1]["models"]}
    assert ids == {"thing"}
    here = answer(capsys, "list", "--here")[1]["models"]
    assert all(model["is_here"] for model in here)
    assert {model["id"] for model in here} >= {"nuclei-2d", "membrane-3d"}
