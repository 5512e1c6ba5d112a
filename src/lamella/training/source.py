"""Where training patches come from: the contract between data and the training loop."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np

    from lamella.training.augment import Sample
    from lamella.volume.box import Box
    from lamella.wire.card import NormalisationDoc
    from lamella.wire.request import SpacingDoc

__all__ = ["NearbySource", "PatchSource", "Region", "SourceInfo"]


@dataclass(frozen=True, slots=True)
class SourceInfo:
    """What a source gives.

    Attributes:
        axes: spatial axes of its patches.
        n_channels: of its images.
        spacing: of its voxels, spatial axes only; None where the files do not say or disagree.
        normalisation: how the images were normalised, each with its own statistics, as
            :mod:`lamella.inference.normalise` does at inference.
        specimens: names by split: ``train``, ``validation``, ``test``.
        description: for the model's card.
        licence: for the model's card.
        fingerprint: of what was read, by name (size and SHA-256, or address), for provenance.
        warnings: what a person should hear, such as leakage between the splits.
    """

    axes: Literal["zyx", "yx"]
    n_channels: int
    spacing: SpacingDoc | None
    normalisation: NormalisationDoc
    specimens: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    description: str = ""
    licence: str = ""
    fingerprint: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


class Region(Protocol):
    """A whole image, or crop of a volume, that only judges.

    Contract:
        * ``read`` gives the same every time, not augmented; boxes lie inside ``shape``;
        * what of a box nothing is known about is not valid.
    """

    name: str
    specimen: str
    shape: tuple[int, ...]

    def read(self, box: Box) -> Sample:
        """Image, labels and validity of a box, in voxels of the region."""
        ...


class PatchSource(Protocol):
    """Draws training patches.

    Contract:
        * all randomness comes from ``rng``: the same generator state, the same patch, in any
          process; the loop seeds it by training seed and number of the patch;
        * a patch has exactly the shape asked for; where data end before, it is padded by
          reflection (with zeros where that is impossible) and the padding is not valid;
        * labels are (1, *spatial) class values for ``semantic`` (0 is background), (k, *spatial)
          of 0 and 1 for ``multilabel``, classes in the order of the task, and (1, *spatial) int64
          ids for tasks that make objects;
        * nothing is augmented;
        * can be pickled, and read from several threads and processes.
    """

    info: SourceInfo

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Sample:
        """A patch of the training split."""
        ...

    def regions(self, split: Literal["validation", "test"]) -> Sequence[Region]:
        """What the network is judged on; empty where there is none."""
        ...


@runtime_checkable
class NearbySource(Protocol):
    """A source that can draw patches of a group close to each other, so that they share chunks.

    Optional: for large chunked arrays, see :mod:`lamella.training.chunk_order`.

    Contract:
        * ``place`` is in the same state for all patches of a group: what is drawn from it (the
          specimen, the class, the block of positions) must not depend on ``rng``;
        * a patch's distribution is that of ``draw``, which is ``draw_near(rng, rng, shape)``.
    """

    @property
    def has_chunks(self) -> bool:
        """Whether any data lie in chunks that are decoded again and again; else ``draw`` is used,
        and patches are independent. Follows from the data alone.
        """  # noqa: D205 - one thought
        ...

    def draw_near(
        self, place: np.random.Generator, rng: np.random.Generator, shape: tuple[int, ...]
    ) -> Sample:
        """A patch of the training split: roughly where from ``place``, the rest from ``rng``."""
        ...
