"""Addresses that may be opened without a token, for a while: HMAC-SHA-256 over what they name.

Examples:
    >>> signer = Signer(b"k" * 32, lifetime_s=600, clock=lambda: 1_000.0)
    >>> signed = signer.sign("artifact", "job-1", "labels.mrc")
    >>> signed.expires
    1600
    >>> signer.check("artifact", "job-1", "labels.mrc",
    ...              expires=signed.expires, signature=signed.signature)
    >>> try:
    ...     signer.check("artifact", "job-2", "labels.mrc",
    ...                  expires=signed.expires, signature=signed.signature)
    ... except ForbiddenError as error:
    ...     print(error.message)
    the signature does not fit this address
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from collections.abc import Callable
from dataclasses import dataclass

from lamella.core.errors import ForbiddenError, GoneError

__all__ = ["Signature", "Signer"]

_HINT = "ask the server for a new address"
_MAX_DIGITS = 12
"""Of a time in seconds; longer ones are no times."""


@dataclass(frozen=True, slots=True)
class Signature:
    """What makes an address valid, until ``expires`` (Unix time, seconds)."""

    expires: int
    signature: str


@dataclass(frozen=True, slots=True)
class Signer:
    """Signs what an address names, and checks what comes back.

    Args:
        key: secret of the server.
        lifetime_s: of a signature, unless another is asked for.
        clock: Unix time in seconds.
    """

    key: bytes
    lifetime_s: float
    clock: Callable[[], float] = time.time

    def sign(self, *parts: str, lifetime_s: float | None = None) -> Signature:
        """Sign what an address names: its purpose first, then ids and names."""
        expires = int(self.clock() + (self.lifetime_s if lifetime_s is None else lifetime_s))
        return Signature(expires, self._compute(parts, expires))

    def check(self, *parts: str, expires: int | str, signature: str) -> None:
        """Accept a signature of these parts, or raise.

        Raises:
            ForbiddenError: it was not made by this server for this.
            GoneError: it was, and has expired.
        """
        text = str(expires)
        is_time = text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS
        until = int(text) if is_time else 0
        # One way to write it: 0123 is another address than 123, and none that was signed.
        is_time = is_time and text == str(until)
        expected = self._compute(parts, until)
        # Compared as bytes: compare_digest refuses text beyond ASCII, and anything may come.
        if not is_time or not hmac.compare_digest(
            expected.encode(), signature.encode("utf-8", "surrogatepass")
        ):
            raise ForbiddenError("the signature does not fit this address", hint=_HINT)
        if self.clock() >= until:
            raise GoneError("this address has expired", hint=_HINT)

    def seal(self, *parts: str, lifetime_s: float | None = None) -> str:
        """The signature as one word, for addresses whose readers append paths of their own."""
        signed = self.sign(*parts, lifetime_s=lifetime_s)
        return f"{signed.expires}-{signed.signature}"

    def open(self, sealed: str, *parts: str) -> None:
        """Accept a word of :meth:`seal`, or raise as :meth:`check` does."""
        expires, _, signature = sealed.partition("-")
        self.check(*parts, expires=expires, signature=signature)

    def _compute(self, parts: tuple[str, ...], expires: int) -> str:
        # Lengths are signed too: no two lists of parts give the same text.
        fields = [str(expires).encode(), *(part.encode("utf-8", "surrogatepass") for part in parts)]
        text = b"".join(len(field).to_bytes(8, "big") + field for field in fields)
        digest = hmac.new(self.key, text, hashlib.sha256).digest()
        return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
