"""A MONAI bundle as a folder or a zip: its documents and weights, read as data.

::

    spleen_ct_segmentation/
    ├── configs/metadata.json             what goes in, what comes out, versions
    ├── configs/inference.json (or .yaml) network_def, preprocessing, inferer, postprocessing
    ├── models/model.pt                   weights (or model.ts, TorchScript)
    └── scripts/                          Python; never imported without --trust

A zip may hold the bundle at its top or in one folder.
"""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from lamella.core.errors import MissingPathError, ModelError, StorageError
from lamella.core.optional import require
from lamella.engines.monai.resolver import Resolver

__all__ = ["METADATA", "Bundle", "Metadata"]

METADATA = "configs/metadata.json"
INFERENCE = ("configs/inference.json", "configs/inference.yaml", "configs/inference.yml")
WEIGHTS = "models/model.pt"
SCRIPT = "models/model.ts"
MAX_DOCUMENT_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Metadata:
    """What ``metadata.json`` says of a bundle.

    Attributes:
        name: of the bundle.
        version: of the bundle.
        monai_version: MONAI it was made with.
        description: for people.
        task: what it does, for people.
        licence: where the document names one.
        citation: references, joined.
        n_channels: of the image; None where it does not say.
        n_outputs: channels of the prediction; None where it does not say.
        channels: names of the image's channels by number.
        classes: names of the prediction's channels by number.
        spatial: what each extent of the image must be, as written; empty where it does not say.
    """

    name: str
    version: str
    monai_version: str
    description: str
    task: str
    licence: str
    citation: str
    n_channels: int | None
    n_outputs: int | None
    channels: Mapping[int, str]
    classes: Mapping[int, str]
    spatial: tuple[str, ...]

    @classmethod
    def parse(cls, document: Mapping[str, Any]) -> Metadata:
        """The facts in a document; what it lacks or garbles is left open."""
        form = _mapping(document.get("network_data_format"))
        inputs, outputs = _mapping(form.get("inputs")), _mapping(form.get("outputs"))
        image = _mapping(inputs.get("image") or next(iter(inputs.values()), {}))
        pred = _mapping(outputs.get("pred") or next(iter(outputs.values()), {}))
        references = document.get("references") or []
        return cls(
            name=str(document.get("name") or ""),
            version=str(document.get("version") or ""),
            monai_version=str(document.get("monai_version") or ""),
            description=str(document.get("description") or ""),
            task=str(document.get("task") or ""),
            licence=str(document.get("license") or document.get("licence") or ""),
            citation="; ".join(map(str, references)) if isinstance(references, list) else "",
            n_channels=_count(image.get("num_channels")),
            n_outputs=_count(pred.get("num_channels")),
            channels=_names(image.get("channel_def")),
            classes=_names(pred.get("channel_def")),
            spatial=tuple(str(part) for part in image.get("spatial_shape") or ()),
        )

    @property
    def divisor(self) -> tuple[int, ...]:
        """What every extent of the image must be a multiple of, in the network's order.

        Examples:
            >>> empty = {"network_data_format": {"inputs": {"image": {
            ...     "spatial_shape": ["16*n", "2**p*n", "*", 96]}}}}
            >>> Metadata.parse(empty).divisor
            (16, 1, 1, 1)
        """
        found: list[int] = []
        for part in self.spatial:
            match = re.fullmatch(r"\s*(\d+)(?:\s*\*\*\s*(\d+))?\s*\*\s*[a-z]\w*\s*", part)
            found.append(int(match[1]) ** int(match[2] or 1) if match else 1)
        return tuple(found)


@dataclass(frozen=True)
class Bundle:
    """An opened bundle.

    Attributes:
        path: the folder, or the zip.
        prefix: where in the zip it lies, with a slash at the end; empty at the top.
    """

    path: Path
    prefix: str = ""
    _names: frozenset[str] | None = field(default=None, repr=False, compare=False)

    @classmethod
    def open(cls, path: Path | str) -> Bundle:
        """Open a bundle and see that all of it is there.

        Raises:
            MissingPathError: nothing is there.
            ModelError: a folder or zip that is no bundle, or an incomplete one.
        """
        place = Path(path)
        if not place.exists():
            raise MissingPathError(
                f"there is no MONAI bundle at {place}",
                hint="give the folder (or zip) that holds configs/metadata.json",
            )
        bundle = cls(place) if place.is_dir() else cls._of_zip(place)
        bundle._check()
        return bundle

    @classmethod
    def _of_zip(cls, place: Path) -> Bundle:
        try:
            with zipfile.ZipFile(place) as archive:
                names = frozenset(archive.namelist())
        except (zipfile.BadZipFile, OSError) as error:
            raise ModelError(
                f"{place} is neither a folder nor a readable zip: {error}",
                hint="get the bundle again; a broken download ends early",
            ) from None
        for name in sorted(names, key=len):
            if name == METADATA or name.endswith(f"/{METADATA}"):
                return cls(place, name.removesuffix(METADATA), names)
        return cls(place, "", names)

    def has(self, name: str) -> bool:
        """Whether a file is there.

        Args:
            name: path below the bundle, with ``/`` between parts.
        """
        if self._names is None:
            return (self.path / name).is_file()
        return self.prefix + name in self._names

    def read(self, name: str) -> bytes:
        """The bytes of a file.

        Raises:
            ModelError: when it is not there or damaged.
            StorageError: when it cannot be read.
        """
        try:
            if self._names is None:
                return (self.path / name).read_bytes()
            with zipfile.ZipFile(self.path) as archive:
                return archive.read(self.prefix + name)
        except (FileNotFoundError, KeyError):
            raise ModelError(
                f"the bundle {self.path} is incomplete: it has no {name}",
                hint="get the whole bundle again",
            ) from None
        except (zipfile.BadZipFile, EOFError, ValueError) as error:
            raise ModelError(
                f"{name} in {self.path} is damaged: {error}", hint="get the bundle again"
            ) from None
        except OSError as error:
            raise StorageError(f"{self.path}/{name} cannot be read: {error}") from error

    def files(self) -> list[str]:
        """The files that running it needs, as paths below the bundle."""
        names = [METADATA, self.inference_name, WEIGHTS, SCRIPT]
        kept = [name for name in names if self.has(name)]
        if self._names is None:
            scripts = sorted((self.path / "scripts").rglob("*.py"))
            kept += [path.relative_to(self.path).as_posix() for path in scripts]
            kept += [name for name in ("LICENSE", "docs/README.md") if self.has(name)]
        return kept

    @cached_property
    def metadata(self) -> Metadata:
        """What it says of itself.

        Raises:
            ModelError: a document that is no JSON.
        """
        return Metadata.parse(self._document(METADATA))

    @cached_property
    def resolver(self) -> Resolver:
        """Its inference configuration.

        Raises:
            ModelError: a document that is neither JSON nor YAML.
            MissingDependencyError: a YAML document where PyYAML is not installed.
        """
        return Resolver(self._document(self.inference_name))

    @property
    def inference_name(self) -> str:
        """Which inference document there is."""
        return next((name for name in INFERENCE if self.has(name)), INFERENCE[0])

    @property
    def name(self) -> str:
        """How it calls itself; the name of its folder otherwise."""
        given = self.prefix.rstrip("/").rpartition("/")[2] or self.path.name.removesuffix(".zip")
        return given if given and given != "files" else self.metadata.name or given

    @property
    def licence(self) -> str:
        """Its licence, as far as it tells."""
        if self.metadata.licence or not self.has("LICENSE"):
            return self.metadata.licence
        text = self.read("LICENSE").decode("utf-8", "replace")
        return next((line.strip() for line in text.splitlines() if line.strip()), "")[:80]

    @cached_property
    def sha256(self) -> str:
        """Of everything that decides labels: configuration and weights, hex."""
        digest = hashlib.sha256()
        for name in (METADATA, self.inference_name, WEIGHTS, SCRIPT):
            if self.has(name):
                digest.update(f"{name} {hashlib.sha256(self.read(name)).hexdigest()}\n".encode())
        return digest.hexdigest()

    def _check(self) -> None:
        if not self.has(METADATA):
            raise ModelError(
                f"{self.path} is no MONAI bundle: it has no {METADATA}",
                hint="give the folder that holds configs/ and models/, or a zip of it",
            )
        for wanted, found in (
            (INFERENCE[0], self.has(self.inference_name)),
            (WEIGHTS, self.has(WEIGHTS) or self.has(SCRIPT)),
        ):
            if not found:
                raise ModelError(
                    f"the bundle {self.path} is incomplete: it has no {wanted}",
                    hint="get the whole bundle again; weights are often kept apart (Git LFS)",
                )

    def _document(self, name: str) -> Mapping[str, Any]:
        content = self.read(name)
        if len(content) > MAX_DOCUMENT_BYTES:
            raise ModelError(f"{name} of {self.path} has {len(content):,} bytes: no configuration")
        try:
            if PurePosixPath(name).suffix == ".json":
                document = json.loads(content)
            else:
                yaml = require("yaml", extra="monai", purpose="reading a YAML configuration")
                document = yaml.safe_load(content)
        except (ValueError, RecursionError) as error:
            raise ModelError(f"{name} of {self.path} is no JSON: {error}") from None
        except Exception as error:  # noqa: BLE001 - yaml.YAMLError, known only once it is imported
            raise _unreadable(name, self.path, error) from None
        if not isinstance(document, Mapping):
            raise ModelError(
                f"{name} of {self.path} is a {type(document).__name__}, not a mapping",
                hint="get the bundle again",
            )
        return document


def _unreadable(name: str, path: Path, error: Exception) -> Exception:
    from lamella.core.errors import LamellaError

    if isinstance(error, LamellaError):
        return error
    return ModelError(f"{name} of {path} cannot be read: {error}", hint="get the bundle again")


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and value > 0 else None


def _names(value: Any) -> dict[int, str]:
    found = _mapping(value)
    return {int(key): str(name) for key, name in found.items() if str(key).isdigit()}
