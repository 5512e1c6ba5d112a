"""Single pictures: PNG, JPEG and BMP, with what stands beside them about their size.

A picture's header is read without its pixels. Bilevel pictures become 0 and 255, palettes keep
their indices (label images are often stored so), colors become channels.
"""

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamella.core.errors import GeometryError, UnreadableFileError
from lamella.io.damage import damage_named
from lamella.io.raster_png import has_end
from lamella.io.record import RECORD_KEY, parse_record
from lamella.io.tiff_spacing import Calibration
from lamella.volume import Note
from lamella.volume.spacing import parse_unit

__all__ = ["Picture", "beside", "decode", "look_at"]

_SAMPLES = {"1": 1, "L": 1, "P": 1, "I;16": 1, "I;16B": 1, "I": 1, "F": 1, "LA": 2, "RGB": 3}
_SAMPLES |= {"RGBA": 4, "CMYK": 4, "YCbCr": 3, "LAB": 3, "RGBX": 4, "La": 2, "RGBa": 4, "PA": 2}
_DTYPES = {"I;16": "uint16", "I;16B": "uint16", "I": "int32", "F": "float32"}
# A resolution for screens and printers says nothing about a specimen.
_SMALLEST_DPI = 1000.0
_pixel_limit = threading.Lock()


@dataclass(frozen=True, slots=True)
class Picture:
    """What a picture's header says.

    Args:
        path: the file.
        shape: (y, x), or (y, x, samples).
        dtype: of its values.
        mode: Pillow's name of its kind.
        dots_per_inch: resolution x, y; zeros without one.
        record: Lamella's record inside it.
    """

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    mode: str
    dots_per_inch: tuple[float, float] = (0.0, 0.0)
    record: dict[str, Any] | None = field(default=None)

    @property
    def notes(self) -> tuple[Note, ...]:
        """What its kind does to the values."""
        if self.mode == "P":
            return (Note("palette", "a color palette is ignored; values are its indices"),)
        if self.mode == "1":
            return (Note("bilevel", "one bit a pixel, read as 0 and 255"),)
        if len(self.shape) == 3:
            message = f"{self.mode} color read as {self.shape[2]} channels"
            return (Note("color_samples", message),)
        return ()

    @property
    def calibration(self) -> Calibration:
        """Spacing out of the resolution, where it can be a specimen's."""
        x, y = self.dots_per_inch
        if min(x, y) < _SMALLEST_DPI:
            return Calibration()
        lengths = {"x": float(f"{25_400.0 / x:.5g}"), "y": float(f"{25_400.0 / y:.5g}")}
        return Calibration(lengths, "um")


def look_at(path: Path) -> Picture:
    """Read a picture's header.

    Raises:
        UnreadableFileError: when it is damaged.
    """
    with damage_named(path, "picture"), _opened(path) as image:
        mode, (columns, rows) = image.mode, image.size
        bits = _png_bits(path)
        if image.format == "PNG" and not has_end(path):
            raise UnreadableFileError(
                f"{path.name} is truncated: the end of the PNG is missing",
                hint="copy or download the file again",
            )
        record = image.info.get(RECORD_KEY) if isinstance(image.info, dict) else None
        dots = image.info.get("dpi", (0.0, 0.0))
    samples = _SAMPLES.get(mode)
    if samples is None or rows < 1 or columns < 1:
        raise UnreadableFileError(
            f"{path.name} is a picture of an unsupported kind ({mode})",
            hint="save it as 8- or 16-bit grey or RGB, for example with ImageJ",
        )
    dtype = np.dtype(_DTYPES.get(mode, "uint8"))
    if bits == 16:
        # Pillow would halve 16-bit colors; they are decoded by another library.
        dtype = np.dtype("uint16")
        samples = _png_samples(path)
    shape = (rows, columns) if samples == 1 else (rows, columns, samples)
    resolution = (float(dots[0]), float(dots[1])) if len(dots) == 2 else (0.0, 0.0)
    return Picture(path, shape, dtype, mode, resolution, parse_record(record) if record else None)


def decode(picture: Picture) -> NDArray[Any]:
    """The pixels, as ``picture.shape`` and ``picture.dtype`` say.

    Raises:
        UnreadableFileError: when they are damaged, or not what the header said.
    """
    with damage_named(picture.path, "picture"):
        if picture.dtype == np.uint16 and picture.path.suffix.lower() != ".bmp":
            import imagecodecs

            content = picture.path.read_bytes()
            if content[:4] == b"\x89PNG":
                return _checked(picture, imagecodecs.png_decode(content))
        with _opened(picture.path) as image:
            grey = image.convert("L") if image.mode == "1" else image
            return _checked(picture, np.asarray(grey))


def beside(path: Path) -> Calibration:
    """Spacing out of a JSON file beside a picture, as BIDS microscopy has it.

    The file has the picture's name, or a part of its entities and its last word
    (``sub-1_SEM.json`` is about ``sub-1_sample-2_SEM.png``): BIDS' inheritance.
    """
    parts = path.name.split(".")[0].split("_")
    best: tuple[int, Path, dict[str, Any]] | None = None
    # Not glob: of the thousands of pictures in a folder each asks for itself.
    names = (name for name in os.listdir(path.parent) if name.endswith(".json"))  # noqa: PTH208
    for found in sorted(path.parent / name for name in names):
        own = found.name.split(".")[0].split("_")
        if own[-1] != parts[-1] or not set(own) <= set(parts):
            continue
        content = _json(found)
        if content is not None and "PixelSize" in content and (best is None or len(own) > best[0]):
            best = (len(own), found, content)
    if best is None:
        return Calibration()
    _, found, content = best
    try:
        unit, factor = parse_unit(str(content.get("PixelSizeUnits", "um")))
        values = [float(v) * factor for v in content["PixelSize"]]
    except (GeometryError, TypeError, ValueError):
        return Calibration()
    if len(values) not in (2, 3) or unit == "voxel" or not all(0 < v < 1e9 for v in values):
        return Calibration()
    note = Note("spacing_from_sidecar", f"spacing from {found.name} beside the picture")
    return Calibration(dict(zip("xyz", values, strict=False)), unit, (note,))


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open with Pillow, without its limit of 179 million pixels: micrographs are larger."""
    from PIL import Image

    with _pixel_limit:
        limit = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = None
        try:
            image = Image.open(path)
        finally:
            Image.MAX_IMAGE_PIXELS = limit
    with image:
        yield image


def _checked(picture: Picture, pixels: NDArray[Any]) -> NDArray[Any]:
    if pixels.shape != picture.shape:
        raise UnreadableFileError(
            f"{picture.path.name} changed while it was read: {pixels.shape}, not {picture.shape}",
            hint="open it again",
        )
    return pixels.astype(picture.dtype, copy=False)


def _png_bits(path: Path) -> int:
    with path.open("rb") as stream:
        head = stream.read(26)
    return head[24] if head[:4] == b"\x89PNG" and len(head) == 26 else 8


def _png_samples(path: Path) -> int:
    with path.open("rb") as stream:
        head = stream.read(26)
    return {0: 1, 2: 3, 4: 2, 6: 4}.get(head[25], 1)


def _json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None
