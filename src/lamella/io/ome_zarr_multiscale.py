"""What a foreign ``multiscales`` document says: axes in any order, transformations, units.

Reads NGFF 0.1 to 0.5 and the drafts of 0.6 that place voxels by scale, translation, rotation,
affine, a change of axes or sequences of these. Whatever had to be guessed becomes a note.

Transformations are composed as matrices; for scales and translations that is exact.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamella.core.errors import AxesError, GeometryError, UnreadableFileError
from lamella.volume.affine import Affine
from lamella.volume.axes import ORDER, Axes
from lamella.volume.spacing import Unit, parse_unit
from lamella.volume.volume import Note

__all__ = ["Layout", "Multiscale", "layout_of_names", "parse_multiscale", "place", "spacing_notes"]

Matrix = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Layout:
    """How an array's axes become ours.

    Args:
        axes: what comes out.
        keep: positions of the array's axes in the order of ``axes``; the others have length 1.
        notes: what had to be assumed.
    """

    axes: Axes
    keep: tuple[int, ...]
    notes: tuple[Note, ...] = ()

    @property
    def spatial(self) -> tuple[int, ...]:
        """Positions of the spatial axes, (z, y, x)."""
        return self.keep[self.axes.n_leading :]


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
        inner = _compose(entry.get("coordinateTransformations") or (), n_axes)
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
                return _matrix(entry, n_axes), target
        return None, output
    # Some writers (SpatialData) list one alternative per coordinate system instead of a sequence.
    alternatives = [entry for entry in outer if "output" in entry]
    if alternatives:
        return _matrix(alternatives[0], n_axes), ""
    return _compose(outer, n_axes), ""


def _system(reference: Any) -> str:
    if isinstance(reference, Mapping):
        reference = reference.get("name")
    return str(reference or "")


def _compose(entries: Sequence[Any], n: int) -> Matrix | None:
    """One matrix for transformations applied one after the other; None for no transformation."""
    total: Matrix | None = None
    for entry in entries:
        matrix = _matrix(entry, n)
        total = matrix if total is None else matrix @ total
    return total


def _matrix(entry: Mapping[str, Any], n: int) -> Matrix:
    kind = entry.get("type")
    matrix = np.eye(n + 1)
    if kind == "sequence":
        total = _compose(entry["transformations"], n)
        return matrix if total is None else total
    if kind == "identity":
        return matrix
    values = entry.get(str(kind)) if kind in _KINDS else None
    if values is None:
        raise GeometryError(
            f"the metadata places the voxels by a transformation of type {kind!r}"
            + (" in another file" if "path" in entry else ""),
            hint=f"only {', '.join(_KINDS)}, identity and sequence give a regular grid; open the"
            " array itself with --dataset and --spacing",
        )
    _KINDS[kind](matrix, values, n)
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
_KIND_OF_TYPE = {"time": "t", "channel": "c"}


def layout_of(axes: Sequence[Mapping[str, Any]], shape: Sequence[int]) -> Layout:
    """Which array axis becomes which of ours.

    Names decide (``t c z y x`` in either case), then types; space axes of other names are taken
    in their order as z, y, x. Further axes are dropped where they have length 1.

    Raises:
        AxesError: when an image cannot be made of them.
    """
    roles: dict[str, int] = {}
    rest: list[int] = []
    for position, axis in enumerate(axes):
        role = _role(axis)
        if role is None or role in roles:
            rest.append(position)
        else:
            roles[role] = position
    notes: list[Note] = []
    _name_space_axes(axes, roles, rest, notes)
    for position in rest:
        name = str(axes[position].get("name"))
        if shape[position] == 1:
            notes.append(Note("axis_dropped", f"axis {name!r} has length 1 and is left out"))
        elif "c" not in roles:
            roles["c"] = position
            notes.append(Note("axis_as_channel", f"axis {name!r} is read as channels"))
        else:
            raise AxesError(
                f"axis {name!r} of length {shape[position]} is none of t, c, z, y, x",
                hint="Lamella reads images of time, channel and space",
            )
    if "y" not in roles or "x" not in roles:
        names = ", ".join(str(axis.get("name")) for axis in axes)
        raise AxesError(
            f"the axes ({names}) lack y or x", hint="say what the axes mean with --axes, e.g. zyx"
        )
    names = tuple(name for name in ORDER if name in roles)
    return Layout(Axes(names), tuple(roles[name] for name in names), tuple(notes))


def layout_of_names(text: str) -> Layout:
    """The layout of ``--axes``, in any order: ``"xyz"`` is transposed.

    Raises:
        AxesError: for letters that are no axes, repeated ones, and without y and x.
    """
    letters = tuple(text.lower())
    names = tuple(name for name in ORDER if name in letters)
    if len(set(letters)) != len(letters) or len(names) != len(letters):
        raise AxesError(
            f"--axes {text!r} is no order of different letters out of tczyx",
            hint="name every axis of the array once, for example --axes czyx",
        )
    return Layout(Axes(names), tuple(letters.index(name) for name in names))


def _role(axis: Mapping[str, Any]) -> str | None:
    name, kind = str(axis.get("name", "")).lower(), axis.get("type")
    if name in ORDER and kind in (None, _type_of(name), "array"):
        return name
    return _KIND_OF_TYPE.get(str(kind))


def _type_of(name: str) -> str:
    return {"t": "time", "c": "channel"}.get(name, "space")


def _name_space_axes(
    axes: Sequence[Mapping[str, Any]], roles: dict[str, int], rest: list[int], notes: list[Note]
) -> None:
    """Give space axes of unknown names the free places among z, y, x."""
    unnamed = [p for p in rest if axes[p].get("type") == "space"]
    if not unnamed or any(name in roles for name in "zyx") or len(unnamed) not in (2, 3):
        return
    for name, position in zip("zyx"[3 - len(unnamed) :], unnamed, strict=True):
        roles[name] = position
        rest.remove(position)
    given = ", ".join(str(axes[p].get("name")) for p in unnamed)
    taken = ", ".join("zyx"[3 - len(unnamed) :])
    notes.append(Note("axes_assumed", f"the space axes ({given}) are taken as {taken}"))


def place(
    matrix: Matrix | None, axes: Sequence[Mapping[str, Any]], layout: Layout
) -> tuple[Affine, Unit, tuple[Note, ...]]:
    """Geometry of the spatial axes.

    Args:
        matrix: index → world in the array's order, or None.
        axes: documents of the axes, which give the units.
        layout: which axes are spatial.

    Raises:
        GeometryError: when time or channels are mixed with space, or the matrix is singular.
    """
    n = layout.axes.n_spatial
    spatial = list(layout.spatial)
    if matrix is None:
        matrix = np.eye(len(axes) + 1)
    size = matrix.shape[0] - 1
    others = [axis for axis in range(size) if axis not in spatial]
    if matrix[np.ix_(spatial, others)].any():
        raise GeometryError(
            "the metadata mixes time or channels with space in one transformation",
            hint="open the array itself with --dataset and --spacing",
        )
    unit, factors, notes = _units([axes[position] for position in spatial])
    linear = matrix[np.ix_(spatial, spatial)]
    origin = matrix[spatial, size]
    if unit == "voxel" and not notes and not np.array_equal(linear, np.eye(n)):
        notes = (
            *notes,
            Note("spacing_unit_missing", "the metadata has a scale but no unit of length"),
        )
    if np.any(~linear.any(axis=0)):
        notes = (Note("spacing_invalid", "the scale is 0 along an axis: taken as not calibrated"),)
        return Affine.diagonal((1.0,) * n), "voxel", notes
    scaled = np.array([_times(row, factor) for row, factor in zip(linear, factors, strict=True)])
    start = tuple(float(_times(o, f)) for o, f in zip(origin, factors, strict=True))
    return replace(_affine_of(scaled), origin=start), unit, notes


def _affine_of(linear: Matrix) -> Affine:
    """Spacing and direction of a linear map; exact where every axis runs along a world axis."""
    n = len(linear)
    if np.all(np.count_nonzero(linear, axis=0) == 1) and np.linalg.det(np.sign(linear)) != 0:
        spacing = np.abs(linear).max(axis=0)
        direction = np.sign(linear) + 0.0
        return Affine(
            tuple(float(s) for s in spacing),
            (0.0,) * n,
            tuple(tuple(float(v) for v in row) for row in direction),
        )
    full = np.eye(n + 1)
    full[:n, :n] = linear
    return Affine.from_matrix(full)


def _times(value: Any, factor: float) -> Any:
    # x / 10 is the nearest number to a tenth of x, x * 0.1 is not.
    return value / round(1.0 / factor) if factor < 1.0 else value * factor


def _units(axes: Sequence[Mapping[str, Any]]) -> tuple[Unit, list[float], tuple[Note, ...]]:
    """Common unit of the spatial axes (that of x where they differ) and factors to reach it."""
    words = [axis.get("unit") for axis in axes]
    known: list[tuple[Unit, float]] = []
    for word in words:
        if not word:
            continue
        try:
            known.append(parse_unit(str(word)))
        except GeometryError:
            return (
                "voxel",
                [1.0] * len(axes),
                (Note("spacing_unit_unknown", f"the unit {word!r} is no length Lamella knows"),),
            )
    physical = [unit for unit, _ in known if unit != "voxel"]
    if not physical:
        return "voxel", [1.0] * len(axes), ()
    notes: tuple[Note, ...] = ()
    if len(known) < len(words) or len(physical) < len(known):
        text = f"only some axes have a unit: {physical[-1]} is taken for all"
        notes = (Note("spacing_unit_assumed", text),)
        return physical[-1], [known[-1][1]] * len(axes), notes
    common = known[-1][0]
    exponents = {"nm": -9, "um": -6, "mm": -3}
    factors = [f * 10.0 ** (exponents[u] - exponents[common]) for u, f in known]
    return common, factors, notes


def spacing_notes(affine: Affine, unit: Unit, matrix: Matrix | None) -> tuple[Note, ...]:
    """A note where the file gives no spacing at all."""
    if unit == "voxel" and (matrix is None or all(s == 1.0 for s in affine.spacing)):
        return (Note("spacing_missing", "the file gives no spacing: set it with --spacing"),)
    return ()
