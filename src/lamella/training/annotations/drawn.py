"""An image file and the shapes that people drew on it in some program."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lamella.core.errors import InputError
from lamella.io.format import open_volume

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lamella.training.annotations.shape import Shape

__all__ = ["DrawnImage", "image_shape_of"]

_ORIENTATION = 0x0112


@dataclass(frozen=True, slots=True)
class DrawnImage:
    """An image with shapes; see :class:`lamella.training.annotations.writer.Drawn`.

    Attributes:
        path: the image.
        shapes: in the order of drawing, in pixels of the upright image.
        image_shape: (y, x) of the upright image.
        is_upright: False where it is stored turned and its EXIF data say how.
    """

    path: Path
    shapes: tuple[Shape, ...]
    image_shape: tuple[int, int]
    is_upright: bool = True

    @property
    def image_path(self) -> Path | None:
        """The image."""
        return self.path

    def load_image(self) -> NDArray[Any]:
        """Return the upright image, (y, x) or (y, x, samples)."""
        if not self.is_upright:
            from PIL import Image, ImageOps

            with Image.open(self.path) as image:
                return np.asarray(ImageOps.exif_transpose(image))
        volume = open_volume(self.path)
        data = volume.load()
        return np.moveaxis(data, 0, -1) if "c" in volume.axes else data


def image_shape_of(path: Path) -> tuple[tuple[int, int], bool]:
    """Size of an image, upright, and whether it is stored so.

    Raises:
        LamellaError: when it cannot be read, or is no 2-D image.
    """
    if path.suffix.lower() in (".jpg", ".jpeg"):
        from PIL import Image

        with Image.open(path) as image:
            orientation = image.getexif().get(_ORIENTATION, 1)
            width, height = image.size
        if orientation in (5, 6, 7, 8):
            width, height = height, width
        return (height, width), orientation == 1
    volume = open_volume(path)
    spatial = volume.spatial_shape
    if "t" in volume.axes or (len(spatial) == 3 and spatial[0] != 1):
        raise InputError(
            f"{path} has the axes {volume.axes}; drawings are converted for 2-D images",
            hint="write the slices that were drawn on as images of their own",
        )
    return (spatial[-2], spatial[-1]), True
