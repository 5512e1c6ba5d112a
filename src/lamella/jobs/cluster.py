"""Attempts on the workers of a Dask cluster, whose nodes see the jobs' folders too.

Dask only carries work to a worker and says when it is done; what counts lies in the folders. So
nothing is lost when messages are: a task that Dask runs twice runs once (the attempt's file is
claimed), one whose worker vanished is reported by the scheduler, and one that outlives this server
is published under its name and found again by the next server.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from lamella.core.errors import RunError, ServerConnectionError
from lamella.jobs.attempt import Outcome, Work, ask_to_stop, attempt_path, claim_attempt
from lamella.jobs.batch_system import ClusterOptions, connect, start_cluster
from lamella.jobs.cluster_worker import TOPIC, cancel_here, leave, run_on_worker
from lamella.jobs.executor import Report, ReportQueue, WorkerFact, worker_stopped
from lamella.wire.problem import Problem

__all__ = ["ClusterExecutor", "ClusterOptions"]

_LOGGER = logging.getLogger(__name__)
_TICK_S = 0.5
_RECONNECT_S = 5.0
_LATE_S = 5.0
_INFINITE = float("inf")

Key = tuple[str, int]


@dataclass
class _Task:
    """An attempt that is with the cluster."""

    work: Work
    future: Any
    address: str = ""
    """Of its worker, once that is known."""
    kill_at: float | None = None
    verdict: Problem | None = None
    n_seen_bytes: int = 0
    is_over_since: float | None = None

    @property
    def key(self) -> Key:
        return self.work.job_id, self.work.attempt

    @property
    def name(self) -> str:
        """The name of the task for Dask."""
        return _name_of(self.work)


class ClusterExecutor:
    """An :class:`~lamella.jobs.executor.Executor` on a Dask cluster.

    A worker takes as many attempts at once as it has threads: start workers with one. Attempts on a
    scheduler that runs elsewhere go on when this server ends; those on a cluster that was started
    here end with it.

    Raises:
        ServerConnectionError: when no scheduler answers.
        InputError: for options that make no cluster.
        MissingDependencyError: when Dask is not installed here.
    """

    def __init__(self, options: ClusterOptions) -> None:
        self.options = options
        self._lock = threading.RLock()
        self._tasks: dict[Key, _Task] = {}
        self._reports = ReportQueue()
        self._chores: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._workers: dict[str, Any] = {}
        self._is_closed = False
        self._reconnect_at = 0.0
        self._cluster = start_cluster(options) if options.kind else None
        self._client = self._connect()
        self._keeper = threading.Thread(target=self._keep, name="cluster", daemon=True)
        self._keeper.start()

    @property
    def name(self) -> str:
        """Who runs the jobs."""
        return self.options.name

    @property
    def outlives_server(self) -> bool:
        """Whether the scheduler runs elsewhere."""
        return self._cluster is None

    def problem(self) -> str | None:
        """Why no job can run now, as far as was heard last.

        The scheduler's address is not told: whoever asks may have shown no token.
        """
        with self._lock:
            if self._client.status != "running":
                return "the scheduler cannot be reached"
            # A batch system starts workers when there is something to do.
            if not self._workers and not self.options.maximum:
                return "the scheduler has no workers"
        return None

    def capacity(self) -> dict[str, float]:
        """Threads of the workers that are there, or may come, less what is with the cluster."""
        with self._lock:
            if self._is_closed or self._client.status != "running":
                return {"cpu": 0.0}
            free = self._all()
            for task in self._tasks.values():
                free["cpu"] -= max(1.0, task.work.resources.get("cpu", 1.0))
                for name, amount in _tags(task.work).items():
                    free[name] = free.get(name, 0.0) - amount
        return {
            name: max(0.0, amount) for name, amount in free.items() if name == "cpu" or amount > 0
        }

    def limits(self) -> dict[str, float]:
        """Any number of attempts, as workers may come; of a tag as much as one worker has."""
        with self._lock:
            most: dict[str, float] = {}
            for worker in self._workers.values():
                for name, amount in worker["resources"].items():
                    most[name.lower()] = max(most.get(name.lower(), 0.0), amount)
        return {**most, **self.options.resources, "cpu": _INFINITE}

    def start(self, work: Work) -> None:
        """Hand an attempt to the scheduler.

        Raises:
            RunError: when nothing is free for it.
        """
        free = self.capacity()
        needs = {"cpu": 1.0} | _tags(work)
        if any(free.get(name, 0.0) < amount for name, amount in needs.items()):
            raise RunError(
                f"no worker of the cluster is free for {work.resources or 'this job'}",
                hint=f"there is {self.limits()}, and free is {free}",
            )
        future = self._client.submit(
            run_on_worker,
            work,
            key=_name_of(work),
            resources={self._dask_name(name): n for name, n in _tags(work).items()} or None,
            pure=False,
            retries=0,
        )
        self._take(work, future)
        if self.outlives_server:
            self._chores.put(partial(self._publish, _name_of(work), future))

    def adopt(self, work: Work) -> bool:
        """Go on with an attempt that a former server gave to this scheduler."""
        if not self.outlives_server:
            return False
        try:
            future = self._client.get_dataset(_name_of(work))
        except (KeyError, OSError, TimeoutError):
            return False
        self._take(work, future)
        self._reports.put(Report(work.job_id, work.attempt, "events"))
        return True

    def cancel(self, job_id: str, attempt: int) -> None:
        """Ask an attempt to stop; its worker is killed if it does not within ``grace_s``."""
        with self._lock:
            task = self._tasks.get((job_id, attempt))
            if task is None:
                return
            if task.kill_at is None:
                grace_s = self.options.grace_s
                task.kill_at = time.monotonic() + grace_s
                task.verdict = worker_stopped(f"it had not stopped after {grace_s:g} s")
            self._chores.put(partial(self._call_back, task))
        with suppress(OSError):
            ask_to_stop(task.work.folder, attempt)

    def poll(self, timeout_s: float) -> Sequence[Report]:
        """Wait for reports; several events of one attempt are one report."""
        return self._reports.poll(timeout_s)

    def wake(self) -> None:
        """Let a waiting :meth:`poll` return."""
        self._reports.wake()

    def workers(self) -> Sequence[WorkerFact]:
        """The workers that the scheduler knows."""
        with self._lock:
            busy = {task.address: task.work.job_id for task in self._tasks.values()}
            return [
                WorkerFact(
                    name=str(worker["name"]),
                    state="busy" if address in busy else "idle",
                    resources={
                        "cpu": float(worker["nthreads"]),
                        **{name.lower(): amount for name, amount in worker["resources"].items()},
                    },
                    job_id=busy.get(address),
                )
                for address, worker in self._workers.items()
            ]

    def close(self, grace_s: float) -> None:
        """Leave a scheduler that runs elsewhere; end a cluster of our own, and what it runs."""
        if self._is_closed:
            return
        if self._cluster is not None:
            for job_id, attempt in list(self._tasks):
                self.cancel(job_id, attempt)
            deadline = time.monotonic() + grace_s
            while self._tasks and time.monotonic() < deadline:
                time.sleep(0.02)
        self._is_closed = True
        self._chores.put(_nothing)
        self._keeper.join(timeout=15.0)
        with suppress(OSError, TimeoutError, RuntimeError):
            self._client.close(timeout=5.0)
        if self._cluster is not None:
            with suppress(OSError, TimeoutError, RuntimeError):
                self._cluster.close(timeout=10.0)
        self.wake()

    # --- The connection -----------------------------------------------------------------------

    def _connect(self) -> Any:
        client = connect(self.options, self._cluster)
        client.subscribe_topic(TOPIC, self._hear)
        client.subscribe_topic("all", self._hear_scheduler)
        self._workers = client.scheduler_info(n_workers=-1)["workers"]
        return client

    def _keep(self) -> None:
        """Do what waits for answers of the scheduler, and look after what nobody reported."""
        looked_at = 0.0
        while not self._is_closed or not self._chores.empty():
            with suppress(queue.Empty):
                self._run(self._chores.get(timeout=_TICK_S))
            if time.monotonic() - looked_at > _TICK_S and not self._is_closed:
                self._run(self._look_after)
                looked_at = time.monotonic()

    def _run(self, chore: Callable[[], None]) -> None:
        try:
            chore()
        except Exception as error:  # noqa: BLE001 - whatever Dask raises
            # The scheduler is away, or a worker has gone in the meantime: looked at again soon.
            _LOGGER.warning("the cluster did not answer: %s", error)

    def _look_after(self) -> None:
        if self._client.status != "running":
            self._reconnect()
            return
        self._workers = self._client.scheduler_info(n_workers=-1)["workers"]
        now = time.monotonic()
        for task in list(self._tasks.values()):
            self._look_at(task, now)

    def _look_at(self, task: _Task, now: float) -> None:
        """What the folder says, where messages are late or lost; and an end to patience."""
        with suppress(OSError):
            n_bytes = attempt_path(task.work.folder, task.work.attempt).stat().st_size
            if n_bytes > task.n_seen_bytes:
                task.n_seen_bytes = n_bytes
                self._reports.put(Report(*task.key, "events"))
        if Outcome.path(task.work.folder, task.work.attempt).exists():
            task.is_over_since = task.is_over_since or now
            if now - task.is_over_since > _LATE_S:
                self._conclude(task)
        elif task.kill_at is not None and now >= task.kill_at:
            self._kill(task)
        elif task.future.cancelled():
            self._conclude(task, worker_stopped("somebody took it away from the scheduler"))

    def _reconnect(self) -> None:
        """A scheduler that comes back may still have our tasks; one that is new has not."""
        if time.monotonic() < self._reconnect_at:
            return
        self._reconnect_at = time.monotonic() + _RECONNECT_S
        try:
            client = self._connect()
        except ServerConnectionError as error:
            _LOGGER.warning("%s", error)
            return
        old, self._client = self._client, client
        with suppress(OSError, TimeoutError, RuntimeError):
            old.close(timeout=1.0)
        for task in list(self._tasks.values()):
            try:
                self._take(task.work, client.get_dataset(task.name))
            except KeyError:
                self._conclude(task, worker_stopped("the scheduler was started anew"))

    def _publish(self, name: str, future: Any) -> None:
        self._client.publish_dataset(**{name: future}, override=True)

    def _forget(self, name: str, future: Any) -> None:
        with suppress(KeyError):
            self._client.unpublish_dataset(name)
        future.cancel(force=True)

    def _dask_name(self, tag: str) -> str:
        """The tag as the workers write it; Dask's users write ``GPU``."""
        for worker in self._workers.values():
            for name in worker["resources"]:
                if name.lower() == tag:
                    return name
        return tag.upper()

    def _all(self) -> dict[str, float]:
        """What the workers have that are there or may come."""
        total: dict[str, float] = defaultdict(float, cpu=0.0)
        for worker in self._workers.values():
            total["cpu"] += worker["nthreads"]
            for name, amount in worker["resources"].items():
                total[name.lower()] += amount
        maximum = self.options.maximum
        total["cpu"] = max(total["cpu"], float(maximum))
        for name, amount in self.options.resources.items():
            total[name] = max(total[name], amount * maximum)
        return total

    # --- What the cluster says ----------------------------------------------------------------

    def _take(self, work: Work, future: Any) -> None:
        task = _Task(work, future)
        with self._lock:
            self._tasks[task.key] = task
        future.add_done_callback(partial(self._done, task))

    def _hear(self, event: tuple[float, Any]) -> None:
        """A worker began, or reported something."""
        message = event[1]
        with self._lock:
            task = self._tasks.get((message["job_id"], message["attempt"]))
            if task is None:
                return
            # The scheduler writes into every message who sent it.
            task.address = message["worker"]
            self._reports.put(Report(*task.key, "events"))

    def _hear_scheduler(self, event: tuple[float, Any]) -> None:
        """A worker came or went; what it was doing is lost."""
        message = event[1]
        if not isinstance(message, dict) or message.get("action") != "remove-worker":
            return
        with self._lock:
            self._workers.pop(message["worker"], None)
            names = set(message["processing-tasks"])
            gone = [
                task
                for task in self._tasks.values()
                if task.address == message["worker"]
                or (task.name in names and _has_begun(task.work))
            ]
        for task in gone:
            self._conclude(task, worker_stopped("its worker of the cluster is gone"))

    def _done(self, task: _Task, future: Any) -> None:
        """Dask is done with a task, whatever that means."""
        if future.cancelled():
            # By us, or the connection is being closed, and would answer no question any more.
            return
        try:
            outcome: Outcome = future.result(timeout=5.0)
        except (CancelledError, TimeoutError):
            # Called back by us, or the connection has gone: then the task is looked for again.
            return
        except Exception as error:  # noqa: BLE001 - whatever Dask raises
            self._conclude(task, worker_stopped(f"{type(error).__name__}: {error}"))
            return
        self._conclude(task, outcome.problem, outcome)

    def _conclude(
        self, task: _Task, problem: Problem | None = None, outcome: Outcome | None = None
    ) -> None:
        """The last report of an attempt, once."""
        with self._lock:
            if self._tasks.get(task.key) is not task:
                return
            del self._tasks[task.key]
        is_over = outcome is not None and outcome.status != "interrupted"
        if is_over or Outcome.read(task.work.folder, task.work.attempt) is not None:
            self._reports.put(Report(*task.key, "outcome", outcome=outcome))
        else:
            lost = task.verdict or problem or worker_stopped("its worker is gone")
            self._reports.put(Report(*task.key, "lost", lost))
        self._chores.put(partial(self._forget, task.name, task.future))

    def _call_back(self, task: _Task) -> None:
        """Tell the worker; or keep the attempt from beginning, where it waits for a worker."""
        if task.address:
            key = task.key
            self._client.run(cancel_here, *key, workers=[task.address], on_error="ignore")
            return
        stream = claim_attempt(task.work.folder, task.work.attempt)
        if stream is None:
            return
        os.close(stream)
        outcome = Outcome(task.work.attempt, "cancelled")
        outcome.write(task.work.folder)
        self._conclude(task, outcome=outcome)

    def _kill(self, task: _Task) -> None:
        """End a worker that does not stop; its nanny, or the batch system, starts another."""
        task.kill_at = time.monotonic() + self.options.grace_s
        self._client.cancel([task.future], force=True)
        with suppress(OSError):
            self._client.run(leave, workers=[task.address], on_error="ignore")
        deadline = time.monotonic() + 3.0
        while task.address in self._workers and time.monotonic() < deadline:
            time.sleep(0.05)
        if task.address in self._workers:
            # Native code that lets no other thread in: the nanny can end the process all the same.
            self._client.restart_workers([task.address], timeout=30, raise_for_error=False)
        self._conclude(task)


def _name_of(work: Work) -> str:
    return f"lamella-{work.job_id}-{work.attempt}"


def _tags(work: Work) -> dict[str, float]:
    return {name: amount for name, amount in work.resources.items() if name != "cpu"}


def _has_begun(work: Work) -> bool:
    return attempt_path(work.folder, work.attempt).exists()


def _nothing() -> None:
    """Wakes the keeper."""
