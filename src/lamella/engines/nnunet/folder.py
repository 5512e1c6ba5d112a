"""What lies in a folder (or exported zip) of nnU-Net v2, read from names and JSON alone.

::

    Dataset101_Name/                              any level of this may be what the user names
      nnUNetTrainer__nnUNetPlans__3d_fullres/     one trained configuration
        plans.json  dataset.json
        fold_0/checkpoint_final.pth  fold_1/…  fold_all/…
        crossval_results_folds_0_1_2_3_4/postprocessing.pkl

A zip of ``nnUNetv2_export_model_to_zip`` is read in place; nothing is unpacked.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lamella.core.errors import MissingPathError, ModelError, UnreadableFileError

__all__ = ["EXPECTED", "Node", "TrainedFolder", "find_trained", "open_root", "read_json"]

EXPECTED = (
    "a folder TRAINER__PLANS__CONFIGURATION of nnU-Net v2 with plans.json, dataset.json and"
    " fold_*/checkpoint_final.pth, the DatasetXXX_Name folder around it, or its exported zip"
)

Node = Path | zipfile.Path
"""A folder or file on disk, or inside a zip."""

_MAX_DEPTH = 4
_V1_MARKS = ("plans.pkl", "model_final_checkpoint.model", "model_best.model")


@dataclass(frozen=True, slots=True)
class TrainedFolder:
    """One trained configuration.

    Attributes:
        root: the folder.
        name: its name, ``TRAINER__PLANS__CONFIGURATION``.
        trainer: class that trained it.
        plans_name: of its plans.
        configuration: such as ``3d_fullres``.
        plans: content of ``plans.json``.
        dataset: content of ``dataset.json``.
        settings: the configuration's part of the plans, inheritance resolved.
    """

    root: Node
    name: str
    trainer: str
    plans_name: str
    configuration: str
    plans: Mapping[str, Any]
    dataset: Mapping[str, Any]
    settings: Mapping[str, Any]

    @classmethod
    def open(cls, root: Node, name: str = "") -> TrainedFolder:
        """Read a folder that holds ``plans.json``.

        Args:
            root: the folder.
            name: what it was called, where it is called otherwise now.

        Raises:
            ModelError: for plans or a dataset.json that are missing, unreadable or contradictory.
        """
        for needed in ("plans.json", "dataset.json"):
            if not (root / needed).is_file():
                raise ModelError(
                    f"{root} is no model of nnU-Net v2: {needed} is missing",
                    hint=f"expected {EXPECTED}",
                )
        plans, dataset = read_json(root / "plans.json"), read_json(root / "dataset.json")
        known = plans.get("configurations")
        if not isinstance(known, Mapping) or not known:
            raise ModelError(
                f"{root / 'plans.json'} lists no configurations",
                hint="plans of nnU-Net v1 have none: train or convert the model with nnU-Net v2",
            )
        full = name if "__" in name else root.name
        parts = full.split("__")
        if len(parts) == 3:
            trainer, plans_name, configuration = parts
        elif len(known) == 1:
            trainer, plans_name, configuration = "", "", next(iter(known))
        else:
            raise ModelError(
                f"the folder {root} does not say which of {', '.join(known)} it is",
                hint="call it TRAINER__PLANS__CONFIGURATION, as nnU-Net does",
            )
        settings = _resolve(known, configuration, root)
        return cls(root, full, trainer, plans_name, configuration, plans, dataset, settings)

    @property
    def n_axes(self) -> int:
        """Spatial axes of a patch: 2 or 3."""
        return len(self.settings["patch_size"])

    @property
    def previous(self) -> str | None:
        """Configuration whose labels this one needs (the cascade), or None."""
        stage = self.settings.get("previous_stage")
        return str(stage) if stage else None

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the input channels."""
        named = self.dataset.get("channel_names") or self.dataset.get("modality") or {}
        if isinstance(named, Mapping):
            return tuple(str(named[key]) for key in sorted(named, key=_as_number))
        return tuple(map(str, named))

    @property
    def transpose(self) -> tuple[int, int, int]:
        """Input axis that becomes axis i of the network's grid."""
        z, y, x = self.plans.get("transpose_forward", (0, 1, 2))
        return int(z), int(y), int(x)

    def folds(self, checkpoint: str) -> tuple[str, ...]:
        """Folds that have a checkpoint: numbers in order, then ``all``."""
        names = [
            child.name.removeprefix("fold_")
            for child in self.root.iterdir()
            if child.name.startswith("fold_") and (child / checkpoint).is_file()
        ]
        return tuple(sorted(names, key=_as_number))

    def checkpoint(self, fold: str, checkpoint: str) -> Node:
        """File of a fold's weights."""
        return self.root / f"fold_{fold}" / checkpoint

    def postprocessing(self) -> Node | None:
        """The post-processing that cross-validation found best, or None."""
        for child in sorted(self.root.iterdir(), key=lambda node: node.name):
            if child.name.startswith("crossval_results"):
                found = child / "postprocessing.pkl"
                if found.is_file():
                    return found
        return None


def find_trained(path: Path, name: str = "") -> tuple[TrainedFolder, ...]:
    """Read every trained configuration below a path, sorted by name.

    Args:
        path: a configuration's folder, a folder around several, one of its folds, or a zip.
        name: what the folder was called before it was stored.

    Raises:
        MissingPathError: nothing there.
        ModelError: nothing of nnU-Net v2 there; says what was found instead.
    """
    root = open_root(path)
    if root.name.startswith("fold_") and isinstance(root, Path):
        root = root.parent
    found = sorted(_candidates(root, _MAX_DEPTH), key=lambda node: node.name)
    if found:
        named = name or (root.name if len(found) == 1 and found[0] == root else "")
        return tuple(TrainedFolder.open(node, named if node == root else "") for node in found)
    if _looks_like_v1(root, _MAX_DEPTH):
        raise ModelError(
            f"{path} is a model of nnU-Net v1",
            hint="version 2 cannot run it: train it again with nnU-Net v2",
        )
    held = sorted(child.name for child in root.iterdir())[:6]
    raise ModelError(
        f"{path} holds no model of nnU-Net v2; it holds {', '.join(held) or 'nothing'}",
        hint=f"expected {EXPECTED}",
    )


def open_root(path: Path) -> Node:
    """A folder, or the inside of a zip.

    Raises:
        MissingPathError: nothing there.
        ModelError: a file that is no zip.
    """
    if path.is_dir():
        return path
    if not path.exists():
        raise MissingPathError(f"there is no nnU-Net model at {path}", hint=f"expected {EXPECTED}")
    try:
        return zipfile.Path(zipfile.ZipFile(path))
    except (zipfile.BadZipFile, OSError) as error:
        raise ModelError(
            f"{path} is no readable zip: {error}", hint="download or export it again"
        ) from error


def read_json(node: Node) -> Mapping[str, Any]:
    """Read a JSON object.

    Raises:
        UnreadableFileError: when it is none.
    """
    try:
        content = json.loads(node.read_text(encoding="utf-8"))
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise UnreadableFileError(
            f"{node} is no readable JSON: {error}", hint="copy or download the model again"
        ) from error
    if not isinstance(content, dict):
        raise UnreadableFileError(f"{node} holds no JSON object")
    return content


def _candidates(node: Node, depth: int) -> Iterator[Node]:
    """Folders that are, or were meant to be, a trained configuration."""
    if _is_trained(node):
        yield node
    elif depth > 0:
        for child in _folders(node):
            yield from _candidates(child, depth - 1)


def _is_trained(node: Node) -> bool:
    # Only folders that training made: nnUNet_preprocessed and predictions have such files too.
    has_folds = any(child.name.startswith("fold_") for child in _folders(node))
    return (
        has_folds
        and (
            (node / "plans.json").is_file()
            or (node / "dataset.json").is_file()
            or re.fullmatch(r".+__.+__.+", node.name) is not None
        )
        and not _has_v1_marks(node)
    )


def _has_v1_marks(node: Node) -> bool:
    if (node / "plans.json").is_file():
        return False
    folds = [child for child in _folders(node) if child.name.startswith("fold_")]
    return any((place / mark).is_file() for place in (node, *folds) for mark in _V1_MARKS)


def _looks_like_v1(node: Node, depth: int) -> bool:
    return _has_v1_marks(node) or (
        depth > 0 and any(_looks_like_v1(child, depth - 1) for child in _folders(node))
    )


def _folders(node: Node) -> list[Node]:
    children: list[Node] = [child for child in node.iterdir() if child.is_dir()]
    return sorted(children, key=lambda child: child.name)


def _resolve(known: Mapping[str, Any], name: str, root: Node) -> Mapping[str, Any]:
    """A configuration with what it inherits."""
    chain: list[Mapping[str, Any]] = []
    seen: list[str] = []
    at: str | None = name
    while at is not None:
        if at not in known or at in seen:
            raise ModelError(
                f"{root / 'plans.json'} has no configuration {at!r}; it has {', '.join(known)}"
                if at not in known
                else f"{root / 'plans.json'}: configurations inherit in a circle at {at!r}",
                hint="the folder's name and its plans.json must belong together",
            )
        seen.append(at)
        chain.append(known[at])
        at = known[at].get("inherits_from")
    merged: dict[str, Any] = {}
    for part in reversed(chain):
        merged.update(part)
    _check_keys(merged, name, root)
    return merged


def _check_keys(settings: Mapping[str, Any], name: str, root: Node) -> None:
    needed = ("patch_size", "spacing", "normalization_schemes", "use_mask_for_norm")
    missing = [key for key in needed if not isinstance(settings.get(key), Sequence)]
    if missing:
        raise ModelError(
            f"{root / 'plans.json'}: the configuration {name!r} lacks {', '.join(missing)}",
            hint="these plans were written by a version of nnU-Net that is not supported",
        )


def _as_number(text: object) -> tuple[int, str]:
    digits = str(text)
    return (int(digits), "") if digits.isdecimal() else (1 << 30, digits)
