"""What a run says while it runs: the same numbered documents in a file, a socket or a terminal."""

from typing import Annotated, Any, Literal, Protocol, runtime_checkable

from pydantic import Field, TypeAdapter

from lamella.wire.document import Document, JsonValue
from lamella.wire.problem import Problem
from lamella.wire.state import JobState

__all__ = [
    "Event",
    "EventPage",
    "EventSink",
    "FailedEvent",
    "FinishedEvent",
    "LabelsDelta",
    "LogEvent",
    "PreviewEvent",
    "ProgressEvent",
    "RunEvent",
    "StartedEvent",
    "StateEvent",
    "WarningEvent",
    "parse_event",
]


class RunEvent(Document):
    """Base: ``number`` and ``time_s`` (Unix time) are filled in by whoever records the event."""

    number: int = 0
    time_s: float = 0.0


class StartedEvent(RunEvent):
    """The run began, or goes on where it had stopped, which a log event then tells."""

    type: Literal["started"] = "started"
    run: str
    model: str
    shape: tuple[int, ...]


class ProgressEvent(RunEvent):
    """``done`` of ``total`` in ``unit`` within ``stage``; ``eta_s`` for the stage, once known."""

    type: Literal["progress"] = "progress"
    stage: str
    done: float
    total: float
    unit: str = ""
    eta_s: float | None = None


class LabelsDelta(Document):
    """Labels of a box, compressed, for those who cannot read the run folder."""

    dtype: Literal["uint8", "uint16", "uint32", "uint64"]
    shape: tuple[int, ...]
    """Of the labels sent: the event's box divided by ``factors``, rounded up."""
    factors: tuple[float, ...]
    """Voxels of the input per voxel sent: the event's own, times those by which it was thinned."""
    encoding: Literal["zlib+base64"] = "zlib+base64"
    """zlib (RFC 1950) of the little-endian C-order bytes, then base64."""
    data: str


class PreviewEvent(RunEvent):
    """Labels that can be shown now.

    A coarse pass covers the whole volume at ``factors`` (full-resolution voxels per preview voxel);
    later events name the box (full-resolution voxels) whose final labels are on disk.
    """

    type: Literal["preview"] = "preview"
    path: str
    """Array that holds the labels, relative to the run folder."""
    factors: tuple[float, ...]
    box_start: tuple[int, ...]
    box_stop: tuple[int, ...]
    is_final: bool
    """Whether these labels are the run's result, not a coarse guess."""
    labels: LabelsDelta | None = None
    """The labels themselves, where a server sends them."""


class StateEvent(RunEvent):
    """A job on a server changed its state, or its place in the queue."""

    type: Literal["state"] = "state"
    state: JobState
    attempt: int = 0
    """How often the job was started, this time included."""
    position: int | None = None
    """Jobs ahead in the queue, plus one; None for a job that does not wait."""
    eta_s: float | None = None
    """Expected seconds until it starts (queued) or ends (running)."""
    message: str = ""
    problem: Problem | None = None


class LogEvent(RunEvent):
    """A line for people."""

    type: Literal["log"] = "log"
    message: str


class WarningEvent(RunEvent):
    """Something the user must know about the result; also listed in the manifest."""

    type: Literal["warning"] = "warning"
    code: str
    message: str


class FinishedEvent(RunEvent):
    """Everything planned is done and on disk."""

    type: Literal["finished"] = "finished"
    n_objects: int | None = None
    elapsed_s: float = 0.0
    summary: dict[str, JsonValue] = Field(default_factory=dict)


class FailedEvent(RunEvent):
    """The run stopped; ``problem.code`` is ``cancelled`` when someone asked for it."""

    type: Literal["failed"] = "failed"
    problem: Problem


Event = Annotated[
    StartedEvent
    | StateEvent
    | ProgressEvent
    | PreviewEvent
    | LogEvent
    | WarningEvent
    | FinishedEvent
    | FailedEvent,
    Field(discriminator="type"),
]

_ADAPTER: TypeAdapter[Any] = TypeAdapter(Event)


class EventPage(Document):
    """Events of a job after a number, in order, none left out."""

    events: tuple[Event, ...]
    last: int
    """Number of the newest event there is; ask again with the last number that came."""
    state: JobState
    """Of the job, now."""


def parse_event(line: str | bytes, *, extra: Literal["forbid", "ignore"] = "forbid") -> Any:
    """An event from a line of JSON; ``extra`` says what becomes of unknown fields."""
    return _ADAPTER.validate_json(line, extra=extra)


@runtime_checkable
class EventSink(Protocol):
    """Where a run reports.

    Contract: ``emit`` returns quickly and never raises for a slow listener; ``check`` raises
    :class:`lamella.core.errors.RunCancelledError` once someone asked the run to stop. A
    :class:`lamella.core.progress.SilentSink` qualifies.
    """

    def emit(self, event: Any, /) -> None:
        """Report an event."""
        ...

    def check(self) -> None:
        """Raise if the run should stop."""
        ...
