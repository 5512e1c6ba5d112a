"""The headers of tus 1.0 (https://tus.io/protocols/resumable-upload), read and written.

Examples:
    >>> parse_metadata("filename dG9tby5tcmM=,part")
    {'filename': 'tomo.mrc', 'part': ''}
    >>> parse_concat("final;/api/v1/uploads/0123456789abcdef0123456789abcdef")
    Concat(is_final=True, parts=('0123456789abcdef0123456789abcdef',))
"""

import base64
import binascii
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import formatdate
from typing import Any
from urllib.parse import urlsplit

from lamella.server.problems import ProtocolError

__all__ = [
    "CHECKSUMS",
    "CONTENT_TYPE",
    "EXTENSIONS",
    "TUS_VERSION",
    "Checksum",
    "Concat",
    "TusError",
    "clean_name",
    "format_metadata",
    "http_date",
    "is_upload_id",
    "parse_checksum",
    "parse_concat",
    "parse_metadata",
    "parse_number",
    "parse_sha256",
]

TUS_VERSION = "1.0.0"
EXTENSIONS = (
    "creation",
    "creation-with-upload",
    "creation-defer-length",
    "checksum",
    "expiration",
    "termination",
    "concatenation",
)
CHECKSUMS = ("sha1", "sha256")
CONTENT_TYPE = "application/offset+octet-stream"

_CODES = {
    400: "bad_request",
    403: "forbidden",
    405: "method_not_allowed",
    409: "conflict",
    412: "unsupported_version",
    413: "too_large",
    415: "unsupported_media_type",
}
_DIGEST_BYTES = {"sha1": 20, "sha256": 32}
_MAX_NUMBER = 2**63 - 1
_MAX_METADATA = 16 * 1024
_MAX_KEYS = 64
_MAX_PARTS = 1000
_MAX_NAME_BYTES = 200
_PLACE_HINT = "as the header Location of the answer that created the part"
_NUMBER = re.compile(r"[0-9]{1,19}")
_KEY = re.compile(r"[!-+\--~]+")
_ID = re.compile(r"[0-9a-f]{32}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class TusError(ProtocolError):
    """A request that tus does not allow; ``status`` is what the protocol wants answered."""

    def __init__(
        self,
        message: str,
        *,
        hint: str,
        status: int = 400,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, code=_CODES[status], hint=hint, headers=headers)


@dataclass(frozen=True, slots=True)
class Checksum:
    """What a chunk's bytes must hash to."""

    algorithm: str
    digest: bytes

    def start(self) -> Any:
        """A new hash of this algorithm."""
        return hashlib.new(self.algorithm, usedforsecurity=False)


@dataclass(frozen=True, slots=True)
class Concat:
    """Header ``Upload-Concat``: a part, or the list of parts that make an upload."""

    is_final: bool
    parts: tuple[str, ...] = ()


def is_upload_id(text: str) -> bool:
    """Whether ``text`` could be the id of an upload."""
    return _ID.fullmatch(text) is not None


def parse_number(text: str, header: str) -> int:
    """A count of bytes.

    Raises:
        TusError: 400, when it is not a whole number from 0 to 2^63 - 1.
    """
    number = text.strip()
    if _NUMBER.fullmatch(number) is None or int(number) > _MAX_NUMBER:
        raise TusError(
            f"{header}: expected a number of bytes, got {text[:80]!r}",
            hint="a whole number, 0 or more",
        )
    return int(number)


def parse_metadata(text: str) -> dict[str, str]:
    """Keys and decoded values of ``Upload-Metadata``.

    Raises:
        TusError: 400, for anything but pairs ``key base64`` with a comma between them.
    """
    if not text.strip():
        return {}
    if len(text) > _MAX_METADATA:
        raise TusError(
            f"Upload-Metadata has {len(text)} characters; at most {_MAX_METADATA}",
            hint="it describes the file: filename, sha256, unpack, volume",
        )
    pairs = [part.strip() for part in text.split(",")]
    if len(pairs) > _MAX_KEYS:
        raise TusError(
            f"Upload-Metadata has {len(pairs)} keys; at most {_MAX_KEYS}",
            hint="it describes the file: filename, sha256, unpack, volume",
        )
    found: dict[str, str] = {}
    for pair in pairs:
        key, _, value = pair.partition(" ")
        if _KEY.fullmatch(key) is None or key in found:
            raise TusError(
                f"Upload-Metadata: expected different keys in ASCII, got {key[:80]!r}",
                hint="key base64,key base64",
            )
        found[key] = _decode_value(key, value.strip())
    return found


def _decode_value(key: str, value: str) -> str:
    try:
        return base64.b64decode(value, validate=True).decode("utf-8")
    except (binascii.Error, ValueError) as error:
        raise TusError(
            f"Upload-Metadata: the value of {key!r} is not base64 of UTF-8 text",
            hint="key base64,key base64",
        ) from error


def format_metadata(metadata: Mapping[str, str]) -> str:
    """``Upload-Metadata`` again.

    Examples:
        >>> format_metadata({"filename": "tomo.mrc", "part": ""})
        'filename dG9tby5tcmM=,part'
    """
    return ",".join(
        f"{key} {base64.b64encode(value.encode()).decode()}" if value else key
        for key, value in metadata.items()
    )


def parse_checksum(text: str) -> Checksum:
    """``Upload-Checksum``.

    Raises:
        TusError: 400, for another algorithm or something that is no digest of it.
    """
    algorithm, _, encoded = text.strip().partition(" ")
    if algorithm not in CHECKSUMS:
        raise TusError(
            f"Upload-Checksum: the algorithm {algorithm[:40]!r} is not supported",
            hint=f"one of: {', '.join(CHECKSUMS)}",
        )
    try:
        digest = base64.b64decode(encoded.strip(), validate=True)
    except (binascii.Error, ValueError) as error:
        raise TusError(
            "Upload-Checksum: the digest is not base64",
            hint="base64 of the digest's bytes, not of its hex digits",
        ) from error
    if len(digest) != _DIGEST_BYTES[algorithm]:
        raise TusError(
            f"Upload-Checksum: a {algorithm} digest has {_DIGEST_BYTES[algorithm]} bytes,"
            f" got {len(digest)}",
            hint="base64 of the digest's bytes, not of its hex digits",
        )
    return Checksum(algorithm, digest)


def parse_concat(text: str) -> Concat:
    """``Upload-Concat``; parts are addresses of this server, whole or from the root.

    Raises:
        TusError: 400, for anything but ``partial`` or ``final;`` and addresses of uploads.
    """
    text = text.strip()
    if text == "partial":
        return Concat(is_final=False)
    kind, _, rest = text.partition(";")
    addresses = rest.split()
    if kind.strip() != "final" or not addresses:
        raise TusError(
            f"Upload-Concat: expected 'partial' or 'final;ADDRESS ADDRESS', got {text[:80]!r}",
            hint="addresses of finished parts, separated by spaces",
        )
    if len(addresses) > _MAX_PARTS:
        raise TusError(
            f"Upload-Concat names {len(addresses)} parts; at most {_MAX_PARTS}",
            hint="send larger parts",
        )
    return Concat(is_final=True, parts=tuple(_id_of(address) for address in addresses))


def _id_of(address: str) -> str:
    try:
        path = urlsplit(address).path
    except ValueError as error:
        raise TusError(
            f"Upload-Concat: {address[:120]!r} is no address", hint=_PLACE_HINT
        ) from error
    parent, _, name = path.rstrip("/").rpartition("/")
    if not parent.endswith("/uploads") or not is_upload_id(name):
        raise TusError(
            f"Upload-Concat: {address[:120]!r} is no address of an upload here", hint=_PLACE_HINT
        )
    return name


def parse_sha256(text: str) -> str:
    """The announced SHA-256 of a whole file, as lower-case hex.

    Raises:
        TusError: 400, when it is not 64 hex digits.
    """
    digest = text.strip().lower()
    if _SHA256.fullmatch(digest) is None:
        raise TusError(
            f"Upload-Metadata: sha256 is not 64 hex digits: {text[:80]!r}",
            hint="the SHA-256 of the whole file in hex, base64-encoded as every value is",
        )
    return digest


def clean_name(metadata: Mapping[str, str]) -> str:
    r"""A file name that is safe on any disk, from what the client calls the file.

    Examples:
        >>> clean_name({"filename": "../C:\\data\\tomo 1.mrc"}), clean_name({})
        ('tomo 1.mrc', 'upload')
    """
    told = metadata.get("filename") or metadata.get("name") or ""
    base = told.replace("\\", "/").rstrip("/").rpartition("/")[2]
    base = "".join(char for char in base if char.isprintable()).strip()
    while len(base.encode()) > _MAX_NAME_BYTES:
        base = base[1:]  # the suffix tells the format: keep the end
    return base if base.strip(".") else "upload"


def http_date(time_s: float) -> str:
    """A date as HTTP writes it, from Unix time.

    Examples:
        >>> http_date(0)
        'Thu, 01 Jan 1970 00:00:00 GMT'
    """
    return formatdate(time_s, usegmt=True)
