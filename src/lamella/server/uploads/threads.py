"""Threads that receive, hash and write for uploads, and waiting for them."""

import asyncio
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import TypeVar

__all__ = ["Follower", "make_threads", "outlast"]

Result = TypeVar("Result")

_NICENESS = 10


class Follower:
    """Work that keeps up with something that grows: one turn at a time, in a thread.

    Args:
        executor: threads, one of which is used at a time.
        work: does what there is to do, or some of it, and ends.
    """

    def __init__(self, executor: Executor, work: Callable[[], None]) -> None:
        self._executor = executor
        self._work = work
        self._lock = threading.Lock()
        self._turn: Future[None] | None = None
        self._is_running = self._is_wanted = False

    def nudge(self) -> None:
        """Have a turn that begins after this; raise what went wrong in the last."""
        with self._lock:
            if self._is_running:
                self._is_wanted = True
                return
            if self._turn is not None:
                self._turn.result()
            self._begin()

    async def finish(self) -> None:
        """Wait until what was nudged is done; raise what went wrong."""
        while (turn := self._turn) is not None:
            await asyncio.wrap_future(turn)
            if turn is self._turn:
                break

    def _begin(self) -> None:
        self._is_wanted = False
        self._turn = self._executor.submit(self._run)
        self._is_running = True

    def _run(self) -> None:
        try:
            self._work()
        except BaseException:
            with self._lock:
                self._is_running = False
            raise
        with self._lock:
            self._is_running = False
            # By way of the executor: others may have their turns between.
            if self._is_wanted:
                self._begin()


async def outlast(future: "asyncio.Future[Result]") -> Result:
    """The result of work that must end before anything else may happen to its files.

    A cancellation is not lost: it goes on once the work has ended.
    """
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        future.exception()  # looked at, so that nobody complains that it was not
        raise cancelled
    return future.result()


def make_threads(n_threads: int, name: str) -> ThreadPoolExecutor:
    """Threads that step back behind the event loop: many uploads must not slow down answers."""
    return ThreadPoolExecutor(n_threads, thread_name_prefix=name, initializer=_step_back)


def _step_back() -> None:
    if sys.platform == "linux":  # where a priority is a thread's, not a process's
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
