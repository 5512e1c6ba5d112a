"""A volume as multi-scale OME-Zarr; made in a process of its own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from lamella.core.errors import LamellaError
from lamella.server.names import PathNames

__all__ = ["LARGEST_FINEST", "find_version", "has_levels", "make_pyramid"]

LARGEST_FINEST = 512
"""An image whose coarsest level is longer than this along an axis needs a pyramid."""

Version = Literal["0.4", "0.5"]


def make_pyramid(document: Mapping[str, Any]) -> dict[str, Any]:
    """Write the pyramid of a volume, whole or not at all.

    Args:
        document: ``path`` of the volume, ``target``, and what is ``hidden`` (paths and the names to
            write for them).
    """
    from lamella.io.format import SaveOptions, open_volume, save_volume

    target = Path(document["target"])
    try:
        if find_version(target) is None:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(target, ignore_errors=True)
            # One chunk for a level that fits; every longer axis is halved again and again.
            save_volume(open_volume(document["path"]), target, SaveOptions(pyramid=True))
    except LamellaError as error:
        raise PathNames(document["hidden"]).hide_error(error) from error
    return {}


def find_version(folder: Path) -> Version | None:
    """The version of NGFF of an image's folder; None where it is none, or not yet whole."""
    found = _multiscales(folder)
    return None if found is None else found[0]


def has_levels(folder: Path) -> bool:
    """Whether a folder is an image that viewers can show from far away as it is."""
    found = _multiscales(folder)
    if found is None:
        return False
    version, multiscale = found
    datasets = multiscale.get("datasets", ())
    coarsest = _shape(folder / str(datasets[-1]["path"]), version) if datasets else ()
    return bool(coarsest) and max(coarsest[-3:]) <= LARGEST_FINEST


def _multiscales(folder: Path) -> tuple[Version, dict[str, Any]] | None:
    try:
        ome = json.loads((folder / "zarr.json").read_bytes())["attributes"]["ome"]
        return "0.5", ome["multiscales"][0]
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        pass
    try:
        return "0.4", json.loads((folder / ".zattrs").read_bytes())["multiscales"][0]
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return None


def _shape(folder: Path, version: Version) -> tuple[int, ...]:
    try:
        name = "zarr.json" if version == "0.5" else ".zarray"
        return tuple(int(n) for n in json.loads((folder / name).read_bytes())["shape"])
    except (OSError, ValueError, KeyError, TypeError):
        return ()
