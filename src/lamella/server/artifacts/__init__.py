"""What jobs leave for those who fetch it: listed, signed, sent in ranges, exported on demand."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lamella.server.artifacts.service import Artifacts
    from lamella.server.services import Services

__all__ = ["open_artifacts"]


def open_artifacts(services: Services) -> Artifacts:
    """The artifacts of a server's jobs."""
    # Here: a worker that packs a run needs none of it.
    from lamella.server.artifacts.service import Artifacts

    return Artifacts(services)
