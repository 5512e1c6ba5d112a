"""Logs: facts in, secrets out."""

import io
import json
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.server.logs import TextFormatter, configure_logging, redact

SECRET = st.text(alphabet="abcdefABCDEF0123456789_-", min_size=43, max_size=43)


@pytest.fixture
def written():
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    stream = io.StringIO()
    configure_logging("json", "debug", stream=stream)
    yield lambda: stream.getvalue()
    root.handlers[:] = before
    root.setLevel(level)


@given(SECRET)
def test_tokens_leave_their_id_only(secret):
    told = redact(f"token lam_0123456789ab_{secret} and Bearer {secret}")
    assert secret not in told
    assert "lam_0123456789ab" in told


@pytest.mark.parametrize(
    "text",
    [
        "GET /x?expires=5&signature=hushhush HTTP/1.1",
        "https://s3.lab/b/k?X-Amz-Credential=hushhush&X-Amz-Signature=hushhush",
        "postgresql://lab:hushhush@db/lamella",
        '{"password": "hushhush"}',
        "secret=hushhush",
        "Authorization: Basic hushhushhushhush",
        "GET /api/v1/view/1800000000-hushhush/volumes/7",
    ],
)
def test_other_secrets_too(text):
    assert "hushhush" not in redact(text)


def test_a_line_is_json_and_tracebacks_are_redacted(written):
    def fail():
        raise ValueError("cannot open postgresql://lab:hushhush@db/x")

    try:
        fail()
    except ValueError:
        logging.getLogger("any.library").exception("failed with token=%s", "hushhush")
    line = json.loads(written())
    assert line["level"] == "error"
    assert "ValueError" in line["traceback"]
    assert "hushhush" not in written()


def test_facts_of_requests_are_fields(written):
    facts = {"request_id": "1", "user": None, "ms": 1.5, "status": 200, "address": "x"}
    logging.getLogger("lamella.server.access").info("GET /", extra={"request": facts})
    assert json.loads(written())["request"] == {
        "request_id": "1", "ms": 1.5, "status": 200, "address": "x",
    }  # fmt: skip


def test_text_is_for_people():
    stream = io.StringIO()
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    try:
        configure_logging("text", "info", stream=stream)
        facts = {"request_id": "77", "user": "maria", "ms": 1.5, "status": 404, "address": "::1"}
        logging.getLogger("lamella.x").info("GET /x 404", extra={"request": facts})
        logging.getLogger("lamella.x").warning("disk is nearly full")
    finally:
        root.handlers[:] = before
        root.setLevel(level)
    first, second = stream.getvalue().splitlines()
    assert first.endswith("GET /x 404  2 ms  maria@::1  77")
    assert second.endswith("warning: disk is nearly full")


def test_what_came_cannot_write_lines_of_its_own():
    path = "/x\n12:00:00  GET /admin 200\x1b[2J\u2028\r"
    record = logging.LogRecord("any", logging.INFO, "", 1, "GET %s 404", (path,), None)
    line = TextFormatter().format(record)
    assert line.isprintable()
    assert line.endswith(r"GET /x\n12:00:00  GET /admin 200\x1b[2J\u2028\r 404")
