"""``lamella preview``: coarse labels of a whole volume, and a picture of them."""

from pathlib import Path
from typing import Any

import click

from lamella.cli.console import format_duration
from lamella.cli.parameters import answer_options, console_of, input_options
from lamella.cli.segmenting import build_request, request_options, trust_option

__all__ = ["command"]


@click.command()
@click.argument("source", metavar="INPUT", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path),
    help="Coarse labels; ./NAME.MODEL.preview.ome.zarr unless given. A PNG picture lies beside.",
)  # fmt: skip
@request_options
@trust_option
@input_options
@click.option("--overwrite", is_flag=True, help="Replace an earlier preview.")
@answer_options
def command(
    source: Path, output: Path | None, *, overwrite: bool, trust: bool, **words: Any
) -> None:
    """Show in seconds what a model would find in INPUT: one coarse pass, no run folder."""
    from lamella.workflows.api import run_folder_name
    from lamella.workflows.preview import PreviewOptions, preview

    console = console_of(words)
    stem = run_folder_name(source, words["model"]).removesuffix(".run")
    labels = output or Path(f"{stem}.preview.ome.zarr")
    picture = _picture_beside(labels)
    request = build_request(source, words)
    options = PreviewOptions(labels, picture, overwrite, is_trusted=trust)
    with console.running() as sink:
        result = preview(request, options, sink=sink)
    document = {
        "labels": str(labels),
        "picture": str(picture),
        "shape": list(result.labels.spatial_shape),
        "factors": list(result.factors),
        "elapsed_s": round(result.elapsed_s, 3),
        "is_empty": result.is_empty,
    }
    if result.is_empty:
        coarser = max(result.factors)
        console.warn(
            f"the preview shows nothing: at {coarser:.3g} times coarser voxels thin structures can"
            " vanish; the full run may still find them"
        )
    console.answer(
        document,
        lambda: (
            f"  labels   {labels} ({' x '.join(map(str, result.labels.spatial_shape))})\n"
            f"  picture  {picture}\n"
            f"  time     {format_duration(result.elapsed_s)}"
        ),
    )


def _picture_beside(labels: Path) -> Path:
    name = labels.name
    for suffix in (".ome.zarr", ".nii.gz", ".ome.tif", ".ome.tiff", labels.suffix):
        if suffix and name.endswith(suffix):
            name = name.removesuffix(suffix)
            break
    picture = labels.with_name(f"{name}.png")
    return picture if picture != labels else labels.with_name(f"{name}.picture.png")
