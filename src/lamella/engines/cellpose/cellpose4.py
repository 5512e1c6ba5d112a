"""Cellpose 4: the engine and its models, as the registry and the store ask for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lamella.engines.cellpose.descriptor import CELLPOSE4
from lamella.engines.cellpose.models import Family

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from lamella.core.places import Places
    from lamella.engines.cellpose.engine import CellposeEngine
    from lamella.models.foreign import ForeignModel
    from lamella.volume.volume import Volume
    from lamella.wire.catalogue import CatalogueEntry
    from lamella.wire.request import SegmentRequest

__all__ = [
    "EXPECTED",
    "build_engine",
    "check_fit",
    "describe",
    "downloads",
    "find_model",
    "recognise",
]

FAMILY = Family.of("cellpose4")
EXPECTED = FAMILY.expected


def build_engine() -> CellposeEngine:
    """Return the engine; the name every engine's module offers."""
    from lamella.engines.cellpose.engine import CellposeEngine

    return CellposeEngine(CELLPOSE4)


def find_model(reference: str, places: Places) -> ForeignModel:
    """Return the model of ``cellpose4:REFERENCE``, see :meth:`Family.find`."""
    return FAMILY.find(reference, places)


def check_fit(volume: Volume, request: SegmentRequest, model: ForeignModel) -> None:
    """Refuse early what the engine would refuse late."""
    from lamella.engines.cellpose.settings import resolve

    resolve(CELLPOSE4, volume, request)


def recognise(path: Path) -> bool:
    """Whether a file looks like a model of Cellpose 4."""
    return FAMILY.recognise(path)


def describe(path: Path) -> Mapping[str, Any]:
    """Facts about a model file."""
    return FAMILY.describe(path)


def downloads(reference: str) -> Sequence[CatalogueEntry]:
    """What has to be pulled; the catalogue knows Cellpose's models by their own ids."""
    return FAMILY.downloads(reference)
