"""``lamella info``: what a file holds, and what is odd about it."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lamella.cli.console import Console
from lamella.cli.failure import EXIT_DEFECT, EXIT_INPUT
from lamella.cli.parameters import (
    answer_options,
    console_of,
    input_options,
    open_options,
    segment_option,
)
from lamella.core.errors import InputError, LamellaError

if TYPE_CHECKING:
    from lamella.io.format import OpenOptions
    from lamella.volume.volume import Volume

__all__ = ["command"]

_SHOWN = 20
"""Most entries of a list that are shown to people; JSON has them all."""


@click.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@input_options
@segment_option
@click.option(
    "--stats/--no-stats", default=True, show_default=True, help="Read the voxels for statistics."
)
@answer_options
def command(paths: Sequence[Path], stats: bool, **words: Any) -> int:
    """Say what each of PATHS holds: shape, axes, type, spacing, origin, orientation, levels,
    intensities, and whatever is odd about it.

    Spacing and origin are in the order z, y, x; orientation is x first, as viewers write it.
    Exit code 2 when any path cannot be read; the others are still described.
    """  # noqa: D205 - click joins the lines
    console = console_of(words)
    options = open_options(words)
    described = [_describe(path, options, is_counting=stats) for path in paths]
    console.answer(
        [_json_safe(item) for item in described],
        lambda: "\n\n".join(_render(item, console) for item in described),
    )
    codes = [item["problem"]["code"] for item in described if "problem" in item]
    if "internal_error" in codes:
        return EXIT_DEFECT
    return EXIT_INPUT if codes else 0


def _describe(path: Path, options: "OpenOptions", *, is_counting: bool) -> dict[str, Any]:
    """Facts about a path, or the problem with it."""
    try:
        return {"path": str(path), **_facts(path, options, is_counting=is_counting)}
    except LamellaError as error:
        problem = _problem(error)
    except MemoryError:
        problem = {
            "code": "out_of_memory",
            "message": "there is not enough memory to read this",
            "hint": "use --no-stats, or --level for a coarser level",
            "details": {},
        }
    except Exception as error:  # noqa: BLE001 - one defect must not hide the other files
        problem = {
            "code": "internal_error",
            "message": f"{type(error).__name__}: {error}",
            "hint": "this is a defect in Lamella: please report it",
            "details": {},
        }
    return {"path": str(path), "problem": problem}


def _problem(error: LamellaError) -> dict[str, Any]:
    return {
        "code": error.code,
        "message": error.message,
        "hint": error.hint,
        "details": error.details,
    }


def _facts(path: Path, options: "OpenOptions", *, is_counting: bool) -> dict[str, Any]:
    from dataclasses import replace

    from lamella.io.format import find_reader, list_contents, open_volume

    known = find_reader(path, options)
    options = replace(options, format=known.id)
    head: dict[str, Any] = {"format": known.id}
    is_chosen = options.dataset is not None or options.series is not None
    contents = () if is_chosen else list_contents(path)
    listed = [
        {
            "selector": entry.selector,
            "id": entry.id,
            "title": entry.title,
            "shape": list(entry.shape),
            "dtype": entry.dtype,
            "is_image": entry.is_image,
        }
        for entry in contents
    ]
    try:
        volume = open_volume(path, options)
    except InputError as error:
        # Several things of equal right: listing them is the answer, not a failure.
        if not listed or error.code != InputError.code:
            raise
        note = {"code": "choose", "message": f"{error.message}: {error.hint}"}
        return {**head, "contents": listed, "notes": [note]}
    facts = {**head, **_geometry_facts(volume), "header": dict(volume.metadata)}
    facts["notes"] = [{"code": note.code, "message": note.message} for note in volume.notes]
    facts["contents"] = listed
    if is_counting:
        try:
            facts["statistics"], found = _statistics(volume)
            facts["notes"] += found
        except LamellaError as error:
            # A sound header above damaged voxels: both are worth knowing.
            facts["problem"] = _problem(error)
    return facts


def _geometry_facts(volume: "Volume") -> dict[str, Any]:
    from lamella.io.frames import orientation_code
    from lamella.volume.labels import Labels

    affine, unit = volume.affine, volume.unit
    facts: dict[str, Any] = {
        "kind": "labels" if isinstance(volume, Labels) else "image",
        "name": volume.name,
        "shape": list(volume.shape),
        "axes": str(volume.axes),
        "dtype": str(volume.dtype),
        "n_bytes": volume.nbytes,
        "spacing": {"values": list(affine.spacing), "unit": unit},
        "is_calibrated": unit != "voxel",
        "origin": list(affine.origin),
        "direction": [list(row) for row in affine.direction],
        "frame": affine.frame,
        "orientation": orientation_code(affine),
        "extent": [s * n for s, n in zip(affine.spacing, volume.spatial_shape, strict=True)],
        "levels": [
            {
                "shape": list(level.shape),
                "spacing": list(level.affine.spacing),
                "origin": list(level.affine.origin),
            }
            for level in (volume, *volume.levels)
        ],
        "channels": list(volume.channel_names),
    }
    if isinstance(volume, Labels):
        facts["is_instance"] = volume.is_instance
        facts["classes"] = [{"value": item.value, "name": item.name} for item in volume.classes]
    return facts


def _statistics(volume: "Volume") -> tuple[dict[str, Any], list[dict[str, str]]]:
    """Statistics as a document, and what is odd about them."""
    from lamella.volume.statistics import PERCENTS, intensity_statistics

    result = intensity_statistics(volume)
    document = {
        "min": result.minimum,
        "max": result.maximum,
        "mean": result.mean,
        "std": result.std,
        "percentiles": {
            f"{percent:g}": value
            for percent, value in zip(PERCENTS, result.percentiles, strict=True)
        },
        "n_nonzero": result.n_nonzero,
        "n_nan": result.n_nan,
        "n_infinite": result.n_infinite,
        "n_voxels": result.n_voxels,
        "source": result.source,
        "is_complete": result.is_complete,
    }
    notes: list[dict[str, str]] = []
    n_bad = result.n_nan + result.n_infinite
    if n_bad:
        text = f"{n_bad} of {result.n_voxels} voxels are NaN or infinite"
        notes.append({"code": "not_finite", "message": text})
    if result.is_constant and n_bad < result.n_voxels:
        text = f"all voxels are {result.minimum:g}"
        notes.append({"code": "constant", "message": text})
    return document, notes


def _render(item: dict[str, Any], console: Console) -> str:
    title = console.style(item["path"], bold=True)
    rows = _rows(item) if "format" in item else []
    if "problem" in item:
        problem = item["problem"]
        rows.append(("error", f"{problem['message']} [{problem['code']}]"))
        if problem["hint"]:
            rows.append(("hint", problem["hint"]))
    width = max(len(name) for name, _ in rows)
    return "\n".join([title, *(f"  {name.ljust(width)}  {text}" for name, text in rows)])


def _rows(item: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [("format", item["format"])]
    if "shape" in item:
        rows += _geometry_rows(item)
    if "statistics" in item:
        rows += _statistics_rows(item["statistics"], item["kind"])
    rows += [("note" if i == 0 else "", n["message"]) for i, n in enumerate(item["notes"])]
    listed = item["contents"]
    for index, entry in enumerate(listed[:_SHOWN]):
        size = f"  {_times(entry['shape'])} {entry['dtype']}" if entry["shape"] else ""
        title = f"  ({entry['title']})" if entry["title"] not in ("", entry["id"]) else ""
        other = "" if entry["is_image"] else "  no image"
        text = f"--{entry['selector']} {entry['id']}{size}{title}{other}"
        rows.append(("contents" if index == 0 else "", text))
    if len(listed) > _SHOWN:
        rows.append(("", f"and {len(listed) - _SHOWN} more (--json lists all)"))
    return rows


def _geometry_rows(item: dict[str, Any]) -> list[tuple[str, str]]:
    unit = item["spacing"]["unit"]
    kind = item["kind"]
    if item.get("is_instance"):
        kind += " of instances"
    rows = [
        ("kind", kind),
        ("shape", f"{_times(item['shape'])} ({item['axes']})"),
        ("type", f"{item['dtype']}, {_megabytes(item['n_bytes'])}"),
    ]
    if item["is_calibrated"]:
        rows.append(("spacing", f"{_times(item['spacing']['values'])} {unit}"))
        rows.append(("extent", f"{_times(item['extent'])} {unit}"))
    else:
        rows.append(("spacing", "not calibrated"))
    if any(item["origin"]):
        rows.append(("origin", f"{', '.join(f'{v:.6g}' for v in item['origin'])} {unit}"))
    rows.append(("orientation", f"{item['orientation']} ({item['frame']} frame)"))
    if len(item["levels"]) > 1:
        rows.append(("levels", ", ".join(_times(level["shape"]) for level in item["levels"])))
    if item["channels"]:
        rows.append(("channels", ", ".join(item["channels"])))
    if item.get("classes"):
        named = [f"{c['value']} {c['name']}" for c in item["classes"]]
        more = " …" if len(named) > _SHOWN else ""
        rows.append(("classes", ", ".join(named[:_SHOWN]) + more))
    return rows


def _statistics_rows(statistics: dict[str, Any], kind: str) -> list[tuple[str, str]]:
    if statistics["n_voxels"] == statistics["n_nan"] + statistics["n_infinite"]:
        return [("intensity", f"no finite voxel ({statistics['source']})")]
    if kind == "labels":
        share = statistics["n_nonzero"] / statistics["n_voxels"]
        text = f"{statistics['min']:.0f} to {statistics['max']:.0f}, {share:.3%} foreground"
        return [("values", f"{text} ({statistics['source']})")]
    percentiles = ", ".join(f"{p} %: {v:.6g}" for p, v in statistics["percentiles"].items())
    source = statistics["source"]
    return [
        (
            "intensity",
            f"{statistics['min']:.6g} to {statistics['max']:.6g},"
            f" mean {statistics['mean']:.6g} ± {statistics['std']:.6g} ({source})",
        ),
        ("percentiles", percentiles),
    ]


def _times(values: Sequence[float]) -> str:
    return " x ".join(
        f"{value:.6g}" if isinstance(value, float) else str(value) for value in values
    )


def _megabytes(n_bytes: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n_bytes >= size:
            return f"{n_bytes / size:.3g} {unit}"
    return f"{n_bytes} bytes"


def _json_safe(value: Any) -> Any:
    """The value with what JSON cannot say (NaN, infinity, foreign types) as null or text."""
    if isinstance(value, dict):
        return {str(key): _json_safe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_safe(item) for item in value]
    if isinstance(value, float):
        return value if value - value == 0.0 else None
    if value is None or isinstance(value, str | int):
        return value
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
        return _json_safe(value.item())
    return _json_safe(value.tolist()) if hasattr(value, "tolist") else str(value)
