"""Modules stay readable: 600 lines at most, and no room called utils."""

from pathlib import Path

import lamella

ROOT = Path(lamella.__file__).parent


def test_modules_are_short():
    long = {
        str(path.relative_to(ROOT)): n
        for path in ROOT.rglob("*.py")
        if (n := len(path.read_text().splitlines())) > 600
    }
    assert not long, f"split these: {long}"


def test_nothing_is_called_utils():
    names = {path.stem for path in ROOT.rglob("*.py")} | {p.name for p in ROOT.rglob("*/")}
    assert not names & {"utils", "util", "helpers", "misc", "common"}


def test_public_names_are_listed_once_and_in_order():
    assert len(set(lamella.__all__)) == len(lamella.__all__)
    assert list(lamella.__all__) == sorted(lamella.__all__)
