"""Resumable uploads: the tus 1.0 protocol, and files that survive whatever happens to a server."""

from typing import TYPE_CHECKING

from lamella.server.uploads.service import Uploads
from lamella.server.uploads.space import SpaceLimits

if TYPE_CHECKING:
    from lamella.server.services import Services

__all__ = ["Uploads", "open_uploads"]


def open_uploads(services: "Services") -> Uploads:
    """The uploads of a server."""
    settings = services.settings
    return Uploads(
        settings.data_dir / "uploads",
        services.database,
        SpaceLimits.of_settings(settings),
        expiry_s=settings.upload_expiry_s,
    )
