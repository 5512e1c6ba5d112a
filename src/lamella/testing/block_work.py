"""What contract suites let workers of blocks do; light, for every worker imports it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lamella.core.errors import EngineError

__all__ = ["run_idle", "work"]


def work(document: Mapping[str, Any]) -> dict[str, Any]:
    """Note that it ran, then do what the document says; imported by workers."""
    folder = Path(document["folder"])
    with (folder / f"{document['n']}.ran").open("a") as stream:
        stream.write(f"{os.getpid()}\n")
    time.sleep(float(document.get("pause_s", 0.0)))
    how = document.get("how", "")
    n_times = len((folder / f"{document['n']}.ran").read_text().splitlines())
    if how == "raise":
        raise EngineError("it does not work", hint="try another")
    is_elsewhere = os.getpid() != document.get("pid", 0)
    if how == "die" or (how == "die once" and n_times == 1 and is_elsewhere):
        os.kill(os.getpid(), signal.SIGKILL)
    return {"n": document["n"], "square": document["n"] ** 2}


def run_idle(function: str, documents: Mapping[int, Mapping[str, Any]]) -> dict[int, Any]:
    """What a job does on a Dask worker: run documents with the help of the others."""
    from lamella.jobs.idle_blocks import idle_blocks

    runner = idle_blocks()
    assert runner is not None, "this is a worker"
    return dict(answer for answer in runner.run(function, documents) if answer is not None)
