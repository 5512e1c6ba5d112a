"""``lamella engines``: every engine is listed, with the reason where it can't run."""

import json

import pytest

from lamella.cli import main
from lamella.engines import registry
from lamella.engines.engine import EngineDescriptor


@pytest.fixture
def absent_engine(monkeypatch):
    absent = EngineDescriptor(
        id="absent",
        title="Absent",
        description="Needs what is not there.",
        module="lamella.engines.absent",
        axes=("zyx",),
        produces=("semantic",),
        needs=("no_such_package_anywhere",),
        extra="absent",
    )
    monkeypatch.setattr(registry, "_OWN", (*registry._OWN, absent))


def test_list_shows_engines_and_their_options(capsys):
    assert main(["engines", "list"]) == 0
    out = capsys.readouterr().out
    assert "classical" in out
    assert "lamella" in out
    assert "method=otsu" in out


def test_an_engine_that_cannot_run_stays_listed_with_the_reason(absent_engine, capsys):
    assert main(["engines", "list", "--json"]) == 0
    engines = {e["id"]: e for e in json.loads(capsys.readouterr().out)["engines"]}
    assert engines["classical"]["is_available"]
    assert not engines["absent"]["is_available"]
    assert "no_such_package_anywhere" in engines["absent"]["reason"]
    assert "lamella[absent]" in engines["absent"]["hint"]


def test_check_says_what_works_and_fails_where_one_does_not(absent_engine, capsys):
    assert main(["engines", "check", "classical"]) == 0
    assert "classical: works" in capsys.readouterr().out
    assert main(["engines", "check", "--json"]) == 3
    results = {e["id"]: e for e in json.loads(capsys.readouterr().out)["engines"]}
    assert results["classical"]["works"]
    assert not results["absent"]["works"]


def test_an_unknown_engine_is_one_clear_error(capsys):
    assert main(["engines", "check", "clasical"]) == 2
    assert "unknown engine 'clasical'" in capsys.readouterr().err
