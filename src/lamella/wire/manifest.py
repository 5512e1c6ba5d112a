"""The manifest: what a run was, exactly, so that it can be trusted and run again."""

from typing import Literal

from pydantic import Field

from lamella.wire.document import Document, JsonValue
from lamella.wire.problem import Problem
from lamella.wire.request import SegmentRequest, SpacingDoc

__all__ = [
    "GeometryDoc",
    "InputFact",
    "LabelsFact",
    "ModelFact",
    "NoteDoc",
    "RunManifest",
    "RuntimeFact",
]


class NoteDoc(Document):
    """A warning or an odd thing found: a stable code and a sentence."""

    code: str
    message: str


class GeometryDoc(Document):
    """Where voxels lie: as in :class:`lamella.volume.Affine`, in (z, y, x)."""

    shape: tuple[int, ...]
    axes: str
    spacing: SpacingDoc
    origin: tuple[float, ...]
    direction: tuple[tuple[float, ...], ...]
    frame: Literal["stage", "RAS"]


class InputFact(Document):
    """The input as it was read."""

    path: str
    sha256: str
    """Of the file's bytes; of the sorted (name, SHA-256) list for a folder."""
    n_bytes: int
    dtype: str
    geometry: GeometryDoc
    notes: tuple[NoteDoc, ...] = ()


class ModelFact(Document):
    """The model as it was used."""

    id: str
    version: str = ""
    engine: str
    sha256: str | None = None
    """Of the model's weights; None for engines without weights."""
    licence: str = ""


class RuntimeFact(Document):
    """What computed it."""

    device: str
    runtime: str
    precision: str
    check: str = ""
    """How the runtime was compared with the reference implementation, in words."""


class LabelsFact(Document):
    """The result."""

    path: str
    sha256: str
    """Of the voxels (C order, little-endian), independent of how they are stored."""
    dtype: str
    shape: tuple[int, ...]
    is_instance: bool
    max_id: int
    n_objects: int
    n_foreground_voxels: int


class RunManifest(Document):
    """Left in every run folder as ``manifest.json``.

    ``status`` is ``finished`` only when every planned tile is done.
    """

    format_version: Literal[1] = 1
    status: Literal["running", "finished", "failed", "cancelled"]
    request: SegmentRequest
    options_resolved: dict[str, JsonValue] = Field(default_factory=dict)
    """Every option as it was used, defaults included."""
    input: InputFact
    model: ModelFact
    runtime: RuntimeFact | None = None
    tiles_done: int = 0
    tiles_planned: int = 0
    labels: LabelsFact | None = None
    restoration: dict[str, JsonValue] | None = None
    """What was done to the image before it was segmented; None where nothing was asked for."""
    confidence: dict[str, JsonValue] | None = None
    """How sure the engine was of each class; None where nobody asked."""
    outputs: dict[str, str] = Field(default_factory=dict)
    """Further files by purpose (objects, report, export), relative to the run folder or whole."""
    warnings: tuple[NoteDoc, ...] = ()
    problem: Problem | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    started: str = ""
    """ISO 8601, UTC."""
    finished: str | None = None
    elapsed_s: float = 0.0
    timings_s: dict[str, float] = Field(default_factory=dict)
