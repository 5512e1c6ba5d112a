"""A folder of drawings from any program that is known, as a data set.

Which program it was is told, or seen from the files: ``.json`` with shapes (Labelme) or with
annotations (COCO), ``.geojson`` (QuPath), ``.roi`` and ``.zip`` (ImageJ), pictures with colours.
Drawings and images find each other by the part that their names have in common.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lamella.core.errors import InputError, LamellaError, MissingPathError
from lamella.training.annotations.coco_read import read_coco
from lamella.training.annotations.convert import (
    Conversion,
    ConvertOptions,
    check_target,
    convert_drawn,
    convert_labelme,
    read_each,
)
from lamella.training.annotations.drawn import DrawnImage, image_shape_of
from lamella.training.pairs.finding import Finding, raise_errors
from lamella.training.pairs.matching import match
from lamella.training.pairs.pattern import Found, find_files

if TYPE_CHECKING:
    from lamella.core.progress import ProgressSink
    from lamella.training.annotations.shape import Shape

__all__ = ["ImportOptions", "convert_annotations", "recognise"]

Program = Literal["labelme", "coco", "geojson", "imagej", "colors"]
_SUFFIXES: Mapping[str, tuple[str, ...]] = {"geojson": (".geojson",), "imagej": (".zip", ".roi")}


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """Where drawings and images are.

    Attributes:
        program: that drew; None = as the files look.
        images: pattern of images below the source, or (COCO) their folder; empty = all.
        annotations: pattern of drawings below the source; empty = all of their kind.
        colors: colour of each class by name.
        unclassified: class of drawings that have none.
    """

    program: Program | None = None
    images: str = ""
    annotations: str = ""
    colors: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)
    unclassified: str = "object"


def convert_annotations(
    source: Path,
    target: Path,
    where: ImportOptions | None = None,
    options: ConvertOptions | None = None,
    *,
    sink: ProgressSink | None = None,
) -> Conversion:
    """Convert drawings of any known program.

    Args:
        source: a folder, or the one file of drawings (COCO).
        target: folder to make.
        where: which files are what.
        options: what the data set is to look like.
        sink: progress and cancellation.

    Raises:
        InputError: with every problem of every file at once, unless they are to be skipped; or
            when nobody knows which program it was.
        MissingPathError: nothing is there.
        OutputExistsError: the target exists.
        StorageError: the disk is full.
    """
    where, options = where or ImportOptions(), options or ConvertOptions()
    check_target(target, options)
    if not source.exists():
        raise MissingPathError(f"there is nothing at {source}", hint="check the path")
    program = where.program or ("colors" if where.colors else recognise(source))
    if program == "labelme":
        return convert_labelme(source, target, options, sink=sink)
    if program == "coco":
        files, problems = _coco(source, where)
        root = _common_folder([file.path for file in files], source)
        return convert_drawn(files, root, target, options, problems=problems, sink=sink)
    pairs = _pairs(source, program, where)
    read = _reader(program, where, options)

    def drawn(image: Path) -> DrawnImage:
        shape, is_upright = image_shape_of(image)
        drawing = pairs[image]
        return DrawnImage(image, read(drawing, shape), shape, is_upright)

    files, problems = read_each(list(pairs), drawn, sink)
    root = _common_folder(list(pairs), source)
    return convert_drawn(files, root, target, options, problems=problems, sink=sink)


def recognise(source: Path) -> Program:
    """The program that drew, by its files.

    Args:
        source: a folder, or one file.

    Raises:
        InputError: when no file looks like a drawing.
    """
    paths = [source] if source.is_file() else sorted(p for p in source.rglob("*") if p.is_file())
    for path in paths:
        if path.suffix.lower() == ".geojson":
            return "geojson"
        if path.suffix.lower() == ".json":
            found = _json_kind(path)
            if found is not None:
                return found
    if any(path.suffix.lower() in (".roi", ".zip") for path in paths):
        return "imagej"
    raise InputError(
        f"{source} holds no drawings that are known",
        hint="Labelme and COCO (.json), QuPath (.geojson), ImageJ (.roi, .zip); pictures with"
        " colours need --color NAME=#rrggbb",
    )


def _json_kind(path: Path) -> Program | None:
    try:
        document: Any = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    if isinstance(document, list):
        is_features = bool(document) and all(
            isinstance(one, dict) and "geometry" in one for one in document
        )
        return "geojson" if is_features else None
    if not isinstance(document, dict):
        return None
    for key, program in (("shapes", "labelme"), ("annotations", "coco"), ("features", "geojson")):
        if isinstance(document.get(key), list):
            return program  # type: ignore[return-value]
    return None


def _coco(source: Path, where: ImportOptions) -> tuple[list[DrawnImage], dict[Path, LamellaError]]:
    folder = source if source.is_dir() else source.parent
    images = folder / where.images if where.images else None
    if source.is_file():
        paths = [source]
    elif where.annotations:
        paths = sorted(source.glob(where.annotations))
    else:
        paths = [p for p in sorted(source.rglob("*.json")) if _json_kind(p) == "coco"]
    if not paths:
        raise MissingPathError(f"there is no COCO document in {source}", hint="check the path")
    files: list[DrawnImage] = []
    problems: dict[Path, LamellaError] = {}
    for path in paths:
        found, wrong = read_coco(path, images)
        files += found
        problems |= wrong
    return files, problems


def _pairs(source: Path, program: Program, where: ImportOptions) -> dict[Path, Path]:
    """Drawing by image."""
    if not source.is_dir():
        raise InputError(f"{source} is a file", hint="give the folder with images and drawings")
    drawings = _drawings(source, program, where)
    taken = set(drawings.values())
    images = [
        found
        for found in find_files(source, where.images or "**/*")
        if source / found.location not in taken
    ]
    if not images:
        raise MissingPathError(
            f"there are no images in {source}", hint="say where they are with --images"
        )
    matching = match(images, [Found(name, (name.rsplit("/", 1)[-1],)) for name in drawings])
    findings = [
        Finding("error", "ambiguous_names", "files with the same name", group, "rename one")
        for group in matching.doubles
    ]
    if matching.alone_labels:
        findings.append(
            Finding(
                "error",
                "unmatched_drawing",
                f"{len(matching.alone_labels)} drawing(s) without an image",
                matching.alone_labels,
                "a drawing and its image share a part of their names; --images says where they are",
            )
        )
    raise_errors(findings, f"the drawings in {source} cannot be converted")
    return {
        source / image: drawings[drawing] for image, drawing in sorted(matching.partners.items())
    }


def _drawings(source: Path, program: Program, where: ImportOptions) -> dict[str, Path]:
    """Files of drawings by their place without suffix."""
    if where.annotations and program == "colors":
        found = [source / one.location for one in find_files(source, where.annotations)]
    elif where.annotations:
        found = [path for path in sorted(source.glob(where.annotations)) if path.is_file()]
    elif program == "colors":
        raise InputError(
            "pictures with colours look like images",
            hint="say which are the coloured ones: --annotations 'masks/*.png'",
        )
    else:
        found = [
            path
            for path in sorted(source.rglob("*"))
            if path.suffix.lower() in _SUFFIXES[program]
            or (program == "geojson" and path.suffix == ".json" and _json_kind(path) == program)
        ]
    if not found:
        raise MissingPathError(
            f"there are no drawings in {source}", hint="say where they are with --annotations"
        )
    return {path.relative_to(source).with_suffix("").as_posix(): path for path in found}


def _reader(
    program: Program, where: ImportOptions, options: ConvertOptions
) -> Callable[[Path, tuple[int, int]], tuple[Shape, ...]]:
    if program == "geojson":
        from lamella.training.annotations.geojson import read_geojson

        return lambda path, shape: read_geojson(path, shape, unclassified=where.unclassified)
    if program == "imagej":
        from lamella.training.annotations.imagej import read_rois

        return lambda path, shape: read_rois(path, shape, unclassified=where.unclassified)
    from lamella.training.annotations.colors import read_colors

    return lambda path, shape: read_colors(
        path, shape, where.colors, split_objects=options.has_instances
    )


def _common_folder(images: list[Path], source: Path) -> Path:
    """The deepest folder that holds all images: names of results start there."""
    folders = {image.parent for image in images}
    if not folders:
        return source
    first = min(folders, key=lambda folder: len(folder.parts))
    while not all(folder.is_relative_to(first) for folder in folders):
        first = first.parent
    return first
