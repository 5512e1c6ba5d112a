"""Worker processes of this machine: started once, one attempt at a time, replaced when they die.

A worker imports what its jobs need when it starts, so that a job does not wait for it. Each has its
share of the cores and, where there are GPUs, one of them. A worker that crashes, that ignores a
cancellation or that uses more memory than it may is killed with everything it started, and a new
one takes its place; the other end is :mod:`lamella.jobs.worker_process`.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lamella.core.errors import InputError, RunError
from lamella.jobs.attempt import Outcome, Work, ask_to_stop
from lamella.jobs.executor import Report, ReportQueue, WorkerFact, worker_stopped
from lamella.jobs.process import WorkerProcess, available_cores, resident_bytes
from lamella.wire.problem import Problem

__all__ = ["LocalExecutor", "LocalOptions"]

_LOGGER = logging.getLogger(__name__)
_TICK_S = 1.0
_MAX_PAUSE_S = 60.0
_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)


@dataclass(frozen=True, slots=True)
class LocalOptions:
    """How many workers, and what each may use.

    Attributes:
        n_workers: processes, each runs one attempt at a time.
        gpus: the first ``len(gpus)`` workers see one GPU each (``CUDA_VISIBLE_DEVICES``), the
            others none. A GPU that is named twice is shared by two workers.
        n_threads: of each worker; 0 = its share of the cores.
        preload: modules that a worker imports before it takes work.
        grace_s: how long a cancelled attempt may go on before its worker is killed, seconds.
        memory_limit_bytes: of a worker's own process; None = no limit. Watched on Linux.
        name: who runs the jobs, as the queue knows it.
    """

    n_workers: int = 1
    gpus: tuple[str, ...] = ()
    n_threads: int = 0
    preload: tuple[str, ...] = ()
    grace_s: float = 10.0
    memory_limit_bytes: int | None = None
    name: str = "local"

    def __post_init__(self) -> None:
        if self.n_workers < max(1, len(self.gpus)):
            raise InputError(
                f"{self.n_workers} workers are too few for {len(self.gpus)} GPUs",
                hint="each worker has one GPU: use at least as many workers, and at least one",
            )


@dataclass
class _Slot:
    """A place for a worker; the worker itself may come and go."""

    index: int
    resources: dict[str, float]
    environment: dict[str, str]
    cores: tuple[int, ...] = ()
    process: WorkerProcess | None = None
    is_ready: bool = False
    work: Work | None = None
    kill_at: float | None = None
    verdict: tuple[str, Problem] | None = None
    n_failures: int = 0
    start_at: float = 0.0


@dataclass
class _State:
    """What the threads of an executor share."""

    lock: threading.RLock = field(default_factory=threading.RLock)
    is_closing: bool = False
    is_closed: bool = False


class LocalExecutor:
    """An :class:`~lamella.jobs.executor.Executor` on this machine; workers start at once."""

    def __init__(self, options: LocalOptions | None = None) -> None:
        self.options = options or LocalOptions()
        self._state = _State()
        self._reports = ReportQueue()
        self._slots = [_make_slot(self.options, i) for i in range(self.options.n_workers)]
        self._attention = threading.Event()
        # Linux ends a child when the *thread* that started it ends: this one outlives them all.
        self._keeper = threading.Thread(target=self._keep, name="workers", daemon=True)
        self._keeper.start()

    @property
    def name(self) -> str:
        """Who runs the jobs."""
        return self.options.name

    @property
    def outlives_server(self) -> bool:
        """No: these workers end with their server."""
        return False

    def problem(self) -> str | None:
        """None: workers that end are replaced."""
        return None

    def capacity(self) -> dict[str, float]:
        """Workers that wait for work, and their GPUs."""
        free: dict[str, float] = defaultdict(float, cpu=0.0)
        with self._state.lock:
            for slot in self._slots:
                if slot.work is not None:
                    # An attempt that asked for more than one place keeps others from it.
                    free["cpu"] -= max(0.0, slot.work.resources.get("cpu", 1.0) - 1.0)
                elif slot.is_ready and not self._state.is_closing:
                    for name, amount in slot.resources.items():
                        free[name] += amount
        return {name: max(0.0, amount) for name, amount in free.items()}

    def limits(self) -> dict[str, float]:
        """All places; of any tag as much as one worker has."""
        most: dict[str, float] = {}
        for slot in self._slots:
            for name, amount in slot.resources.items():
                most[name] = max(most.get(name, 0.0), amount)
        return {**most, "cpu": float(len(self._slots))}

    def start(self, work: Work) -> None:
        """Hand an attempt to a free worker, one without a GPU where none is asked for.

        Raises:
            RunError: when no worker that is free has what it needs.
        """
        with self._state.lock:
            fitting = [
                slot
                for slot in self._slots
                if slot.is_ready
                and slot.work is None
                and all(
                    slot.resources.get(name, 0.0) >= amount
                    for name, amount in work.resources.items()
                    if name != "cpu"
                )
            ]
            if not fitting or self._state.is_closing:
                raise RunError(
                    f"no worker is free for {work.resources or 'this job'}",
                    hint=f"there is {self.limits()}, and free is {self.capacity()}",
                )
            slot = min(fitting, key=lambda slot: sum(slot.resources.values()))
            slot.work, slot.kill_at, slot.verdict = work, None, None
            assert slot.process is not None
            slot.process.send(type="work", work=work.to_json())

    def adopt(self, work: Work) -> bool:
        """Never: these workers end with their server."""
        del work
        return False

    def cancel(self, job_id: str, attempt: int) -> None:
        """Ask an attempt to stop; its worker is killed if it does not within ``grace_s``."""
        with self._state.lock:
            slot = self._slot_of(job_id, attempt)
            if slot is None or slot.work is None or slot.process is None:
                return
            slot.process.send(type="cancel", job_id=job_id, attempt=attempt)
            if slot.kill_at is None:
                grace_s = self.options.grace_s
                slot.kill_at = time.monotonic() + grace_s
                slot.verdict = ("lost", worker_stopped(f"it had not stopped after {grace_s:g} s"))
            folder = slot.work.folder
        self._attention.set()
        with contextlib.suppress(OSError):
            ask_to_stop(folder, attempt)

    def poll(self, timeout_s: float) -> Sequence[Report]:
        """Wait for reports; several events of one attempt are one report."""
        return self._reports.poll(timeout_s)

    def wake(self) -> None:
        """Let a waiting :meth:`poll` return."""
        self._reports.wake()

    def workers(self) -> Sequence[WorkerFact]:
        """The workers of this machine."""
        with self._state.lock:
            return [
                WorkerFact(
                    name=f"{self.name}/{slot.index}",
                    state="busy" if slot.work else "idle" if slot.is_ready else "starting",
                    resources=dict(slot.resources),
                    job_id=None if slot.work is None else slot.work.job_id,
                    pid=None if slot.process is None else slot.process.pid,
                )
                for slot in self._slots
            ]

    def close(self, grace_s: float) -> None:
        """Let attempts stop where that leaves nothing half-done, then end all workers."""
        with self._state.lock:
            if self._state.is_closed:
                return
            self._state.is_closing = True
            running = [slot.work for slot in self._slots if slot.work is not None]
        deadline = time.monotonic() + grace_s
        for work in running:
            self.cancel(work.job_id, work.attempt)
        while time.monotonic() < deadline and any(slot.work for slot in self._slots):
            time.sleep(0.02)
        with self._state.lock:
            self._state.is_closed = True
            ends = [(slot.process, slot.work is None) for slot in self._slots]
        for process, is_idle in ends:
            # One without work has nothing to finish, and one that still starts hears nobody.
            if process is not None:
                process.end(is_at_once=is_idle or grace_s <= 0)
        self._attention.set()
        self._keeper.join(timeout=10.0)
        self.wake()

    # --- Inside -------------------------------------------------------------------------------

    def _slot_of(self, job_id: str, attempt: int) -> _Slot | None:
        for slot in self._slots:
            work = slot.work
            if work is not None and (work.job_id, work.attempt) == (job_id, attempt):
                return slot
        return None

    def _keep(self) -> None:
        """Start workers, and end those that have to be ended."""
        while not self._state.is_closed:
            pause_s = _TICK_S
            for slot in self._slots:
                pause_s = min(pause_s, self._look_after(slot))
            self._attention.wait(max(0.01, pause_s))
            self._attention.clear()
        # Their parent thread: they die with it at the latest.
        for slot in self._slots:
            if slot.process is not None:
                slot.process.wait()

    def _look_after(self, slot: _Slot) -> float:
        """Start or end a slot's worker; seconds until it should be looked at again."""
        now = time.monotonic()
        with self._state.lock:
            process, kill_at = slot.process, slot.kill_at
            if self._state.is_closed:
                return 0.0
            if process is None:
                if now < slot.start_at:
                    return slot.start_at - now
                try:
                    slot.process = self._spawn(slot)
                except OSError as error:
                    return self._postpone(slot, f"it cannot be started: {error}")
                return _TICK_S
            limit = self.options.memory_limit_bytes
            if limit is not None and slot.work is not None:
                used = resident_bytes(process.pid)
                if used > limit:
                    text = f"it used {used / 1e9:.1f} GB of memory, and may use {limit / 1e9:.1f}"
                    slot.verdict, kill_at = ("failed", worker_stopped(text)), now
            if kill_at is None:
                return _TICK_S
            if now < kill_at:
                return kill_at - now
        process.kill()
        return _TICK_S

    def _spawn(self, slot: _Slot) -> WorkerProcess:
        def on_message(process: WorkerProcess, message: Mapping[str, Any]) -> None:
            self._hear(slot, process, message)

        def on_end(process: WorkerProcess, words: str) -> None:
            self._bury(slot, process, words)

        return WorkerProcess(slot.environment, self.options.preload, slot.cores, on_message, on_end)

    def _hear(self, slot: _Slot, process: WorkerProcess, message: Mapping[str, Any]) -> None:
        with self._state.lock:
            if slot.process is not process:
                return
            if message["type"] == "ready":
                slot.is_ready, slot.n_failures = True, 0
                self._reports.wake()
                return
            work = slot.work
            key = (message["job_id"], message["attempt"])
            if work is None or key != (work.job_id, work.attempt):
                return
            if message["type"] == "events":
                self._reports.put(Report(*key, "events"))
            else:
                self._conclude(slot, worker_stopped(f"it could not work: {message['status']}"))

    def _bury(self, slot: _Slot, process: WorkerProcess, words: str) -> None:
        """A worker is gone: say what became of its attempt, and let another take its place."""
        with self._state.lock:
            if slot.process is not process:
                return
            if not slot.is_ready and not self._state.is_closing:
                self._postpone(slot, words)
            slot.process, slot.is_ready = None, False
            if slot.work is not None:
                self._conclude(slot, worker_stopped(words))
        self._attention.set()

    def _postpone(self, slot: _Slot, words: str) -> float:
        """A worker that cannot even start (a broken installation) is not tried all the time."""
        slot.n_failures += 1
        pause_s = min(0.5 * 2.0**slot.n_failures, _MAX_PAUSE_S)
        slot.start_at = time.monotonic() + pause_s
        _LOGGER.error("worker %s/%d did not start: %s", self.name, slot.index, words)
        return pause_s

    def _conclude(self, slot: _Slot, problem: Problem) -> None:
        """The last report of a slot's attempt."""
        work, verdict = slot.work, slot.verdict
        assert work is not None
        slot.work = slot.kill_at = slot.verdict = None
        key = (work.job_id, work.attempt)
        if Outcome.read(work.folder, work.attempt) is not None:
            self._reports.put(Report(*key, "outcome"))
        elif verdict is not None and verdict[0] == "failed":
            self._reports.put(Report(*key, "failed", verdict[1]))
        else:
            self._reports.put(Report(*key, "lost", verdict[1] if verdict else problem))


def _make_slot(options: LocalOptions, index: int) -> _Slot:
    cores = available_cores()
    n_threads = options.n_threads or max(1, len(cores) // options.n_workers)
    environment: dict[str, str] = dict.fromkeys(_THREAD_VARIABLES, str(n_threads))
    resources = {"cpu": 1.0}
    has_gpu = index < len(options.gpus)
    environment["CUDA_VISIBLE_DEVICES"] = options.gpus[index] if has_gpu else ""
    if has_gpu:
        resources["gpu"] = 1.0
    own: tuple[int, ...] = ()
    if n_threads < len(cores):
        # Libraries that count cores instead of reading variables (OpenVINO) are held to it too.
        own = tuple(cores[(index * n_threads + i) % len(cores)] for i in range(n_threads))
    return _Slot(index, resources, environment, own)
