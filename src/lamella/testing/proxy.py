"""A TCP proxy between a client and a server that can be cut, slowed and listened to.

It also reads plain HTTP along, to judge tus: which bytes the server has acknowledged, and whether
any of them was lost or sent again.
"""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

__all__ = ["Acknowledged", "Proxy"]

_PIECE = 16384
_REQUEST = re.compile(rb"(PATCH|HEAD) /api/v1/uploads/([^ /?]+) HTTP")
_OFFSET = re.compile(rb"(?i)upload-offset: *(\d+)")
_STATUS = re.compile(rb"HTTP/1\.1 (\d+)")


@dataclass
class Acknowledged:
    """What a server said about uploads: the highest offset of each, and what contradicts it."""

    offsets: dict[bytes, int] = field(default_factory=dict[bytes, int])
    lost: list[str] = field(default_factory=list[str])
    sent_again: list[str] = field(default_factory=list[str])

    def requested(self, upload: bytes, data: bytes) -> None:
        """A chunk is sent."""
        found = _OFFSET.search(data)
        if found and int(found[1]) < self.offsets.get(upload, 0):
            self.sent_again.append(f"{upload.decode()}: {int(found[1])} < {self.offsets[upload]}")

    def answered(self, upload: bytes, data: bytes) -> None:
        """The server says how far it is."""
        status, found = _STATUS.match(data), _OFFSET.search(data)
        if status is None or found is None or status[1] not in (b"200", b"204"):
            return
        offset, known = int(found[1]), self.offsets.get(upload, 0)
        if offset < known:
            self.lost.append(f"{upload.decode()}: {offset} < {known}")
        self.offsets[upload] = max(offset, known)


class Proxy:
    """Forwards bytes to ``target`` until it is cut; a context manager.

    Args:
        target: address of the server.
        bytes_per_s: bound of each connection and direction; None = none.

    Attributes:
        is_cut: whether nothing goes through.
        n_bytes: forwarded so far.
        limit: cuts by itself once ``n_bytes`` is more; None = never.
    """

    def __init__(self, target: str, bytes_per_s: float | None = None) -> None:
        parts = urlsplit(target)
        self._target = (parts.hostname or "", parts.port or 0)
        self._scheme = parts.scheme
        self._bytes_per_s = bytes_per_s
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.is_cut = self._is_silent = False
        self.n_bytes = 0
        self.limit: int | None = None
        self.seen = Acknowledged()
        self._open: list[socket.socket] = []
        self._lock = threading.RLock()
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"{self._scheme}://127.0.0.1:{self.port}"

    def cut(self, *, is_silent: bool = False) -> None:
        """Let nothing through any more.

        Args:
            is_silent: connections stay open and nobody answers, as when a cable is pulled; else
                they end, and new ones end at once.
        """
        with self._lock:
            self.is_cut = True
            self._is_silent = is_silent
            if not is_silent:
                self._end_all()

    def mend(self) -> None:
        """Let everything through again; what hung in the cut never comes."""
        with self._lock:
            self._end_all()
            self.is_cut = False
            self.limit = None

    def close(self) -> None:
        """End it."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            self._end_all()
        self._thread.join(5)

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _end_all(self) -> None:
        for one in self._open:
            _end(one)
        self._open.clear()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                if self.is_cut:
                    if self._is_silent:
                        self._open.append(near)
                    else:
                        near.close()
                    continue
            try:
                far = socket.create_connection(self._target)
            except OSError:
                near.close()
                continue
            with self._lock:
                self._open += [near, far]
            pair = _Pair(self.seen)
            for source, sink, listen in ((near, far, pair.request), (far, near, pair.response)):
                words = (source, sink, listen)
                threading.Thread(target=self._pump, args=words, daemon=True).start()

    def _pump(
        self, source: socket.socket, sink: socket.socket, listen: Callable[[bytes], None]
    ) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(_PIECE):
                if self.is_cut:
                    # Silent: the connection hangs until it is mended.
                    return
                self.n_bytes += len(data)
                if self.limit is not None and self.n_bytes > self.limit:
                    self.limit = None
                    self.cut()
                    return
                listen(data)
                sink.sendall(data)
                if self._bytes_per_s:
                    time.sleep(len(data) / self._bytes_per_s)
        if not self.is_cut:
            _end(source)
            _end(sink)


class _Pair:
    """One connection, read along: which upload the last request was about."""

    def __init__(self, seen: Acknowledged) -> None:
        self._seen = seen
        self._upload = b""
        self._verb = b""

    def request(self, data: bytes) -> None:
        found = _REQUEST.match(data)
        if found:
            self._verb, self._upload = found[1], found[2]
            if self._verb == b"PATCH":
                self._seen.requested(self._upload, data)

    def response(self, data: bytes) -> None:
        if self._upload and data.startswith(b"HTTP/1.1"):
            self._seen.answered(self._upload, data)
            self._upload = b""


def _end(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()
