"""``lamella cellmap``: data of the CellMap segmentation challenge."""

from __future__ import annotations

import json
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lamella.cli.console import format_duration, table
from lamella.cli.parameters import answer_options, console_of, parse_integers, parse_spacing

if TYPE_CHECKING:
    from lamella.training.cellmap.grid import Triple
    from lamella.training.cellmap.index import CellmapIndex
    from lamella.training.cellmap.predict import CellmapPrediction, PredictOptions
    from lamella.training.cellmap.score import CellmapScore

__all__ = ["command"]


@click.group(name="cellmap")
def command() -> None:
    """Data of the CellMap segmentation challenge: look at them, train, predict, score, submit."""


@command.command(name="index")
@click.argument("root")
@click.option(
    "--voxel-size",
    metavar="Z,Y,X[UNIT]",
    help="Also say which levels are nearest to this voxel size (nm unless a unit is given).",
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Also write the answer here, as JSON."
)
@click.option("--overwrite", is_flag=True, help="Replace the output where it is there.")
@answer_options
def index_command(
    root: str, *, voxel_size: str | None, output: Path | None, overwrite: bool, **words: Any
) -> None:
    """List data sets, crops and classes below ROOT (a folder or s3:// address), in nanometres.

    A class of a crop is present, absent (annotated, no voxels) or unknown (nobody looked).
    """
    from lamella.core.errors import OutputExistsError
    from lamella.io.format import storage_errors
    from lamella.training.cellmap.index import index_cellmap

    console = console_of(words)
    if output is not None and output.exists() and not overwrite:
        raise OutputExistsError(f"{output} is already there", hint="use --overwrite to replace it")
    spacing = _spacing(voxel_size)
    with console.running() as sink:
        index = index_cellmap(root, sink=sink)
    document = index.to_dict(spacing=spacing)
    if output is not None:
        with storage_errors(output):
            part = output.with_name(f".{output.name}.part")
            part.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
            part.replace(output)
    for finding in index.findings:
        console.warn(f"{finding.path}: {finding.message}")
    console.answer(document, lambda: _text(index, spacing))


@command.command(name="predict")
@click.argument("model")
@click.argument("root")
@click.option(
    "-o", "--output", required=True, metavar="OUT.zarr", type=click.Path(path_type=Path),
    help="Folder for the predictions; what is finished there is kept.",
)  # fmt: skip
@click.option(
    "--manifest",
    type=click.Path(path_type=Path),
    help="Predict the crops of this list, such as test_crop_manifest.csv, on its voxels.",
)
@click.option(
    "--crop", "--crops", "crops", multiple=True, metavar="cropN,…", help="Only these (patterns)."
)
@click.option(
    "--class", "--classes", "classes", multiple=True, metavar="NAME,…", help="Only these classes."
)
@click.option(
    "--instances",
    type=click.Choice(("auto", "components", "watershed", "none")),
    default="auto",
    help="How single objects are made; auto: as the model tells, else connected pieces.",
)
@click.option("--min-size", metavar="N[nm3]", help="Drop smaller objects: voxels, or 2e6nm3.")
@click.option("--seed-distance", metavar="N[nm]", help="Watershed: seeds nearer than this join.")
@click.option("--tile", metavar="Z,Y,X", help="Tile in voxels; the model's own unless given.")
@click.option(
    "--overlap-fraction",
    type=click.FloatRange(0, 1, max_open=True),
    metavar="F",
    help="Share of a tile that it has in common with its neighbour.",
)
@click.option("--device", default="auto", help="auto, cpu, cuda, cuda:N.")
@click.option(
    "--precision",
    type=click.Choice(("auto", "fp32", "bf16", "fp16")),
    default="auto",
    help="Of the network; auto is fp32 on the CPU.",
)
@click.option(
    "--threads", type=click.IntRange(min=1), metavar="N", help="Of the network, on a CPU."
)
@click.option("--overwrite", is_flag=True, help="Replace what another model or options left.")
@answer_options
def predict_command(model: str, root: str, output: Path, **words: Any) -> None:
    """Predict crops of ROOT with MODEL: an id, a model folder or the folder of a training.

    Every class of every annotated crop (or of --manifest) is written as its own array,
    OUT.zarr/DATASET.zarr/cropN/CLASS, which `score` and `pack` read. What is finished is not
    predicted again: after a stop, run the same line.
    """
    from lamella.core.places import Places
    from lamella.models.store import find_model
    from lamella.training.cellmap.manifest import read_manifest
    from lamella.training.cellmap.predict import predict_cellmap

    console = console_of(words)
    manifest: Path | None = words["manifest"]
    options = _predict_options(words)
    wanted = None if manifest is None else read_manifest(manifest)
    folder = find_model(model, Places.of_user())
    with console.running(on_stop="what is finished stays; the same line goes on") as sink:
        made = predict_cellmap(folder, root, output, wanted=wanted, options=options, sink=sink)
    for warning in made.warnings:
        console.warn(warning)
    console.answer(made.to_dict(), lambda: _predict_text(made))


@command.command(
    name="train",
    context_settings={"ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def train_command(context: click.Context, words: tuple[str, ...]) -> Any:
    """Train on CellMap data: `lamella train cellmap_base …`, with all of its words.

    Another configuration (cellmap_cos7, cellmap_mito, a YAML file) may be named first.
    """
    from lamella.cli.train import command as train

    arguments = list(words)
    with train.make_context("train", list(words), context.parent, resilient_parsing=True) as seen:
        config = seen.params.get("config")
    if config is None or "=" in config:
        arguments.insert(0, "cellmap_base")
    with train.make_context("train", arguments, context.parent) as inner:
        return train.invoke(inner)


@command.command(name="score")
@click.argument("predictions")
@click.argument("root")
@click.option("--class", "classes", multiple=True, metavar="NAME", help="Score these classes only.")
@click.option("--crop", "crops", multiple=True, metavar="cropN", help="Score these crops only.")
@answer_options
def score_command(
    predictions: str, root: str, *, classes: tuple[str, ...], crops: tuple[str, ...], **words: Any
) -> None:
    """Score PREDICTIONS of the annotated crops in ROOT with the challenge's own formula.

    PREDICTIONS holds DATASET.zarr/cropN/CLASS or cropN/CLASS. Semantic classes: IoU of all voxels.
    Instances: sqrt(F1 x closeness of shapes). A class that was not predicted scores 0.
    """
    from lamella.training.cellmap.score import score_cellmap

    console = console_of(words)
    with console.running() as sink:
        score = score_cellmap(predictions, root, classes=classes, crops=crops, sink=sink)
    for crop in score.crops:
        if crop.is_missing:
            console.warn(f"{crop.label.crop}/{crop.label.name} was not predicted")
    for known in score.official.classes.values():
        for problem in known.problems:
            console.warn(f"{known.name}: a crop was given up: {problem}")
    console.answer(score.to_dict(), lambda: _score_text(score))


@command.command(name="pack")
@click.argument("predictions")
@click.argument("target", metavar="OUT.zip", type=click.Path(path_type=Path))
@click.option(
    "--manifest",
    required=True,
    type=click.Path(path_type=Path),
    help="The challenge's test_crop_manifest.csv: which classes of which crops, on which grid.",
)
@click.option("--allow-missing", is_flag=True, help="Pack what there is; the rest scores 0.")
@click.option("--overwrite", is_flag=True, help="Replace OUT.zip where it is there.")
@answer_options
def pack_command(
    predictions: str,
    target: Path,
    *,
    manifest: Path,
    allow_missing: bool,
    overwrite: bool,
    **words: Any,
) -> None:
    """Pack PREDICTIONS as a submission: checked, brought to the wanted grids, ids kept."""
    from lamella.training.cellmap.manifest import read_manifest
    from lamella.training.cellmap.pack import pack_submission

    console = console_of(words)
    wanted = read_manifest(manifest)
    with console.running() as sink:
        made = pack_submission(
            predictions, wanted, target,
            allow_missing=allow_missing, overwrite=overwrite, sink=sink,
        )  # fmt: skip
    if made.missing:
        console.warn(f"not predicted, will score 0: {', '.join(made.missing)}")
    if made.empty:
        console.warn(f"no voxel at all: {', '.join(made.empty)}")
    document = {
        "path": str(made.path),
        "n_labels": made.n_labels,
        "missing": list(made.missing),
        "empty": list(made.empty),
        "n_bytes": made.n_bytes,
    }
    console.answer(document, f"{made.n_labels} labels in {made.path} ({made.n_bytes / 1e6:.1f} MB)")


def _predict_options(words: dict[str, Any]) -> PredictOptions:
    from lamella.training.cellmap.machine import NetworkOptions
    from lamella.training.cellmap.objects import ObjectOptions
    from lamella.training.cellmap.predict import PredictOptions
    from lamella.volume.spacing import Size

    seed = _spacing(words["seed_distance"])
    return PredictOptions(
        network=NetworkOptions(
            tile=parse_integers(words["tile"], what="--tile"),
            overlap_fraction=words["overlap_fraction"],
            device=words["device"],
            precision=words["precision"],
            n_threads=words["threads"],
        ),
        objects=ObjectOptions(
            method=words["instances"],
            min_size=Size(0) if words["min_size"] is None else Size.parse(words["min_size"]),
            seed_distance_nm=None if seed is None else seed[0],
        ),
        crops=_names(words["crops"]),
        classes=_names(words["classes"]),
        overwrite=words["overwrite"],
    )


def _names(words: tuple[str, ...]) -> tuple[str, ...]:
    """Names that were given one by one, or several with commas between."""
    return tuple(name.strip() for word in words for name in word.split(",") if name.strip())


def _predict_text(made: CellmapPrediction) -> str:
    rows = []
    for one in made.labels:
        grid = one.label.grid
        rows.append(
            (
                f"{one.label.data_set}/{one.label.crop}",
                one.label.name,
                " x ".join(map(str, grid.shape)),
                _size(grid.spacing),
                "" if one.n_objects is None else one.n_objects,
                "was there" if one.was_there else "written",
            )
        )
    n_new = sum(not one.was_there for one in made.labels)
    where = f" on {made.device}" if made.device else ""
    last = f"{n_new} of {len(made.labels)} predicted{where} in {format_duration(made.wall_s)}"
    titles = ("crop", "class", "voxels", "nm", "objects", "")
    return "\n".join([table(rows, titles), "", f"{last}: {made.path}"])


def _score_text(score: CellmapScore) -> str:
    rows = []
    for name, known in score.official.classes.items():
        strict = score.strict.classes[name].score
        rows.append(
            (
                name,
                "instances" if known.is_instance else "semantic",
                f"{known.score:.4f}",
                f"{strict:.4f}" if known.is_instance else "",
                "" if known.f1 is None else f"{known.f1:.4f}",
                "" if known.closeness is None else f"{known.closeness:.4f}",
                known.n_crops,
            )
        )
    titles = ("class", "kind", "score", "strict", "F1", "closeness", "crops")
    lines = [table(rows, titles), ""]
    for title, known in (("official", score.official), ("strict", score.strict)):
        values = (("instances", known.instance), ("semantic", known.semantic))
        parts = [f"{what} {value:.4f}" for what, value in values if isfinite(value)]
        whole = f"   overall {known.overall:.4f}" if len(parts) == 2 else ""
        lines.append(f"{title:<9} {'   '.join(parts)}{whole}")
    return "\n".join(lines)


def _spacing(text: str | None) -> Triple | None:
    if text is None:
        return None
    has_unit = any(letter.isalpha() for letter in text)
    known = parse_spacing(text, None if has_unit else "nm")
    assert known is not None, "a text gives a spacing"
    values = known.to("nm").values
    z, y, x = values if len(values) == 3 else (values[0],) * 3
    return z, y, x


def _text(index: CellmapIndex, spacing: Triple | None) -> str:
    lines = []
    for known in index.data_sets:
        raw = " ".join(_size(level.grid.spacing) for level in known.raw) or "none fetched"
        lines.append(f"{known.name}: raw levels {raw} nm")
        rows = []
        for crop in known.crops:
            finest = crop.classes[0].levels[0].grid
            holes = f"{crop.raw_missing[0]} of {crop.raw_chunks[0]}" if crop.raw_missing else "-"
            present = " ".join(c.name for c in crop.classes if c.status == "present")
            absent = " ".join(c.name for c in crop.classes if c.status == "absent")
            shape = " x ".join(map(str, finest.shape))
            rows.append((crop.name, shape, _size(finest.spacing), present, absent, holes))
        titles = ("crop", "labels", "nm", "present", "annotated, absent", "raw chunks missing")
        lines += ["", table(rows, titles), ""]
        if spacing is not None:
            lines += [*_choices(index, spacing), ""]
    return "\n".join(lines).rstrip()


def _choices(index: CellmapIndex, spacing: Triple) -> list[str]:
    document = index.to_dict(spacing=spacing)
    chosen = []
    for data_set in document["data_sets"]:
        picks = [data_set["raw_choice"]]
        picks += [c["choice"] for crop in data_set["crops"] for c in crop["classes"].values()]
        for pick in picks:
            if pick is not None:
                far = "  (resampled by more than a quarter)" if pick["is_resampled_far"] else ""
                chosen.append(f"  {pick['path']}{far}")
    return [f"nearest to {_size(spacing)} nm:", *chosen]


def _size(spacing: Triple) -> str:
    return "x".join(f"{value:g}" for value in spacing)
