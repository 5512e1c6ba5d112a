"""What is removed when: by age, and when there is more than may be held.

* jobs that have ended, and volumes that no job uses, when they are older than ``retention_s``;
* uploads that have expired, and records of the audit log after ``audit_retention_s``;
* over ``max_total_bytes``: what can be made again (pyramids), then the longest unused job or volume
  first, until a little less is held;
* under ``min_free_bytes`` of free disk: only what can be had again: pyramids, and local copies of
  volumes that lie in the storage of another machine. New work is refused then; what people have is
  not thrown away because another program fills the disk.

Never anything that a job which waits or runs uses.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lamella.core.errors import ConflictError, LamellaError, MissingPathError, UnknownIdError
from lamella.jobs.machine import FINAL_STATES
from lamella.server.jobs.folder import REMOVED_PREFIX, job_folder, jobs_root
from lamella.server.jobs.removal import remove_job

if TYPE_CHECKING:
    from lamella.jobs.machine import JobRecord
    from lamella.server.services import Services
    from lamella.wire.state import JobState

__all__ = ["Held", "Retention", "Rules", "open_retention", "plan_removals"]

logger = logging.getLogger(__name__)

_EVERY_S = 300.0
_FIRST_S = 20.0
_ORPHAN_S = 3600.0
_LEEWAY = 0.95
"""Of what may be held: removing stops a little below, so that it need not begin again at once."""

_IDLE_S = 900.0
"""A copy that somebody asked for within this may still be read: it stays."""

Kind = Literal["pyramid", "copy", "job", "volume"]
_AGAIN = ("pyramid", "copy")


@dataclass(frozen=True, slots=True)
class Held:
    """Something that could be removed.

    Attributes:
        kind: what it is; pyramids can be made again, copies of volumes fetched again. A copy is
            no part of what is held in all: its volume is.
        id: of the job, or of the volume.
        n_bytes: what it takes.
        used: when it was last used, Unix seconds.
    """

    kind: Kind
    id: str
    n_bytes: int
    used: float


@dataclass(frozen=True, slots=True)
class Rules:
    """What may be held; 0 = no limit.

    Attributes:
        retention_s: longest age of what is not used, seconds.
        max_total_bytes: of everything together.
        min_free_bytes: of the disk.
    """

    retention_s: float = 0.0
    max_total_bytes: int = 0
    min_free_bytes: int = 0


def plan_removals(
    held: Iterable[Held], rules: Rules, *, now: float, total_bytes: int, free_bytes: int
) -> list[Held]:
    """What has to go, in this order.

    Args:
        held: what may go: nothing that is in use.
        rules: what may be held.
        now: Unix seconds.
        total_bytes: everything that is held, what may not go too.
        free_bytes: of the disk.

    Examples:
        >>> held = [Held("job", "a", 60, used=1.0), Held("job", "b", 60, used=2.0)]
        >>> [item.id for item in plan_removals(held, Rules(max_total_bytes=100), now=9.0,
        ...                                    total_bytes=120, free_bytes=1)]
        ['a']
    """
    remaining = sorted(held, key=lambda item: (item.kind not in _AGAIN, item.used, item.id))
    chosen = [
        item
        for item in remaining
        if rules.retention_s and item.kind not in _AGAIN and item.used < now - rules.retention_s
    ]
    # A volume takes its copy along.
    gone = {*chosen, *(replace(item, kind="copy") for item in chosen if item.kind == "volume")}
    total_bytes -= sum(item.n_bytes for item in chosen)
    free_bytes += sum(item.n_bytes for item in chosen)
    is_over = bool(rules.max_total_bytes) and total_bytes > rules.max_total_bytes
    goal = rules.max_total_bytes * _LEEWAY
    for item in remaining:
        is_copy = item.kind == "copy"
        is_short = free_bytes < rules.min_free_bytes and item.kind in _AGAIN
        is_too_much = is_over and total_bytes > goal and not is_copy
        if item in gone or not (is_short or is_too_much):
            continue
        chosen.append(item)
        total_bytes -= 0 if is_copy else item.n_bytes
        free_bytes += item.n_bytes
    return chosen


class Retention:
    """Removes what has to go, every few minutes.

    Args:
        services: of the server.
        clock: Unix seconds.
    """

    def __init__(self, services: Services, clock: Callable[[], float] = time.time) -> None:
        self._services = services
        self._clock = clock
        self._rules = Rules(
            services.settings.retention_s,
            services.settings.max_total_bytes,
            services.settings.min_free_bytes,
        )
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="retention", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End."""
        self._is_over.set()
        if self._thread.is_alive():
            self._thread.join(timeout=30)

    def sweep(self) -> list[Held]:
        """Remove what has to go now; what was removed."""
        expired = self._services.uploads.expire()
        if expired:
            logger.info("%d uploads have expired", len(expired))
        if kept_s := self._services.settings.audit_retention_s:
            self._services.audit.forget(self._clock() - kept_s)
        self._remove_orphans()
        held = self._held()
        free = shutil.disk_usage(self._services.settings.data_dir).free
        total = self._total_bytes(held)
        plan = plan_removals(
            held, self._rules, now=self._clock(), total_bytes=total, free_bytes=free
        )
        return [item for item in plan if self._remove(item)]

    # --- Within -------------------------------------------------------------------------------

    def _serve(self) -> None:
        wait_s = _FIRST_S
        while not self._is_over.wait(wait_s):
            wait_s = _EVERY_S
            try:
                self.sweep()
            except Exception:
                # A disk or database that is away for a moment: tried again.
                logger.exception("nothing could be removed just now")

    def _held(self) -> list[Held]:
        services = self._services
        data_dir = services.settings.data_dir
        held = [
            Held("job", record.id, _tree_bytes(job_folder(data_dir, record.id)), _last_used(record))
            for record in self._ended_jobs()
        ]
        for item in services.volumes.removable():
            kinds: tuple[Kind, ...] = ("volume", "copy") if item.is_copy else ("volume",)
            held += [Held(kind, item.id, item.n_bytes, item.last_used) for kind in kinds]
        for folder in _folders(services.pyramids.folder):
            volume_id = folder.name.removesuffix(".ome.zarr")
            if not folder.name.startswith("."):
                held.append(Held("pyramid", volume_id, _tree_bytes(folder), folder.stat().st_mtime))
        return held

    def _ended_jobs(self) -> Iterable[JobRecord]:
        # An interrupted job goes on by itself in a moment: it is not at its end.
        states: list[JobState] = [state for state in FINAL_STATES if state != "interrupted"]
        cursor: str | None = None
        while True:
            page = self._services.jobs.list(states=states, limit=500, cursor=cursor)
            yield from page.jobs
            cursor = page.next_cursor
            if cursor is None:
                return

    def _total_bytes(self, held: Sequence[Held]) -> int:
        """Everything that the server holds; jobs that run are looked at, not only what may go."""
        if not self._rules.max_total_bytes:
            return 0
        with self._services.database.read() as connection:
            others = self._services.uploads.space.used(connection)
        known = {item.id: item.n_bytes for item in held if item.kind == "job"}
        jobs = sum(
            known[folder.name] if folder.name in known else _tree_bytes(folder)
            for folder in _folders(jobs_root(self._services.settings.data_dir))
        )
        return others + jobs + sum(item.n_bytes for item in held if item.kind == "pyramid")

    def _remove(self, item: Held) -> bool:
        services = self._services
        try:
            if item.kind == "pyramid":
                services.pyramids.remove(item.id)
            elif item.kind == "copy":
                if not services.volumes.copies.evict(item.id, idle_s=_IDLE_S):
                    return False
            elif item.kind == "job":
                remove_job(services, item.id)
            else:
                services.volumes.remove(item.id)
                services.pyramids.remove(item.id)
        except (ConflictError, MissingPathError, UnknownIdError) as error:
            # Taken into use, or removed, since the plan was made.
            logger.info("%s %s stays: %s", item.kind, item.id, error)
            return False
        except LamellaError:
            logger.exception("%s %s could not be removed", item.kind, item.id)
            return False
        logger.info("removed %s %s, %.1f MB", item.kind, item.id, item.n_bytes / 1e6)
        if item.kind not in _AGAIN:
            services.audit.record(
                None,
                action=f"{item.kind}.expire",
                target=item.id,
                user="server",
                details={"n_bytes": item.n_bytes},
            )
        return True

    def _remove_orphans(self) -> None:
        """Take away what a removal that was cut off left, and pyramids of volumes that are gone.

        Folders of jobs that the queue does not know stay: the server may have been started with
        another database by mistake.
        """
        services = self._services
        for folder in _folders(jobs_root(services.settings.data_dir)):
            if folder.name.startswith(REMOVED_PREFIX):
                shutil.rmtree(folder, ignore_errors=True)
        for folder in _folders(services.pyramids.folder):
            try:
                if folder.stat().st_mtime < self._clock() - _ORPHAN_S:
                    services.volumes.get(folder.name.removesuffix(".ome.zarr"))
            except (MissingPathError, FileNotFoundError):
                shutil.rmtree(folder, ignore_errors=True)


def open_retention(services: Services) -> Retention:
    """The retention of a server."""
    return Retention(services)


def _last_used(record: JobRecord) -> float:
    return record.finished or record.created


def _folders(folder: Path) -> list[Path]:
    try:
        return [Path(entry.path) for entry in os.scandir(folder) if entry.is_dir()]
    except FileNotFoundError:
        return []


def _tree_bytes(folder: Path) -> int:
    """Bytes of all files below a folder; what vanishes meanwhile counts as nothing."""
    total = 0
    stack = [str(folder)]
    while stack:
        try:
            with os.scandir(stack.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        stack.append(entry.path)
                    else:
                        total += entry.stat(follow_symlinks=False).st_size
        except OSError:
            continue
    return total
