"""What kind of scan a volume is: CT, MR, or something that models of CT and MR know nothing of.

DICOM says it (SOP class, Modality, image type); NIfTI, NRRD and the others say nothing, so that
the user states it, or the values are looked at. A model of anatomy run on an X-ray, an ultrasound
film or a micrograph gives labels all the same, and every one of them is wrong: such input is
refused with the reason.

Examples:
    >>> import numpy as np
    >>> air_to_bone = np.linspace(-1024, 1500, 8 * 8 * 8, dtype=np.float32).reshape(8, 8, 8)
    >>> scan = Volume.from_array(air_to_bone, spacing=(3, 3, 3), unit="mm", frame="RAS")
    >>> find_modality(scan).kind, find_modality(scan).likely
    ('unknown', 'CT')
    >>> find_modality(scan, "CT").kind
    'CT'
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from lamella.core.errors import AxesError, GeometryError, InputError
from lamella.volume import Note, Volume
from lamella.volume.spacing import convert_length

__all__ = ["Modality", "ModalityKind", "StatedModality", "check_ct_or_mr", "find_modality"]

ModalityKind = Literal[
    "CT",
    "MR",
    "X-ray",
    "localizer",
    "ultrasound",
    "PET",
    "micrograph",
    "photograph",
    "colour image",
    "secondary capture",
    "segmentation",
    "other",
    "unknown",
]
Scanner = Literal["CT", "MR"]
StatedModality = Literal["auto", "CT", "MR"]

_BY_TAG: dict[str, ModalityKind] = {
    "CT": "CT",
    "MR": "MR",
    **dict.fromkeys(("CR", "DX", "RF", "XA", "MG", "IO", "PX", "RG", "DS", "DF", "BMD"), "X-ray"),
    **dict.fromkeys(("US", "IVUS", "BDUS", "EC"), "ultrasound"),
    **dict.fromkeys(("PT", "NM", "ST"), "PET"),
    **dict.fromkeys(("SM", "GM", "CFM"), "micrograph"),
    **dict.fromkeys(("XC", "ES", "OP", "OPT", "OCT", "IVOCT", "DMS"), "photograph"),
    "SEG": "segmentation",
}
"""DICOM's Modality (0008,0060), PS3.3 C.7.3.1.1.1."""

_BY_CLASS: tuple[tuple[str, ModalityKind], ...] = (
    ("secondary capture", "secondary capture"),
    ("segmentation storage", "segmentation"),
    ("ct image storage", "CT"),
    ("mr image storage", "MR"),
    ("mr color image storage", "MR"),
    ("computed radiography", "X-ray"),
    ("x-ray", "X-ray"),
    ("xa image storage", "X-ray"),
    ("xrf image storage", "X-ray"),
    ("tomosynthesis", "X-ray"),
    ("ultrasound", "ultrasound"),
    ("positron emission", "PET"),
    ("pet image storage", "PET"),
    ("nuclear medicine", "PET"),
    ("microscop", "micrograph"),
    ("photographic", "photograph"),
    ("endoscopic", "photograph"),
    ("ophthalmic", "photograph"),
)
"""Parts of SOP class names (PS3.4 annex B), in lower case; the first that fits counts."""

_WHY: dict[ModalityKind, str] = {
    "X-ray": "an X-ray is a projection: every pixel is the sum of all tissue behind it",
    "localizer": "a localizer (scout) is a projection, no slice of the body",
    "ultrasound": "ultrasound shows echoes in a sector, at brightnesses that mean no tissue",
    "PET": "PET and SPECT show uptake of a tracer, no anatomy",
    "micrograph": "a microscope's image shows cells, no organs",
    "photograph": "a photograph shows surfaces",
    "colour image": "colours are no measured intensities (a screenshot, a photograph, a stain)",
    "secondary capture": "a secondary capture is a picture of an image, its values are for display",
    "segmentation": "it holds labels, no intensities",
}

_MICROSCOPIC_MM = 0.05
"""Clinical CT and MR resolve no finer than about 0.1 mm."""
_AIR_HU, _SOFT_HU, _BONE_HU, _LARGEST_HU = -300.0, 150.0, 4000.0, 70000.0
_SAMPLED_PLANES = 5
_LOWEST_HU = -10000.0


@dataclass(frozen=True, slots=True)
class Modality:
    """What a volume is, and why we think so.

    Args:
        kind: the kind of image; ``unknown`` where nothing says it.
        evidence: what says it, in words.
        likely: what the values look like where nothing says it; None when they could be anything.
        notes: doubts the user must hear of.
    """

    kind: ModalityKind
    evidence: str
    likely: Scanner | None = None
    notes: tuple[Note, ...] = ()

    @property
    def is_ct_or_mr(self) -> bool:
        """Whether models of CT and MR may be run on it."""
        return self.kind in ("CT", "MR")


def find_modality(volume: Volume, stated: StatedModality = "auto") -> Modality:
    """What kind of image a volume is.

    Args:
        volume: lazy; at most a few planes are read, and only where no header says it.
        stated: what the user says; ``auto`` for nothing.

    Returns:
        The kind with its evidence. What a DICOM header says counts more than what is stated: a
        contradiction is for :func:`check_ct_or_mr` to refuse.
    """
    told = _from_header(volume)
    if told is not None and told.kind != "secondary capture":
        return told
    shown = _from_shape(volume)
    if shown is not None:
        return shown
    if stated != "auto":
        doubts = (
            ()
            if told is None
            else (
                Note(
                    "modality_stated",
                    f"{told.evidence}; {stated} is taken because the user says so",
                ),
            )
        )
        notes = doubts + (_hounsfield_doubts(volume) if stated == "CT" else ())
        return Modality(stated, f"stated by the user: {stated}", notes=notes)
    if told is not None:
        return told
    span = _value_span(volume)
    if _looks_hounsfield(span):
        return Modality(
            "unknown",
            f"the file does not say it; values {span[0]:g} to {span[1]:g} look like Hounsfield"
            " units",
            likely="CT",
        )
    return Modality(
        "unknown",
        f"the file does not say it, and values {span[0]:g} to {span[1]:g} could be anything",
    )


def check_ct_or_mr(
    volume: Volume,
    stated: StatedModality = "auto",
    *,
    allowed: tuple[Scanner, ...] = ("CT", "MR"),
    purpose: str = "this model",
) -> Modality:
    """Refuse what a model of CT or MR cannot work on.

    Args:
        volume: lazy.
        stated: what the user says; ``auto`` for nothing.
        allowed: what the model was trained on.
        purpose: what needs it, as the subject of a sentence.

    Returns:
        ``CT`` or ``MR``, one of ``allowed``; ``notes`` hold what the user must be warned of, such
        as a modality that nobody stated.

    Raises:
        InputError: for any other kind of image, for MR where CT is needed (and the reverse), for
            a statement that contradicts the header, and where nothing tells.
        AxesError: for a single 2-D image, several channels or several times.
        GeometryError: when nobody knows the voxels' size.
    """
    found = find_modality(volume, stated)
    wanted = " or ".join(allowed)
    name = volume.name or (volume.path.name if volume.path is not None else "the volume")
    if found.kind not in ("CT", "MR", "unknown"):
        reason = _WHY.get(found.kind, "neither CT nor MR")
        is_capture = found.kind == "secondary capture"
        raise InputError(
            f"{purpose} needs {wanted}, but {name} is not: {found.evidence}; {reason}",
            hint="open the original series; if its values are measured all the same, state"
            f" --modality {allowed[0]}"
            if is_capture
            else f"open a {wanted} volume of the patient instead",
            details={"modality": found.kind},
        )
    if found.kind != "unknown" and stated not in ("auto", found.kind):
        raise InputError(
            f"--modality {stated} contradicts the file {name}: {found.evidence}",
            hint="leave --modality out; the header decides",
            details={"modality": found.kind},
        )
    if found.kind in ("CT", "MR") and found.kind not in allowed:
        raise InputError(
            f"{purpose} needs {wanted}, but {name} is {found.kind}: {found.evidence}",
            hint=f"choose a model that was trained on {found.kind}",
            details={"modality": found.kind},
        )
    _check_grid(volume, name, purpose)
    return _taken(found, allowed, name, purpose) if found.kind == "unknown" else found


def _taken(found: Modality, allowed: tuple[Scanner, ...], name: str, purpose: str) -> Modality:
    """Where the file says nothing: the only kind that fits, with a warning, or an error."""
    fitting = [known for known in allowed if found.likely in (None, known)]
    if not fitting:
        raise InputError(
            f"{purpose} needs {' or '.join(allowed)}, and {name} seems to be {found.likely}:"
            f" {found.evidence}",
            hint=f"choose a model for {found.likely}, or state --modality {allowed[0]} if it is",
        )
    if len(fitting) > 1:
        raise InputError(
            f"{purpose} must know whether {name} is CT or MR: {found.evidence}",
            hint="state --modality CT or --modality MR",
        )
    kind = fitting[0]
    if kind == "CT" and found.likely is None:
        raise InputError(
            f"{purpose} needs CT in Hounsfield units: {name} does not say what it is, and its"
            f" values do not look like it ({found.evidence})",
            hint="if it is CT, state --modality CT; if its values were shifted or windowed for"
            " display, use the original",
        )
    note = Note(
        "modality_unknown",
        f"taken as {kind}: {found.evidence}. State --modality {kind} to confirm it",
    )
    return replace(found, kind=kind, notes=(*found.notes, note))


def _from_header(volume: Volume) -> Modality | None:
    """What DICOM says; None for files that say nothing."""
    tag = str(volume.metadata.get("modality", "")).strip().upper()
    sop_class = str(volume.metadata.get("sop_class", ""))
    image_type = str(volume.metadata.get("image_type", "")).upper()
    named = sop_class.lower()
    by_class: ModalityKind | None = next((kind for part, kind in _BY_CLASS if part in named), None)
    by_tag = _BY_TAG.get(tag)
    said = ", ".join(
        part
        for part in (
            f"its DICOM modality is {tag}" if tag else "",
            f"its SOP class {sop_class}" if sop_class else "",
        )
        if part
    )
    # The SOP class says what the object is; the tag of a screenshot still names the scanner.
    kind: ModalityKind | None = by_class or by_tag
    if kind is None:
        return Modality("other", said) if tag and tag != "OT" else None
    if kind in ("CT", "MR") and {"LOCALIZER", "SCOUT"} & set(image_type.split(", ")):
        return Modality("localizer", f"{said}, its image type {image_type}")
    if kind in ("CT", "MR") and _is_colour(volume):
        return Modality("colour image", f"{said}, but it has colours")
    return Modality(kind, said, notes=_hounsfield_doubts(volume) if kind == "CT" else ())


def _from_shape(volume: Volume) -> Modality | None:
    """What no clinical scanner could have made."""
    if _is_colour(volume):
        return Modality("colour image", f"it has {volume.n_channels} colours per pixel")
    if volume.unit == "voxel":
        return None
    spacing_mm = [convert_length(value, volume.unit, "mm") for value in volume.affine.spacing]
    if max(spacing_mm) < _MICROSCOPIC_MM:
        return Modality(
            "micrograph", f"its voxels of {volume.spacing} are finer than any scanner of patients"
        )
    return None


def _is_colour(volume: Volume) -> bool:
    names = tuple(name.upper() for name in volume.channel_names)
    return names in (("R", "G", "B"), ("R", "G", "B", "A")) or (
        volume.n_channels in (3, 4) and volume.dtype == np.uint8
    )


def _check_grid(volume: Volume, name: str, purpose: str) -> None:
    if "z" not in volume.axes:
        raise AxesError(
            f"{purpose} needs a volume; {name} is a single image of {volume.shape}",
            hint="open the whole series, not one of its slices",
        )
    for axis, option in (("c", "--channel"), ("t", "--time")):
        if axis in volume.axes and volume.shape[volume.axes.index(axis)] > 1:
            raise AxesError(
                f"{purpose} needs one volume; {name} has"
                f" {volume.shape[volume.axes.index(axis)]} along {axis}",
                hint=f"choose one with {option} N",
            )
    if volume.unit == "voxel":
        raise GeometryError(
            f"{purpose} must know how large the voxels are; {name} does not say it",
            hint="give it with --spacing z,y,x --unit mm",
        )


def _value_span(volume: Volume) -> tuple[float, float]:
    """Smallest and largest value of a few planes spread over the volume."""
    n = volume.shape[0]
    steps = sorted(
        {round(k * (n - 1) / max(1, _SAMPLED_PLANES - 1)) for k in range(_SAMPLED_PLANES)}
    )
    rest = (slice(None),) * (len(volume.shape) - 1)
    low, high = np.inf, -np.inf
    for step in steps:
        plane = np.asarray(volume.data[(slice(step, step + 1), *rest)])
        finite = plane[np.isfinite(plane)] if plane.dtype.kind == "f" else plane
        if finite.size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    return (low, high) if low <= high else (0.0, 0.0)


def _looks_hounsfield(span: tuple[float, float]) -> bool:
    return _LOWEST_HU < span[0] <= _AIR_HU and _SOFT_HU <= span[1] < _LARGEST_HU


def _hounsfield_doubts(volume: Volume) -> tuple[Note, ...]:
    """Whether a CT's values can be Hounsfield units."""
    span = _value_span(volume)
    if _looks_hounsfield(span):
        return ()
    if span[0] >= 0 and _BONE_HU / 4 < span[1] < _LARGEST_HU:
        doubt = "look shifted by 1024 (stored numbers without their rescale intercept)"
    elif span[0] >= 0 and span[1] <= 255:
        doubt = "look windowed to 8 bits for display"
    else:
        doubt = "hold no air, or are not in Hounsfield units"
    return (
        Note(
            "values_not_hounsfield",
            f"values {span[0]:g} to {span[1]:g} of this CT {doubt}: models expect air at -1000 and"
            " water at 0",
        ),
    )
