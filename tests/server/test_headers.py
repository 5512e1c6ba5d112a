"""What stands around every answer: safe headers, and nothing for pages of other origins."""

import pytest
from starlette.testclient import TestClient

from lamella.server.app import PREFIX, create_app
from lamella.server.services import open_services

SAFE = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}
PAGE = {"Origin": "https://viewer.lab.org", "Access-Control-Request-Method": "POST"}


def client_of(settings, **changes):
    settings = settings.model_copy(update=changes)
    services = open_services(settings)
    return TestClient(create_app(settings, services), raise_server_exceptions=False), services


@pytest.mark.parametrize("path", ["health", "docs", "openapi.json", "jobs", "nothing/here", "%00"])
def test_every_answer_has_them(app, path):
    answer = TestClient(app, raise_server_exceptions=False).get(f"{PREFIX}/{path}")
    for name, value in SAFE.items():
        assert answer.headers[name] == value
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "sandbox" in answer.headers["content-security-policy"]
    assert answer.headers["x-request-id"]
    assert "server" not in answer.headers
    assert "set-cookie" not in answer.headers
    assert "strict-transport-security" not in answer.headers


def test_a_certificate_that_browsers_trust_binds_them_to_tls(settings, tmp_path):
    for tls, is_bound in (("self-signed", False), (str(tmp_path / "c.pem"), True)):
        client, services = client_of(settings, tls=tls)
        answer = client.get(f"{PREFIX}/health")
        assert ("strict-transport-security" in answer.headers) is is_bound
        services.database.close()


def test_origins_are_closed_unless_named(settings):
    client, services = client_of(settings)
    assert not [name for name in client.get(f"{PREFIX}/health", headers=PAGE).headers
                if name.startswith("access-control")]  # fmt: skip
    services.database.close()
    client, services = client_of(settings, cors_origins=("https://viewer.lab.org",))
    answer = client.options(f"{PREFIX}/jobs", headers=PAGE)
    assert answer.headers["access-control-allow-origin"] == "https://viewer.lab.org"
    # Tokens go by header: no cookie of a browser is ever sent along.
    assert "access-control-allow-credentials" not in answer.headers
    other = client.options(f"{PREFIX}/jobs", headers={**PAGE, "Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in other.headers
    near = client.get(f"{PREFIX}/health", headers={"Origin": "https://viewer.lab.org.evil.example"})
    assert "access-control-allow-origin" not in near.headers
    services.database.close()


@pytest.mark.parametrize("sent", ["a b", "x" * 65, "", "é", "a\tb", "<script>"])
def test_a_request_id_that_is_none_is_replaced(app, sent):
    client = TestClient(app)
    answer = client.get(f"{PREFIX}/health", headers={"X-Request-ID": sent.encode()})
    assert answer.headers["x-request-id"] != sent
    assert len(answer.headers["x-request-id"]) == 16


def test_long_documents_are_refused(app, services, tokens):
    client = TestClient(app, raise_server_exceptions=False)
    body = b'{"name": "' + b"x" * (17 * 1024**2) + b'"}'
    headers = {**tokens["admin"], "Content-Type": "application/json"}
    answer = client.post(f"{PREFIX}/jobs", content=body, headers=headers)
    assert answer.status_code == 413
    assert answer.json()["code"] == "too_large"
