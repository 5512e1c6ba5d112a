"""Deep supervision: networks that also answer at coarser scales while they learn.

In training mode such a network returns a tuple of logits, the finest first, each on the grid of its
own level; the loss asks for the right answer at all of them (Lee et al. 2015; nnU-Net, Isensee et
al. 2021; MedNeXt, Roy et al. 2023)::

    level 0  (n, k, z, y, x)            weight 1
    level 1  (n, k, z/2, y/2, x/2)      weight 1/2
    ...

In evaluation mode it returns the finest alone. The coarser heads are of no use then;
:func:`inference_network` is the same network without them.

Examples:
    >>> from lamella.networks.registry import build_network
    >>> arguments = {"in_channels": 1, "out_channels": 2, "width": 4, "deep_supervision": True}
    >>> network = build_network("mednext-s", arguments)
    >>> outputs = network(torch.zeros(1, 1, 32, 32, 32))
    >>> [tuple(logits.shape[2:]) for logits in outputs]
    [(32, 32, 32), (16, 16, 16), (8, 8, 8), (4, 4, 4), (2, 2, 2)]
    >>> slim_arguments, slim = inference_network("mednext-s", arguments, network.state_dict())
    >>> slim_arguments
    {'in_channels': 1, 'out_channels': 2, 'width': 4}
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from monai.networks.nets.dynunet import DynUNet

from lamella.core.errors import ModelError
from lamella.networks.registry import build_network, find_network

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

__all__ = ["SupervisedDynUNet", "inference_network"]

_EXTRA = ("out_blocks.", "deep_supervision_heads.")
_EXTRA_PART = ".super_head."


class SupervisedDynUNet(DynUNet):
    """MONAI's ``DynUNet`` whose coarser outputs stay on their own grids.

    MONAI's returns them interpolated to the finest grid, in one tensor: targets would have to be
    compared with blurred logits, and memory is as many times larger.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Logits (n, k, *spatial); a tuple of them, finest first, while it learns."""
        finest = self.output_block(self.skip_layers(x))
        if not self.deep_supervision:
            return finest
        coarser = tuple(self.heads)
        # The list is shared with the layers: what stays in it would keep the graph of this step in
        # memory, and a module that holds results cannot be copied.
        self.heads[:] = [torch.empty(0)] * len(coarser)
        return (finest, *coarser) if self.training else finest


def inference_network(
    network_id: str, arguments: Mapping[str, Any], state_dict: Mapping[str, torch.Tensor]
) -> tuple[dict[str, Any], nn.Module]:
    """The network without the heads that only learning needs, with its weights.

    Args:
        network_id: id in the registry.
        arguments: those it was trained with.
        state_dict: its weights, with or without the coarser heads.

    Returns:
        Arguments for the card, and the network they describe, in evaluation mode; its logits are
        those that the trained one gives in evaluation mode.

    Raises:
        UnknownNetworkError: no such id.
        ModelError: weights that are not those of the network.
    """
    title = find_network(network_id).title
    slim = {name: value for name, value in arguments.items() if name != "deep_supervision"}
    network = build_network(network_id, slim)
    wanted = network.state_dict()
    extra = [name for name in state_dict if name not in wanted and not _is_head(name)]
    missing = [name for name in wanted if name not in state_dict]
    wrong = [
        name
        for name, value in wanted.items()
        if name in state_dict and state_dict[name].shape != value.shape
    ]
    if extra or missing or wrong:
        named = ", ".join((extra + missing + wrong)[:3])
        raise ModelError(
            f"these are not the weights of {title} with the arguments given: {len(missing)} are"
            f" missing, {len(extra)} unknown, {len(wrong)} of another shape ({named}, ...)",
            hint="give the arguments that the network was trained with",
            details={"missing": missing, "unknown": extra, "shape": wrong},
        )
    network.load_state_dict({name: state_dict[name] for name in wanted})
    return slim, network.eval()


def _is_head(name: str) -> bool:
    return name.startswith(_EXTRA) or _EXTRA_PART in name
