"""The patch source of a configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from lamella.core.errors import AxesError
from lamella.training.configuration import (
    CellmapConfig,
    MixtureConfig,
    PairsConfig,
    SimulationConfig,
)

if TYPE_CHECKING:
    from lamella.training.configuration import TaskConfig, TrainConfig
    from lamella.training.source import PatchSource
    from lamella.wire.card import NormalisationDoc

__all__ = ["build_source"]


def build_source(config: TrainConfig) -> PatchSource:
    """Open the data of a training; no voxel is read before it is needed.

    Args:
        config: of the training; the patch says whether data are 2-D or 3-D.

    Raises:
        MissingPathError: when a pattern finds nothing.
        InputError: for data that cannot be trained on.
        AxesError: for a patch that is neither 2-D nor 3-D.
    """
    n = len(config.trainer.patch)
    if n not in (2, 3):
        raise AxesError(
            f"trainer.patch {config.trainer.patch} has {n} numbers",
            hint="give (y, x) for images and (z, y, x) for volumes",
        )
    axes: Literal["zyx", "yx"] = "yx" if n == 2 else "zyx"
    data = config.data
    if isinstance(data, MixtureConfig):
        from lamella.training.mixture import MixtureSource

        parts = [_source(part, config.task, config.normalisation, axes) for part in data.parts]
        return MixtureSource(parts, data.weights)
    return _source(data, config.task, config.normalisation, axes)


def _source(
    data: PairsConfig | CellmapConfig | SimulationConfig,
    task: TaskConfig,
    normalisation: NormalisationDoc,
    axes: Literal["zyx", "yx"],
) -> PatchSource:
    if isinstance(data, PairsConfig):
        from lamella.training.pairs.source import PairsSource

        return PairsSource(data, task, normalisation, axes=axes)
    if isinstance(data, SimulationConfig):
        from lamella.training.simulated.source import SimulatedSource

        return SimulatedSource(data, task, normalisation, axes=axes)
    from lamella.training.cellmap.source import CellmapSource

    if axes != "zyx":
        raise AxesError("CellMap crops are volumes, the patch is 2-D", hint="give three numbers")
    return CellmapSource(data, task, normalisation)
