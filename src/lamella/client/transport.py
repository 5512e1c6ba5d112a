"""What both drivers share: addresses, headers, and what an exception of the network means."""

import base64
import hashlib
import ssl
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from lamella.client.flow import Body, Failure, FailureKind, Request, Response
from lamella.client.pinning import PinError, pinned_context, presented

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx2

__all__ = ["Endpoint", "failure_of", "network_errors", "prepared", "response_of"]

_PREFIX = "/api/v1/"
_CONNECT_S = 10.0
_SILENCE_S = 60.0


@dataclass(frozen=True)
class Endpoint:
    """A server and how it is spoken to.

    Attributes:
        url: its address, without ``/api/v1``.
        token: the user's; None for a server that asks for none.
        pin: SHA-256 of its certificate, or ``first``; None = the system's authorities.
        on_match: told the pin of the certificate once it was found to be the right one.
        agent: name and version of this client.
    """

    url: str
    token: str | None = field(default=None, repr=False)
    pin: str | None = None
    on_match: "Callable[[str], None] | None" = None
    agent: str = "lamella"

    def settings(self) -> dict[str, Any]:
        """Arguments of ``httpx2.Client`` and ``httpx2.AsyncClient``."""
        import httpx2

        words: dict[str, Any] = {
            "timeout": httpx2.Timeout(_SILENCE_S, connect=_CONNECT_S, pool=None),
            "follow_redirects": False,
        }
        if self.pin is not None and self.url.startswith("https"):
            words["verify"] = pinned_context(self.pin, self.on_match)
        return words

    def address(self, path: str) -> str:
        """The whole address of a request's path."""
        if "://" in path:
            return path
        return self.url + path if path.startswith("/") else f"{self.url}{_PREFIX}{path}"


def prepared(endpoint: Endpoint, request: Request) -> dict[str, Any]:
    """Arguments of ``build_request``; reads and hashes the body."""
    import httpx2

    address = endpoint.address(request.path)
    headers = {"user-agent": endpoint.agent, "accept": "application/json", **request.headers}
    is_ours = urlsplit(address)[:2] == urlsplit(endpoint.url)[:2]
    if endpoint.token and request.has_token and is_ours:
        headers["authorization"] = f"Bearer {endpoint.token}"
    content = request.content
    if request.body is not None:
        content = _read(request.body)
        digest = base64.b64encode(hashlib.sha256(content).digest()).decode()
        headers["upload-checksum"] = f"sha256 {digest}"
    silence = request.timeout_s or _SILENCE_S
    return {
        "method": request.method,
        "url": address,
        "headers": headers,
        "params": dict(request.params) or None,
        "content": content,
        "timeout": httpx2.Timeout(silence, connect=_CONNECT_S, pool=None),
    }


def response_of(answer: "httpx2.Response", content: bytes) -> Response:
    """An answer in the words of flows."""
    headers = {name.lower(): value for name, value in answer.headers.items()}
    return Response(answer.status_code, headers, content, time.monotonic())


def failure_of(error: Exception, endpoint: Endpoint) -> Failure:
    """What an exception of the network means."""
    import httpx2

    name = urlsplit(endpoint.url).netloc
    certificate = _cause(error, ssl.SSLCertVerificationError)
    if certificate is not None:
        return Failure("certificate", _stranger(certificate, endpoint), time.monotonic())
    kind: FailureKind
    if isinstance(error, httpx2.TimeoutException):
        kind, text = "timeout", f"{name} does not answer in time"
    elif _cause(error, ssl.SSLError) is not None:
        kind, text = "protocol", f"{name} does not speak TLS as expected: {_innermost(error)}"
    elif isinstance(error, httpx2.ConnectError | httpx2.ProxyError):
        kind, text = "unreachable", f"{name} cannot be reached ({_innermost(error)})"
    elif isinstance(error, httpx2.NetworkError | httpx2.RemoteProtocolError):
        kind, text = "broken", f"the connection to {name} broke ({_innermost(error)})"
    else:
        kind, text = "protocol", f"{name} cannot be spoken to: {error}"
    return Failure(kind, text, time.monotonic())


def network_errors() -> tuple[type[Exception], ...]:
    """What httpx2 raises, and :func:`failure_of` understands."""
    import httpx2

    return (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError)


def _read(body: Body) -> bytes:
    return body.source.read(body.start, body.count)


def _cause(error: BaseException, kind: type[Any]) -> Any:
    """An exception of a kind among the causes of another."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, kind):
            return found
        found = found.__cause__ or found.__context__
    return None


def _innermost(error: BaseException) -> str:
    system = _cause(error, OSError)
    text = str(system.strerror or system) if system is not None else str(error)
    # "[Errno 111] Connection refused" says it twice.
    return text.rpartition("] ")[2].strip().rstrip(".").lower() or type(error).__name__


def _stranger(error: ssl.SSLCertVerificationError, endpoint: Endpoint) -> str:
    if isinstance(error, PinError):
        return (
            f"{endpoint.url} shows another certificate than the one that is pinned: {error.found},"
            f" expected {error.expected}; either it was renewed, or this is not your server. Ask"
            f" whoever runs it, then: lamella login {endpoint.url} --pin {error.found}"
        )
    found = presented(endpoint.url)
    advice = (
        f"; compare its SHA-256 {found} with the one that the server printed when it started, then"
        f" add --pin {found}"
        if found
        else ""
    )
    why = getattr(error, "verify_message", "") or "not verified"
    return f"the certificate of {endpoint.url} cannot be trusted ({why}){advice}"
