"""Models of the server: list, show, pull in the background, remove."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lamella.server.models.pulls import Pulls
    from lamella.server.services import Services

__all__ = ["open_models"]


def open_models(services: Services) -> Pulls:
    """The pulls of a server."""
    from lamella.server.models.pulls import Pulls

    return Pulls(services.places)
