"""Where the files of a job lie below the server's data folder."""

from __future__ import annotations

import re
from pathlib import Path

from lamella.core.errors import MissingPathError

__all__ = ["REMOVED_PREFIX", "artifacts_folder", "job_folder", "jobs_root", "run_folder"]

REMOVED_PREFIX = ".removed-"
"""Begins the name of a job's folder while it is being removed."""
_ID = re.compile(r"[a-z0-9]{1,32}")


def jobs_root(data_dir: Path) -> Path:
    """Folder of the folders of all jobs."""
    return data_dir / "jobs"


def job_folder(data_dir: Path, job_id: str) -> Path:
    """Folder of everything a job leaves.

    Raises:
        MissingPathError: for what cannot be the id of a job: it is never made into a path.
    """
    if not _ID.fullmatch(job_id):
        raise MissingPathError(f"there is no job {job_id[:40]!r}")
    return jobs_root(data_dir) / job_id


def run_folder(data_dir: Path, job_id: str) -> Path:
    """The run folder of a job."""
    return job_folder(data_dir, job_id) / "run"


def artifacts_folder(data_dir: Path, job_id: str) -> Path:
    """Folder of what was packed or exported of the run."""
    return job_folder(data_dir, job_id) / "artifacts"
