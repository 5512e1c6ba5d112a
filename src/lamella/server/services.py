"""What a server works with: made from its settings, started and stopped in order."""

from __future__ import annotations

import importlib
import inspect
import logging
import shutil
from dataclasses import dataclass
from typing import Any

from lamella.core.errors import ConflictError
from lamella.core.places import Places
from lamella.jobs.database import Database
from lamella.jobs.store import JobStore
from lamella.jobs.users import Limits
from lamella.server.audit import AuditLog
from lamella.server.database import open_server_database
from lamella.server.limits import RateLimit
from lamella.server.metrics import Metrics
from lamella.server.ownership import take_database
from lamella.server.secret import Secret
from lamella.server.settings import Settings
from lamella.server.signing import Signer
from lamella.server.tokens import TokenStore
from lamella.wire.state import JOB_STATES

__all__ = ["Services", "open_services"]

logger = logging.getLogger(__name__)

_BURST_S = 5.0
"""A token may send this many seconds of its rate at once."""
_FAILURES = 20
"""Requests with tokens that are none, from one address, until it has to wait."""
_FAILURES_PER_S = 1 / 6

# Name in Services → the function that makes it, in the order in which they are made.
_PARTS = (
    ("storage", "lamella.server.storage", "open_storage"),
    ("background", "lamella.server.background", "open_background"),
    ("uploads", "lamella.server.uploads", "open_uploads"),
    ("volumes", "lamella.server.volumes", "open_volumes"),
    ("pyramids", "lamella.server.pyramids", "open_pyramids"),
    ("artifacts", "lamella.server.artifacts", "open_artifacts"),
    ("hub", "lamella.server.events", "open_hub"),
    ("dispatcher", "lamella.server.dispatch", "open_dispatcher"),
    ("retention", "lamella.server.retention", "open_retention"),
    ("models", "lamella.server.models", "open_models"),
)


@dataclass
class Services:
    """Everything that routes work with.

    Attributes:
        settings: of the server.
        database: of the queue and of the server.
        places: where models and engines are.
        secret: keys by purpose.
        tokens: who may do what.
        audit: what was changed.
        signer: addresses without a token.
        metrics: what is counted.
        rate_limit: requests by token.
        failure_limit: refused tokens by address.
        jobs: the queue.
        is_closing: whether the server is going down.
        is_started: whether the parts were told to start.
    """

    settings: Settings
    database: Database
    places: Places
    secret: Secret
    tokens: TokenStore
    audit: AuditLog
    signer: Signer
    metrics: Metrics
    rate_limit: RateLimit
    failure_limit: RateLimit
    jobs: JobStore
    is_closing: bool = False
    is_started: bool = False
    storage: Any = None
    background: Any = None
    uploads: Any = None
    volumes: Any = None
    pyramids: Any = None
    artifacts: Any = None
    hub: Any = None
    dispatcher: Any = None
    retention: Any = None
    models: Any = None

    async def start(self) -> None:
        """Start what runs by itself, in the order in which it was made; once.

        Raises:
            LamellaError: when a part cannot start; those before it are stopped again.
        """
        if self.is_started:
            return
        self.is_started = True
        parts = self._parts()
        for n, part in enumerate(parts):
            try:
                await _call(part, "start")
            except BaseException:
                await self._stop(parts[:n])
                raise

    async def stop(self) -> None:
        """Stop it again, the last one first; jobs that run are put back into the queue."""
        await self._stop(self._parts())

    async def _stop(self, parts: list[Any]) -> None:
        self.begin_shutdown()
        for part in reversed(parts):
            try:
                await _call(part, "stop")
            except Exception:
                # The others must stop, whatever this one did.
                logger.exception("%s did not stop cleanly", type(part).__name__)
        self.database.close()

    def begin_shutdown(self) -> None:
        """Tell every part that the server goes down: streams end, no new jobs are taken."""
        if self.is_closing:
            return
        self.is_closing = True
        for part in self._parts():
            begin = getattr(part, "begin_shutdown", None)
            if begin is not None:
                begin()

    def _parts(self) -> list[Any]:
        return [part for name, _, _ in _PARTS if (part := getattr(self, name)) is not None]


def open_services(settings: Settings, *, places: Places | None = None) -> Services:
    """Make what a server works with; its folder and its database are made where they are not.

    Args:
        settings: of the server.
        places: where models and engines are; the user's unless given.

    Raises:
        StorageError: the folder or the database cannot be used.
        InputError: a database that is none.
        ConflictError: a database of another server, or that a newer version has changed.
    """
    settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    database = open_server_database(settings)
    secret = Secret.of_folder(settings.data_dir)
    if settings.database_url:
        # A file in the data folder is nobody else's anyway.
        try:
            take_database(database, secret, settings.data_dir)
        except ConflictError:
            database.close()
            raise
    rate = settings.rate_limit
    services = Services(
        settings=settings,
        database=database,
        places=places or Places.of_user(),
        secret=secret,
        tokens=TokenStore(database, secret.key("tokens")),
        audit=AuditLog(database),
        signer=Signer(secret.key("addresses"), settings.url_lifetime_s),
        metrics=Metrics(),
        rate_limit=RateLimit(rate, rate * _BURST_S),
        failure_limit=RateLimit(_FAILURES_PER_S, _FAILURES),
        jobs=JobStore(
            database,
            limits=Limits(
                max_queued=settings.max_jobs_per_user,
                max_running=settings.max_running_per_user or None,
            ),
        ),
    )
    _add_gauges(services)
    for name, module, function in _PARTS:
        setattr(services, name, getattr(importlib.import_module(module), function)(services))
    return services


def _add_gauges(services: Services) -> None:
    """What is asked for when somebody reads the metrics."""

    def jobs() -> dict[str, float]:
        found = services.jobs.counts()
        # States without jobs too: a series that comes and goes cannot be watched.
        return {state: float(found.get(state, 0)) for state in JOB_STATES}

    services.metrics.gauges("lamella_jobs", "Jobs that are kept, by state.", "state", jobs)
    services.metrics.gauge(
        "lamella_disk_free_bytes",
        "Free on the disk of the data folder.",
        lambda: float(shutil.disk_usage(services.settings.data_dir).free),
    )


async def _call(part: Any, name: str) -> None:
    function = getattr(part, name, None)
    if function is None:
        return
    result = function()
    if inspect.isawaitable(result):
        await result
