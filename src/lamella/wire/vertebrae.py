"""What was found of a spine: the answer of ``lamella detect vertebrae``."""

from typing import Literal

from pydantic import Field

from lamella.wire.document import Document
from lamella.wire.manifest import NoteDoc

__all__ = [
    "LevelNoteDoc",
    "SpineLabelsFact",
    "VertebraConfidenceDoc",
    "VertebraDoc",
    "VertebraReport",
]

Triple = tuple[float, float, float]


class VertebraConfidenceDoc(Document):
    """Means of the model's confidence maps over a vertebra, 0..1."""

    measures: dict[str, float]
    """``probability``, ``margin``, ``entropy`` ..., by name."""
    is_calibrated: bool
    note: str
    """Whether it may be read as a probability of being right, in words."""


class VertebraDoc(Document):
    """One vertebra. Millimetres; voxel coordinates in the order (z, y, x)."""

    level: str
    """C1 to C7, T1 to T13, L1 to L6, S1."""
    value: int
    """Its label in the segmentation."""
    centroid_ras_mm: Triple
    """Centre of mass (x, y, z), x to the patient's right, y to anterior, z to superior."""
    centroid_lps_mm: Triple
    """The same place (x, y, z), x to the left, y to posterior, as DICOM and ITK count."""
    centroid_voxel_zyx: Triple
    """The same place as an index; centres of voxels are whole numbers."""
    box_start_zyx: tuple[int, int, int]
    box_stop_zyx: tuple[int, int, int]
    """Its voxels lie in this half-open box."""
    n_voxels: int
    volume_mm3: float
    position_mm: float
    """Distance along the spine's curve from the uppermost vertebra found."""
    is_incomplete: bool
    """Whether it reaches the volume's border: place and volume are those of a part."""
    borders: tuple[str, ...] = ()
    """Which faces it reaches: superior, inferior, anterior, posterior, left, right."""
    n_components: int
    """Connected parts (26 neighbours)."""
    confidence: VertebraConfidenceDoc | None = None
    """None where the labels came without probabilities."""


class LevelNoteDoc(NoteDoc):
    """A doubt or a hint about levels."""

    levels: tuple[str, ...] = ()


class SpineLabelsFact(Document):
    """Where the labels came from."""

    path: str = ""
    class_map: str
    """Who says which value is which level: ``file``, a known map, or a file's path."""
    engine: str = ""
    model: str = ""
    model_version: str = ""
    run: str = ""
    """The run folder, where a model made them."""
    covered_start_zyx: tuple[int, int, int] | None = None
    covered_stop_zyx: tuple[int, int, int] | None = None
    """Half-open box of the image that the labels tell of; None where that is all of it."""


class VertebraReport(Document):
    """Left as ``vertebrae.json``."""

    format_version: Literal[1] = 1
    kind: Literal["vertebrae"] = "vertebrae"
    image: str = ""
    """The CT, where one was given."""
    labels: SpineLabelsFact
    shape_zyx: tuple[int, int, int]
    spacing_mm_zyx: Triple
    margin_mm: float
    vertebrae: tuple[VertebraDoc, ...]
    """From the head down, along the spine."""
    warnings: tuple[LevelNoteDoc, ...] = ()
    """Doubts: levels missing, double, exchanged, in pieces; nothing found."""
    hints: tuple[LevelNoteDoc, ...] = ()
    """Remarks, such as on transitional anatomy."""
    confidence_note: str
    outputs: dict[str, str] = Field(default_factory=dict)
    """Files written, by purpose."""
    versions: dict[str, str] = Field(default_factory=dict)
    notice: str = "Research use only; not a medical device."
