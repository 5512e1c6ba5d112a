"""Vertebrae of a label volume: where each lies, how large it is, and whether it is whole.

One pass over the labels finds every vertebra's voxels; pieces are then looked at in its own box,
so that memory stays that of a slab and a vertebra.

Examples:
    >>> import numpy as np
    >>> data = np.zeros((20, 12, 12), np.uint8)
    >>> data[2:8, 3:9, 3:9], data[11:17, 3:9, 3:9] = 28, 29
    >>> labels = Labels.from_array(data, spacing=(3, 1, 1), unit="mm", frame="RAS")
    >>> upper, lower = find_vertebrae(labels, {28: "L4", 29: "L3"})
    >>> upper.level, upper.centroid_voxel, upper.volume_mm3, upper.borders
    ('L3', (13.5, 5.5, 5.5), 648.0, ())
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamella.core.errors import AxesError, GeometryError
from lamella.core.progress import Progress, ProgressSink, SilentSink
from lamella.measurement.objects import MeasureOptions, measure_labels
from lamella.measurement.spine_levels import rank_of
from lamella.volume.affine import Affine
from lamella.volume.box import Box
from lamella.volume.labels import Labels
from lamella.volume.spacing import convert_length

__all__ = ["Piece", "Vertebra", "find_vertebrae", "sides_of"]

_SIDES = {0: ("inferior", "superior"), 1: ("posterior", "anterior"), 2: ("left", "right")}
"""Faces of a volume by world axis (z, y, x) in RAS: towards lower and higher coordinates."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A connected part of a vertebra (26 neighbours).

    Args:
        n_voxels: its size.
        centroid_mm: world position, RAS, (z, y, x).
        gap_mm: distance to the largest piece, 0 for that one itself.
    """

    n_voxels: int
    centroid_mm: tuple[float, float, float]
    gap_mm: float


@dataclass(frozen=True, slots=True)
class Vertebra:
    """A labelled vertebra.

    Args:
        level: C1 ... S1.
        value: its label.
        n_voxels: all its voxels.
        volume_mm3: the same as a volume.
        centroid_mm: centre of mass of all its voxels, RAS, (z, y, x), mm.
        centroid_voxel: the same as an index (z, y, x); voxel centres are whole numbers.
        box: its voxels lie in it.
        borders: faces of the volume it reaches within the margin: it is cut off there, perhaps.
        pieces: connected parts, the largest first.
    """

    level: str
    value: int
    n_voxels: int
    volume_mm3: float
    centroid_mm: tuple[float, float, float]
    centroid_voxel: tuple[float, float, float]
    box: Box
    borders: tuple[str, ...]
    pieces: tuple[Piece, ...]

    @property
    def is_incomplete(self) -> bool:
        """Whether the volume may cut it off: position and size are then those of a part."""
        return bool(self.borders)


def find_vertebrae(
    labels: Labels,
    levels: Mapping[int, str],
    *,
    margin_mm: float = 2.0,
    within: Box | None = None,
    sink: ProgressSink | None = None,
) -> tuple[Vertebra, ...]:
    """Measure every vertebra of a label volume.

    Args:
        labels: class ids, (z, y, x), in the RAS frame.
        levels: label value → level.
        margin_mm: a vertebra within this distance of the volume's border counts as incomplete;
            one that reaches the outermost voxels always does.
        within: the part of the volume that the labels tell of, whose border is then meant; all of
            it unless given.
        sink: progress and cancellation.

    Returns:
        From the head down by level; values of one level lie beside each other.

    Raises:
        AxesError: for anything but a single volume.
        GeometryError: when nobody knows the spacing, or where the patient's head is.
    """
    _check(labels)
    listener = sink or SilentSink()
    whole = within or Box.from_shape(labels.spatial_shape)
    table = measure_labels(labels, options=MeasureOptions(surface=False), sink=listener)
    found = []
    rows = [row for row, value in enumerate(table.ids) if int(value) in levels]
    for done, row in enumerate(rows, 1):
        listener.check()
        box = Box(
            tuple(int(v) for v in table.box_start[row]), tuple(int(v) for v in table.box_stop[row])
        )
        value = int(table.ids[row])
        centre = table.centroid_voxel[row]
        found.append(
            Vertebra(
                level=levels[value],
                value=value,
                n_voxels=int(table.voxels[row]),
                volume_mm3=int(table.voxels[row]) * float(np.prod(_spacing_mm(labels))),
                centroid_mm=_world_mm(labels, centre),
                centroid_voxel=_triple(centre),
                box=box,
                borders=_borders(labels, box, whole, margin_mm),
                pieces=_pieces(labels, box, value),
            )
        )
        listener.emit(Progress("vertebrae", done, len(rows), "vertebrae"))
    return tuple(sorted(found, key=lambda known: (rank_of(known.level), -known.n_voxels)))


def _check(labels: Labels) -> None:
    if str(labels.axes) != "zyx":
        raise AxesError(
            f"vertebrae are found in one volume (zyx); the labels have the axes {labels.axes}",
            hint="choose one with --channel or --time",
        )
    if labels.unit == "voxel":
        raise GeometryError(
            "vertebrae are measured in mm, and nobody knows how large the voxels are",
            hint="give it with --spacing z,y,x --unit mm",
        )
    if labels.affine.frame != "RAS":
        raise GeometryError(
            "the labels lie in a frame of no anatomical meaning: nothing says where the head is",
            hint="use NIfTI, NRRD or DICOM with the patient's orientation in the header",
        )


def _spacing_mm(labels: Labels) -> tuple[float, ...]:
    return tuple(convert_length(value, labels.unit, "mm") for value in labels.affine.spacing)


def _world_mm(labels: Labels, index: NDArray[np.float64]) -> tuple[float, float, float]:
    world = labels.affine.apply(index)
    return _triple([convert_length(float(value), labels.unit, "mm") for value in world])


def _triple(values: "NDArray[np.float64] | list[float]") -> tuple[float, float, float]:
    z, y, x = (float(value) for value in values)
    return z, y, x


def sides_of(affine: Affine) -> tuple[tuple[str, str], ...]:
    """What the first and the last face along each axis look to, in the RAS frame.

    Examples:
        >>> sides_of(Affine.diagonal((3.0, 1.0, 1.0), frame="RAS"))[0]
        ('inferior', 'superior')
    """
    direction = np.asarray(affine.direction)
    found: list[tuple[str, str]] = []
    for axis in range(3):
        world = int(np.argmax(np.abs(direction[:, axis])))
        low, high = _SIDES[world]
        found.append((low, high) if direction[world, axis] > 0 else (high, low))
    return tuple(found)


def _borders(labels: Labels, box: Box, whole: Box, margin_mm: float) -> tuple[str, ...]:
    """Faces that the box reaches, by the direction in the patient that they look to."""
    spacing = _spacing_mm(labels)
    found = []
    for axis, (low, high) in enumerate(sides_of(labels.affine)):
        first = box.start[axis] - whole.start[axis]
        # Half a voxel lies between the outermost voxel's centre and the border.
        if first == 0 or (first + 0.5) * spacing[axis] < margin_mm:
            found.append(low)
        last = whole.stop[axis] - box.stop[axis]
        if last == 0 or (last + 0.5) * spacing[axis] < margin_mm:
            found.append(high)
    return tuple(dict.fromkeys(found))


def _pieces(labels: Labels, box: Box, value: int) -> tuple[Piece, ...]:
    """Connected parts, the largest first, with their distance to it."""
    from scipy import ndimage

    mask = np.asarray(labels.read(box)) == value
    numbered = np.zeros(mask.shape, np.int32)
    ndimage.label(mask, structure=np.ones((3, 3, 3)), output=numbered)
    n = int(numbered.max())
    sizes = np.bincount(numbered.ravel(), minlength=n + 1)[1:]
    order = np.argsort(-sizes, kind="stable")
    spacing = np.array(_spacing_mm(labels))
    points = {int(k): np.argwhere(numbered == k + 1) for k in order}
    main = points[int(order[0])] * spacing
    return tuple(
        Piece(
            int(sizes[k]),
            _world_mm(labels, points[int(k)].mean(axis=0) + np.array(box.start)),
            0.0 if rank == 0 else _gap(points[int(k)] * spacing, main),
        )
        for rank, k in enumerate(order)
    )


def _gap(points: NDArray[Any], others: NDArray[Any]) -> float:
    """Smallest distance between voxel centres of two parts, mm."""
    from scipy.spatial import KDTree

    distance, _ = KDTree(others).query(points)
    return float(np.min(distance))
