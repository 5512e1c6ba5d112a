"""Engines and environments of other packages: found by entry point, never able to hide others."""

import importlib
import json
import re
import sys
from pathlib import Path

import pytest

from lamella.cli import main
from lamella.core.errors import UnknownEngineError
from lamella.core.places import Places
from lamella.engines.registry import check_engine, find_engine, list_engines
from lamella.isolation.environment import find_environment, is_ready

GUIDE = Path(__file__).parents[2] / "docs" / "how-to" / "write-an-engine.md"


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Puts a distribution on the path, as installing it would: a module and its dist-info."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))

    def install(name, source, **points):
        (site / f"{name}.py").write_text(source)
        info = site / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        lines = [
            f"[lamella.{group}]\n" + "".join(f"{key} = {value}\n" for key, value in entries.items())
            for group, entries in points.items()
        ]
        (info / "entry_points.txt").write_text("\n".join(lines))
        importlib.invalidate_caches()

    yield install
    for name in [name for name in sys.modules if name.startswith("toy_")]:
        del sys.modules[name]


def test_the_engine_of_the_guide_is_listed_and_runs(install, image_path, tmp_path, capsys):
    source = re.search(r"^```python\n(.*?)^```", GUIDE.read_text(), re.M | re.S)[1]
    source = source.replace("my_package.engine", "toy_brightness")
    install("toy_brightness", source, engines={"brightness": "toy_brightness:BRIGHTNESS"})
    assert [engine.id for engine in list_engines()].count("brightness") == 1
    assert check_engine(find_engine("brightness")).is_available
    out = tmp_path / "run"
    words = ["segment", str(image_path), "--model", "brightness", "--run-dir", str(out), "--json"]
    assert main(words) == 0, capsys.readouterr().err
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["status"] == "finished"
    assert manifest["model"]["engine"] == "brightness"
    capsys.readouterr()
    assert main(["segment", str(image_path), "--model", "brightness", "--option", "no=1"]) != 0
    assert "'brightness' has no option 'no'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import no_such_module_at_all", "no_such_module_at_all"),
        ("raise SystemError('I am broken')", "I am broken"),
        ("ENGINE = 3", "no EngineDescriptor"),
        (
            "from dataclasses import replace\n"
            "from lamella.engines.classical.descriptor import CLASSICAL\n"
            "ENGINE = replace(CLASSICAL)",
            "taken",
        ),
    ],
)
def test_a_broken_entry_point_is_listed_with_its_reason_and_hides_nothing(
    install, capsys, source, reason
):
    install("toy_broken", source, engines={"toy-broken": "toy_broken:ENGINE"})
    assert main(["engines", "list", "--json"]) == 0
    engines = {one["id"]: one for one in json.loads(capsys.readouterr().out)["engines"]}
    assert engines["classical"]["is_available"]
    assert not engines["toy-broken"]["is_available"]
    assert reason in engines["toy-broken"]["reason"]
    assert engines["toy-broken"]["hint"]


def test_a_run_with_an_engine_of_ours_loads_nobody_elses(install, image_path, tmp_path, capsys):
    install("toy_loaded", "raise SystemExit('loaded')", engines={"toy": "toy_loaded:ENGINE"})
    words = ["segment", str(image_path), "--model", "classical:otsu"]
    assert main([*words, "--run-dir", str(tmp_path / "run")]) == 0, capsys.readouterr().err


def test_an_engine_brings_its_own_environment(install, tmp_path):
    install(
        "toy_apart",
        f"""
from dataclasses import replace
from pathlib import Path
from lamella.engines.classical.descriptor import CLASSICAL
from lamella.isolation.environment import EnvironmentSpec
LOCK = Path({str(tmp_path / "lock.txt")!r})
LOCK.write_text("toy==1 --hash=sha256:00")
ENVIRONMENT = EnvironmentSpec("toy-apart", "Toy", LOCK, ("toy",))
ENGINE = replace(CLASSICAL, id="toy-apart", environment="toy-apart", needs=())
""",
        engines={"toy-apart": "toy_apart:ENGINE"},
        environments={"toy-apart": "toy_apart:ENVIRONMENT"},
    )
    assert find_environment("toy-apart").title == "Toy"
    availability = check_engine(find_engine("toy-apart"), Places(environments=tmp_path))
    assert availability.reason == "its environment 'toy-apart' is not installed"
    assert availability.hint == "lamella engines install toy-apart"


def test_an_engine_whose_environment_nobody_knows_says_so(install, tmp_path):
    install(
        "toy_lost",
        "from dataclasses import replace\n"
        "from lamella.engines.classical.descriptor import CLASSICAL\n"
        "ENGINE = replace(CLASSICAL, id='toy-lost', environment='toy-nowhere', needs=())",
        engines={"toy-lost": "toy_lost:ENGINE"},
    )
    availability = check_engine(find_engine("toy-lost"), Places(environments=tmp_path))
    assert "toy-nowhere" in availability.reason


def test_an_engine_that_is_not_installed_is_unknown():
    with pytest.raises(UnknownEngineError):
        find_engine("brightness")
    assert not is_ready("cellpose3", Places()).is_ready
