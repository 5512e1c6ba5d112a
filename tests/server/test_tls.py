"""Certificates: made for this machine, kept, private; own ones checked before anything starts."""

import hashlib
import socket
import ssl
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from lamella.core.errors import InputError, MissingPathError
from lamella.server.settings import Settings
from lamella.server.tls import prepare_certificate


@pytest.fixture
def settings(tmp_path):
    return Settings(data_dir=tmp_path, tls="self-signed")


def test_it_names_the_machine_and_is_kept(settings, tmp_path):
    made = prepare_certificate(settings)
    assert {"localhost", "127.0.0.1", "::1", socket.gethostname()} <= set(made.names)
    assert made.expires > datetime.now(UTC) + timedelta(days=3000)
    assert made.key_path.stat().st_mode & 0o777 == 0o600
    assert not made.is_new
    assert prepare_certificate(settings) == made


def test_it_is_made_anew_for_another_name_or_when_it_is_over(settings):
    made = prepare_certificate(settings)
    named = settings.model_copy(update={"public_url": "https://gpu.lab.org:8443"})
    other = prepare_certificate(named)
    assert other.is_new
    assert "gpu.lab.org" in other.names
    assert other.fingerprint != made.fingerprint
    assert replace(prepare_certificate(named), is_new=True) == other
    later = prepare_certificate(named, now=lambda: other.expires + timedelta(days=1))
    assert later.fingerprint != other.fingerprint


def test_own_certificates_are_checked(settings, tmp_path):
    made = prepare_certificate(settings)

    def with_own(certificate, key):
        return Settings(data_dir=tmp_path / "x", tls=str(certificate), tls_key=key)

    found = prepare_certificate(with_own(made.path, made.key_path))
    assert found.fingerprint == made.fingerprint
    assert not found.is_self_signed
    with pytest.raises(MissingPathError, match="no certificate"):
        prepare_certificate(with_own(tmp_path / "none.pem", made.key_path))
    with pytest.raises(InputError, match="without its private key"):
        prepare_certificate(with_own(made.path, None))
    with pytest.raises(MissingPathError, match="no private key"):
        prepare_certificate(with_own(made.path, tmp_path / "none.pem"))
    with pytest.raises(InputError, match="cannot be used"):
        prepare_certificate(with_own(made.path, made.path))
    text = tmp_path / "text.pem"
    text.write_text("hello")
    with pytest.raises(InputError, match="cannot be used"):
        prepare_certificate(with_own(text, made.key_path))


def test_off_is_none(tmp_path):
    assert prepare_certificate(Settings(data_dir=tmp_path)) is None


def test_what_is_made_anew_is_private_too_and_replaces_both(settings):
    made = prepare_certificate(settings)
    before = made.key_path.read_bytes()
    later = prepare_certificate(settings, now=lambda: made.expires + timedelta(seconds=1))
    assert later.is_new
    assert later.key_path.read_bytes() != before
    assert later.key_path.stat().st_mode & 0o777 == 0o600
    assert later.path.stat().st_mode & 0o777 == 0o644
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(later.path, later.key_path)
    assert sorted(path.name for path in settings.data_dir.iterdir()) == [
        "certificate.pem", "key.pem",
    ]  # fmt: skip


def test_a_half_that_is_missing_is_made_good(settings):
    made = prepare_certificate(settings)
    made.key_path.unlink()
    again = prepare_certificate(settings)
    assert again.fingerprint != made.fingerprint
    assert again.is_new


def test_an_own_certificate_that_is_over_is_refused(settings, tmp_path):
    made = prepare_certificate(settings, now=lambda: datetime(2001, 1, 1, tzinfo=UTC))
    assert made.expires < datetime.now(UTC)
    own = Settings(data_dir=tmp_path / "x", tls=str(made.path), tls_key=made.key_path)
    with pytest.raises(InputError, match="expired on 2010-12-30"):
        prepare_certificate(own)


def test_the_fingerprint_is_what_openssl_says(settings):
    made = prepare_certificate(settings)
    der = ssl.PEM_cert_to_DER_cert(made.path.read_text())
    assert made.fingerprint == hashlib.sha256(der).hexdigest()
