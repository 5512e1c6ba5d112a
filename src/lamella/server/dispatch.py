"""The dispatcher of a server: kinds of jobs bound to what does them, on what its settings name."""

from __future__ import annotations

import asyncio
import logging
import shutil
import subprocess
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lamella.jobs.dispatch import Dispatcher, DispatchOptions
from lamella.jobs.executor import Executor
from lamella.server.jobs.folder import job_folder
from lamella.server.jobs.prepare import prepare_job

if TYPE_CHECKING:
    from lamella.jobs.log import JobLog
    from lamella.server.services import Services
    from lamella.server.settings import Settings

__all__ = ["FUNCTIONS", "ServerDispatcher", "find_gpus", "make_executor", "open_dispatcher"]

logger = logging.getLogger(__name__)

FUNCTIONS = {"segment": "lamella.server.worker:run_segment"}
"""What does jobs of a kind."""
_PRELOADED = ("lamella.server.worker", "lamella.workflows.api", "openvino", "cc3d")
"""What nearly every job needs, and what takes a while to import."""
_CLUSTER_OURS = ("resources", "tls_ca", "tls_cert", "tls_key", "grace_s", "name")
_ASK_GPUS_S = 20.0
_PLACES_S = 2.0
"""How often those who watch a job that waits are told where it stands."""


class _Listeners:
    """Tells the parts of a server what the dispatcher has to say."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def job_changed(self, job_id: str) -> None:
        self._services.hub.job_changed(job_id)
        self._services.artifacts.job_changed(job_id)

    def events_added(self, job_id: str) -> None:
        self._services.hub.events_added(job_id)


class ServerDispatcher:
    """A dispatcher whose workers start with the server, not when its parts are made.

    Args:
        services: with the queue, the hub and all that jobs need.
    """

    def __init__(self, services: Services) -> None:
        self._services = services
        self._dispatcher: Dispatcher | None = None
        self._telling: asyncio.Task[None] | None = None
        self._gpus = find_gpus(services.settings)

    async def start(self) -> None:
        """Start workers, take up what a former server left, and serve the queue."""
        await asyncio.to_thread(self._start)
        self._telling = asyncio.create_task(self._tell_places())

    async def stop(self) -> None:
        """Put what runs back into the queue and end the workers."""
        if self._telling is not None:
            self._telling.cancel()
        dispatcher, self._dispatcher = self._dispatcher, None
        if dispatcher is not None:
            await asyncio.to_thread(dispatcher.stop, self._services.settings.shutdown_grace_s)

    def log(self, job_id: str) -> JobLog:
        """The events of a job."""
        if self._dispatcher is not None:
            return self._dispatcher.log(job_id)
        from lamella.jobs.log import JobLog

        return JobLog(job_folder(self._services.settings.data_dir, job_id))

    def changed(self, job_id: str) -> None:
        """Say in a job's log what the queue says of it, and look at the queue."""
        if self._dispatcher is not None:
            self._dispatcher.changed(job_id)
            self._dispatcher.wake()

    def limits(self) -> dict[str, float]:
        """What there is when nothing runs."""
        if self._dispatcher is not None:
            return self._dispatcher.executor.limits()
        return {"cpu": 1.0, "gpu": float(len(self._gpus))}

    def problem(self) -> str | None:
        """Why the cluster runs no jobs now; None when it does, or there is none."""
        executor = self.executor
        return "it has not been connected to yet" if executor is None else executor.problem()

    @property
    def executor(self) -> Executor | None:
        """What runs attempts; None before the start."""
        return None if self._dispatcher is None else self._dispatcher.executor

    async def _tell_places(self) -> None:
        while True:
            await asyncio.sleep(_PLACES_S)
            for job_id in self._services.hub.watched:
                if self._dispatcher is None:
                    return
                try:
                    await asyncio.to_thread(self._dispatcher.placed, job_id)
                except Exception:
                    # A database that is away for a moment: told in the next round.
                    logger.exception("the place of job %s in the queue is not known", job_id)

    def _start(self) -> None:
        services = self._services
        data_dir = services.settings.data_dir
        # The same after a restart, another for another server at the same database.
        name = f"server-{services.secret.key('executor').hex()[:12]}"
        executor = make_executor(services.settings, self._gpus, name)
        self._dispatcher = Dispatcher(
            services.jobs,
            executor,
            folder_of=lambda job_id: job_folder(data_dir, job_id),
            functions=FUNCTIONS,
            listener=_Listeners(services),
            prepare=lambda record: prepare_job(services, record),
            options=DispatchOptions(is_shared=services.settings.is_on_cluster),
        )
        self._dispatcher.start()


def open_dispatcher(services: Services) -> ServerDispatcher:
    """The dispatcher of a server; its workers come when it starts."""
    return ServerDispatcher(services)


def make_executor(settings: Settings, gpus: Sequence[str], name: str = "local") -> Executor:
    """What runs attempts: a cluster where the settings name one, else processes of this machine.

    Args:
        settings: which of them, and how many workers.
        gpus: numbers of the GPUs that workers of this machine use.
        name: who runs the jobs, as the queue knows it; after a restart this server finds by it
            what it left behind.

    Raises:
        LamellaError: when a cluster cannot be reached or started.
    """
    if settings.is_on_cluster:
        from lamella.jobs.cluster import ClusterExecutor, ClusterOptions

        # Ours are taken out; the rest is dask-jobqueue's.
        options = dict(settings.cluster_options)
        ours = {name: options.pop(name) for name in _CLUSTER_OURS if name in options}
        return ClusterExecutor(
            ClusterOptions(
                scheduler=settings.scheduler,
                kind=settings.cluster,
                options=options,
                folder=str(settings.data_dir / "cluster"),
                **{"name": name, **ours},
            )
        )
    from lamella.jobs.local import LocalExecutor, LocalOptions

    return LocalExecutor(
        LocalOptions(
            n_workers=max(settings.workers, len(gpus)),
            gpus=tuple(gpus),
            n_threads=settings.worker_threads,
            preload=_PRELOADED,
            name=name,
        )
    )


def find_gpus(settings: Settings) -> tuple[str, ...]:
    """Numbers of the GPUs that workers of this machine use.

    The driver is asked, not a deep learning package: importing one takes seconds and memory.
    """
    if settings.is_on_cluster or settings.gpus == "none":
        return ()
    if settings.gpus != "auto":
        return tuple(settings.gpus.split(","))
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    try:
        # The driver's own program, without arguments of anybody's.
        found = subprocess.run(
            [program, "--query-gpu=index", "--format=csv,noheader"],
            capture_output=True, text=True, timeout=_ASK_GPUS_S, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        logger.warning("the GPUs cannot be counted, so none is used: %s", error)
        return ()
    return tuple(line.strip() for line in found.stdout.splitlines() if line.strip().isdigit())
