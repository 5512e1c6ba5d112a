"""A server with workers on which one job has finished, shared by the tests that only read it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.testclient import TestClient

from lamella.core.places import Places
from lamella.io.format import save_volume
from lamella.server.app import create_app
from lamella.server.services import Services, open_services
from lamella.server.settings import Settings
from lamella.simulation.nuclei import NucleiOptions, draw_nuclei
from lamella.volume import Volume
from lamella.wire.access import TokenSpec

REQUEST = {"model": "classical:otsu", "instances": "components"}


@dataclass
class Site:
    """A server in this process, its folder, and headers of users."""

    client: TestClient
    services: Services
    folder: Path
    inputs: Path
    headers: dict[str, dict[str, str]]
    job: str = ""

    @property
    def owner(self) -> dict[str, str]:
        return self.headers["maria"]

    def submit(self, path: str, *, user: str = "maria", **fields: Any) -> Any:
        request = {**REQUEST, **fields.pop("request", {}), "input": {"path": path}}
        body = {"request": request, **fields}
        return self.client.post("/api/v1/jobs", json=body, headers=self.headers[user])

    def cancel(self, job: str, *, user: str = "maria") -> Any:
        return self.client.post(f"/api/v1/jobs/{job}/cancel", headers=self.headers[user])

    def get(self, path: str, *, user: str = "maria", **words: Any) -> Any:
        answer = self.client.get(
            f"/api/v1{path}", headers=self.headers[user], follow_redirects=False, **words
        )
        return self._followed(answer)

    def open_url(self, url: str, **words: Any) -> Any:
        """An address without a token."""
        path = url.removeprefix("http://testserver")
        return self._followed(self.client.get(path, follow_redirects=False, **words), **words)

    def _followed(self, answer: Any, **words: Any) -> Any:
        """What the storage has, where the server sends its clients there."""
        if answer.status_code != 307:
            return answer
        return httpx2.get(answer.headers["location"], trust_env=False, **words)

    def wait(self, job: str) -> dict[str, Any]:
        """Until a job has ended, by reading its events."""
        headers = {**self.owner, "Accept": "text/event-stream"}
        self.client.get(f"/api/v1/jobs/{job}/events", headers=headers)
        return self.get(f"/jobs/{job}").json()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, backend: Any) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    inputs = folder / "inputs"
    inputs.mkdir()
    nuclei = draw_nuclei(NucleiOptions(shape=(24, 64, 64)), seed=3)
    volume = Volume.from_array(nuclei.image, spacing=(2.0, 1.0, 1.0), unit="um")
    save_volume(volume, inputs / "nuclei.mrc")
    settings = Settings(
        data_dir=folder / "data",
        port=0,
        min_free_bytes=0,
        allowed_roots=(str(inputs),),
        gpus="none",
        worker_threads=1,
        shutdown_grace_s=2.0,
        **backend.settings(),
    )
    services = open_services(settings, places=Places(models=folder / "models"))
    secrets = {
        user: services.tokens.add(TokenSpec.model_validate({"user": user, "role": role})).secret
        for user, role in (("maria", "annotator"), ("otto", "annotator"), ("root", "admin"))
    }
    headers = {user: {"Authorization": f"Bearer {secret}"} for user, secret in secrets.items()}
    app = create_app(settings, services)
    with TestClient(app, raise_server_exceptions=False) as client:
        yield Site(client, services, folder, inputs, headers)


@pytest.fixture(scope="module")
def finished(site: Site) -> Site:
    """The site, once its job has finished."""
    answer = site.submit(str(site.inputs / "nuclei.mrc"), exports=[".mrc"], name="first")
    assert answer.status_code == 201, answer.text
    site.job = answer.json()["id"]
    document = site.wait(site.job)
    assert document["state"] == "finished", document
    return site
