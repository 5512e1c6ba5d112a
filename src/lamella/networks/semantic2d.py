"""2-D networks: our own compact U-Net, and heads over the encoders of smp and timm.

A head (``unet``, ``fpn``, ``pspnet``, ``deeplabv3plus``, ``upernet``) takes any encoder that gives
a pyramid of features: one of smp's by its name (``resnet34``), or any convolutional or
hierarchical timm network as ``tu-NAME`` (``tu-convnext_tiny``). A plain vision transformer
(``tu-vit_small_patch16_224``) has one stride only: ``dpt`` and ``fpn`` make a pyramid of it, the
others refuse it. :func:`lamella.networks.backbones.list_backbones` lists what was tried with what.
Encoders are built without weights: a model's own weights come from its folder, and nothing is
downloaded in silence.

torch, segmentation_models_pytorch and timm are imported when a network is built, not before.

Sources: U-Net (Ronneberger et al. 2015), FPN (Kirillov et al. 2017), PSPNet (Zhao et al. 2017),
DeepLabV3+ (Chen et al. 2018), UPerNet (Xiao et al. 2018), DPT (Ranftl et al. 2021), as in
segmentation_models_pytorch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge, Le, MinLen

from lamella.core.errors import InputError, ModelError
from lamella.networks.encoders import (
    build_plain_encoder,
    check_encoder_name,
    encoder_options,
    has_one_stride,
)
from lamella.networks.registry import NetworkDescriptor
from lamella.networks.tracing import is_traced

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = [
    "NETWORKS",
    "CompactUNet2dArguments",
    "DPTArguments",
    "DeepLabArguments",
    "EncoderArguments",
    "PSPNetArguments",
    "UNet2dArguments",
    "build_over_plain",
    "check_divisible",
]

# Pyramid pooling and its kin need a few pixels at the coarsest level.
_MIN_STRIDE = 8
_OVER_PLAIN = ("FPN", "DPT")

Count = Annotated[int, Ge(1)]
Depth = Annotated[int, Ge(3), Le(5)]


@dataclass(frozen=True, slots=True)
class CompactUNet2dArguments:
    """Of :class:`lamella.networks.compact.CompactUNet` in 2-D."""

    in_channels: Count
    out_channels: Count
    widths: Annotated[tuple[Count, ...], MinLen(2)] = (16, 32, 64, 96)


@dataclass(frozen=True, slots=True)
class EncoderArguments:
    """Of ``fpn`` and ``upernet``: channels and the encoder's name."""

    in_channels: Count
    out_channels: Count
    encoder: str = "resnet18"
    encoder_depth: Depth = 5


@dataclass(frozen=True, slots=True)
class PSPNetArguments:
    """Of ``pspnet``, which uses the encoder down to one scale: 1/8 with a depth of 3."""

    in_channels: Count
    out_channels: Count
    encoder: str = "resnet18"
    encoder_depth: Depth = 3


@dataclass(frozen=True, slots=True)
class DPTArguments:
    """Of ``dpt``, over plain vision transformers alone."""

    in_channels: Count
    out_channels: Count
    encoder: str = "tu-vit_tiny_patch16_224"
    intermediate_channels: tuple[Count, Count, Count, Count] = (96, 192, 384, 768)
    fusion_channels: Count = 256


@dataclass(frozen=True, slots=True)
class DeepLabArguments:
    """Of ``deeplabv3plus``; a smaller output stride keeps finer features at a higher cost."""

    in_channels: Count
    out_channels: Count
    encoder: str = "resnet18"
    output_stride: Literal[8, 16] = 16


@dataclass(frozen=True, slots=True)
class UNet2dArguments:
    """Of ``unet``; ``decoder_channels`` per level, coarsest first."""

    in_channels: Count
    out_channels: Count
    encoder: str = "resnet18"
    encoder_depth: Depth = 5
    decoder_channels: Annotated[tuple[Count, ...], MinLen(3)] = (256, 128, 64, 32, 16)

    def __post_init__(self) -> None:
        if len(self.decoder_channels) != self.encoder_depth:
            raise ValueError(
                f"an encoder of depth {self.encoder_depth} needs as many decoder_channels,"
                f" got {len(self.decoder_channels)}"
            )


def check_divisible(shape: tuple[int, ...], stride: int) -> None:
    """Refuse an image whose sides the network can't halve as often as it does.

    Args:
        shape: (n, c, y, x).
        stride: sides must be multiples of this.

    Raises:
        InputError: says what sides would do.
    """
    y, x = int(shape[-2]), int(shape[-1])
    if y % stride or x % stride:
        fits = tuple(-(-side // stride) * stride for side in (y, x))
        raise InputError(
            f"an image of {y} x {x} pixels does not fit this network: both sides must be multiples"
            f" of {stride}",
            hint=f"pad it to {fits[0]} x {fits[1]}, or choose such a tile",
        )


def _build_compact(arguments: CompactUNet2dArguments) -> nn.Module:
    from lamella.networks.compact import CompactUNet

    network = CompactUNet(2, arguments.in_channels, arguments.out_channels, arguments.widths)
    return _checked(network, network.stride)


def _build_head(head: str, arguments: Any) -> nn.Module:
    """Build an smp architecture; every failure of a foreign encoder becomes one clear error."""
    import segmentation_models_pytorch as smp

    name = arguments.encoder
    check_encoder_name(name)
    architecture = getattr(smp, head)
    is_plain = False
    try:
        is_plain = has_one_stride(name) if head in _OVER_PLAIN else _refuse_plain(head, name)
        if is_plain:
            network, stride = build_over_plain(head, arguments)
        else:
            network = architecture(
                encoder_name=name,
                encoder_weights=None,
                in_channels=arguments.in_channels,
                classes=arguments.out_channels,
                **encoder_options(name),
                **_head_arguments(head, arguments),
            )
            stride = max(int(network.encoder.output_stride), _MIN_STRIDE)
        _try(network, arguments.in_channels, stride)
    except ModelError:
        raise
    except Exception as error:  # timm and smp raise anything from KeyError to RuntimeError
        raise ModelError(
            f"{head} can't be built over the encoder {name!r}: {error}",
            hint=_hint_of(head, name, is_plain),
            details={"encoder": name, "head": head},
        ) from error
    return _checked(network, stride)


def build_over_plain(head: str, arguments: Any) -> tuple[nn.Module, int]:
    """A head that makes its own pyramid of a plain vision transformer, and its stride."""
    if head == "FPN":
        from lamella.networks.plain import PlainFPN

        encoder = build_plain_encoder(arguments.encoder, arguments.in_channels, depth=1)
        network = PlainFPN(encoder, arguments.out_channels)
        return network, network.stride
    import segmentation_models_pytorch as smp

    dpt = smp.DPT(
        encoder_name=arguments.encoder,
        encoder_weights=None,
        in_channels=arguments.in_channels,
        classes=arguments.out_channels,
        # Tokens of the whole image would make a voxel depend on the tile it lies in.
        decoder_readout="ignore",
        decoder_intermediate_channels=arguments.intermediate_channels,
        decoder_fusion_channels=arguments.fusion_channels,
        **encoder_options(arguments.encoder),
    )
    return dpt, 2 * int(dpt.encoder.output_stride)


def _refuse_plain(head: str, name: str) -> bool:
    """Refuse a plain vision transformer under a head that wants a pyramid; never true."""
    if has_one_stride(name):
        raise ModelError(
            f"{head} can't be built over the encoder {name!r}: it is a plain vision transformer,"
            " with features at one stride instead of a pyramid",
            hint="use network dpt or fpn with it, or an encoder with a pyramid such as"
            " tu-swin_tiny_patch4_window7_224, tu-convnext_tiny or resnet34",
            details={"encoder": name, "head": head},
        )
    return False


def _hint_of(head: str, name: str, is_plain: bool) -> str:
    from lamella.networks.backbones import find_backbone

    known = find_backbone(name)
    if known is not None and known.heads:
        return f"{name} fits {', '.join(known.heads)}; `lamella train --list-backbones` lists all"
    if head == "DPT" and not is_plain:
        return "dpt needs a plain vision transformer, such as tu-vit_small_patch16_224"
    return (
        "it needs an encoder with a pyramid of features for images of any size, such as resnet18"
        " or tu-convnext_tiny; `lamella train --list-backbones` lists those that work"
    )


def _head_arguments(head: str, arguments: Any) -> dict[str, Any]:
    if head == "Unet":
        return {
            "encoder_depth": arguments.encoder_depth,
            "decoder_channels": arguments.decoder_channels,
        }
    if head == "DeepLabV3Plus":
        return {"encoder_output_stride": arguments.output_stride}
    if head == "PSPNet":
        # smp upsamples the head by a fixed factor; it has to undo the encoder's stride.
        return {
            "encoder_depth": arguments.encoder_depth,
            "upsampling": 2**arguments.encoder_depth,
        }
    return {"encoder_depth": arguments.encoder_depth}


def _try(network: nn.Module, in_channels: int, stride: int) -> None:
    """Run the network once on a small image: some encoders build, and then take one size only."""
    import torch

    side = 4 * stride
    was_training = network.training
    with torch.inference_mode():
        shape = tuple(network.eval()(torch.zeros(1, in_channels, side, side)).shape)
    network.train(was_training)
    if shape[-2:] != (side, side):
        raise ValueError(f"it maps {side} x {side} pixels to {shape[-2]} x {shape[-1]}")


def _checked(network: nn.Module, stride: int) -> nn.Module:
    """Let the network refuse odd sizes by a clear error; a traced graph leaves the check out."""

    def check(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if not is_traced():
            check_divisible(tuple(inputs[0].shape), stride)

    network.register_forward_pre_hook(check)
    return network


_SMP = ("torch", "segmentation_models_pytorch", "timm")

NETWORKS: tuple[NetworkDescriptor, ...] = (
    NetworkDescriptor(
        "compact_unet2d", "Compact 2-D U-Net", "yx", CompactUNet2dArguments, _build_compact
    ),
    *(
        NetworkDescriptor(network_id, title, "yx", arguments, partial(_build_head, head), _SMP)
        for network_id, title, arguments, head in (
            ("unet", "U-Net over an encoder", UNet2dArguments, "Unet"),
            ("fpn", "FPN over an encoder", EncoderArguments, "FPN"),
            ("pspnet", "PSPNet over an encoder", PSPNetArguments, "PSPNet"),
            ("deeplabv3plus", "DeepLabV3+ over an encoder", DeepLabArguments, "DeepLabV3Plus"),
            ("upernet", "UPerNet over an encoder", EncoderArguments, "UPerNet"),
            ("dpt", "DPT over a plain vision transformer", DPTArguments, "DPT"),
        )
    ),
)
