"""Spacing and names out of what programs write into TIFF files.

In this order: OME-XML, ImageJ's description, the headers of scanning electron microscopes and of
LSM files, the resolution tags. Resolutions meant for printers (72, 96, 150, 300 dots an inch) say
nothing about a specimen and are passed over with a note.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from xml.etree import ElementTree

from lamella.core.errors import GeometryError
from lamella.volume import Note, Unit
from lamella.volume.spacing import convert_length, parse_unit

__all__ = ["Calibration", "OmeImage", "parse_ome", "read_calibration"]

_PRINTER_DPI = frozenset({72.0, 96.0, 100.0, 150.0, 180.0, 200.0, 240.0, 300.0, 350.0, 600.0})
_CENTIMETRE = 3
_INCH = 2


@dataclass(frozen=True, slots=True)
class Calibration:
    """Spacing per letter (z, y, x) in ``unit``; empty where the file says nothing."""

    spacing: Mapping[str, float] = field(default_factory=dict[str, float])
    unit: Unit = "voxel"
    notes: tuple[Note, ...] = ()

    def values(self, letters: tuple[str, ...]) -> tuple[tuple[float, ...], Unit, tuple[Note, ...]]:
        """Spacing, unit and notes for the spatial axes of a volume."""
        if "x" not in self.spacing:
            missing = Note("spacing_missing", "the file gives no spacing; set it with --spacing")
            return (1.0,) * len(letters), "voxel", (*self.notes, missing)
        x = self.spacing["x"]
        known = {"x": x, "y": self.spacing.get("y", x)}
        notes = self.notes
        if "z" in letters:
            known["z"] = self.spacing.get("z", x)
            if "z" not in self.spacing:
                message = "the file gives no spacing along z; taken equal to x"
                notes = (*notes, Note("spacing_suspicious", message))
        return tuple(known[letter] for letter in letters), self.unit, notes


@dataclass(frozen=True, slots=True)
class OmeImage:
    """What OME-XML says about one image."""

    name: str
    calibration: Calibration
    channel_names: tuple[str, ...]
    annotations: Mapping[str, str]


def read_calibration(tiff: Any, page: Any) -> Calibration:
    """Spacing of a file that is no OME-TIFF.

    Args:
        tiff: an open ``tifffile.TiffFile``.
        page: first page of the series.
    """
    if tiff.is_imagej:
        return _imagej(tiff.imagej_metadata or {}, page)
    for found in (_lsm(tiff), _fei(tiff), _zeiss_sem(tiff)):
        if found is not None:
            return found
    return _resolution_tags(page)


def parse_ome(xml: str) -> tuple[OmeImage, ...]:
    """The images that an OME-XML text describes.

    Raises:
        xml.etree.ElementTree.ParseError: when it is no XML.
    """
    root = ElementTree.fromstring(xml)
    annotations = {
        entry.get("K", ""): entry.text or "" for entry in root.iter() if _tag(entry) == "M"
    }
    images = (node for node in root.iter() if _tag(node) == "Image")
    return tuple(_ome_image(node, annotations) for node in images)


def _ome_image(node: ElementTree.Element, annotations: Mapping[str, str]) -> OmeImage:
    pixels = next((child for child in node if _tag(child) == "Pixels"), None)
    if pixels is None:
        return OmeImage(node.get("Name", ""), Calibration(), (), annotations)
    channels = [child for child in pixels if _tag(child) == "Channel"]
    names = tuple(child.get("Name", "") for child in channels)
    return OmeImage(
        node.get("Name", ""),
        _ome_calibration(pixels),
        names if any(names) else (),
        annotations,
    )


def _ome_calibration(pixels: ElementTree.Element) -> Calibration:
    lengths: dict[str, tuple[float, Unit]] = {}
    notes: list[Note] = []
    for letter in "xyz":
        text = pixels.get(f"PhysicalSize{letter.upper()}")
        if text is None:
            continue
        word = pixels.get(f"PhysicalSize{letter.upper()}Unit", "µm")
        try:
            unit, factor = parse_unit(word)
            value = float(text) * factor
        except (GeometryError, ValueError):
            notes.append(Note("spacing_unreadable", f"PhysicalSize{letter.upper()} {text} {word}"))
            continue
        if math.isfinite(value) and value > 0 and unit != "voxel":
            lengths[letter] = (value, unit)
    if "x" not in lengths:
        return Calibration(notes=tuple(notes))
    unit = lengths["x"][1]
    spacing = {letter: convert_length(value, was, unit) for letter, (value, was) in lengths.items()}
    return Calibration(spacing, unit, tuple(notes))


def _imagej(metadata: Mapping[str, Any], page: Any) -> Calibration:
    word = str(metadata.get("unit", "")).replace("\\u00B5", "µ").replace("\\u00b5", "µ")
    try:
        unit, factor = parse_unit(word)
    except GeometryError:
        message = f"the spacing's unit {word!r} is unknown; set the spacing with --spacing"
        return Calibration(notes=(Note("spacing_unreadable", message),))
    if unit == "voxel":
        return Calibration()
    spacing: dict[str, float] = {}
    for letter, tag in (("x", "XResolution"), ("y", "YResolution")):
        length = _per_unit(page, tag)
        if length is not None:
            spacing[letter] = length * factor
    notes: tuple[Note, ...] = ()
    depth = _number(metadata.get("spacing"))
    if depth is not None and depth < 0:
        notes = (Note("negative_z", f"spacing {depth:g} along z is negative; its size is used"),)
    if depth:
        spacing["z"] = abs(depth) * factor
    elif spacing:
        # ImageJ leaves a depth of exactly 1 unit out of its description.
        spacing["z"] = factor
        if not math.isclose(spacing.get("x", factor), factor, rel_tol=1e-6):
            message = f"no spacing along z: 1 {word}, as ImageJ takes it"
            notes = (*notes, Note("spacing_suspicious", message))
    return Calibration(spacing, unit, notes)


def _lsm(tiff: Any) -> Calibration | None:
    if not tiff.is_lsm:
        return None
    metadata = tiff.lsm_metadata or {}
    metres = {a: _number(metadata.get(f"VoxelSize{a.upper()}")) for a in "xyz"}
    spacing = {a: _round(v * 1e6) for a, v in metres.items() if v and 0 < v < 1}
    return Calibration(spacing, "um") if "x" in spacing else None


def _fei(tiff: Any) -> Calibration | None:
    if not tiff.is_fei:
        return None
    scan = (tiff.fei_metadata or {}).get("Scan", {})
    metres = {"x": _number(scan.get("PixelWidth")), "y": _number(scan.get("PixelHeight"))}
    spacing = {a: _round(v * 1e9) for a, v in metres.items() if v and 0 < v < 1}
    return Calibration(spacing, "nm") if "x" in spacing else None


def _zeiss_sem(tiff: Any) -> Calibration | None:
    if not tiff.is_sem:
        return None
    entry = (tiff.sem_metadata or {}).get("ap_image_pixel_size", ())
    value = _number(entry[1]) if len(entry) > 2 else None
    if value is None or value <= 0:
        return None
    try:
        unit, factor = parse_unit(str(entry[2]))
    except GeometryError:
        return None
    return Calibration({"x": value * factor, "y": value * factor}, unit)


def _resolution_tags(page: Any) -> Calibration:
    kind = page.tags.get("ResolutionUnit")
    unit = int(kind.value) if kind is not None else _INCH
    lengths = {a: _per_unit(page, f"{a.upper()}Resolution") for a in "xy"}
    x, y = lengths["x"], lengths["y"]
    if x is None or y is None or unit not in (_INCH, _CENTIMETRE):
        return Calibration()
    if unit == _INCH and round(1.0 / x, 3) in _PRINTER_DPI:
        message = f"a resolution of {1.0 / x:g} dots an inch is a printer's; not used as spacing"
        return Calibration(notes=(Note("resolution_for_print", message),))
    micrometres = 25_400.0 if unit == _INCH else 10_000.0
    return Calibration({"x": _round(x * micrometres), "y": _round(y * micrometres)}, "um")


def _per_unit(page: Any, tag: str) -> float | None:
    """Length of a pixel in the tag's unit: the inverse of a rational number, as it was meant."""
    found = page.tags.get(tag)
    if found is None or not isinstance(found.value, tuple) or len(found.value) != 2:
        return None
    pixels, units = (int(n) for n in found.value)
    if pixels <= 0 or units <= 0:
        return None
    exact = units / pixels
    # Rounding to whole numerators: half a step, and no more than six digits' worth.
    step = min(0.51, 1e-6 * pixels)
    for digits in range(1, 12):
        short = float(f"{exact:.{digits}g}")
        if short > 0 and abs(units / short - pixels) <= step:
            return short
    return exact


def _round(value: float) -> float:
    return float(f"{value:.9g}")


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _tag(node: ElementTree.Element) -> str:
    return node.tag.rsplit("}", 1)[-1]
