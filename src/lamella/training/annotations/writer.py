"""Writes a data set out of drawn images, in the layout that was asked for.

::

    pairs   images/NAME.EXT    labels/NAME.tif      (instances/NAME.tif)     classes.json
                                                    (known/NAME.tif: 0 where instances are ignored)
    voc     JPEGImages/ SegmentationClass/ SegmentationClassNpy/
            (SegmentationObject/ SegmentationObjectNpy/)                     class_names.txt
    coco    JPEGImages/ annotations.json
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from lamella.core.errors import InputError
from lamella.io.format import SaveOptions, open_volume, save_volume
from lamella.training.annotations.classes import IGNORE, ClassList
from lamella.training.annotations.coco import coco_annotation, coco_document
from lamella.training.annotations.rasterise import Drawing, gather_objects, rasterise
from lamella.volume.labels import LabelClass, Labels

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lamella.training.annotations.shape import Shape

__all__ = ["IGNORE_VALUE", "ConvertOptions", "DataSetWriter", "Drawn", "Layout"]

Layout = Literal["pairs", "voc", "coco"]
IGNORE_VALUE = 255
"""Value of ignored pixels in label images of up to 254 classes; 65535 beyond."""


class Drawn(Protocol):
    """An image and the shapes that people drew on it."""

    @property
    def path(self) -> Path:
        """File whose place below the source and whose name the results get."""
        ...

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """In the order of drawing."""
        ...

    @property
    def image_path(self) -> Path | None:
        """The image; None where it lies inside another file."""
        ...

    @property
    def image_shape(self) -> tuple[int, int]:
        """(y, x) of the upright image."""
        ...

    @property
    def is_upright(self) -> bool:
        """False where the image is stored turned."""
        ...

    def load_image(self) -> NDArray[Any]:
        """The upright image, (y, x) or (y, x, samples)."""
        ...


@dataclass(frozen=True, slots=True)
class ConvertOptions:
    """What a data set is to look like.

    Attributes:
        layout: how files are laid out.
        classes: names and values; None takes the names that occur, in alphabetical order.
        has_instances: also write which object each pixel belongs to.
        overwrite: replace a data set that is there.
        skip_bad: leave out files that cannot be converted instead of refusing them all.
    """

    layout: Layout = "pairs"
    classes: ClassList | None = None
    has_instances: bool = False
    overwrite: bool = False
    skip_bad: bool = False


class DataSetWriter:
    """Writes one image after the other.

    Args:
        folder: to write into.
        root: folder that names are taken from.
        known: names and values of classes.
        options: layout.
        has_ignored: whether any image has pixels to be ignored.
    """

    def __init__(
        self,
        folder: Path,
        root: Path,
        known: ClassList,
        options: ConvertOptions,
        *,
        has_ignored: bool = False,
    ) -> None:
        self._folder = folder
        self._root = root
        self._known = known
        self._options = options
        self._has_ignored = has_ignored
        self._names: set[str] = set()
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []
        self.n_objects = dict.fromkeys(known.names[1:], 0)
        self.n_pixels = dict.fromkeys((*known.names, IGNORE), 0)
        writers: dict[Layout, Callable[[Drawn, str, Drawing], None]] = {
            "pairs": self._add_pair,
            "voc": self._add_voc,
            "coco": self._add_coco,
        }
        self._write = writers[options.layout]

    def add(self, file: Drawn) -> None:
        """Write one image with its labels."""
        drawing = rasterise(file.shapes, file.image_shape, self._known)
        for found in gather_objects(file.shapes):
            if found.label in self.n_objects:
                self.n_objects[found.label] += 1
        counts = np.bincount(drawing.classes.ravel() + 1, minlength=len(self._known.names) + 1)
        for name, count in zip((IGNORE, *self._known.names), counts.tolist(), strict=True):
            self.n_pixels[name] += count
        self._write(file, self._name(file), drawing)

    def finish(self) -> None:
        """Write what belongs to the whole data set."""
        names = "".join(f"{name}\n" for name in self._known.names)
        if self._options.layout == "voc":
            self._path("class_names.txt").write_text(names, encoding="utf-8")
        elif self._options.layout == "coco":
            document = coco_document(self._images, self._annotations, self._known)
            self._path("annotations.json").write_text(json.dumps(document), encoding="utf-8")
        else:
            document = {
                "classes": dict(enumerate(self._known.names)),
                "ignore_value": self._ignore_value,
                "n_objects": self.n_objects,
                "n_pixels": self.n_pixels,
            }
            text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
            self._path("classes.json").write_text(text, encoding="utf-8")

    # -- layouts

    def _add_pair(self, file: Drawn, name: str, drawing: Drawing) -> None:
        suffix = "" if file.image_path is None else file.image_path.suffix
        image = self._path("images", name + (suffix if file.is_upright and suffix else ".png"))
        self._copy_image(file, image)
        volume = open_volume(image)
        dtype = np.uint8 if self._ignore_value == IGNORE_VALUE else np.uint16
        classes = np.where(drawing.classes < 0, self._ignore_value, drawing.classes).astype(dtype)
        kinds = tuple(
            LabelClass(value, text) for value, text in enumerate(self._known.names) if value
        )
        self._save(classes, self._path("labels", f"{name}.tif"), volume, kinds)
        if self._options.has_instances:
            path = self._path("instances", f"{name}.tif")
            self._save(_dense(drawing.objects), path, volume, (), is_instance=True)
            if self._has_ignored:
                # Ids have no value for it: 0 would teach that nothing is there.
                is_known = (drawing.classes >= 0).astype(np.uint8)
                self._save(is_known, self._path("known", f"{name}.tif"), volume, ())

    def _add_voc(self, file: Drawn, name: str, drawing: Drawing) -> None:
        self._copy_jpeg(file, self._path("JPEGImages", f"{name}.jpg"))
        kinds = [("Class", drawing.classes)]
        if self._options.has_instances:
            kinds.append(("Object", drawing.objects))
        for kind, values in kinds:
            np.save(self._path(f"Segmentation{kind}Npy", f"{name}.npy"), values)
            _save_palette(values, self._path(f"Segmentation{kind}", f"{name}.png"))

    def _add_coco(self, file: Drawn, name: str, drawing: Drawing) -> None:
        self._copy_jpeg(file, self._path("JPEGImages", f"{name}.jpg"))
        number = len(self._images)
        height, width = file.image_shape
        self._images.append(
            {"id": number, "file_name": f"JPEGImages/{name}.jpg", "height": height, "width": width}
        )
        for found in gather_objects(file.shapes):
            category = self._known.value(found.label)
            if category <= 0:
                continue
            annotation = coco_annotation(found, file.image_shape, category=category)
            if annotation is not None:
                ids = {"id": len(self._annotations), "image_id": number}
                self._annotations.append(ids | annotation)

    # -- files

    @property
    def _ignore_value(self) -> int:
        return IGNORE_VALUE if len(self._known.names) <= IGNORE_VALUE else 65535

    def _name(self, file: Drawn) -> str:
        """Path of a file below the source without its suffix; the case of letters is kept."""
        name = file.path.relative_to(self._root).with_suffix("").as_posix()
        if name.lower() in self._names:
            raise InputError(
                f"two files would be written as {name}", hint="rename one of the files"
            )
        self._names.add(name.lower())
        return name

    def _path(self, *parts: str) -> Path:
        path = self._folder.joinpath(*parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _copy_image(self, file: Drawn, path: Path) -> None:
        """The image as it is; upright and lossless where it was stored turned, or inside."""
        if file.image_path is not None and file.is_upright:
            shutil.copyfile(file.image_path, path)
            return
        from PIL import Image

        Image.fromarray(file.load_image()).save(path)

    def _copy_jpeg(self, file: Drawn, path: Path) -> None:
        is_jpeg = file.image_path is not None and file.image_path.suffix.lower() in (
            ".jpg",
            ".jpeg",
        )
        if file.image_path is not None and is_jpeg and file.is_upright:
            shutil.copyfile(file.image_path, path)
            return
        from PIL import Image

        image = file.load_image()
        if image.dtype != np.uint8:
            low, high = np.percentile(image, (0.1, 99.9))
            scaled = (image - low) / max(float(high - low), 1e-12)
            image = np.rint(255 * np.clip(scaled, 0, 1)).astype(np.uint8)
        Image.fromarray(image).convert("RGB").save(path, quality=95)

    def _save(
        self,
        values: NDArray[Any],
        path: Path,
        image: Any,
        kinds: tuple[LabelClass, ...],
        *,
        is_instance: bool = False,
    ) -> None:
        labels = Labels(
            data=values,
            axes=type(image.axes).parse("yx"),
            affine=image.affine,
            unit=image.unit,
            classes=kinds,
            is_instance=is_instance,
        )
        save_volume(labels, path, SaveOptions())


def _dense(objects: NDArray[np.int32]) -> NDArray[Any]:
    """Objects that can be seen, numbered 1..n."""
    values, inverse = np.unique(objects, return_inverse=True)
    if values[0] != 0:
        inverse = inverse + 1
    wide = inverse.reshape(objects.shape)
    return wide.astype(np.uint16 if int(wide.max()) <= 65535 else np.uint32)


def _save_palette(values: NDArray[np.int32], path: Path) -> None:
    """A PNG with the colours of PASCAL VOC; -1 becomes 255. More than 255 values: 16-bit grey."""
    from PIL import Image

    if int(values.max()) >= IGNORE_VALUE:
        Image.fromarray(np.where(values < 0, 65535, values).astype(np.uint16)).save(path)
        return
    picture = Image.fromarray(np.where(values < 0, IGNORE_VALUE, values).astype(np.uint8))
    picture.putpalette(_voc_palette())
    picture.save(path)


def _voc_palette() -> list[int]:
    """The colour of value v: its bits dealt to red, green and blue in turn, high bits first."""
    palette = []
    for value in range(256):
        color, rest = [0, 0, 0], value
        for bit in range(7, -1, -1):
            for channel in range(3):
                color[channel] |= (rest >> channel & 1) << bit
            rest >>= 3
        palette.extend(color)
    return palette
