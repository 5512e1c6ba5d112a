"""What runs attempts: processes of this machine, or a cluster.

The dispatcher hands :class:`~lamella.jobs.attempt.Work` over and learns from reports how it goes.
Reports carry no facts: those lie in the job's folder, and a report that is lost, late or said twice
changes nothing but when somebody looks.
"""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from lamella.jobs.attempt import Outcome, Work
from lamella.wire.problem import Problem

__all__ = ["Executor", "Report", "ReportQueue", "WorkerFact", "worker_stopped"]

ReportKind = Literal["events", "outcome", "lost", "failed"]


@dataclass(frozen=True, slots=True)
class Report:
    """Something happened to an attempt.

    Attributes:
        job_id: the job.
        attempt: which attempt.
        kind: ``events`` = it reported something; ``outcome`` = it ended, and left its outcome;
            ``lost`` = its worker is gone without one; ``failed`` = the executor ended it for a
            reason that would come again. The last three come last, and one of them always comes.
        problem: why, for ``lost`` and ``failed``.
        outcome: a copy of the outcome, where it travelled faster than the file.
    """

    job_id: str
    attempt: int
    kind: ReportKind
    problem: Problem | None = None
    outcome: Outcome | None = None


class ReportQueue:
    """Reports on their way from an executor's threads to whoever polls it."""

    def __init__(self) -> None:
        self._reports: queue.SimpleQueue[Report | None] = queue.SimpleQueue()

    def put(self, report: Report) -> None:
        """Add a report."""
        self._reports.put(report)

    def poll(self, timeout_s: float) -> Sequence[Report]:
        """Wait for reports; several events of one attempt are one report."""
        reports: dict[tuple[str, int, str], Report] = {}
        with contextlib.suppress(queue.Empty):
            first = self._reports.get(timeout=timeout_s) if timeout_s > 0 else None
            while True:
                if first is not None:
                    reports.setdefault((first.job_id, first.attempt, first.kind), first)
                first = self._reports.get_nowait()
        return list(reports.values())

    def wake(self) -> None:
        """Let a waiting :meth:`poll` return."""
        self._reports.put(None)


def worker_stopped(why: str) -> Problem:
    """What is said of an attempt whose worker did not come to its end."""
    return Problem(
        code="run_failed",
        message=f"the worker stopped: {why}",
        hint="what is finished is kept: the next attempt goes on from there",
    )


@dataclass(frozen=True, slots=True)
class WorkerFact:
    """A worker, for people who look after the server."""

    name: str
    state: Literal["starting", "idle", "busy"]
    resources: Mapping[str, float]
    job_id: str | None = None
    pid: int | None = None


@runtime_checkable
class Executor(Protocol):
    """Runs attempts somewhere else.

    Contract:
        * Every attempt that :meth:`start` took ends in exactly one last report (see
          :class:`Report`), also when its worker is killed, unless :meth:`close` came first.
        * After ``outcome`` the outcome file is there and the attempt writes nothing more.
        * :meth:`cancel` returns at once. A worker that has not stopped ``grace_s`` seconds later is
          killed and replaced, and its attempt is ``lost``.
        * ``cpu`` counts the places where an attempt can run; other names are tags such as ``gpu``.
        * Methods may be called from any thread, :meth:`poll` from one at a time.
    """

    @property
    def name(self) -> str:
        """Who runs the jobs; the same after a restart of the server."""
        ...

    @property
    def outlives_server(self) -> bool:
        """Whether attempts go on without the server, to be adopted by the next."""
        ...

    def problem(self) -> str | None:
        """Why no job can run now, if so; asks nobody, and names no address."""
        ...

    def capacity(self) -> dict[str, float]:
        """What is free now."""
        ...

    def limits(self) -> dict[str, float]:
        """What there is when nothing runs: what needs more than this never will."""
        ...

    def start(self, work: Work) -> None:
        """Run an attempt, whose folder is there and says that it is the newest.

        Raises:
            RunError: when nothing is free for it.
        """
        ...

    def adopt(self, work: Work) -> bool:
        """Go on with an attempt that a former server started; False when it does not run here."""
        ...

    def cancel(self, job_id: str, attempt: int) -> None:
        """Ask an attempt to stop; nothing when it does not run here."""
        ...

    def poll(self, timeout_s: float) -> Sequence[Report]:
        """Wait for reports; returns what there is, nothing when the time is over."""
        ...

    def wake(self) -> None:
        """Let a waiting :meth:`poll` return."""
        ...

    def workers(self) -> Sequence[WorkerFact]:
        """Who is there."""
        ...

    def close(self, grace_s: float) -> None:
        """End everything that ends with this server, within ``grace_s`` seconds."""
        ...
