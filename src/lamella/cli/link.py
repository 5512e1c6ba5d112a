"""``lamella link``: objects of single slices become objects of the volume."""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lamella.cli.parameters import answer_options, console_of, input_options, open_options

if TYPE_CHECKING:
    from lamella.instances import LinkOptions
    from lamella.volume.labels import Labels

__all__ = ["command"]

_SLAB_VOXELS = 2**25
"""At most so many at once; as many slices as files are stored in blocks of, where that is fewer:
reading few at a time would unpack each block many times."""


@click.command()
@click.argument("labels", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Result.")
@click.option(
    "--min-overlap-ratio", type=click.FloatRange(0, 1, min_open=True), default=0.3, metavar="F",
    show_default=True, help="Least overlap of two slices of an object.",
)  # fmt: skip
@click.option(
    "--max-distance-z", type=click.IntRange(1, 16), default=2, metavar="N", show_default=True,
    help="Slices from one part of an object to the next; 2 = one may be missing.",
)  # fmt: skip
@click.option(
    "--max-centroid-distance", metavar="N[UNIT]",
    help="How far the centre may move from slice to slice; default: from the objects' size.",
)  # fmt: skip
@click.option(
    "--fill-gaps", is_flag=True, help="Draw objects into slices that lack them (interpolated)."
)
@click.option(
    "--components", is_flag=True,
    help="LABELS hold classes: number the connected pieces of every slice first.",
)  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace the output if it is there.")
@input_options
@answer_options
def command(labels: Path, output: Path, **words: Any) -> None:
    """Join the objects of the slices of LABELS to objects in 3-D.

    A label of LABELS is one object within its slice; the same number in another slice means
    nothing. Works on labels of any depth in little memory.
    """
    from lamella.core.errors import OutputExistsError
    from lamella.instances import link_slices
    from lamella.io.format import SaveOptions, find_writer, open_labels, save_volume
    from lamella.io.scratch import ScratchArray

    console = console_of(words)
    given = open_labels(labels, open_options(words), is_instance=True)
    options = _options(given, words)
    find_writer(output).load()
    if output.exists() and not words["overwrite"]:
        raise OutputExistsError(f"{output} is already there", hint="add --overwrite to replace it")
    source = _pieces(given) if words["components"] else given
    with (
        console.running(on_stop="nothing is written") as sink,
        tempfile.TemporaryDirectory(prefix="lamella-") as scratch,
    ):
        created: list[Any] = []

        def create(dtype: Any) -> Any:
            created.append(ScratchArray(Path(scratch) / "ids", source.spatial_shape, dtype))
            return created[0]

        found = link_slices(
            source.data,
            create,
            spacing=source.spacing.values,
            options=options,
            slab_depth=_slab_depth(source.spatial_shape),
            sink=sink,
        )
        result = replace(given, data=created[0], levels=(), is_instance=True)
        save = SaveOptions(overwrite=words["overwrite"], sink=sink)
        written = save_volume(result, output, save)
    from lamella.workflows.linking import link_facts

    document = {"path": str(written), "dtype": str(found.dtype), **link_facts(options, found)}
    text = (
        f"{written}: {found.n_objects} objects from {found.n_sections} in"
        f" {given.spatial_shape[0]} slices ({found.n_gaps_closed} gaps closed,"
        f" {found.n_branches} branches joined)"
    )
    console.answer(document, text)


def _slab_depth(shape: tuple[int, ...]) -> int:
    """Slices to read at once: one block of chunks as Lamella writes them, or what memory allows."""
    from lamella.io.ome_zarr_arrays import chunk_shape

    return max(1, min(chunk_shape(shape)[0], _SLAB_VOXELS // (shape[1] * shape[2])))


def _options(given: "Labels", words: dict[str, Any]) -> "LinkOptions":
    """The options of a command line.

    Raises:
        InputError: for labels without slices.
        GeometryError: for a physical distance on labels without spacing.
    """
    from lamella.core.errors import InputError
    from lamella.volume.spacing import Spacing
    from lamella.wire.request import LinkingDoc, SizeDoc
    from lamella.workflows.linking import link_options

    if "z" not in given.axes:
        raise InputError(
            f"the labels are one image with the axes {given.axes}: there is nothing to link",
            hint="open the slices as one volume (a folder of slices), or name the axes with --axes",
        )
    far = words["max_centroid_distance"]
    length = None if far is None else Spacing.parse(far)
    linking = LinkingDoc(
        min_overlap_ratio=words["min_overlap_ratio"],
        max_distance_z=words["max_distance_z"],
        max_centroid_distance=None
        if length is None
        else SizeDoc(value=length.values[0], unit=length.unit),
    )
    return link_options(linking, given, fill_gaps=words["fill_gaps"])


def _pieces(given: "Labels") -> "Labels":
    """Every slice with its connected pieces numbered, lazily."""
    import numpy as np

    from lamella.instances import label_components
    from lamella.volume.source import FunctionArray

    source = given.data

    def read(box: tuple[slice, ...]) -> Any:
        planes = [
            label_components(np.asarray(source[z])).labels[box[1:]]
            for z in range(box[0].start, box[0].stop)
        ]
        return np.stack(planes)

    return replace(given, data=FunctionArray(given.spatial_shape, np.uint32, read), levels=())
