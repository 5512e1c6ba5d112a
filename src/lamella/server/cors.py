"""Pages of other origins: none may use the server, unless the settings name them.

Signed addresses (``/artifacts``, ``/view``) carry no credentials and answer for themselves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.middleware.cors import CORSMiddleware

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

__all__ = ["SharedOrigins"]

_OWN = ("/api/v1/artifacts/", "/api/v1/view/")
_EXPOSED = (
    "ETag",
    "Lamella-Volume",
    "Location",
    "Retry-After",
    "Tus-Checksum-Algorithm",
    "Tus-Extension",
    "Tus-Max-Size",
    "Tus-Resumable",
    "Tus-Version",
    "Upload-Concat",
    "Upload-Defer-Length",
    "Upload-Expires",
    "Upload-Length",
    "Upload-Metadata",
    "Upload-Offset",
    "X-Request-ID",
)
_METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST")


class SharedOrigins:
    """The middleware.

    Args:
        app: what answers.
        origins: that may use it, ``*`` for all; tokens are sent by header, never by cookie, so no
            credentials of a browser are ever allowed.
    """

    def __init__(self, app: ASGIApp, *, origins: tuple[str, ...]) -> None:
        self.app = app
        self.shared = CORSMiddleware(
            app,
            allow_origins=origins,
            allow_methods=_METHODS,
            allow_headers=["*"],
            expose_headers=_EXPOSED,
            max_age=600,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        is_own = scope["type"] == "http" and scope["path"].startswith(_OWN)
        await (self.app if is_own else self.shared)(scope, receive, send)
