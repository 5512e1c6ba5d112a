"""Finding and telling nnU-Net models, without importing anything heavy."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lamella.core.errors import AxesError, LamellaError, UnknownModelError
from lamella.core.registry import nearest_names
from lamella.engines.nnunet.classes import ClassRule
from lamella.engines.nnunet.folder import EXPECTED, Node, TrainedFolder, find_trained, open_root
from lamella.models.foreign import FILES_NAME, RECORD_NAME, ForeignModel, find_foreign

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lamella.core.places import Places
    from lamella.volume.volume import Volume
    from lamella.wire.request import SegmentRequest

__all__ = ["EXPECTED", "check_fit", "describe", "find_model", "recognise", "trained_folders"]

_ENGINE = "nnunet"
_CITATION = (
    "Isensee, F., Jaeger, P. F., Kohl, S. A. A., Petersen, J., Maier-Hein, K. H. (2021). nnU-Net."
    " Nature Methods 18, 203-211."
)


def recognise(path: Path) -> bool:
    """Whether a folder or zip is a model of nnU-Net v2.

    Args:
        path: anything.
    """
    if not path.is_dir() and not (path.is_file() and zipfile.is_zipfile(path)):
        return False
    try:
        return bool(find_trained(path))
    except (LamellaError, OSError):
        return False


def describe(path: Path) -> Mapping[str, Any]:
    """Facts about a model, for the record of the store.

    Args:
        path: a folder or zip that :func:`recognise` knows.

    Returns:
        Fields of a :class:`~lamella.wire.record.ModelRecord`; ``files`` are the paths, below
        ``path``, of what running it needs.

    Raises:
        ModelError: a model that contradicts itself.
    """
    root = open_root(path)
    found = find_trained(path)
    first = found[0]
    dataset = _dataset_name(first, path)
    rule = ClassRule.parse(first.dataset)
    configurations = [folder.configuration for folder in found]
    return {
        "id": "-".join(["nnunet", dataset, *(configurations if len(found) == 1 else ())]),
        "version": str(first.plans.get("nnunetv2_version", "") or "2"),
        "title": f"nnU-Net {dataset} ({', '.join(configurations)})",
        "description": str(first.dataset.get("description", "")),
        "task": "semantic",
        "axes": "zyx" if any(folder.n_axes == 3 for folder in found) else "yx",
        "classes": dict(rule.named_values),
        "licence": str(first.dataset.get("licence") or first.dataset.get("license") or ""),
        "citation": str(first.dataset.get("reference") or _CITATION),
        "details": {
            "dataset": dataset,
            # Stored, a folder loses its name, and with it which configuration it is.
            "name": first.name if len(found) == 1 else "",
            "configurations": configurations,
            "channels": list(first.channels),
            "folds": {folder.name: list(_all_folds(folder)) for folder in found},
        },
        "files": _needed_files(root, found),
    }


def find_model(reference: str, places: Places) -> ForeignModel:
    """Return the model that is meant.

    Args:
        reference: a stored id, the path of a folder or zip, or the name (``Dataset101_Name``,
            ``101``) of a dataset in the store or in ``nnUNet_results``.
        places: where models lie.

    Raises:
        UnknownModelError: nothing of that name; the hint lists what there is.
        MissingPathError: a path where nothing is.
        ModelError: something there that is no model of nnU-Net v2.
    """
    stored = find_foreign(reference, places, engine=_ENGINE)
    if stored is not None:
        return stored
    path = Path(reference).expanduser()
    if path.exists() or _is_path(reference):
        return _of_path(path)
    names = dict(_known_names(places))
    for name, (place, model_id) in names.items():
        if reference in (name, _number(name)) or reference.partition("/")[0] == name:
            if model_id:
                found = find_foreign(model_id, places, engine=_ENGINE)
                assert found is not None, "listed from its record a moment ago"
                return found
            _, _, below = reference.partition("/")
            return _of_path(place / below if below else place)
    near = nearest_names(reference, names)
    raise UnknownModelError(
        f"there is no nnU-Net model {reference!r}",
        hint=(f"did you mean {' or '.join(near)}? " if near else "")
        + (f"known: {', '.join(sorted(names))}; " if names else "")
        + "give the path of its folder or zip, or set nnUNet_results to the folder of results",
    )


def check_fit(volume: Volume, request: SegmentRequest, model: ForeignModel) -> None:
    """Refuse early a volume that no configuration of the model takes.

    Raises:
        AxesError: another number of channels, or an image for models of volumes only.
    """
    del request
    folders = trained_folders(model)
    channels = folders[0].channels
    if volume.n_channels != len(channels):
        raise AxesError(
            f"the model {model.id!r} takes {len(channels)} channel(s) ({', '.join(channels)}); the"
            f" input has {volume.n_channels}",
            hint=f"choose one with --channel 0 to {volume.n_channels - 1}"
            if len(channels) == 1
            else "stack the channels in this order into one file, along an axis c",
        )
    if "z" not in volume.axes and all(folder.n_axes == 3 for folder in folders):
        raise AxesError(
            f"the model {model.id!r} segments volumes (z, y, x); the input is an image with the"
            f" axes {volume.axes}",
            hint="choose a model with a 2d configuration, or open the slices as one volume",
        )


def trained_folders(model: ForeignModel) -> tuple[TrainedFolder, ...]:
    """The trained configurations of a model.

    Raises:
        ModelError: when there are none.
    """
    assert model.path is not None, "find_model always names a path"
    return find_trained(model.path, str(model.details.get("name") or ""))


def _of_path(path: Path) -> ForeignModel:
    path = path.absolute()
    found = find_trained(path)
    title = f"nnU-Net {_dataset_name(found[0], path)}"
    root = open_root(path)
    if isinstance(root, Path) and root.name.startswith("fold_"):
        path = root = root.parent
    files = _needed_files(root, found)
    return ForeignModel(
        engine=_ENGINE,
        id=path.name.removesuffix(".zip"),
        path=path,
        sha256=_digest(path, root, files),
        licence=str(found[0].dataset.get("licence") or found[0].dataset.get("license") or ""),
        title=title,
    )


def _is_path(reference: str) -> bool:
    return reference.startswith((".", "/", "~")) or reference.endswith(".zip") or "\\" in reference


def _known_names(places: Places) -> Iterator[tuple[str, tuple[Path, str]]]:
    """Names of datasets: place, and id where it is a stored one. Stored ones come first."""
    stored: list[str] = []
    if places.models is not None and places.models.is_dir():
        for record in sorted(places.models.glob(f"*/{RECORD_NAME}")):
            name = _recorded_dataset(record)
            if name:
                stored.append(name)
                yield name, (record.parent / FILES_NAME, record.parent.name)
    results = places.nnunet_results
    if results is not None and results.is_dir():
        for folder in sorted(results.glob("Dataset*")):
            if folder.is_dir() and folder.name not in stored:
                yield folder.name, (folder, "")


def _recorded_dataset(path: Path) -> str:
    from lamella.models.foreign import read_record

    try:
        record = read_record(path.parent)
    except LamellaError:
        return ""  # a broken record of another model is not what was asked about
    return str(record.details.get("dataset") or "") if record.engine == _ENGINE else ""


def _number(name: str) -> str:
    digits = name.removeprefix("Dataset").partition("_")[0]
    return str(int(digits)) if digits.isdecimal() else name


def _dataset_name(folder: TrainedFolder, path: Path) -> str:
    named = str(folder.plans.get("dataset_name") or "")
    return named or path.name.removesuffix(".zip")


def _all_folds(folder: TrainedFolder) -> tuple[str, ...]:
    both = {*folder.folds("checkpoint_final.pth"), *folder.folds("checkpoint_best.pth")}
    return tuple(sorted(both))


def _needed_files(root: Node, found: tuple[TrainedFolder, ...]) -> list[str]:
    """Paths below a root of all that decides labels, with ``/`` between parts."""
    names: list[str] = []
    for folder in found:
        base = _relative(root, folder.root)
        nodes: list[Node] = [folder.root / "plans.json", folder.root / "dataset.json"]
        for fold in _all_folds(folder):
            best = folder.checkpoint(fold, "checkpoint_best.pth")
            final = folder.checkpoint(fold, "checkpoint_final.pth")
            nodes += [node for node in (final, best) if node.is_file()]
        after = folder.postprocessing()
        nodes += [] if after is None else [after]
        names += [base + _relative(folder.root, node).rstrip("/") for node in nodes]
    return sorted(names)


def _relative(root: Node, node: Node) -> str:
    """Path of a node below another, with a slash at the end; empty for itself."""
    if isinstance(node, Path) and isinstance(root, Path):
        text = node.relative_to(root).as_posix()
        return "" if text == "." else f"{text}/"
    assert not isinstance(node, Path), "nodes below a zip lie in it"
    assert not isinstance(root, Path), "nodes below a zip lie in it"
    return node.at.removeprefix(root.at).rstrip("/") + "/" if node.at != root.at else ""


def _digest(path: Path, root: Node, files: list[str]) -> str:
    if not isinstance(root, Path):
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    parts: list[tuple[str, str]] = []
    for name in files:
        with (root / name).open("rb") as stream:
            parts.append((name, hashlib.file_digest(stream, "sha256").hexdigest()))
    return hashlib.sha256(repr(parts).encode()).hexdigest()
