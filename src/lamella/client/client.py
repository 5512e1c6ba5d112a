"""A server from Python: what runs here runs there, with the same options and the same result.

Example::

    with lamella.Client("https://gpu.lab:8443", token="...") as client:
        remote = client.segment("tomogram.mrc", model="membrane-3d", min_size="500nm3")
        for event in remote.events():
            print(event.type)
        remote.run.objects
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from lamella.client import requests as ask_for
from lamella.client.base import ClientBase, RunBase, listening
from lamella.client.drive import Driver
from lamella.client.flow import Flow
from lamella.client.inputs import placed, uploaded
from lamella.client.job import WatchOptions, act, outcome, show
from lamella.client.order import Order, Started, start
from lamella.wire.event import EventSink, RunEvent
from lamella.wire.job import JobDoc
from lamella.wire.request import SegmentRequest
from lamella.wire.upload import UploadDoc, VolumeDoc
from lamella.workflows.api import Input, make_request, run_folder_name
from lamella.workflows.run import Run

__all__ = ["Client", "RemoteRun"]


class RemoteRun(RunBase["Client"]):
    """A job of a server, and the run folder here that it will fill; made by a :class:`Client`.

    Attributes:
        id: of the job; empty for a run that was finished here before.
        folder: where the run goes; None = decided when it is downloaded.
    """

    @property
    def job(self) -> JobDoc:
        """What the server knows about the job now: state, position, ETA, progress, problem."""
        return self._client.drive(show(self.id, self._client.context.patience))

    def events(self, after: int = 0, *, previews: str = "labels") -> Iterator[RunEvent]:
        """Every event until the job ends, through any break of the connection.

        Args:
            after: number of the last event that is known.
            previews: ``none``, ``boxes`` (where labels are final) or ``labels`` (with the labels).
        """
        if self._run is not None:
            return
        for event in self._client.steps(self._follow(WatchOptions(after, previews))):
            if isinstance(event, RunEvent):
                yield event

    def wait(self, sink: EventSink | None = None) -> JobDoc | None:
        """Wait until the job has finished.

        Args:
            sink: events, and whether to stop waiting; the job itself goes on then.

        Returns:
            The job; None for a run that was finished here before.

        Raises:
            RunCancelledError: when the job was cancelled, or ``sink`` says so.
            LamellaError: as the run raised it on the server.
        """
        if self._run is not None:
            return None
        return outcome(self._client.drive(self._follow(WatchOptions()), sink))

    def cancel(self) -> JobDoc:
        """Cancel the job; what is finished of it is kept on the server for :meth:`retry`."""
        return self._client.drive(act(self.id, "cancel", self._client.context.patience))

    def retry(self) -> JobDoc:
        """Let a failed or cancelled job go on."""
        return self._client.drive(act(self.id, "retry", self._client.context.patience))

    def download(self, folder: str | Path | None = None, *, sink: EventSink | None = None) -> Run:
        """Bring the run folder of the finished job here.

        Args:
            folder: a new folder; the one of the call, or ``./NAME.MODEL.run``, unless given.
            sink: progress and cancellation; what came is kept.
        """
        if self._run is not None and folder is None:
            return self._run
        place = self._place(folder)
        self._run, self.folder = self._client.drive(self._fetch(place), sink), place
        return self._run

    @property
    def run(self) -> Run:
        """The run as a local one leaves it, waited for and downloaded when first asked for."""
        if self._run is None:
            self.wait()
            self.download()
        assert self._run is not None, "download keeps the run"
        return self._run


class Client(ClientBase):
    """A server; a context manager.

    Args:
        url: its address, ``https://gpu.lab:8443``; ``LAMELLA_SERVER``, or the only server that
            ``lamella login`` knows, unless given.
        token: the user's; else ``LAMELLA_TOKEN``, else the one that ``lamella login`` keeps.
        **options: fields of :class:`lamella.client.connect.ConnectOptions`: ``pin`` (SHA-256 of a
            self-signed certificate, or ``"first"``), ``insecure``, ``patience_s``, ``n_parts``.

    Raises:
        InputError: when the address cannot be used.
    """

    def __init__(self, url: str | None = None, token: str | None = None, **options: Any) -> None:
        super().__init__(url, token, options)
        self._driver = Driver(self.endpoint)

    def segment(
        self,
        source: Input,
        model: str,
        *,
        run_dir: str | Path | None = None,
        sink: EventSink | None = None,
        fresh: bool = False,
        overwrite: bool = False,
        **options: Any,
    ) -> RemoteRun:
        """Segment a volume or an image on the server: upload it and queue the job.

        The same call again goes on wherever the last one stopped.

        Args:
            source: path here; ``server:/PATH`` for a path on the server, or an ``s3://`` address.
            model: as for :func:`lamella.segment`; the server must have it.
            run_dir: run folder here; ``./NAME.MODEL.run`` unless given.
            sink: progress and cancellation of the upload.
            fresh: start anew, whatever the folder holds.
            overwrite: run a finished run again.
            **options: as for :func:`lamella.segment`.

        Raises:
            LamellaError: saying what is wrong and what to do.
        """
        folder = Path(run_dir) if run_dir is not None else Path(run_folder_name(source, model))
        request = make_request(source, model, options)
        return self.segment_request(request, folder, sink=sink, fresh=fresh, overwrite=overwrite)

    def segment_request(
        self,
        request: SegmentRequest,
        folder: Path,
        *,
        sink: EventSink | None = None,
        fresh: bool = False,
        overwrite: bool = False,
    ) -> RemoteRun:
        """As :meth:`segment`, for a request that is complete."""
        order = Order(placed(request), folder, fresh=fresh, overwrite=overwrite)
        started: Started = self.drive(start(self.context, order), sink)
        return RemoteRun(self, started.job, folder, order.request, started.run)

    def submit(
        self,
        source: Input,
        model: str,
        *,
        name: str = "",
        priority: int = 0,
        exports: tuple[str, ...] = (),
        sink: EventSink | None = None,
        **options: Any,
    ) -> RemoteRun:
        """Upload an input and queue a job, leaving nothing here.

        Args:
            source: as for :meth:`segment`.
            model: as for :meth:`segment`.
            name: for lists of jobs; the input's name unless given.
            priority: higher runs earlier, among the jobs of one user.
            exports: suffixes of formats in which the server keeps the labels too.
            sink: progress and cancellation of the upload.
            **options: as for :func:`lamella.segment`.
        """
        request = make_request(source, model, options)
        return self.submit_request(
            request, name=name, priority=priority, exports=exports, sink=sink
        )

    def submit_request(
        self,
        request: SegmentRequest,
        *,
        name: str = "",
        priority: int = 0,
        exports: tuple[str, ...] = (),
        sink: EventSink | None = None,
    ) -> RemoteRun:
        """As :meth:`submit`, for a request that is complete."""
        whole = placed(request)
        order = Order(whole, name=name, priority=priority, exports=exports)
        started: Started = self.drive(start(self.context, order), sink)
        return RemoteRun(self, started.job, None, whole)

    def job(self, job_id: str) -> RemoteRun:
        """A job by its id.

        Raises:
            MissingPathError: when there is none of this user.
        """
        return RemoteRun(self, self.drive(show(job_id, self.context.patience)))

    def jobs(self, *, state: str | None = None, limit: int = 100) -> list[JobDoc]:
        """The user's jobs, newest first."""
        return self.drive(ask_for.jobs(self.context, limit, state=state))

    def log(self, job_id: str) -> str:
        """The log of a job."""
        return self.drive(ask_for.log(self.context, job_id))

    def upload(self, path: str | Path, *, sink: EventSink | None = None) -> VolumeDoc:
        """Upload a file or a folder; a volume that jobs can name as ``volume:ID``."""
        volume, _ = self.drive(uploaded(self.context, Path(path)), sink)
        return volume

    def uploads(self) -> list[UploadDoc]:
        """The user's uploads, finished or not."""
        return self.drive(ask_for.uploads(self.context))

    def volumes(self) -> list[VolumeDoc]:
        """The user's volumes."""
        return self.drive(ask_for.volumes(self.context))

    def models(self) -> list[dict[str, Any]]:
        """Models that the server can run."""
        return self.drive(ask_for.models(self.context))

    def remove(self, kind: str, name: str) -> None:
        """Remove one of the user's ``uploads``, ``volumes`` or (ended) ``jobs`` from the server."""
        self.drive(ask_for.remove(self.context, kind, name))

    def request(self, method: str, path: str) -> Any:
        """One plain request below ``/api/v1/``, tried again as all are; its JSON answer."""
        return self.drive(ask_for.plain(self.context, method, path))

    def close(self) -> None:
        """Close the connections."""
        self._driver.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def drive(self, flow: Flow[Any], sink: EventSink | None = None) -> Any:
        """Carry out a flow to its end, telling ``sink``."""
        return self._driver.run(flow, listening(sink))

    def steps(self, flow: Flow[Any]) -> Iterator[Any]:
        """Carry out a flow, yielding what it tells."""
        return self._driver.steps(flow)
