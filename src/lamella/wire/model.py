"""Models of a server: what can be used, what can be pulled, and how far a pull has come."""

from typing import Literal

from pydantic import Field

from lamella.wire.card import ClassDoc
from lamella.wire.document import Document
from lamella.wire.job import ProgressDoc
from lamella.wire.problem import Problem

__all__ = ["ModelDoc", "PullDoc", "PullSpec"]


class ModelDoc(Document):
    """A model that jobs can name, or that can be pulled."""

    id: str
    engine: str
    """Id of the engine that runs it."""
    version: str = ""
    title: str = ""
    description: str = ""
    task: Literal["semantic", "instance"] | None = None
    axes: Literal["zyx", "yx"] | None = None
    classes: tuple[ClassDoc, ...] = ()
    """Only where one model is asked for."""
    licence: str = ""
    licence_url: str = ""
    licence_text: str = ""
    """Only where one model is asked for."""
    must_accept: bool = False
    """Whether the licence has to be accepted before it is pulled."""
    is_accepted: bool = True
    origin: Literal["starter", "user", "path", "catalogue"]
    """Shipped, in the server's models folder, or in a catalogue only."""
    is_here: bool
    """Whether jobs can use it now."""
    n_bytes: int | None = None
    """On the disk, or to be fetched; None where nobody published it."""
    citation: str = ""
    problem: str | None = None
    """Why it cannot be used."""


class PullSpec(Document):
    """How a model is to be pulled."""

    accept_licence: bool = Field(default=False)
    """You read the licence and accept it for everybody who uses this server; it is recorded."""


class PullDoc(Document):
    """A pull, on its way or done."""

    model: str
    state: Literal["waiting", "running", "finished", "failed", "cancelled"]
    user: str
    """Who asked for it."""
    started: str
    """ISO 8601, UTC."""
    finished: str | None = None
    progress: ProgressDoc | None = None
    was_here: bool = False
    """Nothing had to be fetched."""
    problem: Problem | None = None
