"""Inputs of jobs: made of uploads and archives, or found on the server's disks and in S3."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lamella.server.services import Services
    from lamella.server.volumes.service import Volumes

__all__ = ["open_volumes"]


def open_volumes(services: "Services") -> "Volumes":
    """The volumes of a server; finished uploads become some from now on."""
    # Here: a child process that unpacks an archive needs none of it.
    from lamella.server.volumes.paths import ServerRoots
    from lamella.server.volumes.service import Volumes

    def on_ready(volume_id: str) -> None:
        services.pyramids.prepare(volume_id)

    volumes = Volumes(
        services.settings.data_dir / "volumes",
        services.database,
        services.uploads,
        ServerRoots(services.settings.allowed_roots),
        storage=services.storage,
        is_used=lambda volume_id: services.jobs.uses_volume(volume_id),
        on_ready=on_ready,
    )
    services.uploads.finisher.maker = volumes
    return volumes
