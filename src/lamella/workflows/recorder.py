"""Every event of a run, numbered, in ``events.jsonl`` and to whoever listens.

Plain ``Progress`` of lower rooms becomes a ``ProgressEvent`` with an ETA, so that listeners see
one kind of document. Progress comes at most four times a second; nothing else is ever dropped.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from lamella.core.progress import Progress
from lamella.wire.event import EventSink, ProgressEvent, RunEvent, WarningEvent
from lamella.wire.manifest import NoteDoc

__all__ = ["Recorder"]

_PAUSE_S = 0.25


class Recorder:
    """An event sink that numbers, records and passes on; a context manager.

    Args:
        path: the JSON lines file; lines of an earlier, interrupted run are kept and counted.
        listener: also receives every event, and is asked for cancellation.
        clock: seconds, for tests.
    """

    def __init__(
        self, path: Path, listener: EventSink, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._listener = listener
        self._clock = clock
        self._number, n_bytes = _recorded(path)
        self._stream: IO[bytes] | None = None
        try:
            self._stream = path.open("r+b" if n_bytes else "wb")
            self._stream.truncate(n_bytes)
            self._stream.seek(n_bytes)
        except OSError:
            # The labels will meet the same disk and say so; a diary must not be what fails.
            self._stream = None
        self._stage = ""
        self._stage_began = 0.0
        self._stage_first = 0.0
        self._last_progress = 0.0
        self.warnings: list[NoteDoc] = []

    def emit(self, event: Any, /) -> None:
        """Number, record and pass on an event or a ``Progress``."""
        if isinstance(event, Progress):
            event = ProgressEvent(
                stage=event.stage, done=event.done, total=event.total, unit=event.unit
            )
        if isinstance(event, ProgressEvent):
            if not self._is_due(event):
                return
            event = self._with_eta(event)
        if isinstance(event, WarningEvent) and not self._remember(event):
            return
        if isinstance(event, RunEvent):
            self._number += 1
            event = event.model_copy(update={"number": self._number, "time_s": time.time()})
            self._record(event)
        self._listener.emit(event)

    def check(self) -> None:
        """Raise if the listener wants the run to stop."""
        self._listener.check()

    def warn(self, code: str, message: str) -> None:
        """Emit a warning."""
        self.emit(WarningEvent(code=code, message=message))

    def close(self) -> None:
        """Close the file."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _remember(self, event: WarningEvent) -> bool:
        """Keep a warning; False when exactly this was said before."""
        note = NoteDoc(code=event.code, message=event.message)
        if note in self.warnings:
            return False
        self.warnings.append(note)
        return True

    def _is_due(self, event: ProgressEvent) -> bool:
        now = self._clock()
        is_new = event.stage != self._stage
        if is_new:
            self._stage, self._stage_began, self._stage_first = event.stage, now, event.done
        is_last = event.done >= event.total
        if not is_new and not is_last and now - self._last_progress < _PAUSE_S:
            return False
        self._last_progress = now
        return True

    def _with_eta(self, event: ProgressEvent) -> ProgressEvent:
        done_here = event.done - self._stage_first
        if event.eta_s is not None or done_here <= 0:
            return event
        pace = (self._clock() - self._stage_began) / done_here
        return event.model_copy(update={"eta_s": round(pace * (event.total - event.done), 1)})

    def _record(self, event: RunEvent) -> None:
        if self._stream is None:
            return
        line = json.dumps(event.model_dump(mode="json"), ensure_ascii=False) + "\n"
        try:
            self._stream.write(line.encode())
            self._stream.flush()
        except OSError:
            self._stream = None


def _recorded(path: Path) -> tuple[int, int]:
    """Number of the last whole line of a file, and where it ends."""
    try:
        content = path.read_bytes()
    except OSError:
        return 0, 0
    number, n_bytes = 0, 0
    for line in content.splitlines(keepends=True):
        try:
            if not line.endswith(b"\n"):
                break
            number = int(json.loads(line)["number"])
        except (ValueError, KeyError, TypeError):
            break
        n_bytes += len(line)
    return number, n_bytes
