"""Tasks, classes and weights of the installed version, for people and programs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lamella.core.errors import MissingDependencyError
from lamella.engines.totalsegmentator.licence import LICENSED, OPEN_LICENCE, WHERE
from lamella.engines.totalsegmentator.package import Package, Task, describe_package
from lamella.engines.totalsegmentator.weights import Weights, find_weights

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lamella.core.places import Places

__all__ = ["list_models", "show"]

_ENGINE = "totalsegmentator"


def list_models(places: Places) -> tuple[dict[str, Any], ...]:
    """Every task of the installed version, as plain values, for lists.

    Args:
        places: where the environment and weights lie.

    Returns:
        For each: id, title, modality, licence, is_licensed, classes (value to name), spacing_mm
        (z, y, x; None = the input's own), modes, datasets by mode (with folder, url, and whether
        the weights are here). Empty where the environment is not ready.
    """
    try:
        package = describe_package(places)
    except MissingDependencyError:
        return ()
    weights = find_weights(places)
    return tuple(_entry(package, task, weights) for _, task in sorted(package.tasks.items()))


def show(reference: str, places: Places) -> tuple[dict[str, Any], str]:
    """Tell of a task, or of all of them.

    Args:
        reference: a task; empty for a list of all.
        places: where the environment and weights lie.

    Returns:
        Plain values, and the same in words.

    Raises:
        UnknownModelError: no such task in the installed version.
        MissingDependencyError: the environment is not ready.
    """
    package = describe_package(places)
    weights = find_weights(places)
    if not reference:
        entries = [_entry(package, task, weights) for _, task in sorted(package.tasks.items())]
        return {"version": package.version, "models": entries}, _table(package, entries)
    task = package.find_task(reference.partition(":")[0])
    entry = _entry(package, task, weights)
    return entry, _page(package, entry)


def _table(package: Package, entries: list[dict[str, Any]]) -> str:
    rows = [
        (
            entry["id"],
            entry["modality"],
            str(len(entry["classes"])),
            ", ".join(name for name in entry["modes"] if name != "default"),
            "licensed" if entry["is_licensed"] else "",
            "here" if _is_here(entry, "default") else "",
        )
        for entry in entries
    ]
    head = ("task", "scan", "classes", "coarser", "licence", "weights")
    widths = [max(len(row[k]) for row in (head, *rows)) for k in range(len(head))]
    lines = [
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip()
        for row in (head, *rows)
    ]
    return "\n".join([f"TotalSegmentator {package.version}: {len(rows)} tasks", "", *lines])


def _page(package: Package, entry: dict[str, Any]) -> str:
    licence = f"{LICENSED}: {WHERE}" if entry["is_licensed"] else OPEN_LICENCE
    lines = [
        f"{entry['id']} of TotalSegmentator {package.version}",
        "",
        f"scan      {entry['modality']}",
        f"licence   {licence}",
    ]
    for mode, facts in entry["modes"].items():
        spacing = facts["spacing_mm"]
        fine = "the input's own spacing" if spacing is None else f"{max(spacing):.3g} mm"
        here = "weights here" if _is_here(entry, mode) else "weights missing"
        numbers = ", ".join(str(one["id"]) for one in facts["datasets"])
        lines.append(f"{mode:<9} {fine}, datasets {numbers}: {here}")
    lines += ["", f"{len(entry['classes'])} classes"]
    lines += [f"{value:>4}  {name}" for value, name in entry["classes"].items()]
    return "\n".join(lines)


def _is_here(entry: dict[str, Any], mode: str) -> bool:
    return all(one["is_here"] for one in entry["modes"][mode]["datasets"])


def _entry(package: Package, task: Task, weights: Mapping[int, Weights]) -> dict[str, Any]:
    return {
        "id": f"{_ENGINE}:{task.name}",
        "engine": _ENGINE,
        "version": package.version,
        "title": f"TotalSegmentator {task.name}",
        "modality": task.modality,
        "is_licensed": task.is_licensed,
        "licence": LICENSED if task.is_licensed else OPEN_LICENCE,
        "classes": {str(value): name for value, name in task.classes.items()},
        "spacing_mm": None if task.spacing_mm is None else list(task.spacing_mm),
        "modes": {
            mode: {
                "spacing_mm": _last_spacing(task, mode),
                "datasets": [
                    {
                        "id": number,
                        "folder": package.folders.get(number),
                        "url": package.url(number),
                        "is_here": number in weights,
                    }
                    for number in dict.fromkeys(
                        one for stage in task.stages(mode) for one in stage.datasets
                    )
                ],
            }
            for mode in sorted(task.modes, key=("default", "fast", "fastest").index)
        },
    }


def _last_spacing(task: Task, mode: str) -> list[float] | None:
    spacing = task.stages(mode)[-1].spacing_xyz
    return None if spacing is None else list(reversed(spacing))
