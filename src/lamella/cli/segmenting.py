"""What ``segment``, ``preview`` and ``resume`` share: options of a request, and the last words."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from lamella.cli.console import Console, format_duration
from lamella.cli.parameters import parse_integers, parse_options, parse_spacing, stack_options
from lamella.core.errors import InputError, LamellaError, RunCancelledError

if TYPE_CHECKING:
    from lamella.wire.manifest import RunManifest
    from lamella.wire.request import SegmentRequest, SizeDoc
    from lamella.workflows.run import Run

__all__ = [
    "build_request",
    "objects_options",
    "request_options",
    "run_document",
    "run_text",
    "stopped",
    "tell_problem",
    "trust_option",
]

F = TypeVar("F", bound=Callable[..., Any])

_REQUEST_OPTIONS = (
    click.option("--model", required=True, help="Model id, model folder, or classical:METHOD."),
    click.option("--engine", help="Choose among engines that can run the model."),
    click.option(
        "--option", "options", multiple=True, metavar="K=V", help="Option of the engine itself."
    ),
    click.option("--tile", metavar="Z,Y,X", help="Tile in voxels; the model's own unless given."),
    click.option(
        "--overlap-fraction",
        type=click.FloatRange(0, 1, max_open=True),
        metavar="F",
        help="Share of a tile that it has in common with its neighbour.",
    ),
    click.option(
        "--tta/--no-tta",
        default=None,
        help="Average over mirrored copies (slower, steadier); the card decides unless given.",
    ),
    click.option(
        "--precision",
        type=click.Choice(("auto", "fp32", "bf16", "fp16")),
        default="auto",
        help="Of the network; auto is fp32 on the CPU.",
    ),
    click.option("--device", default="auto", help="auto, cpu, cuda, cuda:N."),
    click.option("--deterministic", is_flag=True, help="Bit-identical on CUDA too (slower)."),
    click.option(
        "--modality",
        type=click.Choice(("auto", "CT", "MR"), case_sensitive=False),
        default="auto",
        help="Kind of medical image, where the file does not say.",
    ),
)

_OBJECTS_OPTIONS = (
    click.option(
        "--instances",
        type=click.Choice(
            (
                "auto", "none", "components", "watershed",
                "slices", "hybrid", "volumetric", "ortho",
            )
        ),
        default="auto",
        help="Number single objects; auto leaves the labels as the model makes them. In 3-D from"
        " a 2-D model: slices, hybrid (linked, what auto does) or ortho (three planes).",
    ),
    click.option(
        "--min-overlap-ratio",
        type=click.FloatRange(0, 1, min_open=True),
        metavar="F",
        help="Linking: least overlap of two slices of an object (0.3).",
    ),
    click.option(
        "--max-distance-z",
        type=click.IntRange(1, 16),
        metavar="N",
        help="Linking: slices from one part of an object to the next (2 = one may be missing).",
    ),
    click.option(
        "--max-centroid-distance",
        metavar="N[UNIT]",
        help="Linking: how far an object's centre may move from slice to slice.",
    ),
    click.option(
        "--seed-distance", metavar="N[UNIT]", help="Watershed: seeds nearer than this join."
    ),
    click.option("--min-size", metavar="N[UNIT3]", help="Remove smaller objects: 200 or 500nm3."),
    click.option("--fill-holes", is_flag=True, help="Fill holes in objects."),
    click.option("--keep-largest", is_flag=True, help="Keep the largest object of every class."),
    click.option(
        "--confidence", is_flag=True, help="Also tell how sure the model is of every object."
    ),
)  # fmt: skip

_RESTORE_OPTIONS = (
    click.option(
        "--restore",
        type=click.Choice(("none", "auto", "denoise", "deblur")),
        help="Restore the image before it is segmented; it is measured as it came.",
    ),
    click.option(
        "--restore-method",
        type=click.Choice(
            ("auto", "blind_spot", "non_local_means", "richardson_lucy", "cellpose3")
        ),
        default="auto",
        help="How; auto decides from the image.",
    ),
    click.option(
        "--restore-strength",
        type=click.FloatRange(0, min_open=True),
        metavar="F",
        help="Of the method, 1 = as estimated.",
    ),
    click.option("--psf-sigma", metavar="N[UNIT]", help="Deblurring: width of the Gaussian blur."),
    click.option("--psf", type=click.Path(), help="Deblurring: a measured point spread function."),
)


def trust_option(function: F) -> F:
    """Add ``--trust``: whether code that comes with a model may be run."""
    return click.option(
        "--trust",
        is_flag=True,
        help="Run code and pickles that come with the model: only for sources you know.",
    )(function)


def objects_options(function: F) -> F:
    """Add the options about objects, confidence and restoration."""
    return stack_options((*_OBJECTS_OPTIONS, *_RESTORE_OPTIONS), function)


def request_options(function: F) -> F:
    """Add the options that say with what, and how, an input is segmented."""
    return stack_options(_REQUEST_OPTIONS, function)


def build_request(path: Path, words: dict[str, Any]) -> "SegmentRequest":
    """The request of one input.

    Args:
        path: the input.
        words: options of :func:`request_options`, of ``input_options`` and, where the command has
            them, of objects and cleaning. Left as they are.

    Raises:
        InputError: for options that cannot be used.
    """
    from lamella.workflows.api import make_request

    spacing = parse_spacing(words["spacing"], words["unit"])
    selectors = ("dataset", "series", "level", "channel", "time", "axes", "resample_irregular")
    plain = (
        "engine",
        "overlap_fraction",
        "tta",
        "precision",
        "device",
        "deterministic",
        "modality",
    )
    objects = ("preview", "instances", "fill_holes", "keep_largest", "confidence", "seed")
    options: dict[str, Any] = {
        name: words[name] for name in (*selectors, *plain, *objects) if name in words
    }
    options |= {
        "spacing": spacing,
        "options": parse_options(words["options"]),
        "tile": parse_integers(words["tile"], what="--tile"),
        "min_size": _size(words.get("min_size")),
        "seed_distance": _length(words.get("seed_distance")),
        "linking": _linking(words),
        "restore": _restore(words),
    }
    return make_request(path, words["model"], options)


def _linking(words: dict[str, Any]) -> dict[str, Any]:
    """How slices are linked, as far as it was said."""
    given = {
        "min_overlap_ratio": words.get("min_overlap_ratio"),
        "max_distance_z": words.get("max_distance_z"),
        "max_centroid_distance": _length(words.get("max_centroid_distance")),
    }
    return {name: value for name, value in given.items() if value is not None}


def _restore(words: dict[str, Any]) -> dict[str, Any] | None:
    """How the image is restored; None where nothing was asked for.

    Raises:
        InputError: for details of a restoration that was not asked for.
    """
    given = {
        "strength": words.get("restore_strength"),
        "psf_sigma": _length(words.get("psf_sigma")),
        "psf": words.get("psf"),
    }
    details = {name: value for name, value in given.items() if value is not None}
    method = words.get("restore_method") or "auto"
    mode = words.get("restore")
    if mode is None:
        if details or method != "auto":
            raise InputError(
                "the restoration is described, but not asked for",
                hint="add --restore auto, denoise or deblur",
            )
        return None
    return {"mode": mode, "method": method, **details}


def run_document(run: "Run") -> dict[str, Any]:
    """The answer about a run for programs."""
    manifest = run.manifest
    labels = manifest.labels
    return {
        "run": str(run.folder),
        "status": manifest.status,
        "was_finished": run.was_finished,
        "input": manifest.request.input.path,
        "model": manifest.model.id,
        "labels": str(run.folder / "labels.ome.zarr"),
        "labels_sha256": None if labels is None else labels.sha256,
        "n_objects": None if labels is None else labels.n_objects,
        "n_foreground_voxels": None if labels is None else labels.n_foreground_voxels,
        "confidence": manifest.confidence,
        "objects": str(run.folder / "objects.csv"),
        "report": str(run.report),
        "export": manifest.outputs.get("export"),
        "tiles_done": manifest.tiles_done,
        "tiles_planned": manifest.tiles_planned,
        "elapsed_s": manifest.elapsed_s,
        "timings_s": manifest.timings_s,
        "warnings": [note.model_dump() for note in manifest.warnings],
    }


def tell_problem(path: Path, error: LamellaError, console: Console) -> dict[str, Any]:
    """Say why one input of many was not segmented; the answer about it for programs."""
    console.warn(f"{path}: {error.message}" + (f" ({error.hint})" if error.hint else ""))
    return {
        "input": str(path),
        "code": error.code,
        "message": error.message,
        "hint": error.hint,
        "details": error.details,
    }


def run_text(run: "Run", console: Console) -> str:
    """The answer about a run for people."""
    manifest = run.manifest
    head = "finished before, nothing to do" if run.was_finished else "finished"
    rows = [
        ("labels", str(run.folder / "labels.ome.zarr")),
        ("objects", f"{_found(manifest)}: {run.folder / 'objects.csv'}"),
        ("report", str(run.report)),
    ]
    if manifest.confidence is not None:
        from lamella.workflows.confidence import confidence_sentence

        rows.append(("sure", confidence_sentence(manifest.confidence)))
    if export := manifest.outputs.get("export"):
        rows.append(("written", export))
    rows.append(("time", _time(manifest)))
    title = console.style(f"{_name(manifest)}: {head}", bold=True)
    return "\n".join([title, *(f"  {name:<8} {value}" for name, value in rows)])


def stopped(error: RunCancelledError, folder: Path) -> RunCancelledError:
    """The error of a stopped run, with the command that goes on."""
    from lamella.workflows.run_folder import RunFolder

    if not RunFolder(folder).manifest.exists():
        return RunCancelledError("nothing was done yet", hint="run the same command again")
    return RunCancelledError(
        f"finished work is kept in {folder}",
        hint=f"lamella resume {folder}   goes on (or the same command again)",
    )


def _found(manifest: "RunManifest") -> str:
    labels = manifest.labels
    if labels is None:
        return "?"
    share = 100 * labels.n_foreground_voxels / max(1, math.prod(labels.shape))
    what = "image" if len(labels.shape) == 2 else "volume"
    return f"{labels.n_objects:,} ({share:.3g} % of the {what})"


def _name(manifest: "RunManifest") -> str:
    return Path(manifest.request.input.path).name


def _time(manifest: "RunManifest") -> str:
    preview = manifest.timings_s.get("preview")
    first = "" if preview is None else f", preview after {format_duration(preview)}"
    return format_duration(manifest.elapsed_s) + first


def _size(text: str | None) -> "SizeDoc | None":
    """``"200"`` or ``"500nm3"``."""
    from lamella.volume.spacing import Size
    from lamella.wire.request import SizeDoc

    if text is None:
        return None
    size = Size.parse(text)
    return SizeDoc(value=size.value, unit=size.unit)


def _length(text: str | None) -> "SizeDoc | None":
    """``"12"`` (voxels) or ``"40nm"``."""
    from lamella.volume.spacing import Spacing
    from lamella.wire.request import SizeDoc

    if text is None:
        return None
    length = Spacing.parse(text)
    return SizeDoc(value=length.values[0], unit=length.unit)
