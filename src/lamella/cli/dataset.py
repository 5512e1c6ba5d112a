"""``lamella dataset``: training data, checked, split, converted, and for other programs."""

from pathlib import Path
from typing import Any

import click

from lamella.cli.dataset_check import check, index, split
from lamella.cli.dataset_convert import convert
from lamella.cli.parameters import answer_options, console_of

__all__ = ["command"]


@click.group(name="dataset")
def command() -> None:
    """Check, split and convert images and labels to train on."""


command.add_command(check)
command.add_command(index)
command.add_command(split)
command.add_command(convert)


@command.command(short_help="Write a data set for nnU-Net.")
@click.argument("images", type=click.Path(path_type=Path))
@click.argument("labels", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder to write: .../nnUNet_raw/DatasetXXX_Name.",
)
@click.option(
    "--format",
    "format_id",
    type=click.Choice(["nnunet"]),
    default="nnunet",
    show_default=True,
    help="For whom.",
)
@click.option(
    "--channel-name",
    "channels",
    multiple=True,
    metavar="NAME",
    help="Name of a channel, in order; nnU-Net normalises CT, noNorm, rescale_to_0_1 and"
    " rgb_to_0_1 by these names, all others by z-score.",
)
@click.option(
    "--class",
    "classes",
    multiple=True,
    metavar="VALUE=NAME",
    help="Name of a label value; from the files unless given.",
)
@click.option("--ignore", type=int, metavar="VALUE", help="Label of voxels nobody annotated.")
@click.option("--spacing", metavar="Z,Y,X", help="Replaces the spacing of all files.")
@click.option("--unit", metavar="U", help="Unit of --spacing: nm, um, mm, A.")
@click.option("--overwrite", is_flag=True, help="Replace the data set if it is there.")
@answer_options
def export(images: Path, labels: Path, output: Path, **words: Any) -> None:
    """Write IMAGES and LABELS (two files, or two folders whose files have the same names) as a
    data set that nnU-Net v2 plans and trains on. Labels become 0, 1, 2, ...; spacing is kept.
    """  # noqa: D205 - click joins the lines
    from lamella.training.nnunet_folder import ExportOptions, export_nnunet, find_cases
    from lamella.volume.spacing import Spacing

    console = console_of(words)
    spacing = None if words["spacing"] is None else Spacing.parse(words["spacing"], words["unit"])
    options = ExportOptions(
        channels=words["channels"],
        classes=_classes(words["classes"]),
        ignore=words["ignore"],
        spacing=spacing,
        overwrite=words["overwrite"],
    )
    with console.running(on_stop="nothing is written") as sink:
        done = export_nnunet(find_cases(images, labels), output, options, sink)
    document = {
        "folder": str(done.folder),
        "n_cases": done.n_cases,
        "labels": dict(done.labels),
        "values": {str(before): after for before, after in done.values.items()},
        "spacing_unit": done.unit,
    }
    number = int(output.name[7:10])
    lines = [
        f"{done.folder}: {done.n_cases} case(s), labels "
        + ", ".join(f"{value} {name}" for name, value in done.labels.items()),
        f"next: nnUNetv2_plan_and_preprocess -d {number} --verify_dataset_integrity, then"
        f" nnUNetv2_train {number} 3d_fullres 0",
    ]
    if done.unit not in ("mm", "voxel"):
        lines.insert(1, f"spacing is written in {done.unit} (dataset.json says so)")
    console.answer(document, "\n".join(lines))


def _classes(words: tuple[str, ...]) -> dict[int, str] | None:
    named: dict[int, str] = {}
    for word in words:
        value, equals, name = word.partition("=")
        if not equals or not value.strip().isdecimal() or not name.strip():
            raise click.BadParameter(
                f"{word!r} is not VALUE=NAME, such as 1=membrane", param_hint="--class"
            )
        named[int(value)] = name.strip()
    return named or None
