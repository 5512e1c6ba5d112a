"""Bytes over HTTP as RFC 9110 has them: whole or a range, with validators, or only the headers.

One range a request; of several, none is taken and the whole is sent, which the RFC allows.

Examples:
    >>> parse_range("bytes=2-5", 10), parse_range("bytes=-3", 10), parse_range("bytes=4-", 10)
    ((2, 6), (7, 10), (4, 10))
    >>> parse_range("bytes=10-", 10) is UNSATISFIABLE, parse_range("lines=1-2", 10)
    (True, None)
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from lamella.server.problems import ProtocolError

__all__ = [
    "UNSATISFIABLE",
    "ByteSource",
    "FileSource",
    "attachment",
    "parse_range",
    "send_bytes",
]

UNSATISFIABLE: Final = (-1, -1)
"""A range of which the content has no byte."""
_RANGE = re.compile(r"bytes=[ \t]*(\d{0,18})-(\d{0,18})[ \t]*", re.ASCII)
_READ_BYTES = 2**20
_SMALL_BYTES = 2**20
"""Read and sent at once: chunks of arrays are."""


class ByteSource(Protocol):
    """Something of known size that can be read from anywhere."""

    @property
    def n_bytes(self) -> int:
        """Size."""
        ...

    def read(self, start: int, stop: int) -> Iterator[bytes]:
        """Bytes of a range, in pieces."""
        ...


@dataclass(frozen=True, slots=True)
class FileSource:
    """A file."""

    path: Path
    n_bytes: int

    @classmethod
    def of(cls, path: Path) -> FileSource:
        """A file as it is now.

        Raises:
            FileNotFoundError: when there is none.
        """
        return cls(path, path.stat().st_size)

    def read(self, start: int, stop: int) -> Iterator[bytes]:
        """Bytes of a range."""
        with self.path.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), start, stop - start, os.POSIX_FADV_SEQUENTIAL) if (
                hasattr(os, "posix_fadvise")
            ) else None
            stream.seek(start)
            while start < stop and (piece := stream.read(min(_READ_BYTES, stop - start))):
                start += len(piece)
                yield piece


def parse_range(header: str, n_bytes: int) -> tuple[int, int] | None:
    """First byte and the one after the last of a ``Range``.

    Args:
        header: value of the header.
        n_bytes: size of the content.

    Returns:
        None for what has to be ignored: another unit, several ranges, no range at all.
    """
    match = _RANGE.fullmatch(header.strip())
    if match is None or not (match[1] or match[2]):
        return None
    if not match[1]:
        length = int(match[2])
        return UNSATISFIABLE if not length or not n_bytes else (max(0, n_bytes - length), n_bytes)
    start = int(match[1])
    stop = min(n_bytes, int(match[2]) + 1) if match[2] else n_bytes
    if match[2] and int(match[2]) < start:
        return None
    return UNSATISFIABLE if start >= n_bytes else (start, stop)


def send_bytes(
    request: Request,
    source: ByteSource,
    *,
    media_type: str,
    etag: str,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """The answer to a GET or HEAD for bytes.

    Args:
        request: its method, ``Range``, ``If-Range`` and ``If-None-Match`` count.
        source: the bytes.
        media_type: of them.
        etag: strong validator, without quotes.
        headers: further ones.

    Raises:
        ProtocolError: 416 for a range outside the content.
    """
    quoted = f'"{etag}"'
    told = {**(headers or {}), "ETag": quoted, "Accept-Ranges": "bytes"}
    if _matches(request.headers.get("if-none-match", ""), quoted):
        return Response(status_code=304, headers=told)
    chosen = _chosen_range(request, source.n_bytes, quoted)
    if chosen == UNSATISFIABLE:
        raise ProtocolError(
            416,
            f"there is no such range: the content has {source.n_bytes} bytes",
            headers={"Content-Range": f"bytes */{source.n_bytes}"},
            hint="ask for a range that begins before its end",
        )
    start, stop = chosen or (0, source.n_bytes)
    status = 200 if chosen is None else 206
    if chosen is not None:
        told["Content-Range"] = f"bytes {start}-{stop - 1}/{source.n_bytes}"
    told["Content-Length"] = str(stop - start)
    if request.method == "HEAD":
        return Response(status_code=status, headers=told, media_type=media_type)
    if stop - start <= _SMALL_BYTES:
        content = b"".join(source.read(start, stop))
        return Response(content, status_code=status, headers=told, media_type=media_type)
    return StreamingResponse(
        source.read(start, stop), status_code=status, headers=told, media_type=media_type
    )


def attachment(name: str) -> str:
    """``Content-Disposition`` of a file that is to be saved under a name.

    Examples:
        >>> attachment("labels.mrc")
        'attachment; filename="labels.mrc"'
    """
    plain = re.sub(r"[^A-Za-z0-9._ -]", "_", name)
    if plain == name:
        return f'attachment; filename="{name}"'
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name)}"


def _chosen_range(request: Request, n_bytes: int, quoted: str) -> tuple[int, int] | None:
    header = request.headers.get("range")
    if header is None:
        return None
    condition = request.headers.get("if-range")
    if condition is not None and condition.strip() != quoted:
        return None
    return parse_range(header, n_bytes)


def _matches(header: str, quoted: str) -> bool:
    listed = [item.strip().removeprefix("W/") for item in header.split(",")]
    return "*" in listed or quoted in listed
