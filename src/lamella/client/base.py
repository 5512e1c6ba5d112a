"""What the clients of threads and of asyncio have in common: everything but the waiting."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

from lamella.client.connect import ConnectOptions, connection
from lamella.client.flow import Flow
from lamella.client.follow import fetch, follow
from lamella.client.job import WatchOptions
from lamella.core.progress import SilentSink
from lamella.wire.event import EventSink
from lamella.wire.job import JobDoc
from lamella.wire.request import SegmentRequest
from lamella.workflows.api import options_of, run_folder_name
from lamella.workflows.run import Run

__all__ = ["ClientBase", "RunBase", "listening"]


class ClientBase:
    """A server; see :class:`lamella.Client`.

    Args:
        url: its address.
        token: the user's.
        options: fields of :class:`lamella.client.connect.ConnectOptions`.
    """

    def __init__(self, url: str | None, token: str | None, options: dict[str, Any]) -> None:
        self.endpoint, self.context = connection(url, token, options_of(ConnectOptions, options))


C = TypeVar("C", bound=ClientBase)


class RunBase(Generic[C]):
    """A job of a server, and the run folder here that it will fill.

    Args:
        client: of the server.
        job: None for a run that was finished here before.
        folder: where the run goes; None = decided when it is downloaded.
        request: as it was made here, where it was.
        run: that was finished here before.
    """

    def __init__(
        self,
        client: C,
        job: JobDoc | None,
        folder: Path | None = None,
        request: SegmentRequest | None = None,
        run: Run | None = None,
    ) -> None:
        self._client = client
        self._request = request
        self._run = run
        self._spec = None if job is None else job.spec
        self.id = "" if job is None else job.id
        self.folder = folder

    def _place(self, folder: str | Path | None) -> Path:
        """Where the run goes: where it is wanted, where it was to go, or by the job's name."""
        place = Path(folder) if folder is not None else self.folder
        if place is not None:
            return place
        assert self._spec is not None, "a remote run without a folder is a job"
        return Path(run_folder_name(self._spec.name or self.id, self._spec.request.model))

    def _fetch(self, place: Path) -> Flow[Run]:
        return fetch(self._client.context, self.id, place, self._request)

    def _follow(self, options: WatchOptions) -> Flow[JobDoc]:
        return follow(self._client.context, self.id, options, self.folder, self._request)


def listening(sink: EventSink | None) -> Callable[[Any], None]:
    """What is told every event of a flow: hands it to ``sink`` and asks whether to stop."""
    listener = sink or SilentSink()

    def listen(event: Any) -> None:
        listener.emit(event)
        listener.check()

    return listen
