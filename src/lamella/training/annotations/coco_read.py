"""Objects in COCO's format: outlines, run lengths (plain and packed), crowds.

A *crowd* is a region with many objects that nobody told apart: its pixels become ``__ignore__``,
under all other objects. Source: https://cocodataset.org/#format-data and the run-length code of
pycocotools (maskApi.c).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lamella.core.errors import InputError, LamellaError, MissingPathError, UnreadableFileError
from lamella.training.annotations.classes import IGNORE
from lamella.training.annotations.drawn import DrawnImage, image_shape_of
from lamella.training.annotations.fill import Patch, filled, joined

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lamella.training.annotations.shape import Shape

__all__ = ["decoded_counts", "pixels_of_runs", "read_coco"]

_AGAIN = "export it again from the annotation program"


def read_coco(
    path: Path, images: Path | None = None
) -> tuple[list[DrawnImage], dict[Path, LamellaError]]:
    """Read a COCO document with all images it names.

    Args:
        path: of the JSON file.
        images: folder that file names start from; None = the document's folder, or ``images``
            in it.

    Returns:
        Images with their shapes (crowds first), and what was wrong with the others.

    Raises:
        UnreadableFileError: no COCO document.
        MissingPathError: no such file.
    """
    document = _load(path)
    try:
        categories = {int(c["id"]): str(c["name"]) for c in document["categories"]}
        entries = {int(i["id"]): i for i in document["images"]}
        by_image: dict[int, list[Mapping[str, Any]]] = {number: [] for number in entries}
        for annotation in document["annotations"]:
            by_image[int(annotation["image_id"])].append(annotation)
    except (KeyError, TypeError, ValueError) as error:
        raise UnreadableFileError(
            f"{path} is no COCO document: {type(error).__name__}: {error}",
            hint="it needs images, annotations and categories that refer to each other; " + _AGAIN,
        ) from None
    files: list[DrawnImage] = []
    problems: dict[Path, LamellaError] = {}
    for number, entry in entries.items():
        name = str(entry.get("file_name") or "")
        try:
            place = _find_image(path, name, images)
            files.append(_drawn(path, place, entry, by_image[number], categories))
        except LamellaError as error:
            problems[Path(name or f"image {number} of {path}")] = error
    return files, problems


def pixels_of_runs(counts: Sequence[int], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Pixels of run lengths down the columns, the first of 0.

    Args:
        counts: lengths of runs of 0 and 1 in turn.
        shape: (y, x).

    Raises:
        InputError: when they do not fill the shape.

    Examples:
        >>> pixels_of_runs([0, 2, 1, 1], (2, 2)).astype(int)
        array([[1, 0],
               [1, 1]])
    """
    lengths = np.asarray(counts, np.int64)
    if (lengths < 0).any() or int(lengths.sum()) != shape[0] * shape[1]:
        raise InputError(
            f"run lengths cover {int(lengths.sum())} pixels, the image has {shape[0]} x {shape[1]}",
            hint=_AGAIN,
        )
    values = np.arange(len(lengths)) % 2 == 1
    return np.repeat(values, lengths).reshape(shape, order="F")


def decoded_counts(text: str) -> list[int]:
    """Run lengths out of COCO's packed text.

    Five bits a letter, low ones first, the sixth says that more follow; from the third run on each
    is the difference to the one before the last.

    Raises:
        InputError: for text that is none.

    Examples:
        >>> decoded_counts("02o0o0")
        [0, 2, 31, 33]
    """
    counts: list[int] = []
    at = 0
    while at < len(text):
        value, shift, more = 0, 0, True
        while more:
            if at >= len(text) or not 48 <= ord(text[at]) < 112:
                raise InputError("packed run lengths are damaged", hint=_AGAIN)
            letter = ord(text[at]) - 48
            value |= (letter & 0x1F) << shift
            shift += 5
            at += 1
            more = bool(letter & 0x20)
            if not more and letter & 0x10:
                value -= 1 << shift
        if len(counts) > 2:
            value += counts[-2]
        counts.append(value)
    return counts


def _load(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise MissingPathError(f"there is nothing at {path}", hint="check the path") from None
    except (ValueError, OSError) as error:
        raise UnreadableFileError(f"{path} is no JSON file: {error}", hint=_AGAIN) from None


def _find_image(path: Path, name: str, images: Path | None) -> Path:
    plain = name.replace("\\", "/")
    folders = [images] if images is not None else [path.parent, path.parent / "images"]
    tried = [folder / part for folder in folders for part in (plain, Path(plain).name)]
    found = next((place for place in tried if plain and place.is_file()), None)
    if found is None:
        raise MissingPathError(
            f"{path} names the image {name!r}, which is not there",
            hint="say with --images in which folder the images are",
        )
    return found


def _drawn(
    path: Path,
    image: Path,
    entry: Mapping[str, Any],
    annotations: Sequence[Mapping[str, Any]],
    categories: Mapping[int, str],
) -> DrawnImage:
    shape, is_upright = image_shape_of(image)
    said = (entry.get("height"), entry.get("width"))
    if None not in said and said != shape:
        raise InputError(
            f"{path} says that {image.name} has {said[0]} x {said[1]} pixels (y, x); it has"
            f" {shape[0]} x {shape[1]}",
            hint="bring back the image that was drawn on; nothing is resized or turned in silence",
        )
    crowds: list[Shape] = []
    objects: list[Shape] = []
    for annotation in annotations:
        label = categories.get(int(annotation.get("category_id", -1)))
        if label is None:
            raise InputError(
                f"annotation {annotation.get('id')} of {path} has the category"
                f" {annotation.get('category_id')}, which is not listed",
                hint=_AGAIN,
            )
        pixels = _pixels(path, annotation, shape)
        is_crowd = bool(annotation.get("iscrowd"))
        found = pixels.to_shape(IGNORE if is_crowd else label)
        if found is not None:
            (crowds if is_crowd else objects).append(found)
    return DrawnImage(image, (*crowds, *objects), shape, is_upright)


def _pixels(path: Path, annotation: Mapping[str, Any], shape: tuple[int, int]) -> Patch:
    segmentation = annotation.get("segmentation")
    what = f"annotation {annotation.get('id')} of {path}"
    if not segmentation:
        raise InputError(
            f"{what} has only a box, no outline",
            hint="boxes say too little to learn pixels from; draw outlines, or remove it",
        )
    try:
        if isinstance(segmentation, dict):
            return _from_runs(segmentation, shape)
        rings = [np.asarray(ring, np.float64).reshape(-1, 2) for ring in segmentation]
    except (KeyError, TypeError, ValueError) as error:
        reason = error.message if isinstance(error, LamellaError) else f"{error}"
        raise InputError(f"{what} is damaged: {reason}", hint=_AGAIN) from None
    if not all(np.isfinite(ring).all() for ring in rings):
        raise InputError(f"{what} has a point that is no number", hint=_AGAIN)
    # Parts of an object, never holes: COCO joins them.
    return joined([filled([ring], shape) for ring in rings])


def _from_runs(segmentation: Mapping[str, Any], shape: tuple[int, int]) -> Patch:
    height, width = (int(n) for n in segmentation["size"])
    if (height, width) != shape:
        raise InputError(
            f"its mask has {height} x {width} pixels, its image {shape[0]} x {shape[1]}"
        )
    counts = segmentation["counts"]
    if isinstance(counts, str):
        counts = decoded_counts(counts)
    return Patch((0, 0), pixels_of_runs(counts, shape))
