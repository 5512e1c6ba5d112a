"""Files of the server, and addresses in S3, that jobs may name: below allowed roots, nowhere else.

Links are followed before the comparison, those inside a folder too: a link within a root that
leads out of all of them is refused. Whether something exists outside is nobody's business, so all
refusals read alike.
"""

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from lamella.core.errors import ForbiddenError, InputError, MissingPathError

__all__ = ["ServerRoots", "is_s3", "volume_of"]

_S3 = "s3://"
_VOLUME = "volume:"
"""Begins the name of a volume where a path could stand."""


def is_s3(text: str) -> bool:
    """Whether a text is an address in S3.

    Examples:
        >>> is_s3("s3://bucket/tomo.mrc"), is_s3("/srv/tomo.mrc")
        (True, False)
    """
    return text.lower().startswith(_S3)


def volume_of(text: str) -> tuple[str, str] | None:
    """Id of a volume and the path within it; None for a path or an address.

    Examples:
        >>> volume_of("volume:4f/slice.tif"), volume_of("/srv/scan.mrc")
        (('4f', 'slice.tif'), None)
    """
    if not text.startswith(_VOLUME):
        return None
    volume_id, _, inside = text.removeprefix(_VOLUME).partition("/")
    return volume_id, inside


class ServerRoots:
    """What may be read.

    Args:
        roots: folders, and ``s3://bucket/prefix``.
    """

    def __init__(self, roots: tuple[str, ...]) -> None:
        self._folders = tuple(Path(root).expanduser() for root in roots if not is_s3(root))
        self._prefixes = tuple(_s3_parts(root) for root in roots if is_s3(root))

    def resolve(self, text: str) -> Path:
        """The real path of a file or folder below one of the roots.

        Raises:
            InputError: not an absolute path.
            ForbiddenError: outside the roots, by itself or by links.
            MissingPathError: nothing there.
        """
        if "\0" in text or not text.startswith("/"):
            raise InputError(
                f"expected an absolute path of the server, got {text[:120]!r}",
                hint="upload the file, or name it as the server sees it",
            )
        try:
            path = Path(os.path.realpath(text))
        except OSError as error:
            raise self._outside() from error
        root = self._root_of(path)
        if root is None:
            raise self._outside()
        if not path.exists():
            raise MissingPathError(f"there is nothing at {text}", hint="check the path")
        if path.is_dir():
            self._check_links(path)
        return path

    def check_url(self, url: str) -> str:
        """An S3 address below one of the roots.

        Raises:
            InputError: no address of an object.
            ForbiddenError: outside the roots.
        """
        bucket, key = _s3_parts(url)
        if not key:
            raise InputError(f"{url[:120]!r} names a bucket, no file", hint="s3://bucket/key")
        for root_bucket, root_key in self._prefixes:
            inside = not root_key or key == root_key or key.startswith(f"{root_key}/")
            if bucket == root_bucket and inside:
                return f"{_S3}{bucket}/{key}"
        raise ForbiddenError(
            "this server reads no such S3 address",
            hint="whoever runs it can allow it: --allow-root s3://bucket/prefix",
        )

    def _root_of(self, path: Path) -> Path | None:
        for folder in self._folders:
            root = Path(os.path.realpath(folder))
            if path.is_relative_to(root):
                return root
        return None

    def _check_links(self, folder: Path) -> None:
        for link in _links(folder):
            if self._root_of(Path(os.path.realpath(link))) is None:
                raise self._outside()

    def _outside(self) -> ForbiddenError:
        return ForbiddenError(
            "this path is not below a folder that the server reads"
            if self._folders
            else "this server reads no files of its own disks",
            hint="upload the file; or whoever runs the server allows it: --allow-root FOLDER",
        )


def _links(folder: Path) -> Iterator[str]:
    waiting = [str(folder)]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_symlink():
                    yield entry.path
                elif entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)


def _s3_parts(url: str) -> tuple[str, str]:
    """Bucket and key; the key without slashes at its ends."""
    parts = urlsplit(url)
    key = parts.path.strip("/")
    names = PurePosixPath(key).parts
    if parts.scheme.lower() != "s3":
        raise InputError(
            f"expected an address s3://bucket/key, got {url[:120]!r}",
            hint="other addresses are not fetched: download the file and upload it",
        )
    if not parts.netloc or ".." in names or "." in names or parts.query or parts.fragment:
        raise InputError(f"{url[:120]!r} is no S3 address", hint="s3://bucket/key")
    return parts.netloc, key
