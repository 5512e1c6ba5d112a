"""A small U-Net with features at full resolution, in 2-D or 3-D.

Made for thin structures such as membranes and for small touching objects such as nuclei: encoders
that start at half resolution round away the gap between them; here the first features keep the
image's grid. Convolutions without bias followed by batch normalisation fold into single
convolutions in OpenVINO, and the network has no statistics of the tile it sees, so that a voxel's
logits depend on its neighbourhood alone, not on how the volume was tiled.

Source: Ronneberger, Fischer & Brox, U-Net (2015), and Cicek et al., 3D U-Net (2016), with residual
double convolutions and addition in place of concatenation on the way up, which halves the cost at
full resolution.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["CompactUNet"]

_CONVOLUTION = {2: nn.Conv2d, 3: nn.Conv3d}
_NORM = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_HALVE = {2: nn.MaxPool2d, 3: nn.MaxPool3d}


class CompactUNet(nn.Module):
    """U-Net of ``len(widths)`` levels; each level below the first halves the grid.

    Args:
        n_spatial: 2 for images, 3 for volumes.
        in_channels: channels of the input.
        out_channels: channels of the logits.
        widths: features per level, finest first; at least two levels.

    Examples:
        >>> network = CompactUNet(3, 1, 2, widths=(4, 8)).eval()
        >>> tuple(network(torch.zeros(1, 1, 8, 16, 8)).shape)
        (1, 2, 8, 16, 8)
    """

    def __init__(
        self,
        n_spatial: Literal[2, 3],
        in_channels: int,
        out_channels: int,
        widths: Sequence[int] = (16, 32, 64, 96),
    ) -> None:
        super().__init__()
        convolution = _CONVOLUTION[n_spatial]
        self.stem = _ConvBlock(n_spatial, in_channels, widths[0])
        pairs = list(pairwise(widths))
        self.down = nn.ModuleList(_ConvBlock(n_spatial, fine, coarse) for fine, coarse in pairs)
        self.lateral = nn.ModuleList(
            convolution(coarse, fine, 1, bias=False) for fine, coarse in pairs
        )
        self.up = nn.ModuleList(_ConvBlock(n_spatial, fine, fine) for fine, _ in pairs)
        self.head = convolution(widths[0], out_channels, 1)
        self.halve = _HALVE[n_spatial](2)

    @property
    def stride(self) -> int:
        """Sizes of the input must be multiples of this."""
        return int(2 ** len(self.down))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return logits, float, (n, out_channels, *spatial), of (n, in_channels, *spatial)."""
        features = [self.stem(image)]
        for block in self.down:
            features.append(block(self.halve(features[-1])))
        x = features.pop()
        for lateral, block in zip(reversed(self.lateral), reversed(self.up), strict=True):
            upsampled = functional.interpolate(lateral(x), scale_factor=2.0, mode="nearest")
            x = block(upsampled + features.pop())
        logits: torch.Tensor = self.head(x)
        return logits


class _ConvBlock(nn.Module):
    """Two convolutions three voxels wide, with a residual sum around the second."""

    def __init__(self, n_spatial: Literal[2, 3], in_channels: int, out_channels: int) -> None:
        super().__init__()
        convolution, norm = _CONVOLUTION[n_spatial], _NORM[n_spatial]
        self.enter = nn.Sequential(
            convolution(in_channels, out_channels, 3, padding=1, bias=False),
            norm(out_channels),
            nn.ReLU(),
        )
        self.refine = nn.Sequential(
            convolution(out_channels, out_channels, 3, padding=1, bias=False),
            norm(out_channels),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        entered = self.enter(x)
        return functional.relu(entered + self.refine(entered))
