"""Let what an attempt prints lie in its own log, also what native libraries print."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from lamella.jobs.attempt import Work

__all__ = ["printing_to_log"]

_LOCK = threading.Lock()


@contextmanager
def printing_to_log(work: Work) -> Iterator[None]:
    """Point the descriptors 1 and 2 of this process at ``worker-N.log`` of the job's folder.

    A process has one pair of them: where several attempts run in its threads, the first one that
    comes has them, and the others print where they printed before.
    """
    if not _LOCK.acquire(blocking=False):
        yield
        return
    try:
        before = os.dup(1), os.dup(2)
        path = work.folder / f"worker-{work.attempt}.log"
        try:
            target = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
        except OSError:
            # The work itself will meet the same disk, and say so.
            target = os.open(os.devnull, os.O_WRONLY)
        _redirect(target, target)
        os.close(target)
        try:
            yield
        finally:
            _redirect(*before)
            for descriptor in before:
                os.close(descriptor)
    finally:
        _LOCK.release()


def _redirect(output: int, errors: int) -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os.dup2(output, 1)
    os.dup2(errors, 2)
