"""Which folder a viewer reads: the volume itself, its pyramid, or the labels of a run.

An uploaded OME-Zarr with levels is served as it is. Of everything else a pyramid is made once, in
the background, below ``cache/pyramids``; it may be removed at any time and is made again.
"""

from __future__ import annotations

import logging
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import sqlalchemy as sa

from lamella.core.errors import LamellaError
from lamella.server.jobs.folder import run_folder
from lamella.server.pyramids.make import Version, find_version, has_levels
from lamella.server.tables import volumes as table
from lamella.wire.problem import Problem

if TYPE_CHECKING:
    from lamella.server.background import Background
    from lamella.server.services import Services
    from lamella.server.volumes.rows import VolumeRecord

__all__ = ["Pyramid", "Pyramids", "RunLabels"]

logger = logging.getLogger(__name__)

_REMEMBERED_S = 10.0
_N_REMEMBERED = 1024

RunLabels = Literal["labels", "objects", "preview", "engine"]
"""Labels in a run folder, by the name of their store."""


@dataclass(frozen=True, slots=True)
class Pyramid:
    """What a viewer can read.

    Attributes:
        state: preparing: ask again.
        folder: of the image; None until it is ready.
        version: of NGFF.
        problem: why there is none.
    """

    state: Literal["ready", "preparing", "failed"]
    folder: Path | None = None
    version: Version | None = None
    problem: Problem | None = None


class Pyramids:
    """Images for viewers; safe to use from several threads.

    Args:
        services: of the server.
    """

    def __init__(self, services: Services) -> None:
        self._services = services
        self._data_dir = services.settings.data_dir
        self.folder = self._data_dir / "cache" / "pyramids"
        # Viewers ask for thousands of chunks: what is ready is not looked for each time.
        self._ready: dict[str, tuple[float, Pyramid]] = {}

    def prepare(self, volume_id: str) -> None:
        """Begin to make the pyramid of a volume that has just become ready; returns at once."""
        try:
            self.of_volume(self._services.volumes.get(volume_id))
        except LamellaError as error:
            logger.info("no pyramid of volume %s: %s", volume_id, error)

    def of_volume(self, record: VolumeRecord) -> Pyramid:
        """The image of a volume; begun where there is none."""
        known = self._known(record.id)
        if known is not None:
            self._note(record)
            return known
        if record.state != "ready":
            problem = None if record.problem is None else Problem.model_validate(record.problem)
            return Pyramid(
                "preparing" if record.state == "preparing" else "failed", problem=problem
            )
        path: Path = self._services.volumes.path_of(record.id)
        if path.is_dir() and has_levels(path):
            self._note(record)
            return self._remember(record.id, Pyramid("ready", path, find_version(path)))
        background: Background = self._services.background
        told = background.submit(
            f"pyramid:{record.id}",
            "lamella.server.pyramids.make:make_pyramid",
            {
                "path": str(path),
                "target": str(self._target(record.id)),
                "hidden": {str(path): record.name, str(self._data_dir): "(server)"},
            },
            done=lambda: self._note(record),
        )
        return Pyramid("failed" if told.problem else "preparing", problem=told.problem)

    def of_volume_id(self, volume_id: str) -> Pyramid:
        """As :meth:`of_volume`, where nobody has looked for the volume yet.

        Raises:
            MissingPathError: when there is none.
        """
        return self._known(volume_id) or self.of_volume(self._services.volumes.get(volume_id))

    def of_run(self, job_id: str, name: RunLabels) -> Pyramid:
        """Labels that a run wrote; they have no version until they are whole."""
        folder = run_folder(self._data_dir, job_id) / f"{name}.ome.zarr"
        version = find_version(folder)
        return Pyramid("preparing" if version is None else "ready", folder, version)

    def remove(self, volume_id: str) -> None:
        """Let go of a pyramid; it is made again when somebody asks."""
        self._ready.pop(volume_id, None)
        target = self._target(volume_id)
        if target.exists():
            # Out of the way at once: whoever opens it now finds nothing, not a part.
            gone = target.with_name(f".{target.name}.{time.monotonic_ns()}")
            target.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)

    def _known(self, volume_id: str) -> Pyramid | None:
        until, known = self._ready.get(volume_id, (0.0, None))
        if known is not None and time.monotonic() < until:
            return known
        target = self._target(volume_id)
        version = find_version(target)
        if version is None:
            return None
        return self._remember(volume_id, Pyramid("ready", target, version))

    def _remember(self, volume_id: str, pyramid: Pyramid) -> Pyramid:
        if len(self._ready) >= _N_REMEMBERED:
            self._ready.clear()
        self._ready[volume_id] = (time.monotonic() + _REMEMBERED_S, pyramid)
        return pyramid

    def _target(self, volume_id: str) -> Path:
        return self.folder / f"{volume_id}.ome.zarr"

    def _note(self, record: VolumeRecord) -> None:
        """Let the volume's document say where viewers read it."""
        address = f"/api/v1/volumes/{record.id}/ome.zarr"
        if record.pyramid == address:
            return
        with self._services.database.begin() as connection:
            connection.execute(
                sa.update(table).where(table.c.id == record.id).values(pyramid=address)
            )
