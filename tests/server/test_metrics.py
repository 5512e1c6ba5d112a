"""Metrics, health and readiness: what machines ask a server."""

import re

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from lamella.jobs.machine import NewJob
from lamella.server.app import PREFIX

SPEC = {"request": {"input": {"path": "volume:0"}, "model": "membrane-3d"}}


@pytest.fixture
def quiet(app):
    return TestClient(app, raise_server_exceptions=False)


def read(quiet, tokens):
    """Samples by name and labels, as Prometheus' own parser reads them."""
    answer = quiet.get("/metrics", headers=tokens["viewer"])
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = list(text_string_to_metric_families(answer.text))
    return families, {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def test_names_are_ours_with_units_and_words(quiet, tokens):
    quiet.get(f"{PREFIX}/jobs", headers=tokens["viewer"])
    families, _ = read(quiet, tokens)
    assert len(families) >= 9
    for family in families:
        assert re.fullmatch(r"lamella_[a-z_]+", family.name), family.name
        assert family.documentation.endswith("."), family.name
        assert not any(sample.name.endswith("_created") for sample in family.samples)


def test_requests_are_counted_by_route_never_by_address(quiet, services, tokens):
    job, _ = services.jobs.add(NewJob(owner="viewer", kind="segment", spec=SPEC))
    for path in (f"jobs/{job.id}", f"jobs/{job.id}", "jobs/nothing", "no/such/place"):
        quiet.get(f"{PREFIX}/{path}", headers=tokens["viewer"])
    families, samples = read(quiet, tokens)
    route = ("route", f"{PREFIX}/jobs/{{job_id}}")
    name, get = "lamella_http_requests_total", ("method", "GET")
    assert samples[name, get, route, ("status", "200")] == 2
    assert samples[name, get, route, ("status", "404")] == 1
    assert samples[name, get, ("route", "none"), ("status", "404")] == 1
    labels = {
        value for family in families for one in family.samples for value in one.labels.values()
    }
    assert not [value for value in labels if job.id in value or "nothing" in value]


def test_jobs_and_disk_are_gauges(quiet, services, tokens):
    services.jobs.add(NewJob(owner="viewer", kind="segment", spec=SPEC))
    _, samples = read(quiet, tokens)
    assert samples["lamella_jobs", ("state", "queued")] == 1
    assert samples["lamella_jobs", ("state", "failed")] == 0
    assert samples["lamella_disk_free_bytes",] > 0


def test_refused_tokens_are_counted(quiet, tokens):
    for _ in range(3):
        quiet.get(f"{PREFIX}/jobs", headers={"Authorization": "Bearer lam_no"})
    _, samples = read(quiet, tokens)
    assert samples["lamella_refused_tokens_total",] == 3


def test_alive_asks_nothing(quiet, services):
    services.database.close()
    services.is_closing = True
    for path in ("/health", f"{PREFIX}/health"):
        assert quiet.get(path).json() == {"status": "alive"}


def test_ready_says_what_is_wrong(quiet, services, settings, monkeypatch):
    ready = quiet.get("/ready")
    assert (ready.status_code, ready.json()["checks"]) == (200, {"database": "ok", "disk": "ok"})
    object.__setattr__(services, "settings", settings.model_copy(update={"min_free_bytes": 2**60}))
    full = quiet.get("/ready")
    assert full.status_code == 503
    assert "GB needed" in full.json()["checks"]["disk"]
    assert not full.json()["is_ready"]
    object.__setattr__(services, "settings", settings)
    services.is_closing = True
    assert quiet.get("/ready").json()["checks"]["server"] == "is shutting down"
    assert quiet.get("/ready").status_code == 503


def test_a_database_that_is_gone_is_503_and_never_a_defect(quiet, services, tokens):
    """Its file is replaced by something else, which is as good as gone."""
    quiet.get(f"{PREFIX}/jobs", headers=tokens["viewer"])  # the token is known from now on
    services.database.close()
    for path in services.settings.data_dir.glob("lamella.db*"):
        path.unlink()
    (services.settings.data_dir / "lamella.db").mkdir()
    ready = quiet.get("/ready")
    assert ready.status_code == 503
    assert ready.json()["checks"]["database"].startswith("does not answer")
    answer = quiet.get(f"{PREFIX}/jobs", headers=tokens["viewer"])
    assert (answer.status_code, answer.json()["code"]) == (503, "database_unavailable")
    assert answer.headers["retry-after"] == "5"
    assert "lamella.db" not in answer.text
