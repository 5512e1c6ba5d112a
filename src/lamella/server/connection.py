"""uvicorn's HTTP connection, whose large bodies wait in the socket until somebody wants them."""

from __future__ import annotations

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from lamella.server.body import EXTENSION, SocketBody

__all__ = ["Connection"]

_LEAST_BYTES = 512 * 2**10
"""Smaller bodies come with their headers, or soon after."""


class Connection(HttpToolsProtocol):
    """One connection. Over TLS the event loop decrypts, and every body comes as usual."""

    _body: SocketBody | None = None
    _n_skipped = 0
    """Bytes of a body that was given up and still comes."""

    def data_received(self, data: bytes) -> None:
        """Take what has come, less the rest of a body that was given up."""
        if self._n_skipped:
            self._unset_keepalive_if_required()
            n_bytes = min(self._n_skipped, len(data))
            self._n_skipped -= n_bytes
            data = data[n_bytes:]
            if not data:
                return
        super().data_received(data)

    def on_headers_complete(self) -> None:
        """Begin the request, and leave a large body where it is."""
        super().on_headers_complete()
        self._body = None
        is_waiting = bool(self.pipeline) or self.cycle is None or self.cycle.scope is not self.scope
        if is_waiting or self.scheme != "http":
            return
        told = next((value for name, value in self.headers if name == b"content-length"), b"0")
        if int(told) >= _LEAST_BYTES:  # the parser has refused what is no number
            self.flow.pause_reading()
            self._body = SocketBody(self, int(told))
            self.scope["extensions"] = {EXTENSION: self._body}  # type: ignore[typeddict-unknown-key]

    def on_body(self, body: bytes) -> None:
        """Count what goes the usual way."""
        if self._body is not None:
            self._body.n_parsed += len(body)
        super().on_body(body)

    def end_body(self, n_left: int) -> None:
        """Go on behind a body that was read elsewhere.

        Args:
            n_left: bytes of it that were not read.
        """
        if self.parser is None:  # the connection is gone
            return
        # The parser still waits for this body: a new one begins with the next request.
        self.parser = httptools.HttpRequestParser(self)
        if hasattr(self.parser, "set_dangerous_leniencies"):
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._n_skipped = n_left
        self.cycle.more_body = False
        self.cycle.message_event.set()
