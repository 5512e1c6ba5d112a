"""Signed addresses over HTTP: one opens one thing, for a while, and nothing else."""

import re

import pytest
from starlette.testclient import TestClient

from lamella.jobs.store import NewJob
from lamella.server.app import PREFIX

SPEC = {"request": {"input": {"path": "volume:0"}, "model": "membrane-3d"}}
VIEWS = ("volumes/{id}/ome.zarr/.zattrs", "jobs/{id}/labels.ome.zarr/zarr.json")


@pytest.fixture
def quiet(app):
    """A client without anything that runs in the background."""
    return TestClient(app, raise_server_exceptions=False)


def finished_job(services, owner="annotator"):
    """A job that has left a manifest and a table."""
    services.jobs.add(NewJob(owner=owner, kind="segment", spec=SPEC))
    record = services.jobs.claim("worker", {"cpu": 8, "slot": 1}, 60.0)
    assert record is not None
    run = services.settings.data_dir / "jobs" / record.id / "run"
    run.mkdir(parents=True)
    (run / "manifest.json").write_text('{"private": true}')
    (run / "objects.csv").write_text("id\n1\n")
    services.jobs.finish(record.id, record.attempt, {})
    return record.id


@pytest.fixture
def signed(services, quiet, tokens):
    """Id of a job, and the address of its manifest without the host."""
    job = finished_job(services)
    listed = quiet.get(f"{PREFIX}/jobs/{job}/artifacts", headers=tokens["annotator"]).json()
    urls = {item["name"]: item["url"].removeprefix("http://testserver") for item in listed}
    return job, urls["manifest.json"]


def test_it_opens_its_artifact_without_a_token(quiet, signed):
    _, url = signed
    answer = quiet.get(url)
    assert answer.status_code == 200
    assert answer.json() == {"private": True}
    assert quiet.head(url).status_code == 200
    part = quiet.get(url, headers={"Range": "bytes=2-8"})
    assert (part.status_code, part.text) == (206, "private")


def test_whatever_is_changed_it_opens_nothing(services, quiet, signed):
    job, url = signed
    other = finished_job(services)
    expires = re.search(r"expires=(\d+)", url)[1]
    signature = re.search(r"signature=([\w-]+)", url)[1]
    changed = [
        url.replace(job, other),
        url.replace("manifest.json", "objects.csv"),
        url.replace("manifest.json", "../manifest.json"),
        url.replace("manifest.json", "%2e%2e%2fmanifest.json"),
        url.replace(expires, str(int(expires) + 1)),
        url.replace(expires, f"0{expires}"),
        url.replace(expires, f"{expires}.0"),
        url.replace(signature, ""),
        url.replace(signature, signature[:-1]),
        url.replace(signature, f"{signature}A"),
        url.replace(signature, signature.swapcase()),
        url.partition("?")[0],
    ]
    for place in range(len(signature)):
        letter = "A" if signature[place] != "A" else "B"
        altered = signature[:place] + letter + signature[place + 1 :]
        changed.append(url.replace(signature, altered))
    for one in changed:
        for method in ("GET", "HEAD"):
            answer = quiet.request(method, one)
            assert answer.status_code in (403, 404), (method, one, answer.status_code)
            assert "private" not in answer.text


def test_it_expires(services, quiet, signed):
    _, url = signed
    later = services.signer.clock() + services.settings.url_lifetime_s + 1
    object.__setattr__(services.signer, "clock", lambda: later)
    answer = quiet.get(url)
    assert answer.status_code == 410
    assert answer.json()["hint"] == "ask the server for a new address"


def test_an_artifacts_signature_opens_no_view_and_none_opens_anothers(services, quiet, signed):
    job, url = signed
    expires = re.search(r"expires=(\d+)", url)[1]
    signature = re.search(r"signature=([\w-]+)", url)[1]
    for view in VIEWS:
        sealed = f"{expires}-{signature}"
        assert quiet.get(f"{PREFIX}/view/{sealed}/{view.format(id=job)}").status_code == 403
    # A seal of one volume or job, as the server makes it, on another one.
    listed = quiet.get(f"{PREFIX}/jobs/{job}/view-url")
    assert listed.status_code == 401
    for purpose in ("artifact", "view-volume", "view-job", ""):
        sealed = services.signer.seal(purpose, "0" * 16)
        for view in VIEWS:
            answer = quiet.get(f"{PREFIX}/view/{sealed}/{view.format(id=job)}")
            assert answer.status_code == 403, (purpose, view)


def test_what_a_signed_view_opens_stays_inside(services, quiet, signed):
    job, _ = signed
    sealed = services.signer.seal("view-job", job)  # as GET /jobs/ID/view-url gives it
    assert quiet.get(f"{PREFIX}/view/{sealed}/jobs/{job}/labels.ome.zarr/x").status_code == 404
    for inside in (
        "../manifest.json",
        "..%2fmanifest.json",
        "%2e%2e/%2e%2e/%2e%2e/secret.key",
        "..%5c..%5csecret.key",
        "%2fetc%2fpasswd",
        "./../../run/manifest.json",
        "%00",
        "a" * 300,
    ):
        answer = quiet.get(f"{PREFIX}/view/{sealed}/jobs/{job}/labels.ome.zarr/{inside}")
        assert answer.status_code in (403, 404, 405, 422), (inside, answer.status_code)
        assert "private" not in answer.text
        assert "root:" not in answer.text


def test_another_server_signs_for_itself_only(quiet, signed, tmp_path, settings):
    from lamella.server.secret import Secret
    from lamella.server.signing import Signer

    job, _ = signed
    foreign = Signer(Secret.of_folder(tmp_path / "other").key("addresses"), 600)
    made = foreign.sign("artifact", job, "manifest.json")
    query = f"expires={made.expires}&signature={made.signature}"
    assert quiet.get(f"{PREFIX}/artifacts/{job}/manifest.json?{query}").status_code == 403


def test_pages_of_other_origins_may_read_them_and_nothing_else(quiet, signed, tokens):
    job, url = signed
    origin = {"Origin": "https://evil.example"}
    assert quiet.get(url, headers=origin).headers["access-control-allow-origin"] == "*"
    for path in ("health", "jobs", f"jobs/{job}", "tokens", "openapi.json", "docs", "uploads"):
        for method in ("GET", "OPTIONS", "POST"):
            answer = quiet.request(
                method,
                f"{PREFIX}/{path}",
                headers={**origin, **tokens["admin"], "Access-Control-Request-Method": "POST"},
            )
            shared = [name for name in answer.headers if name.startswith("access-control")]
            assert not shared, (method, path, shared)
            assert answer.headers["cross-origin-resource-policy"] == "same-origin"
