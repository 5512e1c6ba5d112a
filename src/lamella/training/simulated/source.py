"""Patches of simulated samples.

Samples are numbered; a number and the seed make the sample, in any process. They are made when they
are first asked for, and kept. Validation and test have numbers of their own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lamella.core.errors import InputError
from lamella.simulation.tomogram import CLASSES
from lamella.training.augment import Sample
from lamella.training.configuration import PairsConfig
from lamella.training.pairs.codec import LabelCodec
from lamella.training.simulated.nuclei import NucleiScene
from lamella.training.simulated.scene import normalised
from lamella.training.simulated.tomograms import COARSE, SPACING_NM, TomogramScene
from lamella.training.source import SourceInfo
from lamella.wire.request import SpacingDoc

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from lamella.training.configuration import SimulationConfig, TaskConfig
    from lamella.training.simulated.scene import Scene
    from lamella.training.source import Region
    from lamella.volume.box import Box
    from lamella.wire.card import NormalisationDoc

__all__ = ["SimulatedSource"]

_FIRST = {"train": 0, "validation": 400_000, "test": 800_000}
"""Number of the first sample of a split; a million samples belong to one seed."""
_SEEDS = 1_000_000
_SHAPES = {"zyx": (112, 112, 112), "yx": (256, 256)}


class SimulatedSource:
    """A :class:`lamella.training.source.PatchSource` of simulated samples.

    Args:
        config: what to simulate.
        task: what is learnt; a tomogram's classes are found by their names, unless they give
            values.
        normalisation: of the images.
        axes: of the patches.

    Raises:
        InputError: for tomograms in 2-D, classes that are not simulated, or tasks that do not fit.
    """

    def __init__(
        self,
        config: SimulationConfig,
        task: TaskConfig,
        normalisation: NormalisationDoc,
        *,
        axes: Literal["zyx", "yx"],
    ) -> None:
        self._config = config
        self._normalisation = normalisation
        self._shape: tuple[int, ...] = config.shape or _SHAPES[axes]
        if len(self._shape) != len(axes):
            raise InputError(
                f"data.shape {self._shape} has {len(self._shape)} numbers, patches {len(axes)}",
                hint="give samples as many axes as trainer.patch",
            )
        self._is_tomogram = config.sample == "tomogram"
        if self._is_tomogram and (axes != "zyx" or task.kind not in ("semantic", "multilabel")):
            raise InputError(
                "simulated tomograms are volumes with classes",
                hint="choose task=semantic or multilabel and a patch of three numbers",
            )
        if not self._is_tomogram and task.kind in ("semantic", "multilabel"):
            raise InputError(
                "simulated nuclei are single objects",
                hint="choose a task that makes objects, such as task=boundary",
            )
        named = _with_values(task) if self._is_tomogram else task
        self._wanted = tuple(v for known in named.classes for v in known.values)
        self._codec = LabelCodec.of(named, PairsConfig(other_values="background"))
        self._scenes: dict[int, Scene] = {}
        self._last: tuple[int, NDArray[np.float32], NDArray[Any]] | None = None
        self.info = self._describe(axes, normalisation)

    def __getstate__(self) -> dict[str, Any]:
        # Another process makes its own samples, the same ones.
        return {**self.__dict__, "_scenes": {}, "_last": None}

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Sample:
        """A patch of a training sample."""
        if any(n > m for n, m in zip(shape, self._shape, strict=True)):
            raise InputError(
                f"a patch of {shape} is larger than the samples of {self._shape}",
                hint="set data.shape, a smaller trainer.patch, or augmentation.options.reach=1",
            )
        is_coarse = self._is_tomogram and self._config.coarse_fraction > 0
        if is_coarse and any(n * COARSE > m for n, m in zip(shape, self._shape, strict=True)):
            raise InputError(
                f"a patch of {shape}, averaged over {COARSE} voxels along every axis, shows more"
                f" than the samples of {self._shape}",
                hint="set data.shape, a smaller trainer.patch, or data.coarse_fraction=0",
            )
        number = int(rng.integers(self._config.n_samples))
        image, values = self._scene(_FIRST["train"] + number).cut(rng, shape)
        labels = self._encoded(values)
        return Sample(image[None], labels, np.ones(labels.shape, bool))

    def regions(self, split: Literal["validation", "test"]) -> Sequence[Region]:
        """Whole samples that are not trained on."""
        n = self._config.n_validation if split == "validation" else self._config.n_test
        return [SimulatedRegion(self, split, _FIRST[split] + k) for k in range(n)]

    def whole(self, number: int) -> tuple[NDArray[np.float32], NDArray[Any]]:
        """Image, normalised, and labels (m, *spatial) of a whole sample.

        Args:
            number: of the sample; the last one asked for is kept.
        """
        if self._last is None or self._last[0] != number:
            scene = self._scene(number)
            image = normalised(scene.image, self._normalisation)
            self._last = (number, image, self._encoded(scene.labels))
        return self._last[1:]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of every sample."""
        return self._shape

    def _encoded(self, values: NDArray[Any]) -> NDArray[Any]:
        planes = values.reshape((1,) * (4 - values.ndim) + values.shape)
        labels, _ = self._codec.encode({"": planes}, {}, None, places={"": "the simulation"})
        result = labels.reshape(labels.shape[0], *values.shape)
        return result.astype(np.int64) if self._codec.kind == "ids" else result

    def _scene(self, number: int) -> Scene:
        if number not in self._scenes:
            self._scenes[number] = self._make(number)
        return self._scenes[number]

    def _make(self, number: int) -> Scene:
        config = self._config
        seed = _SEEDS * config.seed + number
        if not self._is_tomogram:
            return NucleiScene(self._shape, seed, self._normalisation)
        z, y, x = self._shape
        return TomogramScene(
            (z, y, x),
            seed,
            snr=config.snr,
            coarse_fraction=config.coarse_fraction,
            wanted=self._wanted,
        )

    def _describe(self, axes: Literal["zyx", "yx"], normalisation: NormalisationDoc) -> SourceInfo:
        config = self._config
        counts = {
            "train": config.n_samples,
            "validation": config.n_validation,
            "test": config.n_test,
        }
        first = {split: _SEEDS * config.seed + start for split, start in _FIRST.items()}
        spacing = SpacingDoc(values=(SPACING_NM,) * 3, unit="nm") if self._is_tomogram else None
        return SourceInfo(
            axes=axes,
            n_channels=1,
            spacing=spacing,
            normalisation=normalisation,
            specimens={
                split: (f"seeds {first[split]} to {first[split] + n - 1}",) if n else ()
                for split, n in counts.items()
            },
            description=f"{config.n_samples} samples of lamella.simulation.{config.sample}",
            licence="CC0-1.0",
            fingerprint={"simulation": config.model_dump_json()},
        )


class SimulatedRegion:
    """A :class:`lamella.training.source.Region`: a sample that only judges.

    Args:
        source: makes it.
        split: it belongs to.
        number: of the sample.
    """

    def __init__(self, source: SimulatedSource, split: str, number: int) -> None:
        self._source = source
        self._number = number
        self.name = f"simulated {split} sample {number - _FIRST[split]}"
        self.specimen = self.name
        self.shape = source.shape

    def read(self, box: Box) -> Sample:
        """Image, labels and validity of a box."""
        image, labels = self._source.whole(self._number)
        cut = (slice(None), *box.slices())
        found = labels[cut].copy()
        return Sample(image[None][cut].copy(), found, np.ones(found.shape, bool))


def _with_values(task: TaskConfig) -> TaskConfig:
    """Classes of a tomogram by their names."""
    by_name = {name: value for value, name, _ in CLASSES}
    classes = []
    for known in task.classes:
        if not known.values and known.name not in by_name:
            raise InputError(
                f"simulated tomograms have no class {known.name!r}",
                hint=f"classes are {', '.join(name for name in by_name if by_name[name])}",
            )
        values = known.values or (by_name[known.name],)
        classes.append(known.model_copy(update={"values": values}))
    return task.model_copy(update={"classes": tuple(classes)})
