"""Ids to entries, with an error that names the nearest known ids."""

import difflib
from collections.abc import Iterable
from typing import Generic, TypeVar

from lamella.core.errors import UnknownIdError

__all__ = ["Registry", "nearest_names"]

T = TypeVar("T")


def nearest_names(name: str, known: Iterable[str], limit: int = 3) -> list[str]:
    """The known names that look most like ``name``, best first.

    Examples:
        >>> nearest_names("membrane3d", ["membrane-3d", "nuclei-2d"])
        ['membrane-3d']
    """
    return difflib.get_close_matches(name.lower(), list(known), n=limit, cutoff=0.4)


class Registry(Generic[T]):
    """A fixed set of entries by id.

    Args:
        kind: what the entries are, as in "network"; used in messages.
        error: the error raised for an unknown id.

    Examples:
        >>> shapes = Registry("shape")
        >>> shapes.register("ball", 1)
        >>> shapes.get("ball"), shapes.ids()
        (1, ('ball',))
    """

    def __init__(self, kind: str, *, error: type[UnknownIdError] = UnknownIdError) -> None:
        self._kind = kind
        self._error = error
        self._entries: dict[str, T] = {}

    def register(self, entry_id: str, entry: T) -> None:
        """Add an entry; an id can be taken only once."""
        if entry_id in self._entries:
            raise ValueError(f"{self._kind} id {entry_id!r} is registered twice")
        self._entries[entry_id] = entry

    def get(self, entry_id: str) -> T:
        """The entry of an id.

        Raises:
            UnknownIdError: (or the error given at construction) naming the nearest ids.
        """
        try:
            return self._entries[entry_id]
        except KeyError:
            near = nearest_names(entry_id, self._entries)
            raise self._error(
                f"unknown {self._kind} {entry_id!r}",
                hint=(f"did you mean {' or '.join(near)}? " if near else "")
                + f"known: {', '.join(sorted(self._entries))}",
                details={"id": entry_id, "known": sorted(self._entries)},
            ) from None

    def ids(self) -> tuple[str, ...]:
        """All ids, in the order of registration."""
        return tuple(self._entries)

    def __contains__(self, entry_id: object) -> bool:
        return entry_id in self._entries
