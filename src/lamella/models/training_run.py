"""The run folder of a training, named in place of the model in it.

::

    my-run/
    ├── config.yaml, checkpoints/, summary.json ...     the training
    └── model/                                          the model, once the training has finished
"""

from __future__ import annotations

from pathlib import Path

from lamella.core.errors import ModelError
from lamella.models.catalogue import CARD_NAME

__all__ = ["model_in_run", "unfinished_run"]

MODEL_FOLDER = "model"
_CONFIG = "config.yaml"
_SIGNS = ("checkpoints", "summary.json", "provenance.json", "metrics.csv")


def model_in_run(path: Path) -> Path | None:
    """The model folder in the folder of a training; None where there is none.

    Examples:
        >>> model_in_run(Path("no-such-run")) is None
        True
    """
    model = path / MODEL_FOLDER
    is_run = _is_run(path) and (model / CARD_NAME).is_file()
    return model if is_run else None


def unfinished_run(path: Path) -> ModelError | None:
    """What to say of the folder of a training that has left no model yet; None for others."""
    if not _is_run(path) or (path / MODEL_FOLDER / CARD_NAME).is_file():
        return None
    return ModelError(
        f"{path} is a training that has left no model yet",
        hint=f"finish it: lamella train --resume {path}",
    )


def _is_run(path: Path) -> bool:
    return (path / _CONFIG).is_file() and any((path / sign).exists() for sign in _SIGNS)
