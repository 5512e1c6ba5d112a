"""What happened during a training, as ``metrics.csv`` and as numbers to draw.

Rows come ten times between two validations; one with a validation has its columns filled.

Examples:
    >>> history = History(("mitochondrion",))
    >>> history.add(Row(step=10, time_s=2.5, loss=0.7, learning_rate=1e-3))
    >>> history.csv().splitlines()[0]
    'step,time_s,loss,learning_rate,gradient_norm,data_share,validation_loss,score,mitochondrion'
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from lamella.core.errors import UnreadableFileError

__all__ = ["History", "Row"]

_NUMBERS = (
    "step", "time_s", "loss", "learning_rate", "gradient_norm", "data_share", "validation_loss",
    "score",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Row:
    """A moment of a training.

    Attributes:
        step: optimiser steps done.
        time_s: since the start, sessions added up.
        loss: mean over the steps since the row before.
        learning_rate: of the last step.
        gradient_norm: before clipping, of the last step.
        data_share: of the time since the row before that was waited for data.
        validation_loss: None without a validation.
        score: mean IoU over the classes that occur; None without a validation, nan without a class.
        classes: IoU of each class; nan for one that does not occur.
    """

    step: int
    time_s: float
    loss: float
    learning_rate: float
    gradient_norm: float = math.nan
    data_share: float = math.nan
    validation_loss: float | None = None
    score: float | None = None
    classes: Mapping[str, float] = field(default_factory=dict)

    @property
    def is_validation(self) -> bool:
        """Whether the network was judged here."""
        return self.validation_loss is not None


class History:
    """All rows so far.

    Args:
        classes: names of what is scored, without background.
        rows: of earlier sessions.
    """

    def __init__(self, classes: Sequence[str], rows: Sequence[Row] = ()) -> None:
        self.classes = tuple(classes)
        self.rows = list(rows)

    @classmethod
    def read(cls, path: Path, classes: Sequence[str], *, last_step: int) -> History:
        """The rows of a file up to a step; none where there is no file.

        Args:
            path: ``metrics.csv``.
            classes: names of what is scored.
            last_step: what came later is not in the checkpoint, and will come again.

        Raises:
            UnreadableFileError: something else than numbers.
        """
        if not path.is_file():
            return cls(classes)
        rows = []
        try:
            with path.open(newline="", encoding="utf-8") as stream:
                rows = [_row(words, classes) for words in csv.DictReader(stream)]
        except (KeyError, ValueError, TypeError) as error:
            raise UnreadableFileError(
                f"{path} is damaged: {error}", hint="move it away; a new one is then begun"
            ) from None
        return cls(classes, [row for row in rows if row.step <= last_step])

    @property
    def validations(self) -> list[Row]:
        """The rows with a validation."""
        return [row for row in self.rows if row.is_validation]

    def add(self, row: Row) -> None:
        """Append a row."""
        self.rows.append(row)

    def complete(
        self, *, validation_loss: float, score: float, classes: Mapping[str, float]
    ) -> None:
        """Fill in the validation of the last row."""
        self.rows[-1] = replace(
            self.rows[-1], validation_loss=validation_loss, score=score, classes=dict(classes)
        )

    def csv(self) -> str:
        """The whole table."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([*_NUMBERS, *self.classes])
        for row in self.rows:
            writer.writerow(
                [
                    *(_text(getattr(row, name)) for name in _NUMBERS),
                    *(_text(row.classes.get(name)) for name in self.classes),
                ]
            )
        return text.getvalue()


def _text(value: float | None) -> str:
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.7g}"


def _row(words: Mapping[str, str], classes: Sequence[str]) -> Row:
    def optional(name: str) -> float | None:
        return float(words[name]) if words.get(name) else None

    return Row(
        step=int(words["step"]),
        validation_loss=optional("validation_loss"),
        score=optional("score"),
        classes={name: float(words[name]) for name in classes if words.get(name)},
        **{
            name: float(words[name])
            for name in ("time_s", "loss", "learning_rate", "gradient_norm", "data_share")
        },
    )
