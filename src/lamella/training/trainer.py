"""Lightning's trainer as a configuration wants it, without its chatter.

Checkpoints, curves, progress and limits are callbacks of this package; of Lightning are the loop,
devices and their strategies, precision and accumulation.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from lamella.core.errors import DeviceError, InputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import lightning.pytorch as pl

    from lamella.training.configuration import TrainConfig

__all__ = ["Devices", "choose_devices", "make_trainer", "n_devices", "quiet", "settled"]

_PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
_LOGGERS = ("lightning", "lightning.pytorch", "lightning.fabric", "lightning_fabric")


@dataclass(frozen=True, slots=True)
class Devices:
    """Kind of device (``cpu`` or ``cuda``) and how many of them in this machine."""

    kind: str
    count: int


def choose_devices(config: TrainConfig) -> Devices:
    """What ``trainer.devices`` means here.

    ``auto`` takes every GPU, or the CPU where there is none; a number takes so many GPUs; ``cpu``
    and ``cpu:2`` take the CPU, with so many processes.

    Raises:
        DeviceError: more GPUs than there are.
        InputError: something else, or a precision that the device does not have.
    """
    wanted = str(config.trainer.devices)
    n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    kind, _, number = wanted.partition(":")
    if wanted == "auto":
        chosen = Devices("cuda", n_gpus) if n_gpus else Devices("cpu", 1)
    elif kind in ("cpu", "cuda") and (not number or number.isdecimal()):
        chosen = Devices(kind, int(number or 1))
    elif wanted.isdecimal():
        chosen = Devices("cuda", int(wanted))
    else:
        raise InputError(
            f"trainer.devices is {wanted!r}", hint="give auto, cpu, or a number of GPUs"
        )
    if chosen.count < 1:
        raise InputError(f"trainer.devices is {wanted!r}", hint="give auto, cpu, or at least 1")
    if chosen.kind == "cuda" and chosen.count > n_gpus:
        raise DeviceError(
            f"trainer.devices asks for {chosen.count} GPU(s), PyTorch sees {n_gpus} here",
            hint="use trainer.devices=auto or cpu",
        )
    if chosen.kind == "cpu" and config.trainer.precision == "fp16":
        raise InputError(
            "fp16 needs a GPU: on a CPU it is slow and overflows",
            hint="use trainer.precision=bf16 or fp32",
        )
    return chosen


def n_devices(config: TrainConfig, devices: Devices) -> int:
    """Devices of all machines together."""
    return devices.count * config.trainer.nodes


def make_trainer(
    config: TrainConfig,
    devices: Devices,
    callbacks: Sequence[pl.Callback],
    *,
    has_unused: bool = False,
) -> pl.Trainer:
    """The trainer.

    Args:
        config: precision, accumulation, machines.
        devices: it runs on.
        callbacks: in the order in which they are called.
        has_unused: whether some weights get no gradient, which DDP has to look for.
    """
    import lightning.pytorch as pl
    from lightning.pytorch.strategies import DDPStrategy

    strategy: Any = "auto"
    if n_devices(config, devices) > 1:
        strategy = DDPStrategy(
            process_group_backend="nccl" if devices.kind == "cuda" else "gloo",
            find_unused_parameters=has_unused,
            # Views save the memory of a second copy of all gradients.
            gradient_as_bucket_view=True,
        )
    return pl.Trainer(
        accelerator="gpu" if devices.kind == "cuda" else "cpu",
        devices=devices.count,
        num_nodes=config.trainer.nodes,
        strategy=strategy,
        precision=_PRECISIONS[config.trainer.precision],  # pyright: ignore[reportArgumentType]
        # Callbacks end it.
        max_epochs=-1,
        accumulate_grad_batches=config.trainer.accumulate,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        limit_val_batches=0,
        num_sanity_val_steps=0,
    )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what Lightning says to developers away from people."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # Advice about workers, loggers and summaries, and deprecations between packages.
            warnings.filterwarnings("ignore", module=r"lightning\..*")
            warnings.filterwarnings("ignore", module=r"torch\..*")
            warnings.filterwarnings(
                "ignore", message=".*(lightning|Lightning|Trainer|torchmetrics)"
            )
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def settled(config: TrainConfig, devices: Devices) -> Iterator[None]:
    """PyTorch's settings of the whole process: as the training wants them, and back again.

    On CUDA ``deterministic`` takes deterministic kernels where PyTorch has them. On the CPU all
    kernels of these networks give the same with the same number of threads.
    """
    threads = torch.get_num_threads()
    was_deterministic = torch.are_deterministic_algorithms_enabled()
    warned = torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.deterministic
    noise = torch.get_rng_state()
    try:
        if config.trainer.threads:
            torch.set_num_threads(config.trainer.threads)
        if devices.kind == "cuda":
            exact = config.trainer.deterministic
            cudnn.benchmark, cudnn.deterministic = not exact, exact
            # Some kernels (upsampling backwards) have no deterministic twin: take what there is.
            torch.use_deterministic_algorithms(exact, warn_only=True)
        yield
    finally:
        torch.set_num_threads(threads)
        cudnn.benchmark, cudnn.deterministic = before
        torch.use_deterministic_algorithms(was_deterministic, warn_only=warned)
        torch.set_rng_state(noise)
