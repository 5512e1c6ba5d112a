"""A server for tests: in this process, or a real one on a free port; on either backend."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from lamella.core.places import Places
from lamella.server.app import create_app
from lamella.server.services import Services, open_services
from lamella.server.settings import Settings, flag_of
from lamella.testing.outside import fetch_node_packages
from lamella.testing.server import LiveServer, run_server
from lamella.wire.access import TokenSpec

# Name of a test's user → role.
USERS = {"admin": "admin", "annotator": "annotator", "viewer": "viewer", "other": "annotator"}


@dataclass(frozen=True)
class Backend:
    """What a server of the tests stands on.

    Attributes:
        name: ``embedded`` or ``engines``.
        settings: a new place of its kind, as settings: an empty database, an empty bucket.
    """

    name: str
    settings: Callable[[], dict[str, Any]]

    def flags(self) -> list[str]:
        """A new place, as `lamella serve` is told of it."""
        told = self.settings()
        options = told.pop("cluster_options", {})
        return [
            *(word for name, value in told.items() for word in (flag_of(name), value)),
            *(
                word
                for pair in options.items()
                for word in ("--cluster-option", "{}={}".format(*pair))
            ),
        ]


@pytest.fixture(scope="session", params=["embedded", "engines"])
def stores(request: pytest.FixtureRequest) -> Backend:
    """Where a server keeps things: SQLite and files of this machine; then PostgreSQL and S3.

    Whatever takes this fixture runs on both, unchanged.
    """
    if request.param == "embedded":
        return Backend(request.param, dict)
    postgres, s3 = (request.getfixturevalue(name) for name in ("postgres_server", "s3_server"))
    return Backend(
        request.param,
        lambda: {"database_url": postgres.create_schema(), "storage_url": s3.create_bucket()},
    )


@pytest.fixture(scope="session")
def backend(request: pytest.FixtureRequest, stores: Backend) -> Backend:
    """The same with what runs jobs: processes of this machine; then a Dask cluster over TLS."""
    if stores.name == "embedded":
        return stores
    dask = request.getfixturevalue("dask_site")
    cluster = {
        "scheduler": dask.address,
        "cluster_options": {**dask.certificates.options, "grace_s": 2.0},
    }
    return Backend(stores.name, lambda: stores.settings() | cluster)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data", port=0, min_free_bytes=0)


@pytest.fixture
def services(settings: Settings, tmp_path: Path) -> Iterator[Services]:
    made = open_services(settings, places=Places(models=tmp_path / "models"))
    yield made
    made.database.close()


@pytest.fixture
def app(settings: Settings, services: Services) -> Any:
    return create_app(settings, services)


@pytest.fixture
def client(app: Any) -> Iterator[TestClient]:
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def tokens(services: Services) -> dict[str, dict[str, str]]:
    """Headers by user: admin, annotator, viewer, other (a second annotator)."""
    made = {
        user: services.tokens.add(TokenSpec.model_validate({"user": user, "role": role})).secret
        for user, role in USERS.items()
    }
    return {user: {"Authorization": f"Bearer {secret}"} for user, secret in made.items()}


@pytest.fixture
def live_server(tmp_path: Path) -> Iterator[LiveServer]:
    """A real server in a process of its own: url, token, headers, data_dir, kill(), restart()."""
    with run_server(tmp_path / "live") as server:
        yield server


@pytest.fixture(scope="session")
def node_packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tus-js-client, NiiVue and zarrita, as they come from the package registry."""
    folder = tmp_path_factory.mktemp("node")
    return fetch_node_packages(Path(__file__).with_name("node"), folder)
