"""How engines tell the store that a folder or file is a model of theirs.

The store knows no engine. An engine's light module (``EngineDescriptor.model_module``) may offer,
besides ``find_model``:

``recognise(path) -> bool``
    Whether a folder or file is a model that the engine runs. Reads names and small JSON files,
    never weights; false, not an error, for anything else.
``describe(path) -> Mapping``
    Facts about what was recognised, all optional: ``id``, ``version``, ``title``, ``description``,
    ``task``, ``axes``, ``classes`` (documents, or a mapping of value to name), ``licence``,
    ``licence_url``, ``must_accept``, ``citation``, ``details`` (plain values), ``files`` (paths
    below ``path`` to be stored; all of them unless given), ``usage`` (what to write behind
    ``--model`` where it is not the id).
``downloads(reference, places) -> Sequence[CatalogueEntry]``
    What has to be pulled so that ``ENGINE:reference`` runs; raises for an unknown reference.
``EXPECTED``
    One line on what its models look like, for error messages.

:mod:`lamella.workflows.model_store` makes a :class:`Recogniser` of each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from lamella.core.errors import ModelError

if TYPE_CHECKING:
    from lamella.core.places import Places
    from lamella.wire.catalogue import CatalogueEntry

__all__ = ["CanDownload", "Recognised", "Recogniser", "check_engine_known", "recognise"]


@runtime_checkable
class CanDownload(Protocol):
    """What a ``model_module`` offers whose engine knows where its models are."""

    def downloads(self, reference: str, places: Places, /) -> Sequence[CatalogueEntry]:
        """Return what has to be pulled for a reference."""
        ...


@runtime_checkable
class Recogniser(Protocol):
    """One engine's eyes.

    Contract:
        * ``recognise`` never raises for content it does not know, and imports nothing heavy;
        * ``describe`` is called only where ``recognise`` was true, and may raise ``ModelError``.
    """

    @property
    def engine(self) -> str:
        """Id of the engine."""
        ...

    @property
    def expected(self) -> str:
        """One line on what its models look like."""
        ...

    def recognise(self, path: Path, /) -> bool:
        """Whether a folder or file is a model of this engine."""
        ...

    def describe(self, path: Path, /) -> Mapping[str, Any]:
        """Facts about it."""
        ...


@dataclass(frozen=True, slots=True)
class Recognised:
    """A model of some engine.

    Attributes:
        engine: id of the engine.
        facts: what it says about the model.
    """

    engine: str
    facts: Mapping[str, Any] = field(default_factory=dict)


def recognise(
    path: Path, recognisers: Sequence[Recogniser], *, engine: str | None = None
) -> Recognised | None:
    """Ask the engines whose model this is; the first that knows it wins.

    Args:
        path: folder or file.
        recognisers: the engines, the special ones before the general ones.
        engine: ask only this one.

    Raises:
        ModelError: of an engine that knows the kind and finds the model broken.
    """
    for one in recognisers:
        if engine is not None and one.engine != engine:
            continue
        if one.recognise(path):
            return Recognised(one.engine, one.describe(path))
    return None


def check_engine_known(engine: str, recognisers: Sequence[Recogniser]) -> None:
    """Refuse ``--engine`` for an engine that takes no models from outside.

    Raises:
        ModelError: naming those that do.
    """
    known = [one.engine for one in recognisers]
    if engine not in known:
        raise ModelError(
            f"the engine {engine!r} takes no models from outside",
            hint=f"engines that do: lamella, {', '.join(known)}" if known else None,
        )
