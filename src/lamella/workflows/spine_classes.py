"""Which value of a segmentation is which vertebra: said by its file, by the user, or assumed."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lamella.core.errors import InputError, MissingPathError
from lamella.measurement.spine_levels import CLASS_MAPS, class_map, levels_of
from lamella.volume.labels import LabelClass, Labels

__all__ = ["GivenClasses", "find_classes", "read_class_map"]

DEFAULT_MAP = "total"


@dataclass(frozen=True, slots=True)
class GivenClasses:
    """Classes, and who says them.

    Attributes:
        classes: value and name.
        source: ``file``, ``the model``, a known map, or a path.
        is_assumed: whether nobody said it.
    """

    classes: tuple[LabelClass, ...]
    source: str
    is_assumed: bool


def find_classes(labels: Labels, wanted: str | None) -> GivenClasses:
    """What the values of given labels mean.

    Args:
        labels: as opened; many formats bring class names along.
        wanted: a known map, or a JSON file; None to take what the labels say.

    Raises:
        InputError: for object ids, unknown maps, and files that are no map.
    """
    if wanted is not None:
        if wanted in CLASS_MAPS:
            return GivenClasses(class_map(wanted), wanted, is_assumed=False)
        path = Path(wanted)
        if not path.exists() and path.suffix != ".json":
            class_map(wanted)  # raises, naming the known ones
        return GivenClasses(read_class_map(path), str(path), is_assumed=False)
    if levels_of(labels.classes):
        return GivenClasses(labels.classes, "file", is_assumed=False)
    if labels.is_instance:
        raise InputError(
            "these labels are ids of objects, not classes: nothing says which vertebra is which",
            hint="name the levels with --class-map FILE.json",
        )
    if labels.classes:
        names = ", ".join(known.name for known in labels.classes[:5])
        raise InputError(
            f"no class of the labels is a vertebra ({names} …)",
            hint="name the map with --class-map: " + ", ".join(CLASS_MAPS) + ", or a JSON file",
        )
    return GivenClasses(class_map(DEFAULT_MAP), DEFAULT_MAP, is_assumed=True)


def read_class_map(path: Path) -> tuple[LabelClass, ...]:
    """A class map in JSON.

    Args:
        path: ``{"26": "vertebrae_S1"}``, ``{"vertebrae_S1": 26}``, or nnU-Net's ``dataset.json``.

    Raises:
        MissingPathError: when it is not there.
        InputError: for anything else.
    """
    try:
        document: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingPathError(
            f"there is no class map {path}",
            hint="known maps: " + ", ".join(CLASS_MAPS),
        ) from None
    except (ValueError, OSError) as error:
        raise _no_map(path, str(error)) from None
    if isinstance(document, dict) and isinstance(document.get("labels"), dict):
        document = document["labels"]
    if not isinstance(document, dict):
        raise _no_map(path, "it is no object")
    classes: dict[int, LabelClass] = {}
    for key, other in document.items():
        value, name = (key, other) if isinstance(other, str) else (other, key)
        try:
            number = int(value)
        except (TypeError, ValueError):
            raise _no_map(path, f"{key!r}: {other!r} is no value with its name") from None
        if number in classes:
            raise _no_map(path, f"the value {number} is there twice")
        classes[number] = LabelClass(number, str(name))
    return tuple(classes.values())


def _no_map(path: Path, why: str) -> InputError:
    return InputError(
        f"{path} is no class map: {why}",
        hint='write {"26": "vertebrae_S1", "27": "vertebrae_L5", ...}',
    )
