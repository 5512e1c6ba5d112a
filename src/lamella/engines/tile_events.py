"""What the tile loop and the label store tell, as events: for engines that use them.

Example:
    >>> from lamella.core.progress import SilentSink
    >>> TileEvents(SilentSink()).tiles(1, 4, None)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lamella.wire.event import LogEvent, PreviewEvent, ProgressEvent

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lamella.core.progress import Progress
    from lamella.inference.journal import JournalState
    from lamella.volume.box import Box
    from lamella.wire.event import EventSink

__all__ = ["CheckOnly", "QuietSink", "TileEvents", "announce_whole", "say_what_is_kept"]


@dataclass(frozen=True, slots=True)
class TileEvents:
    """Turns what the loop tells into events.

    Attributes:
        sink: hears them, and is asked for cancellation.
        stage: name of the step.
        labels: name of the labels that are final once a box of them is written; None where they
            are not: coarse ones, or a foreground that is still to be split into objects.
        n_axes: spatial axes of the input.
        on_input: from a box of the loop's grid to one of the input's; None where they are the same.
    """

    sink: EventSink
    stage: str = "tiles"
    labels: str | None = None
    n_axes: int = 3
    on_input: Callable[[Box], Box] | None = None

    def check(self) -> None:
        """Raise if the caller cancelled."""
        self.sink.check()

    def tiles(self, done: int, total: int, eta_s: float | None) -> None:
        """Report progress."""
        self.sink.emit(
            ProgressEvent(stage=self.stage, done=done, total=total, unit="tiles", eta_s=eta_s)
        )

    def finished(self, box: Box) -> None:
        """Announce final labels of a box, (z, y, x)."""
        if self.labels is None:
            return
        place = box if self.on_input is None else self.on_input(box)
        n = self.n_axes
        self.sink.emit(
            PreviewEvent(
                path=self.labels,
                factors=(1.0,) * n,
                box_start=place.start[3 - n :],
                box_stop=place.stop[3 - n :],
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


class CheckOnly:
    """Lets a writer ask for cancellation; its small steps are not reported."""

    def __init__(self, sink: EventSink) -> None:
        self._sink = sink

    def emit(self, progress: Progress, /) -> None:
        """Drop the report."""

    def check(self) -> None:
        """Raise if the caller cancelled."""
        self._sink.check()


def announce_whole(
    sink: EventSink, name: str, shape: Sequence[int], factors: Sequence[float] | None = None
) -> None:
    """Announce labels of the whole input.

    Args:
        sink: of the run.
        name: of the labels in the run folder.
        shape: of the input, its spatial axes.
        factors: voxels of the input per voxel of coarse labels; None for the final ones.
    """
    sink.emit(
        PreviewEvent(
            path=name,
            factors=(1.0,) * len(shape) if factors is None else tuple(factors),
            box_start=(0,) * len(shape),
            box_stop=tuple(shape),
            is_final=factors is None,
        )
    )


def say_what_is_kept(sink: EventSink, state: JournalState, *, n_layers: int) -> None:
    """Tell that a run goes on, where an earlier one left something.

    Args:
        sink: of the run.
        state: what the journal says is done.
        n_layers: layers of the whole run, over all columns.
    """
    if state.layers:
        done = sum(state.layers.values())
        sink.emit(LogEvent(message=f"going on: {done} of {n_layers} layers are on disk already"))
