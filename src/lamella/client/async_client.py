"""The same client for asyncio: the same flows, awaited.

Example::

    async with lamella.AsyncClient("https://gpu.lab:8443") as client:
        remote = await client.segment("tomogram.mrc", model="membrane-3d")
        async for event in remote.events():
            print(event.type)
        run = await remote.run
"""

from collections.abc import AsyncIterator, Awaitable
from contextlib import aclosing
from pathlib import Path
from typing import Any, Self

from lamella.client import requests as ask_for
from lamella.client.base import ClientBase, RunBase, listening
from lamella.client.drive_async import AsyncDriver
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

__all__ = ["AsyncClient", "AsyncRemoteRun"]


class AsyncRemoteRun(RunBase["AsyncClient"]):
    """A job of a server, and the run folder here that it will fill, awaited.

    Attributes:
        id: of the job; empty for a run that was finished here before.
        folder: where the run goes; None = decided when it is downloaded.
    """

    @property
    def job(self) -> Awaitable[JobDoc]:
        """What the server knows about the job now."""
        return self._client.drive(show(self.id, self._client.context.patience))

    async def events(self, after: int = 0, *, previews: str = "labels") -> AsyncIterator[RunEvent]:
        """Every event until the job ends; see :meth:`lamella.client.client.RemoteRun.events`."""
        if self._run is not None:
            return
        flow = self._follow(WatchOptions(after, previews))
        async with aclosing(self._client.steps(flow)) as steps:
            async for kind, event in steps:
                if kind == "told" and isinstance(event, RunEvent):
                    yield event

    async def wait(self, sink: EventSink | None = None) -> JobDoc | None:
        """Wait until the job has finished; see :meth:`lamella.client.client.RemoteRun.wait`."""
        if self._run is not None:
            return None
        return outcome(await self._client.drive(self._follow(WatchOptions()), sink))

    async def cancel(self) -> JobDoc:
        """Cancel the job; what is finished of it is kept on the server."""
        return await self._client.drive(act(self.id, "cancel", self._client.context.patience))

    async def retry(self) -> JobDoc:
        """Let a failed or cancelled job go on."""
        return await self._client.drive(act(self.id, "retry", self._client.context.patience))

    async def download(
        self, folder: str | Path | None = None, *, sink: EventSink | None = None
    ) -> Run:
        """Bring the run folder of the finished job here."""
        if self._run is not None and folder is None:
            return self._run
        place = self._place(folder)
        run: Run = await self._client.drive(self._fetch(place), sink)
        self._run, self.folder = run, place
        return run

    @property
    def run(self) -> Awaitable[Run]:
        """The run as a local one leaves it, waited for and downloaded when first awaited."""
        return self._whole()

    async def _whole(self) -> Run:
        if self._run is None:
            await self.wait()
            await self.download()
        assert self._run is not None, "download keeps the run"
        return self._run


class AsyncClient(ClientBase):
    """A server, awaited; an asynchronous context manager.

    Args:
        url: its address; see :class:`lamella.Client`.
        token: the user's.
        **options: fields of :class:`lamella.client.connect.ConnectOptions`.
    """

    def __init__(self, url: str | None = None, token: str | None = None, **options: Any) -> None:
        super().__init__(url, token, options)
        self._driver = AsyncDriver(self.endpoint)

    async def segment(
        self,
        source: Input,
        model: str,
        *,
        run_dir: str | Path | None = None,
        sink: EventSink | None = None,
        fresh: bool = False,
        overwrite: bool = False,
        **options: Any,
    ) -> AsyncRemoteRun:
        """Upload an input and queue the job; see :meth:`lamella.Client.segment`."""
        folder = Path(run_dir) if run_dir is not None else Path(run_folder_name(source, model))
        request = make_request(source, model, options)
        return await self.segment_request(
            request, folder, sink=sink, fresh=fresh, overwrite=overwrite
        )

    async def segment_request(
        self,
        request: SegmentRequest,
        folder: Path,
        *,
        sink: EventSink | None = None,
        fresh: bool = False,
        overwrite: bool = False,
    ) -> AsyncRemoteRun:
        """As :meth:`segment`, for a request that is complete."""
        order = Order(placed(request), folder, fresh=fresh, overwrite=overwrite)
        started: Started = await self.drive(start(self.context, order), sink)
        return AsyncRemoteRun(self, started.job, folder, order.request, started.run)

    async def submit(
        self,
        source: Input,
        model: str,
        *,
        name: str = "",
        priority: int = 0,
        exports: tuple[str, ...] = (),
        sink: EventSink | None = None,
        **options: Any,
    ) -> AsyncRemoteRun:
        """Upload an input and queue a job, leaving nothing here."""
        request = make_request(source, model, options)
        return await self.submit_request(
            request, name=name, priority=priority, exports=exports, sink=sink
        )

    async def submit_request(
        self,
        request: SegmentRequest,
        *,
        name: str = "",
        priority: int = 0,
        exports: tuple[str, ...] = (),
        sink: EventSink | None = None,
    ) -> AsyncRemoteRun:
        """As :meth:`submit`, for a request that is complete."""
        whole = placed(request)
        order = Order(whole, name=name, priority=priority, exports=exports)
        started: Started = await self.drive(start(self.context, order), sink)
        return AsyncRemoteRun(self, started.job, None, whole)

    async def job(self, job_id: str) -> AsyncRemoteRun:
        """A job by its id."""
        return AsyncRemoteRun(self, await self.drive(show(job_id, self.context.patience)))

    async def jobs(self, *, state: str | None = None, limit: int = 100) -> list[JobDoc]:
        """The user's jobs, newest first."""
        return await self.drive(ask_for.jobs(self.context, limit, state=state))

    async def log(self, job_id: str) -> str:
        """The log of a job."""
        return await self.drive(ask_for.log(self.context, job_id))

    async def upload(self, path: str | Path, *, sink: EventSink | None = None) -> VolumeDoc:
        """Upload a file or a folder; a volume that jobs can name as ``volume:ID``."""
        volume, _ = await self.drive(uploaded(self.context, Path(path)), sink)
        return volume

    async def uploads(self) -> list[UploadDoc]:
        """The user's uploads, finished or not."""
        return await self.drive(ask_for.uploads(self.context))

    async def volumes(self) -> list[VolumeDoc]:
        """The user's volumes."""
        return await self.drive(ask_for.volumes(self.context))

    async def models(self) -> list[dict[str, Any]]:
        """Models that the server can run."""
        return await self.drive(ask_for.models(self.context))

    async def remove(self, kind: str, name: str) -> None:
        """Remove one of the user's ``uploads``, ``volumes`` or (ended) ``jobs`` from the server."""
        await self.drive(ask_for.remove(self.context, kind, name))

    async def request(self, method: str, path: str) -> Any:
        """One plain request below ``/api/v1/``, tried again as all are; its JSON answer."""
        return await self.drive(ask_for.plain(self.context, method, path))

    async def close(self) -> None:
        """Close the connections."""
        await self._driver.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.close()

    async def drive(self, flow: Flow[Any], sink: EventSink | None = None) -> Any:
        """Carry out a flow to its end, telling ``sink``."""
        return await self._driver.run(flow, listening(sink))

    def steps(self, flow: Flow[Any]) -> Any:
        """Carry out a flow: ``("told", event)`` again and again, then ``("end", result)``."""
        return self._driver.steps(flow)
