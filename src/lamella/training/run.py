"""A training from its configuration to a model folder.

Same configuration, same data, same number of threads: the same weights on a CPU, bit for bit,
however often the training was interrupted. A time limit (``trainer.minutes``) gives that up: how
many steps fit into the time depends on the machine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lamella.core.errors import LamellaError, RunCancelledError, RunError
from lamella.core.progress import SilentSink
from lamella.core.storage import is_disk_full, storage_error
from lamella.training.build import build_training_loss, build_training_network
from lamella.training.checking import augment_options
from lamella.training.checkpoint import read_checkpoint
from lamella.training.chunk_order import PatchOrder
from lamella.training.history import History
from lamella.training.patches import PatchDataset, PatchNumbers, make_loader
from lamella.training.provenance import make_provenance
from lamella.training.run_folder import prepare, write_provenance, write_summary
from lamella.training.session import Session, scored_classes
from lamella.training.sources import build_source
from lamella.training.state import Clock, LoopState
from lamella.training.summary import summarise
from lamella.training.task import build_task
from lamella.training.tile import validation_tile
from lamella.training.trainer import (
    choose_devices,
    n_devices,
    quiet,
    settled,
)
from lamella.training.work import Work
from lamella.wire.event import LogEvent, WarningEvent

if TYPE_CHECKING:
    from lamella.core.places import Places
    from lamella.training.configuration import TrainConfig
    from lamella.training.result import Result
    from lamella.training.source import PatchSource
    from lamella.training.task import Task
    from lamella.wire.event import EventSink

__all__ = ["TrainOptions", "TrainResult", "build_data", "train", "train_on"]


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """How a training is begun.

    Attributes:
        resume: go on with what the run folder holds.
        fresh: delete what an earlier training left there.
        places: of models to start from, beside the shipped ones.
        command: words it was started with, for provenance.
    """

    resume: bool = False
    fresh: bool = False
    places: Places | None = None
    command: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a training came to.

    Attributes:
        run_dir: its folder.
        summary: the document of ``summary.json``.
        result: the model; None on all but the first of several devices.
        history: losses and scores.
    """

    run_dir: Path
    summary: dict[str, Any]
    result: Result | None
    history: History = field(repr=False)


def build_data(config: TrainConfig) -> tuple[PatchSource, Task]:
    """Data and task of a configuration.

    Raises:
        LamellaError: data that cannot be trained on.
    """
    source = build_source(config)
    spacing = None if source.info.spacing is None else source.info.spacing.values
    axes = source.info.axes
    task = build_task(config.task, axes, spacing=spacing and spacing[-len(axes) :])
    return source, task


def train(
    config: TrainConfig,
    run_dir: Path,
    options: TrainOptions | None = None,
    *,
    sink: EventSink | None = None,
) -> TrainResult:
    """Train, and write the model.

    Args:
        config: as composed.
        run_dir: folder of the training.
        options: how it is begun.
        sink: hears of progress and may cancel.

    Raises:
        RunCancelledError: the sink asked to stop; what is done until the last validation is kept.
        RunError: the loss became NaN or infinite.
        StorageError: the disk is full; the last checkpoint is whole.
        LamellaError: for whatever else cannot be trained.
    """
    source, task = build_data(config)
    return train_on(config, source, task, run_dir, options, sink=sink)


def train_on(
    config: TrainConfig,
    source: PatchSource,
    task: Task,
    run_dir: Path,
    options: TrainOptions | None = None,
    *,
    sink: EventSink | None = None,
) -> TrainResult:
    """Train on data of one's own; see :func:`train`.

    Args:
        config: as composed; ``data`` is not looked at.
        source: of patches.
        task: what is learnt.
        run_dir: folder of the training.
        options: how it is begun.
        sink: hears of progress and may cancel.
    """
    from lightning.fabric.utilities.rank_zero import rank_zero_only

    from lamella.training.callbacks.boards import check_loggers

    options = options or TrainOptions()
    is_first = getattr(rank_zero_only, "rank", 0) in (0, None)
    devices = choose_devices(config)
    check_loggers(config.trainer.loggers)
    with quiet(), settled(config, devices):
        network = build_training_network(config, source, task, options.places)
        loss = build_training_loss(config, task)
        tile = validation_tile(config, network, source.info.n_channels)
        if is_first:
            found = prepare(run_dir, config, resume=options.resume, fresh=options.fresh)
        else:
            # The first process has prepared the folder before it started this one.
            sink = None
            last = run_dir / "checkpoints" / "last.ckpt"
            found = last if last.is_file() else None
        document = None if found is None else read_checkpoint(found)
        session = _session(config, source, task, loss, run_dir, sink or SilentSink(), document)
        work = Work(session, source, network, devices, document, tile)
        if not is_first:
            work.fit()
            return TrainResult(run_dir, {}, None, session.history)
        seed = config.seed
        write_provenance(run_dir, make_provenance(source.info, command=options.command, seed=seed))
        return _told(work)


def _session(
    config: TrainConfig,
    source: PatchSource,
    task: Task,
    loss: Any,
    run_dir: Path,
    sink: EventSink,
    document: dict[str, Any] | None,
) -> Session:
    """Everything the callbacks share, at the step of the checkpoint."""
    from lamella.training.callbacks.keeper import restore_state
    from lamella.training.callbacks.recorder import METRICS

    trainer, devices = config.trainer, choose_devices(config)
    world = n_devices(config, devices)
    per_step = trainer.batch_size * trainer.accumulate * world
    numbers = PatchNumbers(per_step * trainer.validate_every, world=world)
    spacing = source.info.spacing
    n_axes = len(source.info.axes)
    dataset = PatchDataset(
        source,
        task,
        PatchOrder(seed=config.seed, batch=trainer.batch_size * world),
        tuple(trainer.patch),
        augment_options(config) if config.augmentation.enabled else None,
        None if spacing is None else tuple(spacing.values[-n_axes:]),
    )
    loader = make_loader(
        dataset,
        numbers,
        batch_size=trainer.batch_size,
        workers=trainer.workers,
        is_pinned=devices.kind == "cuda",
    )
    session = Session(
        config, run_dir, task, loss, dataset, numbers, loader, History(scored_classes(task)), sink
    )
    session.state, session.clock = LoopState(), Clock(trainer.minutes)
    if document is not None:
        restore_state(session, document)
        session.history = History.read(
            run_dir / METRICS, session.history.classes, last_step=session.state.step
        )
    return session


def _told(work: Work) -> TrainResult:
    """Fit and write, and say in ``summary.json`` how it went, whatever happens."""
    session = work.session
    warnings = list(work.source.info.warnings)
    if not work.source.regions("validation"):
        warnings.append("there is no validation data: the last weights are kept, not the best")
    for split, names in work.source.info.specimens.items():
        if names:
            shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
            session.sink.emit(LogEvent(message=f"{split}: {shown}"))
    for text in warnings:
        session.sink.emit(WarningEvent(code="data", message=text))
    _say(work, "running", warnings)
    try:
        work.fit()
        _say(work, "writing", warnings)
        result = work.write()
    except RunCancelledError as error:
        _ended(work, "stopped", warnings, error)
        raise RunCancelledError(
            f"stopped at step {session.state.step:,} of {session.config.trainer.steps:,}",
            hint=_how_to_go_on(session),
        ) from error
    except LamellaError as error:
        _ended(work, "failed", warnings, error)
        raise
    except OSError as error:
        if not is_disk_full(error):
            raise
        full = storage_error(error)
        full = type(full)(full.message, hint=f"free some space; {_how_to_go_on(session)}")
        _ended(work, "failed", warnings, full)
        raise full from error
    except torch.OutOfMemoryError as error:
        problem = RunError(
            "the memory of the GPU is too small for this training",
            hint="lower trainer.batch_size (and raise trainer.accumulate), or trainer.patch",
        )
        _ended(work, "failed", warnings, problem)
        raise problem from error
    from lamella.training.callbacks.pictures import write_curves

    warnings += [text for text in result.warnings if text not in warnings]
    write_curves(session, "finished")
    summary = _say(work, "finished", warnings, result=result)
    return TrainResult(session.run_dir, summary, result, session.history)


def _say(
    work: Work,
    state: str,
    warnings: Sequence[str],
    *,
    result: Result | None = None,
    problem: LamellaError | None = None,
) -> dict[str, Any]:
    document = summarise(
        work.session, state, device=work.devices.kind, warnings=warnings, result=result,
        problem=problem,
    )  # fmt: skip
    write_summary(work.session.run_dir, document)
    return document


def _ended(work: Work, state: str, warnings: Sequence[str], problem: LamellaError) -> None:
    """Leave word of a training that did not finish; a full disk must not hide the reason."""
    from lamella.training.callbacks.pictures import write_curves

    attempts: list[Callable[[], Any]] = [
        lambda: _say(work, state, warnings, problem=problem),
        lambda: write_curves(work.session, state),
    ]
    for attempt in attempts:
        try:
            attempt()
        except (LamellaError, OSError):
            continue


def _how_to_go_on(session: Session) -> str:
    folder, step = session.run_dir, session.kept_step
    where = f"goes on from step {step:,}" if step else "begins again: no validation was reached"
    return f"`lamella train --resume {folder}` {where}"
