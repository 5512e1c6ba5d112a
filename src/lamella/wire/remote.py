"""What a run folder remembers of a run that a server does for it."""

from typing import Literal

from lamella.wire.document import Document
from lamella.wire.request import SegmentRequest

__all__ = ["RemoteDoc"]


class RemoteDoc(Document):
    """Left as ``remote.json`` until the run is here: the same command goes on with it."""

    format_version: Literal[1] = 1
    server: str
    request: SegmentRequest
    """With the input's path on this machine."""
    state: str
    """Names, sizes and times of the input's files, hashed: a changed input is another one."""
    key: str
    """Idempotency key of the submission: asked twice, it is one job."""
    job: str | None = None
    """Id of the job; None until the server has taken it."""
