"""Noise made the same everywhere, and back: the generalised Anscombe transform.

Photon noise grows with the signal; after this transform its standard deviation is 1 at every
intensity, which is what non-local means and the loss of a network assume. The inverse is the exact
unbiased one (the plain algebraic inverse darkens dim places).

Source: M. Mäkitalo and A. Foi, "Optimal inversion of the generalized Anscombe transformation for
Poisson-Gaussian noise", IEEE Transactions on Image Processing 22 (2013).

Examples:
    >>> import numpy as np
    >>> stable = Stabiliser(gain=4.0, variance=9.0)
    >>> image = np.linspace(40, 400, 4, dtype=np.float32)
    >>> bool(np.allclose(stable.restore(stable.stabilise(image)), image, atol=2))
    True
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lamella.restoration.noise import NoiseModel

__all__ = ["Stabiliser"]

_ROOT = math.sqrt(1.5)


@dataclass(frozen=True, slots=True)
class Stabiliser:
    """To a scale on which the noise has standard deviation 1, and back.

    Attributes:
        gain: growth of the variance with the intensity; 0: the noise is the same everywhere and the
            scale is a plain division.
        variance: variance at intensity 0 (may be negative where a black level lies above 0).
    """

    gain: float
    variance: float

    @classmethod
    def of(cls, noise: NoiseModel) -> Stabiliser:
        """For the noise that was found in an image."""
        if noise.is_signal_dependent:
            return cls(noise.gain, noise.variance)
        return cls(0.0, max(noise.variance, noise.floor))

    def stabilise(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Intensities → stabilised scale, float32."""
        if self.gain <= 0:
            return image / np.float32(self._sigma)
        inside = self.gain * image + (0.375 * self.gain**2 + self.variance)
        return np.float32(2.0 / self.gain) * np.sqrt(np.maximum(inside, 0.0, dtype=np.float32))

    def restore(self, stable: NDArray[np.float32]) -> NDArray[np.float32]:
        """Denoised values of the stabilised scale → intensities, without bias, float32."""
        if self.gain <= 0:
            return stable * np.float32(self._sigma)
        d = np.maximum(stable.astype(np.float64), 2.0 * math.sqrt(0.375))
        counts = 0.25 * d**2 + 0.25 * _ROOT / d - 1.375 / d**2 + 0.625 * _ROOT / d**3 - 0.125
        return (self.gain * np.maximum(counts, 0.0) - self.variance / self.gain).astype(np.float32)

    @property
    def _sigma(self) -> float:
        return math.sqrt(self.variance) if self.variance > 0 else 1.0
