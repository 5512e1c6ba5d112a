"""3-D networks: our own compact U-Net and MONAI's families, each with its checked arguments.

torch and MONAI are imported when a network is built, not before.

Sources: 3D U-Net (Cicek et al. 2016), residual U-Net (Kerfoot et al. 2018), nnU-Net's network
(Isensee et al. 2021, DynUNet), SegResNet (Myronenko 2018), MedNeXt (Roy et al. 2023).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt, MinLen

from lamella.core.errors import InputError
from lamella.networks.registry import NetworkDescriptor
from lamella.networks.tracing import is_traced

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = [
    "NETWORKS",
    "BasicUNet3dArguments",
    "CompactUNet3dArguments",
    "DynUNetArguments",
    "MedNeXtArguments",
    "SegResNetArguments",
    "UNet3dArguments",
]

Count = Annotated[int, Ge(1)]
KernelSize = Literal[1, 3, 5, 7]
Stride = Literal[1, 2, 4]
Dropout = Annotated[float, Ge(0), Lt(1)]
Normalisation = Literal["instance", "batch", "group"]

_N_GROUPS = 8


@dataclass(frozen=True, slots=True)
class CompactUNet3dArguments:
    """Of :class:`lamella.networks.compact.CompactUNet` in 3-D."""

    in_channels: Count
    out_channels: Count
    widths: Annotated[tuple[Count, ...], MinLen(2)] = (16, 32, 64, 96)


@dataclass(frozen=True, slots=True)
class UNet3dArguments:
    """Of MONAI's residual ``UNet``; one stride per step between two levels."""

    in_channels: Count
    out_channels: Count
    channels: Annotated[tuple[Count, ...], MinLen(2)] = (16, 32, 64, 128)
    strides: tuple[Stride, ...] = (2, 2, 2)
    n_residual_units: Annotated[int, Ge(0), Le(8)] = 2
    kernel_size: KernelSize = 3
    normalisation: Normalisation = "instance"
    dropout: Dropout = 0.0

    def __post_init__(self) -> None:
        if len(self.strides) != len(self.channels) - 1:
            raise ValueError(
                f"{len(self.channels)} levels need {len(self.channels) - 1} strides,"
                f" got {len(self.strides)}"
            )
        if self.normalisation == "group":
            # MONAI normalises inside the last up-sampling too, where there are out_channels only.
            raise ValueError("unet3d normalises its output layer too: use instance or batch")


@dataclass(frozen=True, slots=True)
class BasicUNet3dArguments:
    """Of MONAI's ``BasicUNet``: five levels, and the features of the last layer."""

    in_channels: Count
    out_channels: Count
    features: tuple[Count, Count, Count, Count, Count, Count] = (16, 16, 32, 64, 128, 16)
    normalisation: Normalisation = "instance"
    dropout: Dropout = 0.0
    upsample: Literal["deconv", "nontrainable"] = "deconv"

    def __post_init__(self) -> None:
        _check_groups(self.normalisation, self.features)


@dataclass(frozen=True, slots=True)
class DynUNetArguments:
    """Of MONAI's ``DynUNet`` (nnU-Net's network); the first stride is usually 1.

    Kernels and strides are per level and, for anisotropic volumes, per axis (z, y, x). With
    ``deep_supervision`` it gives several outputs while it trains; see
    :mod:`lamella.networks.supervision`.
    """

    in_channels: Count
    out_channels: Count
    filters: Annotated[tuple[Count, ...], MinLen(3)] = (32, 64, 128, 256)
    strides: tuple[Stride | tuple[Stride, Stride, Stride], ...] = (1, 2, 2, 2)
    kernel_sizes: tuple[KernelSize | tuple[KernelSize, KernelSize, KernelSize], ...] = (3, 3, 3, 3)
    is_residual: bool = False
    normalisation: Normalisation = "instance"
    dropout: Dropout = 0.0
    deep_supervision: bool = False

    def __post_init__(self) -> None:
        for name, values in (("strides", self.strides), ("kernel_sizes", self.kernel_sizes)):
            if len(values) != len(self.filters):
                raise ValueError(f"{len(self.filters)} filters, but {len(values)} {name}")
        _check_groups(self.normalisation, self.filters)


@dataclass(frozen=True, slots=True)
class SegResNetArguments:
    """Of MONAI's ``SegResNet``; ``blocks_down`` per level, one fewer ``blocks_up``."""

    in_channels: Count
    out_channels: Count
    width: Count = 16
    blocks_down: Annotated[tuple[Count, ...], MinLen(2)] = (1, 2, 2, 4)
    blocks_up: tuple[Count, ...] = (1, 1, 1)
    dropout: Dropout = 0.0

    def __post_init__(self) -> None:
        if self.width % _N_GROUPS:
            raise ValueError(f"width must be a multiple of {_N_GROUPS}, got {self.width}")
        if len(self.blocks_up) != len(self.blocks_down) - 1:
            raise ValueError(
                f"{len(self.blocks_down)} blocks_down need {len(self.blocks_down) - 1} blocks_up,"
                f" got {len(self.blocks_up)}"
            )


@dataclass(frozen=True, slots=True)
class MedNeXtArguments:
    """Of a MedNeXt as published; ``width`` is the features at full resolution (32 there).

    With ``deep_supervision`` it gives several outputs while it trains; see
    :mod:`lamella.networks.supervision`.
    """

    in_channels: Count
    out_channels: Count
    kernel_size: Literal[3, 5] = 3
    width: Annotated[int, Gt(0)] = 32
    deep_supervision: bool = False


def _check_groups(normalisation: str, channels: tuple[int, ...]) -> None:
    if normalisation == "group" and any(count % _N_GROUPS for count in channels):
        raise ValueError(f"group normalisation needs multiples of {_N_GROUPS}, got {channels}")


def _monai_norm(normalisation: Normalisation) -> tuple[str, dict[str, Any]]:
    if normalisation == "group":
        return "group", {"num_groups": _N_GROUPS}
    return normalisation, {"affine": True}


def _build_compact(arguments: CompactUNet3dArguments) -> nn.Module:
    from lamella.networks.compact import CompactUNet

    return CompactUNet(3, arguments.in_channels, arguments.out_channels, arguments.widths)


def _build_unet(arguments: UNet3dArguments) -> nn.Module:
    from monai.networks.nets.unet import UNet

    return UNet(
        spatial_dims=3,
        in_channels=arguments.in_channels,
        out_channels=arguments.out_channels,
        channels=arguments.channels,
        strides=arguments.strides,
        kernel_size=arguments.kernel_size,
        num_res_units=arguments.n_residual_units,
        norm=_monai_norm(arguments.normalisation),
        dropout=arguments.dropout,
    )


def _build_basic_unet(arguments: BasicUNet3dArguments) -> nn.Module:
    from monai.networks.nets.basic_unet import BasicUNet

    return BasicUNet(
        spatial_dims=3,
        in_channels=arguments.in_channels,
        out_channels=arguments.out_channels,
        features=arguments.features,
        norm=_monai_norm(arguments.normalisation),
        dropout=arguments.dropout,
        upsample=arguments.upsample,
    )


def _build_dynunet(arguments: DynUNetArguments) -> nn.Module:
    from lamella.networks.supervision import SupervisedDynUNet

    return SupervisedDynUNet(
        spatial_dims=3,
        in_channels=arguments.in_channels,
        out_channels=arguments.out_channels,
        kernel_size=arguments.kernel_sizes,
        strides=arguments.strides,
        upsample_kernel_size=arguments.strides[1:],
        filters=arguments.filters,
        dropout=arguments.dropout or None,
        norm_name=_monai_norm(arguments.normalisation),
        res_block=arguments.is_residual,
        deep_supervision=arguments.deep_supervision,
        # All levels but the finest, which is the output, and the coarsest, which has no decoder.
        deep_supr_num=len(arguments.filters) - 2,
    )


def _build_segresnet(arguments: SegResNetArguments) -> nn.Module:
    from monai.networks.nets.segresnet import SegResNet

    return SegResNet(
        spatial_dims=3,
        init_filters=arguments.width,
        in_channels=arguments.in_channels,
        out_channels=arguments.out_channels,
        dropout_prob=arguments.dropout or None,
        norm=("group", {"num_groups": _N_GROUPS}),
        blocks_down=arguments.blocks_down,
        blocks_up=arguments.blocks_up,
    )


@dataclass(frozen=True, slots=True)
class _MedNeXtSize:
    """Blocks and expansion ratios of one published size (Roy et al. 2023, table 1)."""

    blocks: tuple[int, ...]
    n_bottleneck_blocks: int
    expansion: tuple[int, ...]
    bottleneck_expansion: int

    def build(self, arguments: MedNeXtArguments) -> nn.Module:
        from monai.networks.nets.mednext import MedNeXt

        network = MedNeXt(
            spatial_dims=3,
            init_filters=arguments.width,
            in_channels=arguments.in_channels,
            out_channels=arguments.out_channels,
            encoder_expansion_ratio=self.expansion,
            decoder_expansion_ratio=self.expansion[::-1],
            bottleneck_expansion_ratio=self.bottleneck_expansion,
            kernel_size=arguments.kernel_size,
            deep_supervision=arguments.deep_supervision,
            use_residual_connection=True,
            blocks_down=self.blocks,
            blocks_bottleneck=self.n_bottleneck_blocks,
            blocks_up=self.blocks[::-1],
        )
        network.register_forward_pre_hook(partial(_need_two_voxels, 2 ** len(self.blocks)))
        return network


def _need_two_voxels(stride: int, _module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Refuse a volume that is one voxel at the coarsest level: its normalisation has no spread."""
    shape = tuple(inputs[0].shape[2:])
    if not is_traced() and all(size == stride for size in shape):
        raise InputError(
            f"a volume of {' x '.join(map(str, shape))} voxels is too small for this network: its"
            " coarsest level would be a single voxel",
            hint=f"use {2 * stride} voxels along one axis at least",
        )


_MEDNEXT_SIZES = {
    "s": _MedNeXtSize((2, 2, 2, 2), 2, (2, 2, 2, 2), 2),
    "b": _MedNeXtSize((2, 2, 2, 2), 2, (2, 3, 4, 4), 4),
    "m": _MedNeXtSize((3, 4, 4, 4), 4, (2, 3, 4, 4), 4),
    "l": _MedNeXtSize((3, 4, 8, 8), 8, (3, 4, 8, 8), 8),
}

_MONAI = ("torch", "monai")

NETWORKS: tuple[NetworkDescriptor, ...] = (
    NetworkDescriptor(
        "compact_unet3d", "Compact 3-D U-Net", "zyx", CompactUNet3dArguments, _build_compact
    ),
    NetworkDescriptor("unet3d", "Residual 3-D U-Net", "zyx", UNet3dArguments, _build_unet, _MONAI),
    NetworkDescriptor(
        "basic_unet3d", "Basic 3-D U-Net", "zyx", BasicUNet3dArguments, _build_basic_unet, _MONAI
    ),
    NetworkDescriptor(
        "dynunet", "DynUNet (nnU-Net)", "zyx", DynUNetArguments, _build_dynunet, _MONAI
    ),
    NetworkDescriptor(
        "segresnet", "SegResNet", "zyx", SegResNetArguments, _build_segresnet, _MONAI
    ),
    *(
        NetworkDescriptor(
            f"mednext-{size}",
            f"MedNeXt {size.upper()}",
            "zyx",
            MedNeXtArguments,
            shape.build,
            _MONAI,
        )
        for size, shape in _MEDNEXT_SIZES.items()
    ),
)
