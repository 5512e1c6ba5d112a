"""Training patches by number: drawn, augmented and encoded in worker processes.

Patch ``n`` of a training is the same whoever draws it: which process, how many of them, in which
order, and whether the training was interrupted before. Its randomness comes from a generator that
is seeded by the training's seed and ``n`` alone.

Of several devices, the one of rank ``r`` of ``w`` takes patches ``r``, ``r + w``, ``r + 2 w``, ...
An epoch is the part of a training between two validations.
"""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from lamella.core.errors import InputError, LamellaError, RunError
from lamella.training.augment import AugmentOptions, draw
from lamella.training.chunk_order import PatchOrder
from lamella.training.patch_reader import worker_context

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lamella.training.augment import Sample
    from lamella.training.source import PatchSource
    from lamella.training.task import Task

__all__ = ["PatchDataset", "PatchLoader", "PatchNumbers", "make_loader"]

Item = dict[str, Any]

_AHEAD = 3
"""Batches that each worker prepares in advance."""


@dataclass(frozen=True, slots=True)
class PatchDataset(Dataset[Item]):
    """Patches by number.

    Attributes:
        source: where patches come from.
        task: makes targets of labels.
        order: which patches lie close to each other, and the seed.
        shape: of a patch, spatial axes.
        augment: None for patches as they are.
        spacing: of the voxels per axis; None = the same along all.
    """

    source: PatchSource
    task: Task
    order: PatchOrder
    shape: tuple[int, ...]
    augment: AugmentOptions | None = None
    spacing: tuple[float, ...] | None = None

    def __getitem__(self, number: int) -> Item:
        """A patch.

        Returns:
            ``number``; ``image``, float32 (c, *spatial); ``values`` and ``valid`` as the task
            encodes them.

        Raises:
            InputError: the source gave a patch of another shape.
        """
        sample = self.sample(number)
        encoded = self.task.encode(sample)
        return {
            "number": number,
            "image": torch.from_numpy(np.ascontiguousarray(sample.image, np.float32)),
            "values": torch.from_numpy(np.ascontiguousarray(encoded.values)),
            "valid": torch.from_numpy(np.ascontiguousarray(encoded.valid)),
        }

    def sample(self, number: int) -> Sample:
        """A patch, augmented but not encoded."""
        change = None
        shape = self.shape
        if self.augment is not None:
            rng = self.order.augmentation(number)
            change = draw(rng, self.augment, self.shape, self.spacing)
            shape = change.movement.source_shape(self.shape, self.augment.reach)
        sample = self.order.draw(self.source, number, shape)
        if tuple(sample.image.shape[1:]) != shape:
            raise InputError(
                f"patch {number} has shape {sample.image.shape[1:]}, expected {shape}",
                hint="the data source is at fault: it has to pad what is too small",
            )
        return sample if change is None else change.apply(sample)


@dataclass(frozen=True, slots=True)
class _Reporting(Dataset[Any]):
    """Patches in a worker process: errors of ours come back as they are.

    PyTorch would raise them anew with the worker's whole traceback as their message, and without
    the hint.
    """

    dataset: PatchDataset

    def __getitem__(self, number: int) -> Item | LamellaError:
        try:
            return self.dataset[number]
        except LamellaError as error:
            return error


def _collate(items: list[Any]) -> Any:
    """A batch, or the first error in it."""
    return next((i for i in items if isinstance(i, LamellaError)), None) or default_collate(items)


class PatchNumbers(Sampler[int]):
    """Numbers of the patches of one epoch, for one of several devices.

    Args:
        per_epoch: patches of an epoch, all devices together; a multiple of ``world``.
        rank: of this device.
        world: number of devices.

    Attributes:
        first_epoch: epochs that earlier sessions of the training have finished.

    Examples:
        >>> numbers = PatchNumbers(6, rank=1, world=2)
        >>> numbers.set_epoch(2)
        >>> list(numbers)
        [13, 15, 17]
    """

    def __init__(self, per_epoch: int, *, rank: int = 0, world: int = 1) -> None:
        self.per_epoch = per_epoch
        self.rank = rank
        self.world = world
        self.first_epoch = 0
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, counted from the start of this session."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        start = (self.first_epoch + self._epoch) * self.per_epoch
        return iter(range(start + self.rank, start + self.per_epoch, self.world))

    def __len__(self) -> int:
        return self.per_epoch // self.world


class PatchLoader(DataLoader[Item]):
    """A loader that knows how long the training waited for it."""

    _waited_s: float = 0.0
    _has_started: bool = False

    def take_waited(self) -> float:
        """Seconds waited since this was asked last; the very first batch, for which workers have
        to start, does not count.
        """  # noqa: D205 - one thought
        waited, self._waited_s = self._waited_s, 0.0
        return waited

    def __iter__(self) -> Iterator[Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Batches, and the time each was waited for."""
        inner = super().__iter__()
        return self._timed(inner)

    def _timed(self, inner: Iterator[Any]) -> Iterator[Any]:
        while True:
            began = time.perf_counter()
            batch = _next(inner)
            if batch is None:
                return
            if self._has_started:
                self._waited_s += time.perf_counter() - began
            self._has_started = True
            yield batch


def _next(batches: Iterator[Any]) -> Any:
    """The next batch, None behind the last.

    Raises:
        LamellaError: a patch that could not be drawn.
        RunError: a worker process that died.
    """
    try:
        batch = next(batches, None)
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise RunError(
            "a process that draws patches died, most likely for want of memory",
            hint="use fewer trainer.workers (0 draws patches between steps), or a smaller batch;"
            " in a container, allow more shared memory (/dev/shm)",
        ) from error
    if isinstance(batch, LamellaError):
        raise batch
    return batch


def _start_worker(_number: int) -> None:
    """Leave Ctrl-C to the training: it tells its workers to end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def make_loader(
    dataset: PatchDataset,
    numbers: PatchNumbers,
    *,
    batch_size: int,
    workers: int,
    is_pinned: bool = False,
) -> PatchLoader:
    """Batches of patches.

    Args:
        dataset: of patches.
        numbers: which, in which order.
        batch_size: of this device.
        workers: processes that draw patches ahead; 0 draws them between steps.
        is_pinned: put batches where CUDA copies them from fastest.
    """
    more: dict[str, Any] = {}
    if workers:
        more = {
            "persistent_workers": True,
            "prefetch_factor": _AHEAD,
            # What every worker needs is imported once, in the process that they are forked from.
            "multiprocessing_context": worker_context(["lamella.training.patches"]),
            "collate_fn": _collate,
            "worker_init_fn": _start_worker,
        }
    return PatchLoader(
        _Reporting(dataset) if workers else dataset,
        batch_size=batch_size,
        sampler=numbers,
        num_workers=workers,
        pin_memory=is_pinned,
        # The loader's own seed would otherwise be drawn from the network's noise.
        generator=torch.Generator(),
        **more,
    )
