"""What an earlier job left in a run folder: gone on with where it was equal, else removed."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from lamella.core.errors import UnreadableFileError
from lamella.wire.event import LogEvent

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from lamella.io.label_store import LabelStore
    from lamella.wire.event import EventSink

__all__ = ["remove_left", "reopen_labels", "say_what_changed"]


def reopen_labels(path: Path) -> LabelStore | None:
    """Labels as they were left; None where there are none that can be written further."""
    from lamella.io.label_store import LabelStore

    try:
        return LabelStore.reopen(path) if path.exists() else None
    except UnreadableFileError:
        return None


def remove_left(*paths: Path) -> None:
    """Remove folders and files, as far as they are there."""
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def say_what_changed(sink: EventSink, changed: Sequence[str]) -> None:
    """Tell why nothing is kept of an earlier job.

    Args:
        sink: of the run.
        changed: parts of the fingerprint that differ.
    """
    sink.emit(LogEvent(message=f"starting anew: {', '.join(changed)} changed since the stop"))
