"""OME-Zarr (OME-NGFF): folders or zip archives of zarr 2 or 3, any version from 0.1 to 0.6-dev.

What is opened, from a path anywhere in a hierarchy::

    image group            the image, its pyramid as levels
    labels/nuclei          labels, with their classes (path, or --dataset labels/nuclei)
    plate, bioformats2raw  a well's field or a series (--dataset A/1/0, --series 2)
    array                  placed by the multiscales above it, else by its own attributes

NGFF counts voxel centres, in any order of axes; half-voxel translations (CellMap) are kept to the
last bit. Chunks that are not stored read as the fill value, and a note says how many.
"""

import posixpath
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lamella.core.errors import InputError, LamellaError, UnknownFormatError, UnreadableFileError
from lamella.io.format import ContentEntry, OpenOptions, Probe, SaveOptions
from lamella.io.ome_zarr_find import choose, content_entries, locate
from lamella.io.ome_zarr_layout import (
    Layout,
    layout_of,
    layout_of_names,
    place,
    spacing_notes,
)
from lamella.io.ome_zarr_metadata import (
    LAMELLA_KEY,
    affine_from_lamella,
    along_own_axes,
    classes_from_lamella,
    notes_from_lamella,
)
from lamella.io.ome_zarr_multiscale import Multiscale, dataset_paths, parse_multiscale
from lamella.io.ome_zarr_plain import read_plain
from lamella.io.ome_zarr_tree import METADATA_FILES, Node, Tree, is_hierarchy
from lamella.volume.affine import Affine
from lamella.volume.axes import Axes
from lamella.volume.labels import LabelClass, Labels
from lamella.volume.spacing import UNITS, Unit
from lamella.volume.volume import Note, Volume

__all__ = ["contents", "probe", "read", "write"]

_ZIP_HEADS = (b"PK\x03\x04", b"PK\x05\x06")
_PENDING = "pending.json"


def probe(path: Path, head: bytes) -> Probe:
    """Whether a path is, or lies in, a zarr hierarchy (or N5, which is refused by name)."""
    if path.is_dir():
        return _probe_folder(path)
    if path.name in METADATA_FILES and is_hierarchy(path.parent):
        return Probe.yes(f"{path.name} of a zarr folder")
    if head[:4] in _ZIP_HEADS:
        return _probe_zip(path)
    if path.suffix.lower() in (".zip", ".ozx"):
        return Probe.no("it does not begin like a zip archive")
    return Probe.no("neither a folder nor a zip archive")


def read(path: Path, options: OpenOptions) -> Volume:
    """Open an image or labels lazily.

    Args:
        path: folder, archive, or a folder inside a hierarchy.
        options: ``dataset`` names a group or array below the path, ``series`` one of several
            images, ``level`` a pyramid level.

    Raises:
        UnreadableFileError: for damaged or missing documents and arrays.
        InputError: when several images could be meant, or the level does not exist.
        GeometryError: for transformations that make no regular grid.
        AxesError: for axes that make no image.
    """
    _refuse_unfinished(path)
    tree, inner = locate(path)
    node, notes = choose(tree, inner, options)
    if node.kind == "array":
        volume = _level_of_image(tree, node, options) or read_plain(tree, node, options)
    else:
        volume = _read_image(tree, node, options)
    return replace(volume, path=path, notes=(*notes, *volume.notes))


def contents(path: Path) -> tuple[ContentEntry, ...]:
    """Images, labels and arrays that can be chosen; empty when there is one thing only."""
    _refuse_unfinished(path)
    return content_entries(*locate(path))


def write(volume: Volume, path: Path, options: SaveOptions) -> None:
    """Write OME-Zarr 0.5 (zarr 3), as a folder or (``.zip``, ``.ozx``) an archive."""
    from lamella.io.ome_zarr_write import write_image

    write_image(volume, path, options, version="0.5")


def _probe_folder(path: Path) -> Probe:
    if is_hierarchy(path):
        return Probe.yes("a folder with zarr metadata")
    if (path / _PENDING).is_file():
        return Probe.yes("labels of an unfinished run")
    if (path / "attributes.json").is_file():
        return Probe.yes("an N5 folder")
    if any(is_hierarchy(child) for child in sorted(path.iterdir())[:200] if child.is_dir()):
        return Probe.maybe("a folder of zarr folders")
    if any(part.lower().endswith(".zarr") for part in path.resolve().parts):
        return Probe.maybe("a folder of, or in, something named .zarr")
    return Probe.no("the folder has none of " + ", ".join(METADATA_FILES))


def _probe_zip(path: Path) -> Probe:
    is_named = path.name.lower().endswith((".zip", ".ozx"))
    try:
        with zipfile.ZipFile(path) as archive:
            names = {posixpath.basename(name) for name in archive.namelist()}
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError, LookupError):
        damaged = "a damaged zip archive"
        return Probe.maybe(damaged) if is_named else Probe.no(damaged)
    if names & {*METADATA_FILES, ".zmetadata"}:
        return Probe.yes("a zip archive with zarr metadata")
    none = "a zip archive without zarr metadata"
    return Probe.maybe(none) if is_named else Probe.no(none)


def _refuse_unfinished(path: Path) -> None:
    if not path.is_dir() or is_hierarchy(path):
        return
    if (path / _PENDING).is_file():
        raise UnreadableFileError(
            f"{path} holds labels of a run that has not finished",
            hint="go on with `lamella resume` and the run's folder",
        )
    if (path / "attributes.json").is_file():
        raise UnknownFormatError(
            f"{path} is N5, which Lamella does not read",
            hint="convert it to OME-Zarr, for example with Fiji's N5 plugins (export as OME-NGFF)",
        )


def _level_of_image(tree: Tree, node: Node, options: OpenOptions) -> Volume | None:
    """An array that a group above lists as one of its levels, with that level's geometry."""
    parts = node.path.split("/")
    for n_up in range(1, min(4, len(parts) + 1)):
        group = tree.node("/".join(parts[:-n_up]))
        listed = group.ome.get("multiscales") if group is not None else None
        if not isinstance(listed, list) or not listed or group is None:
            continue
        own = "/".join(parts[-n_up:])
        image = _read_image(tree, group, replace(options, level=0))
        for level in (image, *image.levels):
            if level.metadata["dataset"] == own:
                return replace(level, notes=image.notes, name=level.name or own, levels=())
    return None


def _read_image(tree: Tree, node: Node, options: OpenOptions) -> Volume:
    listed = node.ome["multiscales"]
    first_path = _first_path(listed[0], tree, node)
    first = tree.array(posixpath.join(node.path, first_path))
    multiscale = parse_multiscale(listed[0], str(node.ome.get("version") or ""), first.ndim)
    layout = _layout(multiscale, options, first.shape)
    levels, notes = _levels(tree, node, multiscale, layout)
    notes = (*_time_notes(multiscale, layout), *notes)
    if len(listed) > 1:
        text = f"the group has {len(listed)} multiscales; the first is read"
        notes = (*notes, Note("multiscales_ignored", text))
    full = replace(levels[0], notes=(*multiscale.notes, *layout.notes, *notes, *levels[0].notes))
    full = replace(full, channel_names=_channel_names(node, full))
    full = _as_labels(node, replace(full, levels=tuple(levels[1:])))
    own = node.attributes.get(LAMELLA_KEY)
    full = _with_extras(full, own) if isinstance(own, Mapping) else _with_gaps(tree, node, full)
    return _at_level(full, options.level)


def _first_path(document: Any, tree: Tree, node: Node) -> str:
    paths = dataset_paths(document)
    if not paths:
        raise UnreadableFileError(
            f"the multiscales document of {tree.path}/{node.path} lists no datasets",
            hint="the metadata may be damaged; open an array with --dataset",
        )
    return paths[0]


def _layout(multiscale: Multiscale, options: OpenOptions, shape: Sequence[int]) -> Layout:
    if options.axes is None:
        return layout_of(multiscale.axes, shape)
    layout = layout_of_names(options.axes)
    if len(layout.keep) != len(shape):
        raise InputError(
            f"--axes {options.axes!r} names {len(layout.keep)} axes, the array has {len(shape)}",
            hint=f"its shape is {tuple(shape)}",
        )
    return layout


def _levels(
    tree: Tree, node: Node, multiscale: Multiscale, layout: Layout
) -> tuple[list[Volume], tuple[Note, ...]]:
    """All levels that are there, finest first."""
    found: list[Volume] = []
    notes: list[Note] = []
    name = multiscale.name.strip("/") or _stem(tree, node)
    for index, (path, matrix) in enumerate(zip(multiscale.paths, multiscale.matrices, strict=True)):
        try:
            array = tree.array(posixpath.join(node.path, path))
        except (InputError, UnreadableFileError) as error:
            if index == 0:
                raise
            notes.append(Note("level_missing", f"level {index} cannot be read: {error.message}"))
            continue
        affine, unit, odd = place(matrix, multiscale.axes, layout)
        found.append(
            Volume(
                data=tree.lazy(array, layout.keep, posixpath.join(node.path, path)),
                axes=layout.axes,
                affine=affine,
                unit=unit,
                name=name,
                notes=(*odd, *spacing_notes(affine, unit, matrix)),
                metadata=_facts(node, multiscale.version, array, path),
            )
        )
    ordered = sorted(found, key=lambda level: -level.nbytes)
    if [id(level) for level in ordered] != [id(level) for level in found]:
        notes.append(Note("levels_reordered", "the levels are not listed from fine to coarse"))
    return ordered, tuple(notes)


def _time_notes(multiscale: Multiscale, layout: Layout) -> tuple[Note, ...]:
    """Lamella's volumes have no time step: say so where the file has one."""
    matrix = multiscale.matrices[0]
    if "t" not in layout.axes or matrix is None:
        return ()
    axis = layout.keep[layout.axes.index("t")]
    step = float(matrix[axis, axis])
    if step == 1.0 and not multiscale.axes[axis].get("unit"):
        return ()
    word = str(multiscale.axes[axis].get("unit") or "")
    return (
        Note("time_step_ignored", f"the time step of {step:g} {word}".rstrip() + " is not kept"),
    )


def _stem(tree: Tree, node: Node) -> str:
    name = posixpath.basename(node.path) or tree.path.name
    for suffix in (".zip", ".ozx", ".zarr", ".ome"):
        name = name.removesuffix(suffix)
    return name


def _facts(node: Node, version: str, array: Any, path: str) -> dict[str, Any]:
    """What the store says about itself, for people."""
    facts: dict[str, Any] = {
        "dataset": path,
        "ngff_version": version,
        "zarr_format": node.zarr_format,
        "chunks": [int(n) for n in array.chunks],
        "compression": ", ".join(_codec_name(codec) for codec in array.compressors) or "none",
    }
    if array.shards:
        facts["shards"] = [int(n) for n in array.shards]
    return facts


def _codec_name(codec: Any) -> str:
    name = getattr(codec, "codec_id", None) or type(codec).__name__.removesuffix("Codec")
    inner = getattr(codec, "cname", None)
    return f"{name} ({getattr(inner, 'value', inner)})".lower() if inner else str(name).lower()


def _channel_names(node: Node, volume: Volume) -> tuple[str, ...]:
    omero = node.ome.get("omero")
    channels = omero.get("channels") if isinstance(omero, Mapping) else None
    if not isinstance(channels, list) or "c" not in volume.axes:
        return ()
    names = tuple(
        str(c["label"]) if isinstance(c, Mapping) and "label" in c else f"channel {index}"
        for index, c in enumerate(channels)
    )
    return names if len(names) == volume.n_channels else ()


def _as_labels(node: Node, volume: Volume) -> Volume:
    """Labels where the group says so, or lies in a ``labels`` group and holds integers."""
    document = node.ome.get("image-label")
    is_placed = "labels" in node.path.split("/")[:-1]
    if document is None and not is_placed:
        return volume
    if volume.dtype.kind not in "uib":
        note = Note("labels_not_integer", f"the labels are {volume.dtype}: read as an image")
        return replace(volume, notes=(*volume.notes, note)) if document is not None else volume
    classes = _classes(document) if isinstance(document, Mapping) else ()
    return _labels_of(volume, classes, is_instance=False)


def _labels_of(volume: Volume, classes: tuple[LabelClass, ...], *, is_instance: bool) -> Labels:
    shared = {name: getattr(volume, name) for name in Volume.__dataclass_fields__}
    shared["levels"] = tuple(
        _labels_of(level, classes, is_instance=is_instance) for level in volume.levels
    )
    return Labels(**shared, classes=classes, is_instance=is_instance)


def _classes(document: Mapping[str, Any]) -> tuple[LabelClass, ...]:
    """Named values of an ``image-label``; colours alone name nothing."""
    colors: dict[int, tuple[int, int, int]] = {}
    names: dict[int, str] = {}
    for entry in _entries(document, "colors"):
        rgba = entry.get("rgba")
        value = entry.get("label-value")
        if isinstance(value, int) and isinstance(rgba, list) and len(rgba) >= 3:
            red, green, blue = (int(np.clip(part, 0, 255)) for part in rgba[:3])
            colors[value] = (red, green, blue)
    for entry in _entries(document, "properties"):
        value = entry.get("label-value")
        name = next((entry[key] for key in ("class", "name", "label") if key in entry), None)
        if isinstance(value, int) and isinstance(name, str):
            names[value] = name
    return tuple(
        LabelClass(value, name, colors.get(value)) for value, name in sorted(names.items())
    )


def _entries(document: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    listed = document.get(key)
    return [e for e in listed if isinstance(e, Mapping)] if isinstance(listed, list) else []


def _with_extras(volume: Volume, own: Mapping[str, Any]) -> Volume:
    """Put back what NGFF cannot say, as long as it still describes the same grid."""
    try:
        affine = affine_from_lamella(own)
        unit = own["unit"]
        is_ours = unit in UNITS and Axes.parse(str(own["axes"])) == volume.axes
        shown = along_own_axes(affine)
        is_ours = is_ours and unit == volume.unit
        if not (is_ours and shown.is_close(replace(volume.affine, frame=affine.frame), 1e-6)):
            note = Note("metadata_edited", "the geometry was changed after Lamella wrote it")
            return replace(volume, notes=(*volume.notes, note))
        completed = _place_exactly(volume, affine, unit)
        names = tuple(str(name) for name in own.get("channel_names", ()))
        completed = replace(
            completed,
            name=str(own["name"]),
            channel_names=names if len(names) == volume.n_channels else completed.channel_names,
            notes=_merged(notes_from_lamella(own), volume.notes),
        )
        if isinstance(completed, Labels):
            return _labels_of(
                completed, classes_from_lamella(own), is_instance=bool(own.get("is_instance"))
            )
    except (LamellaError, ValueError, TypeError, KeyError, AttributeError, OverflowError):
        note = Note("metadata_damaged", "Lamella's own attributes are damaged and were left aside")
        return replace(volume, notes=(*volume.notes, note))
    return completed


def _place_exactly(volume: Volume, affine: Affine, unit: Unit) -> Volume:
    """Give level 0 its exact affine, and every level the one that follows from it."""
    local = volume.affine

    def follow(level: Volume) -> Volume:
        ratio = [s / t for s, t in zip(level.affine.spacing, local.spacing, strict=True)]
        offset = [
            (o - p) / s
            for o, p, s in zip(level.affine.origin, local.origin, local.spacing, strict=True)
        ]
        moved = replace(
            affine,
            spacing=tuple(s * r for s, r in zip(affine.spacing, ratio, strict=True)),
            origin=tuple(float(v) for v in affine.apply(offset)),
        )
        return replace(level, affine=moved, unit=unit)

    levels = tuple(follow(level) for level in volume.levels)
    return replace(volume, affine=affine, unit=unit, levels=levels)


def _merged(kept: tuple[Note, ...], found: tuple[Note, ...]) -> tuple[Note, ...]:
    """Notes of the source, then those of reading that are new (missing spacing is told once)."""
    codes = {note.code for note in kept}
    return kept + tuple(note for note in found if note.code not in codes)


def _with_gaps(tree: Tree, node: Node, volume: Volume) -> Volume:
    """Say how many chunks of level 0 are not stored, if they can be counted quickly."""
    path = posixpath.join(node.path, str(volume.metadata["dataset"]))
    counted = tree.n_missing_chunks(tree.array(path), path)
    if counted is None or counted[0] == 0:
        return volume
    text = (
        f"{counted[0]} of {counted[1]} chunks are not stored and read as the fill value:"
        " empty, or never fetched"
    )
    return replace(volume, notes=(*volume.notes, Note("chunks_missing", text)))


def _at_level(volume: Volume, level: int) -> Volume:
    if level == 0:
        return volume
    if level > len(volume.levels):
        raise InputError(
            f"there is no level {level}: the pyramid has {len(volume.levels) + 1}",
            hint=f"choose 0 to {len(volume.levels)}",
        )
    chosen = volume.levels[level - 1]
    return replace(
        chosen,
        levels=volume.levels[level:],
        notes=volume.notes,
        channel_names=volume.channel_names,
        name=volume.name,
    )
