"""Ranges and validators as RFC 9110 has them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request

from lamella.server.artifacts.ranges import (
    UNSATISFIABLE,
    FileSource,
    attachment,
    parse_range,
    send_bytes,
)
from lamella.server.problems import ProtocolError

CONTENT = bytes(range(256)) * 3


def answer(tmp_path, method="GET", **headers):
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    pairs = [(k.replace("_", "-").encode(), v.encode()) for k, v in headers.items()]
    request = Request({"type": "http", "method": method, "headers": pairs})
    source = FileSource.of(path)
    return send_bytes(request, source, media_type="application/octet-stream", etag="abc")


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 40))
def test_a_range_is_what_slicing_gives(a, b, n):
    content = bytes(range(n))
    for header, expected in (
        (f"bytes={a}-{b}", content[a : b + 1] if a <= b else None),
        (f"bytes={a}-", content[a:]),
        (f"bytes=-{b}", content[-b:] if b else b""),
    ):
        found = parse_range(header, n)
        if expected is None:
            assert found is None
        elif not expected:
            assert found == UNSATISFIABLE
        else:
            assert found is not None
            assert content[found[0] : found[1]] == expected


@pytest.mark.parametrize(
    "header", ["", "bytes", "bytes=", "bytes=-", "bytes=a-b", "bytes=1-2,4-5", "items=0-1",
               "bytes=٣-٤", "bytes=1--2", "bytes=" + "9" * 40 + "-"],
)  # fmt: skip
def test_what_is_no_single_range_is_ignored(header):
    assert parse_range(header, 100) is None


def test_whole_part_and_nothing(tmp_path):
    whole = answer(tmp_path)
    assert (whole.status_code, whole.body) == (200, CONTENT)
    assert whole.headers["etag"] == '"abc"'
    assert whole.headers["accept-ranges"] == "bytes"
    part = answer(tmp_path, range="bytes=10-19")
    assert (part.status_code, part.body) == (206, CONTENT[10:20])
    assert part.headers["content-range"] == f"bytes 10-19/{len(CONTENT)}"
    assert part.headers["content-length"] == "10"
    with pytest.raises(ProtocolError, match="no such range") as caught:
        answer(tmp_path, range="bytes=768-")
    assert caught.value.status == 416
    assert caught.value.headers["Content-Range"] == "bytes */768"


def test_only_headers_for_head(tmp_path):
    head = answer(tmp_path, "HEAD")
    assert (head.status_code, head.body) == (200, b"")
    assert head.headers["content-length"] == str(len(CONTENT))


def test_validators(tmp_path):
    assert answer(tmp_path, if_none_match='"abc"').status_code == 304
    assert answer(tmp_path, if_none_match='"x", W/"abc"').status_code == 304
    assert answer(tmp_path, if_none_match='"x"').status_code == 200
    assert answer(tmp_path, range="bytes=0-1", if_range='"abc"').status_code == 206
    # What the client has begun with is another: it gets everything anew.
    assert answer(tmp_path, range="bytes=0-1", if_range='"old"').status_code == 200
    assert answer(tmp_path, range="bytes=0-1", if_range='W/"abc"').status_code == 200


def test_names_cannot_break_headers():
    told = attachment('a"b\r\nSet-Cookie: x; ü.mrc')
    assert "\r" not in told
    assert "\n" not in told
    assert told.startswith('attachment; filename="a_b__Set-Cookie_ x_ _.mrc"')
