"""Signed addresses: only what was signed, only for as long."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.core.errors import ForbiddenError, GoneError
from lamella.server.secret import Secret, write_private
from lamella.server.signing import Signer

PARTS = st.lists(st.text(max_size=12), min_size=1, max_size=4)


@given(PARTS, PARTS)
def test_a_signature_fits_its_parts_only(parts, others):
    signer = Signer(b"k" * 32, 60, clock=lambda: 1000.0)
    signed = signer.sign(*parts)
    if parts == others:
        signer.check(*others, expires=signed.expires, signature=signed.signature)
    else:
        with pytest.raises(ForbiddenError):
            signer.check(*others, expires=signed.expires, signature=signed.signature)


@given(st.text(max_size=60), st.text(max_size=60))
def test_anything_may_come_and_nothing_is_accepted(expires, signature):
    signer = Signer(b"k" * 32, 60)
    with pytest.raises(ForbiddenError):
        signer.check("a", expires=expires, signature=signature)
    with pytest.raises(ForbiddenError):
        signer.open(f"{expires}-{signature}", "a")


def test_it_expires_and_a_later_end_cannot_be_claimed():
    now = [1000.0]
    signer = Signer(b"k" * 32, 60, clock=lambda: now[0])
    signed, sealed = signer.sign("a"), signer.seal("a", lifetime_s=10)
    now[0] = 1009.0
    signer.open(sealed, "a")
    now[0] = 1060.0
    with pytest.raises(GoneError):
        signer.check("a", expires=signed.expires, signature=signed.signature)
    with pytest.raises(GoneError):
        signer.open(sealed, "a")
    with pytest.raises(ForbiddenError):
        signer.check("a", expires=signed.expires + 1000, signature=signed.signature)


def test_the_secret_is_private_and_stays(tmp_path):
    first = Secret.of_folder(tmp_path)
    assert (tmp_path / "secret.key").stat().st_mode & 0o777 == 0o600
    assert Secret.of_folder(tmp_path).key("x") == first.key("x") != first.key("y")
    assert "***" in repr(first)


def test_of_two_that_write_at_once_one_wins(tmp_path):
    assert write_private(tmp_path / "key", b"a")
    assert not write_private(tmp_path / "key", b"b")
    assert (tmp_path / "key").read_bytes() == b"a"
    assert [path.name for path in tmp_path.iterdir()] == ["key"]
