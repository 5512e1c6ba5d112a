"""From what a volume is made of to files below its folder; every step can be done again.

Files are gathered in ``staging`` and get their place, ``data``, in one rename. A crash in between
leaves the sources where they were, or the files already gathered; doing it again finds both.
"""

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lamella.core.errors import MissingPathError
from lamella.server.uploads.journal import sync_folder
from lamella.server.volumes.archive import content_root
from lamella.server.volumes.children import Children
from lamella.server.volumes.entries import EntryNames
from lamella.server.volumes.rows import VolumeRecord

if TYPE_CHECKING:
    from lamella.server.uploads.service import Uploads

__all__ = ["DATA_NAME", "Materialiser"]

DATA_NAME = "data"
_STAGING_NAME = "staging"
_UNPACK_S = 300.0
_SLOWEST_BYTES_PER_S = 5e6
"""Archives that take longer than this rate, and five minutes, are given up."""


class Materialiser:
    """Puts the files of volumes into their folders.

    Args:
        uploads: where finished uploads are.
        children: unpack archives.
        fetch: copies an S3 address to a path: ``fetch(url, target, owner)``.
    """

    def __init__(
        self,
        uploads: "Uploads",
        children: Children,
        fetch: Callable[[str, Path, str], None],
    ) -> None:
        self._uploads = uploads
        self._children = children
        self._fetch = fetch

    def place(self, record: VolumeRecord, folder: Path) -> Path:
        """The volume's file or folder.

        Args:
            record: of the volume.
            folder: of the volume.

        Raises:
            LamellaError: of the kind that fits what is wrong.
        """
        source = record.source
        if source["kind"] == "path":
            return Path(source["path"])
        data = folder / DATA_NAME
        if not data.exists():
            staging = folder / _STAGING_NAME
            staging.mkdir(parents=True, exist_ok=True)
            self._gather(record, staging)
            for inside, _, _ in os.walk(staging):
                sync_folder(Path(inside))
            staging.rename(data)
            sync_folder(folder)
        return content_root(data)

    def release(self, record: VolumeRecord) -> None:
        """Remove the uploads that the volume has taken over."""
        source = record.source
        for upload in [source.get("upload"), *(one["upload"] for one in source.get("files", ()))]:
            if upload is not None:
                self._uploads.release(upload, record.id)

    def _gather(self, record: VolumeRecord, staging: Path) -> None:
        source: Any = record.source
        match source["kind"]:
            case "upload" if source.get("unpack"):
                self._unpack(record, staging)
            case "upload":
                self._take(source["upload"], staging / record.name)
            case "files":
                folder = staging / record.name
                names = EntryNames()
                for one in source["files"]:
                    target = folder / names.add(one["path"])
                    target.parent.mkdir(parents=True, exist_ok=True)
                    self._take(one["upload"], target)
            case "url":
                self._fetch(source["url"], staging / record.name, record.owner)
            case other:
                raise AssertionError(other)

    def _unpack(self, record: VolumeRecord, staging: Path) -> None:
        archive = self._data_of(record.source["upload"])
        target = staging / record.name
        shutil.rmtree(target, ignore_errors=True)
        asked = {
            "action": "unpack",
            "path": str(archive),
            "kind": record.source["unpack"],
            "target": str(target),
            "max_bytes": self._uploads.space.room(record.owner) + record.n_bytes,
        }
        limit_s = _UNPACK_S + archive.stat().st_size / _SLOWEST_BYTES_PER_S
        self._children.run(asked, limit_s)
        inside = content_root(target)
        if inside != target:
            # One folder in the archive is the volume: its own name, one level higher.
            middle = staging / ".content"
            inside.rename(middle)
            shutil.rmtree(target)
            middle.rename(staging / inside.name)

    def _take(self, upload: str, target: Path) -> None:
        """A second name for the upload's bytes: no copy, and the first one stays until the end."""
        if target.exists():
            return
        data = self._data_of(upload)
        try:
            os.link(data, target)
        except OSError:
            partial = target.with_name(f".{target.name}.partial")
            with suppress(FileNotFoundError):
                partial.unlink()
            shutil.copyfile(data, partial)
            partial.replace(target)

    def _data_of(self, upload: str) -> Path:
        path = self._uploads.folder / upload / "data"
        if not path.exists():
            raise MissingPathError(
                f"the bytes of upload {upload} are gone", hint="upload the file again"
            )
        return path
