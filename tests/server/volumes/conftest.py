"""Uploads that become volumes, on a server in this process."""

import base64
import hashlib
import io
import tarfile
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

import lamella as lm
from lamella.core.places import Places
from lamella.server.app import create_app
from lamella.server.services import open_services
from lamella.server.settings import Settings
from lamella.wire.access import TokenSpec


class Site:
    """A server on a folder; `restart` forgets all but what is kept."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        told = {"port": 0, "min_free_bytes": 0, "rate_limit": 0} | settings
        self.settings = Settings(data_dir=folder / "data", **told)
        self.open()
        self.headers = self.as_user("ann")

    def open(self) -> None:
        places = Places(models=self.settings.data_dir / "models")
        self.services = open_services(self.settings, places=places)
        app = create_app(self.settings, self.services)
        self.client = TestClient(app, raise_server_exceptions=False)

    def close(self) -> None:
        self.services.uploads.stop()
        self.services.volumes.stop()
        self.services.database.close()

    def restart(self) -> None:
        self.close()
        self.open()
        self.services.uploads.start()
        self.services.volumes.start()

    def as_user(self, user: str, role: str = "annotator") -> dict[str, str]:
        secret = self.services.tokens.add(TokenSpec(user=user, role=role)).secret
        return {"Authorization": f"Bearer {secret}"}

    def ask(self, method: str, path: str, headers: dict[str, str] | None = None, **words: Any):
        return self.client.request(
            method, f"/api/v1/{path}", headers=headers or self.headers, **words
        )

    def send(self, content: bytes, name: str, **metadata: str) -> Any:
        """One request: created, sent, finished; the answer."""
        told = {"filename": name, "sha256": hashlib.sha256(content).hexdigest(), **metadata}
        pairs = ",".join(f"{key} {_encoded(value)}" for key, value in told.items())
        headers = {
            "Tus-Resumable": "1.0.0",
            "Upload-Length": str(len(content)),
            "Upload-Metadata": pairs,
            "Content-Type": "application/offset+octet-stream",
        }
        answer = self.ask("POST", "uploads", self.headers | headers, content=content)
        assert answer.status_code == 201, answer.text
        return answer

    def keep(self, content: bytes, name: str = "part") -> str:
        """An upload that waits to become a file of a volume; its id."""
        return self.send(content, name, volume="0").headers["Location"].rpartition("/")[2]

    def volume(self, content: bytes, name: str, **metadata: str) -> dict[str, Any]:
        """The volume of an upload, once it is ready or refused."""
        return self.wait(self.send(content, name, **metadata).headers["Lamella-Volume"])

    def wait(self, volume: str) -> dict[str, Any]:
        for _ in range(600):
            document = self.ask("GET", f"volumes/{volume}").json()
            if document["state"] != "preparing":
                return document
            time.sleep(0.05)
        raise AssertionError(document)

    def create(self, headers: dict[str, str] | None = None, **spec: Any) -> Any:
        return self.ask("POST", "volumes", headers, json=spec)

    def files(self) -> list[str]:
        """What lies in the folders of uploads and volumes."""
        found = (self.settings.data_dir / name for name in ("uploads", "volumes"))
        return sorted(str(path) for folder in found for path in folder.rglob("*"))


def _encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@pytest.fixture
def make_site(tmp_path):
    made: list[Site] = []

    def make(**settings: Any) -> Site:
        made.append(Site(tmp_path / f"site{len(made)}", **settings))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def site(make_site):
    return make_site()


@pytest.fixture(scope="session")
def small():
    """A volume whose voxels are all different."""
    data = np.arange(4 * 6 * 8, dtype=np.uint16).reshape(4, 6, 8)
    return lm.Volume.from_array(data, spacing=(2.0, 1.0, 1.0), unit="nm")


@pytest.fixture(scope="session")
def mrc(small, tmp_path_factory):
    """The bytes of an MRC file."""
    path = tmp_path_factory.mktemp("mrc") / "tomo.mrc"
    lm.save(small, path)
    return path.read_bytes()


@pytest.fixture(scope="session")
def zarr_folder(small, tmp_path_factory):
    """An OME-Zarr on disk."""
    path = tmp_path_factory.mktemp("zarr") / "scan.ome.zarr"
    lm.save(small, path)
    return path


@pytest.fixture(scope="session")
def pack():
    """The bytes of an archive of a folder: as `zip`, `tar` or `tgz`, within its own name."""

    def made(folder: Path, kind: str, prefix: str | None = None) -> bytes:
        stream = io.BytesIO()
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        base = folder.name if prefix is None else prefix
        names = [str(Path(base) / path.relative_to(folder)) for path in files]
        if kind == "zip":
            with zipfile.ZipFile(stream, "w") as packed:
                for path, name in zip(files, names, strict=True):
                    packed.write(path, name)
        else:
            with tarfile.open(fileobj=stream, mode="w:gz" if kind == "tgz" else "w") as packed:
                for path, name in zip(files, names, strict=True):
                    packed.add(path, name)
        return stream.getvalue()

    return made
