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
        work: does what there is to do, and ends.
    """

    def __init__(self, executor: Executor, work: Callable[[], None]) -> None:
        self._executor = executor
        self._work = work
        self._turn: Future[None] | None = None

    def nudge(self) -> None:
        """Begin a turn, unless one goes on; raise what went wrong in the one before."""
        if self._turn is None or self._turn.done():
            if self._turn is not None:
                self._turn.result()
            self._turn = self._executor.submit(self._work)

    async def finish(self) -> None:
        """Wait for the turn that goes on; raise what went wrong in it."""
        if self._turn is not None:
            await asyncio.wrap_future(self._turn)


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
