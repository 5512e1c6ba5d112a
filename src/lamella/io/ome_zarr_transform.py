"""NGFF's coordinate transformations as matrices, index → world, in the array's order of axes.

Scale and translation (0.4, 0.5) come out exact; rotation, affine, mapAxis and sequences are those
of the drafts of 0.6. Whatever makes no regular grid (displacement fields, values in other files)
is refused.

Examples:
    >>> compose([{"type": "scale", "scale": [2, 0.1]}], 2).diagonal().tolist()
    [2.0, 0.1, 1.0]
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamella.core.errors import GeometryError

__all__ = ["Matrix", "compose", "matrix_of"]

Matrix = NDArray[np.float64]


def compose(entries: Sequence[Any], n: int) -> Matrix | None:
    """One matrix for transformations applied one after the other; None for no transformation.

    Raises:
        GeometryError: see :func:`matrix_of`.
    """
    total: Matrix | None = None
    for entry in entries:
        matrix = matrix_of(entry, n)
        total = matrix if total is None else matrix @ total
    return total


def matrix_of(entry: Mapping[str, Any], n: int) -> Matrix:
    """The matrix of one transformation document.

    Args:
        entry: an entry of ``coordinateTransformations``.
        n: number of axes.

    Raises:
        GeometryError: for a kind that makes no regular grid, and for numbers that do not fit.
    """
    kind = entry.get("type")
    matrix = np.eye(n + 1)
    if kind == "sequence":
        total = compose(entry["transformations"], n)
        return matrix if total is None else total
    if kind == "identity":
        return matrix
    fill = _KINDS.get(str(kind))
    values = entry.get(str(kind))
    if fill is None or values is None:
        raise GeometryError(
            f"the metadata places the voxels by a transformation of type {kind!r}"
            + (" in another file" if "path" in entry else ""),
            hint=f"only {', '.join(_KINDS)}, identity and sequence give a regular grid; open the"
            " array itself with --dataset and --spacing",
        )
    fill(matrix, values, n)
    if not np.all(np.isfinite(matrix)):
        raise GeometryError(
            f"the {kind} {values} is not finite", hint="set the geometry with --spacing"
        )
    return matrix


def _vector(values: Any, n: int) -> Matrix:
    vector = np.asarray(values, dtype=np.float64)
    if vector.shape != (n,):
        raise GeometryError(
            f"a transformation has {vector.size} values, the array {n} axes",
            hint="the metadata contradicts the data; open the array with --dataset and --spacing",
        )
    return vector


def _fill_scale(matrix: Matrix, values: Any, n: int) -> None:
    matrix[np.arange(n), np.arange(n)] = _vector(values, n)


def _fill_translation(matrix: Matrix, values: Any, n: int) -> None:
    matrix[:n, n] = _vector(values, n)


def _fill_rotation(matrix: Matrix, values: Any, n: int) -> None:
    matrix[:n, :n] = np.asarray(values, dtype=np.float64).reshape(n, n)


def _fill_affine(matrix: Matrix, values: Any, n: int) -> None:
    matrix[:n] = np.asarray(values, dtype=np.float64).reshape(-1, n + 1)[:n]


def _fill_map_axis(matrix: Matrix, values: Any, n: int) -> None:
    if sorted(values) != list(range(n)):
        raise GeometryError(
            f"mapAxis {values} is no permutation of {n} axes", hint="open the array with --dataset"
        )
    matrix[:n, :n] = np.eye(n)[list(values)]


_KINDS = {
    "scale": _fill_scale,
    "translation": _fill_translation,
    "rotation": _fill_rotation,
    "affine": _fill_affine,
    "mapAxis": _fill_map_axis,
}
