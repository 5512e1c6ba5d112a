"""What a network is to give, and where anybody knows it.

A :class:`Target` carries a validity mask of its own: no loss and no metric may look at a voxel that
is not valid. Two kinds:

* *classes*: one integer a voxel, for softmax outputs;
* *channels*: one number a voxel and output channel, for sigmoid outputs (classes that overlap) and
  for quantities such as distances, flows and affinities; each channel has a mask of its own,
  because a class that nobody looked for in a crop is unknown there and others are not.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

from lamella.core.errors import InputError

__all__ = ["Target"]


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """A batch of targets.

    Attributes:
        values: int64 (n, *spatial) class values, or float32 (n, c, *spatial); anything where
            ``valid`` is False.
        valid: bool, the shape of ``values``.
        is_classes: which of the two kinds.
    """

    values: torch.Tensor
    valid: torch.Tensor
    is_classes: bool

    def __post_init__(self) -> None:
        if self.values.shape != self.valid.shape:
            raise InputError(
                f"target values have shape {tuple(self.values.shape)}, their mask"
                f" {tuple(self.valid.shape)}",
                hint="every value has its own place in the mask",
            )

    @classmethod
    def of_classes(cls, labels: torch.Tensor, *, ignore_value: int | None = None) -> Target:
        """A target of class values; voxels with ``ignore_value`` are not valid.

        Args:
            labels: integers, (n, *spatial).
            ignore_value: value of voxels nobody may learn from.
        """
        labels = labels.long()
        valid = torch.ones_like(labels, dtype=torch.bool)
        if ignore_value is not None:
            valid = labels != ignore_value
        return cls(torch.where(valid, labels, 0), valid, True)

    @classmethod
    def of_channels(cls, values: torch.Tensor, valid: torch.Tensor | None = None) -> Target:
        """A target of channels; NaN is not valid.

        Args:
            values: numbers or bool, (n, c, *spatial).
            valid: bool, the same shape or one that broadcasts to it; None = wherever there is a
                number.
        """
        numbers = values.float()
        is_number = ~torch.isnan(numbers)
        mask = is_number if valid is None else valid.expand_as(numbers).bool() & is_number
        return cls(torch.where(mask, numbers, 0.0), mask, False)

    def to(self, device: torch.device | str) -> Target:
        """The same on a device."""
        return Target(
            self.values.to(device, non_blocking=True),
            self.valid.to(device, non_blocking=True),
            self.is_classes,
        )

    def as_channels(self, n_channels: int) -> Target:
        """Classes as one channel each; channels as they are.

        Args:
            n_channels: outputs of the network.

        Raises:
            InputError: when the channels or class values do not fit the outputs.
        """
        if not self.is_classes:
            if self.values.shape[1] != n_channels:
                raise InputError(
                    f"the target has {self.values.shape[1]} channels, the network gives"
                    f" {n_channels}",
                    hint="one output a channel",
                )
            return self
        largest = int(self.values.max()) if self.values.numel() else 0
        if largest >= n_channels:
            raise InputError(
                f"the target has class {largest}, the network gives {n_channels} outputs (0 to"
                f" {n_channels - 1})",
                hint="give the network one output per class, or mark the value as ignored",
            )
        hot = functional.one_hot(self.values, n_channels).movedim(-1, 1).float()
        return Target(hot, self.valid[:, None].expand_as(hot), False)
