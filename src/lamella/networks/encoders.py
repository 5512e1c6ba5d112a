"""Encoders of 2-D networks: those of segmentation_models_pytorch, and timm's as ``tu-NAME``.

Two kinds are told apart. A *pyramid* gives features at strides 2 (or 4) to 32, which every head
takes. A *plain* vision transformer sees the image in patches of one size and gives features at that
one stride; heads that make a pyramid of it take it (``dpt``, ``fpn``), others cannot.

Transformers are built so that they take images of any size whose sides are multiples of their
stride: windows and position embeddings follow the image. Encoders are built without weights; see
:mod:`lamella.networks.pretrained` for published ones.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from lamella.core.errors import ModelError
from lamella.core.registry import nearest_names

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "build_plain_encoder",
    "check_encoder_name",
    "encoder_family",
    "encoder_options",
    "has_one_stride",
]

PREFIX = "tu-"
_ANY_SIZE = {
    "swin_transformer": {"strict_img_size": False},
    "swin_transformer_v2": {"strict_img_size": False},
    "swin_transformer_v2_cr": {"strict_img_size": False},
    "vision_transformer_sam": {"strict_img_size": False},
    "deit": {"dynamic_img_size": True},
    "eva": {"dynamic_img_size": True},
    "vision_transformer": {"dynamic_img_size": True},
}


def encoder_family(name: str) -> str:
    """The architecture an encoder belongs to: timm's module, or smp's name without its size.

    Examples:
        >>> encoder_family("tu-swin_tiny_patch4_window7_224"), encoder_family("resnet34")
        ('swin_transformer', 'resnet')
    """
    if name.startswith(PREFIX):
        import timm.models

        bare = name.removeprefix(PREFIX).split(".")[0]
        module = timm.models.model_entrypoint(bare).__module__
        return module.rsplit(".", 1)[-1]
    from segmentation_models_pytorch.encoders import encoders

    module = str(encoders[name]["encoder"].__module__).rsplit(".", 1)[-1]
    return module.removeprefix("timm_")


def encoder_options(name: str) -> dict[str, Any]:
    """What lets a transformer of timm take images of any size; nothing for other encoders."""
    if not name.startswith(PREFIX):
        return {}
    return dict(_ANY_SIZE.get(encoder_family(name), {}))


def check_encoder_name(name: str) -> None:
    """Refuse an encoder that neither library has.

    Raises:
        ModelError: with the nearest names.
    """
    from segmentation_models_pytorch.encoders import encoders

    if name in encoders:
        return
    known = list(encoders)
    if name.startswith(PREFIX):
        import timm

        if timm.is_model(name.removeprefix(PREFIX)):
            return
        known = [f"{PREFIX}{other}" for other in timm.list_models()]
    near = nearest_names(name, known)
    raise ModelError(
        f"unknown encoder {name!r}",
        hint=(f"did you mean {' or '.join(near)}? " if near else "")
        + "`lamella train --list-backbones` lists those that work; timm's are written tu-NAME",
        details={"encoder": name},
    )


def has_one_stride(name: str) -> bool:
    """Whether an encoder gives features at one stride only (a plain vision transformer)."""
    if not name.startswith(PREFIX):
        return False
    import timm
    import torch

    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            network: Any = timm.create_model(name.removeprefix(PREFIX), features_only=True)
        strides = set(network.feature_info.reduction())
    except Exception:  # noqa: BLE001 - timm raises anything for networks without features
        return False
    return len(strides) == 1


def build_plain_encoder(
    name: str, in_channels: int, depth: int, *, is_pretrained: bool = False
) -> nn.Module:
    """A plain vision transformer: ``depth`` feature maps of equal stride from even depths.

    Args:
        name: ``tu-NAME``.
        in_channels: of the image.
        depth: how many maps; 1 is the last block's alone.
        is_pretrained: fetch the published weights.
    """
    from segmentation_models_pytorch.encoders import TimmViTEncoder

    return TimmViTEncoder(
        name.removeprefix(PREFIX),
        pretrained=is_pretrained,
        in_channels=in_channels,
        depth=depth,
        **encoder_options(name),
    )
