"""``lamella detect``: findings with a name and a place, of images or of labels."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lamella.cli.console import Console, table
from lamella.cli.parameters import (
    answer_options,
    console_of,
    input_options,
    is_given,
    open_options,
    parse_options,
)
from lamella.core.errors import InputError, OutputExistsError

if TYPE_CHECKING:
    from lamella.wire.request import InputDoc
    from lamella.wire.vertebrae import VertebraReport
    from lamella.workflows.detect import DetectOptions
    from lamella.workflows.spine_detection import SpineDetection

__all__ = ["command"]

_FORMATS = ("json", "csv", "png", "nifti", "nrrd", "dicom-seg", "dicom-seg-labelmap")
_INPUT_WORDS = ("series", "dataset", "channel", "time", "axes", "spacing", "unit")


@click.group(name="detect")
def command() -> None:
    """Find named structures: where each lies, how large it is, and what is doubtful about it."""


@command.command(name="vertebrae")
@click.argument("image", required=False, type=click.Path(path_type=Path), metavar="[CT]")
@click.option(
    "-o",
    "--output",
    "outputs",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Write .json, .csv, .png (overview), labels (.nii.gz, .nrrd ...) or DICOM SEG (.dcm);"
    " may be given several times.",
)
@click.option(
    "--labels",
    type=click.Path(path_type=Path),
    help="Use this segmentation of the CT instead of running a model.",
)
@click.option(
    "--class-map",
    help="What the values of --labels mean: total, total_v3, total_v1, vertebrae_pp, vertebrae_mr,"
    " or a JSON file; as the file itself says unless given.",
)
@click.option("--format", "format_id", type=click.Choice(_FORMATS), help="Format of -o.")
@click.option(
    "--model",
    default="totalsegmentator:total",
    show_default=True,
    help="What segments the CT; totalsegmentator:total_v3 knows L6.",
)
@click.option("--fast", is_flag=True, help="Run the model at 3 mm: minutes instead of an hour.")
@click.option(
    "--option", "options", multiple=True, metavar="K=V", help="Option of the engine itself."
)
@click.option(
    "--modality",
    type=click.Choice(("auto", "CT", "MR"), case_sensitive=False),
    default="auto",
    help="Kind of image, where the file does not say.",
)
@click.option(
    "--margin",
    type=click.FloatRange(0, 100),
    default=2.0,
    show_default=True,
    metavar="MM",
    help="A vertebra nearer to the border of the image counts as incomplete.",
)
@click.option("--device", default="auto", help="auto, cpu, cuda, cuda:N.")
@click.option("--run-dir", type=click.Path(path_type=Path), help="Folder of the model's run.")
@click.option("--resume/--fresh", default=True, help="Go on with unfinished work, or start anew.")
@click.option("--overwrite", is_flag=True, help="Replace outputs that are there.")
@input_options
@answer_options
def vertebrae_command(
    image: Path | None,
    outputs: Sequence[Path],
    labels: Path | None,
    format_id: str | None,
    overwrite: bool,
    **words: Any,
) -> None:  # fmt: skip
    """Find the vertebrae of a CT: level, centre, volume, cut off or whole, and whether the levels
    follow each other along the spine.

    Without --labels the model runs first, in a run folder that can be resumed. Levels that are
    missing, double or exchanged are warnings that name their neighbours: models miscount in one or
    two of a hundred spines. Research use only; not a medical device.
    """  # noqa: D205 - click joins the lines
    from lamella.workflows.detect import detect_vertebrae

    console = console_of(words)
    _check_outputs(outputs, format_id, overwrite=overwrite)
    source = _source(image, words)
    options = _options(labels, words)
    on_stop = "finished work is kept" if labels is None else "nothing is written"
    with console.running(on_stop=on_stop) as sink:
        found = detect_vertebrae(source, options, sink=sink)
        written = [
            found.save(path, format=format_id, overwrite=overwrite, sink=sink) for path in outputs
        ]
    _answer(console, found, written)


def _check_outputs(outputs: Sequence[Path], format_id: str | None, *, overwrite: bool) -> None:
    """Say now what cannot be written, not after the model has run."""
    from lamella.workflows.spine_detection import check_output

    if format_id is not None and len(outputs) != 1:
        raise InputError(
            f"--format {format_id} is for one output, and there are {len(outputs)}",
            hint="let suffixes say it: -o spine.json -o spine.csv",
        )
    twice = sorted({str(path) for path in outputs if list(outputs).count(path) > 1})
    if twice:
        raise InputError(f"-o {twice[0]} is given twice", hint="give every output its own name")
    for path in outputs:
        check_output(path, format_id)
        if path.exists() and not overwrite:
            raise OutputExistsError(
                f"{path} is already there", hint="use --overwrite to replace it"
            )


def _source(image: Path | None, words: dict[str, Any]) -> "InputDoc | None":
    from lamella.wire.request import InputDoc, SpacingDoc

    if image is None:
        if is_given(words, *_INPUT_WORDS) or words.get("level"):
            raise InputError(
                "options of the input were given, but no image", hint="name the CT first"
            )
        open_options(words)
        return None
    chosen = open_options(words)
    names = [name for name in InputDoc.model_fields if name not in ("path", "spacing")]
    return InputDoc(
        path=str(image),
        spacing=None if chosen.spacing is None else SpacingDoc.of(chosen.spacing),
        **{name: getattr(chosen, name) for name in names},
    )


def _options(labels: Path | None, words: dict[str, Any]) -> "DetectOptions":
    from lamella.workflows.detect import DetectOptions

    if labels is not None and (is_given(words, "run_dir", "fast") or words["options"]):
        raise InputError(
            "--labels takes the place of the model: --run-dir, --fast and --option are for its run",
            hint="leave them out, or leave --labels out",
        )
    if labels is None and words["class_map"] is not None:
        raise InputError(
            "--class-map says what given labels mean; a model says it itself",
            hint="leave it out, or give --labels",
        )
    engine_options = parse_options(words["options"])
    if words["fast"]:
        engine_options["fast"] = True
    return DetectOptions(
        labels=labels,
        class_map=words["class_map"],
        model=words["model"],
        engine_options=engine_options,
        modality=words["modality"],
        margin_mm=words["margin"],
        device=words["device"],
        run_dir=words["run_dir"],
        fresh=not words["resume"],
    )


def _answer(console: Console, found: "SpineDetection", written: Sequence[Path]) -> None:
    outputs = found.report.outputs | {str(path): str(path) for path in written}
    report = found.report.model_copy(update={"outputs": outputs})
    console.answer(report, lambda: _text(report, console, written))


def _text(report: "VertebraReport", console: Console, written: Sequence[Path]) -> str:
    names = sorted(
        {name for v in report.vertebrae if v.confidence for name in v.confidence.measures}
    )
    shown = "probability" if "probability" in names else next(iter(names), None)
    headers = ["level", "x", "y", "z", "volume ml"] + ([shown] if shown else []) + ["remarks"]
    rows = []
    for known in report.vertebrae:
        remarks = [f"cut off ({', '.join(known.borders)})"] if known.is_incomplete else []
        remarks += [f"{known.n_components} pieces"] if known.n_components > 1 else []
        own = known.confidence
        sure = [None if own is None else own.measures.get(shown)] if shown else []
        rows.append(
            (
                known.level,
                *(f"{value:.1f}" for value in known.centroid_ras_mm),
                f"{known.volume_mm3 / 1000:.1f}",
                *sure,
                ", ".join(remarks),
            )
        )
    n = len(rows)
    title = f"{n} {'vertebra' if n == 1 else 'vertebrae'}; centres in mm, RAS"
    lines = [console.style(title, bold=True)]
    lines += [table(rows, headers)] if rows else []
    lines += [f"hint: {note.message}" for note in report.hints]
    lines.append(f"confidence: {report.confidence_note}")
    lines += [f"wrote {path}" for path in written]
    if report.labels.run:
        lines.append(f"run: {report.labels.run}")
    lines.append(report.notice)
    return "\n".join(lines)
