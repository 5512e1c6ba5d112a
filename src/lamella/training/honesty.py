"""The temperature of a trained network, fitted on voxels that it never learnt from.

Logits of the validation regions are thinned to a sample of bounded size, drawn by a seed, on which
the temperature of Guo et al. (2017) is fitted and the calibration error is taken before and after.
Test regions are never looked at.

Examples:
    >>> from lamella.training.target import Target
    >>> sample = LogitSample(n_expected=4)
    >>> logits = torch.tensor([[[[4.0, 4.0, 4.0, 4.0]], [[0.0, 0.0, 0.0, 0.0]]]])
    >>> sample.add(logits, Target.of_classes(torch.tensor([[[0, 0, 0, 1]]])))
    >>> fit = sample.fit()
    >>> fit.n, fit.error_after < fit.error_before
    (4, True)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from lamella.evaluation.calibration import Reliability, fit_temperature
from lamella.training.target import Target

__all__ = ["BOUNDS", "Honesty", "LogitSample"]

MAX_SAMPLES = 1 << 20
BOUNDS = (0.05, 20.0)
"""Temperatures that are tried."""


@dataclass(frozen=True, slots=True)
class Honesty:
    """A fitted temperature.

    Attributes:
        temperature: logits are divided by it.
        error_before: expected calibration error at temperature 1.
        error_after: the same at ``temperature``.
        n: voxels (times channels, for sigmoid outputs) it was fitted on.
    """

    temperature: float
    error_before: float
    error_after: float
    n: int


class LogitSample:
    """Logits and what is right, of voxels drawn evenly from everything that is added.

    Args:
        n_expected: voxels that will be added, to thin them evenly.
        channels: outputs that are logits of a sigmoid; empty where the target is of classes.
        seed: of the drawing.
    """

    def __init__(self, n_expected: int, *, channels: tuple[int, ...] = (), seed: int = 0) -> None:
        wanted = MAX_SAMPLES // max(1, len(channels))
        self._fraction = min(1.0, wanted / max(1, n_expected))
        self._channels = channels
        self._rng = np.random.default_rng(seed)
        self._logits: list[np.ndarray] = []
        self._truths: list[np.ndarray] = []

    def add(self, logits: torch.Tensor, target: Target) -> None:
        """Add a batch of one.

        Args:
            logits: float, (1, k, *spatial).
            target: of the same voxels; those that are not valid are left out.
        """
        values, valid = target.values[0].cpu(), target.valid[0].cpu()
        outputs = logits[0].float().cpu()
        if target.is_classes:
            keep = self._drawn(valid)
            self._keep(outputs[:, keep], values[keep])
            return
        for channel in self._channels:
            keep = self._drawn(valid[channel])
            self._keep(outputs[channel][keep][None], (values[channel][keep] > 0.5).long())

    def fit(self) -> Honesty | None:
        """The temperature; None where no voxel is valid or the logits are not finite."""
        n = sum(len(truth) for truth in self._truths)
        pairs = list(zip(self._logits, self._truths, strict=True))
        if n == 0 or not all(np.isfinite(logits).all() for logits, _ in pairs):
            return None
        fitted = fit_temperature(lambda: pairs, bounds=BOUNDS)
        return Honesty(fitted.value, self._error(1.0), self._error(fitted.value), n)

    def _drawn(self, valid: torch.Tensor) -> torch.Tensor:
        if self._fraction >= 1.0:
            return valid
        chances = self._rng.random(tuple(valid.shape), np.float32)
        return valid & torch.from_numpy(chances < self._fraction)

    def _keep(self, logits: torch.Tensor, truth: torch.Tensor) -> None:
        if truth.numel():
            self._logits.append(logits.numpy().astype(np.float32))
            self._truths.append(truth.numpy().astype(np.int64))

    def _error(self, temperature: float) -> float:
        curve = Reliability()
        for logits, truth in zip(self._logits, self._truths, strict=True):
            scaled = torch.from_numpy(logits).double() / temperature
            if len(scaled) == 1:
                scaled = torch.cat([torch.zeros_like(scaled), scaled])
            confidence, chosen = scaled.softmax(0).max(0)
            curve.add(confidence.clamp(0, 1).numpy(), chosen.numpy() == truth)
        return curve.expected_error
