"""One attempt at a job: what to do, how it ended, and the files by which both sides agree.

Worker and server share nothing but the job's folder, so that it does not matter whether they are
threads apart or nodes apart, nor which of them is killed when::

    attempt            number of the newest attempt, and "cancel" once it is to stop   (server)
    attempt-N.jsonl    what attempt N reported, a document a line; claims N for one process (worker)
    outcome-N.json     how attempt N ended; written before anybody is told              (worker)
    worker-N.log       what the worker printed                                          (worker)
    worker.lock        held while a function runs: two attempts never write at once     (worker)
    log.jsonl          the events of all attempts, numbered                             (server)

An attempt that a newer one has overtaken stops at its next check and reports no more. The newer one
begins its work only when the older one has let go of the lock.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lamella.core.errors import ConflictError
from lamella.jobs.files import write_whole
from lamella.wire.problem import Problem

__all__ = [
    "Control",
    "Outcome",
    "OutcomeStatus",
    "Work",
    "ask_to_stop",
    "attempt_path",
    "begin_attempt",
    "claim_attempt",
    "read_control",
]

OutcomeStatus = Literal["finished", "failed", "cancelled", "interrupted"]


@dataclass(frozen=True, slots=True)
class Work:
    """One attempt at a job, for whoever runs it.

    Attributes:
        job_id: the job.
        attempt: how often it was started, this time included; fences older attempts off.
        kind: what sort of job, for people.
        function: ``package.module:function``, called with ``document`` and a :class:`JobContext`.
        document: what to do (JSON values).
        folder: the job's folder, under the same path for server and worker.
        resources: what it needs besides a place to run, such as ``{"gpu": 1}``.
        is_shared: the folder lies on a network file system, so lines are synchronised one by one.
        lock_wait_s: how long to wait for an earlier attempt to let go of the folder, in seconds.
    """

    job_id: str
    attempt: int
    kind: str
    function: str
    document: dict[str, Any]
    folder: Path
    resources: dict[str, float] = field(default_factory=dict[str, float])
    is_shared: bool = False
    lock_wait_s: float = 120.0

    def to_json(self) -> dict[str, Any]:
        """JSON values, for a pipe."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {**values, "folder": str(self.folder)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Work:
        """The work that :meth:`to_json` wrote."""
        return cls(**{**values, "folder": Path(values["folder"])})


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt ended.

    Attributes:
        attempt: of which attempt.
        status: ``interrupted`` = it should be tried again: overtaken, or never begun.
        result: what the function returned (JSON values), when it finished.
        problem: what went wrong, when it failed or was interrupted.
        n_log_bytes: length of ``attempt-N.jsonl`` at the end, for readers on slow file systems.
    """

    attempt: int
    status: OutcomeStatus
    result: dict[str, Any] | None = None
    problem: Problem | None = None
    n_log_bytes: int = 0

    @staticmethod
    def path(folder: Path, attempt: int) -> Path:
        """Where an attempt's outcome lies."""
        return folder / f"outcome-{attempt}.json"

    def write(self, folder: Path) -> None:
        """Leave it in the job's folder, whole or not at all.

        Raises:
            StorageError: when the disk is full.
        """
        document = {
            "attempt": self.attempt,
            "status": self.status,
            "result": self.result,
            "problem": None if self.problem is None else self.problem.model_dump(mode="json"),
            "n_log_bytes": self.n_log_bytes,
        }
        text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        write_whole(self.path(folder, self.attempt), text.encode())

    @classmethod
    def read(cls, folder: Path, attempt: int) -> Outcome | None:
        """The outcome of an attempt; None while there is none."""
        try:
            values = json.loads(cls.path(folder, attempt).read_bytes())
        except (OSError, ValueError):
            return None
        problem = values["problem"]
        return cls(
            attempt=int(values["attempt"]),
            status=values["status"],
            result=values["result"],
            problem=None if problem is None else Problem.model_validate(problem),
            n_log_bytes=int(values["n_log_bytes"]),
        )


@dataclass(frozen=True, slots=True)
class Control:
    """What the server wants: the newest attempt, and whether it is to stop."""

    attempt: int = 0
    is_cancelled: bool = False


def read_control(folder: Path) -> Control:
    """What the server wants of the job in ``folder``; attempt 0 where nothing was begun."""
    try:
        words = (folder / "attempt").read_text(encoding="ascii").split()
        return Control(int(words[0]), "cancel" in words[1:])
    except (OSError, ValueError, IndexError):
        return Control()


def begin_attempt(folder: Path, attempt: int) -> None:
    """Say that ``attempt`` is the newest from now on; older ones stop at their next check.

    Raises:
        ConflictError: when the folder knows a newer attempt.
        StorageError: when the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    known = read_control(folder).attempt
    if known > attempt:
        raise ConflictError(
            f"attempt {attempt} of the job in {folder.name} comes after attempt {known}",
            hint="this is the answer to a message that was overtaken; nothing needs to be done",
        )
    write_whole(folder / "attempt", f"{attempt}\n".encode())


def ask_to_stop(folder: Path, attempt: int) -> None:
    """Ask an attempt to stop at its next check; nothing where it is not the newest."""
    if read_control(folder).attempt == attempt:
        write_whole(folder / "attempt", f"{attempt} cancel\n".encode())


def attempt_path(folder: Path, attempt: int) -> Path:
    """Where an attempt reports."""
    return folder / f"attempt-{attempt}.jsonl"


def claim_attempt(folder: Path, attempt: int) -> int | None:
    """Claim an attempt for this process, once and for all.

    Returns:
        File descriptor to append to, or None when the attempt was begun elsewhere: a scheduler
        that runs lost work again, or a server that called the work back before it began.
    """
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND
    try:
        return os.open(attempt_path(folder, attempt), flags, 0o644)
    except FileExistsError:
        return None
