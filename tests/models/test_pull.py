"""A pulled model is whole, verified and under its name, or nothing is; what came is kept."""

import hashlib
import io
import json
import os
import random
import subprocess
import sys
import textwrap
import threading
import time
import zipfile
from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from lamella.core.errors import (
    DownloadError,
    InputError,
    LicenceError,
    ModelError,
    OfflineError,
    OutputExistsError,
    RunCancelledError,
    StorageError,
)
from lamella.core.places import Places
from lamella.models.catalogue import starter_folder
from lamella.models.download import TransferSettings
from lamella.models.foreign import find_foreign
from lamella.models.licence import Terms, accept, is_accepted
from lamella.models.pull import PullOptions, pull
from lamella.models.stored import pulls_folder
from lamella.wire.catalogue import CatalogueEntry, DownloadDoc

WEIGHTS = b"FAKE" + random.Random(1).randbytes(120_000)


def zipped(members):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


ARCHIVE = zipped({"Top/fake.json": b"{}", "Top/fold_0/weights.bin": WEIGHTS, "__MACOSX/._x": b"x"})


def file_of(name, content, server=None, **changes):
    fields = {
        "name": name,
        "urls": (server.url(name),) if server else (),
        "sha256": hashlib.sha256(content).hexdigest(),
        "n_bytes": len(content),
        "unpack": "zip" if name.endswith(".zip") else "none",
    }
    return DownloadDoc(**(fields | changes))


def entry_of(*files, **changes):
    fields = {"id": "thing", "engine": "fake", "title": "T", "licence": "CC0", "version": "1"}
    return CatalogueEntry(**(fields | {"files": files} | changes))


@pytest.fixture
def full(server):
    server.files = {"weights.bin": WEIGHTS, "model.zip": ARCHIVE}
    return server


@pytest.fixture
def options(fast):
    return PullOptions(transfer=fast)


@pytest.fixture
def weights_entry(full):
    return entry_of(file_of("weights.bin", WEIGHTS, full))


@pytest.fixture
def bring(places, listener, options, fake):
    def run(entry, where=None, **changes):
        return pull(
            entry, where or places, listener, replace(options, **changes), recognisers=(fake,)
        )

    return run


# --- what comes ---------------------------------------------------------------------------------


def test_a_file_comes_and_is_found_by_its_id(bring, weights_entry, places, full):
    result = bring(weights_entry)
    assert (result.was_here, result.n_bytes_moved) == (False, len(WEIGHTS))
    model = find_foreign("thing", places)
    assert (model.path / "weights.bin").read_bytes() == WEIGHTS
    assert (model.engine, model.version, model.details) == ("fake", "1", {"answer": 42})
    assert not pulls_folder(places.models, "thing").exists(), "nothing is left over"
    assert bring(weights_entry).was_here
    assert full.n_sent == len(WEIGHTS)


def test_a_zip_is_unpacked_and_not_kept(bring, full, places):
    bring(entry_of(file_of("model.zip", ARCHIVE, full)))
    folder = find_foreign("thing", places).path
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))
    # The engine knows the folder in the zip: that is the model.
    assert names == ["fake.json", "fold_0", "fold_0/weights.bin"]


def test_several_files_in_folders(bring, full, places):
    bring(
        entry_of(
            file_of("weights.bin", WEIGHTS, full, folder="a/b"),
            file_of("model.zip", ARCHIVE, full, folder="c"),
            engine="unknown_here",
        )
    )
    folder = find_foreign("thing", places).path
    assert (folder / "a" / "b" / "weights.bin").is_file()
    assert (folder / "c" / "Top" / "fake.json").is_file()


def test_a_lamella_model_becomes_a_model_folder(bring, server, places):
    from lamella.models.store import find_model

    source = starter_folder() / "nuclei-2d"
    content = zipped({f"nuclei-2d/{path.name}": path.read_bytes() for path in source.iterdir()})
    server.files["n.zip"] = content
    entry = entry_of(file_of("n.zip", content, server), id="nuclei-2d", engine="lamella")
    bring(entry)
    assert find_model("nuclei-2d", places).path == places.models / "nuclei-2d"
    assert bring(entry).was_here


def test_a_licensed_lamella_model_is_not_loaded_unaccepted(bring, server, places):
    from lamella.models.store import find_model, list_here

    source = starter_folder() / "nuclei-2d"
    server.files["n.zip"] = content = zipped({p.name: p.read_bytes() for p in source.iterdir()})
    file = file_of("n.zip", content, server)
    bring(entry_of(file, id="nuclei-2d", engine="lamella", must_accept=True), accepts_licence=True)
    find_model("nuclei-2d", places)
    (places.models / ".licences" / "nuclei-2d.json").unlink()
    with pytest.raises(LicenceError):
        find_model("nuclei-2d", places)
    assert not next(model for model in list_here(places) if model.id == "nuclei-2d").is_accepted


def test_a_lamella_model_of_another_id_is_refused(bring, server, places):
    source = starter_folder() / "nuclei-2d"
    content = zipped({path.name: path.read_bytes() for path in source.iterdir()})
    server.files["n.zip"] = content
    with pytest.raises(ModelError, match="is a model called 'nuclei-2d'"):
        bring(entry_of(file_of("n.zip", content, server), engine="lamella"))
    assert not (places.models / "thing").exists()


def test_a_lamella_model_without_a_card_is_refused(bring, server):
    content = zipped({"readme.txt": b"hello"})
    server.files["n.zip"] = content
    with pytest.raises(ModelError, match="holds no model folder"):
        bring(entry_of(file_of("n.zip", content, server), engine="lamella", id="other"))


def test_what_its_engine_does_not_know_is_refused(bring, server, places):
    server.files["weights.bin"] = b"<html>"
    with pytest.raises(ModelError, match="no model of fake") as caught:
        bring(entry_of(file_of("weights.bin", b"<html>", server)))
    assert "fake.json" in caught.value.hint
    assert not (places.models / "thing").exists()


def test_a_changed_byte_is_caught_at_load_and_mended_by_pulling(bring, weights_entry, places):
    bring(weights_entry)
    path = find_foreign("thing", places).path / "weights.bin"
    stamp = path.stat()
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    with pytest.raises(ModelError, match="was changed"):
        find_foreign("thing", places)
    assert not bring(weights_entry).was_here
    assert find_foreign("thing", places) is not None


def test_another_version_takes_the_place_of_the_old_one(bring, weights_entry, places):
    bring(weights_entry)
    bring(weights_entry.model_copy(update={"version": "2"}))
    assert find_foreign("thing", places).version == "2"


def test_a_model_of_the_users_own_is_not_replaced(bring, weights_entry, places):
    bring(weights_entry)
    (places.models / "thing" / "pulled.json").unlink()
    assert bring(weights_entry).was_here
    with pytest.raises(OutputExistsError, match="did not come from a catalogue"):
        bring(weights_entry.model_copy(update={"version": "2"}))


def test_the_folder_can_be_moved(bring, weights_entry, places, tmp_path):
    bring(weights_entry)
    moved = tmp_path / "elsewhere"
    places.models.rename(moved)
    assert find_foreign("thing", Places(models=moved)) is not None
    for path in moved.rglob("*"):
        if path.is_file():
            assert str(places.models).encode() not in path.read_bytes(), path


# --- nobody published a hash --------------------------------------------------------------------


def test_a_first_file_is_believed_told_and_held_to(bring, full, places, listener):
    entry = entry_of(file_of("weights.bin", WEIGHTS, full, sha256=None, n_bytes=None))
    assert bring(entry).unpublished == ("weights.bin",)
    assert "nobody published the SHA-256" in listener.messages[-1]
    import shutil

    shutil.rmtree(places.models / "thing")
    full.files["weights.bin"] = other = WEIGHTS[:-1] + b"!"
    with pytest.raises(DownloadError, match=r"catalogue says|SHA-256") as caught:
        bring(entry)
    assert "--trust-changed" in caught.value.hint
    bring(entry, trusts_change=True)
    assert (find_foreign("thing", places).path / "weights.bin").read_bytes() == other


def test_a_web_page_is_never_believed(bring, full, wild_server):
    full.always = wild_server.Fault("page")
    entry = entry_of(file_of("weights.bin", WEIGHTS, full, sha256=None, n_bytes=None))
    with pytest.raises(DownloadError, match="sent a web page"):
        bring(entry)


# --- mirrors, files, offline --------------------------------------------------------------------


def test_a_mirror_comes_first(bring, full, wild_server, weights_entry):
    with wild_server.WildServer({"thing/weights.bin": WEIGHTS}) as mirror:
        bring(weights_entry, mirrors=(mirror.url("").rstrip("/"),))
        assert (mirror.n_sent, full.n_sent) == (len(WEIGHTS), 0)


def test_a_mirror_without_the_file_is_passed_over(bring, full, wild_server, weights_entry):
    with wild_server.WildServer() as mirror:
        bring(weights_entry, mirrors=(mirror.url(""),))
        assert [one.path for one in mirror.log] == ["thing/weights.bin", "weights.bin"]


@pytest.mark.parametrize("is_folder", [True, False])
def test_from_a_file_or_folder_offline(bring, full, tmp_path, weights_entry, places, is_folder):
    source = tmp_path / "stick"
    source.mkdir()
    (source / "weights.bin").write_bytes(WEIGHTS)
    bring(
        weights_entry,
        replace(places, is_offline=True),
        source=source if is_folder else source / "weights.bin",
    )
    assert find_foreign("thing", places) is not None
    assert full.log == []


def test_from_a_wrong_or_missing_file(bring, full, tmp_path, weights_entry):
    (tmp_path / "weights.bin").write_bytes(WEIGHTS[:-1] + b"?")
    with pytest.raises(DownloadError, match="SHA-256"):
        bring(weights_entry, source=tmp_path / "weights.bin")
    with pytest.raises(DownloadError, match="no such file"):
        bring(weights_entry, source=starter_folder())
    two = entry_of(file_of("weights.bin", WEIGHTS), file_of("model.zip", ARCHIVE))
    with pytest.raises(DownloadError, match="several files"):
        bring(two, source=tmp_path / "other.bin")


def test_offline_says_what_to_bring_and_from_where(bring, full, weights_entry, places):
    with pytest.raises(OfflineError, match=r"weights\.bin is not here") as caught:
        bring(weights_entry, replace(places, is_offline=True))
    assert full.url("weights.bin") in caught.value.hint
    assert "--from" in caught.value.hint
    assert full.log == []


def test_what_is_here_works_offline(bring, weights_entry, places):
    bring(weights_entry)
    assert bring(weights_entry, replace(places, is_offline=True)).was_here


# --- licences -----------------------------------------------------------------------------------


@pytest.fixture
def licensed(weights_entry):
    words = {"licence": "L", "licence_url": "https://l", "licence_text": "Be kind."}
    return weights_entry.model_copy(update={"must_accept": True, **words})


def test_a_licence_comes_before_the_first_byte(bring, licensed, full, places):
    with pytest.raises(LicenceError, match="not accepted here: L https://l") as caught:
        bring(licensed)
    assert "--accept-licence" in caught.value.hint
    assert full.log == []
    bring(licensed, accepts_licence=True)
    assert find_foreign("thing", places).licence == "L"
    document = json.loads((places.models / ".licences" / "thing.json").read_text())
    assert document["text_sha256"] == hashlib.sha256(b"L\nhttps://l\nBe kind.").hexdigest()
    assert document["accepted_at"].endswith("+00:00")


def test_an_unaccepted_model_is_not_loaded(bring, licensed, places):
    bring(licensed, accepts_licence=True)
    (places.models / ".licences" / "thing.json").unlink()
    with pytest.raises(LicenceError):
        find_foreign("thing", places)
    with pytest.raises(LicenceError):
        bring(licensed)
    bring(licensed, accepts_licence=True)
    assert find_foreign("thing", places) is not None


@pytest.mark.parametrize("damage", [b"", b"{}", b"\xff"])
def test_a_damaged_acceptance_is_none(licensed, places, damage):
    terms = Terms.of(licensed)
    accept(terms, places)
    assert is_accepted(terms, places)
    (places.models / ".licences" / "thing.json").write_bytes(damage)
    assert not is_accepted(terms, places)


def test_another_text_has_to_be_accepted_anew(licensed, places):
    accept(Terms.of(licensed), places)
    changed = licensed.model_copy(update={"licence_text": "Be kinder."})
    assert not is_accepted(Terms.of(changed), places)


def test_nowhere_to_keep_anything(weights_entry, listener):
    with pytest.raises(InputError, match="no folder to keep models in"):
        pull(weights_entry, Places(), listener)


# --- disks --------------------------------------------------------------------------------------


def test_the_disk_is_looked_at_before_the_first_byte(bring, full, weights_entry):
    with pytest.raises(StorageError, match=r"thing needs 0\.1 MB.* has 0\.1 MB free"):
        bring(weights_entry, free=lambda _path: len(WEIGHTS) - 1)
    assert full.log == []
    bring(weights_entry, free=lambda _path: len(WEIGHTS))


def test_a_zip_needs_room_for_what_is_in_it(bring, full):
    entry = entry_of(file_of("model.zip", ARCHIVE, full), n_bytes_installed=10**6)
    with pytest.raises(StorageError):
        bring(entry, free=lambda _path: 10**6)
    assert full.log == []
    bring(entry, free=lambda _path: 10**6 + len(ARCHIVE))


def test_what_is_there_needs_no_room(bring, full, weights_entry, places, wild_server):
    full.faults = [wild_server.Fault("drop", at=100_000)] + [wild_server.Fault("hang_up")] * 5
    with pytest.raises(DownloadError):
        bring(weights_entry)
    bring(weights_entry, free=lambda _path: len(WEIGHTS) - 100_000)


def test_an_unknown_size_is_checked_when_the_server_tells_it(bring, full):
    entry = entry_of(file_of("weights.bin", WEIGHTS, full, n_bytes=None))
    with pytest.raises(StorageError):
        bring(entry, free=lambda _path: 1000)
    assert sum(one.n_sent for one in full.log) <= len(WEIGHTS)


CODE = textwrap.dedent(
    """
    import json, resource, sys
    from pathlib import Path
    from lamella.core.errors import LamellaError
    from lamella.core.places import Places
    from lamella.core.progress import SilentSink
    from lamella.models.pull import pull
    from lamella.wire.catalogue import CatalogueEntry
    entry, models, limit = CatalogueEntry.model_validate_json(sys.argv[1]), sys.argv[2], sys.argv[3]
    if limit != "0":
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
    try:
        result = pull(entry, Places(models=Path(models)), SilentSink())
        print(json.dumps([result.was_here, result.n_bytes_moved]))
    except LamellaError as error:
        print(json.dumps([error.code, error.message, error.hint]))
    """
)


def started(entry, places, limit=0):
    words = [sys.executable, "-c", CODE, entry.model_dump_json(), str(places.models), str(limit)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)


def finished(process):
    out, _ = process.communicate(timeout=60)
    return json.loads(out)


@pytest.mark.skipif(sys.platform == "win32", reason="no limits on file sizes there")
def test_a_disk_that_fills_meanwhile_keeps_what_came(weights_entry, places, bring, full):
    code, message, hint = finished(started(weights_entry, places, limit=50_000))
    assert code == "storage"
    assert "disk is full" in message
    assert "what came is kept" in hint
    bring(weights_entry)
    assert full.log[-1].start == 50_000


# --- processes and threads ----------------------------------------------------------------------


def test_processes_that_want_one_model_share_one_download(weights_entry, places, full):
    full.pause_s = 0.02
    processes = [started(weights_entry, places) for _ in range(3)]
    results = [finished(process) for process in processes]
    assert sorted(results) == [[False, len(WEIGHTS)], [True, 0], [True, 0]]
    assert full.n_sent == len(WEIGHTS)


def test_threads_that_want_one_model_share_one_download(weights_entry, bring, full):
    full.pause_s = 0.005
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(bring(weights_entry))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(result.was_here for result in results) == [False, True, True, True]
    assert full.n_sent == len(WEIGHTS)


def test_who_waits_sees_the_others_progress(
    weights_entry, places, full, bring, make_listener, fast
):
    full.pause_s = 0.03
    waiting = make_listener()
    other = threading.Thread(target=lambda: bring(weights_entry))
    other.start()
    while not pulls_folder(places.models, "thing").is_dir():
        time.sleep(0.01)
    result = pull(weights_entry, places, waiting, PullOptions(transfer=fast))
    other.join()
    assert result.was_here
    done = [event.done for event in waiting.events if event.type == "progress"]
    assert done == sorted(done)
    assert done[-1] > 0


@pytest.mark.skipif(sys.platform == "win32", reason="kill -9")
def test_a_killed_pull_goes_on_where_its_disk_ended(
    weights_entry, places, full, bring, wild_server
):
    # The server falls silent there, so that the pull is not over before it is killed.
    full.faults = [wild_server.Fault("stall", at=60_000)]
    process = started(weights_entry, places)
    folder = pulls_folder(places.models, "thing")
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        kept = sum(path.stat().st_size for path in folder.glob("*.part")) if folder.is_dir() else 0
        if kept > 40_000:
            break
        time.sleep(0.01)
    process.kill()
    process.communicate()
    kept = next(folder.glob("*.part")).stat().st_size
    assert 40_000 < kept <= 60_000
    assert bring(weights_entry).n_bytes_moved == len(WEIGHTS) - kept
    assert full.log[-1].start == kept


def test_who_waits_can_be_cancelled(weights_entry, places, make_listener, fast):
    from lamella.models.stored import locked

    places.models.mkdir()
    listener = make_listener()
    with locked(places.models, "thing", listener):
        waiting = make_listener()
        timer = threading.Timer(0.3, waiting.token.cancel)
        timer.start()
        with pytest.raises(RunCancelledError):
            pull(weights_entry, places, waiting, PullOptions(transfer=fast))
        timer.join()
    assert "is at work on thing; waiting for it" in waiting.messages[0]


def test_cancelled_and_gone_on_with(weights_entry, places, make_listener, full, fake):
    full.pause_s = 0.02
    listener = make_listener(cancel_at_mb=0.04)
    with pytest.raises(RunCancelledError):
        pull(weights_entry, places, listener, recognisers=(fake,))
    assert not (places.models / "thing").exists()
    full.pause_s = 0
    pull(weights_entry, places, make_listener(), recognisers=(fake,))
    assert full.log[-1].start >= 40_000


def test_progress_counts_all_files(bring, full, listener):
    bring(
        entry_of(
            file_of("weights.bin", WEIGHTS, full),
            file_of("model.zip", ARCHIVE, full, folder="z"),
        )
    )
    seen = [event for event in listener.events if event.type == "progress"]
    pulling = [event for event in seen if event.stage == "pulling thing"]
    assert pulling[-1].done == pytest.approx((len(WEIGHTS) + len(ARCHIVE)) / 1e6)
    assert pulling[-1].total == pulling[0].total == pulling[-1].done
    assert {event.file for event in pulling} == {"weights.bin", "model.zip"}
    assert [event.done for event in pulling] == sorted(event.done for event in pulling)


# --- anything may happen, in any order ----------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def _stateful_tools(tmp_path_factory, wild_server):
    PullMachine.wild = wild_server
    PullMachine.make_folder = staticmethod(lambda: tmp_path_factory.mktemp("machine"))


class PullMachine(RuleBasedStateMachine):
    """A user who pulls, is cut off, cancels, spoils and removes, from a server on bad days."""

    wild = None
    make_folder = None

    def __init__(self):
        super().__init__()
        self.server = self.wild.WildServer({"weights.bin": WEIGHTS}).__enter__()
        self.places = Places(models=self.make_folder() / "models")
        self.entry = entry_of(file_of("weights.bin", WEIGHTS, self.server), engine="nobody")
        self.is_spoiled = False

    def teardown(self):
        self.server.__exit__()

    @property
    def target(self):
        return self.places.models / "thing"

    def kept(self):
        parts = list(pulls_folder(self.places.models, "thing").glob("*.part"))
        return parts[0].stat().st_size if parts else 0

    @rule(
        at=st.integers(0, len(WEIGHTS) - 1),
        kind=st.sampled_from(["drop", "hang_up", "status", "none"]),
    )
    def pull_on_a_bad_day(self, at, kind):
        kept, was_here = self.kept(), self.target.exists() and not self.is_spoiled
        self.server.faults = [self.wild.Fault(kind, at=at)] + [self.wild.Fault("hang_up")] * 9
        self.server.log.clear()
        patience = TransferSettings(timeout_s=10, attempts=2, sleep=lambda _s: None)
        try:
            from lamella.core.progress import SilentSink

            pull(self.entry, self.places, SilentSink(), PullOptions(transfer=patience))
            self.is_spoiled = False
        except DownloadError:
            assert not was_here
        self.server.faults = []
        for one in self.server.log:
            assert one.start >= kept, "what was there is not asked for again"
        if was_here:
            assert self.server.log == []

    @precondition(lambda self: self.target.exists())
    @rule(at=st.integers(0, len(WEIGHTS) - 1))
    def spoil(self, at):
        path = self.target / "files" / "weights.bin"
        content = bytearray(path.read_bytes())
        content[at] ^= 255
        path.write_bytes(content)
        self.is_spoiled = hashlib.sha256(content).hexdigest() != self.entry.files[0].sha256

    @precondition(lambda self: self.target.exists())
    @rule()
    def remove(self):
        from lamella.core.progress import SilentSink
        from lamella.models.tidy import remove_model

        remove_model("thing", self.places, SilentSink())
        self.is_spoiled = False

    @invariant()
    def what_has_the_name_is_whole_or_refused(self):
        if not self.target.exists():
            return
        if self.is_spoiled:
            with pytest.raises(ModelError):
                find_foreign("thing", self.places)
        else:
            path = find_foreign("thing", self.places).path / "weights.bin"
            assert path.read_bytes() == WEIGHTS


TestPullMachine = PullMachine.TestCase
TestPullMachine.settings = settings(max_examples=15, stateful_step_count=12, deadline=None)
