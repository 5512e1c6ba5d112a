"""Finding and telling MONAI bundles, without importing torch or MONAI."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lamella.core.errors import AxesError, LamellaError, ModelError, UnknownModelError
from lamella.engines.monai.bundle import METADATA, SCRIPT, WEIGHTS, Bundle
from lamella.engines.monai.classes import label_classes
from lamella.models.foreign import RECORD_NAME, ForeignModel, find_foreign

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lamella.core.places import Places
    from lamella.volume.volume import Volume
    from lamella.wire.request import SegmentRequest

__all__ = ["EXPECTED", "check_fit", "describe", "find_model", "open_bundle", "recognise"]

EXPECTED = "a MONAI bundle: configs/metadata.json, configs/inference.json and models/model.pt"
_ENGINE = "monai"


def recognise(path: Path) -> bool:
    """Whether a folder or zip is a MONAI bundle.

    Args:
        path: anything.
    """
    if not path.is_dir() and not (path.is_file() and zipfile.is_zipfile(path)):
        return False
    try:
        Bundle.open(path)
    except (LamellaError, OSError):
        return False
    return True


def describe(path: Path) -> Mapping[str, Any]:
    """Facts about a bundle, for the record of the store.

    Args:
        path: a folder or zip that :func:`recognise` knows.

    Raises:
        ModelError: a document in it that cannot be read.
    """
    bundle = Bundle.open(path)
    metadata = bundle.metadata
    facts: dict[str, Any] = {
        "id": _as_id(bundle.name),
        "version": metadata.version,
        "title": metadata.name or bundle.name.replace("_", " "),
        "description": metadata.description,
        "task": "semantic",
        "classes": {known.value: known.name for known in label_classes(metadata)},
        "licence": bundle.licence,
        "citation": metadata.citation,
        "details": {"monai_version": metadata.monai_version, "name": bundle.name},
    }
    n_axes = len(metadata.spatial)
    if n_axes in (2, 3):
        facts["axes"] = "zyx" if n_axes == 3 else "yx"
    if path.is_dir():
        facts["files"] = bundle.files()
    return facts


def find_model(reference: str, places: Places) -> ForeignModel:
    """Return the bundle that is meant.

    Args:
        reference: a stored id, or the path of a folder or zip.
        places: where models lie.

    Raises:
        UnknownModelError: no such id.
        MissingPathError: a path where nothing is.
        ModelError: something there that is no bundle.
    """
    stored = find_foreign(reference, places, engine=_ENGINE)
    if stored is not None:
        return stored
    path = Path(reference).expanduser()
    if not path.exists() and not _is_path(reference):
        known = _stored_ids(places)
        raise UnknownModelError(
            f"there is no MONAI bundle {reference!r}",
            hint=(f"known: {', '.join(known)}; " if known else "")
            + "give the path of a bundle's folder or zip: monai:path/to/bundle",
        )
    bundle = Bundle.open(path)
    return ForeignModel(
        engine=_ENGINE,
        id=bundle.name,
        version=bundle.metadata.version,
        path=path.absolute(),
        sha256=bundle.sha256,
        licence=bundle.licence,
        title=bundle.metadata.name or bundle.name,
    )


def open_bundle(model: ForeignModel) -> Bundle:
    """The bundle of a found model.

    Raises:
        ModelError: when it is incomplete.
    """
    assert model.path is not None, "bundles are files"
    path = model.path
    if path.is_dir() and not (path / METADATA).exists():
        # Stored from a zip: the one file in the folder is the bundle.
        archives = [file for file in path.iterdir() if file.suffix == ".zip"]
        path = archives[0] if len(archives) == 1 else path
    return Bundle.open(path)


def check_fit(volume: Volume, request: SegmentRequest, model: ForeignModel) -> None:
    """Refuse early what a bundle's metadata says it does not take.

    Raises:
        AxesError: another number of channels, or an image for a network of volumes.
        ModelError: a bundle that cannot be read.
    """
    del request
    metadata = open_bundle(model).metadata
    wanted = metadata.n_channels
    if wanted is not None and volume.n_channels != wanted:
        names = ", ".join(metadata.channels.get(i, f"channel {i}") for i in range(wanted))
        raise AxesError(
            f"the bundle {model.id!r} takes {wanted} channel(s) ({names}); the input has"
            f" {volume.n_channels}",
            hint=f"choose one with --channel 0 to {volume.n_channels - 1}"
            if wanted == 1
            else "stack the channels in this order into one file, along an axis c",
        )
    if len(metadata.spatial) == 3 and "z" not in volume.axes:
        raise AxesError(
            f"the bundle {model.id!r} segments volumes (z, y, x); the input is an image with the"
            f" axes {volume.axes}",
            hint="choose a 2-D model, or open the slices as one volume (a folder of slices)",
        )


def has_weights(bundle: Bundle) -> bool:
    """Whether it holds plain weights, not TorchScript alone."""
    return bundle.has(WEIGHTS) or not bundle.has(SCRIPT)


def _is_path(reference: str) -> bool:
    return "/" in reference or "\\" in reference or reference.startswith((".", "~"))


def _as_id(name: str) -> str:
    plain = re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-._")
    if not plain:
        raise ModelError(f"the bundle's name {name!r} makes no id", hint="import it with --id NAME")
    return plain


def _stored_ids(places: Places) -> list[str]:
    if places.models is None or not places.models.is_dir():
        return []
    found: list[str] = []
    for record in sorted(places.models.glob(f"*/{RECORD_NAME}")):
        try:
            model = find_foreign(record.parent.name, places, engine=_ENGINE)
        except LamellaError:
            continue  # a broken record of another model is not what was asked about
        if model is not None:
            found.append(model.id)
    return found
