"""A volume, if it belongs to whoever asks; else there is no such volume."""

from typing import TYPE_CHECKING

from lamella.server.volumes.rows import VolumeRecord, no_volume

if TYPE_CHECKING:
    from lamella.server.auth import Principal
    from lamella.server.services import Services

__all__ = ["owned_volume"]


def owned_volume(services: "Services", who: "Principal", volume_id: str) -> VolumeRecord:
    """A volume of this user, or any for an administrator.

    Raises:
        MissingPathError: when there is none, or it is somebody else's: both sound the same.
    """
    record: VolumeRecord = services.volumes.get(volume_id)
    if not who.may_see(record.owner):
        raise no_volume(volume_id)
    return record
