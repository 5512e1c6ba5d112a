"""``lamella models export``: a model for Lamella elsewhere, or for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lamella.cli.models_keep import size_text
from lamella.cli.parameters import answer_options, console_of
from lamella.core.errors import InputError

if TYPE_CHECKING:
    from lamella.cli.console import Console
    from lamella.workflows.model_export import Exported, ExportFormat

__all__ = ["export_command"]

_PATH = click.Path(path_type=Path)
_OF_PACKAGES = ("authors", "licence", "tags")


@click.command(name="export")
@click.argument("model")
@click.option(
    "--format", "format_id", type=click.Choice(["zip", "bioimageio", "onnx"]), default="zip",
    show_default=True, help="For Lamella elsewhere; for BioImage.io; a graph for any runtime.",
)  # fmt: skip
@click.option("-o", "--output", type=_PATH, default=Path(), help="A file, or a folder for it.")
@click.option("--author", "authors", multiple=True, metavar="NAME[, AFFILIATION]",
    help="Of a BioImage.io package; may be repeated.",
)  # fmt: skip
@click.option("--licence", default="", metavar="SPDX", help="Of a BioImage.io package, by its id.")
@click.option("--tag", "tags", multiple=True, help="Of a BioImage.io package; may be repeated.")
@click.option("--overwrite", is_flag=True, help="Replace a file that is there.")
@answer_options
def export_command(model: str, format_id: str, output: Path, overwrite: bool, **words: Any) -> None:
    """Write MODEL (an id, a folder, or the folder of a training) as one file.

    A zip is what `lamella models import` takes elsewhere, bit by bit the same. Graphs are compared
    with PyTorch, and packages judged by BioImage.io's validator, before the file appears.
    """
    console = console_of(words)
    if format_id != "bioimageio" and any(words[name] for name in _OF_PACKAGES):
        raise InputError(
            "--author, --licence and --tag say something of BioImage.io packages",
            hint="add --format bioimageio, or leave them out",
        )
    if format_id == "zip":
        _export_zip(console, model, output, overwrite=overwrite)
        return
    kind: ExportFormat = "onnx" if format_id == "onnx" else "bioimageio"
    exported = _exported(console, model, output, kind, words, overwrite=overwrite)
    document = {
        "path": str(exported.path),
        "format": format_id,
        "n_bytes": exported.n_bytes,
        "difference": exported.difference,
        "warnings": list(exported.warnings),
    }
    console.answer(document, _text(exported))
    for warning in exported.warnings:
        console.warn(warning)


def _export_zip(console: Console, model: str, output: Path, *, overwrite: bool) -> None:
    from lamella.core.places import Places
    from lamella.models.package import export_model

    with console.running() as sink:
        path = export_model(model, output, Places.of_user(), sink, overwrite=overwrite)
    n_bytes = path.stat().st_size
    console.answer({"path": str(path), "n_bytes": n_bytes}, f"{path} ({size_text(n_bytes)})")


def _exported(
    console: Console,
    model: str,
    output: Path,
    kind: ExportFormat,
    words: dict[str, Any],
    *,
    overwrite: bool,
) -> Exported:
    from lamella.core.places import Places
    from lamella.models.bioimage_options import BioimageOptions
    from lamella.workflows.model_export import export_graph

    options = BioimageOptions(words["authors"], words["licence"], words["tags"])
    with console.running() as sink:
        return export_graph(
            model, output, kind, Places.of_user(), sink, options=options, overwrite=overwrite
        )


def _text(exported: Exported) -> str:
    size = size_text(exported.n_bytes)
    if exported.difference is None:
        return f"{exported.path} ({size}), passed by BioImage.io's validator"
    return (
        f"{exported.path} ({size}), opset 18; logits differ from PyTorch's by"
        f" {exported.difference:.1g} at most"
    )
