"""Many small tasks at once: processes of this machine, or workers of a Dask cluster.

A task is a function by its name and a document; it must be safe to run twice. Whose worker dies is
run again, at most :data:`MAX_LOSSES` times; then the error says so.

Examples:
    >>> from lamella.jobs.blocks import LocalBlocks
    >>> runner = LocalBlocks(n_workers=1)
    >>> answers = runner.run("json:dumps", {7: {"a": 1}})
    >>> [answer for answer in answers if answer is not None]
    [(7, '{"a": 1}')]
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from lamella.core.errors import InputError, RunError
from lamella.jobs.batch_system import ClusterOptions, connect, start_cluster
from lamella.jobs.process import available_cores, end_with_parent

__all__ = [
    "MAX_LOSSES",
    "TICK_S",
    "Answer",
    "DaskBlocks",
    "LocalBlocks",
    "call",
    "dask_answer",
    "lost_worker",
]

MAX_LOSSES = 3
TICK_S = 0.2
"""How often a runner looks for answers."""

Answer = tuple[int, Any]
"""Number of a task, and what its function returned, or the error."""


def call(function: str, document: Mapping[str, Any]) -> Any:
    """Call a function by its name, ``package.module:name``."""
    module, _, name = function.partition(":")
    found: Callable[[Mapping[str, Any]], Any] = getattr(importlib.import_module(module), name)
    return found(document)


class LocalBlocks:
    """Runs tasks in processes of this machine that end with this one.

    Args:
        n_workers: how many at once.
        n_threads: that each may use for numbers; None = its share of the cores.

    Raises:
        InputError: for fewer than one worker.
    """

    def __init__(self, n_workers: int, *, n_threads: int | None = None) -> None:
        if n_workers < 1:
            raise InputError(
                f"expected 1 or more workers for blocks, got {n_workers}", hint="--block-workers 2"
            )
        self.n_workers = n_workers
        self._n_threads = n_threads or max(1, len(available_cores()) // n_workers)

    def run(
        self, function: str, documents: Mapping[int, Mapping[str, Any]]
    ) -> Iterator[Answer | None]:
        """Answers as they come; None every moment in which there is none."""
        left = dict(documents)
        n_losses = 0
        while left:
            pool = self._pool()
            try:
                tasks: dict[Future[Any], int] = {
                    pool.submit(call, function, document): n for n, document in left.items()
                }
                for number, answer in _answers(tasks):
                    if number is None:
                        yield None
                        continue
                    del left[number]
                    n_losses = 0
                    yield number, answer
            except BrokenProcessPool:
                n_losses += 1
            finally:
                # Once: a second call, such as that of a ``with``, would take the cancelling back.
                pool.shutdown(cancel_futures=True)
            if n_losses > MAX_LOSSES:
                # Which of those that ran killed its worker is not known; one of the first did.
                yield next(iter(left)), lost_worker()
                return

    def _pool(self) -> ProcessPoolExecutor:
        # Never fork: there are threads. What a worker imports first decides about its threads.
        return ProcessPoolExecutor(
            self.n_workers,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_begin,
            initargs=(self._n_threads, os.getpid()),
        )


class DaskBlocks:
    """Runs tasks on the workers of a Dask cluster.

    Args:
        options: a scheduler that runs, or a cluster to be started for these tasks.

    Raises:
        ServerConnectionError: when no scheduler answers.
        MissingDependencyError: when Dask is not installed here.
    """

    def __init__(self, options: ClusterOptions) -> None:
        self.options = options
        self._cluster = start_cluster(options) if options.kind else None
        self._client = connect(options, self._cluster)

    @property
    def n_workers(self) -> int:
        """Workers that are there, or may come."""
        return max(1, self.options.maximum, len(self._client.scheduler_info(-1)["workers"]))

    def run(
        self, function: str, documents: Mapping[int, Mapping[str, Any]]
    ) -> Iterator[Answer | None]:
        """Answers as they come; None every moment in which there is none."""
        from distributed import wait as wait_for

        resources = {name.upper(): n for name, n in self.options.resources.items()}
        tasks = {
            self._client.submit(
                call, function, dict(document), pure=False, retries=0, resources=resources or None
            ): number
            for number, document in documents.items()
        }
        try:
            while tasks:
                try:
                    # Dask's function asks for the client of the moment, and ours is no default.
                    with self._client.as_current():
                        waited: Any = wait_for(
                            list(tasks), timeout=TICK_S, return_when=FIRST_COMPLETED
                        )
                except TimeoutError:
                    yield None
                    continue
                for future in waited.done:
                    number = tasks.pop(future)
                    yield number, dask_answer(future)
        finally:
            self._client.cancel(list(tasks), force=True)

    def close(self) -> None:
        """Leave the cluster, or end it where it was started here."""
        self._client.close()
        if self._cluster is not None:
            self._cluster.close()

    def __enter__(self) -> DaskBlocks:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _answers(tasks: dict[Future[Any], int]) -> Iterator[tuple[int | None, Any]]:
    while tasks:
        done, _ = wait(tasks, timeout=TICK_S, return_when=FIRST_COMPLETED)
        if not done:
            yield None, None
        for future in done:
            error = future.exception()
            if isinstance(error, BrokenProcessPool):
                raise error
            yield tasks.pop(future), error or future.result()


def dask_answer(future: Any) -> Any:
    """What a task of a cluster gave that is done: a document, or an error."""
    from distributed import KilledWorker

    error = future.exception() if future.status == "error" else None
    if isinstance(error, KilledWorker):
        return lost_worker()
    if future.status != "finished":
        return error or RunError(
            f"the cluster dropped a task ({future.status})", hint="look at the scheduler's log"
        )
    return future.result()


def lost_worker() -> RunError:
    """The error for a task that has cost too many workers."""
    return RunError(
        f"the worker died {MAX_LOSSES + 1} times",
        hint="it probably ran out of memory: use smaller blocks (--block), or fewer workers",
    )


def _begin(n_threads: int, parent: int) -> None:
    """Set a new worker up, before it imports anything that counts cores."""
    import signal

    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(n_threads)  # noqa: TID251 - a worker's own, not a setting
    # Ctrl-C is the parent's affair: it asks the workers to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent(parent)
