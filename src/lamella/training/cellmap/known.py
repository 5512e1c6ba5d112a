"""What is known of classes in a crop: from their own arrays, or from what others imply.

A class with an array is known everywhere in the crop, its absence too. A class without one is
unknown, and nothing may be learnt of it there, unless other annotations decide
(:meth:`lamella.training.cellmap.classes.ClassTable.infer`). How far that goes is a choice:

* ``none``: no array, nothing known;
* ``siblings``: only in crops where somebody looked at a class that shares an atom, or a group other
  than the whole cell, with it. Elsewhere all that could follow is absence inside of other objects,
  a one-sided sample that teaches to say no;
* ``all``: whatever follows.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lamella.core.errors import LamellaError
from lamella.training.cellmap.classes import ClassTable, Knowledge
from lamella.training.cellmap.grid import choose_level
from lamella.training.cellmap.index import finest_first
from lamella.training.cellmap.regrid import take_ids, take_presence

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from lamella.training.cellmap.grid import Grid
    from lamella.training.cellmap.survey import CropPlace
    from lamella.training.cellmap.tree import Level, Tree
    from lamella.volume.source import LazyArray

__all__ = ["Implied", "LabelReader", "are_siblings", "may_be_known"]

logger = logging.getLogger(__name__)

Implied = Literal["none", "siblings", "all"]
_WHOLE = "cell"
"""A group that holds nearly everything makes no siblings."""
_SEARCHED_VOXELS = 1 << 24
_N_POINTS = 2048
"""Voxels of a class that are remembered in a crop, to put patches on."""


@cache
def are_siblings(first: str, second: str) -> bool:
    """Whether two classes share an atom or a group other than the whole cell.

    Examples:
        >>> are_siblings("mito_lum", "mito_mem"), are_siblings("mito", "pm")
        (True, False)
    """
    table = ClassTable.read()
    a, b = table[first].atoms, table[second].atoms
    return bool(a & b) or any(
        a <= group.atoms and b <= group.atoms
        for name, group in table.items()
        if group.is_group and name != _WHOLE
    )


def may_be_known(place: CropPlace, name: str, implied: Implied) -> bool:
    """Whether anything of a class may be known in a crop."""
    if name in place.annotated:
        return True
    if implied == "none":
        return False
    if implied == "all":
        return bool(place.annotated)
    return any(are_siblings(name, other) for other in place.annotated)


class LabelReader:
    """Reads labels of crops on any grid; can be pickled, and read from several threads.

    Args:
        tree: of the root.
        open_array: opens an array by its path.
    """

    def __init__(self, tree: Tree, open_array: Callable[[str], LazyArray]) -> None:
        self._tree = tree
        self._open = open_array
        self._levels: dict[str, tuple[Level, ...]] = {}

    def presence(self, place: CropPlace, name: str, target: Grid) -> NDArray[np.bool_]:
        """Where an annotated class is; False beyond the crop."""
        level = self._level(place, name, target)
        return take_presence(self._open(level.path), level.grid, target, path=level.path)

    def ids(self, place: CropPlace, name: str, target: Grid) -> NDArray[np.int64]:
        """Ids of an annotated class of objects; 0 beyond the crop."""
        level = self._level(place, name, target)
        return take_ids(self._open(level.path), level.grid, target, path=level.path)

    def known(
        self, place: CropPlace, name: str, target: Grid, implied: Implied
    ) -> Knowledge | None:
        """What is known of a class on a grid that lies within the crop.

        Args:
            place: the crop.
            name: of the class.
            target: grid wanted.
            implied: how much other annotations may say.
        """
        if name in place.annotated:
            present = self.presence(place, name, target)
            return Knowledge(present, np.ones_like(present))
        if not may_be_known(place, name, implied):
            return None
        drawn = {
            other: self.presence(place, other, target)
            for other in place.annotated
            if self._has_levels(place, other)
        }
        return ClassTable.read().infer(name, drawn)

    def points(self, place: CropPlace, name: str, grid: Grid) -> NDArray[np.int32]:
        """Some voxels of a grid on which a class lies, int32, (n, 3); none where it is absent.

        The same whoever asks; at most 2048 of an annotated class, drawn evenly.
        """
        table = ClassTable.read()
        names = [name] if name in place.annotated else []
        if not names:
            atoms = table[name].atoms
            names = [n for n in place.annotated if table[n].atoms <= atoms]
        found = [self._points_of(place, n, grid) for n in names if self._has_levels(place, n)]
        return np.concatenate(found) if found else np.zeros((0, 3), np.int32)

    def _points_of(self, place: CropPlace, name: str, grid: Grid) -> NDArray[np.int32]:
        levels = self._all_levels(place, name)
        choice = choose_level([level.grid.spacing for level in levels], grid.spacing).index
        # Coarser levels of very large crops first: finding some voxels is enough.
        order = sorted(
            range(choice, len(levels)),
            key=lambda i: int(np.prod(levels[i].grid.shape)) > _SEARCHED_VOXELS,
        )
        for i in [*order, *range(choice)]:
            level = levels[i]
            own = take_presence(self._open(level.path), level.grid, level.grid, path=level.path)
            at = np.argwhere(own)
            if len(at) > _N_POINTS:
                seed = np.frombuffer(f"{place.key}/{name}".encode(), np.uint8)
                at = at[np.random.default_rng(seed).choice(len(at), _N_POINTS, replace=False)]
            if len(at):
                world = np.array(level.grid.origin) + at * np.array(level.grid.spacing)
                index = (world - np.array(grid.origin)) / np.array(grid.spacing)
                return np.rint(index).astype(np.int32)
        return np.zeros((0, 3), np.int32)

    def _level(self, place: CropPlace, name: str, target: Grid) -> Level:
        levels = self._all_levels(place, name)
        return levels[choose_level([v.grid.spacing for v in levels], target.spacing).index]

    def _has_levels(self, place: CropPlace, name: str) -> bool:
        try:
            return bool(self._all_levels(place, name))
        except LamellaError as error:
            logger.warning("%s; nothing is concluded from it", error.message)
            self._levels[f"{place.path}/{name}"] = ()
            return False

    def _all_levels(self, place: CropPlace, name: str) -> tuple[Level, ...]:
        known: Any = place.levels.get(name)
        if known:
            return known
        path = f"{place.path}/{name}"
        if path not in self._levels:
            self._levels[path] = finest_first(self._tree.levels(path))
        return self._levels[path]
