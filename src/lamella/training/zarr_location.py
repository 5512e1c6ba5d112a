"""Where a zarr array lies: a folder, a zip archive, a bucket or a web server.

One address, three uses: its documents are read without any array library (so that opening costs
a file and starts no thread), tensorstore gets a key-value store, zarr-python gets a store.
"""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

from lamella.core.errors import (
    DownloadError,
    InputError,
    MissingPathError,
    StorageError,
    UnreadableFileError,
)
from lamella.core.optional import require
from lamella.io.damage import damage_named
from lamella.io.format import storage_errors

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Location", "tensorstore_error"]

Kind = Literal["folder", "zip", "s3", "http"]

# A server that is down is given up after seconds, not after tensorstore's half an hour.
_RETRIES = {"max_retries": 6, "initial_delay": "200ms", "max_delay": "5s"}
RETRY_CONTEXT = {"http_request_retries": _RETRIES, "s3_request_retries": _RETRIES}


@dataclass(frozen=True, slots=True)
class Location:
    """The place of one array or group.

    Attributes:
        address: as the user wrote it, for messages.
        kind: how it is reached.
        base: folder, archive, bucket or server.
        inner: path below it, with slashes; empty for the base itself.
        endpoint: server that speaks S3, where it is not Amazon's.
        is_anonymous: whether a bucket is read without signing in.

    Examples:
        >>> Location.parse("s3://janelia-cosem-datasets/jrc_cos7-1a/raw.zarr/s0").inner
        'jrc_cos7-1a/raw.zarr/s0'
    """

    address: str
    kind: Kind
    base: str
    inner: str = ""
    endpoint: str = ""
    is_anonymous: bool = True

    @classmethod
    def parse(
        cls, address: str | Path, *, endpoint: str = "", is_anonymous: bool = True
    ) -> Location:
        """Take an address apart.

        Args:
            address: a path (also into a zip archive), ``s3://bucket/key``, ``https://host/path``.
            endpoint: ``http(s)://host:port`` of an S3 server that is not Amazon's.
            is_anonymous: read a bucket without signing in; else with the credentials that
                Amazon's own tools would find.

        Raises:
            InputError: another protocol, or no bucket.
            MissingPathError: a path with nothing there.
        """
        text = str(address).rstrip("/") if "://" in str(address) else str(address)
        protocol, found, rest = text.partition("://")
        if not found or protocol == "file":
            return _local(Path(rest if found else text).expanduser())
        if protocol == "s3":
            bucket, _, key = rest.partition("/")
            if not bucket:
                raise InputError(f"{text} names no bucket", hint="expected s3://BUCKET/KEY")
            return cls(text, "s3", bucket, key, endpoint.rstrip("/"), is_anonymous)
        if protocol in ("http", "https"):
            return cls(text, "http", text)
        raise InputError(
            f"patches cannot be read from {protocol}://",
            hint="expected a path, s3://, http:// or https://; or copy the data to a disk",
        )

    @property
    def is_local(self) -> bool:
        """Whether no network is needed."""
        return self.kind in ("folder", "zip")

    def kvstore(self) -> dict[str, Any]:
        """The key-value store that tensorstore opens: its JSON document."""
        if self.kind == "folder":
            return {"driver": "file", "path": f"{self.base}/"}
        if self.kind == "zip":
            archive = {"driver": "file", "path": self.base}
            inner = f"{self.inner}/" if self.inner else ""
            return {"driver": "zip", "base": archive, "path": inner}
        if self.kind == "http":
            return {"driver": "http", "base_url": f"{self.base}/"}
        document: dict[str, Any] = {
            "driver": "s3",
            "bucket": self.base,
            "path": f"{self.inner}/" if self.inner else "",
            "aws_credentials": {"type": "anonymous" if self.is_anonymous else "default"},
        }
        if self.endpoint:
            # Other servers take any region; they need one in what is signed.
            document |= {"endpoint": self.endpoint, "aws_region": "us-east-1"}
        return document

    def zarr_store(self) -> tuple[Any, str]:
        """The store that zarr-python opens, and the path in it."""
        import zarr.storage

        if self.kind == "folder":
            return zarr.storage.LocalStore(self.base, read_only=True), ""
        if self.kind == "zip":
            return zarr.storage.ZipStore(self.base, mode="r", read_only=True), self.inner
        options: dict[str, Any] = {}
        if self.kind == "s3":
            require("s3fs", extra="s3", purpose="this codec in a bucket")
            options = {"anon": self.is_anonymous, "endpoint_url": self.endpoint or None}
        store = zarr.storage.FsspecStore.from_url(
            self.address, storage_options=options, read_only=True
        )
        return store, ""

    def document(self, name: str) -> Mapping[str, Any] | None:
        """A JSON document beside the chunks, or None where there is none.

        Raises:
            UnreadableFileError: it is no JSON object.
            StorageError: the file system refuses.
            DownloadError: the server does.
        """
        raw = self._bytes(name)
        if raw is None:
            return None
        try:
            found = json.loads(raw)
        except ValueError as error:
            raise UnreadableFileError(
                f"{self.address}/{name} is no JSON ({error})",
                hint="the store may be damaged or incomplete; copy or download it again",
            ) from None
        if not isinstance(found, dict):
            raise UnreadableFileError(
                f"{self.address}/{name} is no JSON object",
                hint="the store may be damaged or incomplete; copy or download it again",
            )
        return found

    def _bytes(self, name: str) -> bytes | None:
        if self.kind == "folder":
            path = Path(self.base) / name
            with storage_errors(path):
                try:
                    return path.read_bytes()
                except (FileNotFoundError, NotADirectoryError):
                    return None
        if self.kind == "zip":
            path = Path(self.base)
            member = str(PurePosixPath(self.inner, name))
            with (
                storage_errors(path),
                damage_named(path, "zip"),
                zipfile.ZipFile(path) as archive,
            ):
                return archive.read(member) if member in archive.namelist() else None
        tensorstore = require("tensorstore", extra="train", purpose="reading patches")
        try:
            context = tensorstore.Context(RETRY_CONTEXT)
            store = tensorstore.KvStore.open(self.kvstore(), context=context).result()
            answer = store.read(name).result()
        except (ValueError, OSError) as error:
            raise tensorstore_error(f"{self.address}/{name}", error) from None
        return bytes(answer.value) if answer.state == "value" else None


def tensorstore_error(what: str, error: Exception, **details: Any) -> Exception:
    """One of our errors for one of tensorstore's, which begin with a code, or of zarr-python's.

    Args:
        what: that cannot be read, for the message.
        error: as it was raised.
        details: facts for programs.
    """
    text = " ".join(str(error).split())
    code = text.partition(": ")[0]
    if code.isupper() and " " not in code:
        # The specification of the store is repeated at the end; nobody reads that.
        text = text.partition(": ")[2].split(" [tensorstore_spec=")[0]
    reason = text[:300] or type(error).__name__
    message = f"{what} cannot be read: {reason}"
    if code in ("ABORTED", "UNAVAILABLE", "DEADLINE_EXCEEDED", "UNKNOWN", "INTERNAL"):
        return DownloadError(
            message, hint="check the network and the address, then go on", details=details
        )
    is_refused = code in ("PERMISSION_DENIED", "UNAUTHENTICATED", "RESOURCE_EXHAUSTED")
    if is_refused or (isinstance(error, OSError) and error.errno is not None):
        return StorageError(
            message,
            hint="check who may read it; buckets are read anonymously unless told otherwise",
            details=details,
        )
    return UnreadableFileError(
        message,
        hint="copy or download this chunk again, or leave the crop out",
        details=details,
    )


def _local(path: Path) -> Location:
    if path.is_dir():
        return Location(str(path), "folder", str(path.absolute()))
    for parent in (path, *path.parents):
        if parent.is_file():
            inner = path.relative_to(parent).as_posix()
            return Location(str(path), "zip", str(parent.absolute()), "" if inner == "." else inner)
    raise MissingPathError(f"there is nothing at {path}", hint="check the path")
