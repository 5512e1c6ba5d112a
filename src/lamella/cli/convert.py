"""``lamella convert``: the same voxels at the same place, in another format."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lamella.cli.console import Console
from lamella.cli.parameters import (
    answer_options,
    console_of,
    input_options,
    open_options,
    segment_option,
)

if TYPE_CHECKING:
    from lamella.io.format import OpenOptions
    from lamella.volume.volume import Volume

__all__ = ["command"]


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("target", type=click.Path(path_type=Path))
@input_options
@segment_option
@click.option("--format", "format_id", help="Format of TARGET, unless its suffix says it.")
@click.option("--dtype", help="Convert to this type, e.g. uint16; values must fit.")
@click.option("--pyramid/--no-pyramid", default=None, help="Coarser levels; default: over 256.")
@click.option("--compress/--no-compress", default=True, help="Compress losslessly if possible.")
@click.option("--labels", "as_labels", is_flag=True, help="The values are labels, not intensities.")
@click.option(
    "--source",
    "origin",
    type=click.Path(path_type=Path),
    metavar="SERIES",
    help="DICOM series that labels were made on: a DICOM segmentation refers to it.",
)
@click.option("--source-series", help="Which series in --source: number, UID or part of its name.")
@click.option("--overwrite", is_flag=True, help="Replace TARGET if it is there.")
@answer_options
def command(source: Path, target: Path, as_labels: bool, **words: Any) -> None:
    """Write SOURCE as TARGET, in the format of TARGET's suffix (.mrc, .ome.tif, .ome.zarr,
    .nii.gz, .nrrd, .h5, .png, .npy; .dcm for labels on a DICOM series).

    Voxels are never changed in silence: what does not fit the target is an error. TARGET appears
    when it is complete. With --spacing the header's spacing is replaced, voxels stay as they are.
    """  # noqa: D205 - click joins the lines
    from lamella.io.format import SaveOptions, save_volume

    console = console_of(words)
    volume = _open(source, open_options(words), as_labels=as_labels, dtype=words["dtype"])
    for note in volume.notes:
        if note.code == "spacing_given":
            continue
        console.warn(f"{source}: {note.message}")
    with console.running(on_stop="nothing is written") as sink:
        options = SaveOptions(
            format=words["format_id"],
            dtype=words["dtype"],
            overwrite=words["overwrite"],
            pyramid=words["pyramid"],
            compress=words["compress"],
            source=words["origin"],
            source_series=words["source_series"],
            sink=sink,
        )
        written = save_volume(volume, target, options)
    _answer(console, written, _as_written(written, volume))


def _open(source: Path, options: "OpenOptions", *, as_labels: bool, dtype: str | None) -> "Volume":
    from lamella.io.format import open_labels, open_volume

    if not as_labels:
        return open_volume(source, options)
    if dtype is None:
        return open_labels(source, options)
    return _labels_of(open_volume(source, options), dtype)


def _labels_of(volume: "Volume", dtype: str) -> "Volume":
    """Labels of the type asked for: many programs store them as floats (NIfTI above all)."""
    from dataclasses import replace

    import numpy as np

    from lamella.io.narrow import checked, parse_dtype
    from lamella.volume import FunctionArray, Labels
    from lamella.volume import Volume as VolumeClass

    for axis in ("t", "c"):
        if axis in volume.axes and volume.shape[volume.axes.index(axis)] == 1:
            volume = volume.select(axis, 0)
    kind, source = parse_dtype(dtype), volume.data
    data = FunctionArray(
        volume.shape, kind, lambda slices: checked(np.asarray(source[slices]), kind)
    )
    if isinstance(volume, Labels):
        return replace(volume, data=data, levels=())
    shared = {name: getattr(volume, name) for name in VolumeClass.__dataclass_fields__}
    return Labels(**{**shared, "data": data, "levels": ()})


def _as_written(path: Path, volume: "Volume") -> "Volume":
    """What was written: formats may have widened the type (uint8 into MRC) or dropped an axis."""
    from lamella.core.errors import LamellaError
    from lamella.io.format import open_volume

    try:
        return open_volume(path)
    except LamellaError:
        # Some targets are not read back by their path alone; the source describes them as well.
        return volume


def _answer(console: Console, written: Path, volume: "Volume") -> None:
    shape = " x ".join(str(n) for n in volume.shape)
    spacing = str(volume.spacing) if volume.unit != "voxel" else "not calibrated"
    document = {
        "path": str(written),
        "shape": list(volume.shape),
        "axes": str(volume.axes),
        "dtype": str(volume.dtype),
        "spacing": {"values": list(volume.affine.spacing), "unit": volume.unit},
        "notes": [{"code": note.code, "message": note.message} for note in volume.notes],
    }
    console.answer(document, f"{written}: {shape} ({volume.axes}) {volume.dtype}, {spacing}")
