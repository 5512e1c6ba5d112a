"""Text that no database keeps: NUL, and halves of characters. Refused, never a defect."""

import base64
import json
import re

import pytest
from starlette.testclient import TestClient

from lamella.core.places import Places
from lamella.server.app import PREFIX, create_app
from lamella.server.openapi import EXAMPLES
from lamella.server.services import open_services
from lamella.server.settings import Settings
from lamella.wire.access import TokenSpec

JOB = EXAMPLES["create_job"]
QUERIES = ("tokens?user=X", "jobs?owner=X", "jobs?batch=X", "jobs?cursor=X", "volumes?sha256=X")


@pytest.fixture
def root(database_url, tmp_path):
    """A client with an admin's token; nothing runs in the background."""
    services = open_services(
        Settings(
            data_dir=tmp_path / "data", database_url=database_url, min_free_bytes=0, rate_limit=0
        ),
        places=Places(models=tmp_path / "models"),
    )
    secret = services.tokens.add(TokenSpec(user="root", role="admin")).secret
    client = TestClient(create_app(services.settings, services), raise_server_exceptions=False)
    client.headers = {"Authorization": f"Bearer {secret}", "Tus-Resumable": "1.0.0"}
    yield client
    services.database.close()


def bodies(bad):
    request = JOB["request"]
    yield "tokens", {"user": "maria", "name": bad}
    yield "jobs", {**JOB, "name": bad}
    for path in (f"volume:{bad}", f"/tmp/{bad}", f"s3://{bad}"):
        yield "jobs", {**JOB, "request": {**request, "input": {"path": path}}}
    yield "jobs", {**JOB, "request": {**request, "model": bad}}
    yield "batches", {"name": bad, "jobs": [JOB]}
    yield "volumes", {"name": bad, "files": [{"path": bad, "upload": bad}]}
    yield "volumes", {"path": f"/tmp/{bad}"}


@pytest.mark.parametrize("bad", ["\x00", "\ud800"], ids=ascii)
def test_in_documents_and_upload_metadata(root, bad):
    for path, body in bodies(bad):
        answer = root.post(
            f"{PREFIX}/{path}",
            content=json.dumps(body),
            headers={"Content-Type": "application/json"},
        )
        assert answer.status_code in (201, 404, 422), (path, body, answer.text)
    encoded = base64.b64encode(bad.encode("utf-8", "surrogatepass")).decode()
    metadata = {"Upload-Length": "1", "Upload-Metadata": f"filename {encoded},more {encoded}"}
    assert root.post(f"{PREFIX}/uploads", headers=metadata).status_code in (201, 400)


@pytest.mark.parametrize("bad", ["%00", "%ed%a0%80"])
def test_in_addresses(root, bad):
    paths = [PREFIX + "/" + query.replace("X", bad) for query in QUERIES]
    described = [path for path in root.app.openapi()["paths"] if "{" in path]
    paths += [re.sub(r"{\w+(:path)?}", bad, path) for path in described]
    for path in paths:
        for method in ("GET", "HEAD", "DELETE"):
            answer = root.request(method, path)
            assert answer.status_code < 500, (method, path, answer.text)
