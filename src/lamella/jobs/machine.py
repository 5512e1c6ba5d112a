"""The life of a job as a pure function: a record and an event in, the next record out.

Nothing here knows a clock, a database or a process; every time comes with the event::

    submit            claim              finish
    ------> queued ---------> running -----------> finished
            ^  |  ^            | |  |
            |  |  |     cancel | |  | fail
            |  |  |            v |  +-----------> failed
            |  |  |   cancelling |
            |  |  |   |  |   |   | interrupt
            |  |  |   |  |   |   v
            |  |  +---|--|---|-- interrupted
            |  |      |  |   +------------------> finished   (it was faster than the wish)
            |  |      v  v stop, fail, interrupt
            |  +---> cancelled
            |  cancel   |
            +-----------+  retry: from cancelled, failed, interrupted

``attempt`` is the fencing token: whoever runs a job answers with the attempt that was claimed, and
an answer of any other attempt, or of one whose lease was taken away, is refused.

Examples:
    >>> job = new_record("a1", NewJob(owner="ada", kind="segment", spec={}), now=0.0)
    >>> job = apply(job, Claim(worker="w", now=1.0, lease_until=31.0))
    >>> job.state, job.attempt
    ('running', 1)
    >>> apply(job, Finish(attempt=1, now=5.0, result={"n_objects": 3})).state
    'finished'
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, assert_never

from lamella.core.errors import ConflictError, InputError
from lamella.wire.problem import Problem
from lamella.wire.state import JobState

__all__ = [
    "ACTIVE_STATES",
    "FINAL_STATES",
    "Advance",
    "Cancel",
    "Claim",
    "Event",
    "Fail",
    "Finish",
    "IllegalTransitionError",
    "Interrupt",
    "JobRecord",
    "LeaseLostError",
    "NewJob",
    "Renew",
    "Requeue",
    "Retry",
    "Stop",
    "apply",
    "new_record",
    "normal_resources",
]

ACTIVE_STATES: tuple[JobState, ...] = ("running", "cancelling")
"""States in which someone holds the job's lease."""
FINAL_STATES: tuple[JobState, ...] = ("cancelled", "failed", "finished", "interrupted")
"""States that a job leaves only when somebody asks for it."""


class IllegalTransitionError(ConflictError):
    """Something that a job in this state cannot do."""

    code: ClassVar[str] = "conflict"


class LeaseLostError(ConflictError):
    """An answer of an attempt that no longer holds the job: it is void, and its work must stop."""

    code: ClassVar[str] = "lease_lost"


@dataclass(frozen=True, slots=True, kw_only=True)
class NewJob:
    """What is asked for.

    Args:
        owner: the user.
        kind: which function runs it.
        spec: its document, JSON.
        name: for people.
        priority: higher runs earlier, among the jobs of one owner.
        resources: what it holds while it runs, ``{"cpu": 1, "gpu": 1}``; one ``cpu`` unless said.
        volume: id of the uploaded volume that it reads, if it does.
        idempotency_key: chosen by the client, unique per owner: the same key is the same job.
        cost: how much work it is, in any unit that is the same for all jobs with its
            ``estimate_key`` (voxels, say); None = not known.
        estimate_key: jobs whose durations tell about each other's; the kind unless said.
    """

    owner: str
    kind: str
    spec: Mapping[str, Any]
    name: str = ""
    priority: int = 0
    resources: Mapping[str, float] = field(default_factory=dict[str, float])
    volume: str | None = None
    idempotency_key: str | None = None
    cost: float | None = None
    estimate_key: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRecord:
    """Everything that is known about a job; times are Unix seconds."""

    id: str
    owner: str
    kind: str
    spec: Mapping[str, Any]
    name: str = ""
    state: JobState = "queued"
    priority: int = 0
    resources: Mapping[str, float]
    """What it holds while it runs; see :func:`normal_resources`."""
    batch: str | None = None
    volume: str | None = None
    created: float
    queued: float
    """When it last entered the queue."""
    started: float | None = None
    """When the current or last attempt began."""
    finished: float | None = None
    attempt: int = 0
    worker: str | None = None
    lease_until: float | None = None
    problem: Problem | None = None
    result: Mapping[str, Any] | None = None
    progress: Mapping[str, Any] | None = None
    """Last progress: ``stage``, ``done``, ``total``, ``unit``, ``eta_s``."""
    marks: Mapping[str, float] = field(default_factory=dict[str, float])
    """How far each stage ever came, over all attempts."""
    n_interruptions: int = 0
    """In a row, without any stage getting further than ever before."""
    run_s: float = 0.0
    """Time spent running, over all attempts, seconds."""
    cost: float | None = None
    estimate_key: str = ""
    idempotency_key: str | None = None
    number: int = 0
    """Order of submission; given by the store."""

    @property
    def is_final(self) -> bool:
        """Whether nothing more happens to it unasked."""
        return self.state in FINAL_STATES

    @property
    def is_active(self) -> bool:
        """Whether an attempt holds it."""
        return self.state in ACTIVE_STATES


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A worker takes the job."""

    worker: str
    now: float
    lease_until: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Renew:
    """The worker lives."""

    attempt: int
    lease_until: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Advance:
    """The worker got on: ``progress`` has at least ``stage`` and ``done``."""

    attempt: int
    progress: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel:
    """Somebody does not want it any more."""

    now: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """The worker stopped because it was asked to."""

    attempt: int
    now: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """The worker did everything."""

    attempt: int
    now: float
    result: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class Fail:
    """The worker cannot do it."""

    attempt: int
    now: float
    problem: Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Interrupt:
    """The worker died, its lease ran out, or the server shuts down (``counts`` False)."""

    attempt: int
    now: float
    problem: Problem
    counts: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Requeue:
    """An interrupted job goes on by itself, or fails after too many interruptions in a row."""

    now: float
    max_interruptions: int = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """Somebody wants it to go on."""

    now: float


Event = Claim | Renew | Advance | Cancel | Stop | Finish | Fail | Interrupt | Requeue | Retry


def normal_resources(resources: Mapping[str, float]) -> dict[str, float]:
    """Resources sorted by name, zeros left out, one ``cpu`` where none is named.

    Raises:
        InputError: for an amount that is negative or not a number.

    Examples:
        >>> normal_resources({"gpu": 1})
        {'cpu': 1.0, 'gpu': 1.0}
        >>> normal_resources({"cpu": 0})
        {}
    """
    amounts = {"cpu": 1.0} | {name: float(amount) for name, amount in resources.items()}
    wrong = {name: amount for name, amount in amounts.items() if not 0 <= amount < float("inf")}
    if wrong:
        raise InputError(
            f"expected finite amounts of resources, 0 or more, got {wrong}",
            hint='write for example {"cpu": 2, "gpu": 1}',
        )
    return {name: amounts[name] for name in sorted(amounts) if amounts[name] > 0}


def new_record(job_id: str, job: NewJob, *, now: float, batch: str | None = None) -> JobRecord:
    """The record of a job that was just submitted."""
    return JobRecord(
        id=job_id,
        owner=job.owner,
        kind=job.kind,
        spec=job.spec,
        name=job.name,
        priority=job.priority,
        resources=normal_resources(job.resources),
        batch=batch,
        volume=job.volume,
        created=now,
        queued=now,
        cost=job.cost,
        estimate_key=job.estimate_key or job.kind,
        idempotency_key=job.idempotency_key,
    )


def apply(job: JobRecord, event: Event) -> JobRecord:
    """The job after the event.

    Raises:
        LeaseLostError: for an answer of an attempt that does not hold the job.
        IllegalTransitionError: for what a job in this state cannot do.
    """
    match event:
        case Claim():
            return _claim(job, event)
        case Renew():
            _check_fence(job, event)
            return replace(job, lease_until=event.lease_until)
        case Advance():
            return _advance(job, event)
        case Cancel():
            return _cancel(job, event)
        case Requeue():
            return _requeue(job, event)
        case Retry():
            _require(job, event, "cancelled", "failed", "interrupted")
            return _enter_queue(replace(job, n_interruptions=0), event.now)
        case Stop() | Finish() | Fail() | Interrupt():
            return _end_attempt(job, event)
        case _:
            assert_never(event)


def _claim(job: JobRecord, event: Claim) -> JobRecord:
    _require(job, event, "queued")
    return replace(
        job,
        state="running",
        attempt=job.attempt + 1,
        worker=event.worker,
        started=event.now,
        lease_until=event.lease_until,
        problem=None,
        progress=None,
    )


def _advance(job: JobRecord, event: Advance) -> JobRecord:
    _check_fence(job, event)
    stage, done = str(event.progress["stage"]), float(event.progress["done"])
    # A worker that dies and resumes passes the old marks again; only what is beyond them shows
    # that the next attempt would not die at the same place.
    if done > job.marks.get(stage, float("-inf")):
        marks = {**job.marks, stage: done}
        return replace(job, progress=event.progress, marks=marks, n_interruptions=0)
    return replace(job, progress=event.progress)


def _cancel(job: JobRecord, event: Cancel) -> JobRecord:
    if job.state in ("cancelling", "cancelled"):
        return job
    _require(job, event, "queued", "running", "interrupted")
    if job.state == "running":
        return replace(job, state="cancelling")
    return replace(job, state="cancelled", finished=event.now, progress=None)


def _requeue(job: JobRecord, event: Requeue) -> JobRecord:
    _require(job, event, "interrupted")
    if job.n_interruptions <= event.max_interruptions:
        return _enter_queue(job, event.now)
    last = job.problem.message if job.problem else "no reason known"
    problem = Problem(
        code="run_failed",
        message=(
            f"the job was interrupted {job.n_interruptions} times in a row without getting on; "
            f"the last time: {last}"
        ),
        hint="look at its log (a worker that is killed often ran out of memory), then retry it",
        details={"n_interruptions": job.n_interruptions},
    )
    return replace(job, state="failed", problem=problem, finished=event.now)


def _enter_queue(job: JobRecord, now: float) -> JobRecord:
    return replace(
        job,
        state="queued",
        queued=now,
        finished=None,
        worker=None,
        lease_until=None,
        problem=None,
        result=None,
        progress=None,
    )


def _end_attempt(job: JobRecord, event: Stop | Finish | Fail | Interrupt) -> JobRecord:
    _check_fence(job, event)
    if isinstance(event, Stop):
        _require(job, event, "cancelling")
    job = replace(
        job,
        lease_until=None,
        worker=None,
        finished=event.now,
        run_s=job.run_s + max(0.0, event.now - (job.started or event.now)),
    )
    # A job that finished before the wish to cancel reached it is finished: its result is there.
    if isinstance(event, Finish):
        return replace(job, state="finished", result=event.result)
    if job.state == "cancelling" or isinstance(event, Stop):
        return replace(job, state="cancelled")
    if isinstance(event, Fail):
        return replace(job, state="failed", problem=event.problem)
    return replace(
        job,
        state="interrupted",
        problem=event.problem,
        n_interruptions=job.n_interruptions + event.counts,
    )


def _require(job: JobRecord, event: Event, *states: JobState) -> None:
    if job.state not in states:
        verb = type(event).__name__.lower()
        raise IllegalTransitionError(
            f"cannot {verb} job {job.id}: it is {job.state}, expected {' or '.join(states)}",
            hint="look at the job again: it changed in the meantime, or this was done already",
            details={"job": job.id, "state": job.state, "attempt": job.attempt},
        )


def _check_fence(job: JobRecord, event: Renew | Advance | Stop | Finish | Fail | Interrupt) -> None:
    if event.attempt != job.attempt or job.state not in ACTIVE_STATES:
        raise LeaseLostError(
            f"attempt {event.attempt} does not hold job {job.id}: it is {job.state} "
            f"in attempt {job.attempt}",
            hint="stop this attempt; the job goes on, or ended, without it",
            details={"job": job.id, "state": job.state, "attempt": job.attempt},
        )
