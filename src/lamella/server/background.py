"""Work that the server does itself, in processes of their own: exports, pyramids.

Not for what users wait for in a queue: a task is seconds to minutes, may be done twice, and is
simply asked for again after a restart. Functions take and return JSON values.
"""

from __future__ import annotations

import json
import logging
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from lamella.core.errors import RunError
from lamella.wire.problem import Problem

if TYPE_CHECKING:
    from lamella.server.services import Services

__all__ = ["Background", "TaskState", "open_background"]

logger = logging.getLogger(__name__)

_N_THREADS = 2
_REMEMBERED_S = 600.0
"""A failure is told for so long; then the task is tried again by whoever asks."""
_CHILD = "from lamella.server.child import main; main()"


@dataclass(frozen=True, slots=True)
class TaskState:
    """How a task is.

    Attributes:
        state: tasks that are done are forgotten: what they made is there.
        problem: why it failed.
        since: when it failed, on the clock.
    """

    state: Literal["waiting", "running", "failed"]
    problem: Problem | None = None
    since: float = 0.0


@dataclass(frozen=True, slots=True)
class _Task:
    key: str
    function: str
    document: Mapping[str, Any]
    done: Callable[[], None] | None


class Background:
    """Runs tasks by key, each at most once at a time; safe to use from several threads.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._states: dict[str, TaskState] = {}
        self._queue: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._children: set[subprocess.Popen[bytes]] = set()
        self._threads: list[threading.Thread] = []
        self._is_closing = False

    def start(self) -> None:
        """Begin to work."""
        for number in range(_N_THREADS):
            thread = threading.Thread(target=self._serve, name=f"background-{number}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self) -> None:
        """End what runs; what waits is forgotten."""
        with self._lock:
            self._is_closing = True
            for child in self._children:
                child.kill()
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join(timeout=10)

    def submit(
        self,
        key: str,
        function: str,
        document: Mapping[str, Any],
        done: Callable[[], None] | None = None,
    ) -> TaskState:
        """Do something unless it is being done, or has just failed.

        Args:
            key: what is made.
            function: ``package.module:function``, called with ``document`` in another process.
            document: JSON values.
            done: called in a thread of this process when it was made.
        """
        with self._lock:
            known = self._known(key)
            if known is not None:
                return known
            state = self._states[key] = TaskState("waiting")
        self._queue.put(_Task(key, function, document, done))
        return state

    def state(self, key: str) -> TaskState | None:
        """How a task is; None for one that is done, or that nobody asked for."""
        with self._lock:
            return self._known(key)

    def forget(self, key: str) -> None:
        """Try a task that failed again when it is next asked for."""
        with self._lock:
            if (known := self._states.get(key)) is not None and known.state == "failed":
                del self._states[key]

    @property
    def n_tasks(self) -> int:
        """Tasks that wait or run."""
        with self._lock:
            return sum(state.state != "failed" for state in self._states.values())

    def _known(self, key: str) -> TaskState | None:
        known = self._states.get(key)
        if (
            known is not None
            and known.state == "failed"
            and self._clock() >= known.since + _REMEMBERED_S
        ):
            del self._states[key]
            return None
        return known

    def _serve(self) -> None:
        while (task := self._queue.get()) is not None:
            with self._lock:
                if self._is_closing:
                    return
                self._states[task.key] = TaskState("running")
            problem = self._run(task)
            with self._lock:
                del self._states[task.key]
                if problem is not None and not self._is_closing:
                    self._states[task.key] = TaskState("failed", problem, self._clock())
            if problem is not None and not self._is_closing:
                logger.warning("%s failed: %s: %s", task.key, problem.code, problem.message)
            elif task.done is not None and problem is None:
                _call(task.done)

    def _run(self, task: _Task) -> Problem | None:
        try:
            # The interpreter itself, and a fixed line of code.
            child = subprocess.Popen(
                [sys.executable, "-c", _CHILD],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        except OSError as error:
            return Problem.from_error(error)
        with self._lock:
            self._children.add(child)
        try:
            request = {"function": task.function, "document": dict(task.document)}
            answer, _ = child.communicate(json.dumps(request).encode())
        finally:
            with self._lock:
                self._children.discard(child)
        try:
            values = json.loads(answer)
        except ValueError:
            gone = RunError(
                f"the process for {task.key} ended with code {child.returncode} and no answer",
                hint="it may have run out of memory; the server's own log says more",
            )
            return Problem.from_error(gone)
        return None if values["problem"] is None else Problem.model_validate(values["problem"])


def _call(done: Callable[[], None]) -> None:
    try:
        done()
    except Exception:
        # The next task must be done, whatever became of this one.
        logger.exception("what follows a task failed")


def open_background(services: Services) -> Background:
    """The background work of a server."""
    made = Background()
    services.metrics.gauge(
        "lamella_background_tasks", "Pyramids and exports being made.", lambda: made.n_tasks
    )
    return made
