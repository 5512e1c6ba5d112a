"""A server in memory, a machine that carries out flows with every misfortune, and a real server."""

import importlib.util
import os
import sys
from pathlib import Path

import numpy as np
import pytest


def _load(name):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


fake_server = _load("fake_server")
misfortune = _load("misfortune")
commands = _load("commands")


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


# --- A real server, one for all tests here ------------------------------------------------------


@pytest.fixture(scope="session")
def allowed(tmp_path_factory):
    """A folder whose files jobs of the server may name."""
    return tmp_path_factory.mktemp("allowed")


@pytest.fixture(scope="session")
def server(tmp_path_factory, allowed):
    from lamella.testing.server import run_server

    folder = tmp_path_factory.mktemp("server") / "data"
    flags = ("--workers", "1", "--allow-root", str(allowed))
    with run_server(folder, *flags, environment={"OMP_NUM_THREADS": "1"}) as opened:
        yield opened


@pytest.fixture(scope="session")
def home(server, tmp_path_factory):
    """Variables of a user who has a token."""
    folder = tmp_path_factory.mktemp("home")
    return {
        **os.environ,
        "XDG_CACHE_HOME": str(folder / "cache"),
        "XDG_CONFIG_HOME": str(folder / "config"),
        "LAMELLA_TOKEN": server.token,
        "OMP_NUM_THREADS": "1",
    }


@pytest.fixture
def as_user(home, monkeypatch):
    """This process is that user's."""
    for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "LAMELLA_TOKEN"):
        monkeypatch.setenv(name, home[name])


@pytest.fixture(scope="session")
def tomogram(tmp_path_factory):
    """A noisy shell, float32, 48 x 96 x 96, 1.8 MB."""
    import lamella as lm

    noise = np.random.default_rng(0).normal(0, 1, (48, 96, 96)).astype(np.float32)
    z, y, x = np.indices(noise.shape)
    shell = np.abs(np.sqrt((z - 24) ** 2 + (y - 48) ** 2 + (x - 48) ** 2) - 16) < 2
    volume = lm.Volume.from_array(noise - 3 * shell, spacing=(1.0,) * 3, unit="nm")
    return lm.save(volume, tmp_path_factory.mktemp("data") / "tomo.mrc")


@pytest.fixture(scope="session")
def quiet(tomogram, tmp_path_factory):
    """What a run of this machine gives."""
    import lamella as lm

    return lm.segment(tomogram, commands.MODEL, run_dir=tmp_path_factory.mktemp("quiet") / "a.run")
