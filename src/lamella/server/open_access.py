"""Addresses that need no token: what they are below, and what pages of other origins may do there.

A signature in the address is all the right there is; no cookie and no token is ever looked at, so
any page may read what it has the address of.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi.routing import APIRoute
from starlette.datastructures import MutableHeaders
from starlette.responses import Response

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import Message, Receive, Scope, Send

    from lamella.server.services import Services

__all__ = ["SharedRoute", "allow_all", "base_url"]

SHARED_HEADERS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Expose-Headers": "Accept-Ranges, Content-Length, Content-Range, ETag,"
    " Retry-After, X-Request-ID",
    "Cross-Origin-Resource-Policy": "cross-origin",
}
"""Of every answer below a signed address."""


class SharedRoute(APIRoute):
    """A route whose answers pages of other origins may read, problems too.

    A page that may not read a 404 cannot tell a missing chunk from a network that is down.
    """

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""

        async def share(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(SHARED_HEADERS)
            await send(message)

        await super().handle(scope, receive, share)


def allow_all() -> Response:
    """The answer to a preflight request."""
    return Response(
        status_code=204,
        headers={
            "Access-Control-Allow-Methods": "GET, HEAD, OPTIONS",
            "Access-Control-Allow-Headers": "Range, If-Range, If-None-Match, Accept",
            "Access-Control-Max-Age": "86400",
        },
    )


def base_url(request: Request, services: Services) -> str:
    """Where clients reach ``/api/v1``, without a slash at the end."""
    public = services.settings.public_url
    return f"{public or str(request.base_url).rstrip('/')}/api/v1"
