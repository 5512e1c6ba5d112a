"""The folder of a training: made, found again, and told how the training went.

::

    RUN/
    ├── config.yaml          as resolved; `lamella train RUN --fresh --run-dir OTHER` repeats it
    ├── provenance.json      versions, data, machine, one entry a session
    ├── checkpoints/         last.ckpt, best-*.ckpt
    ├── metrics.csv          losses and scores
    ├── curves.png, curves.html
    ├── tensorboard/
    ├── summary.json         how it went
    └── model/               the result: what `lamella segment --model RUN` uses
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lamella.core.errors import InputError, MissingPathError, OutputExistsError
from lamella.core.storage import storage_error
from lamella.training.checkpoint import LAST, write_text
from lamella.training.compose import CONFIG_NAME, compose, to_yaml
from lamella.training.session import CHECKPOINTS

if TYPE_CHECKING:
    from lamella.training.configuration import TrainConfig

__all__ = [
    "PROVENANCE",
    "SUMMARY",
    "prepare",
    "read_summary",
    "write_provenance",
    "write_summary",
]

PROVENANCE = "provenance.json"
SUMMARY = "summary.json"

MAY_CHANGE = (
    "trainer.steps", "trainer.minutes", "trainer.patience", "trainer.keep_best", "trainer.workers",
    "trainer.threads", "trainer.loggers", "trainer.devices", "model.title", "model.description",
    "model.version", "model.licence", "model.citation", "model.example",
)  # fmt: skip
"""What a resumed training may have otherwise than before."""


def prepare(run_dir: Path, config: TrainConfig, *, resume: bool, fresh: bool) -> Path | None:
    """Make a run folder, or find what is in it.

    Args:
        run_dir: folder of the training.
        config: as resolved.
        resume: go on with what is there.
        fresh: delete what an earlier training left there.

    Returns:
        The checkpoint to go on from; None to begin.

    Raises:
        OutputExistsError: there is a training already, and nothing was said about it.
        InputError: the folder holds something else, or was made with another configuration.
        MissingPathError: nothing to resume.
        StorageError: it cannot be written.
    """
    known = run_dir / CONFIG_NAME
    if not known.is_file():
        _check_empty(run_dir)
        if resume:
            raise MissingPathError(
                f"there is no training in {run_dir} to go on with",
                hint="leave out --resume to begin one",
            )
    elif resume:
        _check_same(compose(str(known)), config, run_dir)
    elif fresh:
        _clear(run_dir)
    else:
        state = read_summary(run_dir).get("state", "unfinished")
        raise OutputExistsError(
            f"{run_dir} holds a training ({state})",
            hint="--resume goes on with it, --fresh trains anew; or choose another --run-dir",
            details={"state": state},
        )
    # The configuration first: whoever is killed here leaves a training, or nothing.
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        write_text(known, to_yaml(config))
        (run_dir / CHECKPOINTS).mkdir(exist_ok=True)
    except OSError as error:
        raise storage_error(error, run_dir) from error
    last = run_dir / CHECKPOINTS / LAST
    return last if last.is_file() else None


def read_summary(run_dir: Path) -> dict[str, Any]:
    """How a training went; empty where nothing is said."""
    try:
        document: Any = json.loads((run_dir / SUMMARY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def write_summary(run_dir: Path, document: Mapping[str, Any]) -> None:
    """Say how a training went.

    Raises:
        StorageError: it cannot be written.
    """
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False, default=str)
    write_text(run_dir / SUMMARY, text + "\n")


def write_provenance(run_dir: Path, session: Mapping[str, Any]) -> None:
    """Add a session to those that are known.

    Raises:
        StorageError: it cannot be written.
    """
    path = run_dir / PROVENANCE
    earlier: list[Any] = []
    if path.is_file():
        try:
            earlier = json.loads(path.read_text(encoding="utf-8"))["sessions"]
        except (OSError, ValueError, KeyError):
            earlier = []
    document = {"format_version": 1, "sessions": [*earlier, session]}
    write_text(path, json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def _check_empty(run_dir: Path) -> None:
    # Half a configuration is what is left of a training that was killed before it began.
    allowed = {"learning_rate.png", f".{CONFIG_NAME}.part"}
    if run_dir.is_file() or (
        run_dir.is_dir() and any(path.name not in allowed for path in run_dir.iterdir())
    ):
        raise InputError(
            f"{run_dir} holds something else than a training", hint="choose another --run-dir"
        )


def _check_same(before: TrainConfig, now: TrainConfig, run_dir: Path) -> None:
    old, new = _flat(before.model_dump(mode="json")), _flat(now.model_dump(mode="json"))
    changed = [
        key
        for key in {**old, **new}
        if old.get(key) != new.get(key) and not key.startswith(MAY_CHANGE)
    ]
    if changed:
        shown = "; ".join(f"{key} was {old.get(key)!r}, is {new.get(key)!r}" for key in changed[:4])
        raise InputError(
            f"{run_dir} was begun with another configuration: {shown}",
            hint=f"`lamella train --resume {run_dir}` goes on as it was; or take another --run-dir",
            details={"changed": changed},
        )


def _flat(values: Any, before: str = "") -> dict[str, Any]:
    if not isinstance(values, dict):
        return {before: values}
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update(_flat(value, f"{before}.{key}" if before else str(key)))
    return flat


def _clear(run_dir: Path) -> None:
    """Delete what a training leaves, and nothing else; last the file that says it is one."""
    names = (
        PROVENANCE, SUMMARY, CHECKPOINTS, "metrics.csv", "curves.png", "curves.html", "tensorboard",
        "wandb", "model", "learning_rate.png",
    )  # fmt: skip
    try:
        for path in (
            *(run_dir / n for n in names),
            *run_dir.glob(".*.part"),
            run_dir / CONFIG_NAME,
        ):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    except OSError as error:
        raise storage_error(error, run_dir) from error
