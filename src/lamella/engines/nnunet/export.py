"""Back to the input's grid, as ``resampling_fn_probabilities`` of the plans has it.

The layers themselves travel through :mod:`lamella.inference.outlet`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from lamella.core.optional import is_importable
from lamella.engines.nnunet.resample import Rule, operators
from lamella.inference.outlet import OutputGrid
from lamella.volume.box import Box

__all__ = ["make_output_grid", "one_blas_thread"]


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


def one_blas_thread() -> AbstractContextManager[object]:
    """Keep NumPy's matrix products to the thread that asks for them.

    Layers are resampled by several threads already, in products so small that threads below them
    cost more than they save. Without ``threadpoolctl``, which nnU-Net brings, nothing changes.
    """
    if not is_importable("threadpoolctl"):
        return nullcontext()
    from threadpoolctl import threadpool_limits

    return threadpool_limits(limits=1, user_api="blas")
