"""Inputs of segmentations: those that lie on a server already, and those that are sent there."""

import contextlib
from functools import partial
from pathlib import Path

from lamella.client.context import Context
from lamella.client.flow import Do, Flow
from lamella.client.memory import Memory, open_memory
from lamella.client.source import Upload, prepare_upload
from lamella.client.upload import upload_volume
from lamella.wire.request import SegmentRequest
from lamella.wire.upload import VolumeDoc
from lamella.workflows.prepare import MEMORY_PREFIX

__all__ = ["is_remote_path", "named", "placed", "state_of", "upload_of", "uploaded"]

_SERVER_PATH = "server:"


def is_remote_path(path: str) -> bool:
    """Whether an input lies on the server already."""
    return path.startswith((_SERVER_PATH, "s3://", "volume:"))


def placed(request: SegmentRequest) -> SegmentRequest:
    """The request with its input's path made whole, where it is one of this machine."""
    path = request.input.path
    if path.startswith("s3:/") and not path.startswith("s3://"):
        # pathlib takes the second slash away.
        path = "s3://" + path.removeprefix("s3:/")
    elif not is_remote_path(path) and not path.startswith(MEMORY_PREFIX):
        path = str(Path(path).expanduser().absolute())
    own = request.input.model_copy(update={"path": path})
    return request.model_copy(update={"input": own})


def named(context: Context, path: str) -> Flow[str]:
    """What the server calls an input, once it has it."""
    if path.startswith(_SERVER_PATH):
        return path.removeprefix(_SERVER_PATH)
    if is_remote_path(path):
        return path
    volume, inside = yield from uploaded(context, Path(path))
    return f"volume:{volume.id}" + (f"/{inside}" if inside else "")


def uploaded(context: Context, path: Path) -> Flow[tuple[VolumeDoc, str]]:
    """Bring a file or a folder to the server.

    Args:
        context: the server.
        path: here.

    Returns:
        Its volume, and where in it ``path`` lies; empty where the volume is ``path``.
    """
    upload, memory = yield Do(partial(upload_of, context, path))
    with contextlib.closing(upload.source):
        volume = yield from upload_volume(upload, memory, context.patience, context.upload)
    return volume, upload.inside


def upload_of(context: Context, path: Path) -> tuple[Upload, Memory]:
    """What would be sent of a file or a folder, and where it was left the last time."""
    upload = prepare_upload(path)
    return upload, open_memory(context.cache, context.server, upload.identity)


def state_of(request: SegmentRequest) -> str:
    """By which the input of a request is known again; empty for one that lies on the server."""
    if is_remote_path(request.input.path):
        return ""
    upload = prepare_upload(Path(request.input.path))
    upload.source.close()
    return upload.identity.state
