"""What a foreign ``multiscales`` document says: axes in any order, transformations, units.

Reads NGFF 0.1 to 0.5 and the drafts of 0.6 that place voxels by scale, translation, rotation,
affine, a change of axes or sequences of these. Whatever had to be guessed becomes a note.

Transformations are composed as matrices; for scales and translations that is exact.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lamella.core.errors import AxesError, GeometryError, UnreadableFileError
from lamella.io.ome_zarr_transform import Matrix, compose, matrix_of
from lamella.volume.axes import ORDER
from lamella.volume.volume import Note

__all__ = ["Multiscale", "dataset_paths", "parse_multiscale"]


@dataclass(frozen=True, slots=True)
class Multiscale:
    """A multiscale image, understood but for its arrays.

    Args:
        name: as given.
        version: of NGFF, as given.
        axes: documents of the axes, in the array's order.
        paths: of the levels' arrays, finest first.
        matrices: index → world of each level, homogeneous, in the array's order of axes; None
            where nothing is said.
        notes: what was odd.
    """

    name: str
    version: str
    axes: tuple[Mapping[str, Any], ...]
    paths: tuple[str, ...]
    matrices: tuple[Matrix | None, ...]
    notes: tuple[Note, ...] = ()


def parse_multiscale(document: Any, version: str, n_axes: int) -> Multiscale:
    """Take apart one entry of ``multiscales``.

    Args:
        document: the entry.
        version: of NGFF where the group says it, else empty.
        n_axes: number of axes of the finest array.

    Raises:
        UnreadableFileError: when it is no multiscale document.
        GeometryError: for transformations that make no regular grid.
    """
    try:
        return _parse(document, version, n_axes)
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        if isinstance(error, GeometryError | AxesError | UnreadableFileError):
            raise
        raise UnreadableFileError(
            f"the multiscales document is damaged ({type(error).__name__}: {error})",
            hint="check it against the OME-NGFF specification, or open an array with --dataset",
        ) from error


def dataset_paths(document: Any) -> tuple[str, ...]:
    """Paths of the levels of a ``multiscales`` entry; empty for anything else."""
    datasets = document.get("datasets") if isinstance(document, Mapping) else None
    if not isinstance(datasets, list):
        return ()
    return tuple(
        entry["path"].strip("/")
        for entry in datasets
        if isinstance(entry, Mapping) and isinstance(entry.get("path"), str)
    )


def _parse(document: Any, version: str, n_axes: int) -> Multiscale:
    version = str(document.get("version") or version or "")
    notes: list[Note] = []
    axes, target = _axes_documents(document, n_axes, notes)
    if len(axes) != n_axes:
        raise AxesError(
            f"the multiscales document names {len(axes)} axes, its arrays have {n_axes}",
            hint="the metadata contradicts the data; open an array with --dataset and --axes",
        )
    datasets = document["datasets"]
    paths = dataset_paths(document)
    if not paths or len(paths) != len(datasets):
        raise UnreadableFileError(
            "the multiscales document lists no datasets",
            hint="the metadata may be damaged; open an array with --dataset",
        )
    after, system = _outer(document, datasets, target, n_axes)
    if system:
        notes.append(Note("coordinate_system", f"placed in its coordinate system {system!r}"))
    matrices: list[Matrix | None] = []
    for entry in datasets:
        inner = compose(entry.get("coordinateTransformations") or (), n_axes)
        matrices.append(
            inner if after is None else after @ (np.eye(n_axes + 1) if inner is None else inner)
        )
    return Multiscale(
        name=str(document.get("name") or ""),
        version=version,
        axes=axes,
        paths=paths,
        matrices=tuple(matrices),
        notes=tuple(notes),
    )


def _axes_documents(
    document: Mapping[str, Any], n_axes: int, notes: list[Note]
) -> tuple[tuple[Mapping[str, Any], ...], str]:
    """Axes of the world, and (0.6) the name of the coordinate system they belong to."""
    systems = document.get("coordinateSystems")
    if systems:
        # NGFF 0.6: the first coordinate system is the one to show.
        return tuple(systems[0]["axes"]), str(systems[0]["name"])
    axes = document.get("axes")
    if axes is None:
        names = ORDER[len(ORDER) - n_axes :]
        notes.append(
            Note(
                "axes_assumed", f"the metadata names no axes (NGFF 0.1): taken as {''.join(names)}"
            )
        )
        return tuple({"name": name} for name in names), ""
    return tuple({"name": a} if isinstance(a, str) else a for a in axes), ""


def _outer(
    document: Mapping[str, Any], datasets: Sequence[Any], target: str, n_axes: int
) -> tuple[Matrix | None, str]:
    """Transformation of the whole multiscale, and the coordinate system if it had to be chosen."""
    outer = document.get("coordinateTransformations") or ()
    if target:
        inner = datasets[0].get("coordinateTransformations") or ({},)
        output = _system(inner[-1].get("output"))
        if output in ("", target):
            return None, target if len(document["coordinateSystems"]) > 1 else ""
        for entry in outer:
            if _system(entry.get("input")) == output and _system(entry.get("output")) == target:
                return matrix_of(entry, n_axes), target
        return None, output
    # Some writers (SpatialData) list one alternative per coordinate system instead of a sequence.
    alternatives = [entry for entry in outer if "output" in entry]
    if alternatives:
        return matrix_of(alternatives[0], n_axes), ""
    return compose(outer, n_axes), ""


def _system(reference: Any) -> str:
    if isinstance(reference, Mapping):
        reference = reference.get("name")
    return str(reference or "")
