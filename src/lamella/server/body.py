"""A request's body, taken from the socket by a thread, past the event loop.

uvicorn gives a body to the application in pieces of 64 KiB, each copied four times in the event
loop's thread: uploads would wait for it, and every other answer for the uploads. A connection of
:mod:`lamella.server.connection` stops reading once a large request's headers are there, and offers
the rest to the application. Who does not take it receives it as usual.
"""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any, Protocol

__all__ = ["EXTENSION", "BodyConnection", "SocketBody", "TakenBody", "socket_body"]

EXTENSION = "lamella.body"
"""Its name among the extensions of an ASGI scope."""


class BodyConnection(Protocol):
    """What a connection must have that a body can be taken from."""

    transport: Any
    flow: Any
    cycle: Any

    def end_body(self, n_left: int) -> None:
        """Go on behind a body of which ``n_left`` bytes were not read."""
        ...


class SocketBody:
    """One request's body, of which most is still in the socket.

    Args:
        connection: that it comes by.
        n_bytes: of the whole body.
    """

    def __init__(self, connection: BodyConnection, n_bytes: int) -> None:
        self._connection = connection
        self._cycle = connection.cycle
        self._n_bytes = n_bytes
        self.n_parsed = 0
        """Bytes that went the usual way."""
        self.n_taken = 0
        """Bytes that came to whoever took it."""

    def take(self) -> TakenBody | None:
        """The body, for the caller alone; None where it can only be received as usual."""
        connection, cycle = self._connection, self._cycle
        is_gone = connection.transport.is_closing() or cycle.disconnected
        if is_gone or connection.cycle is not cycle or not cycle.more_body:
            return None
        connection.flow.pause_reading()
        if cycle.waiting_for_100_continue:
            connection.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            cycle.waiting_for_100_continue = False
        first, cycle.body = bytes(cycle.body), bytearray()
        cycle.message_event.clear()
        self.n_taken = len(first)
        # A descriptor of its own: it stays readable when uvicorn closes the connection.
        handle = os.dup(connection.transport.get_extra_info("socket").fileno())
        return TakenBody(self, socket.socket(fileno=handle), first, self._n_bytes - self.n_parsed)

    def give_back(self, n_left: int) -> None:
        """Let the connection go on behind the body.

        Args:
            n_left: bytes of it that were not read.
        """
        self.n_taken += self._n_bytes - self.n_parsed - n_left
        self._connection.end_body(n_left)


@dataclass
class TakenBody:
    """A body that is read from its socket; :meth:`close` gives the connection back.

    Attributes:
        owner: of which it was taken.
        socket: not blocking.
        first: bytes that had come with the headers.
        n_left: bytes that are in the socket or still to come; whoever reads them counts down.
    """

    owner: SocketBody
    socket: socket.socket
    first: bytes
    n_left: int

    def close(self) -> None:
        """End reading, in the event loop's thread; what is left is skipped as it comes."""
        self.socket.close()
        self.owner.give_back(self.n_left)


def socket_body(scope: MutableMapping[str, Any]) -> SocketBody | None:
    """The body of an ASGI request, where it can be taken from the socket."""
    return scope.get("extensions", {}).get(EXTENSION)
