"""The list of engines, told without importing any of them.

Example:
    >>> from lamella.engines.registry import list_engines
    >>> "classical" in [engine.id for engine in list_engines()]
    True
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING

from lamella.core.errors import LamellaError, MissingDependencyError, UnknownEngineError
from lamella.core.optional import is_importable
from lamella.core.places import Places
from lamella.core.registry import nearest_names
from lamella.engines.cellpose.descriptor import CELLPOSE3, CELLPOSE4
from lamella.engines.classical.descriptor import CLASSICAL
from lamella.engines.engine import Availability, EngineDescriptor
from lamella.engines.lamella.descriptor import LAMELLA
from lamella.engines.monai.descriptor import MONAI
from lamella.engines.nnunet.descriptor import NNUNET
from lamella.engines.totalsegmentator.descriptor import TOTALSEGMENTATOR

if TYPE_CHECKING:
    from lamella.engines.engine import Engine

ENTRY_POINTS = "lamella.engines"
"""Group of the entry points by which other packages add engines; each names a descriptor."""

_OWN: tuple[EngineDescriptor, ...] = (
    LAMELLA,
    CLASSICAL,
    NNUNET,
    MONAI,
    TOTALSEGMENTATOR,
    CELLPOSE3,
    CELLPOSE4,
)
_BROKEN = "broken entry point: "


def list_engines() -> tuple[EngineDescriptor, ...]:
    """Return every engine known, whether or not it can run here; own ones first.

    An entry point that cannot be loaded, or that takes the id of another engine, stays listed
    under its own name, with the reason in its description.
    """
    known = {entry.id: entry for entry in _OWN}
    for point in sorted(entry_points(group=ENTRY_POINTS), key=lambda point: point.name):
        entry = _from_entry_point(point, taken=set(known))
        known.setdefault(entry.id, entry)
    return tuple(known.values())


def _from_entry_point(point: EntryPoint, *, taken: set[str]) -> EngineDescriptor:
    """The descriptor a package offers, or one that says why it can't be used."""
    try:
        entry = point.load()
    except Exception as error:  # noqa: BLE001 - somebody else's code; it must not hide the others
        return _broken(point, f"{type(error).__name__}: {error}")
    if not isinstance(entry, EngineDescriptor):
        return _broken(point, f"{point.value} is no EngineDescriptor but {type(entry).__name__}")
    if entry.id in taken:
        return _broken(point, f"the id {entry.id!r} is taken by another engine")
    return entry


def _broken(point: EntryPoint, reason: str) -> EngineDescriptor:
    return EngineDescriptor(
        id=point.name,
        title=point.name,
        description=f"{_BROKEN}{reason}",
        module="",
        axes=(),
        produces=(),
    )


def get_engine(engine_id: str) -> EngineDescriptor | None:
    """The descriptor of an engine, or None where there is none of this name.

    The entry points of other packages are read only for what is no engine of this one.
    """
    own = {entry.id: entry for entry in _OWN}
    if engine_id in own:
        return own[engine_id]
    return next((entry for entry in list_engines() if entry.id == engine_id), None)


def find_engine(engine_id: str) -> EngineDescriptor:
    """Return the descriptor of an engine.

    Args:
        engine_id: such as ``"classical"``.

    Raises:
        UnknownEngineError: no such engine; the message lists those known.
    """
    found = get_engine(engine_id)
    if found is not None:
        return found
    known = [entry.id for entry in list_engines()]
    near = nearest_names(engine_id, known)
    raise UnknownEngineError(
        f"unknown engine {engine_id!r}; known engines: {', '.join(known)}",
        hint=(f"did you mean {' or '.join(near)}? " if near else "")
        + "`lamella engines list` tells what each can do.",
    )


def check_engine(descriptor: EngineDescriptor, places: Places | None = None) -> Availability:
    """Tell whether an engine can run here, without importing what it needs.

    Args:
        descriptor: of the engine.
        places: where environments lie; the user's unless given.
    """
    if descriptor.description.startswith(_BROKEN):
        return Availability(
            is_available=False,
            reason=descriptor.description,
            hint="mend or remove the package that brings this engine",
        )
    if descriptor.environment:
        return _check_environment(descriptor, places or Places.of_user())
    missing = [module for module in descriptor.needs if not is_importable(module)]
    if not missing:
        return Availability(is_available=True)
    package = f"lamella[{descriptor.extra}]" if descriptor.extra else "lamella"
    return Availability(
        is_available=False,
        reason=f"{' and '.join(missing)} not installed",
        hint=f'pip install "{package}"',
    )


def _check_environment(descriptor: EngineDescriptor, places: Places) -> Availability:
    from lamella.isolation.environment import is_ready

    try:
        readiness = is_ready(descriptor.environment, places)
    except LamellaError as error:
        return Availability(is_available=False, reason=error.message, hint=error.hint or "")
    if readiness.is_ready:
        return Availability(is_available=True)
    return Availability(
        is_available=False,
        reason=readiness.reason,
        hint=f"lamella engines install {descriptor.id}",
    )


def load_engine(engine_id: str, places: Places | None = None) -> Engine:
    """Import an engine and build it.

    Args:
        engine_id: such as ``"classical"``.
        places: where environments lie; the user's unless given.

    Raises:
        UnknownEngineError: no such engine.
        MissingDependencyError: a library or environment it needs is not installed.
    """
    descriptor = find_engine(engine_id)
    availability = check_engine(descriptor, places)
    if not availability.is_available:
        raise MissingDependencyError(
            f"the engine {engine_id!r} can't run here: {availability.reason}",
            hint=availability.hint,
        )
    engine: Engine = import_module(descriptor.module).build_engine()
    return engine
