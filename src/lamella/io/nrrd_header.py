"""NRRD headers: parsed, checked and turned into Lamella's terms.

Source: the NRRD format definition, teem.sourceforge.net/nrrd/format.html (NRRD0001..NRRD0005).
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lamella.core.errors import AxesError, GeometryError, InputError, UnreadableFileError
from lamella.io.frames import IDENTITY_XYZ, World, XyzGeometry, affine_from_xyz
from lamella.io.layout import Layout
from lamella.volume import Affine, Note
from lamella.volume.spacing import Unit, convert_length, parse_unit

__all__ = ["NrrdFields", "NrrdGeometry", "parse_fields", "parse_geometry", "stored_dtype"]

_TYPES = {
    "i1": ("signed char", "int8", "int8_t"),
    "u1": ("uchar", "unsigned char", "uint8", "uint8_t"),
    "i2": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
    "u2": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    "i4": ("int", "signed int", "int32", "int32_t"),
    "u4": ("uint", "unsigned int", "uint32", "uint32_t"),
    "i8": (
        "longlong", "long long", "long long int", "signed long long", "signed long long int",
        "int64", "int64_t",
    ),
    "u8": ("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"),
    "f4": ("float",),
    "f8": ("double",),
}  # fmt: skip
_BY_NAME = {name: code for code, names in _TYPES.items() for name in names}
_SPACES: dict[str, tuple[World, int]] = {
    "right-anterior-superior": ("RAS", 3),
    "ras": ("RAS", 3),
    "left-posterior-superior": ("LPS", 3),
    "lps": ("LPS", 3),
    # Left-handed RAS: its first component is negated before anything else sees it.
    "left-anterior-superior": ("RAS", 3),
    "las": ("RAS", 3),
    "scanner-xyz": ("xyz", 3),
    "3d-right-handed": ("xyz", 3),
    "3d-left-handed": ("xyz", 3),
}
_SPATIAL_KINDS = {"domain", "space"}
_TIME_KINDS = {"time"}
_FIELD = re.compile(r"^([^:=]+?)\s*:(?!=)\s*(.*)$")
_PAIR = re.compile(r"^(.+?):=(.*)$")
_VECTOR = re.compile(r"\(([^)]*)\)|(none)", re.IGNORECASE)
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True, slots=True)
class NrrdFields:
    """A header as it stands: field names in lower case, key/value pairs apart.

    Args:
        fields: ``field: value``.
        pairs: ``key:=value``.
        data_files: names after ``data file: LIST``.
        n_bytes: length of the header, the empty line that ends it included.
    """

    fields: Mapping[str, str]
    pairs: Mapping[str, str]
    data_files: tuple[str, ...]
    n_bytes: int

    def integer(self, name: str, default: int) -> int:
        """A whole number.

        Raises:
            UnreadableFileError: when it is none.
        """
        text = self.fields.get(name)
        try:
            return default if text is None else int(text)
        except ValueError:
            raise _bad(name, text, "a whole number") from None


@dataclass(frozen=True, slots=True)
class NrrdGeometry:
    """What the header says about the axes.

    Args:
        layout: stored axes, slowest first.
        affine: of the spatial axes.
        unit: of the affine.
        notes: odd things found.
    """

    layout: Layout
    affine: Affine
    unit: Unit
    notes: tuple[Note, ...]


def parse_fields(path: Path, head: bytes) -> NrrdFields:
    """Split a header into its fields.

    Args:
        path: for messages.
        head: the file's first bytes, all of the header among them.

    Raises:
        UnreadableFileError: for another magic, lines that are no fields, or missing fields.
    """
    if not re.match(rb"NRRD\d{4}\r?\n", head):
        raise UnreadableFileError(
            f"{path} does not begin with NRRD0001 to NRRD0005",
            hint="the file is damaged or no NRRD",
        )
    fields: dict[str, str] = {}
    pairs: dict[str, str] = {}
    data_files: list[str] = []
    at = head.index(b"\n") + 1
    while at < len(head):
        end = head.find(b"\n", at)
        line_bytes = head[at : len(head) if end < 0 else end]
        at = len(head) if end < 0 else end + 1
        line = line_bytes.decode("utf-8", "replace").strip("\r")
        if not line.strip():
            break
        if line.startswith("#"):
            continue
        if fields.get("data file", "").upper().startswith("LIST"):
            data_files.append(line.strip())
            continue
        _take_line(path, line, fields, pairs)
    for name in ("type", "dimension", "sizes", "encoding"):
        if name not in fields:
            raise UnreadableFileError(
                f"{path} has no field {name!r} in its NRRD header",
                hint="the header is damaged or cut off; copy or download the file again",
            )
    return NrrdFields(fields, pairs, tuple(data_files), at)


def stored_dtype(header: NrrdFields) -> np.dtype[Any]:
    """The type of the stored numbers, with the file's byte order.

    Raises:
        InputError: for blocks and unknown types.
    """
    name = header.fields["type"].strip().lower()
    if name not in _BY_NAME:
        raise InputError(
            f"NRRD type {name!r} is no voxel type that can be read",
            hint="integers of 8 to 64 bits, float and double are",
        )
    endian = header.fields.get("endian", "little").strip().lower()
    if endian not in ("little", "big"):
        raise _bad("endian", endian, "little or big")
    return np.dtype(_BY_NAME[name]).newbyteorder("<" if endian == "little" else ">")


def parse_geometry(header: NrrdFields, *, axes: str | None = None) -> NrrdGeometry:
    """Axes, spacing, origin and direction.

    Args:
        header: the fields.
        axes: what the user says the axes are.

    Raises:
        UnreadableFileError: for fields of wrong length.
        AxesError: for files without two or three spatial axes.
        GeometryError: for a grid that is singular or not finite.
    """
    sizes = _sizes(header)
    n = len(sizes)
    notes: list[Note] = []
    vectors = _vectors(header, n)
    letters = _letters(header, vectors, n, axes)
    spatial = [axis for axis in range(n) if letters[axis] in ("x", "y", "z")]
    layout = Layout(tuple(reversed(sizes)), tuple(reversed(letters)))
    if vectors is not None:
        affine, unit = _from_vectors(header, [vectors[axis] for axis in spatial], notes)
    else:
        affine, unit = _from_spacings(header, spatial, notes)
    if "measurement frame" in header.fields:
        notes.append(Note("measurement_frame_ignored", "the measurement frame is not used"))
    if not affine.is_orthogonal:
        notes.append(Note("sheared", "the axes do not stand at right angles"))
    return NrrdGeometry(layout.renamed(axes), affine, unit, tuple(notes))


def _take_line(path: Path, line: str, fields: dict[str, str], pairs: dict[str, str]) -> None:
    pair = _PAIR.match(line)
    field = _FIELD.match(line)
    if pair and not (field and len(field.group(1)) < len(pair.group(1))):
        pairs[pair.group(1)] = _unescape(pair.group(2))
    elif field:
        name = field.group(1).strip().lower()
        name = {"datafile": "data file", "byteskip": "byte skip", "lineskip": "line skip"}.get(
            name, name
        )
        if name in fields:
            raise UnreadableFileError(
                f"{path} gives the field {name!r} twice", hint="the header is damaged"
            )
        fields[name] = field.group(2).strip()
    else:
        raise UnreadableFileError(
            f"{path} has a header line that is no field: {line[:60]!r}",
            hint="the header is damaged; copy or download the file again",
        )


def _unescape(text: str) -> str:
    return re.sub(r"\\(.)", lambda m: {"n": "\n"}.get(m.group(1), m.group(1)), text.strip())


def _sizes(header: NrrdFields) -> list[int]:
    dimension = header.integer("dimension", 0)
    text = header.fields["sizes"]
    try:
        sizes = [int(word) for word in text.split()]
    except ValueError:
        raise _bad("sizes", text, "whole numbers") from None
    if not 1 <= dimension <= 16 or len(sizes) != dimension or min(sizes) < 1:
        raise UnreadableFileError(
            f"sizes {text!r} do not fit dimension {dimension}: expected that many positive numbers",
            hint="the header is damaged",
        )
    return sizes


def _vectors(header: NrrdFields, n: int) -> list[tuple[float, ...] | None] | None:
    text = header.fields.get("space directions")
    if text is None:
        return None
    found = [None if m.group(2) else _numbers(m.group(1), text) for m in _VECTOR.finditer(text)]
    if len(found) != n:
        raise UnreadableFileError(
            f"space directions {text!r} hold {len(found)} vectors, the image has {n} axes",
            hint="the header is damaged",
        )
    return found


def _numbers(text: str, whole: str) -> tuple[float, ...]:
    try:
        return tuple(float(word) for word in text.split(","))
    except ValueError:
        raise _bad("vector", whole, "numbers such as (1,0,0)") from None


def _letters(
    header: NrrdFields,
    vectors: list[tuple[float, ...] | None] | None,
    n: int,
    axes: str | None,
) -> list[str | None]:
    """Names of the stored axes, fastest first."""
    kinds = header.fields.get("kinds", "").lower().split() or ["???"] * n
    if len(kinds) != n:
        raise UnreadableFileError(
            f"kinds {header.fields['kinds']!r} do not fit {n} axes", hint="the header is damaged"
        )
    names: list[str | None] = []
    for axis, kind in enumerate(kinds):
        has_vector = vectors[axis] is not None if vectors else None
        if has_vector or (has_vector is None and kind in (*_SPATIAL_KINDS, "???", "none")):
            names.append("space")
        else:
            names.append("t" if kind in _TIME_KINDS else "c")
    if vectors is None and not header.fields.get("kinds") and n > 3:
        names = _guided(names, axes)
    if names.count("space") not in (2, 3):
        raise AxesError(
            f"the NRRD file has {names.count('space')} spatial axes of sizes"
            f" {header.fields['sizes']!r}; an image or volume has two or three",
            hint="for a stack without kinds, name its axes, for example --axes czyx",
        )
    fast_first = iter("xyz")
    return [next(fast_first) if name == "space" else name for name in names]


def _guided(names: list[str | None], axes: str | None) -> list[str | None]:
    """Axes beyond three without any kinds: only the user knows; the slowest ones give way."""
    if axes is None or len(axes) != len(names):
        return names
    stored = list(reversed(axes.lower()))
    return ["space" if name in "xyz" else name for name in stored]


def _from_vectors(header: NrrdFields, vectors: list[Any], notes: list[Note]) -> tuple[Affine, Unit]:
    world, dimension = _world(header)
    n = len(vectors)
    signs = [1.0] * dimension
    if header.fields.get("space", "").strip().lower() in ("left-anterior-superior", "las"):
        signs[0] = -1.0
    if any(len(vector) != dimension for vector in vectors) or dimension < n:
        raise UnreadableFileError(
            f"space directions {header.fields['space directions']!r} are no vectors of {dimension}"
            " components",
            hint="the header is damaged",
        )
    matrix = np.array(vectors, float).T * np.array(signs)[:, None]
    origin = np.array(_origin(header, dimension)) * np.array(signs)
    if n == 2 and dimension == 3:
        if np.any(np.abs(matrix[2]) > 1e-6 * np.abs(matrix).max()):
            raise GeometryError(
                "the image plane lies obliquely in space and has no two-dimensional geometry",
                hint="store it as a volume of one slice",
            )
        matrix, origin = matrix[:2], origin[:2]
    with np.errstate(over="ignore", invalid="ignore"):
        length = np.sqrt((matrix**2).sum(axis=0))
    if not np.all(np.isfinite(length)) or np.any(length == 0):
        raise GeometryError(
            f"space directions {header.fields['space directions']!r} have an axis without length",
            hint="the header is damaged; give the geometry with --spacing z,y,x --unit mm",
        )
    direction = matrix / length
    unit, factors = _units(header, "space units", dimension, notes, is_medical=world != "xyz")
    geometry = XyzGeometry(
        tuple(float(value) * factors[0] for value in length),
        tuple(float(value) * factors[0] for value in origin),
        tuple(tuple(float(value) for value in row) for row in direction),
    )
    return affine_from_xyz(geometry, world), unit


def _world(header: NrrdFields) -> tuple[World, int]:
    name = header.fields.get("space", "").strip().strip('"').lower()
    if not name:
        dimension = header.integer("space dimension", 3)
        if dimension not in (2, 3):
            raise InputError(
                f"the NRRD file lies in a space of {dimension} dimensions",
                hint="only two and three are supported",
            )
        return "xyz", dimension
    if name.endswith("-time") or name in ("rast", "last", "lpst"):
        raise InputError(
            f"NRRD space {name!r} mixes space and time",
            hint="store time as an axis of kind 'time' with direction 'none'",
        )
    if name not in _SPACES:
        raise UnreadableFileError(
            f"NRRD space {name!r} is unknown", hint="the header is damaged or of another format"
        )
    return _SPACES[name]


def _origin(header: NrrdFields, dimension: int) -> tuple[float, ...]:
    text = header.fields.get("space origin")
    if text is None:
        return (0.0,) * dimension
    match = _VECTOR.search(text)
    values = _numbers(match.group(1), text) if match and match.group(1) else ()
    if len(values) != dimension:
        raise _bad("space origin", text, f"a vector of {dimension} numbers")
    return values


def _units(
    header: NrrdFields, field: str, count: int, notes: list[Note], *, is_medical: bool
) -> tuple[Unit, list[float]]:
    """The unit of the first axis that has one, and the factor of each axis to reach it."""
    words = [word.strip() for word in _QUOTED.findall(header.fields.get(field, ""))]
    known = [(word, *parse_unit(word)) for word in words if _is_length(word)]
    if not known:
        if is_medical:
            notes.append(
                Note("unit_assumed", "the header names no unit: mm is assumed, as in medical NRRD")
            )
            return "mm", [1.0] * count
        notes.append(
            Note("unit_missing", "the header names no unit of length: spacing is not calibrated")
        )
        return "voxel", [1.0] * count
    unit = known[0][1]
    factors = [
        convert_length(parse_unit(word)[1], parse_unit(word)[0], unit) if _is_length(word) else 1.0
        for word in words
    ]
    factors += [1.0] * (count - len(factors))
    if field == "space units" and len(set(factors[:count])) > 1:
        raise GeometryError(
            f"space units {header.fields[field]!r} differ between the axes",
            hint="give one unit for all three",
        )
    return unit, factors


def _is_length(word: str) -> bool:
    try:
        return bool(word) and parse_unit(word)[0] != "voxel"
    except GeometryError:
        return False


def _from_spacings(
    header: NrrdFields, spatial: list[int], notes: list[Note]
) -> tuple[Affine, Unit]:
    """No directions: spacings alone, axes as they lie."""
    n_axes = header.integer("dimension", 0)
    words = header.fields.get("spacings", "").split() or ["nan"] * n_axes
    if len(words) != n_axes:
        raise _bad("spacings", header.fields["spacings"], f"{n_axes} numbers")
    unit, factors = _units(header, "units", n_axes, notes, is_medical=False)
    spacing = []
    for axis in spatial:
        try:
            value = abs(float(words[axis]))
        except ValueError:
            raise _bad("spacings", header.fields["spacings"], "numbers") from None
        if not math.isfinite(value) or value == 0:
            notes.append(
                Note("spacing_missing", f"axis {axis} has no spacing ({words[axis]}): 1 is taken")
            )
            value = 1.0
        spacing.append(value * factors[axis])
    n = len(spatial)
    identity = tuple(tuple(row[:n]) for row in IDENTITY_XYZ[:n])
    geometry = XyzGeometry(tuple(spacing), (0.0,) * n, identity)
    return affine_from_xyz(geometry, "xyz"), unit


def _bad(name: str, text: str | None, expected: str) -> UnreadableFileError:
    return UnreadableFileError(
        f"NRRD field {name!r} is {str(text)[:60]!r}, expected {expected}",
        hint="the header is damaged; copy or download the file again",
    )
