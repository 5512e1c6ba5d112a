"""The pairs of a data set: image, labels (one file, or one a class), mask and specimen."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lamella.core.errors import InputError
from lamella.training.pairs.finding import Finding
from lamella.training.pairs.matching import Matching, match
from lamella.training.pairs.pattern import Found, find_files, split_location

if TYPE_CHECKING:
    from lamella.training.configuration import PairsConfig

__all__ = ["Pair", "find_pairs", "specimens_of"]

_NO_PARTNER = (
    "an image and its labels share a part of their names; narrow the patterns (data.images,"
    " data.labels) or remove the file"
)


@dataclass(frozen=True, slots=True)
class Pair:
    """An image and what people know about it; locations are below the root.

    Attributes:
        image: location of the image.
        labels: location by class name; the name is empty where one file holds all classes.
        mask: location of the mask of what is known; empty for none.
        specimen: what it was taken from.
        split: ``train``, ``validation``, ``test``, or empty where not yet said.
    """

    image: str
    labels: tuple[tuple[str, str], ...]
    mask: str = ""
    specimen: str = ""
    split: str = ""

    @property
    def files(self) -> tuple[str, ...]:
        """All locations, the image first."""
        return (self.image, *(place for _, place in self.labels), *((self.mask,) * bool(self.mask)))


def find_pairs(config: PairsConfig) -> tuple[tuple[Pair, ...], tuple[Finding, ...]]:
    """Find the pairs of a data set by the names of its files.

    Args:
        config: patterns and root.

    Returns:
        The pairs that were found, by path, and what did not fit.

    Raises:
        MissingPathError: when a pattern finds nothing.
        InputError: for a pattern or regular expression that is none.
    """
    root = Path(config.root)
    patterns = config.labels if isinstance(config.labels, dict) else {"": config.labels}
    if not patterns:
        raise InputError("data.labels names no class", hint="write labels: {axon: PATTERN, ...}")
    sides = {name: find_files(root, pattern) for name, pattern in patterns.items()}
    masks = find_files(root, config.masks) if config.masks else ()
    others = {found.location for side in (*sides.values(), masks) for found in side}
    images = [found for found in find_files(root, config.images) if found.location not in others]
    if not images:
        raise InputError(
            f"all files of the pattern {config.images!r} are labels",
            hint="narrow data.images, for example to images/*.tif",
        )
    findings: list[Finding] = []
    labels: dict[str, list[tuple[str, str]]] = {}
    for name, side in sides.items():
        matching = match(images, side)
        findings += _problems(matching, f"labels of {name}" if name else "labels")
        for image, place in matching.partners.items():
            labels.setdefault(image, []).append((name, place))
    known = match(images, masks).partners if masks else {}
    if masks:
        findings += _problems(match(images, masks), "masks")
    pairs = [
        Pair(image=image, labels=tuple(found), mask=known.get(image, ""))
        for image, found in labels.items()
        if len(found) == len(patterns) and (not masks or image in known)
    ]
    pairs.sort(key=lambda pair: pair.image)
    named = specimens_of([pair.image for pair in pairs], config.specimen)
    return tuple(
        replace(pair, specimen=name) for pair, name in zip(pairs, named, strict=True)
    ), tuple(findings)


def specimens_of(images: Sequence[str], expression: str) -> list[str]:
    """The specimen of each image.

    Args:
        images: locations below the root.
        expression: regular expression searched in the location; what it, or its first group,
            finds is the specimen. Empty: the folder of the file, without what all folders have in
            common; or the file where all lie in one folder.

    Raises:
        InputError: for no regular expression, or an image in which it finds nothing.

    Examples:
        >>> specimens_of(["sub-1/micr/a.png", "sub-2/micr/b.png"], "")
        ['sub-1', 'sub-2']
        >>> specimens_of(["raw/fly1_001.tif", "raw/fly2_001.tif"], "(fly[0-9]+)_")
        ['fly1', 'fly2']
    """
    if not expression:
        return _folders(images)
    try:
        compiled = re.compile(expression)
    except re.error as error:
        raise InputError(
            f"data.specimen {expression!r} is no regular expression: {error}",
            hint="write one such as (sub-[a-z0-9]+)/",
        ) from None
    names = []
    for image in images:
        found = compiled.search(image)
        if found is None:
            raise InputError(
                f"data.specimen {expression!r} finds nothing in {image}",
                hint="correct the regular expression; every image needs a specimen",
            )
        groups = found.groups()
        names.append(str(groups[0] if groups and groups[0] is not None else found.group()))
    return names


def _folders(images: Sequence[str]) -> list[str]:
    folders = [split_location(image)[0].split("/")[:-1] for image in images]
    if len({tuple(folder) for folder in folders}) <= 1:
        return [Found(image, ()).stem for image in images]
    start, end = _shared(folders), _shared([folder[::-1] for folder in folders])
    return [
        "/".join(folder[start : max(start + 1, len(folder) - end)]) or "." for folder in folders
    ]


def _shared(lists: Sequence[Sequence[str]]) -> int:
    n = 0
    for entries in zip(*lists, strict=False):
        if len(set(entries)) > 1:
            break
        n += 1
    return n


def _problems(matching: Matching, what: str) -> list[Finding]:
    found = []
    if matching.alone_images:
        found.append(
            Finding(
                "error",
                "unmatched_image",
                f"{len(matching.alone_images)} image(s) without {what}",
                matching.alone_images,
                _NO_PARTNER,
            )
        )
    if matching.alone_labels:
        # Where every image has its labels, others harm nobody: the images were chosen.
        is_harmless = not (matching.alone_images or matching.doubles)
        found.append(
            Finding(
                "warning" if is_harmless else "error",
                "unmatched_labels",
                f"{len(matching.alone_labels)} file(s) of {what} without an image",
                matching.alone_labels,
                _NO_PARTNER,
            )
        )
    found += [
        Finding(
            "error",
            "ambiguous_names",
            f"{len(group)} files have the same name as far as images and {what} are compared",
            group,
            "rename or move one, or narrow the patterns",
        )
        for group in matching.doubles
    ]
    return found
