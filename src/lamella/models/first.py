"""Trust on first use: the hashes of files that came without a published one.

They lie in ``<models>/.first/<id>.json`` and stay when the model is removed: the same version of a
model is the same file for ever, or somebody has to say that it may differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from lamella.core.errors import LamellaError
from lamella.wire.record import PulledDoc, PulledFileDoc

if TYPE_CHECKING:
    from lamella.models.download import Fetched
    from lamella.wire.catalogue import DownloadDoc

__all__ = ["FirstHashes"]


class FirstHashes:
    """What came first for one version of one model.

    Args:
        models: the models folder.
        model_id: id of the model.
        version: its version.
    """

    def __init__(self, models: Path, model_id: str, version: str) -> None:
        self._path = models / ".first" / f"{model_id}.json"
        self._id = model_id
        self._version = version

    def hold(self, file: DownloadDoc) -> DownloadDoc:
        """Return the file with the hash that came first, where none is published."""
        if file.sha256 is not None:
            return file
        known = self._read().files.get(self._key(file.name))
        if known is None:
            return file
        return file.model_copy(update={"sha256": known.sha256, "n_bytes": known.n_bytes})

    def remember(self, fetched: Mapping[str, Fetched]) -> None:
        """Keep the hashes of files that came."""
        if not fetched:
            return
        fresh = {
            self._key(name): PulledFileDoc(
                sha256=one.sha256, n_bytes=one.n_bytes, address=one.address
            )
            for name, one in fetched.items()
        }
        document = self._read()
        document = document.model_copy(update={"files": {**document.files, **fresh}})
        self._path.parent.mkdir(parents=True, exist_ok=True)
        new = self._path.with_suffix(".new")
        new.write_text(document.to_json(), encoding="utf-8")
        new.replace(self._path)

    def _key(self, name: str) -> str:
        return f"{self._version}/{name}"

    def _read(self) -> PulledDoc:
        with suppress(LamellaError, OSError):
            return PulledDoc.read(self._path)
        return PulledDoc(id=self._id, pulled_at="", files={})
