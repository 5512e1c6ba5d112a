"""NIfTI-1, NIfTI-2 and Analyze headers, checked and turned into Lamella's terms.

Source: the NIfTI-1.1 and NIfTI-2 standards (nifti1.h, nifti2.h); field offsets by nibabel.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamella.core.errors import AxesError, GeometryError, InputError, UnreadableFileError
from lamella.io.frames import affine_from_xyz_matrix, decimal_float32
from lamella.io.layout import Layout
from lamella.io.rescale import Rescale
from lamella.volume import Affine, Note
from lamella.volume.spacing import Unit

__all__ = ["RECORD_ECODE", "NiftiHeader", "header_kind", "parse_header"]

RECORD_ECODE = 6
"""Extension code "comment": plain text, which every program may skip."""

_TYPES = {
    2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4",
    1024: "i8", 1280: "u8", 128: "u1", 2304: "u1",
}  # fmt: skip
_SAMPLES = {128: 3, 2304: 4}
_UNSUPPORTED = {
    0: "no type at all", 1: "1-bit", 32: "complex64", 1536: "float128", 1792: "complex128",
    2048: "complex256",
}  # fmt: skip
# Symmetric matrix, displacement, vector, point, quaternion, RGB, RGBA: the values of one voxel.
_VECTOR_INTENTS = {1004, 1005, 1006, 1007, 1008, 1010, 2003, 2004}
_LABEL_INTENT = 1002
_LENGTHS: dict[int, tuple[Unit, float]] = {1: ("mm", 1e3), 2: ("mm", 1.0), 3: ("um", 1.0)}
_TIMES = {8: "s", 16: "ms", 24: "us"}
_SPECTRAL = {32, 40, 48}


@dataclass(frozen=True, slots=True)
class NiftiHeader:
    """What a header says.

    Args:
        kind: ``"NIfTI-1"``, ``"NIfTI-2"`` or ``"Analyze 7.5"``.
        stored: dtype of the stored numbers, with the file's byte order.
        layout: of the stored axes, RGB samples last.
        offset: where the data begins in the data file.
        rescale: stored numbers → values.
        affine: of three spatial axes, in ``unit``.
        unit: of the affine.
        is_labels: whether the intent says that values are label ids.
        notes: odd things found.
        metadata: for people.
    """

    kind: str
    stored: np.dtype[Any]
    layout: Layout
    offset: int
    rescale: Rescale
    affine: Affine
    unit: Unit
    is_labels: bool
    notes: tuple[Note, ...]
    metadata: Mapping[str, Any]

    @property
    def n_bytes(self) -> int:
        """Size of the data."""
        return math.prod(self.layout.lengths) * self.stored.itemsize


def header_kind(head: bytes) -> str | None:
    """Which header the first bytes are: NIfTI-1, NIfTI-2, Analyze 7.5, or none."""
    for order in ("little", "big"):
        size = int.from_bytes(head[:4], order)
        if size == 540 and head[4:7] in (b"n+2", b"ni2"):
            return "NIfTI-2"
        if size == 348 and len(head) >= 348:
            return "NIfTI-1" if head[344:347] in (b"n+1", b"ni1") else "Analyze 7.5"
    return None


def parse_header(path: Path, head: bytes, *, axes: str | None = None) -> NiftiHeader:
    """Check and translate a header.

    Args:
        path: for messages.
        head: at least the whole header.
        axes: what the user says the axes are.

    Raises:
        UnreadableFileError: for fields that contradict each other.
        GeometryError: for an affine that is singular or not finite.
        AxesError: for more axes than t, c, z, y, x.
        InputError: for voxel types that are no intensities.
    """
    kind = header_kind(head)
    fields = _fields(path, head, kind)
    code = int(fields["datatype"])
    if code not in _TYPES:
        name = _UNSUPPORTED.get(code, f"unknown type {code}")
        raise InputError(
            f"{path} stores {name} voxels (datatype {code}), which are no intensities or labels",
            hint="convert them first, for example to magnitude, as float32",
        )
    stored = np.dtype(_TYPES[code]).newbyteorder(fields.dtype["datatype"].byteorder)
    layout = _layout(path, fields, kind, _SAMPLES.get(code, 1), axes)
    offset = _offset(path, fields, kind)
    notes: list[Note] = []
    unit, factor = _unit(fields, kind, notes)
    affine = _affine(path, fields, kind, factor, notes)
    rescale = _rescale(fields, code, notes)
    is_labels = kind != "Analyze 7.5" and int(fields["intent_code"]) == _LABEL_INTENT
    return NiftiHeader(
        kind or "",
        stored,
        layout,
        offset,
        rescale,
        affine,
        unit,
        is_labels,
        tuple(notes),
        _metadata(fields, kind),
    )


def _fields(path: Path, head: bytes, kind: str | None) -> NDArray[Any]:
    from nibabel.analyze import AnalyzeHeader
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header

    types = {"NIfTI-1": Nifti1Header, "NIfTI-2": Nifti2Header, "Analyze 7.5": AnalyzeHeader}
    if kind is None or len(head) < types[kind].template_dtype.itemsize:
        raise UnreadableFileError(
            f"{path} has no whole NIfTI or Analyze header ({len(head)} bytes)",
            hint="the file is damaged or cut off; copy or download it again",
        )
    template = types[kind].template_dtype
    expected = 540 if kind == "NIfTI-2" else 348
    is_little = int.from_bytes(head[:4], "little") == expected
    return np.frombuffer(
        head[: template.itemsize], template.newbyteorder("<" if is_little else ">"), 1
    )[0]


def _layout(
    path: Path, fields: NDArray[Any], kind: str | None, samples: int, axes: str | None
) -> Layout:
    dims = [int(n) for n in fields["dim"]]
    n = dims[0]
    if not 1 <= n <= 7 or any(length < 1 for length in dims[1 : n + 1]):
        raise UnreadableFileError(
            f"{path} has an impossible shape: dim = {dims}",
            hint="the header is damaged; copy or download the file again",
        )
    lengths = dims[1 : n + 1]
    is_nifti = kind != "Analyze 7.5"
    intent = int(fields["intent_code"]) if is_nifti else 0
    if 3000 <= intent < 3100:
        raise InputError(
            f"{path} is a CIFTI file (connectivity or surface data), not an image",
            hint="open the NIfTI volume it was made from",
        )
    time_unit = int(fields["xyzt_units"]) & 0x38 if is_nifti else 0
    is_vector = intent in _VECTOR_INTENTS or time_unit in _SPECTRAL
    letters = _letters(path, lengths, is_vector=is_vector, has_samples=samples > 1)
    if samples > 1:
        lengths, letters = [samples, *lengths], ["c", *letters]
    return Layout(tuple(reversed(lengths)), tuple(reversed(letters))).renamed(axes)


def _letters(
    path: Path, lengths: list[int], *, is_vector: bool, has_samples: bool
) -> list[str | None]:
    """Names of the stored axes, fastest first; singletons beyond z are dropped."""
    if len(lengths) < 2:
        raise AxesError(
            f"{path} holds a line of {lengths[0]} values, not an image",
            hint="an image has at least two axes",
        )
    letters: list[str | None] = ["x", "y", "z"][: len(lengths)]  # type: ignore[assignment]
    # The standard puts the values of a vector on axis 5; many write them on axis 4 instead.
    is_vector = is_vector and all(length == 1 for length in lengths[4:])
    for axis, length in enumerate(lengths[3:], start=3):
        if length == 1:
            letters.append(None)
        else:
            letters.append("t" if axis == 3 and not is_vector else "c")
    if letters.count("c") + has_samples > 1:
        raise AxesError(
            f"{path} has shape {tuple(lengths)} (x first): more than one axis beyond space and"
            " time",
            hint="split it into volumes of at most t, c, z, y, x",
        )
    return letters


def _offset(path: Path, fields: NDArray[Any], kind: str | None) -> int:
    value = float(fields["vox_offset"])
    is_single = kind != "Analyze 7.5" and bytes(fields["magic"])[:2] == b"n+"
    least = (544 if kind == "NIfTI-2" else 352) if is_single else 0
    if is_single and value == 0:
        return least
    if not math.isfinite(value) or value < least or value != int(value):
        raise UnreadableFileError(
            f"{path} says that its data begins at byte {value:g}, which is inside the header",
            hint="the header is damaged; copy or download the file again",
        )
    return int(value)


def _unit(fields: NDArray[Any], kind: str | None, notes: list[Note]) -> tuple[Unit, float]:
    code = 0 if kind == "Analyze 7.5" else int(fields["xyzt_units"]) & 0x07
    if code in _LENGTHS:
        return _LENGTHS[code]
    notes.append(Note("unit_assumed", "the header names no unit of length: mm is assumed"))
    return "mm", 1.0


def _rescale(fields: NDArray[Any], code: int, notes: list[Note]) -> Rescale:
    names = fields.dtype.names or ()
    # Analyze keeps SPM's scale factor in the same four bytes.
    slope = float(fields["scl_slope" if "scl_slope" in names else "funused1"])
    intercept = float(fields["scl_inter"]) if "scl_inter" in names else 0.0
    if slope == 0 or not math.isfinite(slope) or code in _SAMPLES:
        return Rescale()
    if not math.isfinite(intercept):
        notes.append(Note("intercept_ignored", f"scl_inter is {intercept}: 0 is taken"))
        intercept = 0.0
    return Rescale(slope, intercept)


def _affine(
    path: Path, fields: NDArray[Any], kind: str | None, factor: float, notes: list[Note]
) -> Affine:
    spacing = _pixdim(fields, notes)
    scaled = tuple(value * factor for value in spacing)
    qform = sform = None
    if kind != "Analyze 7.5":
        sform = _sform(fields) if int(fields["sform_code"]) > 0 else None
        qform = _qform(fields, spacing) if int(fields["qform_code"]) > 0 else None
    if sform is not None and qform is not None:
        if not _is_regular(sform):
            notes.append(Note("sform_singular", "the sform is singular or not finite: qform taken"))
            sform = None
        else:
            _compare_forms(sform, qform, fields, notes)
    chosen = sform if sform is not None else qform
    if chosen is None:
        notes.append(
            Note(
                "orientation_missing",
                "the header gives no orientation (sform and qform codes are 0): axes are taken as"
                " they lie, x to the right",
            )
        )
        chosen = np.diag([*spacing, 1.0])
    chosen = chosen.copy()
    chosen[:3] *= factor
    try:
        affine = affine_from_xyz_matrix(chosen, "RAS", spacing_xyz=scaled)
    except GeometryError as error:
        raise GeometryError(f"{path}: {error.message}", hint=error.hint) from error
    if not affine.is_orthogonal:
        notes.append(Note("sheared", "the axes do not stand at right angles"))
    return affine


def _pixdim(fields: NDArray[Any], notes: list[Note]) -> tuple[float, ...]:
    given = [float(value) for value in fields["pixdim"][1:4]]
    is_double = fields["pixdim"].dtype.itemsize == 8
    used = []
    n_used = min(3, int(fields["dim"][0]))
    for axis, value in enumerate(given):
        size = abs(value)
        if math.isfinite(size) and size > 0:
            used.append(size if is_double else decimal_float32(size))
            continue
        if axis < n_used:
            notes.append(
                Note("spacing_missing", f"pixdim of {'xyz'[axis]} is {value:g}: 1 is taken")
            )
        used.append(1.0)
    return tuple(used)


def _sform(fields: NDArray[Any]) -> NDArray[np.float64]:
    full = np.eye(4)
    for row, name in enumerate(("srow_x", "srow_y", "srow_z")):
        full[row] = fields[name].astype(np.float64)
    return full


def _qform(fields: NDArray[Any], spacing: tuple[float, ...]) -> NDArray[np.float64] | None:
    """Method 2 of the standard: a unit quaternion, the sign of z in pixdim[0]."""
    b, c, d = (float(fields[name]) for name in ("quatern_b", "quatern_c", "quatern_d"))
    rest = 1.0 - (b * b + c * c + d * d)
    if not math.isfinite(rest):
        return np.full((4, 4), np.nan)
    if rest < 1e-7:
        length = math.sqrt(b * b + c * c + d * d)
        b, c, d, a = b / length, c / length, d / length, 0.0
    else:
        a = math.sqrt(rest)
    rotation = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - c * c - b * b],
        ]
    )
    sign = -1.0 if float(fields["pixdim"][0]) < 0 else 1.0
    full = np.eye(4)
    full[:3, :3] = rotation * np.array([spacing[0], spacing[1], sign * spacing[2]])
    full[:3, 3] = [float(fields[f"qoffset_{axis}"]) for axis in "xyz"]
    return full


def _is_regular(matrix: NDArray[np.float64]) -> bool:
    if not np.all(np.isfinite(matrix)):
        return False
    length = np.sqrt((matrix[:3, :3] ** 2).sum(axis=0))
    return bool(np.all(length > 0)) and abs(np.linalg.det(matrix[:3, :3] / length)) > 1e-6


def _compare_forms(
    sform: NDArray[np.float64],
    qform: NDArray[np.float64],
    fields: NDArray[Any],
    notes: list[Note],
) -> None:
    """Note by how much the two forms put the same voxel at different places."""
    if not np.all(np.isfinite(qform)):
        notes.append(Note("qform_ignored", "the qform is not finite: the sform is taken"))
        return
    dims = [max(1, int(n)) for n in fields["dim"][1:4]]
    corners = np.array([[i, j, k, 1] for i in (0, 1) for j in (0, 1) for k in (0, 1)], float)
    corners[:, :3] *= np.array(dims) - 1
    apart = float(np.abs(corners @ (sform - qform).T)[:, :3].max())
    smallest = float(np.sqrt((sform[:3, :3] ** 2).sum(axis=0)).min())
    reach = float(np.abs(sform[:3]).max())
    if apart > 0.02 * smallest + 1e-5 * reach:
        notes.append(
            Note(
                "forms_disagree",
                f"sform and qform place the same voxel up to {apart:.4g} units apart: the sform is"
                " taken",
            )
        )


def _metadata(fields: NDArray[Any], kind: str | None) -> dict[str, Any]:
    """Facts for people. Names and free text about patients stay in the file."""
    known: dict[str, Any] = {"format": kind}
    if kind == "Analyze 7.5":
        return known
    known["sform_code"] = int(fields["sform_code"])
    known["qform_code"] = int(fields["qform_code"])
    known["intent_code"] = int(fields["intent_code"])
    time_unit = int(fields["xyzt_units"]) & 0x38
    if int(fields["dim"][0]) > 3 and int(fields["dim"][4]) > 1 and time_unit in _TIMES:
        known["time_step"] = f"{float(fields['pixdim'][4]):g} {_TIMES[time_unit]}"
    return known
