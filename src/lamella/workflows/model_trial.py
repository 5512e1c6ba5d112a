"""A model tried on the example in its folder: does it still give what it gave when it was made?"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lamella.core.errors import LamellaError
from lamella.io.format import open_labels, open_volume
from lamella.models.folder import ModelFolder

if TYPE_CHECKING:
    from lamella.core.places import Places
    from lamella.wire.event import EventSink

__all__ = ["Trial", "try_example"]

_INPUT, _OUTPUT = "example_input.tif", "example_output.tif"
LEAST_AGREEMENT = 0.99


@dataclass(frozen=True, slots=True)
class Trial:
    """What came of it.

    Attributes:
        agreement: share of voxels with the same label (for objects: that are in an object in both,
            or in neither).
        problem: why the model does not work as it did; empty where it does.
    """

    agreement: float
    problem: str = ""


class _Silenced:
    """Cancellation alone: nobody asked for this run, and what it says is of no interest."""

    def __init__(self, sink: EventSink) -> None:
        self.check = sink.check

    def emit(self, _event: object, /) -> None:
        """Drop it."""


def try_example(path: Path, places: Places, sink: EventSink) -> Trial | None:
    """Segment the example of a model folder and compare with the labels beside it.

    Args:
        path: of the model folder.
        places: where models lie.
        sink: cancellation and events of the run.

    Returns:
        None for a model without example.

    Raises:
        RunCancelledError: the sink asked to stop.
    """
    from lamella.workflows.api import make_request
    from lamella.workflows.segment import RunOptions, segment

    card = ModelFolder.open(path).card
    if not {_INPUT, _OUTPUT} <= set(card.files):
        return None
    expected = open_labels(path / _OUTPUT).load()
    with tempfile.TemporaryDirectory(prefix="lamella-trial-") as scratch:
        volume = open_volume(path / _INPUT)
        request = make_request(volume, str(path), {"preview": False})
        options = RunOptions(Path(scratch) / "run", places=places)
        sink.check()
        try:
            run = segment(request, options, volume=volume, sink=_Silenced(sink))
            found = run.labels.load()
        except LamellaError as error:
            sink.check()
            return Trial(0.0, f"fails on its example: {error.message}")
    if card.task == "instance":
        expected, found = expected > 0, found > 0
    agreement = float(np.mean(found == expected))
    if agreement >= LEAST_AGREEMENT:
        return Trial(agreement)
    return Trial(
        agreement,
        f"gives other labels on its example than when it was made: {agreement:.1%} agree",
    )
