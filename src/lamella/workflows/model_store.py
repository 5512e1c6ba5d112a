"""The model store with the engines' eyes: which references can be pulled, and what a folder is.

The room ``models`` knows no engine. Here the light modules of the engines
(``EngineDescriptor.model_module``) are bound to it, see :mod:`lamella.models.recogniser`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from inspect import signature
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from pydantic import ValidationError

from lamella.core.errors import InputError, LamellaError, MissingDependencyError, ModelError
from lamella.engines.registry import find_engine, list_engines
from lamella.models.adopt import ImportOptions, ImportResult, import_model
from lamella.models.foreign import RECORD_NAME, read_record
from lamella.models.licence import Terms, accept, check_accepted, is_accepted
from lamella.models.offer import Offers, read_offers
from lamella.models.pull import PullOptions, PullResult, pull
from lamella.models.recogniser import CanDownload
from lamella.models.record import id_from_name
from lamella.models.store import list_here, unknown_model
from lamella.wire.catalogue import CatalogueEntry, DownloadDoc

if TYPE_CHECKING:
    from lamella.core.places import Places
    from lamella.models.recogniser import Recogniser
    from lamella.wire.event import EventSink

__all__ = [
    "Wanted",
    "add_model",
    "engine_recognisers",
    "find_wanted",
    "open_terms",
    "pull_models",
    "show_reference",
    "wanted_address",
]

_GENERAL = ("nnunet",)
"""Engines whose models other engines' models are made of: they are asked last."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a reference stands for.

    Attributes:
        id: of the model.
        entry: what has to be pulled; None for a model that is here and in no catalogue.
        catalogue: where it stands.
        here: its folder where nothing has to be pulled for it to be used.
        terms: its licence; None where nothing has to be accepted.
    """

    id: str
    entry: CatalogueEntry | None
    catalogue: str = ""
    here: Path | None = None
    terms: Terms | None = None


@dataclass(frozen=True, slots=True)
class _ModuleRecogniser:
    """A ``model_module`` as a recogniser."""

    engine: str
    module: ModuleType

    @property
    def expected(self) -> str:
        return str(getattr(self.module, "EXPECTED", f"see the documentation of {self.engine}"))

    def recognise(self, path: Path, /) -> bool:
        return bool(self.module.recognise(path))

    def describe(self, path: Path, /) -> Mapping[str, Any]:
        describe = getattr(self.module, "describe", None)
        return dict(describe(path)) if describe is not None else {}


def engine_recognisers() -> tuple[Recogniser, ...]:
    """Return the engines that know models of their own, special ones before general ones.

    An engine of another package whose module cannot be imported is left out: it could not run the
    model either, and ``lamella engines list`` says why.
    """
    found: list[Recogniser] = []
    for descriptor in list_engines():
        if not descriptor.model_module:
            continue
        try:
            module = import_module(descriptor.model_module)
        except (ImportError, LamellaError):
            continue
        if hasattr(module, "recognise"):
            found.append(_ModuleRecogniser(descriptor.id, module))
    return tuple(sorted(found, key=lambda one: one.engine in _GENERAL))


def find_wanted(
    reference: str, places: Places, *, offers: Offers | None = None
) -> tuple[Wanted, ...]:
    """Return what a reference stands for: a catalogue's id, a model here, or ``ENGINE:NAME``.

    Args:
        reference: what the user wrote.
        places: where models and catalogues are.
        offers: of the catalogues; read unless given.

    Raises:
        UnknownModelError: nothing of that name, with the nearest ones.
        InputError: an engine that pulls nothing.
    """
    offers = offers if offers is not None else read_offers(places)
    offer = offers.find(reference)
    if offer is not None:
        return (_of_entry(offer.entry, offer.catalogue),)
    here = [model for model in list_here(places) if model.id == reference]
    if here:
        return (_of_here(reference, here[0].path),)
    prefix, colon, rest = reference.partition(":")
    if colon and not rest.startswith("//"):
        # What an engine calls NAME stands in catalogues as ENGINE-NAME.
        named = offers.find(f"{prefix}-{rest}".lower().replace("_", "-"))
        if named is not None and named.entry.engine == prefix:
            return (_of_entry(named.entry, named.catalogue),)
        return _of_engine(prefix, rest, places)
    raise unknown_model(reference, places)


def show_reference(reference: str, places: Places) -> tuple[Mapping[str, Any], str] | None:
    """What an engine tells of a model that lies in no folder: plain values, and words.

    Args:
        reference: ``ENGINE`` or ``ENGINE:NAME``.
        places: where models and environments are.

    Returns:
        None where no engine of that name tells anything (``show`` of its ``model_module``).
    """
    prefix, _, rest = reference.partition(":")
    known = {engine.id: engine.model_module for engine in list_engines()}
    if not known.get(prefix):
        return None
    show = getattr(import_module(known[prefix]), "show", None)
    if show is None:
        return None
    document, text = show(rest, places)
    return dict(document), str(text)


def wanted_address(
    address: str, *, model_id: str | None = None, engine: str = "", sha256: str | None = None
) -> Wanted:
    """Return what a plain web address stands for; whose model it is shows when it is here.

    Args:
        address: of a zip or a file of weights.
        model_id: its id here; made of the file's name unless given.
        engine: whose it is, where several engines could run it.
        sha256: what the file must have, hex.

    Raises:
        InputError: an id or a hash that is none.
    """
    name = unquote(PurePosixPath(urlsplit(address).path).name) or "model"
    is_zip = name.lower().endswith(".zip")
    try:
        entry = CatalogueEntry(
            id=model_id or id_from_name(name.removesuffix(".zip")),
            engine=engine,
            title=name,
            licence="not stated",
            homepage=address,
            files=(
                DownloadDoc(
                    name=name,
                    urls=(address,),
                    sha256=None if sha256 is None else sha256.lower(),
                    unpack="zip" if is_zip else "none",
                ),
            ),
        )
    except ValidationError as invalid:
        first = invalid.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(
            f"{address} cannot be pulled like this: {where}: {first['msg']}",
            hint="check --id (small letters, digits, '-', '_', '.') and --sha256 (64 hex digits)",
        ) from None
    return _of_entry(entry, "")


def open_terms(wanted: Sequence[Wanted], places: Places) -> tuple[Terms, ...]:
    """Return the licences that have to be accepted before these models can be pulled."""
    terms = (one.terms for one in wanted if one.terms is not None)
    return tuple(one for one in terms if not is_accepted(one, places))


def pull_models(
    wanted: Sequence[Wanted], places: Places, sink: EventSink, options: PullOptions | None = None
) -> tuple[PullResult, ...]:
    """Pull one model after the other; see :func:`lamella.models.pull.pull`."""
    options = options or PullOptions()
    recognisers = engine_recognisers()
    results: list[PullResult] = []
    for one in wanted:
        if one.entry is None:
            assert one.here is not None, "what is in no catalogue is here"
            if one.terms is not None:
                if options.accepts_licence and one.terms.must_accept:
                    accept(one.terms, places)
                check_accepted(one.terms, places)
            results.append(PullResult(one.id, one.here, was_here=True))
            continue
        results.append(
            pull(
                one.entry,
                places,
                sink,
                replace(options),
                recognisers=recognisers,
                catalogue=one.catalogue,
            )
        )
    return tuple(results)


def add_model(
    source: Path, places: Places, sink: EventSink, options: ImportOptions | None = None
) -> ImportResult:
    """Take in a model of any engine; see :func:`lamella.models.adopt.import_model`."""
    return import_model(source, places, sink, engine_recognisers(), options)


def _of_engine(engine_id: str, reference: str, places: Places) -> tuple[Wanted, ...]:
    engine = find_engine(engine_id)
    try:
        module = import_module(engine.model_module) if engine.model_module else None
    except ImportError as error:
        raise MissingDependencyError(
            f"the engine {engine_id!r} cannot be asked for its models: {error}"
        ) from error
    if not isinstance(module, CanDownload):
        stored = [model.id for model in list_here(places) if model.engine == engine_id]
        raise InputError(
            f"the engine {engine_id!r} pulls nothing by name",
            hint=f"here: {', '.join(stored)}"
            if stored
            else "`lamella models list` shows what can be pulled; `lamella models import` takes in"
            " what you have",
        )
    takes_places = len(signature(module.downloads).parameters) > 1
    words: tuple[Any, ...] = (reference, places) if takes_places else (reference,)
    entries: tuple[CatalogueEntry, ...] = tuple(module.downloads(*words))
    if not entries:
        raise ModelError(f"{engine_id}:{reference} needs no files", hint="use it as it is")
    return tuple(_of_entry(entry, engine.title) for entry in entries)


def _of_entry(entry: CatalogueEntry, catalogue: str) -> Wanted:
    return Wanted(entry.id, entry, catalogue, terms=Terms.of(entry))


def _of_here(model_id: str, path: Path | None) -> Wanted:
    assert path is not None, "what is here has a folder"
    terms = None
    if (path / RECORD_NAME).is_file():
        terms = Terms.of(read_record(path))
    return Wanted(model_id, None, here=path, terms=terms)
