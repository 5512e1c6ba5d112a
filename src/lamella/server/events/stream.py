"""Server-sent events as a response that ends when the listener goes, not at its next event."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

import anyio
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from lamella.server.events.entry import Entry

__all__ = ["EventStream"]

_HEADERS = {
    "Cache-Control": "no-store",
    # nginx would hold events back to send them together.
    "X-Accel-Buffering": "no",
}
_OPENING = b"retry: 2000\n\n"
_HEARTBEAT = b": heartbeat\n\n"


class EventStream(Response):
    """A response that sends events as they come.

    Args:
        pieces: of events; an empty one is a heartbeat.
    """

    media_type = "text/event-stream"

    def __init__(self, pieces: AsyncGenerator[list[Entry]]) -> None:
        self.pieces = pieces
        self.status_code = 200
        self.background = None
        self.init_headers(_HEADERS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the events end or the listener is gone."""
        await send(
            {
                "type": "http.response.start",
                "status": self.status_code,
                # Without a length: whoever serves sends pieces.
                "headers": [pair for pair in self.raw_headers if pair[0] != b"content-length"],
            }
        )

        async def listen() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            group.cancel_scope.cancel()

        async with anyio.create_task_group() as group, aclosing(self.pieces):
            group.start_soon(listen)
            await self._send_all(send)
            group.cancel_scope.cancel()

    async def _send_all(self, send: Send) -> None:
        async def write(body: bytes, *, more: bool = True) -> None:
            # Waits while the listener does not read: nothing is pulled for it meanwhile.
            await send({"type": "http.response.body", "body": body, "more_body": more})

        try:
            await write(_OPENING)
            async for entries in self.pieces:
                await write(b"".join(entry.encoded() for entry in entries) or _HEARTBEAT)
            await write(b"", more=False)
        except OSError:
            # The listener is gone.
            return
