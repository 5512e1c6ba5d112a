"""Open a data set: by patterns, or by the document that ``lamella dataset index`` wrote."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from lamella.core.errors import InputError, MissingPathError
from lamella.training.pairs.finding import Finding, raise_errors
from lamella.training.pairs.index import IndexDoc
from lamella.training.pairs.pairing import Pair, find_pairs
from lamella.training.pairs.pattern import split_location
from lamella.training.pairs.split import assign_splits, leakage

if TYPE_CHECKING:
    from lamella.training.configuration import PairsConfig

__all__ = ["HASHED_BYTES", "Opening", "duplicates", "open_pairs", "with_index"]

HASHED_BYTES = 128 << 20
HASHED_FILES = 2000
"""Data sets up to this size are hashed whenever they are opened; larger ones by ``index``."""


@dataclass(frozen=True, slots=True)
class Opening:
    """A data set whose voxels are not yet read.

    Attributes:
        root: folder that locations start from.
        pairs: with specimen and split.
        findings: what should be heard.
        fingerprint: size and SHA-256 (or time of change) by location.
        hashes: SHA-256 of images by location, where known.
        index: the document it was opened by.
    """

    root: str
    pairs: tuple[Pair, ...]
    findings: tuple[Finding, ...]
    fingerprint: Mapping[str, str]
    hashes: Mapping[str, str] = field(default_factory=dict)
    index: IndexDoc | None = None


def with_index(config: PairsConfig) -> PairsConfig:
    """A configuration with what the document of its data set says, where it says nothing itself.

    Raises:
        MissingPathError: when there is no such document.
        InputError: when it is none.
    """
    if not config.index:
        return config
    said = config.model_dump(exclude_defaults=True)
    index = IndexDoc.read(Path(config.index))
    written = {name: value for name, value in index.data.items() if name not in said}
    return type(config).model_validate({**config.model_dump(), **written})


def open_pairs(config: PairsConfig) -> Opening:
    """Find pairs, say on which side each stands, and look for copies on both sides.

    Raises:
        MissingPathError: when nothing is there.
        InputError: for what prevents training.
    """
    index = None if not config.index else IndexDoc.read(Path(config.index))
    root = Path(config.root or ".")
    if index is not None:
        root, pairs, findings = _indexed(Path(config.index), index, config)
    else:
        if not root.is_dir():
            raise MissingPathError(
                f"there is no folder {root}", hint="set data.root to the folder of the data set"
            )
        pairs, findings = find_pairs(config)
    raise_errors(findings)
    if not pairs:
        raise InputError("the data set has no pairs", hint="`lamella dataset check` says why")
    has_sides = index is not None and any(pair.split for pair in pairs)
    says_sides = any((config.split.train, config.split.validation, config.split.test))
    if not has_sides or says_sides or config.split.by == "part":
        pairs = assign_splits([replace(pair, split="") for pair in pairs], config.split)
    fingerprint, hashes = _fingerprint(root, pairs, index)
    found = [*findings, *leakage(pairs, config.split), *duplicates(pairs, hashes)]
    return Opening(str(root), tuple(pairs), tuple(found), fingerprint, hashes, index)


def duplicates(pairs: Sequence[Pair], hashes: Mapping[str, str]) -> list[Finding]:
    """Images that are the same, byte by byte or voxel by voxel.

    Args:
        pairs: with their splits.
        hashes: of bytes or voxels by location of the image.
    """
    groups: dict[str, list[Pair]] = {}
    for pair in pairs:
        if pair.image in hashes:
            groups.setdefault(hashes[pair.image], []).append(pair)
    found = []
    for group in groups.values():
        if len(group) < 2:
            continue
        names = tuple(pair.image for pair in group)
        if len({pair.split for pair in group if pair.split}) > 1:
            found.append(
                Finding(
                    "warning",
                    "leakage_duplicate",
                    "the same image stands on several sides: scores are too good",
                    names,
                    "remove the copies",
                )
            )
        else:
            found.append(
                Finding(
                    "warning",
                    "duplicate_image",
                    f"{len(group)} images are the same",
                    names,
                    "remove the copies, unless their labels differ on purpose",
                )
            )
    return found


def _indexed(
    path: Path, index: IndexDoc, config: PairsConfig
) -> tuple[Path, tuple[Pair, ...], tuple[Finding, ...]]:
    root = Path(config.root) if config.root else path.parent / index.root
    pairs = tuple(entry.to_pair() for entry in index.pairs)
    missing = [
        place
        for pair in pairs
        for place in pair.files
        if not (root / split_location(place)[0]).exists()
    ]
    if not missing:
        return root, pairs, ()
    gone = Finding(
        "error",
        "missing_file",
        f"{len(missing)} file(s) of {path} are not there",
        tuple(missing),
        "set data.root to the folder they lie in, or write the index again",
    )
    return root, pairs, (gone,)


def _fingerprint(
    root: Path, pairs: Sequence[Pair], index: IndexDoc | None
) -> tuple[dict[str, str], dict[str, str]]:
    """Of every file by location, and hashes of images where they are known."""
    places = list(dict.fromkeys(place for pair in pairs for place in pair.files))
    sizes = {place: _size(root / split_location(place)[0]) for place in places}
    known = {} if index is None else index.hashes(sizes)
    new = [size for place, size in sizes.items() if place not in known]
    is_small = sum(new) <= HASHED_BYTES and len(new) <= HASHED_FILES
    fingerprint, hashes = {}, {}
    by_path: dict[Path, str] = {}
    for place, size in sizes.items():
        path = root / split_location(place)[0]
        digest = known.get(place)
        if digest is None and is_small and path.is_file():
            if path not in by_path:
                by_path[path] = sha256_of(path)
            digest = by_path[path]
        if digest is not None:
            fingerprint[place] = f"{size} bytes, sha256 {digest}"
            hashes[place] = digest
        else:
            changed = datetime.fromtimestamp(int(path.stat().st_mtime), UTC)
            fingerprint[place] = f"{size} bytes, changed {changed:%Y-%m-%dT%H:%M:%SZ}"
    images = {pair.image for pair in pairs}
    # Two data sets of one file have the same bytes and are no copies.
    inner = {place for place in hashes if split_location(place)[1]}
    return fingerprint, {p: h for p, h in hashes.items() if p in images and p not in inner}


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, hex; of all files by name for a folder."""
    if path.is_dir():
        digest = hashlib.sha256()
        for child in sorted(p for p in path.rglob("*") if p.is_file()):
            digest.update(child.relative_to(path).as_posix().encode() + b"\0")
            digest.update(bytes.fromhex(sha256_of(child)))
        return digest.hexdigest()
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _size(path: Path) -> int:
    """Bytes of a file; of a folder those of its metadata, which is all that is quick to ask."""
    if path.is_dir():
        return sum(child.stat().st_size for child in path.iterdir() if child.is_file())
    return path.stat().st_size
