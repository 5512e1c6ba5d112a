"""Ranges and validators as RFC 9110 has them."""

import asyncio
import email
import email.policy

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request

from lamella.server.artifacts.ranges import FileSource, attachment, parse_ranges, send_bytes
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
        found = parse_ranges(header, n)
        if expected is None:
            assert found is None
        else:
            assert found is not None
            assert b"".join(content[start:stop] for start, stop in found) == expected


@pytest.mark.parametrize(
    "header", ["", "bytes", "bytes=", "bytes=-", "bytes=a-b", "bytes=1-2,x", "items=0-1",
               "bytes=٣-٤", "bytes=1--2", "bytes=" + "9" * 40 + "-", "bytes=5-4,1-2", "bytes=,",
               "bytes=" + "0-0," * 33],
)  # fmt: skip
def test_what_is_no_range_is_ignored(header):
    assert parse_ranges(header, 100) is None


def parts_of(answer):
    """Ranges and contents of a multipart answer, as a mail parser of the standard library reads."""
    head = f"Content-Type: {answer.headers['content-type']}\r\n\r\n".encode()
    content = asyncio.run(body_of(answer))
    assert int(answer.headers["content-length"]) == len(content)
    message = email.message_from_bytes(head + content, policy=email.policy.HTTP)
    assert message.is_multipart()
    return [(part["content-range"], part.get_payload(decode=True)) for part in message.walk()][1:]


async def body_of(answer):
    return b"".join([piece async for piece in answer.body_iterator])


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 30)), min_size=1, max_size=8))
def test_several_ranges_are_their_bytes_and_never_more_than_the_whole(ranges):
    n = 50
    header = "bytes=" + ", ".join(f"{start}-{start + length}" for start, length in ranges)
    found = parse_ranges(header, n)
    assert found is not None
    asked = {i for start, length in ranges for i in range(start, start + length + 1) if i < n}
    assert [i for start, stop in found for i in range(start, stop)] != [] or not asked
    assert sum(stop - start for start, stop in found) == len(asked)
    assert {i for start, stop in found for i in range(start, stop)} == asked


def test_several_ranges_come_in_one_answer(tmp_path):
    both = answer(tmp_path, range="bytes=300-309, -4,0-1")
    assert both.status_code == 206
    assert "content-range" not in both.headers
    assert parts_of(both) == [
        ("bytes 300-309/768", CONTENT[300:310]),
        ("bytes 764-767/768", CONTENT[-4:]),
        ("bytes 0-1/768", CONTENT[:2]),
    ]
    # Of those that overlap one is left, and it is sent as one is.
    one = answer(tmp_path, range="bytes=0-5,3-9")
    assert (one.headers["content-range"], one.body) == ("bytes 0-9/768", CONTENT[:10])


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
    assert answer(tmp_path, "HEAD", range="bytes=0-1").status_code == 200


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
