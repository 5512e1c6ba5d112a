"""Progress and cancellation: the one way long work talks to whoever waits for it.

Libraries emit; only the command line, the server and the desktop draw.

Examples:
    >>> sink = SilentSink()
    >>> sink.emit(Progress("reading", 1, 4, "slices"))
    >>> sink.token.cancel()
    >>> sink.check()
    Traceback (most recent call last):
    ...
    lamella.core.errors.RunCancelledError: cancelled
"""

import threading
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from lamella.core.errors import RunCancelledError

__all__ = ["CancelToken", "Progress", "ProgressSink", "SilentSink"]


@dataclass(frozen=True, slots=True)
class Progress:
    """A step of long work: ``done`` of ``total`` in ``unit``, within ``stage``."""

    stage: str
    done: float
    total: float
    unit: str = ""

    @property
    def fraction(self) -> float:
        """Share done, 0..1; an empty stage counts as done."""
        return 1.0 if self.total <= 0 else min(1.0, self.done / self.total)


class CancelToken:
    """A flag that any thread may set and the working thread asks for between steps."""

    def __init__(self) -> None:
        self._event = threading.Event()

    @property
    def is_cancelled(self) -> bool:
        """Whether someone asked the work to stop."""
        return self._event.is_set()

    def cancel(self) -> None:
        """Ask the work to stop at its next safe point."""
        self._event.set()

    def check(self) -> None:
        """Stop here if someone asked for it.

        Raises:
            RunCancelledError: after :meth:`cancel` was called.
        """
        if self._event.is_set():
            raise RunCancelledError("cancelled", hint="run the same request again to go on")


@runtime_checkable
class ProgressSink(Protocol):
    """Where long work reports.

    Contract:
        * ``emit`` returns quickly and never raises for a slow or absent listener.
        * ``check`` raises :class:`RunCancelledError` once cancellation was asked for; callers
          call it only where stopping leaves nothing half-done.
    """

    def emit(self, progress: Progress, /) -> None:
        """Report a step."""
        ...

    def check(self) -> None:
        """Raise if the work should stop."""
        ...


class SilentSink:
    """A sink that nobody listens to, still cancellable through its ``token``."""

    def __init__(self, token: CancelToken | None = None) -> None:
        self.token = token or CancelToken()

    def emit(self, progress: object, /) -> None:
        """Drop the report."""

    def check(self) -> None:
        """Raise if ``token`` was cancelled."""
        self.token.check()
