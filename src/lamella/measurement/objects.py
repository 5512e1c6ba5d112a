"""A table of objects: how many voxels, how large, where, how bright.

One pass over the labels, slab by slab: memory is a few slabs and one row per object, whatever the
size of the volume. Ids may be any 64-bit integers. Lengths, areas and volumes are in the unit of
the spacing; a column's name says which.

Examples:
    >>> import numpy as np
    >>> from lamella.volume.spacing import Spacing
    >>> labels = np.zeros((10, 12, 14), np.uint16)
    >>> labels[2:5, 3:7, 4:12] = 7
    >>> table = measure_objects(labels, spacing=Spacing((2.0, 1.0, 1.0), "um"))
    >>> table.ids.tolist(), table.volume.tolist(), table.box_start.tolist()
    ([7], [192.0], [[2, 3, 4]])
    >>> [name for name in table.columns() if "um" in name][:3]
    ['volume_um3', 'surface_um2', 'equivalent_diameter_um']
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lamella.core.errors import GeometryError, InputError
from lamella.core.progress import Progress, ProgressSink, SilentSink
from lamella.measurement.surface import FaceSum
from lamella.measurement.table import ObjectTable
from lamella.volume.affine import Affine
from lamella.volume.labels import Labels
from lamella.volume.source import LazyArray
from lamella.volume.spacing import Spacing
from lamella.volume.volume import Volume

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["MeasureOptions", "measure_labels", "measure_objects"]

# Bytes of one slab of labels: enough to read well, little enough to stay near the processor.
_SLAB_BYTES = 16 * 2**20
_CAPACITY = 4096


@dataclass(frozen=True, slots=True)
class MeasureOptions:
    """How to measure.

    Attributes:
        surface: whether to measure surface areas and sphericity (most of the time goes there).
        slab_depth: planes read at a time; None = about 16 MiB. Results do not depend on it.
        n_threads: threads that share the surfaces. Results do not depend on it.
        class_names: names for the class column.
    """

    surface: bool = True
    slab_depth: int | None = None
    n_threads: int = 2
    class_names: Mapping[int, str] = field(default_factory=dict[int, str])


def measure_labels(
    labels: Labels,
    image: Volume | None = None,
    *,
    classes: Labels | None = None,
    options: MeasureOptions | None = None,
    sink: ProgressSink | None = None,
) -> ObjectTable:
    """Measure the objects of labels with geometry.

    Args:
        labels: instance ids, or classes (then a row is a whole class).
        image: intensities on the same grid, one channel.
        classes: class of every voxel, on the same grid; tells the class of an instance.
        options: how to measure.
        sink: for progress and cancellation.

    Returns:
        One row per object, ascending by id.

    Raises:
        GeometryError: when the grids differ.
        InputError: for several channels or times.
        RunCancelledError: when the sink says so.
    """
    options = options or MeasureOptions()
    for other in (image, classes):
        if other is not None and other.spatial_shape != labels.spatial_shape:
            raise GeometryError(
                f"labels have shape {labels.spatial_shape}, spacing {labels.spacing};"
                f" {other.name or 'image'} has {other.spatial_shape}, spacing {other.spacing}",
                hint="measure on the grid that was segmented",
            )
    for volume in (labels, image, classes):
        if volume is not None and volume.shape != volume.spatial_shape:
            raise InputError(
                f"{volume.name or 'volume'} has axes {volume.axes}, expected space alone",
                hint="choose one with --channel and --time",
            )
    named = classes if classes is not None else labels
    if not options.class_names and named.classes:
        names = {known.value: known.name for known in named.classes}
        options = MeasureOptions(options.surface, options.slab_depth, options.n_threads, names)
    return measure_objects(
        labels.data,
        spacing=labels.spacing,
        affine=labels.affine,
        image=None if image is None else image.data,
        classes=classes.data
        if classes is not None
        else None
        if labels.is_instance
        else labels.data,
        options=options,
        sink=sink,
    )


def measure_objects(
    labels: LazyArray,
    *,
    spacing: Spacing,
    affine: Affine | None = None,
    image: LazyArray | None = None,
    classes: LazyArray | None = None,
    options: MeasureOptions | None = None,
    sink: ProgressSink | None = None,
) -> ObjectTable:
    """Measure every object of a label array.

    Args:
        labels: unsigned or non-negative integers (or bool), (z, y, x) or (y, x); 0 is background.
        spacing: distance per axis, with its unit.
        affine: index → world, for world centroids; default along the axes, first voxel at 0.
        image: intensities, real, same shape, or None.
        classes: class of every voxel, integer, same shape, or None; an object has the class of its
            first voxel.
        options: how to measure.
        sink: for progress and cancellation.

    Returns:
        One row per object, ascending by id.

    Raises:
        InputError: for dtypes that do not fit, or negative labels.
        GeometryError: for shapes or spacing that do not fit.
        RunCancelledError: when the sink says so.
    """
    options = options or MeasureOptions()
    _check(labels, spacing, image, classes)
    table = _Accumulator(labels, spacing, options)
    table.run(labels, image, classes, sink or SilentSink())
    affine = affine or Affine.diagonal(spacing.values)
    return table.result(spacing, affine, has_image=image is not None, options=options)


class _Accumulator:
    """The table while it grows: rows in the order of first appearance."""

    def __init__(self, labels: LazyArray, spacing: Spacing, options: MeasureOptions) -> None:
        from lamella.measurement.runs import N_VALUES, N_WHOLE

        self._bits = _unsigned(labels.dtype)
        self._shape = tuple(int(n) for n in labels.shape)
        self._options = options
        self._spacing = spacing.values
        self.n = 0
        self.ids = np.zeros(0, self._bits)
        self.whole = np.zeros((0, N_WHOLE), np.int64)
        self.values = np.zeros((0, N_VALUES))
        self.of_class = np.zeros(0, np.int64)
        self.surface: NDArray[np.float64] | None = None

    def run(
        self,
        labels: LazyArray,
        image: LazyArray | None,
        classes: LazyArray | None,
        sink: ProgressSink,
    ) -> None:
        """Read everything once."""
        plane = (self._shape[-2], self._shape[-1])
        extents = list(self._extents())
        depth = max((stop - start for start, stop in extents), default=0)
        n_threads = max(1, self._options.n_threads)
        with ThreadPoolExecutor(n_threads) as pool:
            faces = None
            if self._options.surface and extents:
                faces = FaceSum(plane, self._spacing, depth, pool, n_threads)
            for done, (start, stop) in enumerate(extents):
                sink.check()
                slab = self._read(labels, start, stop)
                rows = faces.target(stop - start) if faces else np.zeros((0, 0, 0), np.int32)
                before = self.n
                self._add(slab, self._read_image(image, start, stop), rows, start)
                self._add_classes(classes, (start, stop), before)
                if faces:
                    faces.add(stop - start, self.n)
                sink.emit(Progress("measure", done + 1, len(extents), "slabs"))
            if faces:
                self.surface = faces.finish(self.n)[: self.n]

    def _add(
        self, slab: NDArray[Any], image: NDArray[Any], rows: NDArray[np.int32], start: int
    ) -> None:
        """Count one slab, making room in the table as often as it takes."""
        from lamella.measurement.runs import add_runs, enter_ids

        n_lines = slab.shape[0] * slab.shape[1]
        line = 0
        while line < n_lines:
            if self.n + slab.shape[2] > len(self.ids):
                self._grow(max(2 * len(self.ids), self.n + 2 * slab.shape[2], _CAPACITY))
            n_slots = 2 << len(self.ids).bit_length()
            slots = np.full(n_slots, -1, np.int64)
            shift = np.uint64(64 - (n_slots.bit_length() - 1))
            enter_ids(self.ids, self.n, slots, shift)
            table = (self.ids, self.whole, self.values, slots, shift)
            line, self.n = add_runs(slab, image, rows, (start, line), table, self.n)

    def _grow(self, capacity: int) -> None:
        def larger(old: NDArray[Any]) -> NDArray[Any]:
            new = np.zeros((capacity, *old.shape[1:]), old.dtype)
            new[: len(old)] = old
            return new

        self.ids, self.whole, self.values, self.of_class = (
            larger(part) for part in (self.ids, self.whole, self.values, self.of_class)
        )

    def _add_classes(self, classes: LazyArray | None, extent: tuple[int, int], before: int) -> None:
        """Look up the class of the objects that are new in this slab."""
        from lamella.measurement.runs import FIRST

        if classes is None or self.n == before:
            return
        start, stop = extent
        slab = _as_volume(classes, start, stop)
        z, y, x = self.whole[before : self.n, FIRST : FIRST + 3].T
        self.of_class[before : self.n] = slab[z - start, y, x]

    def _extents(self) -> "Iterator[tuple[int, int]]":
        """Slabs along z; an image is one slab."""
        if 0 in self._shape:
            return
        if len(self._shape) == 2:
            yield 0, 1
            return
        depth = self._options.slab_depth
        if depth is None:
            depth = max(1, _SLAB_BYTES // (self._shape[1] * self._shape[2] * self._bits.itemsize))
        for start in range(0, self._shape[0], max(1, depth)):
            yield start, min(start + max(1, depth), self._shape[0])

    def _read(self, labels: LazyArray, start: int, stop: int) -> NDArray[Any]:
        """A slab of labels as unsigned bits."""
        slab = _as_volume(labels, start, stop)
        if slab.dtype.kind == "i" and slab.size and int(slab.min()) < 0:
            raise InputError(
                f"labels go down to {int(slab.min())}, expected 0 (background) and positive ids",
                hint="map an ignore label such as -1 to 0 first",
            )
        return np.ascontiguousarray(slab).view(self._bits)

    def _read_image(self, image: LazyArray | None, start: int, stop: int) -> NDArray[Any]:
        """A slab of intensities as float32 where that is exact, else float64."""
        if image is None:
            return np.zeros((0, 0, 0), np.float32)
        exact = np.result_type(image.dtype, np.float32)
        return np.ascontiguousarray(_as_volume(image, start, stop), dtype=exact)

    def result(
        self, spacing: Spacing, affine: Affine, *, has_image: bool, options: MeasureOptions
    ) -> ObjectTable:
        """The finished table, ascending by id."""
        from lamella.measurement.runs import START, STOP, SUM, VOXELS

        order = np.argsort(self.ids[: self.n], kind="stable")
        whole = self.whole[: self.n][order]
        ndim = len(self._shape)
        first = 3 - ndim
        voxels = whole[:, VOXELS]
        centroid = whole[:, SUM + first : SUM + 3] / (2.0 * np.maximum(voxels, 1)[:, None])
        start = whole[:, START + first : START + 3]
        stop = whole[:, STOP + first : STOP + 3]
        surface = np.full(self.n, np.nan) if self.surface is None else self.surface[order]
        return ObjectTable(
            unit=spacing.unit,
            ids=self.ids[: self.n][order],
            classes=self.of_class[: self.n][order],
            class_names=dict(options.class_names),
            voxels=voxels,
            volume=voxels.astype(np.float64) * spacing.voxel_volume,
            surface=surface,
            centroid=affine.apply(centroid) if self.n else np.zeros((0, ndim)),
            centroid_voxel=centroid,
            box_start=start,
            box_stop=stop,
            touches_border=((start == 0) | (stop == np.array(self._shape))).any(axis=1),
            **(self._intensities(order, voxels) if has_image else {}),
        )

    def _intensities(self, order: NDArray[np.int64], voxels: NDArray[np.int64]) -> dict[str, Any]:
        """Mean, population standard deviation and extremes."""
        from lamella.measurement.runs import DIFFERENCE, HIGHEST, LOWEST, SHIFT, SQUARES

        values = self.values[: self.n][order]
        offset = values[:, DIFFERENCE] / np.maximum(voxels, 1)
        variance = values[:, SQUARES] / np.maximum(voxels, 1) - offset**2
        return {
            "intensity_mean": values[:, SHIFT] + offset,
            "intensity_std": np.sqrt(np.maximum(variance, 0.0)),
            "intensity_min": values[:, LOWEST],
            "intensity_max": values[:, HIGHEST],
        }


def _as_volume(array: LazyArray, start: int, stop: int) -> NDArray[Any]:
    """Planes start..stop; an image as a volume of one plane."""
    if array.ndim == 2:
        return np.asarray(array[:, :])[None]
    return np.asarray(array[start:stop])


def _unsigned(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.dtype(f"u{np.dtype(dtype).itemsize}")


def _check(
    labels: LazyArray, spacing: Spacing, image: LazyArray | None, classes: LazyArray | None
) -> None:
    if np.dtype(labels.dtype).kind not in "uib":
        raise InputError(
            f"labels have dtype {labels.dtype}, expected integers",
            hint="threshold probabilities first",
        )
    if labels.ndim not in (2, 3) or len(spacing.values) != labels.ndim:
        raise GeometryError(
            f"labels have shape {tuple(labels.shape)}, spacing is {spacing}: expected (z, y, x) or"
            " (y, x) with one distance per axis"
        )
    for name, other in (("image", image), ("classes", classes)):
        if other is not None and tuple(other.shape) != tuple(labels.shape):
            raise GeometryError(
                f"labels have shape {tuple(labels.shape)}, {name} has {tuple(other.shape)}",
                hint="measure on the grid that was segmented",
            )
    if image is not None and np.dtype(image.dtype).kind not in "uibf":
        raise InputError(f"image has dtype {image.dtype}, expected real numbers")
