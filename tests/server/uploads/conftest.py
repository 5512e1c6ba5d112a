"""Uploads in this process, and a client that speaks tus by hand."""

import base64
import hashlib
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from lamella.core.places import Places
from lamella.server.app import create_app
from lamella.server.services import open_services
from lamella.server.settings import Settings
from lamella.server.uploads.file import create_folder
from lamella.wire.access import TokenSpec

BODY_TYPE = "application/offset+octet-stream"


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def checksum(body: bytes, algorithm: str = "sha1") -> str:
    return f"{algorithm} {base64.b64encode(hashlib.new(algorithm, body).digest()).decode()}"


@pytest.fixture
def folder(tmp_path):
    """Of an upload that has no bytes yet."""
    path = tmp_path / "upload"
    create_folder(path)
    return path


class Tus:
    """A server on a folder, and requests to its uploads; `crash` forgets all but the disk."""

    def __init__(self, data_dir: Path, **settings: Any) -> None:
        told = {"port": 0, "min_free_bytes": 0, "rate_limit": 0} | settings
        self.settings = Settings(data_dir=data_dir, **told)
        self.open()
        secret = self.services.tokens.add(TokenSpec(user="ann", role="annotator")).secret
        self.headers = {"Authorization": f"Bearer {secret}", "Tus-Resumable": "1.0.0"}

    def open(self) -> None:
        places = Places(models=self.settings.data_dir / "models")
        self.services = open_services(self.settings, places=places)
        self.client = TestClient(
            create_app(self.settings, self.services), raise_server_exceptions=False
        )

    def crash(self) -> None:
        self.services.uploads.stop()
        self.services.volumes.stop()
        self.services.database.close()
        self.open()

    close = crash

    def other(self, user: str, role: str = "annotator") -> dict[str, str]:
        """Headers of somebody else."""
        secret = self.services.tokens.add(TokenSpec(user=user, role=role)).secret
        return {"Authorization": f"Bearer {secret}"}

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Any:
        """A request; header names are written with underscores."""
        sent = self.headers | {name.replace("_", "-"): value for name, value in headers.items()}
        where = path if path.startswith("http") else f"/api/v1/{path}"
        return self.client.request(method, where, headers=sent, content=body)

    def create(self, n_bytes: int | None, metadata: dict[str, str] | None = None, **headers: str):
        """POST; the answer."""
        length = (
            {"Upload_Defer_Length": "1"} if n_bytes is None else {"Upload_Length": str(n_bytes)}
        )
        told = {"volume": "0"} | (metadata or {})
        pairs = ",".join(f"{key} {encoded(value)}" for key, value in told.items())
        return self.ask("POST", "uploads", Upload_Metadata=pairs, **length, **headers)

    def patch(self, place: str, offset: int, body: bytes, **headers: str) -> Any:
        """PATCH; the answer."""
        told = {"Content_Type": BODY_TYPE, "Upload_Offset": str(offset)} | headers
        return self.ask("PATCH", place, body, **told)

    def offset(self, place: str) -> int:
        """What HEAD says."""
        answer = self.ask("HEAD", place)
        assert answer.status_code == 200, answer.status_code
        return int(answer.headers["Upload-Offset"])


@pytest.fixture
def make_tus(tmp_path, stores):
    made: list[Tus] = []

    def make(folder: Path | None = None, **settings: Any) -> Tus:
        place = folder or tmp_path / f"server{len(made)}"
        made.append(Tus(place, **(stores.settings() | settings)))
        return made[-1]

    yield make
    for one in made:
        one.services.uploads.stop()
        one.services.volumes.stop()
        one.services.database.close()


@pytest.fixture
def tus(make_tus):
    return make_tus()


@pytest.fixture(scope="session")
def tus_class():
    return Tus


@pytest.fixture(scope="session")
def told_checksum():
    return checksum


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory):
    """A server and the address of an upload of its, for many examples."""
    made = Tus(tmp_path_factory.mktemp("fuzz"))
    yield made, made.create(5).headers["Location"]
    made.services.uploads.stop()
    made.services.volumes.stop()
    made.services.database.close()
