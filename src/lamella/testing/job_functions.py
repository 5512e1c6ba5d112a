"""What the contract suites of executors and queues let workers do; imported by worker processes."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

from lamella.core.errors import InputError
from lamella.jobs.work import JobContext
from lamella.wire.event import LogEvent, ProgressEvent

__all__ = ["allocate", "count", "crash", "fail", "hold", "look", "shout", "wait", "write"]

_MODULE = "lamella.testing.job_functions"


def name_of(function: Any) -> str:
    """How :class:`~lamella.jobs.attempt.Work` names a function of this module."""
    return f"{_MODULE}:{function.__name__}"


def count(document: dict[str, Any], context: JobContext) -> dict[str, Any]:
    """Count to ``n``, an event each, ``pause_s`` apart; go on where an earlier attempt stopped.

    What was reported for sure is also written to ``told.txt``, number by number: the judge of
    whether an event was lost.
    """
    n, pause_s = int(document["n"]), float(document.get("pause_s", 0.0))
    told = context.folder / "told.txt"
    begin = _n_lines(told)
    context.emit(LogEvent(message=f"pid {os.getpid()}"))
    with told.open("ab", buffering=0) as stream:
        for i in range(begin, n):
            context.check()
            context.emit(LogEvent(message=f"told {i}"))
            stream.write(b"%d\n" % i)
            if i % 10 == 0:
                context.emit(ProgressEvent(stage="counting", done=i, total=n))
            time.sleep(pause_s)
    return {"n": n, "began_at": begin}


def wait(document: dict[str, Any], context: JobContext) -> None:
    """Wait until somebody cancels, or ``limit_s`` is over."""
    context.emit(LogEvent(message=f"pid {os.getpid()}"))
    deadline = time.monotonic() + float(document.get("limit_s", 60.0))
    while time.monotonic() < deadline:
        context.check()
        time.sleep(0.01)


def hold(document: dict[str, Any], context: JobContext) -> None:
    """Work for ``hold_s`` without ever asking whether to stop, writing all the time."""
    context.emit(LogEvent(message=f"pid {os.getpid()}"))
    write({**document, "seconds": document["hold_s"]}, context)


def write(document: dict[str, Any], context: JobContext) -> None:
    """Write the attempt's number to ``writes.txt`` for some seconds, and report as often."""
    deadline = time.monotonic() + float(document["seconds"])
    with (context.folder / "writes.txt").open("ab", buffering=0) as stream:
        while time.monotonic() < deadline:
            stream.write(b"%d\n" % context.attempt)
            context.emit(LogEvent(message=f"attempt {context.attempt}"))
            time.sleep(0.02)


def crash(document: dict[str, Any], context: JobContext) -> dict[str, Any]:
    """Kill the worker in the first ``n_crashes`` attempts, in the middle of work."""
    context.emit(LogEvent(message=f"attempt {context.attempt}"))
    if context.attempt <= int(document["n_crashes"]):
        os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
        time.sleep(60)
    return {"attempt": context.attempt}


def fail(document: dict[str, Any], context: JobContext) -> dict[str, Any]:
    """Fail as ``how`` says."""
    del context
    if document["how"] == "lamella":
        raise InputError("the moon is full", hint="wait a week", details={"moon": 1.0})
    if document["how"] == "exit":
        sys.exit(3)
    if document["how"] == "memory":
        raise MemoryError
    if document["how"] == "no-json":
        return {"value": object()}
    raise ZeroDivisionError("by zero")


def shout(document: dict[str, Any], context: JobContext) -> dict[str, Any]:
    """Print in every way there is."""
    del document, context
    sys.stdout.write("by Python\n")
    sys.stdout.flush()
    os.write(1, b"by descriptor 1\n")
    os.write(2, b"by descriptor 2\n")
    return {}


def look(document: dict[str, Any], context: JobContext) -> dict[str, Any]:
    """Tell how this worker was set up."""
    del document, context
    names = ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "CUDA_VISIBLE_DEVICES")
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ()
    return {
        "pid": os.getpid(),
        "environment": {name: os.environ.get(name) for name in names},  # noqa: TID251
        "n_cores": len(cores),
        "modules": [name for name in ("numpy", "torch") if name in sys.modules],
        "path": sys.path,
    }


def allocate(document: dict[str, Any], context: JobContext) -> None:
    """Take memory and hold it until somebody cancels."""
    taken = bytearray(int(document["n_bytes"]))
    taken[::4096] = b"x" * len(taken[::4096])
    wait(document, context)


def _n_lines(path: Any) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0
