"""Several data sets drawn from by weight, as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from lamella.core.errors import InputError
from lamella.training.source import NearbySource, SourceInfo

if TYPE_CHECKING:
    from lamella.training.augment import Sample
    from lamella.training.source import PatchSource, Region

__all__ = ["MixtureSource"]


class MixtureSource:
    """A :class:`lamella.training.source.PatchSource` of sources.

    Args:
        parts: at least one; all with the same axes, channels and normalisation.
        weights: how often each is drawn from; empty: all alike.

    Raises:
        InputError: when parts do not fit together.
    """

    def __init__(self, parts: Sequence[PatchSource], weights: Sequence[float] = ()) -> None:
        if not parts:
            raise InputError("the mixture has no parts", hint="list data sets in data.parts")
        self.parts = tuple(parts)
        shares = np.array(weights or (1.0,) * len(parts), np.float64)
        self._cumulated = np.cumsum(shares / shares.sum())
        self.info = _joined([part.info for part in parts], _copies(parts))

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Sample:
        """A patch of one of the parts."""
        return self.draw_near(rng, rng, shape)

    @property
    def has_chunks(self) -> bool:
        """Whether any part gains from patches near each other."""
        return any(isinstance(part, NearbySource) and part.has_chunks for part in self.parts)

    def draw_near(
        self, place: np.random.Generator, rng: np.random.Generator, shape: tuple[int, ...]
    ) -> Sample:
        """A patch of one of the parts, near the others of its group; see ``NearbySource``."""
        at = int(np.searchsorted(self._cumulated, place.random(), side="right"))
        part = self.parts[min(at, len(self.parts) - 1)]
        if isinstance(part, NearbySource) and part.has_chunks:
            return part.draw_near(place, rng, shape)
        return part.draw(rng, shape)

    def regions(self, split: Literal["validation", "test"]) -> Sequence[Region]:
        """Those of all parts."""
        return [region for part in self.parts for region in part.regions(split)]


def _joined(infos: Sequence[SourceInfo], copies: Sequence[str]) -> SourceInfo:
    first = infos[0]
    for number, info in enumerate(infos[1:], start=2):
        for name in ("axes", "n_channels"):
            ours, theirs = getattr(first, name), getattr(info, name)
            if ours != theirs:
                raise InputError(
                    f"data.parts: {name} of part 1 is {ours}, of part {number} {theirs}",
                    hint="mix data sets of one kind; data.channels chooses channels",
                )
    spacings = {str(info.spacing) for info in infos}
    warnings = [f"part {n}: {text}" for n, info in enumerate(infos, 1) for text in info.warnings]
    if len(spacings) > 1:
        warnings.append("the parts have different spacings; voxels are taken as they come")
    return SourceInfo(
        axes=first.axes,
        n_channels=first.n_channels,
        spacing=first.spacing if len(spacings) == 1 else None,
        normalisation=first.normalisation,
        specimens={
            split: tuple(
                f"{n}:{name}"
                for n, info in enumerate(infos, 1)
                for name in info.specimens.get(split, ())
            )
            for split in ("train", "validation", "test")
        },
        description="; ".join(dict.fromkeys(i.description for i in infos if i.description)),
        licence="; ".join(dict.fromkeys(i.licence for i in infos if i.licence)),
        fingerprint={
            f"{n}:{name}": text
            for n, info in enumerate(infos, 1)
            for name, text in info.fingerprint.items()
        },
        warnings=(*warnings, *copies),
    )


def _copies(parts: Sequence[PatchSource]) -> list[str]:
    """Images that two parts share and that stand on different sides."""
    from lamella.training.pairs.source import PairsSource

    sides: dict[str, dict[str, str]] = {}
    for number, part in enumerate(parts, start=1):
        if not isinstance(part, PairsSource):
            continue
        for pair in part.store.pairs:
            if pair.split and pair.image in part.hashes:
                digest = part.hashes[pair.image]
                sides.setdefault(digest, {}).setdefault(pair.split, f"{number}:{pair.image}")
    return [
        "the same image stands on several sides: " + ", ".join(sorted(found.values()))
        for found in sides.values()
        if len(found) > 1
    ]
