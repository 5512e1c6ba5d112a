"""Bytes over HTTP as RFC 9110 has them: whole or in ranges, with validators, or only the headers.

Several ranges are sent as ``multipart/byteranges``. Those that overlap are joined, so that no
request makes the server send more than the whole.

Examples:
    >>> parse_ranges("bytes=2-5", 10), parse_ranges("bytes=-3, 0-1", 10)
    (((2, 6),), ((7, 10), (0, 2)))
    >>> parse_ranges("bytes=10-", 10), parse_ranges("lines=1-2", 10)
    ((), None)
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import quote

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from lamella.server.problems import ProtocolError

__all__ = [
    "ByteSource",
    "FileSource",
    "attachment",
    "parse_ranges",
    "readable",
    "send_bytes",
]

F = TypeVar("F", bound=Callable[..., Response])

_RANGE = re.compile(r"(\d{0,18})-(\d{0,18})", re.ASCII)
_MAX_RANGES = 32
"""Of one request; whoever asks for more gets the whole."""
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


def parse_ranges(header: str, n_bytes: int) -> tuple[tuple[int, int], ...] | None:
    """First bytes and those after the last of a ``Range``.

    Args:
        header: value of the header.
        n_bytes: size of the content.

    Returns:
        None for what has to be ignored: another unit, too many ranges, no range at all. Nothing
        for ranges of which the content has no byte.
    """
    unit, _, listed = header.strip().partition("=")
    texts = [text for item in listed.split(",") if (text := item.strip(" \t"))]
    if unit != "bytes" or not 1 <= len(texts) <= _MAX_RANGES:
        return None
    found: list[tuple[int, int]] = []
    for text in texts:
        match = _RANGE.fullmatch(text)
        if match is None or not (match[1] or match[2]):
            return None
        if match[1] and match[2] and int(match[2]) < int(match[1]):
            return None
        start = int(match[1]) if match[1] else max(0, n_bytes - int(match[2]))
        stop = min(n_bytes, int(match[2]) + 1) if match[1] and match[2] else n_bytes
        if start < stop:
            found.append((start, stop))
    return _joined(found)


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
    chosen = _chosen_ranges(request, source.n_bytes, quoted)
    if chosen is not None and not chosen:
        raise ProtocolError(
            416,
            f"there is no such range: the content has {source.n_bytes} bytes",
            headers={"Content-Range": f"bytes */{source.n_bytes}"},
            hint="ask for a range that begins before its end",
        )
    if chosen is not None and len(chosen) > 1:
        return _several(source, chosen, media_type, told)
    start, stop = (0, source.n_bytes) if chosen is None else next(iter(chosen))
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


def readable(
    router: APIRouter,
    path: str,
    *,
    operation: str,
    summaries: tuple[str, str],
    responses: dict[int | str, dict[str, Any]],
) -> Callable[[F], F]:
    """Make a function that ends in :func:`send_bytes` the route of GET and of HEAD.

    Args:
        router: of the route.
        path: of the route.
        operation: id of GET.
        summaries: of GET and of HEAD.
        responses: of both.
    """

    def add(function: F) -> F:
        known = (("HEAD", f"head_{operation.removeprefix('get_')}"), ("GET", operation))
        for (method, name), summary in zip(known, reversed(summaries), strict=True):
            router.add_api_route(
                path,
                function,
                methods=[method],
                operation_id=name,
                summary=summary,
                response_class=Response,
                responses=responses,
            )
        return function

    return add


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


def _joined(ranges: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """The ranges in their order, or sorted and joined where some overlap."""
    ordered = sorted(ranges)
    if all(a[1] <= b[0] for a, b in pairwise(ordered)):
        return tuple(ranges)
    joined = ordered[:1]
    for start, stop in ordered[1:]:
        if start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(stop, joined[-1][1]))
        else:
            joined.append((start, stop))
    return tuple(joined)


def _several(
    source: ByteSource,
    ranges: tuple[tuple[int, int], ...],
    media_type: str,
    headers: Mapping[str, str],
) -> Response:
    # Chosen anew for every answer: no content can hold it by intent.
    boundary = secrets.token_hex(16)
    heads = [
        f"\r\n--{boundary}\r\nContent-Type: {media_type}\r\n"
        f"Content-Range: bytes {start}-{stop - 1}/{source.n_bytes}\r\n\r\n".encode()
        for start, stop in ranges
    ]
    end = f"\r\n--{boundary}--\r\n".encode()
    total = sum(map(len, heads)) + sum(b - a for a, b in ranges) + len(end)

    def pieces() -> Iterator[bytes]:
        for head, (start, stop) in zip(heads, ranges, strict=True):
            yield head
            yield from source.read(start, stop)
        yield end

    return StreamingResponse(
        pieces(),
        status_code=206,
        headers={**headers, "Content-Length": str(total)},
        media_type=f"multipart/byteranges; boundary={boundary}",
    )


def _chosen_ranges(
    request: Request, n_bytes: int, quoted: str
) -> tuple[tuple[int, int], ...] | None:
    header = request.headers.get("range")
    # Ranges are of GET alone.
    if header is None or request.method != "GET":
        return None
    condition = request.headers.get("if-range")
    if condition is not None and condition.strip() != quoted:
        return None
    return parse_ranges(header, n_bytes)


def _matches(header: str, quoted: str) -> bool:
    listed = [item.strip().removeprefix("W/") for item in header.split(",")]
    return "*" in listed or quoted in listed
