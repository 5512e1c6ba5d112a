"""Headers of tus: what is right comes back as it was, what is wrong is one clear refusal."""

import base64
import hashlib
from contextlib import suppress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lamella.server.problems import ProtocolError
from lamella.server.uploads import protocol
from lamella.server.uploads.protocol import TusError

KEYS = st.from_regex(r"[!-+\--~]{1,12}", fullmatch=True)
IDS = st.from_regex(r"[0-9a-f]{32}", fullmatch=True)


@given(st.dictionaries(KEYS, st.text(st.characters(exclude_categories=["Cs"]), max_size=40)))
def test_metadata_come_back(metadata):
    assert protocol.parse_metadata(protocol.format_metadata(metadata)) == metadata


@given(
    st.lists(IDS, min_size=1, max_size=5), st.sampled_from(["", "https://lab:8443", "http://x/y"])
)
def test_parts_come_back_in_order(ids, host):
    text = "final;" + " ".join(f"{host}/api/v1/uploads/{one}" for one in ids)
    assert protocol.parse_concat(text) == protocol.Concat(True, tuple(ids))


@given(st.binary(max_size=50), st.sampled_from(protocol.CHECKSUMS))
def test_checksums_are_those_of_hashlib(body, algorithm):
    digest = hashlib.new(algorithm, body).digest()
    check = protocol.parse_checksum(f"{algorithm} {base64.b64encode(digest).decode()}")
    running = check.start()
    running.update(body)
    assert running.digest() == check.digest


@given(st.text(max_size=60))
@example("final;http://[/uploads/00000000000000000000000000000000")
@example("sha1 é")
@example("a \x00")
@example("0\x1f")
def test_any_text_is_read_or_refused(text):
    readers = (
        protocol.parse_metadata,
        protocol.parse_checksum,
        protocol.parse_concat,
        protocol.parse_sha256,
        lambda value: protocol.parse_number(value, "Upload-Length"),
    )
    for read in readers:
        with suppress(TusError):
            read(text)


@given(st.integers(0, 2**63 - 1))
def test_numbers_come_back(number):
    assert protocol.parse_number(str(number), "Upload-Offset") == number


@pytest.mark.parametrize("text", ["", "-1", "+1", "1.5", "1e3", "0x10", "٣", str(2**63), "1" * 400])
def test_numbers_that_are_none(text):
    with pytest.raises(ProtocolError, match="expected a number of bytes"):
        protocol.parse_number(text, "Upload-Length")


@pytest.mark.parametrize(
    "text", ["a aGk=,a aGk=", "a b c", "ä aGk=", "a !!!", "a /w==", ",", "a" * 20_000]
)
def test_metadata_that_are_none(text):
    with pytest.raises(ProtocolError):
        protocol.parse_metadata(text)


@given(st.text(max_size=400))
def test_names_are_safe_on_any_disk(name):
    clean = protocol.clean_name({"filename": name})
    assert clean
    assert clean not in (".", "..")
    assert "/" not in clean
    assert "\\" not in clean
    assert len(clean.encode(errors="surrogatepass")) <= 200
    assert clean.isprintable()


def test_a_long_name_keeps_its_suffix():
    assert protocol.clean_name({"filename": "x" * 500 + ".nii.gz"}).endswith("x.nii.gz")
