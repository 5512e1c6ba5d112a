"""Certificates: the one given, or one of our own for this machine's names and addresses.

A self-signed certificate proves nothing by itself: clients pin its fingerprint, which
``lamella serve`` prints (SHA-256 of the certificate's DER, hexadecimal).
"""

from __future__ import annotations

import hashlib
import ipaddress
import socket
import ssl
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from lamella.core.errors import InputError, MissingPathError
from lamella.server.secret import write_private

if TYPE_CHECKING:
    from cryptography import x509

    from lamella.server.settings import Settings

__all__ = ["Certificate", "host_names", "prepare_certificate"]

_CERTIFICATE, _KEY = "certificate.pem", "key.pem"
_LIFETIME = timedelta(days=3650)
# A clock that runs behind must not find a certificate of tomorrow.
_BACKDATE = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Certificate:
    """What connections are encrypted with.

    Attributes:
        path: certificate and its chain, PEM.
        key_path: private key, PEM.
        fingerprint: SHA-256 of the certificate's DER, hexadecimal.
        names: host names and addresses it is for.
        expires: until when it is valid.
        is_self_signed: whether nobody vouches for it.
        is_new: whether it took the place of another one just now: pins of that one are void.
    """

    path: Path
    key_path: Path
    fingerprint: str
    names: tuple[str, ...]
    expires: datetime
    is_self_signed: bool
    is_new: bool = False


def prepare_certificate(
    settings: Settings, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)
) -> Certificate | None:
    """The certificate that the settings ask for; None without TLS.

    A self-signed one is made once and kept, so that pins stay valid; it is made anew when it has
    expired, or when it lacks the name or address that the settings give.

    Raises:
        MissingPathError: no such certificate or key.
        InputError: they do not belong together, or are none.
    """
    if settings.tls == "off":
        return None
    if settings.tls != "self-signed":
        return _given(Path(settings.tls).expanduser(), settings.tls_key)
    path, key_path = settings.data_dir / _CERTIFICATE, settings.data_dir / _KEY
    wanted = _asked_names(settings)
    if path.is_file() and key_path.is_file():
        kept = _describe(path, key_path, is_self_signed=True)
        if kept.expires > now() and set(wanted) <= set(kept.names):
            return kept
    is_new = path.is_file()
    _make(path, key_path, host_names(wanted), now())
    return replace(_describe(path, key_path, is_self_signed=True), is_new=is_new)


def host_names(more: Iterable[str] = ()) -> tuple[str, ...]:
    """Names and addresses under which this machine can be reached, and ``more``."""
    found = ["localhost", "127.0.0.1", "::1", socket.gethostname(), socket.getfqdn()]
    import psutil

    for addresses in psutil.net_if_addrs().values():
        found += [one.address.partition("%")[0] for one in addresses if _is_address(one.address)]
    return tuple(dict.fromkeys(name for name in [*found, *more] if name))


def _asked_names(settings: Settings) -> tuple[str, ...]:
    names = [settings.host] if settings.host not in ("", "0.0.0.0", "::") else []
    if settings.public_url:
        names.append(urlsplit(settings.public_url).hostname or "")
    return tuple(name for name in names if name)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    return True


def _given(path: Path, key_path: Path | None) -> Certificate:
    if not path.is_file():
        raise MissingPathError(
            f"there is no certificate {path}",
            hint="--tls self-signed makes one; --tls off serves without",
        )
    if key_path is None:
        raise InputError(
            f"--tls {path} came without its private key", hint="give --tls-key FILE.pem too"
        )
    if not key_path.is_file():
        raise MissingPathError(f"there is no private key {key_path}", hint="check --tls-key")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # A key with a passphrase would ask on the terminal.
        context.load_cert_chain(path, key_path, password=lambda: "")
    except (ssl.SSLError, ValueError) as error:
        reason = getattr(error, "reason", None) or ""
        told = f": {reason.replace('_', ' ').lower()}" if reason else ", they are not PEM"
        raise InputError(
            f"{path} and {key_path} cannot be used{told}",
            hint="both must be PEM, belong together, and the key must have no passphrase",
        ) from None
    certificate = _describe(path, key_path, is_self_signed=False)
    if certificate.expires <= datetime.now(UTC):
        raise InputError(
            f"the certificate {path} expired on {certificate.expires:%Y-%m-%d}",
            hint="renew it, or use --tls self-signed",
        )
    return certificate


def _describe(path: Path, key_path: Path, *, is_self_signed: bool) -> Certificate:
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    try:
        certificate = x509.load_pem_x509_certificates(path.read_bytes())[0]
    except (ValueError, IndexError):
        raise InputError(
            f"{path} is not a certificate", hint="it must be PEM: -----BEGIN CERTIFICATE-----"
        ) from None
    return Certificate(
        path=path,
        key_path=key_path,
        fingerprint=hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest(),
        names=_names_of(certificate),
        expires=certificate.not_valid_after_utc,
        is_self_signed=is_self_signed,
    )


def _names_of(certificate: x509.Certificate) -> tuple[str, ...]:
    from cryptography import x509

    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    addresses = names.get_values_for_type(x509.IPAddress)
    return (*names.get_values_for_type(x509.DNSName), *(str(address) for address in addresses))


def _make(path: Path, key_path: Path, names: tuple[str, ...], now: datetime) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
    )
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    public = key.public_key()
    # X.509 allows names of 64 characters; the full list is in the alternative names.
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, socket.gethostname()[:64])])
    usage = x509.KeyUsage(
        digital_signature=True, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=True, key_cert_sign=False, crl_sign=False,
        encipher_only=False, decipher_only=False,
    )  # fmt: skip
    identifier = x509.SubjectKeyIdentifier.from_public_key(public)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATE)
        .not_valid_after(now + _LIFETIME)
        .add_extension(x509.SubjectAlternativeName([_general(one) for one in names]), False)
        # No authority: whoever trusts it trusts this server and nothing that it might sign.
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
        .add_extension(usage, True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False)
        .add_extension(identifier, False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), False
        )
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for file, content in ((key_path, private), (path, certificate.public_bytes(Encoding.PEM))):
        file.unlink(missing_ok=True)
        write_private(file, content)
    # Clients get the certificate as a file: it is no secret.
    path.chmod(0o644)


def _general(name: str) -> x509.GeneralName:
    from cryptography import x509

    if _is_address(name):
        return x509.IPAddress(ipaddress.ip_address(name))
    return x509.DNSName(name.encode("idna").decode())
