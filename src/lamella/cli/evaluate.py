"""``lamella evaluate``: how well labels agree with a reference."""

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lamella.cli.console import table
from lamella.cli.parameters import answer_options, console_of, input_options, open_options
from lamella.core.errors import InputError

if TYPE_CHECKING:
    from lamella.volume.labels import Labels
    from lamella.volume.spacing import Unit

__all__ = ["command"]


@click.command()
@click.argument("prediction", type=click.Path(path_type=Path))
@click.argument("reference", type=click.Path(path_type=Path))
@click.option("--classes", metavar="1,2|NAME,...", help="Score these classes only.")
@click.option("--instances/--semantic", default=None, help="Whether labels are objects or classes.")
@click.option(
    "--tolerance", metavar="LENGTH", help="For surface Dice: 2nm, 0.5um; default 1 voxel."
)
@click.option("--ignore-label", type=int, help="Leave out voxels with this reference label.")
@click.option("--surface/--no-surface", default=True, help="Surface distances.")
@click.option("--reference-dataset", help="Dataset inside REFERENCE, where it differs.")
@input_options
@answer_options
def command(prediction: Path, reference: Path, reference_dataset: str | None, **words: Any) -> None:
    """Compare PREDICTION with REFERENCE: Dice, IoU, HD95, NSD per class; with --instances also
    AP, PQ, VOI, adapted Rand, splits and merges.

    Both must lie on the same grid. What cannot be measured, such as the Dice of a class that is
    in neither, is shown as "-" (null in JSON).
    """  # noqa: D205 - click joins the lines
    from lamella.evaluation import ComparisonOptions, compare_labels
    from lamella.io.format import open_labels

    console = console_of(words)
    options = open_options(words)
    ours = open_labels(prediction, options)
    if reference_dataset is not None:
        options = replace(options, dataset=reference_dataset)
    theirs = open_labels(reference, options)
    instances = words["instances"]
    chosen = ComparisonOptions(
        classes=_classes(words["classes"], theirs),
        instances=(ours.is_instance or theirs.is_instance) if instances is None else instances,
        surfaces=words["surface"],
        tolerance=_tolerance(words["tolerance"], theirs.unit),
        ignore_label=words["ignore_label"],
    )
    with console.running() as sink:
        comparison = compare_labels(ours, theirs, chosen, sink=sink)
    console.answer(comparison.to_dict(), lambda: _text(comparison.to_values()))


def _classes(text: str | None, reference: "Labels") -> list[int] | None:
    """``"1,2"`` or names, as class ids.

    Raises:
        InputError: for a name that the reference does not know.
    """
    if text is None:
        return None
    names = {known.name: known.value for known in reference.classes}
    values = []
    for part in text.split(","):
        word = part.strip()
        if word in names:
            values.append(names[word])
        elif word.isdigit():
            values.append(int(word))
        else:
            raise InputError(
                f"there is no class {word!r} in the reference",
                hint=f"its classes are {', '.join(names)}" if names else "write numbers: 1,2",
            )
    return values


def _tolerance(text: str | None, unit: "Unit") -> float | None:
    """A length in ``unit``; a bare number is in it already.

    Raises:
        InputError: when it is no length.
        GeometryError: for a physical length where the reference has no spacing.
    """
    from lamella.volume.spacing import convert_length, parse_unit

    if text is None:
        return None
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*([a-zA-Zµμå]*)\s*", text)
    if match is None:
        raise InputError(f"cannot read tolerance {text!r}", hint="write 2nm, 0.5um or 3")
    value, word = float(match.group(1)), match.group(2)
    if not word:
        return value
    known, factor = parse_unit(word)
    return convert_length(value * factor, known, unit)


def _text(values: dict[str, Any]) -> str:
    """Tables for people."""
    unit = values["unit"] if values["unit"] != "voxel" else "vox"
    heads = {
        "name": "class", "dice": "Dice", "iou": "IoU", "precision": "precision",
        "recall": "recall", "hd95": f"HD95 {unit}", "assd": f"ASSD {unit}",
        "nsd": f"NSD@{values['tolerance']:.4g}{unit}",
    }  # fmt: skip
    rows = values["classes"]
    if not rows:
        return "no classes: every label on both sides is 0"
    shown = [key for key in heads if key in rows[0]]
    lines = [table([[_cell(row[key]) for key in shown] for row in rows], [heads[k] for k in shown])]
    if len(rows) > 1:
        lines.append(f"mean Dice {_cell(values['mean_dice'])}, IoU {_cell(values['mean_iou'])}")
    lines.append(f"accuracy {_cell(values['accuracy'])} of all voxels, background included")
    if "instances" in values:
        lines += ["", _instances_text(values["instances"])]
    return "\n".join(lines)


def _instances_text(scores: dict[str, Any]) -> str:
    matchings = [
        [m["threshold"], m["true_positives"], m["false_positives"], m["false_negatives"]]
        + [_cell(m[key]) for key in ("average_precision", "precision", "recall", "f1")]
        for m in scores["matchings"]
        if m["threshold"] in (0.5, 0.75, 0.9)
    ]
    heads = ["IoU ≥", "found", "false", "missed", "AP", "precision", "recall", "F1"]
    return "\n".join(
        [
            f"{scores['n_prediction']} objects predicted, {scores['n_reference']} in the reference;"
            f" {scores['n_splits']} splits, {scores['n_merges']} merges",
            table(matchings, heads),
            f"mean AP (0.5 to 0.95) {_cell(scores['mean_average_precision'])},"
            f" panoptic quality {_cell(scores['panoptic_quality'])}",
            f"VOI {_cell(scores['voi'])} = split {_cell(scores['voi_split'])}"
            f" + merge {_cell(scores['voi_merge'])} bits,"
            f" adapted Rand error {_cell(scores['adapted_rand_error'])}",
        ]
    )


def _cell(value: Any) -> Any:
    """A number for people."""
    if isinstance(value, float):
        if math.isnan(value):
            return "-"
        return f"{value:.4f}" if abs(value) < 100 else f"{value:.1f}"
    return value
