"""A small U-Net for 2-D or 3-D as plain functions over a list of tensors.

No classes, so that nothing here needs PyTorch to be imported before it is used. Weights are drawn
from a generator of their own: the same seed gives the same network, whatever else the process has
drawn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["NetworkShape", "draw_weights", "run_network"]

_SLOPE = 0.1


@dataclass(frozen=True, slots=True)
class NetworkShape:
    """Which U-Net: two convolutions a level, average pooling, nearest upsampling.

    Attributes:
        n_spatial: 2 or 3.
        width: channels of the finest level; coarser ones have twice as many.
        n_levels: levels, the finest included.
    """

    n_spatial: int
    width: int
    n_levels: int

    @classmethod
    def for_volumes(cls, is_volumetric: bool) -> NetworkShape:
        """The shape used throughout: chosen for a minute of training on two cores."""
        return cls(3, 16, 2) if is_volumetric else cls(2, 24, 3)

    @property
    def alignment(self) -> int:
        """Blocks must start and end on multiples of this: the pooling's grid."""
        return 2 ** (self.n_levels - 1)

    @property
    def halo(self) -> int:
        """Reach of the network in pixels, rounded up to the grid."""
        reach = 2 * sum(2**k for k in range(self.n_levels))
        reach += 2 * sum(2**k for k in range(self.n_levels - 1))
        reach += 2**self.n_levels - 1  # a pixel pooled into and taken from a coarse one
        return -(-reach // self.alignment) * self.alignment

    def convolutions(self) -> list[tuple[int, int]]:
        """Channels in and out of every convolution, in the order they run."""
        wide = [self.width * min(2**k, 2) for k in range(self.n_levels)]
        pairs: list[tuple[int, int]] = []
        for level, channels in enumerate(wide):
            pairs += [(wide[level - 1] if level else 1, channels), (channels, channels)]
        for level in range(self.n_levels - 2, -1, -1):
            pairs += [(wide[level] + wide[level + 1], wide[level]), (wide[level], wide[level])]
        return pairs


def draw_weights(torch: Any, shape: NetworkShape, *, seed: int, device: Any) -> list[Any]:
    """He-initialised kernels and zero biases, in pairs; the last pair is the 1 x 1 output."""
    generator = torch.Generator().manual_seed(seed)
    kernel = (3,) * shape.n_spatial
    weights: list[Any] = []
    for n_in, n_out in shape.convolutions():
        spread = (2.0 / ((1 + _SLOPE**2) * n_in * 3**shape.n_spatial)) ** 0.5
        weights.append(torch.randn((n_out, n_in, *kernel), generator=generator) * spread)
        weights.append(torch.zeros(n_out))
    last = torch.randn((1, shape.width, *(1,) * shape.n_spatial), generator=generator)
    weights += [last / shape.width**0.5, torch.zeros(1)]
    return [tensor.to(device).requires_grad_() for tensor in weights]


def run_network(torch: Any, shape: NetworkShape, weights: list[Any], image: Any) -> Any:
    """Run the network.

    Args:
        torch: the module.
        shape: of the network.
        weights: as :func:`draw_weights` returns them.
        image: float32 (n, 1, [z,] y, x), every extent a multiple of ``shape.alignment``.

    Returns:
        float32 of the same shape.
    """
    functional = torch.nn.functional
    convolve, pool = (
        (functional.conv3d, functional.avg_pool3d)
        if shape.n_spatial == 3
        else (functional.conv2d, functional.avg_pool2d)
    )
    tensors = iter(weights)

    def block(values: Any) -> Any:
        for _ in range(2):
            values = convolve(values, next(tensors), next(tensors), padding=1)
            values = functional.leaky_relu(values, _SLOPE)
        return values

    fine: list[Any] = []
    values = image
    for level in range(shape.n_levels):
        values = block(pool(values, 2) if level else values)
        fine.append(values)
    for level in range(shape.n_levels - 2, -1, -1):
        values = functional.interpolate(values, scale_factor=2, mode="nearest")
        values = block(torch.cat([fine[level], values], dim=1))
    return convolve(values, next(tensors), next(tensors))
