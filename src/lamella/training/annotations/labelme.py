"""Labelme files: the shapes of one image, and the image they were drawn on.

A file names its image by a path relative to itself, written by whatever system it was drawn on, or
holds the image inside. The image is shown upright (EXIF orientation applied) while people draw, so
coordinates are those of the upright image.

Source: the files of Labelme 3 to 5, https://github.com/wkentaro/labelme.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lamella.core.errors import InputError, MissingPathError, UnreadableFileError
from lamella.training.annotations.shape import Shape

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray
    from PIL import Image

__all__ = ["LabelmeFile", "find_labelme_files", "read_labelme"]

_ORIENTATION = 0x0112


@dataclass(frozen=True, slots=True)
class LabelmeFile:
    """What one Labelme file says.

    Attributes:
        path: the file.
        shapes: in the order of drawing.
        image_path: the image beside it; None where it lies inside the file.
        image_bytes: the image inside the file; None where it lies beside.
        image_shape: (y, x) of the upright image.
        is_upright: False where the image is stored turned and its EXIF data say how.
    """

    path: Path
    shapes: tuple[Shape, ...]
    image_path: Path | None
    image_bytes: bytes | None
    image_shape: tuple[int, int]
    is_upright: bool

    def load_image(self) -> NDArray[Any]:
        """Return the upright image, (y, x) or (y, x, samples), as stored otherwise."""
        from PIL import ImageOps

        with _open_image(self.path, self.image_path, self.image_bytes) as image:
            return np.asarray(ImageOps.exif_transpose(image))


def find_labelme_files(source: Path) -> tuple[Path, ...]:
    """Return the Labelme files of a folder and all folders below it, by path.

    JSON files without shapes are something else and are left out.

    Args:
        source: a folder, or one file.

    Raises:
        MissingPathError: when there is nothing.
        InputError: when there is no Labelme file.
    """
    if not source.exists():
        raise MissingPathError(f"there is nothing at {source}", hint="check the path")
    if source.is_file():
        return (source,)
    found = tuple(path for path in sorted(source.rglob("*.json")) if _has_shapes(path))
    if not found:
        raise InputError(
            f"{source} holds no Labelme files",
            hint="give the folder in which Labelme saved its .json files",
        )
    return found


def read_labelme(path: Path) -> LabelmeFile:
    """Read one Labelme file and find its image.

    Raises:
        UnreadableFileError: no JSON, or JSON of another kind.
        MissingPathError: the image is neither inside nor beside it.
        InputError: the image is not the one that was drawn on, or a shape is broken.
    """
    document = _load(path)
    if not isinstance(document, dict) or not isinstance(document.get("shapes"), list):
        raise UnreadableFileError(
            f"{path} is no Labelme file: it has no list of shapes",
            hint="give files that Labelme saved",
        )
    shapes = tuple(_shape(path, i, entry) for i, entry in enumerate(document["shapes"]))
    image_bytes = _embedded(path, document)
    image_path = None if image_bytes is not None else _find_image(path, document)
    with _open_image(path, image_path, image_bytes) as image:
        orientation = image.getexif().get(_ORIENTATION, 1)
        width, height = image.size
    if orientation in (5, 6, 7, 8):
        width, height = height, width
    known = (document.get("imageHeight"), document.get("imageWidth"))
    if None not in known and known != (height, width):
        raise InputError(
            f"{path} was drawn on an image of {known[0]} x {known[1]} pixels (y, x); its image has"
            f" {height} x {width}",
            hint="bring back the image that was drawn on; shapes are not moved in silence",
        )
    return LabelmeFile(
        path=path,
        shapes=shapes,
        image_path=image_path,
        image_bytes=image_bytes,
        image_shape=(height, width),
        is_upright=orientation == 1,
    )


def _load(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise MissingPathError(f"there is nothing at {path}", hint="check the path") from None
    except (ValueError, OSError) as error:
        raise UnreadableFileError(
            f"{path} is no JSON file: {error}", hint="save it again from Labelme"
        ) from None


def _has_shapes(path: Path) -> bool:
    try:
        document = _load(path)
    except UnreadableFileError:
        return True  # it is reported when it is read, not passed over here
    return isinstance(document, dict) and isinstance(document.get("shapes"), list)


def _shape(path: Path, index: int, entry: Any) -> Shape:
    try:
        points = tuple((float(x), float(y)) for x, y in entry["points"])
        group = entry.get("group_id")
        return Shape(
            label=str(entry["label"]),
            kind=str(entry.get("shape_type") or "polygon"),
            points=points,
            group_id=None if group is None else int(group),
            mask=_mask(entry.get("mask")),
            description=str(entry.get("description") or ""),
            flags=tuple(sorted((entry.get("flags") or {}).items())),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{path}: shape {index + 1} is broken ({type(error).__name__}: {error})",
            hint="open the file in Labelme, delete or redraw the shape, and save",
        ) from None


def _mask(text: str | None) -> NDArray[np.bool_] | None:
    if text is None:
        return None
    from PIL import Image

    with Image.open(io.BytesIO(base64.b64decode(text))) as picture:
        return np.asarray(picture.convert("L"), dtype=bool)


def _embedded(path: Path, document: Mapping[str, Any]) -> bytes | None:
    text = document.get("imageData")
    if not text:
        return None
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError, TypeError) as error:
        raise UnreadableFileError(
            f"{path}: the image inside the file is damaged ({error})",
            hint="save it again from Labelme",
        ) from None


def _find_image(path: Path, document: Mapping[str, Any]) -> Path:
    """The image a file names: as written, or a file of that name beside it."""
    # Files drawn on Windows separate folders by backslashes.
    name = str(document.get("imagePath") or "").replace("\\", "/")
    candidates = [path.parent / name, path.parent / Path(name).name]
    found = next((place for place in candidates if name and place.is_file()), None)
    if found is None:
        raise MissingPathError(
            f"{path} names the image {name!r}, which is not there",
            hint=f"put {Path(name).name or 'the image'} beside it, or save it from Labelme with"
            " its image data",
        )
    return found


def _open_image(path: Path, image_path: Path | None, image_bytes: bytes | None) -> Image.Image:
    from PIL import Image

    try:
        if image_bytes is not None:
            return Image.open(io.BytesIO(image_bytes))
        assert image_path is not None, "an image lies inside or beside"
        return Image.open(image_path)
    except OSError as error:
        raise UnreadableFileError(
            f"the image of {path} cannot be read: {error}", hint="open and save the image again"
        ) from None
