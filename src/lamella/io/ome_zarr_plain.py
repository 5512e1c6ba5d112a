"""Zarr arrays without OME metadata, placed by what else they say about themselves.

Axes come from ``--axes``, from the dimension names of zarr 3, from xarray's
``_ARRAY_DIMENSIONS`` or funlib's ``axis_names``, and else from their number. Spacing comes from
``voxel_size``, ``resolution`` or ``scale`` with ``translation`` or ``offset`` (CellMap
submissions, funlib), in nm unless ``units`` says otherwise.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lamella.core.errors import AxesError, InputError
from lamella.io.format import OpenOptions
from lamella.io.ome_zarr_layout import (
    Layout,
    layout_of,
    layout_of_names,
    place,
    spacing_notes,
)
from lamella.io.ome_zarr_tree import Node, Tree
from lamella.volume.axes import ORDER
from lamella.volume.labels import Labels
from lamella.volume.volume import Note, Volume

__all__ = ["read_plain"]

_SPACING_KEYS = ("voxel_size", "resolution", "scale")
_OFFSET_KEYS = ("translation", "offset")


def read_plain(tree: Tree, node: Node, options: OpenOptions) -> Volume:
    """Open an array on its own.

    Args:
        tree: the hierarchy.
        node: the array.
        options: ``axes`` and ``level`` are looked at.

    Raises:
        AxesError: when the array has 1 axis or more than 5.
        InputError: for a level, which a bare array has not, and for elements that are no numbers.
    """
    if options.level:
        raise InputError(
            f"there is no level {options.level}: the array has no pyramid", hint="leave --level out"
        )
    array = tree.array(node.path)
    layout = _layout(array, node, options)
    axes, matrix, notes = _geometry(node.attributes, layout, array.ndim)
    affine, unit, odd = place(matrix, axes, layout)
    name = node.path.rsplit("/", 1)[-1] or tree.path.name.removesuffix(".zarr")
    volume = Volume(
        data=tree.lazy(array, layout.keep, node.path),
        axes=layout.axes,
        affine=affine,
        unit=unit,
        name=name,
        notes=(*layout.notes, *notes, *odd, *spacing_notes(affine, unit, matrix)),
        metadata={
            "dataset": node.path,
            "zarr_format": node.zarr_format,
            "chunks": [int(n) for n in array.chunks],
        },
    )
    if "labels" in node.path.split("/")[:-1] and volume.dtype.kind in "uib":
        shared = {field: getattr(volume, field) for field in Volume.__dataclass_fields__}
        return Labels(**shared)
    return volume


def _layout(array: Any, node: Node, options: OpenOptions) -> Layout:
    n = array.ndim
    if options.axes is not None:
        layout = layout_of_names(options.axes)
        if len(layout.keep) != n:
            raise AxesError(
                f"--axes {options.axes!r} names {len(layout.keep)} axes, the array has {n}",
                hint=f"its shape is {tuple(array.shape)}",
            )
        return layout
    if not 2 <= n <= 5:
        raise AxesError(
            f"an array of shape {tuple(array.shape)} has {n} axes: no image",
            hint="choose an array of 2 to 5 axes with --dataset",
        )
    names = _dimension_names(array, node.attributes)
    if names is not None:
        try:
            return layout_of([{"name": name} for name in names], array.shape)
        except AxesError:
            pass
    taken = ORDER[len(ORDER) - n :]
    note = Note("axes_assumed", f"the array names no axes: taken as {''.join(taken)}")
    layout = layout_of([{"name": name} for name in taken], array.shape)
    return Layout(layout.axes, layout.keep, (note,) if n > 3 else ())


def _dimension_names(array: Any, attributes: Mapping[str, Any]) -> Sequence[str] | None:
    for names in (
        getattr(array.metadata, "dimension_names", None),
        attributes.get("_ARRAY_DIMENSIONS"),
        attributes.get("axis_names"),
    ):
        is_list = isinstance(names, list | tuple)
        if is_list and len(names) == array.ndim and all(isinstance(n, str) for n in names):
            return [name.rstrip("^") for name in names]
    return None


def _geometry(
    attributes: Mapping[str, Any], layout: Layout, n: int
) -> tuple[list[dict[str, str]], Any, tuple[Note, ...]]:
    """Axes with units, index → world and notes, in the array's order."""
    axes: list[dict[str, str]] = [{} for _ in range(n)]
    spacing = _numbers(attributes, _SPACING_KEYS, layout, n)
    if spacing is None:
        return axes, None, ()
    offset = _numbers(attributes, _OFFSET_KEYS, layout, n)
    matrix = np.eye(n + 1)
    spatial = list(layout.spatial)
    matrix[spatial, spatial] = spacing
    if offset is not None:
        matrix[spatial, n] = offset
    units = attributes.get("units", attributes.get("unit"))
    words = [units] * n if isinstance(units, str) else units
    if isinstance(words, list) and len(words) == n and all(isinstance(w, str) for w in words):
        return [{"unit": word} for word in words], matrix, ()
    note = Note(
        "unit_assumed", "the array's spacing has no unit: taken as nm, as CellMap writes it"
    )
    return [{"unit": "nm"} for _ in range(n)], matrix, (note,)


def _numbers(
    attributes: Mapping[str, Any], keys: Sequence[str], layout: Layout, n: int
) -> list[float] | None:
    """Values for the spatial axes (z, y, x) under the first of the keys that holds any."""
    for key in keys:
        values = attributes.get(key)
        if not isinstance(values, list) or not all(
            isinstance(v, int | float) and np.isfinite(v) for v in values
        ):
            continue
        if len(values) == n:
            return [float(values[axis]) for axis in layout.spatial]
        if len(values) == layout.axes.n_spatial:
            # In the array's order of its spatial axes, which may differ from ours.
            order = sorted(layout.spatial)
            return [float(values[order.index(axis)]) for axis in layout.spatial]
    return None
