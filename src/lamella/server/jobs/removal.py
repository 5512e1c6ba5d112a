"""Removing a job with all that it left."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from lamella.server.jobs.folder import REMOVED_PREFIX, job_folder

if TYPE_CHECKING:
    from lamella.server.services import Services

__all__ = ["remove_job"]


def remove_job(services: Services, job_id: str) -> None:
    """Remove a job that has ended, its files and what the storage holds of it.

    Raises:
        ConflictError: when it has not ended.
        UnknownIdError: when there is none.
    """
    services.jobs.delete(job_id)
    services.hub.job_removed(job_id)
    services.artifacts.forget(job_id)
    folder = job_folder(services.settings.data_dir, job_id)
    # Under another name first: what a crash leaves of it is then known to be nobody's.
    gone = folder.with_name(f"{REMOVED_PREFIX}{job_id}")
    try:
        folder.rename(gone)
    except FileNotFoundError:
        return
    shutil.rmtree(gone, ignore_errors=True)
