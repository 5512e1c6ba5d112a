"""The states of a job on a server: one list for documents, queue and command line."""

from typing import Literal, get_args

__all__ = ["JOB_STATES", "JobState"]

JobState = Literal[
    "queued", "running", "cancelling", "cancelled", "failed", "finished", "interrupted"
]
JOB_STATES: tuple[JobState, ...] = get_args(JobState)
