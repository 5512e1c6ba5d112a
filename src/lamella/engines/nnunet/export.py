"""Back to the input's grid, as ``resampling_fn_probabilities`` of the plans has it.

The layers themselves travel through :mod:`lamella.inference.outlet`.
"""

from __future__ import annotations

from lamella.engines.nnunet.resample import Rule, operators
from lamella.inference.outlet import OutputGrid
from lamella.volume.box import Box

__all__ = ["make_output_grid"]


def make_output_grid(
    shape: tuple[int, int, int],
    crop: Box,
    network_shape: tuple[int, int, int],
    rule: Rule,
    separate: int | None,
) -> OutputGrid:
    """From the grid of the network to that of the input, axes in the order of the plans.

    Args:
        shape: extent of the input.
        crop: the part that was run.
        network_shape: extent of that part on the grid of the network.
        rule: how logits are resampled.
        separate: the axis that is treated on its own.
    """
    return OutputGrid(
        shape, crop, network_shape, operators(network_shape, crop.shape, rule, separate)
    )
