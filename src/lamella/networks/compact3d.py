"""A small 3-D U-Net with features at full resolution, for thin structures such as membranes.

Convolutions without bias followed by batch normalisation fold into single convolutions in OpenVINO,
and the network has no statistics of the tile it sees, so that a voxel's logits depend on its
neighbourhood alone, not on how the volume was tiled.

Source: Cicek et al., 3D U-Net (2016), with residual double convolutions and addition in place of
concatenation on the way up, which halves the cost at full resolution.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["CompactUNet3d"]


class CompactUNet3d(nn.Module):
    """U-Net of ``len(widths)`` levels; each level below the first halves the grid.

    Args:
        in_channels: channels of the volume.
        out_channels: channels of the logits.
        widths: features per level, finest first; at least two levels.

    Examples:
        >>> network = CompactUNet3d(1, 2, widths=(4, 8)).eval()
        >>> tuple(network(torch.zeros(1, 1, 8, 16, 8)).shape)
        (1, 2, 8, 16, 8)
    """

    def __init__(
        self, in_channels: int, out_channels: int, widths: Sequence[int] = (16, 32, 64, 96)
    ) -> None:
        super().__init__()
        self.stem = _ConvBlock(in_channels, widths[0])
        pairs = list(pairwise(widths))
        self.down = nn.ModuleList(_ConvBlock(fine, coarse) for fine, coarse in pairs)
        self.lateral = nn.ModuleList(
            nn.Conv3d(coarse, fine, 1, bias=False) for fine, coarse in pairs
        )
        self.up = nn.ModuleList(_ConvBlock(fine, fine) for fine, _ in pairs)
        self.head = nn.Conv3d(widths[0], out_channels, 1)

    @property
    def stride(self) -> int:
        """Sizes of the input must be multiples of this."""
        return int(2 ** len(self.down))

    def forward(self, volume: torch.Tensor) -> torch.Tensor:
        """Return logits, float, (n, out_channels, z, y, x), of (n, in_channels, z, y, x)."""
        features = [self.stem(volume)]
        for block in self.down:
            features.append(block(functional.max_pool3d(features[-1], 2)))
        x = features.pop()
        for lateral, block in zip(reversed(self.lateral), reversed(self.up), strict=True):
            upsampled = functional.interpolate(lateral(x), scale_factor=2.0, mode="nearest")
            x = block(upsampled + features.pop())
        logits: torch.Tensor = self.head(x)
        return logits


class _ConvBlock(nn.Module):
    """Two 3x3x3 convolutions with a residual sum around the second."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.enter = nn.Sequential(
            nn.Conv3d(in_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm3d(out_channels),
            nn.ReLU(),
        )
        self.refine = nn.Sequential(
            nn.Conv3d(out_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm3d(out_channels),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        entered = self.enter(x)
        return functional.relu(entered + self.refine(entered))
