"""Pictures in which every class has a colour, as graphics programs and old data sets keep them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lamella.core.errors import InputError
from lamella.io.format import open_volume
from lamella.training.annotations.classes import BACKGROUND
from lamella.training.annotations.fill import Patch, cropped

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lamella.training.annotations.shape import Shape

__all__ = ["read_colors"]

Color = tuple[int, int, int]
_SHOWN = 8


def read_colors(
    path: Path,
    image_shape: tuple[int, int],
    colors: Mapping[str, Color],
    *,
    split_objects: bool = False,
) -> tuple[Shape, ...]:
    """Read the classes of an image.

    Args:
        path: of the picture; an alpha channel is not looked at.
        image_shape: (y, x) of the image.
        colors: by class name; ``_background_`` is black unless given, ``__ignore__`` may be named.
        split_objects: each connected part is an object (8 neighbours); else a class is one.

    Raises:
        InputError: for another size, a picture without 8-bit colours, or a colour without a name.
    """
    packed = _packed(path, image_shape)
    named = {_pack(rgb): name for name, rgb in ({BACKGROUND: (0, 0, 0)} | dict(colors)).items()}
    values, counts = np.unique(packed, return_counts=True)
    unknown = [(int(n), int(v)) for v, n in zip(values, counts, strict=True) if int(v) not in named]
    if unknown:
        unknown.sort(reverse=True)
        shown = ", ".join(f"#{v:06x} ({n / packed.size:.2%})" for n, v in unknown[:_SHOWN])
        more = f" and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
        raise InputError(
            f"{path} has colours without a name: {shown}{more}",
            hint="name them with --color NAME=#rrggbb; many colours mean soft edges or a JPEG: save"
            " it without smoothing, as PNG",
        )
    shapes = []
    for value in values.tolist():
        name = named[value]
        if name == BACKGROUND:
            continue
        for part in _parts(packed == value, split_objects=split_objects):
            shape = part.to_shape(name)
            if shape is not None:
                shapes.append(shape)
    return tuple(shapes)


def _parts(pixels: NDArray[np.bool_], *, split_objects: bool) -> list[Patch]:
    if not split_objects:
        whole = cropped(pixels)
        return [] if whole is None else [whole]
    from scipy import ndimage

    labelled: Any
    labelled, _ = ndimage.label(pixels, structure=np.ones((3, 3)))  # type: ignore[misc]
    parts = []
    for number, place in enumerate(ndimage.find_objects(labelled), start=1):
        start = (int(place[0].start), int(place[1].start))
        parts.append(Patch(start, labelled[place] == number))
    return parts


def _packed(path: Path, image_shape: tuple[int, int]) -> NDArray[np.int32]:
    """Colours as 0xRRGGBB, (y, x)."""
    if path.suffix.lower() == ".png":
        from PIL import Image

        # A palette picture holds its colours beside its pixels.
        with Image.open(path) as picture:
            if picture.mode in ("P", "1", "L", "LA", "RGB", "RGBA"):
                data = np.asarray(picture.convert("RGB"))
                return _checked(path, data, image_shape)
    volume = open_volume(path)
    data = volume.load()
    data = np.moveaxis(data, 0, -1) if "c" in volume.axes else np.stack([data] * 3, axis=-1)
    if data.dtype != np.uint8 or data.ndim != 3 or data.shape[-1] not in (3, 4):
        raise InputError(f"{path} is no picture with 8-bit colours", hint="save it as an RGB PNG")
    return _checked(path, data[..., :3], image_shape)


def _checked(path: Path, data: NDArray[Any], image_shape: tuple[int, int]) -> NDArray[np.int32]:
    if data.shape[:2] != image_shape:
        raise InputError(
            f"{path} has {data.shape[0]} x {data.shape[1]} pixels (y, x), its image"
            f" {image_shape[0]} x {image_shape[1]}",
            hint="nothing is resized; bring back the picture of the image's size",
        )
    wide = data.astype(np.int32)
    return wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]


def _pack(rgb: Color) -> int:
    return rgb[0] << 16 | rgb[1] << 8 | rgb[2]
