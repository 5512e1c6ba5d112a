"""One HTTP reply as a stream of bytes that can be cancelled at any moment.

The standard library's client is used: it verifies TLS, honours the proxies of the environment and
costs the base install nothing. It blocks, so a thread reads and hands over what came; whoever waits
asks five times a second whether to stop. A redirect from https to anything else is refused.

What fails here is a :class:`TransferError`, which says whether trying again may help; people never
see it, :mod:`lamella.models.download` turns it into the reasons of a ``DownloadError``.
"""

from __future__ import annotations

import queue
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from urllib.request import OpenerDirector, Request

__all__ = ["Reply", "TransferError", "byte_range", "open_reply"]

_CHUNK_BYTES = 1 << 18
_POLL_S = 0.2
_N_WAITING = 4
"""Chunks that may wait between the reading thread and the disk: at most 1 MB."""
_TRY_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})


class TransferError(Exception):
    """A reply that failed.

    Args:
        reason: for people, without the address.
        is_lasting: whether asking the same address again is pointless.
        wait_s: how long the server asked to wait, in seconds.
    """

    def __init__(
        self, reason: str, *, is_lasting: bool = False, wait_s: float | None = None
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.is_lasting = is_lasting
        self.wait_s = wait_s


@dataclass(slots=True)
class Reply:
    """The head of a reply, and its body as it comes.

    Attributes:
        status: HTTP status.
        headers: by lower-case name.
        chunks: the body, in pieces; raises :class:`TransferError` where the connection fails.
    """

    status: int
    headers: Mapping[str, str]
    chunks: Iterator[bytes] = field(repr=False)

    @property
    def n_bytes(self) -> int | None:
        """Length of the body as the server declares it."""
        text = self.headers.get("content-length", "")
        return int(text) if text.isdecimal() and "transfer-encoding" not in self.headers else None

    @property
    def tells_its_end(self) -> bool:
        """Whether a body that was cut short can be told from a whole one."""
        return self.n_bytes is not None or "chunked" in self.headers.get("transfer-encoding", "")

    @property
    def is_web_page(self) -> bool:
        """Whether the body says of itself that it is for browsers."""
        return self.headers.get("content-type", "").startswith("text/html")

    @property
    def validator(self) -> str:
        """What ``If-Range`` may be given: a strong ETag, else the date; empty where neither is."""
        tag = self.headers.get("etag", "")
        if tag and not tag.startswith("W/"):
            return tag
        return self.headers.get("last-modified", "")

    def check_status(self) -> None:
        """Refuse what is no success.

        Raises:
            TransferError: saying what the server answered, and how long it asks to wait.
        """
        if self.status in (200, 206):
            if self.headers.get("content-encoding", "identity").lower() != "identity":
                raise TransferError("the server compressed what has to come as it is")
            return
        from http.client import responses

        text = f"the server answered {self.status} {responses.get(self.status, '')}".rstrip()
        wait_s = _retry_after(self.headers.get("retry-after", ""))
        raise TransferError(text, is_lasting=self.status not in _TRY_AGAIN, wait_s=wait_s)


def byte_range(reply: Reply) -> tuple[int | None, int | None]:
    """Return first byte and whole length that ``Content-Range`` tells; None where it tells none.

    Examples:
        >>> byte_range(Reply(206, {"content-range": "bytes 5-9/10"}, iter(())))
        (5, 10)
        >>> byte_range(Reply(416, {"content-range": "bytes */10"}, iter(())))
        (None, 10)
    """
    told = re.fullmatch(
        r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", reply.headers.get("content-range", "").strip()
    )
    if told is None:
        return None, None
    first, whole = told.groups()
    return (int(first) if first else None, None if whole == "*" else int(whole))


@contextmanager
def open_reply(
    address: str,
    headers: Mapping[str, str] | None = None,
    *,
    timeout_s: float,
    check: Callable[[], None],
) -> Iterator[Reply]:
    """Ask an address and yield its reply, whatever the status.

    Args:
        address: http or https.
        headers: added to the request's.
        timeout_s: longest silence of the server.
        check: raises when the work should stop; called at least five times a second.

    Raises:
        TransferError: no connection, or one that may not be trusted.
    """
    from urllib.request import Request

    if not address.lower().startswith(("http://", "https://")):
        raise TransferError("this is no web address", is_lasting=True)
    try:
        request = Request(address, headers={**_own_headers(), **(headers or {})})
    except ValueError as error:
        raise _translated(error) from None
    pump = _Pump(request, timeout_s)
    pump.start()
    try:
        status, received = pump.take(check)
        yield Reply(status, received, pump.iter_chunks(check))
    finally:
        pump.stop()


def _own_headers() -> dict[str, str]:
    from importlib.metadata import version

    return {"User-Agent": f"lamella/{version('lamella')}", "Accept-Encoding": "identity"}


class _Pump(threading.Thread):
    """Reads a reply into a short queue; what went wrong comes through the queue too."""

    def __init__(self, request: Request, timeout_s: float) -> None:
        super().__init__(name="lamella-download", daemon=True)
        self._request = request
        self._timeout_s = timeout_s
        self._queue: queue.Queue[Any] = queue.Queue(_N_WAITING)
        self._stopped = threading.Event()

    def run(self) -> None:
        from urllib.error import HTTPError
        from urllib.request import getproxies

        try:
            try:
                proxies = tuple(sorted(getproxies().items()))
                response = _opener(proxies).open(self._request, timeout=self._timeout_s)
            except HTTPError as error:
                response = error
            with response:
                headers = {name.lower(): value for name, value in response.headers.items()}
                self._put((response.status, headers))
                # read1 gives what one call of the system gave: nothing is lost when the next fails.
                while not self._stopped.is_set() and (chunk := response.read1(_CHUNK_BYTES)):
                    self._put(chunk)
            self._put(b"")
        except TransferError as error:
            self._put(error)
        except Exception as error:  # noqa: BLE001 - whoever waits must hear of it
            self._put(_translated(error))

    def take(self, check: Callable[[], None]) -> Any:
        """Return what came next; raise it where it is an error."""
        waited_s = 0.0
        while True:
            check()
            try:
                item = self._queue.get(timeout=_POLL_S)
            except queue.Empty:
                waited_s += _POLL_S
                # The socket has its own timeout; looking up a name has none.
                if waited_s > 2 * self._timeout_s + 1:
                    raise TransferError(f"no answer for {waited_s:.0f} s") from None
                continue
            if isinstance(item, TransferError):
                raise item
            return item

    def iter_chunks(self, check: Callable[[], None]) -> Iterator[bytes]:
        """Yield the body until its end."""
        while chunk := self.take(check):
            yield chunk

    def stop(self) -> None:
        """Let the thread end; it is not waited for, as it may sit in a read."""
        self._stopped.set()

    def _put(self, item: Any) -> None:
        while not self._stopped.is_set():
            try:
                self._queue.put(item, timeout=_POLL_S)
            except queue.Full:
                continue
            return


@lru_cache(maxsize=4)
def _opener(proxies: tuple[tuple[str, str], ...]) -> OpenerDirector:
    """An opener for http and https only: no file, ftp or data addresses behind a redirect."""
    from urllib import request

    class SafeRedirects(request.HTTPRedirectHandler):
        def redirect_request(
            self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
        ) -> Request | None:
            is_safe = newurl.lower().startswith("https:" if req.type == "https" else "http")
            if not is_safe:
                fp.close()
                raise TransferError(f"redirected to {newurl}, which is not safe", is_lasting=True)
            return super().redirect_request(req, fp, code, msg, headers, newurl)

    opener = request.OpenerDirector()
    for handler in (
        request.ProxyHandler(dict(proxies)),
        request.HTTPHandler(),
        request.HTTPSHandler(context=ssl.create_default_context()),
        request.HTTPDefaultErrorHandler(),
        SafeRedirects(),
        request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener


def _translated(error: Exception) -> TransferError:
    """What the library said, as a reason people understand."""
    cause: Any = error
    while getattr(cause, "reason", None) is not None and isinstance(cause.reason, Exception):
        cause = cause.reason
    if isinstance(cause, ssl.SSLCertVerificationError):
        return TransferError(
            f"its certificate cannot be trusted ({cause.verify_message}); where an institute signs"
            " its own, SSL_CERT_FILE names the certificates to trust",
            is_lasting=True,
        )
    if isinstance(cause, TimeoutError):
        return TransferError("the server fell silent")
    if isinstance(cause, socket.gaierror):
        return TransferError("the name of the server is not known")
    if isinstance(cause, ConnectionRefusedError):
        return TransferError("the server refused the connection")
    if isinstance(cause, ValueError):
        return TransferError(f"this address cannot be used ({cause})", is_lasting=True)
    text = getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
    return TransferError(f"the connection was lost ({text})")


def _retry_after(text: str) -> float | None:
    """Seconds from a ``Retry-After``: a number or a date."""
    if text.strip().isdecimal():
        return float(text)
    if not text:
        return None
    from datetime import UTC, datetime
    from email.utils import parsedate_to_datetime

    try:
        when = parsedate_to_datetime(text)
    except ValueError:
        return None
    at = when if when.tzinfo else when.replace(tzinfo=UTC)
    return max(0.0, (at - datetime.now(UTC)).total_seconds())
