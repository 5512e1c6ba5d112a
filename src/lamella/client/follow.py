"""Watching a job until it ends, and bringing its run home: into the run folder of this machine."""

import contextlib
from functools import partial
from pathlib import Path

from lamella.client.context import Context
from lamella.client.download import download
from lamella.client.flow import Do, Flow, Tell
from lamella.client.inputs import is_remote_path
from lamella.client.job import WatchOptions, watch
from lamella.client.landing import settle, unpack
from lamella.client.previews import PreviewWriter
from lamella.core.errors import (
    InputError,
    LicenceError,
    MissingDependencyError,
    ModelError,
    RunError,
    UnknownIdError,
)
from lamella.core.progress import SilentSink
from lamella.models.part import PartFile, open_part
from lamella.volume.volume import Volume
from lamella.wire.event import LogEvent, PreviewEvent
from lamella.wire.job import JobDoc
from lamella.wire.request import SegmentRequest
from lamella.workflows.prepare import open_input
from lamella.workflows.run import Run
from lamella.workflows.run_folder import DOWNLOADS, REMOTE, RunFolder

__all__ = ["fetch", "follow"]

_HOPELESS = (InputError, UnknownIdError, ModelError, LicenceError, MissingDependencyError)
"""Errors that the same request would meet again."""


def follow(
    context: Context,
    job_id: str,
    options: WatchOptions,
    folder: Path | None,
    request: SegmentRequest | None,
) -> Flow[JobDoc]:
    """Tell every event of a job until it ends; previews go into the run folder."""
    writer = None
    if folder is not None and request is not None and not is_remote_path(request.input.path):
        volume: Volume = yield Do(partial(open_input, request.input))
        writer = PreviewWriter(folder, volume)
    flow = watch(job_id, options, context.patience)
    answer: object = None
    while True:
        try:
            instruction = flow.send(answer)
        except StopIteration as end:
            if folder is not None:
                yield Do(partial(_tidy, folder, end.value))
            return end.value
        event = instruction.event if isinstance(instruction, Tell) else None
        if writer is not None and isinstance(event, PreviewEvent):
            was_there = writer.is_there
            yield Do(partial(writer.write, event))
            if writer.is_there and not was_there:
                yield Tell(LogEvent(message=f"preview: {writer.path}"))
        answer = yield instruction


def fetch(context: Context, job_id: str, folder: Path, request: SegmentRequest | None) -> Flow[Run]:
    """Bring the run folder of a finished job here.

    Args:
        context: the server.
        job_id: whose.
        folder: where to.
        request: what was asked for from here, where it was.

    Raises:
        RunError: when the folder holds another run.
    """
    place = RunFolder(folder)
    if not (folder / REMOTE).exists():
        place.check_ours()
        if place.manifest.exists():
            raise RunError(
                f"{folder} holds a run already",
                hint="choose another folder, or remove it",
            )
    with place.locked(), contextlib.ExitStack() as stack:
        downloads = folder / DOWNLOADS
        downloads.mkdir(exist_ok=True)
        archive = downloads / f"{job_id}.tar"
        part: PartFile = yield Do(
            lambda: stack.enter_context(open_part(archive, SilentSink().check))
        )
        address = f"jobs/{job_id}/artifacts/run.tar"
        yield from download(address, part, context.patience, place=archive)
        unpacked = downloads / "run"
        yield Do(partial(unpack, archive, unpacked))
        run: Run = yield Do(partial(settle, unpacked, place, request))
        return run


def _tidy(folder: Path, job: JobDoc) -> None:
    """Leave nothing of a job that could not even begin: trying it again would change nothing."""
    if job.state != "failed" or job.problem is None:
        return
    place = RunFolder(folder)
    if isinstance(job.problem.to_error(), _HOPELESS) and not place.manifest.exists():
        place.clear()
        place.remove_if_empty()
