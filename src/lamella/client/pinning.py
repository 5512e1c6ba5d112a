"""Which server this is: the system's authorities, or a certificate that is known exactly.

A pin is the SHA-256 of the certificate (DER), as ``lamella serve`` prints it and as
``openssl x509 -fingerprint -sha256`` does. A pinned certificate needs no authority, no host name
and no date: it is that certificate, or the connection is refused before a byte is sent. ``first``
takes whatever certificate comes first and pins it from then on.

Examples:
    >>> normalised("AB:" * 31 + "CD") == "ab" * 31 + "cd"
    True
"""

import hashlib
import socket
import ssl
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from lamella.core.errors import InputError

__all__ = ["FIRST", "PinError", "fingerprint_of", "normalised", "pinned_context", "presented"]

FIRST = "first"
"""Instead of a pin: trust on first use."""


class PinError(ssl.SSLCertVerificationError):
    """Another certificate than the pinned one."""

    def __init__(self, expected: str, found: str) -> None:
        super().__init__(f"certificate {found}, expected {expected}")
        self.expected = expected
        self.found = found


def normalised(pin: str) -> str:
    """A pin as 64 hex digits, or ``first``.

    Raises:
        InputError: when it is neither.
    """
    text = pin.strip().lower().removeprefix("sha256:").replace(":", "").replace(" ", "")
    if text == FIRST or (len(text) == 64 and all(c in "0123456789abcdef" for c in text)):
        return text
    raise InputError(
        f"{pin!r} is no SHA-256 of a certificate",
        hint="give the 64 hex digits that `lamella serve` prints, or the word first",
    )


def fingerprint_of(certificate: bytes) -> str:
    """The pin of a certificate (DER)."""
    return hashlib.sha256(certificate).hexdigest()


def pinned_context(pin: str, on_match: Callable[[str], None] | None = None) -> ssl.SSLContext:
    """A context that accepts one certificate only.

    Args:
        pin: 64 hex digits, or ``first``.
        on_match: told the pin of the certificate once it was found to be the right one, or is the
            first one where ``pin`` is ``first``.
    """
    known = {"pin": pin, "told": ""}

    def check(connection: Any) -> None:
        certificate = connection.getpeercert(binary_form=True)
        found = fingerprint_of(certificate or b"")
        if known["pin"] == FIRST:
            known["pin"] = found
        if found != known["pin"]:
            raise PinError(known["pin"], found)
        if on_match is not None and known["told"] != found:
            known["told"] = found
            on_match(found)

    class PinnedSocket(ssl.SSLSocket):
        def do_handshake(self, block: bool = False) -> None:
            super().do_handshake(block)
            check(self)

    class PinnedObject(ssl.SSLObject):
        def do_handshake(self) -> None:
            super().do_handshake()
            check(self)

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.sslsocket_class = PinnedSocket
    context.sslobject_class = PinnedObject
    return context


def presented(url: str, timeout_s: float = 5.0) -> str | None:
    """The pin of the certificate that a server presents now; None where it presents none."""
    parts = urlsplit(url)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        place = (parts.hostname or "", parts.port or 443)
        with (
            socket.create_connection(place, timeout=timeout_s) as plain,
            context.wrap_socket(plain, server_hostname=parts.hostname) as secure,
        ):
            certificate = secure.getpeercert(binary_form=True)
    except OSError:
        return None
    return None if certificate is None else fingerprint_of(certificate)
