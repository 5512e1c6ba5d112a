"""The worker's end of :mod:`lamella.jobs.local`: one process, one attempt at a time.

Started as ``python -m lamella.jobs.worker_process``. Orders are lines of JSON on standard input,
answers are lines of JSON on what was standard output when it began; from then on the descriptors 1
and 2 belong to the attempt's ``worker-N.log``, so that also what native libraries print, or say
before they crash, can be read there.

=========  =======================================
orders     fields
=========  =======================================
set-up     environment, cores, preload, parent; the first
work       the fields of :class:`Work`
cancel     job_id, attempt
=========  =======================================

=========  =======================================
answers    fields
=========  =======================================
ready      pid
events     job_id, attempt
outcome    job_id, attempt, status
=========  =======================================

It ends with its parent: on the end of standard input and, on Linux, by the kernel's hand even while
native code runs that lets no other thread in.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import importlib
import json
import os
import queue
import signal
import sys
import threading
from pathlib import Path
from typing import IO, Any

from lamella.jobs.attempt import Work
from lamella.jobs.printing import printing_to_log
from lamella.jobs.process import end_with_parent

__all__ = ["main"]

_NICENESS = 5
"""Answers of the server come first; on a machine with cores to spare it changes nothing."""


class _Worker:
    """Orders come in by one thread, work is done in the main thread."""

    def __init__(self, orders: IO[bytes], answers: int) -> None:
        self._orders = orders
        self._answers = answers
        self._lock = threading.Lock()
        self._work: queue.SimpleQueue[Work] = queue.SimpleQueue()
        self._cancelled: set[tuple[str, int]] = set()
        self._is_terminated = False

    def run(self) -> None:
        """Serve until the parent is gone."""
        set_up = json.loads(self._orders.readline() or b"{}")
        if not set_up:
            return
        end_with_parent(int(set_up["parent"]))
        _be_first_to_go()
        with contextlib.suppress(AttributeError):  # Windows
            os.nice(_NICENESS)
        os.environ.update(set_up["environment"])  # noqa: TID251 - this process is its own
        if set_up["cores"] and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, set_up["cores"])
        for name in set_up["preload"]:
            importlib.import_module(name)
        signal.signal(signal.SIGTERM, self._terminate)
        threading.Thread(target=self._listen, daemon=True).start()
        self._answer(type="ready", pid=os.getpid())
        while not self._is_terminated:
            # A timeout, so that a signal is seen also while there is nothing to do.
            with contextlib.suppress(queue.Empty):
                self._serve(self._work.get(timeout=1.0))

    def _serve(self, work: Work) -> None:
        from lamella.jobs.work import run_work

        key = (work.job_id, work.attempt)
        with printing_to_log(work):
            outcome = run_work(
                work,
                wake=lambda: self._answer(type="events", job_id=key[0], attempt=key[1]),
                is_cancelled=lambda: self._is_terminated or key in self._cancelled,
            )
        self._answer(type="outcome", job_id=key[0], attempt=key[1], status=outcome.status)
        self._cancelled.discard(key)
        # Between jobs: what comes next finds the memory free.
        gc.collect()

    def _listen(self) -> None:
        for line in self._orders:
            order = json.loads(line)
            if order["type"] == "work":
                self._work.put(Work.from_json(order["work"]))
            elif order["type"] == "cancel":
                self._cancelled.add((order["job_id"], order["attempt"]))
        os._exit(0)

    def _terminate(self, *_: object) -> None:
        """Stop at the next safe point; a second signal is not waited for."""
        self._is_terminated = True
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def _answer(self, **fields: Any) -> None:
        line = json.dumps(fields).encode() + b"\n"
        with self._lock:
            try:
                while line:
                    line = line[os.write(self._answers, line) :]
            except OSError:
                os._exit(0)


def _be_first_to_go() -> None:
    """Where memory ends, the kernel shall choose a worker, which is replaced, not the server."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500", encoding="ascii")


def main() -> None:
    """Take over standard input and output, and work."""
    orders = os.fdopen(os.dup(0), "rb")
    answers = os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    # What is printed outside of work belongs to nobody's job: it goes where errors go.
    os.dup2(2, 1)
    faulthandler.enable()
    _Worker(orders, answers).run()
    # Libraries leave threads behind that would hold an ordinary exit up.
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
