"""What all work with one server shares."""

from dataclasses import dataclass, field
from pathlib import Path

from lamella.client.patience import Patience
from lamella.client.upload import UploadOptions

__all__ = ["Context"]


@dataclass(frozen=True, slots=True)
class Context:
    """What all work with one server shares.

    Attributes:
        server: its address.
        patience: with the network.
        cache: where interrupted uploads are remembered; None = nowhere.
        upload: chunks and parts.
    """

    server: str
    patience: Patience
    cache: Path | None = None
    upload: UploadOptions = field(default_factory=UploadOptions)
