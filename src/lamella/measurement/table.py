"""The table of objects: named columns with units, as CSV or as a DataFrame.

Columns of a volume in µm (an image has ``area_um2``, ``perimeter_um``, ``circularity`` and no z)::

    id  class  class_name  voxels  volume_um3  surface_um2  equivalent_diameter_um  sphericity
    centroid_z_um ..y.. ..x..          world position of the centre of mass
    centroid_z_vox ..y.. ..x..         the same as an index; voxel centres are whole numbers
    box_z_start .. box_x_stop          half-open box, voxels
    touches_border                     cut off by the volume: its size is a lower bound
    intensity_mean  intensity_std  intensity_min  intensity_max       with an image
    confidence_probability  confidence_margin  ...  confidence_calibrated    where it is known
    further columns of an engine or a way of linking, last
"""

import csv
import math
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lamella.core.errors import OutputExistsError, StorageError
from lamella.volume.spacing import Unit

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ObjectTable"]

_ROWS_AT_ONCE = 50_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectTable:
    """One row per object, ascending by id; all arrays have one entry (or row) per object.

    Attributes:
        unit: of lengths; "voxel" when the image is not calibrated.
        ids: unsigned integers.
        classes: int64 class ids, 0 where unknown.
        class_names: names of class ids.
        voxels: int64.
        volume: unit³ (area, unit², of an image).
        surface: unit² (perimeter, unit, of an image); nan when not measured.
        centroid: world position, (n, axes), unit.
        centroid_voxel: the same as an index, (n, axes).
        box_start: first voxel per axis, (n, axes), int64.
        box_stop: one after the last voxel per axis, (n, axes), int64.
        touches_border: bool; whether the object reaches the border of the volume.
        intensity_mean: or None without an image; so are the next three.
        intensity_std: population standard deviation.
        intensity_min: smallest intensity.
        intensity_max: largest intensity.
        confidence: mean of every confidence map over the object, 0..1, by the map's name.
        is_calibrated: whether these were made honest on held-out data; None without them.
        further: columns that engines or ways of linking add, by their name in the file.
    """

    unit: Unit
    ids: NDArray[Any]
    classes: NDArray[np.int64]
    class_names: Mapping[int, str]
    voxels: NDArray[np.int64]
    volume: NDArray[np.float64]
    surface: NDArray[np.float64]
    centroid: NDArray[np.float64]
    centroid_voxel: NDArray[np.float64]
    box_start: NDArray[np.int64]
    box_stop: NDArray[np.int64]
    touches_border: NDArray[np.bool_]
    intensity_mean: NDArray[np.float64] | None = None
    intensity_std: NDArray[np.float64] | None = None
    intensity_min: NDArray[np.float64] | None = None
    intensity_max: NDArray[np.float64] | None = None
    confidence: Mapping[str, NDArray[np.float64]] = field(
        default_factory=dict[str, NDArray[np.float64]]
    )
    is_calibrated: bool | None = None
    further: Mapping[str, NDArray[Any]] = field(default_factory=dict[str, NDArray[Any]])

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def ndim(self) -> int:
        """3 for a volume, 2 for an image."""
        return int(self.centroid.shape[1])

    @property
    def equivalent_diameter(self) -> NDArray[np.float64]:
        """Diameter of the ball (disc) of the same volume (area), in the unit."""
        if self.ndim == 2:
            return np.sqrt(4.0 * self.volume / math.pi)
        return np.cbrt(6.0 * self.volume / math.pi)

    @property
    def sphericity(self) -> NDArray[np.float64]:
        """Surface of the ball of the same volume over the object's surface (Wadell 1935).

        1 for a ball, less for anything else; for an image 4 pi area / perimeter². At most a few
        percent above 1, where a small ball's surface comes out too small.
        """
        surface = np.where(self.surface > 0, self.surface, np.nan)
        if self.ndim == 2:
            return 4.0 * math.pi * self.volume / surface**2
        return np.cbrt(36.0 * math.pi * self.volume**2) / surface

    def columns(self) -> dict[str, NDArray[Any]]:
        """Name → values, in the order of the CSV file; names carry the unit."""
        length = "vox" if self.unit == "voxel" else self.unit
        is_image = self.ndim == 2
        names = ("y", "x") if is_image else ("z", "y", "x")
        columns: dict[str, NDArray[Any]] = {"id": self.ids, "class": self.classes}
        if self.class_names:
            known = {value: self.class_names.get(value, "") for value in np.unique(self.classes)}
            columns["class_name"] = np.array([known[v] for v in self.classes], dtype=object)
        columns["voxels"] = self.voxels
        columns[f"area_{length}2" if is_image else f"volume_{length}3"] = self.volume
        columns[f"perimeter_{length}" if is_image else f"surface_{length}2"] = self.surface
        columns[f"equivalent_diameter_{length}"] = self.equivalent_diameter
        columns["circularity" if is_image else "sphericity"] = self.sphericity
        if length != "vox":
            columns |= {f"centroid_{a}_{length}": self.centroid[:, k] for k, a in enumerate(names)}
        columns |= {f"centroid_{a}_vox": self.centroid_voxel[:, k] for k, a in enumerate(names)}
        columns |= {f"box_{a}_start": self.box_start[:, k] for k, a in enumerate(names)}
        columns |= {f"box_{a}_stop": self.box_stop[:, k] for k, a in enumerate(names)}
        columns["touches_border"] = self.touches_border
        for name in ("intensity_mean", "intensity_std", "intensity_min", "intensity_max"):
            values = getattr(self, name)
            if values is not None:
                columns[name] = values
        columns |= {f"confidence_{name}": values for name, values in self.confidence.items()}
        if self.confidence:
            columns["confidence_calibrated"] = np.full(len(self), bool(self.is_calibrated))
        return columns | dict(self.further)

    def to_dataframe(self) -> "pd.DataFrame":
        """The columns as a pandas DataFrame."""
        import pandas as pd

        return pd.DataFrame(self.columns())

    def write_csv(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the columns as CSV: a header, commas, UTF-8, nan as an empty field.

        The file appears under its name only when it is complete.

        Returns:
            The path.

        Raises:
            OutputExistsError: when the file exists and ``overwrite`` is off.
            StorageError: when it cannot be written.
        """
        path = Path(path)
        if path.exists() and not overwrite:
            raise OutputExistsError(f"{path} exists", hint="add --overwrite to replace it")
        try:
            handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
            part = Path(name)
            try:
                with os.fdopen(handle, "w", newline="", encoding="utf-8") as file:
                    self._write_rows(csv.writer(file, lineterminator="\n"))
                # mkstemp gives the owner alone access; a result is as readable as other files.
                part.chmod(0o666 & ~_umask())
                part.replace(path)
            finally:
                part.unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(
                f"cannot write {path}: {error.strerror or error}",
                hint="check the folder, its permissions and the space left",
            ) from error
        return path

    def _write_rows(self, writer: Any) -> None:
        columns = self.columns()
        writer.writerow(columns)
        for start in range(0, len(self), _ROWS_AT_ONCE):
            batch = [_as_text(values[start : start + _ROWS_AT_ONCE]) for values in columns.values()]
            writer.writerows(zip(*batch, strict=True))


def _as_text(values: NDArray[Any]) -> list[Any]:
    """Values as they stand in a CSV file: nine significant digits, nan empty, flags 0 and 1."""
    if values.dtype.kind == "f":
        return ["" if math.isnan(value) else f"{value:.9g}" for value in values.tolist()]
    if values.dtype == np.bool_:
        return values.astype(np.int8).tolist()
    return values.tolist()


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
