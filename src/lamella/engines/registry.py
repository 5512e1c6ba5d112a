"""The list of engines, told without importing any of them.

Example:
    >>> from lamella.engines.registry import list_engines
    >>> "classical" in [engine.id for engine in list_engines()]
    True
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from lamella.core.errors import MissingDependencyError, UnknownEngineError
from lamella.core.optional import is_importable
from lamella.engines.classical.descriptor import CLASSICAL
from lamella.engines.engine import Availability
from lamella.engines.lamella.descriptor import LAMELLA

if TYPE_CHECKING:
    from lamella.engines.engine import Engine, EngineDescriptor

_DESCRIPTORS: dict[str, EngineDescriptor] = {entry.id: entry for entry in (LAMELLA, CLASSICAL)}


def list_engines() -> tuple[EngineDescriptor, ...]:
    """Return every engine known, whether or not it can run here."""
    return tuple(_DESCRIPTORS.values())


def find_engine(engine_id: str) -> EngineDescriptor:
    """Return the descriptor of an engine.

    Args:
        engine_id: such as ``"classical"``.

    Raises:
        UnknownEngineError: no such engine; the message lists those known.
    """
    try:
        return _DESCRIPTORS[engine_id]
    except KeyError:
        known = ", ".join(_DESCRIPTORS)
        raise UnknownEngineError(
            f"unknown engine {engine_id!r}; known engines: {known}",
            hint="`lamella engines list` tells what each can do.",
        ) from None


def check_engine(descriptor: EngineDescriptor) -> Availability:
    """Tell whether an engine can run here, without importing what it needs."""
    missing = [module for module in descriptor.needs if not is_importable(module)]
    if not missing:
        return Availability(is_available=True)
    package = f"lamella[{descriptor.extra}]" if descriptor.extra else "lamella"
    return Availability(
        is_available=False,
        reason=f"{' and '.join(missing)} not installed",
        hint=f'pip install "{package}"',
    )


def load_engine(engine_id: str) -> Engine:
    """Import an engine and build it.

    Args:
        engine_id: such as ``"classical"``.

    Raises:
        UnknownEngineError: no such engine.
        MissingDependencyError: a library it needs is not installed.
    """
    descriptor = find_engine(engine_id)
    availability = check_engine(descriptor)
    if not availability.is_available:
        raise MissingDependencyError(
            f"the engine {engine_id!r} can't run here: {availability.reason}",
            hint=availability.hint,
        )
    engine: Engine = import_module(descriptor.module).build_engine()
    return engine
