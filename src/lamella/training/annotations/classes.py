r"""Names of drawn classes and the values they get in label images.

A list of names (``labels.txt``, one a line) may begin with ``__ignore__``, which becomes -1: pixels
nobody may learn from. The next name is 0, by custom ``_background_``.

Examples:
    >>> classes = ClassList.parse("__ignore__\n_background_\naxon\nmyelin\n")
    >>> classes.value("myelin"), classes.value("__ignore__"), classes.names
    (2, -1, ('_background_', 'axon', 'myelin'))
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from lamella.core.errors import InputError
from lamella.core.registry import nearest_names

__all__ = ["BACKGROUND", "IGNORE", "ClassList"]

IGNORE = "__ignore__"
BACKGROUND = "_background_"


@dataclass(frozen=True, slots=True)
class ClassList:
    """Class names by value: ``names[0]`` is the background."""

    names: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> ClassList:
        """Read a list of names, one a line; empty lines are left out.

        Raises:
            InputError: for a name that comes twice, or no names.
        """
        names = [line.strip() for line in text.splitlines() if line.strip()]
        if names and names[0] == IGNORE:
            names = names[1:]
        if not names:
            raise InputError(
                "the list of classes is empty",
                hint=f"write one name a line, {BACKGROUND} first",
            )
        if names[0] != BACKGROUND:
            names.insert(0, BACKGROUND)
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise InputError(
                f"the list of classes names {', '.join(twice)} more than once",
                hint="write every class once",
            )
        if IGNORE in names:
            raise InputError(
                f"{IGNORE} stands in the middle of the list of classes",
                hint="it belongs on the first line, or nowhere",
            )
        return cls(tuple(names))

    @classmethod
    def of(cls, labels: Iterable[str]) -> ClassList:
        """The classes that occur, in alphabetical order behind the background."""
        found = sorted(set(labels) - {IGNORE, BACKGROUND})
        return cls((BACKGROUND, *found))

    def value(self, name: str) -> int:
        """Value of a class; -1 for what is to be ignored.

        Raises:
            InputError: for a name that is not in the list.
        """
        if name == IGNORE:
            return -1
        try:
            return self.names.index(name)
        except ValueError:
            near = nearest_names(name, self.names)
            raise InputError(
                f"the class {name!r} is not in the list of classes",
                hint=(f"did you mean {near[0]}? " if near else "")
                + "add it to the list, or correct the drawing",
                details={"known": list(self.names)},
            ) from None
