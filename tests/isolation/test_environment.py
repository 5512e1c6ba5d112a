"""Environments of engines: ready only when whole, made by uv, with an error for all that can fail.

A stand-in for uv makes what is asked for and says what uv would say; the real one makes the
environments of the engines' own tests.
"""

import json
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from lamella.cli import main
from lamella.core.errors import (
    DownloadError,
    EngineError,
    MissingDependencyError,
    OfflineError,
    RunCancelledError,
    StorageError,
    UnknownIdError,
)
from lamella.core.places import Places
from lamella.core.progress import SilentSink
from lamella.isolation import environment, installation
from lamella.isolation.environment import (
    STAMP_NAME,
    EnvironmentSpec,
    check,
    environment_path,
    find_environment,
    is_ready,
    list_environments,
    python_of,
    remove,
)
from lamella.isolation.installation import estimate_cost, install
from lamella.testing.engine import RecordingSink

REPO = Path(__file__).resolve().parents[2]

FAKE_UV = f"""#!{sys.executable}
import json, os, pathlib, sys, time
here = pathlib.Path(__file__).parent
plan = json.loads((here / "plan.json").read_text())
words = [word for word in sys.argv[1:]]
with (here / "calls.txt").open("a") as stream:
    stream.write(" ".join(words) + "\\n")
def say(text):
    print(text, file=sys.stderr, flush=True)
if "cache" in words:
    print(plan.get("cache", str(here)))
elif "venv" in words:
    folder = pathlib.Path(words[-1])
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").symlink_to({sys.executable!r})
elif "--dry-run" in words:
    sys.exit(0 if plan.get("is_cached") else 1)
else:
    say("Resolved 3 packages in 5ms")
    say("Downloading torch (2.0GiB)")
    say(" Downloaded torch")
    time.sleep(plan.get("sleep", 0))
    if plan.get("says"):
        say(plan["says"])
        sys.exit(2)
"""


@pytest.fixture
def uv(tmp_path, monkeypatch):
    """A stand-in for uv; ``uv(is_cached=..., says=...)`` tells it what to do."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "uv"
    program.write_text(FAKE_UV)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(installation, "find_uv", lambda: [str(program)])

    def plan(**words):
        (folder / "plan.json").write_text(json.dumps(words))
        return folder

    plan()
    return plan


@pytest.fixture
def spec(tmp_path, monkeypatch):
    """An environment whose engine is a module of the standard library."""
    lock = tmp_path / "toy.txt"
    lock.write_text("toy==1.0 --hash=sha256:00\n")
    toy = EnvironmentSpec(
        name="toy",
        title="Toy",
        requirements=lock,
        imports=("json",),
        python=">=3.11,<3.99",
        download_bytes=3_000_000_000,
        disk_bytes=1_000_000,
    )
    monkeypatch.setattr(environment, "_OWN", (*environment._OWN, toy))
    return toy


@pytest.fixture
def places(tmp_path):
    return Places(environments=tmp_path / "environments")


def leftovers(places):
    return [path.name for path in places.environments.iterdir()]


def test_an_installed_environment_is_ready_and_its_engine_imports(uv, spec, places):
    assert not is_ready("toy", places).is_ready
    sink = RecordingSink()
    install("toy", places, sink)
    assert is_ready("toy", places).is_ready
    assert leftovers(places) == ["toy"]
    check("toy", places)
    assert python_of("toy", places).is_absolute()
    done = [step.done for step in sink.events]
    assert done == sorted(done)
    assert 2000 < done[-1] <= sink.events[-1].total == 3000


def test_a_ready_environment_is_left_alone_unless_fresh(uv, spec, places):
    folder = uv()
    install("toy", places, SilentSink())
    calls = (folder / "calls.txt").read_text()
    install("toy", places, SilentSink())
    assert (folder / "calls.txt").read_text() == calls
    install("toy", places, SilentSink(), fresh=True)
    assert (folder / "calls.txt").read_text() != calls
    assert leftovers(places) == ["toy"]


def test_an_environment_of_another_lock_is_outdated_and_made_anew(uv, spec, places):
    install("toy", places, SilentSink())
    spec.requirements.write_text("toy==2.0 --hash=sha256:11\n")
    assert "another version" in is_ready("toy", places).reason
    with pytest.raises(MissingDependencyError) as caught:
        python_of("toy", places)
    assert caught.value.hint == "lamella engines install toy"
    install("toy", places, SilentSink())
    assert is_ready("toy", places).is_ready


def test_the_line_ends_of_a_lock_do_not_count(spec):
    before = spec.sha256
    spec.requirements.write_bytes(spec.requirements.read_bytes().replace(b"\n", b"\r\n"))
    assert spec.sha256 == before


def test_a_folder_without_a_stamp_is_never_ready(uv, spec, places):
    install("toy", places, SilentSink())
    stamp = environment_path("toy", places) / STAMP_NAME
    for content in ("", "[]", "{}", '{"lock_sha256": 3}'):
        stamp.write_text(content)
        assert not is_ready("toy", places).is_ready
    stamp.unlink()
    assert "incomplete" in is_ready("toy", places).reason


def test_a_python_that_is_gone_is_said(uv, spec, places):
    install("toy", places, SilentSink())
    (environment_path("toy", places) / "bin" / "python").unlink()
    assert "Python" in is_ready("toy", places).reason


def test_cancelling_leaves_nothing_behind(uv, spec, places):
    uv(sleep=30)

    class StopAtFirst(RecordingSink):
        def emit(self, event, /):
            super().emit(event)
            self.cancel_at = 0

    with pytest.raises(RunCancelledError):
        install("toy", places, StopAtFirst())
    assert leftovers(places) == []


def test_what_a_killed_installation_left_is_swept_and_not_ready(uv, spec, places):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left = environment_path("toy", places).with_name(f"toy.part-{dead.pid}")
    left.mkdir(parents=True)
    assert not is_ready("toy", places).is_ready
    install("toy", places, SilentSink())
    assert leftovers(places) == ["toy"]


@pytest.mark.parametrize(
    ("said", "error", "words"),
    [
        ("error: No space left on device (os error 28)", StorageError, "full"),
        ("error: error sending request for url: dns error", DownloadError, "could not be fetched"),
        ("error: Network connectivity is disabled (--offline)", OfflineError, "not in uv's cache"),
        ("error: Hash mismatch for `torch`", DownloadError, "hash"),
        ("error: No interpreter found for Python", MissingDependencyError, "needs a Python"),
        ("error: something odd", EngineError, "something odd"),
    ],
)
def test_what_uv_says_becomes_one_clear_error(uv, spec, places, said, error, words):
    uv(says=said)
    with pytest.raises(error, match=words) as caught:
        install("toy", places, SilentSink())
    assert caught.value.hint
    assert leftovers(places) == []


def test_a_failed_renewal_keeps_the_old_environment(uv, spec, places):
    install("toy", places, SilentSink())
    uv(says="error: something odd")
    with pytest.raises(EngineError):
        install("toy", places, SilentSink(), fresh=True)
    assert is_ready("toy", places).is_ready


def test_the_disk_is_looked_at_first(uv, spec, places, monkeypatch):
    folder = uv()
    monkeypatch.setattr(
        installation.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1_000})()
    )
    with pytest.raises(StorageError, match="GB free") as caught:
        install("toy", places, SilentSink())
    assert "LAMELLA_ENVIRONMENTS" in caught.value.hint
    assert "pip sync --python" not in (folder / "calls.txt").read_text()


def test_what_uv_has_cached_costs_nothing_and_needs_no_network(uv, spec, places):
    folder = uv(is_cached=True)
    assert estimate_cost("toy", places).download_bytes == 0
    install("toy", places, SilentSink())
    real = [line for line in (folder / "calls.txt").read_text().splitlines() if "dry" not in line]
    assert "--offline" in real[-1]
    uv(is_cached=False)
    assert estimate_cost("toy", places).download_bytes == spec.download_bytes


def test_offline_keeps_uv_to_its_cache(uv, spec, places):
    folder = uv()
    offline = Places(environments=places.environments, is_offline=True)
    install("toy", offline, SilentSink())
    assert "--offline" in (folder / "calls.txt").read_text().splitlines()[-1]


def test_no_index_is_named_to_uv(uv, spec, places):
    folder = uv()
    install("toy", places, SilentSink())
    assert not re.search(r"--(default-|extra-)?index|://", (folder / "calls.txt").read_text())


def test_without_uv_it_says_how_to_get_it(spec, places, monkeypatch):
    monkeypatch.setattr(installation.shutil, "which", lambda _: None)
    monkeypatch.setattr(installation, "is_importable", lambda _: False)
    with pytest.raises(MissingDependencyError, match="no uv here") as caught:
        install("toy", places, SilentSink())
    assert caught.value.hint == "pip install uv"


def test_a_broken_engine_is_told_by_check(uv, spec, places, monkeypatch):
    install("toy", places, SilentSink())
    broken = EnvironmentSpec(spec.name, spec.title, spec.requirements, ("no_such_module_here",))
    monkeypatch.setattr(environment, "_OWN", (broken,))
    with pytest.raises(EngineError, match="no_such_module_here") as caught:
        check("toy", places)
    assert "--fresh" in caught.value.hint


def test_remove_takes_everything(uv, spec, places):
    install("toy", places, SilentSink())
    assert remove("toy", places)
    assert leftovers(places) == []
    assert not remove("toy", places)


def test_an_unknown_environment_names_the_nearest():
    with pytest.raises(UnknownIdError) as caught:
        find_environment("cellpos3")
    assert "cellpose3" in caught.value.hint


def test_no_place_for_environments_is_one_clear_error():
    assert "no folder" in is_ready("cellpose3", Places()).reason
    with pytest.raises(MissingDependencyError) as caught:
        environment_path("cellpose3", Places())
    assert "LAMELLA_ENVIRONMENTS" in caught.value.hint


# -- the locks that ship


@pytest.fixture(params=["cellpose3", "cellpose4", "totalsegmentator"])
def lock(request):
    return find_environment(request.param).requirements.read_text()


def test_every_package_of_a_lock_is_pinned_with_its_hashes(lock):
    blocks = re.split(r"\n(?=\S)", lock.strip())
    packages = [block for block in blocks if not block.startswith("#")]
    assert len(packages) > 30
    for block in packages:
        assert re.match(r"[a-z0-9._-]+==\S+", block), block[:80]
        assert "--hash=sha256:" in block, block[:80]


def test_no_lock_names_an_index(lock):
    assert not re.search(r"://|--index|--extra-index|--find-links", lock)


def test_locks_share_torch_with_everything_else(lock):
    everything = (REPO / "requirements" / "all.txt").read_text()
    for name in ("torch", "torchvision"):
        wanted = re.search(rf"^{name}==(\S+)", everything, re.MULTILINE)
        found = re.search(rf"^{name}==(\S+)", lock, re.MULTILINE)
        assert wanted is not None
        assert found is None or found[1] == wanted[1]


def test_restoration_comes_with_cellpose_3_only():
    assert "cellpose==3.1.1.2" in find_environment("cellpose3").requirements.read_text()
    assert re.search(r"cellpose==4\.", find_environment("cellpose4").requirements.read_text())


# -- the commands


def test_the_commands_install_and_remove(uv, spec, places, monkeypatch, capsys):
    from dataclasses import replace

    from lamella.engines import registry
    from lamella.engines.cellpose.descriptor import CELLPOSE3

    toy = replace(CELLPOSE3, id="toy-engine", environment="toy")
    monkeypatch.setattr(registry, "_OWN", (*registry._OWN, toy))
    monkeypatch.setenv("LAMELLA_ENVIRONMENTS", str(places.environments))
    assert main(["engines", "list", "--json"]) == 0
    listed = {one["id"]: one for one in json.loads(capsys.readouterr().out)["engines"]}
    assert not listed["toy-engine"]["is_available"]
    assert listed["toy-engine"]["hint"] == "lamella engines install toy-engine"
    assert main(["engines", "check", "toy-engine"]) == 3
    capsys.readouterr()
    assert main(["engines", "install", "toy-engine"]) == 0
    captured = capsys.readouterr()
    assert "GB to download" in captured.err
    assert "toy: ready" in captured.out
    assert main(["engines", "check", "toy-engine"]) == 0
    assert main(["engines", "remove", "toy-engine", "--json"]) == 0
    assert "toy" not in leftovers(places)
    capsys.readouterr()
    assert main(["engines", "install", "classical"]) != 0
    assert "no environment of its own" in capsys.readouterr().err
    assert main(["engines", "install"]) != 0
    assert "--all-isolated" in capsys.readouterr().err


def test_every_isolated_engine_names_an_environment_that_exists():
    from lamella.engines.registry import list_engines

    known = {spec.name for spec in list_environments()}
    named = {engine.environment for engine in list_engines() if engine.environment}
    assert named <= known
