"""A small 2-D U-Net with features at full resolution, for images with small touching objects.

Pretrained-style encoders start at half resolution, which rounds away the gap between nuclei a few
pixels wide; here the first features keep the image's grid. Convolutions without bias followed by
batch normalisation fold into single convolutions in OpenVINO.

Source: Ronneberger, Fischer & Brox, U-Net (2015), with residual double convolutions and addition
in place of concatenation on the way up, which halves the cost at full resolution.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["CompactUNet2d"]


class CompactUNet2d(nn.Module):
    """U-Net of ``len(widths)`` levels; each level below the first halves the grid.

    Args:
        in_channels: channels of the image.
        out_channels: channels of the logits.
        widths: features per level, finest first; at least two levels.

    Examples:
        >>> network = CompactUNet2d(1, 3, widths=(8, 16)).eval()
        >>> tuple(network(torch.zeros(1, 1, 16, 32)).shape)
        (1, 3, 16, 32)
    """

    def __init__(
        self, in_channels: int, out_channels: int, widths: Sequence[int] = (16, 32, 64, 96)
    ) -> None:
        super().__init__()
        self.stem = _ConvBlock(in_channels, widths[0])
        pairs = list(pairwise(widths))
        self.down = nn.ModuleList(_ConvBlock(fine, coarse) for fine, coarse in pairs)
        self.lateral = nn.ModuleList(
            nn.Conv2d(coarse, fine, 1, bias=False) for fine, coarse in pairs
        )
        self.up = nn.ModuleList(_ConvBlock(fine, fine) for fine, _ in pairs)
        self.head = nn.Conv2d(widths[0], out_channels, 1)

    @property
    def stride(self) -> int:
        """Sizes of the input must be multiples of this."""
        return int(2 ** len(self.down))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return logits, float, (n, out_channels, y, x), of an image (n, in_channels, y, x)."""
        features = [self.stem(image)]
        for block in self.down:
            features.append(block(functional.max_pool2d(features[-1], 2)))
        x = features.pop()
        for lateral, block in zip(reversed(self.lateral), reversed(self.up), strict=True):
            upsampled = functional.interpolate(lateral(x), scale_factor=2.0, mode="nearest")
            x = block(upsampled + features.pop())
        logits: torch.Tensor = self.head(x)
        return logits


class _ConvBlock(nn.Module):
    """Two 3x3 convolutions with a residual sum around the second."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.enter = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
        )
        self.refine = nn.Sequential(
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        entered = self.enter(x)
        return functional.relu(entered + self.refine(entered))
