"""Volumes and results as OME-Zarr over HTTP, as NiiVue, Neuroglancer, napari and zarr read it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lamella.server.pyramids.service import Pyramids
    from lamella.server.services import Services

__all__ = ["open_pyramids"]


def open_pyramids(services: Services) -> Pyramids:
    """The pyramids of a server's volumes."""
    # Here: the process that makes a pyramid needs none of it.
    from lamella.server.pyramids.service import Pyramids

    return Pyramids(services)
