"""A server in memory, and a machine that carries out flows with every misfortune."""

import importlib.util
import sys
from pathlib import Path

import pytest


def _load(name):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


fake_server = _load("fake_server")
misfortune = _load("misfortune")


@pytest.fixture
def fake():
    return fake_server.FakeServer()


@pytest.fixture
def live(fake):
    with fake_server.live(fake) as url:
        yield url


@pytest.fixture
def places(tmp_path):
    from lamella.core.places import ClientPlaces

    return ClientPlaces(tmp_path / "config" / "servers.json", tmp_path / "cache")
