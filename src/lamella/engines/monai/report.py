"""What the loop and the label store tell, as events."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lamella.wire.event import LogEvent, PreviewEvent, ProgressEvent

if TYPE_CHECKING:
    from lamella.core.progress import Progress
    from lamella.engines.monai.target import Target
    from lamella.volume.box import Box
    from lamella.wire.event import EventSink

__all__ = ["QuietSink", "TileListener"]


class TileListener:
    """Turns what the loop tells into events.

    Args:
        sink: of the run.
        target: where labels go; None for a preview, which is silent about boxes.
        n_axes: spatial axes of the input.
        is_final: whether these labels are the result.
    """

    def __init__(
        self, sink: EventSink, target: Target | None, *, n_axes: int, is_final: bool
    ) -> None:
        self._sink = sink
        self._target = target
        self._n_axes = n_axes
        self._is_final = is_final
        if target is not None and target.done.layers:
            done = sum(target.done.layers.values())
            total = target.grid.shape[0] * len(target.plan.columns)
            sink.emit(LogEvent(message=f"going on: {done} of {total} layers are on disk already"))

    def check(self) -> None:
        """Raise if the caller cancelled."""
        self._sink.check()

    def tiles(self, done: int, total: int, eta_s: float | None) -> None:
        """Report progress, as stage ``tiles`` or ``preview``."""
        stage = "preview" if self._target is None else "tiles"
        self._sink.emit(
            ProgressEvent(stage=stage, done=done, total=total, unit="tiles", eta_s=eta_s)
        )

    def finished(self, box: Box) -> None:
        """Announce final labels."""
        if self._target is None or not self._is_final:
            return
        n = self._n_axes
        self._sink.emit(
            PreviewEvent(
                path=self._target.store.path.name,
                factors=(1.0,) * n,
                box_start=box.start[3 - n :],
                box_stop=box.stop[3 - n :],
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
