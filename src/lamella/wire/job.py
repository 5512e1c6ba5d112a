"""Jobs of a server: what is asked for, and what is known about it."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from lamella.wire.document import Document, JsonValue
from lamella.wire.manifest import NoteDoc
from lamella.wire.problem import Problem
from lamella.wire.request import SegmentRequest
from lamella.wire.state import JobState

__all__ = [
    "ArtifactDoc",
    "BatchDoc",
    "BatchSpec",
    "JobDoc",
    "JobPage",
    "JobSpec",
    "ProgressDoc",
    "ViewUrl",
]


class JobSpec(Document):
    """A segmentation that a server is to run.

    ``request.input.path`` names the input: ``volume:ID`` for what was uploaded, an absolute path
    below one of the server's allowed roots, or an ``s3://`` address.
    """

    kind: Literal["segment"] = "segment"
    request: SegmentRequest
    name: str = Field(default="", max_length=200)
    """For people, in lists."""
    priority: Annotated[int, Field(ge=-100, le=100)] = 0
    """Higher runs earlier, among the jobs of one user."""
    exports: tuple[str, ...] = ()
    """Formats in which the labels are also wanted, as suffixes: ``.mrc``, ``.nii.gz``."""

    @field_validator("exports")
    @classmethod
    def _suffixes(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        for value in values:
            if not value.startswith(".") or "/" in value or "\\" in value or len(value) > 16:
                raise ValueError(f"expected a suffix such as .mrc, got {value!r}")
        return tuple(dict.fromkeys(values))


class ProgressDoc(Document):
    """How far a job has come: its last progress event."""

    stage: str
    done: float
    total: float
    unit: str = ""
    eta_s: float | None = None


class JobDoc(Document):
    """A job as its owner sees it."""

    id: str
    owner: str
    spec: JobSpec
    state: JobState
    attempt: int = 0
    batch: str | None = None
    created: str
    """ISO 8601, UTC, as all times here."""
    started: str | None = None
    finished: str | None = None
    position: int | None = None
    """Jobs ahead in the queue, plus one; None for a job that does not wait."""
    eta_s: float | None = None
    """Expected seconds until it starts (queued) or ends (running); None = not known."""
    progress: ProgressDoc | None = None
    n_objects: int | None = None
    warnings: tuple[NoteDoc, ...] = ()
    problem: Problem | None = None
    last_event: int = 0
    """Number of the newest event; 0 in lists, which do not look for it."""
    summary: dict[str, JsonValue] = Field(default_factory=dict)


class JobPage(Document):
    """Jobs, newest first; ``next_cursor`` asks for the following ones."""

    jobs: tuple[JobDoc, ...]
    next_cursor: str | None = None


class BatchSpec(Document):
    """Many jobs at once: all are taken, or none."""

    jobs: Annotated[tuple[JobSpec, ...], Field(min_length=1, max_length=1000)]
    name: str = Field(default="", max_length=200)


class BatchDoc(Document):
    """A batch and how many of its jobs are in which state."""

    id: str
    name: str
    owner: str
    created: str
    states: dict[str, int]
    jobs: tuple[str, ...]


class ArtifactDoc(Document):
    """A file that a job left; ``url`` can be fetched without a token until ``expires``."""

    name: str
    media_type: str
    n_bytes: int | None = None
    """None for exports that are made when they are first asked for."""
    sha256: str | None = None
    url: str
    expires: str


class ViewUrl(Document):
    """Where a viewer reads a volume or labels as OME-Zarr, without a token until ``expires``."""

    url: str
    state: Literal["ready", "preparing", "failed"]
    """Preparing: its pyramid is being made; readers find nothing there yet."""
    expires: str
    version: str | None = None
    """Of NGFF: ``0.4`` or ``0.5``; None while it is prepared."""
    problem: Problem | None = None
