"""A segmentation on a server, from the files here to the run folder here.

::

    start:   what is in the run folder? ─▶ input uploaded ─▶ job queued (remote.json from here on)
    follow:  events until the job ends; previews into the run folder
    fetch:   run.tar ─▶ unpacked ─▶ the run folder, as a local run leaves it

Here is the first of the three; the others are in :mod:`lamella.client.follow`.

Every step can be interrupted anywhere and is gone on with by the same call: the upload by the
client's memory, the job by ``remote.json``, the download by its part.
"""

import contextlib
import uuid
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import quote

from lamella.client.context import Context
from lamella.client.flow import Do, Flow, Request, Tell
from lamella.client.inputs import is_remote_path, named, state_of, upload_of
from lamella.client.job import act, show, submit
from lamella.client.patience import Trouble, ask, error_of
from lamella.client.upload import digest_of
from lamella.core.errors import (
    GoneError,
    InputError,
    LamellaError,
    MissingPathError,
    RunCancelledError,
    RunError,
    ServerConnectionError,
    UnknownModelError,
)
from lamella.wire.event import LogEvent
from lamella.wire.job import JobDoc, JobSpec
from lamella.wire.manifest import RunManifest
from lamella.wire.remote import RemoteDoc
from lamella.wire.request import SegmentRequest
from lamella.workflows.prepare import MEMORY_PREFIX, open_input
from lamella.workflows.run import Run
from lamella.workflows.run_folder import REMOTE, RunFolder, write_bytes

__all__ = ["Order", "Started", "start", "waiting_job"]


@dataclass(frozen=True, slots=True)
class Order:
    """What is asked for.

    Attributes:
        request: as for a local run. Its input is a path here, ``server:/PATH`` for a path on the
            server, or an ``s3://`` address.
        folder: run folder here; None only queues the job.
        name: of the job, for lists.
        priority: among the jobs of one user.
        exports: formats that the server makes too, as suffixes.
        fresh: start anew, whatever the folder holds.
        overwrite: run a finished run again.
    """

    request: SegmentRequest
    folder: Path | None = None
    name: str = ""
    priority: int = 0
    exports: tuple[str, ...] = ()
    fresh: bool = False
    overwrite: bool = False


@dataclass(frozen=True, slots=True)
class Started:
    """A job that the server has, or a run that was finished before."""

    job: JobDoc | None = None
    run: Run | None = None


def waiting_job(folder: Path) -> str | None:
    """The job of a server that a run folder waits for; None where it waits for none."""
    try:
        note = _read_note(RunFolder(folder))
    except LamellaError:
        return None
    return None if note is None else note.job


def start(context: Context, order: Order) -> Flow[Started]:
    """Upload the input and queue the job, or find what an earlier call has begun.

    Raises:
        InputError: and its kin, for an input that cannot be read here.
        RunError: when the folder holds another run.
    """
    _check_request(order.request)
    if not is_remote_path(order.request.input.path):
        # Whatever is wrong with the input is said before it is uploaded.
        yield Do(partial(open_input, order.request.input))
    if order.folder is not None and (yield Do(partial(_has_spoken, context, order.folder))):
        # It is away for a while, then; the address is not a wrong one.
        context.patience.contact.was_made = True
    yield from _check_model(context, order.request)
    if order.folder is None:
        job = yield from _submit(context, order, uuid.uuid4().hex)
        return Started(job)
    folder = RunFolder(order.folder)
    note = folder.path / REMOTE
    if not note.exists():
        folder.check_ours()
    was_there = folder.path.exists()
    try:
        with folder.locked():
            return (yield from _start_in(context, order, folder))
    finally:
        if not was_there:
            folder.remove_if_empty()


# --- Starting -----------------------------------------------------------------------------------


def _check_request(request: SegmentRequest) -> None:
    if request.input.path.startswith(MEMORY_PREFIX):
        raise InputError(
            "an array in memory cannot be sent to a server",
            hint='save it first: lm.save(volume, "volume.ome.zarr")',
        )
    model = Path(request.model).expanduser()
    if (model / "model.json").is_file() or (model.exists() and len(model.parts) > 1):
        raise InputError(
            f"the model {request.model} is a folder on this machine; the server has its own",
            hint="choose one of `lamella jobs models`, or have this one imported on the server",
        )


def _has_spoken(context: Context, folder: Path) -> bool:
    """Whether an earlier call for this folder had begun something on the server."""
    with contextlib.suppress(LamellaError):
        note = _read_note(RunFolder(folder))
        return note is not None and note.server == context.server
    return False


def _check_model(context: Context, request: SegmentRequest) -> Flow[None]:
    """Say before the upload that the server does not have the model.

    Models that an engine finds by itself (``classical:otsu``) are judged with the job.
    """
    if ":" in request.model or request.engine is not None:
        return
    address = f"models/{quote(request.model, safe='')}"
    answer = yield from ask(Request("GET", address), Trouble(context.patience), 404, 403)
    if answer.is_success and answer.json().get("is_here") is False:
        raise UnknownModelError(
            f"the server does not have the model {request.model!r} yet",
            hint="ask whoever runs it for `lamella models pull` there; `lamella jobs models`"
            " lists what it has",
        )
    error = None if answer.is_success else error_of(answer)
    if isinstance(error, UnknownModelError):
        raise error


def _start_in(context: Context, order: Order, folder: RunFolder) -> Flow[Started]:
    note = _read_note(folder)
    if order.fresh:
        yield from _leave(context, note)
        yield Do(folder.clear)
        note = None
    manifest = folder.read_manifest()
    if manifest is not None:
        run = yield from _found(context, order, folder, manifest)
        if run is not None:
            return Started(run=run)
    state = state_of(order.request)
    changed = [] if note is None else _changed(note, context, order, state)
    if note is not None and not changed:
        job = yield from _gone_on(context, note)
        if job is not None:
            return Started(job)
    elif note is not None:
        yield from _check_ended(context, note, changed, folder)
    if note is None or note.job is not None or changed:
        key = uuid.uuid4().hex
        note = RemoteDoc(server=context.server, request=order.request, state=state, key=key)
    yield Do(partial(_write_note, folder, note))
    try:
        job = yield from _submit(context, order, note.key)
    except LamellaError as error:
        # What the server refused cannot be gone on with; without an answer it may have the job.
        if not isinstance(error, ServerConnectionError | RunCancelledError):
            yield Do(partial((folder.path / REMOTE).unlink, missing_ok=True))
        raise
    yield Do(partial(_write_note, folder, note.model_copy(update={"job": job.id})))
    return Started(job)


def _found(
    context: Context, order: Order, folder: RunFolder, manifest: RunManifest
) -> Flow[Run | None]:
    """The finished run that is here already; None where it is to be replaced."""
    neutral = {"path": ""}
    wanted, there = (
        request.model_copy(update={"input": request.input.model_copy(update=neutral)})
        for request in (order.request, manifest.request)
    )
    is_same = wanted == there
    if is_same and not is_remote_path(order.request.input.path):
        upload, memory = yield Do(partial(upload_of, context, Path(order.request.input.path)))
        with contextlib.closing(upload.source):
            digest = yield from digest_of(upload, memory)
        # A file with neighbours has no fingerprint of its own here.
        is_same = bool(upload.inside) or digest.fingerprint == manifest.input.sha256
    if not is_same or manifest.status != "finished":
        what = "an unfinished run of this machine" if is_same else "another run"
        raise RunError(
            f"{folder.path} holds {what}",
            hint="use --fresh to replace it, or --run-dir for another folder",
        )
    if order.overwrite:
        yield Do(folder.clear)
        return None
    return Run(folder.path, manifest, was_finished=True)


def _leave(context: Context, note: RemoteDoc | None) -> Flow[None]:
    """Cancel the job of an earlier call: nobody waits for it any more."""
    if note is not None and note.job is not None and note.server == context.server:
        with contextlib.suppress(LamellaError):
            yield from act(note.job, "cancel", context.patience)


def _changed(note: RemoteDoc, context: Context, order: Order, state: str) -> list[str]:
    """What differs between what the folder waits for and what is asked for, in words."""
    return [
        word
        for word, is_other in (
            ("server", note.server != context.server),
            ("request", note.request != order.request),
            ("input", note.state != state),
        )
        if is_other
    ]


def _check_ended(
    context: Context, note: RemoteDoc, changed: list[str], folder: RunFolder
) -> Flow[None]:
    """A job that failed or was cancelled stands in nobody's way; any other does."""
    if note.job is None:
        return
    if note.server == context.server:
        try:
            job = yield from show(note.job, context.patience)
        except (MissingPathError, GoneError):
            return
        if job.state in ("failed", "cancelled"):
            return
    raise RunError(
        f"{folder.path} waits for a job of {note.server} with another {' and '.join(changed)}",
        hint="use --fresh to leave that job and start anew, or --run-dir for another folder",
        details={"changed": changed, "job": note.job},
    )


def _gone_on(context: Context, note: RemoteDoc) -> Flow[JobDoc | None]:
    """The job of an earlier call, on its way again where it had stopped."""
    if note.job is None:
        return None
    try:
        job = yield from show(note.job, context.patience)
    except (MissingPathError, GoneError):
        yield Tell(LogEvent(message=f"the server has no job {note.job} any more: started anew"))
        return None
    if job.state in ("failed", "cancelled", "interrupted"):
        why = f": {job.problem.message}" if job.problem is not None else ""
        yield Tell(LogEvent(message=f"job {job.id} was {job.state}{why}; it goes on now"))
        return (yield from act(job.id, "retry", context.patience))
    return job


def _submit(context: Context, order: Order, key: str) -> Flow[JobDoc]:
    request = order.request
    path = yield from named(context, request.input.path)
    changes: dict[str, object] = {"input": request.input.model_copy(update={"path": path})}
    if request.restore is not None and request.restore.psf is not None:
        psf = yield from named(context, request.restore.psf)
        changes["restore"] = request.restore.model_copy(update={"psf": psf})
    spec = JobSpec(
        request=request.model_copy(update=changes),
        name=order.name or Path(request.input.path).name,
        priority=order.priority,
        exports=order.exports,
    )
    return (yield from submit(spec, key, context.patience))


def _read_note(folder: RunFolder) -> RemoteDoc | None:
    path = folder.path / REMOTE
    return RemoteDoc.read(path, error=RunError) if path.is_file() else None


def _write_note(folder: RunFolder, note: RemoteDoc) -> None:
    write_bytes(folder.path / REMOTE, note.to_json().encode())
