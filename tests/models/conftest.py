"""The wild server and the user's places, for tests of the model store."""

import importlib.util
import sys
from pathlib import Path

import pytest

from lamella.core.places import Places
from lamella.core.progress import CancelToken
from lamella.models.download import TransferSettings

_SPEC = importlib.util.spec_from_file_location(
    "wild_server", Path(__file__).with_name("wild_server.py")
)
assert _SPEC is not None
assert _SPEC.loader is not None
wild = importlib.util.module_from_spec(_SPEC)
sys.modules["wild_server"] = wild
_SPEC.loader.exec_module(wild)


@pytest.fixture
def server():
    with wild.WildServer() as running:
        yield running


@pytest.fixture(scope="session")
def wild_server():
    return wild


@pytest.fixture
def fast():
    """Patience of a test: no waits."""
    return TransferSettings(timeout_s=10, sleep=lambda _s: None)


@pytest.fixture
def places(tmp_path):
    return Places(models=tmp_path / "models")


class Listener:
    """Keeps what it is told; cancels after so many megabytes where asked to."""

    def __init__(self, cancel_at_mb=float("inf")):
        self.events = []
        self.token = CancelToken()
        self.cancel_at_mb = cancel_at_mb

    def emit(self, event):
        self.events.append(event)
        if event.type == "progress" and event.done >= self.cancel_at_mb:
            self.token.cancel()

    def check(self):
        self.token.check()

    @property
    def messages(self):
        return [event.message for event in self.events if event.type in ("log", "warning")]


@pytest.fixture
def listener():
    return Listener()


@pytest.fixture
def make_listener():
    return Listener


class FakeEngine:
    """A recogniser: folders with fake.json, and files that begin with FAKE."""

    engine = "fake"
    expected = "a folder with fake.json, or a file that begins with FAKE"

    def recognise(self, path):
        if path.is_dir():
            return (path / "fake.json").is_file()
        return path.is_file() and path.read_bytes()[:4] == b"FAKE"

    def describe(self, path):
        return {
            "id": f"Fake {path.stem}",
            "title": "A fake",
            "classes": {0: "background", 1: "thing"},
            "axes": "zyx",
            "details": {"answer": 42},
        }


@pytest.fixture
def fake():
    return FakeEngine()
