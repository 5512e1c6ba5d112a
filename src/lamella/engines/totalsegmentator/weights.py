"""Where the weights of TotalSegmentator's datasets lie, and what to do where they do not.

A dataset is a folder ``Dataset297_.../TRAINER__PLANS__CONFIGURATION/{plans.json,...,fold_0}``.
Looked through, first match wins: the folder the user names, the model store, and the folder in
which TotalSegmentator itself keeps them (read only; nothing there is changed or deleted).
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lamella.core.errors import InputError, LamellaError, ModelError, UnknownModelError
from lamella.models.foreign import FILES_NAME, RECORD_NAME, find_foreign, read_record

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from lamella.core.places import Places
    from lamella.engines.totalsegmentator.package import Package, Task

__all__ = [
    "Weights",
    "check_present",
    "dataset_folders",
    "dataset_id",
    "find_weights",
    "is_dataset_folder",
    "verified",
]

ENGINE = "totalsegmentator"
ZIP_MB = 230
"""What a dataset's zip typically weighs."""
_NAME = re.compile(r"^Dataset(\d{3,})_.+$")


@dataclass(frozen=True, slots=True)
class Weights:
    """One dataset's folder.

    Attributes:
        dataset: its id.
        path: the folder that holds ``TRAINER__PLANS__CONFIGURATION`` folders.
        stored: id in the model store; empty for a folder outside.
        sha256: of all its files, where the store recorded them.
    """

    dataset: int
    path: Path
    stored: str = ""
    sha256: str = ""


def dataset_id(name: str) -> int | None:
    """The number in a folder's name, None for another name.

    Examples:
        >>> dataset_id("Dataset008_HepaticVessel"), dataset_id("fold_0")
        (8, None)
    """
    match = _NAME.match(name)
    return int(match.group(1)) if match else None


def is_dataset_folder(path: Path) -> bool:
    """Whether a folder holds trained configurations of nnU-Net."""
    return path.is_dir() and any(path.glob("*__*__*/plans.json"))


def dataset_folders(folder: Path) -> Iterator[Path]:
    """Yield the dataset folders that a folder is, or holds directly."""
    if dataset_id(folder.name) is not None and is_dataset_folder(folder):
        yield folder
        return
    for path in sorted(folder.glob("Dataset*_*")):
        if dataset_id(path.name) is not None and is_dataset_folder(path):
            yield path


def find_weights(places: Places, extra: str | None = None) -> dict[int, Weights]:
    """Return every dataset that is here, by id.

    Args:
        places: the model store, and TotalSegmentator's own folder.
        extra: a folder that comes first.

    Raises:
        InputError: ``extra`` is no folder of datasets.
    """
    found: dict[int, Weights] = {}
    if extra:
        folder = Path(extra).expanduser()
        for path in dataset_folders(folder):
            _add(found, path)
        if not found:
            raise InputError(
                f"the folder of weights {extra} holds no Dataset... folders",
                hint="name the folder right above them, such as nnunet/results",
            )
    if places.models is not None:
        for record in sorted(places.models.glob(f"*/{RECORD_NAME}")):
            for weights in _stored(record.parent):
                found.setdefault(weights.dataset, weights)
    home = places.totalsegmentator_home
    if home is not None:
        for path in dataset_folders(home / "nnunet" / "results"):
            _add(found, path)
    return found


def _add(found: dict[int, Weights], path: Path) -> None:
    number = dataset_id(path.name)
    assert number is not None, "dataset_folders yields nothing else"
    found.setdefault(number, Weights(number, path.absolute()))


def _stored(folder: Path) -> Iterator[Weights]:
    """The datasets of one stored model."""
    try:
        record = read_record(folder)
    except LamellaError:
        return  # another model's broken record is not what was asked about
    if record.engine != ENGINE:
        return
    files = folder / FILES_NAME
    name = str(record.details.get("folder") or "")
    places = {path.name: path for path in dataset_folders(files)}
    if not places and dataset_id(name) is not None and is_dataset_folder(files):
        # A dataset's folder that was imported lost its name.
        places = {name: files}
    for known, path in places.items():
        number = dataset_id(known)
        assert number is not None, "dataset_folders yields nothing else"
        below = path.relative_to(files).as_posix()
        prefix = "" if below == "." else f"{below}/"
        hashes = [
            (file.removeprefix(prefix), fact.sha256)
            for file, fact in sorted(record.files.items())
            if file.startswith(prefix)
        ]
        digest = hashlib.sha256(repr(hashes).encode()).hexdigest()
        yield Weights(number, path.absolute(), record.id, digest)


def check_present(
    package: Package, task: Task, needed: Iterable[int], found: Mapping[int, Weights]
) -> None:
    """Refuse a task whose weights are not all here.

    Raises:
        UnknownModelError: naming every dataset that is missing and the command that brings it.
    """
    missing = [dataset for dataset in dict.fromkeys(needed) if dataset not in found]
    if not missing:
        return
    named = ", ".join(f"{number} ({package.folders.get(number, '?')})" for number in missing)
    can_pull = [number for number in missing if package.url(number) is not None]
    ways = []
    if len(can_pull) == len(missing):
        size = f"about {ZIP_MB} MB" + (" each" if len(missing) > 1 else "")
        ways.append(f"lamella models pull totalsegmentator:{task.name} ({size})")
    else:
        ways.append("fetch them with TotalSegmentator's own totalseg_download_weights")
    ways.append("lamella models import FOLDER|ZIP for weights that you have")
    raise UnknownModelError(
        f"weights of TotalSegmentator's task {task.name!r} are missing: dataset"
        f"{'s' if len(missing) > 1 else ''} {named}",
        hint=", or ".join(ways),
        details={"missing": missing},
    )


def verified(weights: Weights, places: Places) -> Weights:
    """The weights with the SHA-256 of their files, compared with the store's record.

    Raises:
        ModelError: a file that changed since it was stored, or is not there.
    """
    if weights.stored:
        if find_foreign(weights.stored, places, engine=ENGINE) is None:
            raise ModelError(
                f"the stored model {weights.stored!r} vanished", hint="pull or import it again"
            )
        return weights
    hashes: list[tuple[str, str]] = []
    for path in sorted(weights.path.rglob("*")):
        if path.is_file() and path.suffix in (".json", ".pth", ".pkl"):
            with path.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            hashes.append((path.relative_to(weights.path).as_posix(), digest))
    whole = hashlib.sha256(repr(hashes).encode()).hexdigest()
    return Weights(weights.dataset, weights.path, "", whole)
