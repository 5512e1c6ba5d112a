"""Around every request: its id, its measured time, safe headers, and an answer whatever happens.

A plain ASGI middleware: bodies stream through it untouched.
"""

from __future__ import annotations

import logging
import re
import secrets
import time
from typing import TYPE_CHECKING, Any

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request

from lamella.server.body import socket_body
from lamella.server.problems import unforeseen_response

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from lamella.server.metrics import Metrics

__all__ = ["RequestContext"]

logger = logging.getLogger("lamella.server.access")

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_QUIET = frozenset({"/api/v1/health", "/api/v1/ready", "/api/v1/metrics", "/health", "/ready"})
"""Asked every few seconds by machines: logged only for debugging."""
_PREFIX = "/api/v1"
_STREAMED = f"{_PREFIX}/uploads"
"""Bodies of any length come here, and are written as they come."""
_MAX_DOCUMENT = 16 * 1024**2
"""Longest body elsewhere: a batch of a thousand jobs has one or two megabytes."""
_HEADERS = (
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"),
    ("Permissions-Policy", "camera=(), geolocation=(), microphone=()"),
    # Whatever a result holds (a report, a name), a browser runs nothing of it.
    (
        "Content-Security-Policy",
        "default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline';"
        " frame-ancestors 'none'; base-uri 'none'; form-action 'none'; sandbox",
    ),
)


class RequestContext:
    """The middleware.

    Args:
        app: what answers.
        metrics: what counts.
        is_shared: whether pages of other origins may load what the server gives (CORS).
        strict_transport: whether browsers are told to stay with TLS.
    """

    def __init__(
        self, app: ASGIApp, *, metrics: Metrics, is_shared: bool, strict_transport: bool
    ) -> None:
        self.app = app
        self.metrics = metrics
        policy = "cross-origin" if is_shared else "same-origin"
        self.headers = [*_HEADERS, ("Cross-Origin-Resource-Policy", policy)]
        if strict_transport:
            self.headers.append(("Strict-Transport-Security", "max-age=31536000"))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send, self)
        await exchange.run()


class _Exchange:
    """One request and its answer."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, owner: RequestContext) -> None:
        self.scope, self._receive, self._send, self.owner = scope, receive, send, owner
        self.request_id = _request_id(scope)
        scope.setdefault("state", {})["request_id"] = self.request_id
        self.status = 0
        self.n_received = self.n_sent = 0
        self.started = time.perf_counter()

    async def run(self) -> None:
        metrics = self.owner.metrics
        metrics.in_flight.inc()
        try:
            await self.owner.app(self.scope, self.receive, self.send)
        except Exception as error:
            if self.status or self.scope["type"] != "http":
                raise
            response = unforeseen_response(Request(self.scope), error)
            await response(self.scope, self.receive, self.send)
        finally:
            metrics.in_flight.dec()
            self.tell()

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self.n_received += len(message.get("body", b""))
            if self.n_received > _MAX_DOCUMENT and not self.scope["path"].startswith(_STREAMED):
                raise HTTPException(
                    413, f"the document is longer than {_MAX_DOCUMENT // 1024**2} MiB"
                )
        return message

    async def send(self, message: Message) -> None:
        kind = message["type"]
        if kind in ("http.response.start", "websocket.http.response.start"):
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["X-Request-ID"] = self.request_id
            for name, value in self.owner.headers:
                headers.setdefault(name, value)
        elif kind == "websocket.accept":
            self.status = 101
            headers = MutableHeaders(raw=list(message.get("headers") or []))
            headers["X-Request-ID"] = self.request_id
            message = {**message, "headers": headers.raw}
        elif kind == "http.response.body":
            self.n_sent += len(message.get("body", b""))
        await self._send(message)

    def tell(self) -> None:
        seconds = time.perf_counter() - self.started
        method = self.scope.get("method", "WEBSOCKET")
        route = _route(self.scope)
        metrics = self.owner.metrics
        metrics.requests.labels(method, route, str(self.status)).inc()
        if self.scope["type"] == "http":
            metrics.seconds.labels(method, route).observe(seconds)
        if (body := socket_body(self.scope)) is not None:
            self.n_received += body.n_taken
        metrics.bytes_received.inc(self.n_received)
        metrics.bytes_sent.inc(self.n_sent)
        level = logging.DEBUG if self.scope["path"] in _QUIET else logging.INFO
        if logger.isEnabledFor(level):
            logger.log(
                level, "%s %s %s", method, self.scope["path"], self.status,
                extra={"request": self.facts(method, route, seconds)},
            )  # fmt: skip

    def facts(self, method: str, route: str, seconds: float) -> dict[str, Any]:
        who = self.scope["state"].get("principal")
        client = self.scope.get("client")
        return {
            "request_id": self.request_id,
            "method": method,
            # Never the query: signatures are in it.
            "path": self.scope["path"],
            "route": route,
            "status": self.status,
            "ms": round(seconds * 1000, 1),
            "received_bytes": self.n_received,
            "sent_bytes": self.n_sent,
            "address": client[0] if client else "",
            "user": who.user if who is not None else None,
            "token": who.token_id if who is not None else None,
        }


def _request_id(scope: Scope) -> str:
    """The client's own id where it sent a plain one: both sides' logs then tell one story."""
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            text = value.decode("latin-1")
            if _REQUEST_ID.fullmatch(text):
                return text
    return secrets.token_hex(8)


def _route(scope: Scope) -> str:
    """The route's template: a label per job would fill the memory of whoever counts."""
    template = getattr(scope.get("route"), "path", None)
    if template is None:
        return "none"
    # Routes of an included router know their own part only.
    is_inside = scope["path"].startswith(_PREFIX) and not template.startswith(_PREFIX)
    return _PREFIX + template if is_inside else template
