"""A feature pyramid over a plain vision transformer, which has features at one stride only.

From the last map, at the stride of the patches, maps at a quarter, half, the same and twice that
stride are made by transposed convolutions and pooling; an FPN joins them. The transformer needs no
stages of its own.

Source: simple feature pyramid (Li et al. 2022, ViTDet, doi:10.1007/978-3-031-20077-9_17), FPN for
segmentation (Kirillov et al. 2019) as in segmentation_models_pytorch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from segmentation_models_pytorch.decoders.fpn.decoder import FPNDecoder
from torch import nn
from torch.nn import functional

if TYPE_CHECKING:
    from typing import Any

__all__ = ["PlainFPN"]

_N_GROUPS = 8


class PlainFPN(nn.Module):
    """An FPN over a plain vision transformer.

    Args:
        encoder: as of :func:`lamella.networks.encoders.build_plain_encoder`, with one map.
        out_channels: channels of the logits.
    """

    def __init__(self, encoder: nn.Module, out_channels: int) -> None:
        super().__init__()
        self.encoder: Any = encoder
        width = int(self.encoder.out_channels[-1])
        self.patch = int(self.encoder.output_stride)
        half, quarter = _rounded(width // 2), _rounded(width // 4)
        self.finer = nn.Sequential(
            nn.ConvTranspose2d(width, half, 2, stride=2),
            nn.GroupNorm(_N_GROUPS, half),
            nn.GELU(),
            nn.ConvTranspose2d(half, quarter, 2, stride=2),
        )
        self.fine = nn.ConvTranspose2d(width, half, 2, stride=2)
        self.coarse = nn.MaxPool2d(2)
        self.decoder = FPNDecoder([quarter, half, width, width], encoder_depth=3)
        self.head = nn.Conv2d(self.decoder.out_channels, out_channels, 1)

    @property
    def stride(self) -> int:
        """Sides of the image must be multiples of this."""
        return 2 * self.patch

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return logits (n, out_channels, y, x) of (n, in_channels, y, x)."""
        maps, _ = self.encoder(image)
        last = maps[-1]
        levels = [self.finer(last), self.fine(last), last, self.coarse(last)]
        logits = self.head(self.decoder(levels))
        return functional.interpolate(
            logits, scale_factor=self.patch / 4, mode="bilinear", align_corners=False
        )


def _rounded(width: int) -> int:
    return max(_N_GROUPS, width // _N_GROUPS * _N_GROUPS)
