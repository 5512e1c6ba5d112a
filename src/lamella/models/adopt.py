"""Take a model that lies on this machine into the store: a folder, a zip or a file.

Lamella folders and what ``lamella models export`` wrote are known here; whose model anything else
is, its engine says. What cannot be run is refused with what was expected.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from lamella.core.errors import (
    InputError,
    LamellaError,
    LicenceError,
    MissingPathError,
    ModelError,
    OutputExistsError,
)
from lamella.core.storage import storage_error
from lamella.models.archive import ZipLimits, check_zip, unpack_zip
from lamella.models.catalogue import CARD_NAME, list_models
from lamella.models.folder import ModelFolder
from lamella.models.foreign import FILES_NAME, RECORD_NAME, read_record
from lamella.models.licence import Terms, accept, check_accepted
from lamella.models.meter import Meter
from lamella.models.recogniser import Recognised, Recogniser, check_engine_known, recognise
from lamella.models.record import hash_folder, id_from_name, make_record
from lamella.models.stored import (
    appear,
    check_space,
    discard,
    disk_free,
    locked,
    models_folder,
    new_staging,
    pulls_folder,
)
from lamella.models.training_run import model_in_run, unfinished_run
from lamella.models.tree import (
    check_below,
    copy_file,
    few_names,
    make_link,
    only_folder,
    wanted_files,
)
from lamella.wire.record import FileDoc, ModelRecord

if TYPE_CHECKING:
    from lamella.core.places import Places
    from lamella.wire.event import EventSink

__all__ = ["ImportOptions", "ImportResult", "import_model"]

_BIOIMAGE_NAMES = ("rdf.yaml", "bioimageio.yaml", "model.yaml", "rdf.yml")


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """How a model is taken in.

    Attributes:
        id: its id in the store; made of its name unless given.
        engine: whose it is, where several engines could run it.
        is_link: refer to the folder or file where it lies instead of copying it.
        replaces: take the place of a model that has the id.
        accepts_licence: the user accepts the licence, now.
        limits: of zip archives.
        free: bytes free below a folder.
    """

    id: str | None = None
    engine: str | None = None
    is_link: bool = False
    replaces: bool = False
    accepts_licence: bool = False
    limits: ZipLimits = field(default_factory=ZipLimits)
    free: Callable[[Path], int] = disk_free


@dataclass(frozen=True, slots=True)
class ImportResult:
    """A model that was taken in; ``usage`` is what names it behind ``--model``."""

    id: str
    engine: str
    title: str
    path: Path
    n_bytes: int
    is_link: bool = False
    usage: str = ""


@dataclass(frozen=True, slots=True)
class _Found:
    """What a source turned out to be: exactly one of card, record and recognised is there.

    ``unpacked``: what is known of the files below ``root``, where they were unpacked for us alone.
    """

    root: Path
    names: tuple[str, ...]
    unpacked: Mapping[str, FileDoc] | None = None
    card: ModelFolder | None = None
    record: ModelRecord | None = None
    recognised: Recognised | None = None


def import_model(
    source: Path,
    places: Places,
    sink: EventSink,
    recognisers: Sequence[Recogniser] = (),
    options: ImportOptions | None = None,
) -> ImportResult:
    """Take a model in; it appears under its id when all of it is there and verified.

    Args:
        source: a folder, a zip, or a file of weights.
        places: the models folder.
        sink: progress and cancellation.
        recognisers: engines that know models of their own.
        options: how.

    Raises:
        MissingPathError: nothing is there.
        ModelError: no model of any engine, a broken one, or an archive that must not be unpacked.
        OutputExistsError: a model of this id is here.
        LicenceError: its licence has to be accepted first.
        StorageError: it does not fit on the disk.
    """
    options = options or ImportOptions()
    models = models_folder(places)
    source = source.expanduser()
    if not source.exists():
        raise MissingPathError(
            f"there is nothing at {source}", hint="give a folder, a zip or a file of weights"
        )
    if options.engine not in (None, "lamella"):
        check_engine_known(str(options.engine), recognisers)
    # The name of the place where it is put together; its lock keeps `gc` away.
    errand = f"import-{id_from_name(source.stem)}"
    task = _Import(source, places, models, sink, tuple(recognisers), options, errand)
    try:
        with locked(models, errand, sink):
            try:
                return task.run()
            finally:
                discard(pulls_folder(models, errand))
    except LamellaError:
        raise
    except OSError as error:
        raise storage_error(error) from error


@dataclass(frozen=True, slots=True)
class _Import:
    source: Path
    places: Places
    models: Path
    sink: EventSink
    recognisers: tuple[Recogniser, ...]
    options: ImportOptions
    errand: str

    def run(self) -> ImportResult:
        """Look, copy, verify, name."""
        found = self._look(self.source)
        if found is None:
            if self.options.is_link:
                raise InputError(
                    f"{self.source} is an archive, which cannot be linked to",
                    hint="unpack it yourself, or leave out --link",
                )
            found = self._look_inside()
        model_id = self._id(found)
        self._check_free(model_id)
        staging = new_staging(self.models, self.errand)
        if self.options.is_link:
            staging, n_bytes, engine, title = self._link(staging, found, model_id)
        else:
            n_bytes, engine, title = self._copy(staging, found, model_id)
        with locked(self.models, model_id, self.sink):
            self._check_free(model_id)
            target = self.models / model_id
            appear(staging, target)
        facts = found.recognised.facts if found.recognised is not None else {}
        return ImportResult(
            model_id,
            engine,
            title,
            target,
            n_bytes,
            is_link=self.options.is_link,
            usage=str(facts.get("usage") or model_id),
        )

    # --- what it is ---------------------------------------------------------------------------

    def _look(self, path: Path) -> _Found | None:
        """Return what a path is; None for an archive that has to be unpacked first."""
        if path.is_dir():
            return self._look_at_folder(path)
        if path.suffix.lower() == ".zip":
            return None
        known = recognise(path, self.recognisers, engine=self.options.engine)
        if known is not None:
            return _Found(path.parent, (path.name,), recognised=known)
        if zipfile.is_zipfile(path) and not _is_torch_file(path):
            return None
        raise self._unknown(path)

    def _look_inside(self) -> _Found:
        needed = check_zip(self.source, self.options.limits)
        check_space(self.models, needed, self.options.free, what=self.source.name)
        folder = pulls_folder(self.models, self.errand) / "unpacked"
        discard(folder)
        meter = Meter(self.sink, f"unpacking {self.source.name}", needed)

        def told(done: int, total: int) -> None:
            self.sink.check()
            meter.tell(done, total)

        unpacked = unpack_zip(self.source, folder, limits=self.options.limits, on_bytes=told)
        found = self._look_at_folder(folder)
        below = found.root.relative_to(folder).as_posix()
        prefix = "" if below == "." else f"{below}/"
        return replace(
            found,
            unpacked={
                name.removeprefix(prefix): document
                for name, document in unpacked.items()
                if name.startswith(prefix)
            },
        )

    def _look_at_folder(self, path: Path) -> _Found:
        if self.options.engine in (None, "lamella"):
            trained = model_in_run(path)
            for root in (path, *only_folder(path), *([trained] if trained else [])):
                if (root / CARD_NAME).is_file():
                    opened = ModelFolder.open(root)
                    return _Found(root, (CARD_NAME, *opened.card.files), card=opened)
        for root in (path, *only_folder(path)):
            if (root / RECORD_NAME).is_file() and (root / FILES_NAME).is_dir():
                record = read_record(root)
                names = tuple(record.files)
                check_below(names, root / FILES_NAME)
                return _Found(root / FILES_NAME, names, record=record)
        for root in (path, *only_folder(path)):
            known = recognise(root, self.recognisers, engine=self.options.engine)
            if known is not None:
                return _Found(root, wanted_files(root, known.facts), recognised=known)
        raise self._unknown(path)

    def _unknown(self, path: Path) -> ModelError:
        name = self.source.name
        unfinished = unfinished_run(path)
        if unfinished is not None:
            return unfinished
        for root in (path, *only_folder(path)):
            for bioimage in _BIOIMAGE_NAMES:
                if (root / bioimage).is_file():
                    return _bioimage_error(name, root / bioimage)
        for one in self.recognisers:
            if one.engine == self.options.engine:
                # It says more than that it is none of its own, where it can.
                with suppress(LookupError, TypeError, AttributeError):
                    one.describe(path)
        known = [("lamella", "a folder with model.json, weights.safetensors and network.xml")]
        known += [(one.engine, one.expected) for one in self.recognisers]
        if self.options.engine is not None:
            known = [pair for pair in known if pair[0] == self.options.engine]
        told = "".join(f"\n  {engine}: {text}" for engine, text in known)
        if self.options.engine is None:
            told += "\nname an --engine to hear what it misses"
        is_file = path.is_file() or not any(path.iterdir())
        here = "" if is_file else f" (it holds {', '.join(few_names(path))})"
        return ModelError(
            f"{name} is no model that can be run here{here}", hint=f"expected one of these:{told}"
        )

    # --- names --------------------------------------------------------------------------------

    def _id(self, found: _Found) -> str:
        wish = self.options.id
        if found.card is not None:
            own = found.card.card.id
            if wish not in (None, own):
                raise InputError(
                    f"this is the model {own!r}: its id stands in its card and cannot be {wish!r}",
                    hint="leave out --id",
                )
            return own
        if wish is not None:
            if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", wish):
                raise InputError(
                    f"{wish!r} is no id", hint="use small letters, digits, '-', '_' and '.'"
                )
            return wish
        if found.record is not None:
            return found.record.id
        assert found.recognised is not None, "one of the three is there"
        told = str(found.recognised.facts.get("id") or "")
        return id_from_name(told or self.source.name.removesuffix(".zip"))

    def _check_free(self, model_id: str) -> None:
        if self.options.replaces:
            return
        target = self.models / model_id
        taken = [entry.path for entry in list_models(self.models) if entry.id == model_id]
        taken = [path for path in taken if path.parent == self.models]
        if target.exists() or target.is_symlink() or taken:
            raise OutputExistsError(
                f"a model {model_id!r} is here already: {taken[0] if taken else target}",
                hint="choose another --id, or replace it with --replace",
            )

    # --- files --------------------------------------------------------------------------------

    def _copy(self, staging: Path, found: _Found, model_id: str) -> tuple[int, str, str]:
        files = staging if found.card is not None else staging / FILES_NAME
        files.mkdir(exist_ok=True)
        total = sum((found.root / name).stat().st_size for name in found.names)
        if found.unpacked is None:
            check_space(self.models, total, self.options.free, what=str(self.source))
        meter = Meter(self.sink, f"taking in {model_id}", total)
        documents: dict[str, FileDoc] = {}
        done = 0
        for name in found.names:
            goal = files.joinpath(*PurePosixPath(name).parts)
            goal.parent.mkdir(parents=True, exist_ok=True)
            before = done

            def told(n_bytes: int, before: int = before) -> None:
                self.sink.check()
                meter.tell(before + n_bytes, total)

            if found.unpacked is not None:
                documents[name] = found.unpacked[name]
                (found.root / name).rename(goal)
                told(documents[name].n_bytes)
            else:
                documents[name] = copy_file(found.root / name, goal, told)
            done += documents[name].n_bytes
        if found.card is not None:
            card = ModelFolder.open(staging).card
            return total, "lamella", card.title
        record = self._write_record(staging, found, model_id, documents)
        return total, record.engine, record.title

    def _link(self, staging: Path, found: _Found, model_id: str) -> tuple[Path, int, str, str]:
        root = found.root.resolve()
        total = sum((root / name).stat().st_size for name in found.names)
        if found.card is not None:
            link = staging / "link"
            make_link(link, root)
            return link, total, "lamella", found.card.card.title
        meter = Meter(self.sink, f"reading {model_id}", total)

        def told(n_bytes: int) -> None:
            self.sink.check()
            meter.tell(n_bytes, total)

        documents = hash_folder(root, found.names, told)
        record = self._write_record(staging, found, model_id, documents)
        if self.source.is_file():
            (staging / FILES_NAME).mkdir()
            make_link(staging / FILES_NAME / self.source.name, self.source.resolve())
        else:
            make_link(staging / FILES_NAME, root)
        return staging, total, record.engine, record.title

    def _write_record(
        self, staging: Path, found: _Found, model_id: str, documents: Mapping[str, FileDoc]
    ) -> ModelRecord:
        record = self._record(found, model_id, documents)
        terms = Terms.of(record)
        if self.options.accepts_licence and terms.must_accept:
            accept(terms, self.places)
        try:
            check_accepted(terms, self.places)
        except LicenceError as error:
            error.hint = "read it, then import again with --accept-licence"
            raise
        (staging / RECORD_NAME).write_text(record.to_json(), encoding="utf-8")
        return record

    def _record(
        self, found: _Found, model_id: str, documents: Mapping[str, FileDoc]
    ) -> ModelRecord:
        if found.record is not None:
            for name, known in found.record.files.items():
                if documents[name].sha256 != known.sha256:
                    raise ModelError(
                        f"{self.source.name} was changed: {name} is not the file of its record",
                        hint="export or copy it again",
                        details={"file": name},
                    )
            return found.record.model_copy(update={"id": model_id})
        assert found.recognised is not None, "one of the three is there"
        known = found.recognised
        return make_record(model_id, known.engine, known.facts, documents, source=self.source.name)


def _is_torch_file(path: Path) -> bool:
    """Whether a zip is one of PyTorch's files of weights."""
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/data.pkl") for name in archive.namelist())


def _bioimage_error(name: str, description: Path) -> ModelError:
    text = description.read_text(encoding="utf-8", errors="replace")
    kinds = ("pytorch_state_dict", "torchscript", "onnx", "keras_hdf5", "keras_v3", "tensorflow")
    found = [kind for kind in kinds if re.search(rf"^\s+{kind}\w*\s*:", text, re.MULTILINE)]
    told = f" with weights as {', '.join(found)}" if found else ""
    return ModelError(
        f"{name} is a BioImage.io package{told}, which Lamella does not run",
        hint="packages may hold code or networks that are not in Lamella's registry; if it was made"
        " by nnU-Net or Cellpose, import that model itself",
        details={"weights": found},
    )
