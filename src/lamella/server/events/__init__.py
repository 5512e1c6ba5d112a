"""What jobs say, to whoever listens: numbered, replayable, at each listener's own pace."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lamella.core.errors import UnknownIdError
from lamella.server.events.hub import Hub, JobSource

if TYPE_CHECKING:
    from lamella.server.services import Services

__all__ = ["open_hub"]


def open_hub(services: Services) -> Hub:
    """The hub of a server."""
    # Imported here: the queue's tables are not needed by those who only format events.
    from lamella.jobs.log import JobLog
    from lamella.server.jobs.folder import job_folder

    def state_of(job_id: str) -> str | None:
        try:
            return services.jobs.get(job_id).state
        except UnknownIdError:
            return None

    def log_of(job_id: str) -> JobLog:
        # The dispatcher is made after the hub, and holds the logs that it writes.
        if services.dispatcher is not None:
            return services.dispatcher.log(job_id)
        return JobLog(job_folder(services.settings.data_dir, job_id))

    hub = Hub(
        JobSource(
            log_of=log_of,
            state_of=state_of,
            folder_of=lambda job_id: job_folder(services.settings.data_dir, job_id),
        )
    )
    services.metrics.gauge(
        "lamella_event_streams", "Event streams that are open.", lambda: hub.n_streams
    )
    return hub
