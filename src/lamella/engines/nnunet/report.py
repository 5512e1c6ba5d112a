"""What the loop and the label store tell, as events."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lamella.engines.nnunet.write import turned
from lamella.wire.event import PreviewEvent, ProgressEvent

if TYPE_CHECKING:
    from lamella.core.progress import Progress
    from lamella.volume.box import Box
    from lamella.wire.event import EventSink

__all__ = ["QuietSink", "TileListener"]


@dataclass(frozen=True, slots=True)
class TileListener:
    """Turns what the loop tells into events.

    Attributes:
        sink: hears them.
        stage: name of the step.
        transpose: axis of the input that is axis i of the plans.
        n_spatial: axes of the input.
        labels: name of the labels that are final once written; None where they are not.
    """

    sink: EventSink
    stage: str
    transpose: tuple[int, int, int]
    n_spatial: int
    labels: str | None

    def check(self) -> None:
        """Raise if the caller cancelled."""
        self.sink.check()

    def tiles(self, done: int, total: int, eta_s: float | None) -> None:
        """Report progress."""
        self.sink.emit(
            ProgressEvent(stage=self.stage, done=done, total=total, unit="tiles", eta_s=eta_s)
        )

    def finished(self, box: Box) -> None:
        """Announce final labels."""
        if self.labels is None:
            return
        back = turned(box, tuple(self.transpose.index(axis) for axis in range(3)))
        n = self.n_spatial
        self.sink.emit(
            PreviewEvent(
                path=self.labels,
                factors=(1.0,) * n,
                box_start=back.start[3 - n :],
                box_stop=back.stop[3 - n :],
                is_final=True,
            )
        )


class QuietSink:
    """Lets the label store ask for cancellation and report its steps as events."""

    def __init__(self, sink: EventSink) -> None:
        self._sink = sink

    def emit(self, progress: Progress, /) -> None:
        """Report a step as an event."""
        self._sink.emit(
            ProgressEvent(
                stage=progress.stage, done=progress.done, total=progress.total, unit=progress.unit
            )
        )

    def check(self) -> None:
        """Raise if the caller cancelled."""
        self._sink.check()
