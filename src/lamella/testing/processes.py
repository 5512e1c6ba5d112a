"""Processes that tests start, and that must not outlive them."""

import ctypes
import signal
import sys
from collections.abc import Callable

__all__ = ["ending_with_parent", "heeding_interrupts"]

_PR_SET_PDEATHSIG = 1


def ending_with_parent(number: int = signal.SIGKILL) -> Callable[[], None]:
    """A ``preexec_fn``: Linux sends the child a signal when the thread that started it ends."""
    # Loaded here: between fork and exec as little as possible is done.
    library = ctypes.CDLL(None) if sys.platform == "linux" else None

    def ask() -> None:
        if library is not None:
            library.prctl(_PR_SET_PDEATHSIG, number)

    return ask


def heeding_interrupts() -> None:
    """A ``preexec_fn``: Ctrl-C ends the child, also below a shell's ``&``, which hides it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
