"""What a configuration asks of CellMap data: which classes, as what, with which intensities."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lamella.core.errors import InputError
from lamella.training.cellmap.classes import ClassTable
from lamella.wire.card import NormalisationDoc

if TYPE_CHECKING:
    from lamella.training.configuration import CellmapConfig, TaskConfig

__all__ = ["fixed_normalisation", "learnt_classes"]

_EIGHT_BITS = NormalisationDoc(kind="fixed", mean=127.5, std=63.75)


def fixed_normalisation(doc: NormalisationDoc, dtypes: set[str]) -> NormalisationDoc:
    """The normalisation of a configuration with its numbers filled in.

    Args:
        doc: as configured.
        dtypes: of the raw data, as NumPy writes them.

    Raises:
        InputError: statistics of a volume, or no numbers for other data than eight bits.
    """
    if doc.kind == "none":
        return doc
    if doc.kind != "fixed":
        raise InputError(
            f"normalisation.kind={doc.kind} takes numbers of a whole volume, which is never whole"
            " here: a prediction of a part would be given other numbers",
            hint="use normalisation.kind=fixed",
        )
    if doc.mean is not None and doc.std is not None:
        return doc
    others = sorted(d for d in dtypes if np.dtype(d) != np.uint8)
    if others:
        raise InputError(
            f"raw data of type {', '.join(others)} have no usual range",
            hint="give normalisation.mean and normalisation.std",
        )
    update = {
        "mean": _EIGHT_BITS.mean if doc.mean is None else doc.mean,
        "std": _EIGHT_BITS.std if doc.std is None else doc.std,
    }
    return doc.model_copy(update=update)


def learnt_classes(config: CellmapConfig, task: TaskConfig) -> tuple[str, ...]:
    """Names of the classes that a task learns; one, for tasks that make objects.

    Raises:
        InputError: no class, one that the challenge does not have, classes that overlap where a
            voxel can have one only, or objects of a class that has none.
    """
    table = ClassTable.read()
    names = tuple(known.name for known in task.classes)
    if task.kind in ("semantic", "multilabel"):
        if not names:
            raise InputError(
                "task.classes is empty: nothing would be learnt",
                hint="write task.classes=[{name: mito}, {name: er}]",
            )
        for name in names:
            _ = table[name]
        pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
        overlapping = [f"{a} and {b}" for a, b in pairs if table.overlap(a, b)]
        if task.kind == "semantic" and overlapping:
            raise InputError(
                f"{overlapping[0]} overlap: a voxel may be in both, and a softmax cannot say so",
                hint="use task.kind=multilabel",
            )
        return names
    name = config.instances or (names[0] if len(names) == 1 else "")
    if not name:
        raise InputError(
            f"the task {task.kind} tells objects of one class apart, but data.instances is empty",
            hint="write data.instances=mito",
        )
    if not table[name].is_instance:
        known = ", ".join(n for n, entry in table.items() if entry.is_instance)
        raise InputError(
            f"the ids of {name} are no objects: the challenge annotates it as a mask",
            hint=f"classes of objects are {known}",
        )
    return (name,)
