"""What a folder looks like, where nobody said: its layout, and the classes in its label files.

What is guessed is shown, never used in silence: ``lamella dataset check`` says it, and ``index``
writes it down; a training takes the patterns it is given.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lamella.core.errors import InputError, LamellaError, MissingPathError
from lamella.training.configuration import ClassConfig, PairsConfig, TaskConfig
from lamella.training.pairs.finding import Finding
from lamella.training.pairs.pairing import Pair, find_pairs
from lamella.training.pairs.store import open_location
from lamella.volume.source import iter_slabs

if TYPE_CHECKING:
    from lamella.volume.volume import Volume

__all__ = ["guess_layout", "guess_task", "values_of"]

_IMAGES = ("images", "imagesTr", "image", "imgs", "raw", "train/images")
_LABELS = (
    "labels",
    "labelsTr",
    "label",
    "masks",
    "mask",
    "train/labels",
    "train/masks",
    "instances",
)
_ENDINGS = ("_labels", "_label", "_masks", "_mask", "_seg", "_segmentation", "_gt")
_INSIDE = (
    ("raw", "label"),
    ("raw", "labels"),
    ("volumes/raw", "volumes/labels/neuron_ids"),
    ("image", "label"),
)
_MANY = 32
"""More values than that in one file are ids of objects, not classes."""
_COUNTED = 1 << 16


def guess_layout(root: Path, *, wants_objects: bool = False) -> PairsConfig:
    """Patterns for a folder that is laid out in one of the usual ways.

    Args:
        root: the folder.
        wants_objects: ids of objects are looked for first, as ``dataset convert --instances``
            writes them.

    Raises:
        MissingPathError: there is no such folder.
        InputError: it is laid out in none of them.
    """
    if not root.is_dir():
        raise MissingPathError(f"there is no folder {root}", hint="check the path")
    if wants_objects and (root / "images").is_dir() and (root / "instances").is_dir():
        masks = "known/**/*" if (root / "known").is_dir() else ""
        return PairsConfig(root=str(root), labels="instances/**/*", masks=masks)
    best: tuple[int, PairsConfig] | None = None
    for images, labels in _candidates(root):
        config = PairsConfig(root=str(root), images=images, labels=labels)
        try:
            pairs, findings = find_pairs(config)
        except LamellaError:
            continue
        if pairs and not findings:
            return config
        if pairs and (best is None or len(pairs) > best[0]):
            best = (len(pairs), config)
    if best is not None:
        return best[1]
    raise InputError(
        f"{root} is laid out in no way that is known: no images/ and labels/, no NAME.png beside"
        " NAME_labels.tif, no HDF5 files with raw and label",
        hint="say where things are, for example --images 'raw/*.tif' --labels 'mito/*.png'",
    )


def guess_task(
    config: PairsConfig, pairs: Sequence[Pair], *, kind: str | None = None
) -> tuple[TaskConfig, PairsConfig, tuple[Finding, ...]]:
    """Classes out of what was written beside the labels, or out of the values that occur.

    Args:
        config: patterns; with them, where labels turn out to be masks, a threshold.
        pairs: whose labels may be looked at.
        kind: of the task, where it is known.

    Returns:
        The task, the configuration, and what was guessed.
    """
    root = Path(config.root)
    if isinstance(config.labels, dict):
        classes = tuple(ClassConfig(name=name) for name in config.labels)
        return TaskConfig(kind=_kind(kind, "semantic"), classes=classes), config, ()
    if config.colors:
        names = [n for n in config.colors if n not in ("__ignore__", "background", "_background_")]
        classes = tuple(ClassConfig(name=name) for name in names)
        return TaskConfig(kind=_kind(kind, "semantic"), classes=classes), config, ()
    if config.threshold is not None:
        classes = (ClassConfig(name="foreground"),)
        return TaskConfig(kind=_kind(kind, "semantic"), classes=classes), config, ()
    written = _written_classes(root)
    if written is not None and kind in (None, "semantic", "multilabel"):
        task = TaskConfig(
            kind=_kind(kind, "semantic"), classes=written[0], ignore_values=written[1]
        )
        return task, config, ()
    return _from_values(config, root, pairs, kind)


def values_of(volume: Volume) -> dict[int, int] | None:
    """Voxels of each value of integer labels; None for fractions, colours and very many values."""
    counts: dict[int, int] = {}
    for _, slab in iter_slabs(volume.data, axis=volume.axes.n_leading, max_bytes=32 << 20):
        flat = np.asarray(slab).ravel()
        if flat.dtype.kind == "f":
            if not (np.isfinite(flat).all() and (flat == np.rint(flat)).all()):
                return None
            flat = flat.astype(np.int64)
        if flat.dtype == bool:
            flat = flat.astype(np.uint8)
        if flat.size and int(flat.min()) >= 0 and int(flat.max()) < _COUNTED:
            found = np.bincount(flat.astype(np.int64, copy=False))
            pairs = [(int(v), int(found[v])) for v in np.flatnonzero(found)]
        else:
            values, numbers = np.unique(flat, return_counts=True)
            pairs = list(zip(values.tolist(), numbers.tolist(), strict=True))
        for value, n in pairs:
            counts[value] = counts.get(value, 0) + n
        if len(counts) > _COUNTED:
            return None
    return counts


def _candidates(root: Path) -> list[tuple[str, str]]:
    folders = [
        (f"{images}/**/*", f"{labels}/**/*")
        for images in _IMAGES
        for labels in _LABELS
        if (root / images).is_dir() and (root / labels).is_dir()
    ]
    beside = [("**/*", f"**/*{ending}.*") for ending in _ENDINGS]
    inside = [(f"**/*.h5::{image}", f"**/*.h5::{labels}") for image, labels in _INSIDE]
    has_files = any(root.rglob("*.h5"))
    inside = [pair for pair in inside if has_files and _has_both(root, pair)]
    return [*folders, *beside, *inside]


def _has_both(root: Path, pair: tuple[str, str]) -> bool:
    """Whether the first HDF5 file holds both data sets."""
    from lamella.io.format import list_contents

    first = min(root.rglob("*.h5"))
    try:
        held = {entry.id for entry in list_contents(first)}
    except LamellaError:
        return False
    return all(pattern.rpartition("::")[2] in held for pattern in pair)


def _written_classes(root: Path) -> tuple[tuple[ClassConfig, ...], tuple[int, ...]] | None:
    """Names that ``lamella labelme convert`` and ``dataset convert`` write beside the labels."""
    try:
        document = json.loads((root / "classes.json").read_text(encoding="utf-8"))
        named = {int(value): str(name) for value, name in document["classes"].items()}
        ignored = document.get("ignore_value")
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None
    classes = tuple(
        ClassConfig(name=name, values=(value,)) for value, name in sorted(named.items()) if value
    )
    return (classes, () if ignored is None else (int(ignored),)) if classes else None


def _from_values(
    config: PairsConfig, root: Path, pairs: Sequence[Pair], kind: str | None
) -> tuple[TaskConfig, PairsConfig, tuple[Finding, ...]]:
    seen: dict[int, int] = {}
    most = 0
    for pair in pairs:
        for _, place in pair.labels:
            try:
                counts = values_of(open_location(root, place))
            except LamellaError:
                continue  # it is reported when the pair is read
            if counts is None:
                continue
            most = max(most, len(counts))
            for value, n in counts.items():
                seen[value] = seen.get(value, 0) + n
    values = sorted(value for value in seen if value != 0)
    if kind is None and _looks_like_mask(seen):
        found = Finding(
            "note",
            "taken_as_mask",
            f"labels run from 0 to {values[-1]} with few values between: taken as masks of one"
            " class, cut at half",
            hint="say otherwise with --class NAME=VALUES",
        )
        task = TaskConfig(kind="semantic", classes=(ClassConfig(name="foreground"),))
        return task, config.model_copy(update={"threshold": values[-1] / 2}), (found,)
    if kind not in (None, "semantic", "multilabel") or (kind is None and most > _MANY):
        found = Finding(
            "note",
            "taken_as_objects",
            f"labels hold up to {max(0, most - 1)} values in a file: taken as ids of objects",
            hint="say otherwise with --class NAME=VALUES",
        )
        task = TaskConfig(kind=_kind(kind, "boundary"), classes=(ClassConfig(name="object"),))
        return task, config, (found,) if kind is None else ()
    classes = tuple(ClassConfig(name=f"class {value}", values=(value,)) for value in values)
    found = Finding(
        "note",
        "classes_unnamed",
        f"classes are not named; values {', '.join(map(str, values)) or 'none but 0'}",
        hint="name them with --class NAME=VALUE",
    )
    classes = classes or (ClassConfig(name="class 1", values=(1,)),)
    return TaskConfig(kind=_kind(kind, "semantic"), classes=classes), config, (found,)


def _looks_like_mask(seen: Mapping[int, int]) -> bool:
    """Whether nearly all voxels are 0 or the largest value, as in a picture of a mask."""
    largest = max(seen, default=0)
    if largest not in (254, 255, 65535):
        return False
    return seen.get(0, 0) + seen[largest] > 0.95 * sum(seen.values())


def _kind(kind: str | None, usual: str) -> Any:
    return kind or usual
