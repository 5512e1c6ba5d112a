"""Fixtures and rules of every test."""

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from lamella.testing.outside import is_ci, leave_out
from lamella.volume import Volume

# Contract suites live in the package: their asserts are explained as those in tests are.
pytest.register_assert_rewrite(
    "lamella.testing.io",
    "lamella.testing.io_reader",
    "lamella.testing.engine",
    "lamella.testing.isolated",
    "lamella.testing.executor",
    "lamella.testing.dispatch",
    "lamella.testing.blocks",
)

# Engines that live apart: where `make test` (or a developer) has put their environments.
os.environ["LAMELLA_ENVIRONMENTS"] = os.environ.get(
    "LAMELLA_TEST_ENVIRONMENTS", str(Path(__file__).resolve().parents[1] / ".engines")
)

_SLOW_OK = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
settings.register_profile("dev", max_examples=25, deadline=None, suppress_health_check=_SLOW_OK)
# Derandomised: a push is judged by the same examples on every machine.
settings.register_profile(
    "ci", max_examples=50, deadline=None, derandomize=True, suppress_health_check=_SLOW_OK
)
settings.register_profile(
    "nightly", max_examples=1000, deadline=None, suppress_health_check=_SLOW_OK
)


settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if is_ci() else "dev"))


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real test data, named by LAMELLA_TEST_DATA; never committed.

    Without it a test is skipped on a developer's machine and fails in CI: a test that never runs
    proves nothing.
    """
    named = os.environ.get("LAMELLA_TEST_DATA", "")
    if not named:
        leave_out("LAMELLA_TEST_DATA is not set")
    if not Path(named).is_dir():
        leave_out(f"LAMELLA_TEST_DATA names no folder: {named!r}")
    return Path(named).resolve()


@pytest.fixture(autouse=True)
def _own_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Run every test in an empty folder that must stay empty: no test litters where it runs."""
    folder = tmp_path_factory.mktemp("cwd")
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
    left = [path.name for path in folder.iterdir()]
    assert not left, f"the test left files in its working folder: {left}"


# --- Databases of a server ----------------------------------------------------------------------


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Any]:
    """A PostgreSQL of this session's own, from the system's package.

    Without the package a test is skipped on a developer's machine and fails in CI.
    """
    from lamella.core.errors import MissingDependencyError
    from lamella.testing.postgres import find_programs, run_postgres

    try:
        find_programs()
    except MissingDependencyError as error:
        leave_out(f"{error} ({error.hint})")
    with run_postgres() as server:
        yield server


@pytest.fixture
def postgres_url(postgres_server: Any) -> Iterator[str]:
    """The address of an empty PostgreSQL database."""
    url = postgres_server.create_database()
    yield url
    postgres_server.drop_database(url)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of an empty database: the test runs on both kinds."""
    if request.param == "postgresql":
        return request.getfixturevalue("postgres_url")
    return f"sqlite:///{tmp_path / 'lamella.db'}"


@pytest.fixture
def database(database_url: str) -> Iterator[Any]:
    """A database of each kind with the tables of a server."""
    from lamella.jobs.database import open_database
    from lamella.server.migrations import migrate

    database = open_database(database_url)
    migrate(database)
    yield database
    database.close()


# --- Storage of a server ------------------------------------------------------------------------


@pytest.fixture(scope="session")
def s3_server() -> Iterator[Any]:
    """An S3 server of this session's own, which s3fs finds by the environment."""
    from lamella.testing.s3 import run_s3

    with run_s3() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield server


@pytest.fixture
def s3_url(s3_server: Any) -> str:
    """The address of a prefix in a new, empty bucket."""
    return s3_server.create_bucket()


# --- A cluster ----------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def dask_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A Dask cluster of this session's own: a scheduler and two workers, connected by TLS."""
    from lamella.testing.dask import make_certificates, run_dask

    folder = tmp_path_factory.mktemp("dask")
    with run_dask(folder, 2, certificates=make_certificates(folder)) as site:
        yield site


# --- Small images and a small model for whole runs; no training, no PyTorch ---------------------

_MODELS = importlib.util.spec_from_file_location(
    "lamella_models", Path(__file__).parent / "engines" / "lamella_models.py"
)
assert _MODELS is not None
assert _MODELS.loader is not None
lamella_models = importlib.util.module_from_spec(_MODELS)
_MODELS.loader.exec_module(lamella_models)


def balls(shape=(24, 48, 56), seed=0):
    """Noise with a large, a middle and a small bright ball, float32."""
    image = np.random.default_rng(seed).normal(0, 0.2, shape).astype(np.float32)
    points = np.stack(np.indices(shape), axis=-1)
    for share, radius in ((0.25, 5), (0.6, 4), (0.85, 2)):
        center = [share * n for n in shape]
        image[((points - center) ** 2).sum(-1) < radius**2] += 8
    return image


@pytest.fixture(scope="session")
def scattered_balls():
    """Noise with bright balls at random places: objects wherever it is cut."""

    def make(shape, n_balls=25, seed=1):
        random = np.random.default_rng(seed)
        image = random.normal(0, 0.4, shape).astype(np.float32)
        points = np.stack(np.indices(shape), axis=-1)
        for _ in range(n_balls):
            center, radius = random.uniform(0, shape), random.uniform(3, 8)
            image[((points - center) ** 2).sum(-1) < radius**2] += 4
        return image

    return make


@pytest.fixture
def volume():
    return Volume.from_array(balls(), spacing=(4.0, 2.0, 2.0), unit="nm", origin=(10.0, 0.0, -5.0))


@pytest.fixture
def image_path(tmp_path, volume):
    from lamella.io.format import save_volume

    return save_volume(volume, tmp_path / "balls.mrc")


@pytest.fixture(scope="session")
def model_path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "bright"
    lamella_models.make_folder(folder)
    return folder
