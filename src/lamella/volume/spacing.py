"""Distances between voxel centres, with their unit, in the order (z, y, x).

Units inside Lamella are nm, µm (written ``um``) and mm; ``voxel`` says that nobody calibrated the
image. Ångström and the rest exist only at the edge, in :mod:`lamella.io`.

Examples:
    >>> spacing = Spacing((50.0, 4.6, 4.6), "nm")
    >>> spacing.to("um").values
    (0.05, 0.0046, 0.0046)
    >>> Spacing.parse("2,1,1", "um").anisotropy
    2.0
"""

import math
import re
from dataclasses import dataclass
from typing import Literal, get_args

from lamella.core.errors import GeometryError

__all__ = ["UNITS", "Size", "Spacing", "Unit", "convert_length", "parse_unit"]

Unit = Literal["nm", "um", "mm", "voxel"]
UNITS: tuple[Unit, ...] = get_args(Unit)

_NUMBER = r"([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)"
# Powers of ten of a metre: exact conversion by one multiplication or one division.
_EXPONENT: dict[str, int] = {"nm": -9, "um": -6, "mm": -3}
_ALIASES: dict[str, tuple[Unit, float]] = {
    "nm": ("nm", 1.0),
    "nanometer": ("nm", 1.0),
    "nanometre": ("nm", 1.0),
    "a": ("nm", 0.1),
    "å": ("nm", 0.1),
    "angstrom": ("nm", 0.1),
    "ångström": ("nm", 0.1),
    "pm": ("nm", 1e-3),
    "picometer": ("nm", 1e-3),
    "um": ("um", 1.0),
    "µm": ("um", 1.0),
    "μm": ("um", 1.0),
    "micron": ("um", 1.0),
    "microns": ("um", 1.0),
    "micrometer": ("um", 1.0),
    "micrometre": ("um", 1.0),
    "mm": ("mm", 1.0),
    "millimeter": ("mm", 1.0),
    "millimetre": ("mm", 1.0),
    "cm": ("mm", 10.0),
    "centimeter": ("mm", 10.0),
    "m": ("mm", 1e3),
    "meter": ("mm", 1e3),
    "inch": ("mm", 25.4),
    "voxel": ("voxel", 1.0),
    "pixel": ("voxel", 1.0),
    "px": ("voxel", 1.0),
    "": ("voxel", 1.0),
}


def parse_unit(text: str) -> tuple[Unit, float]:
    """A unit as people and files write it → Lamella's unit and the factor to reach it.

    Examples:
        >>> parse_unit("angstrom"), parse_unit("µm")
        (('nm', 0.1), ('um', 1.0))

    Raises:
        GeometryError: for an unknown word.
    """
    try:
        return _ALIASES[text.strip().lower()]
    except KeyError:
        raise GeometryError(
            f"unknown unit of length {text!r}", hint="use nm, um, mm, angstrom or voxel"
        ) from None


def convert_length(value: float, unit: Unit, to: Unit) -> float:
    """A length in another unit.

    Raises:
        GeometryError: between ``voxel`` and a physical unit.
    """
    if unit == to:
        return value
    if "voxel" in (unit, to):
        raise GeometryError(
            f"a length in {unit} cannot be expressed in {to}: the image has no known spacing",
            hint="give the spacing, for example --spacing 10,5,5 --unit nm",
        )
    shift = _EXPONENT[unit] - _EXPONENT[to]
    return value * 10.0**shift if shift >= 0 else value / 10.0**-shift


@dataclass(frozen=True, slots=True)
class Spacing:
    """Centre-to-centre distance per spatial axis, in the order (z, y, x) or (y, x), in ``unit``."""

    values: tuple[float, ...]
    unit: Unit

    def __post_init__(self) -> None:
        if len(self.values) not in (2, 3):
            raise GeometryError(
                f"spacing has {len(self.values)} values, expected 2 (y, x) or 3 (z, y, x)"
            )
        if self.unit not in UNITS:
            raise GeometryError(f"unknown unit {self.unit!r}", hint=f"use one of {UNITS}")
        if not all(math.isfinite(value) and value > 0 for value in self.values):
            raise GeometryError(
                f"spacing {self.values} must be positive and finite along every axis",
                hint="set it with --spacing z,y,x --unit nm",
            )

    @classmethod
    def parse(cls, text: str, unit: str | None = None) -> "Spacing":
        """Spacing from ``"4"`` (isotropic 3-D), ``"4,2,2"`` or ``"4,2,2nm"``.

        Raises:
            GeometryError: when the text is no list of positive numbers.
        """
        match = re.fullmatch(r"\s*([0-9eE+\-.,\s]+?)\s*([a-zA-Zµμåö]*)\s*", text)
        word = (match.group(2) or unit or "") if match else ""
        try:
            values = tuple(float(part) for part in match.group(1).split(",")) if match else ()
        except ValueError:
            values = ()
        if len(values) not in (1, 2, 3):
            raise GeometryError(
                f"cannot read spacing {text!r}", hint="write z,y,x as in --spacing 10,5,5 --unit nm"
            )
        known, factor = parse_unit(word)
        if len(values) == 1:
            values = values * 3
        return cls(tuple(value * factor for value in values), known)

    @property
    def is_calibrated(self) -> bool:
        """Whether the unit is physical."""
        return self.unit != "voxel"

    @property
    def voxel_volume(self) -> float:
        """Volume of a voxel (area of a pixel in 2-D), in unit³ (unit²)."""
        return math.prod(self.values)

    @property
    def anisotropy(self) -> float:
        """Largest over smallest spacing, ≥ 1."""
        return max(self.values) / min(self.values)

    def to(self, unit: Unit) -> "Spacing":
        """The same distances in another unit.

        Raises:
            GeometryError: between ``voxel`` and a physical unit.
        """
        return Spacing(tuple(convert_length(v, self.unit, unit) for v in self.values), unit)

    def __str__(self) -> str:
        return " x ".join(f"{value:.6g}" for value in self.values) + f" {self.unit}"


@dataclass(frozen=True, slots=True)
class Size:
    """An amount of space to compare objects with: voxels, or a volume/area in a length unit.

    Examples:
        >>> Size.parse("200").to_voxels(Spacing((2.0, 1.0, 1.0), "um"))
        200.0
        >>> Size.parse("500nm3").to_voxels(Spacing((10.0, 5.0, 5.0), "nm"))
        2.0
    """

    value: float
    unit: Unit = "voxel"

    @classmethod
    def parse(cls, text: str) -> "Size":
        """Size from ``"200"`` (voxels), ``"500nm3"``, ``"0.2 um^3"``, ``"3um2"`` (areas in 2-D).

        Raises:
            GeometryError: for anything else, and for negative sizes.
        """
        match = re.fullmatch(rf"\s*{_NUMBER}\s*([a-zA-Zµμå]*)\s*(?:\^?[23]|²|³)?\s*", text)
        try:
            value = float(match.group(1)) if match else math.nan
        except ValueError:
            value = math.nan
        if match is None or not math.isfinite(value):
            raise GeometryError(
                f"cannot read size {text!r}", hint="write 200 (voxels), 500nm3 or 0.2um3"
            )
        word = match.group(2).lower()
        unit, factor = parse_unit("" if word in ("voxels", "vox", "pixels") else word)
        # The factor (0.1 for Å) is per length; volumes in Å³ are rare enough to refuse.
        if factor != 1.0:
            raise GeometryError(f"size unit {match.group(2)!r} is not supported", hint="use nm3")
        return cls(value, unit)

    def to_voxels(self, spacing: Spacing) -> float:
        """How many voxels of ``spacing`` make up this size.

        Raises:
            GeometryError: when the size is physical and the image is not calibrated.
        """
        if self.unit == "voxel":
            return self.value
        return self.value / spacing.to(self.unit).voxel_volume

    def __str__(self) -> str:
        return f"{self.value:g} voxels" if self.unit == "voxel" else f"{self.value:g} {self.unit}³"
