"""Where volumes and artefacts are kept for good: this disk, or S3 by fsspec.

The local folder is the data folder itself. With S3, what is finished is put there, the local copy
becomes a cache, and clients fetch it by presigned addresses.

Examples:
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     storage = LocalStorage(Path(folder) / "kept")
    ...     source = Path(folder) / "a.txt"
    ...     _ = source.write_text("abc")
    ...     storage.put(source, "jobs/1/a.txt")
    ...     with storage.open("jobs/1/a.txt") as stream:
    ...         _ = stream.seek(1)
    ...         stream.read()
    b'bc'
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any, Protocol, runtime_checkable
from urllib.parse import urlsplit

from lamella.core.errors import InputError, MissingPathError, StorageError
from lamella.core.optional import require
from lamella.core.storage import storage_error

if TYPE_CHECKING:
    from lamella.server.services import Services

__all__ = [
    "LocalStorage",
    "S3Storage",
    "Storage",
    "fetch_url",
    "open_storage",
    "url_bytes",
]

_PART_BYTES = 16 * 2**20
_BLOCK_BYTES = 4 * 2**20


@runtime_checkable
class Storage(Protocol):
    """Keeps files under keys such as ``jobs/ID/run.tar``: relative, with slashes.

    A key holds a whole file or nothing: a ``put`` that is cut leaves what was there before.
    """

    @property
    def is_remote(self) -> bool:
        """Whether it is another machine's."""
        ...

    def put(self, path: Path, key: str) -> None:
        """Keep a file; replaces what the key held."""
        ...

    def fetch(self, key: str, path: Path) -> None:
        """Copy a file here, whole or not at all. Raises ``MissingPathError``."""
        ...

    def open(self, key: str) -> IO[bytes]:
        """Read a file, with ``seek``. Raises ``MissingPathError``."""
        ...

    def size(self, key: str) -> int | None:
        """Bytes of a file; None when there is none."""
        ...

    def url(self, key: str, lifetime_s: float, *, name: str = "") -> str | None:
        """An address that works without a token for so long; None where there is no such thing."""
        ...

    def delete(self, key: str) -> None:
        """Remove a file; no error when there is none."""
        ...

    def put_folder(self, folder: Path, key: str) -> None:
        """Keep all files of a folder below a key."""
        ...

    def fetch_folder(self, key: str, folder: Path) -> None:
        """Copy all files below a key into a folder that does not exist, all or none."""
        ...

    def sizes(self, key: str) -> dict[str, int]:
        """Bytes of all files below a key, by their names within it."""
        ...

    def delete_folder(self, key: str) -> None:
        """Remove all files below a key."""
        ...


def open_storage(services: "Services") -> Storage:
    """The storage of a server, as its settings say.

    Raises:
        InputError: an address of no known storage.
        StorageError: a bucket that cannot be reached.
    """
    url = services.settings.storage_url
    if not url:
        return LocalStorage(services.settings.data_dir / "kept")
    return S3Storage(url)


class LocalStorage:
    """Files below a folder.

    Args:
        folder: made when the first file comes.
    """

    is_remote = False

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, path: Path, key: str) -> None:
        """See :class:`Storage`."""
        target = self._path(key)
        target.parent.mkdir(parents=True, exist_ok=True)
        with _local_errors(target):
            _copy_whole(path, target)

    def fetch(self, key: str, path: Path) -> None:
        """See :class:`Storage`."""
        with _local_errors(path, key):
            _copy_whole(self._path(key), path)

    def open(self, key: str) -> IO[bytes]:
        """See :class:`Storage`."""
        with _local_errors(self._path(key), key):
            return self._path(key).open("rb")

    def size(self, key: str) -> int | None:
        """See :class:`Storage`."""
        path = self._path(key)
        return path.stat().st_size if path.is_file() else None

    def url(self, key: str, lifetime_s: float, *, name: str = "") -> str | None:
        """See :class:`Storage`: the server itself signs addresses of local files."""
        del key, lifetime_s, name

    def delete(self, key: str) -> None:
        """See :class:`Storage`."""
        self._path(key).unlink(missing_ok=True)

    def put_folder(self, folder: Path, key: str) -> None:
        """See :class:`Storage`."""
        for path in _files(folder):
            self.put(path, f"{key}/{path.relative_to(folder).as_posix()}")

    def fetch_folder(self, key: str, folder: Path) -> None:
        """See :class:`Storage`."""
        source = self._path(key)
        if not source.is_dir():
            raise MissingPathError(f"the storage holds no {key}")
        partial = _partial(folder)
        shutil.copytree(source, partial)
        partial.rename(folder)

    def sizes(self, key: str) -> dict[str, int]:
        """See :class:`Storage`."""
        source = self._path(key)
        return {path.relative_to(source).as_posix(): path.stat().st_size for path in _files(source)}

    def delete_folder(self, key: str) -> None:
        """See :class:`Storage`."""
        shutil.rmtree(self._path(key), ignore_errors=True)

    def _path(self, key: str) -> Path:
        return self._folder / _checked(key)


class S3Storage:
    """Objects below a prefix of a bucket; credentials come from where s3fs looks for them.

    Args:
        url: ``s3://bucket/prefix``.
        options: for s3fs, as ``endpoint_url``.
    """

    is_remote = True

    def __init__(self, url: str, **options: Any) -> None:
        parts = urlsplit(url)
        if parts.scheme != "s3" or not parts.netloc:
            raise InputError(
                f"expected a storage such as s3://bucket/prefix, got {url[:80]!r}",
                hint="leave storage_url empty for files in the data folder",
            )
        self._root = f"{parts.netloc}{parts.path.rstrip('/')}"
        self._system = _s3(**options)

    def put(self, path: Path, key: str) -> None:
        """See :class:`Storage`."""
        with _s3_errors(key):
            self._system.put_file(str(path), self._name(key), chunksize=_PART_BYTES)

    def fetch(self, key: str, path: Path) -> None:
        """See :class:`Storage`."""
        with _s3_errors(key):
            _download(self._system, self._name(key), path)

    def open(self, key: str) -> IO[bytes]:
        """See :class:`Storage`."""
        with _s3_errors(key):
            self._system.invalidate_cache()
            return self._system.open(self._name(key), "rb", block_size=_BLOCK_BYTES)

    def size(self, key: str) -> int | None:
        """See :class:`Storage`."""
        try:
            with _s3_errors(key):
                return int(self._system.info(self._name(key), refresh=True)["size"])
        except MissingPathError:
            return None

    def url(self, key: str, lifetime_s: float, *, name: str = "") -> str | None:
        """See :class:`Storage`: presigned by S3."""
        told = {"ResponseContentDisposition": f'attachment; filename="{name}"'} if name else {}
        with _s3_errors(key):
            return str(self._system.url(self._name(key), expires=int(lifetime_s), **told))

    def delete(self, key: str) -> None:
        """See :class:`Storage`."""
        try:
            with _s3_errors(key):
                self._system.rm_file(self._name(key))
        except MissingPathError:
            return

    def put_folder(self, folder: Path, key: str) -> None:
        """See :class:`Storage`."""
        for path in _files(folder):
            self.put(path, f"{key}/{path.relative_to(folder).as_posix()}")

    def fetch_folder(self, key: str, folder: Path) -> None:
        """See :class:`Storage`."""
        prefix = self._name(key)
        partial = _partial(folder)
        with _s3_errors(key):
            self._system.invalidate_cache()
            names = self._system.find(prefix)
            if not names:
                raise MissingPathError(f"the storage holds no {key}")
            for name in names:
                inside = _checked(name.removeprefix(f"{prefix}/"))
                target = partial / inside
                target.parent.mkdir(parents=True, exist_ok=True)
                _download(self._system, name, target)
        partial.rename(folder)

    def sizes(self, key: str) -> dict[str, int]:
        """See :class:`Storage`."""
        prefix = self._name(key)
        with _s3_errors(key):
            self._system.invalidate_cache()
            found = self._system.find(prefix, detail=True)
        return {name.removeprefix(f"{prefix}/"): int(one["size"]) for name, one in found.items()}

    def delete_folder(self, key: str) -> None:
        """See :class:`Storage`."""
        with _s3_errors(key):
            self._system.invalidate_cache()
            if names := self._system.find(self._name(key)):
                self._system.rm(names)

    def _name(self, key: str) -> str:
        return f"{self._root}/{_checked(key)}"


def url_bytes(url: str, **options: Any) -> int:
    """Bytes of an S3 object, or of all objects below a prefix.

    Raises:
        MissingPathError: there is nothing.
        StorageError: it cannot be reached.
    """
    with _s3_errors(url):
        found = _s3(**options).find(url, detail=True)
        if not found:
            raise MissingPathError(f"there is nothing at {url}", hint="check the address")
        return sum(int(one["size"]) for one in found.values())


def fetch_url(url: str, target: Path, **options: Any) -> None:
    """Copy an S3 object to a file, or all objects below a prefix to a folder.

    Raises:
        MissingPathError: there is nothing.
        StorageError: it cannot be reached.
    """
    system = _s3(**options)
    prefix = url.removeprefix("s3://").rstrip("/")
    with _s3_errors(url):
        names = system.find(url)
        if not names:
            raise MissingPathError(f"there is nothing at {url}", hint="check the address")
        for name in names:
            inside = name.removeprefix(prefix).strip("/")
            path = target / _checked(inside) if inside else target
            path.parent.mkdir(parents=True, exist_ok=True)
            _download(system, name, path)


def _s3(**options: Any) -> Any:
    s3fs = require("s3fs", extra="s3", purpose="S3")
    # Listings are not remembered: others write to the bucket as well. Presigned addresses are
    # signed as every region takes them; the default depends on the region.
    told = {"use_listings_cache": False, "config_kwargs": {"signature_version": "s3v4"}}
    return s3fs.S3FileSystem(**(told | options))


@contextmanager
def _s3_errors(what: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        if isinstance(error, MissingPathError):
            raise
        raise MissingPathError(f"the storage holds no {what}") from None
    except PermissionError as error:
        raise StorageError(
            f"S3 does not allow it: {what}", hint="check the server's credentials and the bucket"
        ) from error
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(f"S3 failed on {what}: {type(error).__name__}: {error}") from error
    except Exception as error:
        # botocore has a class for everything, and aiobotocore passes most of them on.
        if not type(error).__module__.startswith(("botocore", "aiobotocore", "aiohttp")):
            raise
        raise StorageError(
            f"S3 cannot be reached for {what}: {type(error).__name__}",
            hint="check the server's credentials, region and endpoint of S3",
        ) from error


@contextmanager
def _local_errors(path: Path, key: str = "") -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise MissingPathError(f"the storage holds no {key or path.name}") from None
    except OSError as error:
        raise storage_error(error, path.name) from error


def _download(system: Any, name: str, path: Path) -> None:
    partial = _partial(path)
    system.get_file(name, str(partial))
    with partial.open("rb") as stream:
        os.fsync(stream.fileno())
    partial.replace(path)


def _copy_whole(source: Path, target: Path) -> None:
    partial = _partial(target)
    shutil.copyfile(source, partial)
    partial.replace(target)


def _partial(path: Path) -> Path:
    """A name beside ``path`` for what is not whole yet; what a crash left there is removed."""
    partial = path.with_name(f".{path.name}.partial")
    if partial.is_dir():
        shutil.rmtree(partial)
    return partial


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _checked(key: str) -> str:
    """A key that stays below its root."""
    path = PurePosixPath(key)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise InputError(f"{key[:120]!r} is no key of the storage")
    return str(path)
