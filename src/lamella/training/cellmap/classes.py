"""The classes of the challenge: atoms, groups of atoms, and what one annotation says of another.

Every voxel belongs to exactly one *atom* (``mito_mem``, ``cyto``, ...). A *group* is a set of atoms
(``mito`` is membrane, lumen and ribosomes). People annotate atoms and groups crop by crop, and a
class without an array is unknown there, not absent. Still, much follows from what was annotated:

* inside a class, everything that shares no atom with it is absent, and everything that holds all
  its atoms is present; inside two classes, so is everything that holds the atoms they share;
* outside a class, everything whose atoms are all among its own is absent; outside several classes,
  so is everything whose atoms they hold together.

Source: ``classes.csv`` of the challenge, https://github.com/janelia-cellmap/cellmap-segmentation-challenge.

Examples:
    >>> table = ClassTable.read()
    >>> sorted(table.name(i) for i in table["mito"].atoms)
    ['mito_lum', 'mito_mem', 'mito_ribo']
    >>> table.overlap("er", "nuc")
    True
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lamella.core.errors import InputError
from lamella.core.registry import nearest_names

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["ClassEntry", "ClassTable", "Knowledge"]


@dataclass(frozen=True, slots=True)
class ClassEntry:
    """One class.

    Attributes:
        name: such as ``"mito_mem"``.
        id: number in the table.
        is_tested: whether the challenge scores it.
        is_instance: whether its objects are told apart.
        atoms: ids of its atoms; its own id alone for an atom.
    """

    name: str
    id: int
    is_tested: bool
    is_instance: bool
    atoms: frozenset[int]

    @property
    def is_group(self) -> bool:
        """Whether it is made of other classes."""
        return self.atoms != {self.id}


@dataclass(frozen=True, slots=True, eq=False)
class Knowledge:
    """What is known of a class, voxel by voxel.

    Attributes:
        is_present: bool; False where it is absent, and where nobody knows.
        is_known: bool; only there may anything be learnt.
    """

    is_present: NDArray[np.bool_]
    is_known: NDArray[np.bool_]


class ClassTable(Mapping[str, ClassEntry]):
    """All classes by name."""

    def __init__(self, entries: tuple[ClassEntry, ...]) -> None:
        self._by_name = {entry.name: entry for entry in entries}
        self._by_id = {entry.id: entry for entry in entries}

    @classmethod
    @cache
    def read(cls) -> ClassTable:
        """The challenge's table, which comes with this package."""
        path = Path(__file__).with_name("classes.csv")
        with path.open(encoding="utf-8", newline="") as stream:
            rows = list(csv.reader(line for line in stream if not line.startswith("#")))
        return cls(
            tuple(
                ClassEntry(
                    name,
                    int(number),
                    is_tested == "1",
                    is_instance == "1",
                    frozenset(map(int, parts.split())) or frozenset({int(number)}),
                )
                for name, number, is_tested, is_instance, parts in rows
            )
        )

    def __getitem__(self, name: str) -> ClassEntry:
        """The class of a name.

        Raises:
            InputError: for a name that is not in the table; the hint names the nearest ones.
        """
        try:
            return self._by_name[name]
        except KeyError:
            near = nearest_names(name, self._by_name)
            raise InputError(
                f"there is no CellMap class {name!r}",
                hint=f"did you mean {' or '.join(near)}?"
                if near
                else f"classes are: {', '.join(self._by_name)}",
            ) from None

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self._by_name)

    def name(self, number: int) -> str:
        """Name of a class id."""
        return self._by_id[number].name

    @property
    def tested(self) -> tuple[str, ...]:
        """Names of the classes that the challenge scores."""
        return tuple(entry.name for entry in self._by_name.values() if entry.is_tested)

    def overlap(self, first: str, second: str) -> bool:
        """Whether two classes share an atom, so that a voxel may be in both."""
        return bool(self[first].atoms & self[second].atoms)

    def infer(self, name: str, annotated: Mapping[str, NDArray[np.bool_]]) -> Knowledge | None:
        """What the annotations of a crop say of a class.

        Args:
            name: the class asked for.
            annotated: presence of each annotated class, bool arrays of one shape; arrays of classes
                that are not in the table say nothing.

        Returns:
            Presence and where it is known; None where nothing is known at all.
        """
        if name in annotated:
            known = np.asarray(annotated[name], bool)
            return Knowledge(known, np.ones_like(known))
        wanted = self[name].atoms
        useful = {other: array for other, array in annotated.items() if other in self}
        if not useful:
            return None
        inside = {other: np.asarray(array, bool) for other, array in useful.items()}
        shape = next(iter(inside.values())).shape
        may_be, may_not_be = np.zeros(shape, bool), np.zeros(shape, bool)
        # Atoms that the annotations cannot tell apart are looked at once.
        for members, is_wanted in {(self._members(a, inside), a in wanted) for a in self._atoms}:
            is_possible = np.ones(shape, bool)
            for other, array in inside.items():
                is_possible &= array if other in members else ~array
            if is_wanted:
                may_be |= is_possible
            else:
                may_not_be |= is_possible
        is_contradictory = ~may_be & ~may_not_be
        is_present = may_be & ~may_not_be
        for other, array in inside.items():
            if self[other].atoms <= wanted:
                # People's annotations contradict each other in places; what is drawn outweighs.
                is_present |= array & is_contradictory
        is_known = is_present | (may_not_be & ~may_be)
        return Knowledge(is_present, is_known) if is_known.any() else None

    @property
    def _atoms(self) -> tuple[int, ...]:
        return tuple(entry.id for entry in self._by_name.values() if not entry.is_group)

    def _members(self, atom: int, names: Iterable[str]) -> frozenset[str]:
        return frozenset(name for name in names if atom in self[name].atoms)
