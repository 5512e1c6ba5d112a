"""The audit log: one row a change, with who, when and from where."""

import pytest
from starlette.testclient import TestClient

from lamella.server.app import PREFIX
from lamella.server.audit import AuditLog


@pytest.fixture
def log(services):
    now = [1000.0]
    made = AuditLog(services.database, clock=lambda: now[0])
    return made, now


def test_the_newest_come_first_and_pages_do_not_overlap(log):
    audit, now = log
    for n in range(10):
        now[0] = 1000.0 + n
        audit.record(None, action="job.create", target=str(n), user="maria")
    first = audit.list(limit=4)
    assert [row["target"] for row in first] == ["9", "8", "7", "6"]
    rest = audit.list(limit=100, before=first[-1]["number"])
    assert [row["target"] for row in rest] == ["5", "4", "3", "2", "1", "0"]


def test_old_ones_are_forgotten_when_told(log):
    audit, now = log
    for n in range(5):
        now[0] = 1000.0 + n
        audit.record(None, action="job.create", target=str(n))
    assert audit.forget(1003.0) == 3
    assert [row["target"] for row in audit.list()] == ["4", "3"]


def test_long_targets_are_cut_and_not_refused(log):
    audit, _ = log
    audit.record(None, action="job.create", target="x" * 1000)
    assert audit.list()[0]["target"] == "x" * 255


def test_a_request_says_who_from_where_and_which(app, services, tokens):
    client = TestClient(app)
    headers = {**tokens["admin"], "X-Request-ID": "told-by-client"}
    made = client.post(f"{PREFIX}/tokens", json={"user": "eve"}, headers=headers).json()["token"]
    client.delete(f"{PREFIX}/tokens/{made['id']}", headers=tokens["admin"])
    revoked, created = services.audit.list(limit=2)
    assert (created["action"], created["target"]) == ("token.create", made["id"])
    assert (created["user"], created["status"]) == ("admin", 201)
    assert created["request_id"] == "told-by-client"
    assert created["address"] == "testclient"
    assert created["token"] == tokens["admin"]["Authorization"].split("_")[1]
    assert created["details"]["role"] == "annotator"
    assert (revoked["action"], revoked["target"]) == ("token.revoke", made["id"])


def test_reading_and_refused_requests_leave_no_row(app, services, tokens):
    client = TestClient(app)
    before = len(services.audit.list())
    client.get(f"{PREFIX}/jobs", headers=tokens["viewer"])
    client.post(f"{PREFIX}/tokens", json={"user": "eve"}, headers=tokens["viewer"])
    client.delete(f"{PREFIX}/tokens/000000000000", headers=tokens["admin"])
    assert len(services.audit.list()) == before


def test_retention_forgets_them_only_where_the_settings_say_so(services, settings, log):
    audit, _ = log
    audit.record(None, action="job.create", target="of 1970")
    services.audit.record(None, action="job.create", target="of now")
    services.retention.sweep()
    assert {"of 1970", "of now"} <= {row["target"] for row in audit.list()}
    services.settings = settings.model_copy(update={"audit_retention_s": 86_400.0})
    services.retention.sweep()
    assert [row["target"] for row in audit.list()] == ["of now"]
