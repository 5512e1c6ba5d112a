"""Which Cellpose models there are, and where their weights lie; weights are never opened here.

A reference is an id of the store (``lamella models import``), a file, or a name of Cellpose's own
(``cyto3``). Cellpose runs its default model where it does not know a name; here that is an error.
"""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lamella.core.errors import InputError, ModelError, UnknownModelError
from lamella.core.registry import nearest_names
from lamella.models.foreign import ForeignModel, find_foreign

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lamella.core.places import Places
    from lamella.wire.catalogue import CatalogueEntry

__all__ = ["Family", "weights_file"]

_LEGACY_NAMES_BYTES = 4 * 2**20
_LICENCE = "BSD-3-Clause"
_LICENCE_4 = "BSD-3-Clause; trained in part on data for non-commercial use"

# Name of a model, and of its file where they differ (cellpose 3.1.1.2, models.model_path).
_NAMES_3 = {
    name: name
    for name in (
        "cyto3",
        "cyto2_cp3",
        "tissuenet_cp3",
        "livecell_cp3",
        "yeast_PhC_cp3",
        "yeast_BF_cp3",
        "bact_phase_cp3",
        "bact_fluor_cp3",
        "deepbacs_cp3",
        "CPx",
        "neurips_cellpose_default",
        "neurips_grayscale_cyto2",
        "CP",
        "TN1",
        "TN2",
        "TN3",
        "LC1",
        "LC2",
        "LC3",
        "LC4",
    )
} | {"nuclei": "nucleitorch_0", "cyto": "cytotorch_0", "cyto2": "cyto2torch_0"}
_NAMES_4 = {name: name for name in ("cpsam_v2", "cpsam")}
_ELSEWHERE = {
    "cellpose3": {
        "transformer_cp3": "a transformer of Cellpose 3, which this engine does not build",
        "neurips_cellpose_transformer": "a transformer, which this engine does not build",
        **dict.fromkeys(_NAMES_4, "a model of Cellpose 4: write cellpose4:NAME"),
    },
    "cellpose4": {
        "cpdino": "a model that needs the package dinov3, which no package index carries",
        "cpdino-vitb": "a model that needs the package dinov3, which no package index carries",
        **dict.fromkeys(_NAMES_3, "a model of Cellpose 3: write cellpose3:NAME"),
    },
}


@dataclass(frozen=True, slots=True)
class Family:
    """The models of one version of Cellpose.

    Attributes:
        engine: ``"cellpose3"`` or ``"cellpose4"``.
        names: of its built-in models, with the names of their files.
        licence: of the built-in models.
        marker: a name that only weights of this version hold.
    """

    engine: str
    names: Mapping[str, str]
    licence: str
    marker: bytes

    @classmethod
    def of(cls, engine: str) -> Family:
        """The models of an engine."""
        if engine == "cellpose3":
            return cls(engine, _NAMES_3, _LICENCE, b"downsample.down.res_down_0")
        return cls(engine, _NAMES_4, _LICENCE_4, b"encoder.patch_embed")

    @property
    def expected(self) -> str:
        """One line on what its models look like."""
        example = "cyto3" if self.engine == "cellpose3" else "cpsam_v2"
        return f"a weights file of Cellpose {self.engine[-1]}, such as {example}"

    def find(self, reference: str, places: Places) -> ForeignModel:
        """Return a model; for a built-in one whose weights are not here, without a path.

        Args:
            reference: id of the store, file, or name of a built-in model.
            places: where models lie.

        Raises:
            UnknownModelError: nothing of that name, with the nearest names.
            ModelError: a file that is no model of this version.
        """
        stored = find_foreign(reference, places, engine=self.engine)
        if stored is not None:
            assert stored.path is not None, "stored models have files"
            return self._of_file(weights_file(stored.path), like=stored)
        path = Path(reference).expanduser()
        if path.is_file():
            return self._of_file(path, like=None)
        if reference in self.names:
            return self._built_in(reference, places)
        if path.is_dir():
            raise ModelError(
                f"{path} is a folder; a Cellpose model is one file",
                hint=f"name the file: {self.engine}:{path}/NAME",
            )
        raise self._unknown(reference)

    def _built_in(self, name: str, places: Places) -> ForeignModel:
        file = self.names[name]
        # The id under which the catalogue lists it, and Cellpose's own folder.
        stored = find_foreign(f"{self.engine}-{name.replace('_', '-')}", places, engine=self.engine)
        candidates = [] if stored is None or stored.path is None else [stored.path / file]
        candidates += [home_folder() / file]
        for candidate in candidates:
            if candidate.is_file():
                return self._of_file(candidate, like=stored, name=name)
        return ForeignModel(
            engine=self.engine,
            id=name,
            licence=self.licence,
            title=f"Cellpose {name}",
            details={"name": name, "file": file},
        )

    def _of_file(
        self, path: Path, *, like: ForeignModel | None, name: str | None = None
    ) -> ForeignModel:
        if not self.recognise(path):
            raise ModelError(
                f"{path} is no model of Cellpose {self.engine[-1]}",
                hint=f"expected {self.expected}; Cellpose 3 and 4 cannot run each other's models",
            )
        details: dict[str, object] = {} if name is None else {"name": name, "file": path.name}
        return ForeignModel(
            engine=self.engine,
            id=name or (path.name if like is None else like.id),
            version="" if like is None else like.version,
            path=path,
            sha256=_sha256(path),
            licence=self.licence if name else ("" if like is None else like.licence),
            title=f"Cellpose {name}" if name else ("" if like is None else like.title),
            details=details,
        )

    def _unknown(self, reference: str) -> UnknownModelError:
        why = _ELSEWHERE[self.engine].get(reference)
        if why:
            return UnknownModelError(f"{reference!r} is {why.replace('NAME', reference)}")
        looks_like_path = "/" in reference or "\\" in reference
        near = [] if looks_like_path else nearest_names(reference, self.names)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        return UnknownModelError(
            f"there is no file {reference!r}"
            if looks_like_path
            else f"{self.engine} has no model {reference!r}",
            hint=f"{hint}known: {', '.join(self.names)}; or write {self.engine}:PATH",
            details={"id": reference, "known": sorted(self.names)},
        )

    def recognise(self, path: Path) -> bool:
        """Whether a file of PyTorch's names this version's layers."""
        try:
            if path.is_dir():
                return self.recognise(weights_file(path))
            return path.is_file() and self.marker in _names_in(path)
        except (OSError, zipfile.BadZipFile, InputError):
            return False

    def describe(self, path: Path) -> Mapping[str, Any]:
        """Facts about a recognised file or folder."""
        file = weights_file(path) if path.is_dir() else path
        known = {file_name: name for name, file_name in self.names.items()}
        name = known.get(file.name)
        return {
            "title": f"Cellpose {name or file.name}",
            "task": "instance",
            "axes": "yx",
            "licence": self.licence if name else "",
            "details": {"file": file.name},
        }

    def downloads(self, reference: str) -> Sequence[CatalogueEntry]:
        """Raise; Cellpose's models are entries of the catalogue.

        Raises:
            UnknownModelError: always, with the id to pull.
        """
        if reference in self.names:
            raise UnknownModelError(
                f"{reference!r} is pulled by its id in the catalogue",
                hint=f"lamella models pull {self.engine}-{reference.replace('_', '-')}",
            )
        raise self._unknown(reference)


def _names_in(path: Path) -> bytes:
    """The part of a PyTorch file that names its tensors, as bytes; nothing is unpickled."""
    if not zipfile.is_zipfile(path):
        # As PyTorch wrote until 1.5: the names come first.
        with path.open("rb") as stream:
            start = stream.read(_LEGACY_NAMES_BYTES)
        return start if start.startswith(b"\x80\x02") else b""
    with zipfile.ZipFile(path) as archive:
        pickles = [name for name in archive.namelist() if name.endswith("data.pkl")]
        return archive.read(pickles[0]) if pickles else b""


def weights_file(folder: Path) -> Path:
    """Return the weights among the files of a stored model.

    Raises:
        InputError: none, or several.
    """
    if folder.is_file():
        return folder
    files = [
        path
        for path in sorted(folder.iterdir())
        if path.is_file() and path.suffix not in (".npy", ".json", ".txt", ".md")
    ]
    if len(files) != 1:
        raise InputError(
            f"{folder} holds {len(files)} files that may be weights; one was expected",
            hint="import the weights file itself: lamella models import FILE",
        )
    return files[0]


def home_folder() -> Path:
    """Return where Cellpose itself keeps models."""
    return Path.home() / ".cellpose" / "models"


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
