"""HDF5: one dataset of a file, chosen by name or because there is only one image in it.

Examples:
    >>> from pathlib import Path
    >>> probe(Path("a.h5"), b"PK").verdict
    'no'
"""

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamella.core.errors import GeometryError, InputError, UnreadableFileError
from lamella.io.arrangement import AxesPlan, arranged, guess_axes
from lamella.io.damage import damage_named, packed_reason
from lamella.io.format import ContentEntry, OpenOptions, Probe, SaveOptions
from lamella.io.narrow import checked_slabs, parse_dtype
from lamella.io.placed import recorded_axes, with_placed_record
from lamella.io.record import RECORD_KEY, make_record, parse_record
from lamella.volume import Affine, FunctionArray, Labels, LazyArray, Note, Unit, Volume
from lamella.volume.spacing import convert_length, parse_unit

__all__ = ["contents", "probe", "read", "write"]

_MAGIC = b"\x89HDF\r\n\x1a\n"
_RAW_NAMES = frozenset({"raw", "image", "img", "data", "volume", "stack", "em"})
_MAX_LISTED = 200
_CHUNK = (32, 64, 64)
_MINC = (
    "a MINC file, read as plain HDF5: its spacing and the scaling of its integers are not applied;"
    " convert it with mnc2nii first"
)


def probe(path: Path, head: bytes) -> Probe:
    """By its magic, at the start or behind a user block (MATLAB's files)."""
    if (packed := packed_reason(path)) is not None:
        return Probe.no(packed)
    if any(head[at : at + 8] == _MAGIC for at in (0, 512, 1024, 2048)):
        return Probe.yes("HDF5's magic")
    return Probe.no("it does not start with HDF5's magic")


def contents(path: Path) -> tuple[ContentEntry, ...]:
    """Every numeric dataset of 2 to 5 axes."""
    import h5py

    with damage_named(path, "HDF5"), h5py.File(path, "r", locking=False) as file:
        return _entries(file)


def read(path: Path, options: OpenOptions) -> Volume:
    """Open a dataset.

    Args:
        path: the file.
        options: ``dataset`` chooses, ``axes`` names the axes.

    Raises:
        UnreadableFileError: for damaged files.
        InputError: when several datasets could be meant, or the one named is not there.
        AxesError: when the axes are ambiguous.
    """
    import h5py

    with damage_named(path, "HDF5"), h5py.File(path, "r", locking=False) as file:
        name, notes = _choose(file, path, options.dataset)
        if "minc-2.0" in file:
            notes = (*notes, Note("minc", _MINC))
        dataset: Any = file[name]
        attributes = _attributes(dataset)
        stored, dtype = tuple(int(n) for n in dataset.shape), np.dtype(dataset.dtype)
        metadata = {
            "dataset": name,
            "chunks": dataset.chunks,
            "compression": dataset.compression,
            "attributes": {k: v for k, v in attributes.items() if k != RECORD_KEY},
        }
    record = parse_record(str(attributes.get(RECORD_KEY, "")))
    named = _axis_names(attributes, len(stored))
    plan = guess_axes(stored, options.axes, recorded_axes(record) or named)
    spacing, unit, more = _spacing(attributes, plan)
    source = _Dataset(path, name, stored, dtype).array()
    volume = Volume(
        data=arranged(source, plan),
        axes=plan.axes,
        affine=Affine.diagonal(spacing),
        unit=unit,
        name=name.rsplit("/", 1)[-1],
        notes=(*notes, *plan.notes, *more),
        metadata=metadata,
        path=path,
    )
    return with_placed_record(volume, record, knows_spacing=unit != "voxel")


def write(volume: Volume, path: Path, options: SaveOptions) -> None:
    """Write ``raw`` (or ``label``) with ``element_size_um``, as PlantSeg and ilastik read it.

    Raises:
        NarrowingError: when values do not fit the type asked for.
    """
    import h5py

    dtype = parse_dtype(options.dtype) if options.dtype is not None else volume.dtype
    name = "label" if isinstance(volume, Labels) else "raw"
    chunks = (1,) * volume.axes.n_leading + _CHUNK[-volume.axes.n_spatial :]
    with h5py.File(path, "w", libver=("earliest", "v110"), track_order=True) as file:
        dataset = file.create_dataset(
            name,
            shape=volume.shape,
            dtype=dtype,
            chunks=tuple(min(n, c) for n, c in zip(volume.shape, chunks, strict=True)),
            compression="gzip" if options.compress else None,
            compression_opts=4 if options.compress else None,
            shuffle=options.compress,
            # No dates inside: the same volume gives the same bytes.
            track_times=False,
        )
        if volume.unit != "voxel":
            size = [convert_length(s, volume.unit, "um") for s in volume.affine.spacing]
            dataset.attrs["element_size_um"] = np.asarray(size, np.float64)
        dataset.attrs["axes"] = str(volume.axes)
        dataset.attrs[RECORD_KEY] = make_record(volume)
        for extent, slab in checked_slabs(volume, dtype, options):
            dataset[extent] = slab


@dataclass
class _Dataset:
    """A dataset that is opened again for whoever needs it; HDF5 itself takes one reader a time."""

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _open: Any = None

    def array(self) -> LazyArray:
        return FunctionArray(self.shape, self.dtype, self._read)

    def _read(self, slices: tuple[slice, ...]) -> NDArray[Any]:
        import h5py

        with self._lock, damage_named(self.path, "HDF5"):
            # Kept open: HDF5's chunk cache lives as long as the handle.
            if self._open is None:
                self._open = h5py.File(self.path, "r", locking=False)[self.name]
            return np.asarray(self._open[slices])


def _entries(file: Any) -> tuple[ContentEntry, ...]:
    import h5py

    found: list[ContentEntry] = []

    def visit(name: str, node: Any) -> bool | None:
        if isinstance(node, h5py.Dataset) and _is_image(node):
            shape = tuple(int(n) for n in node.shape)
            found.append(ContentEntry("dataset", name, name, shape, str(node.dtype)))
        return True if len(found) >= _MAX_LISTED else None

    file.visititems(visit)
    return tuple(found)


def _is_image(node: Any) -> bool:
    shape = node.shape
    if shape is None or node.dtype.kind not in "buifc" or not 2 <= len(shape) <= 5:
        return False
    return min(shape) > 0


def _choose(file: Any, path: Path, wanted: str | None) -> tuple[str, tuple[Note, ...]]:
    entries = {entry.id: entry for entry in _entries(file)}
    listed = ", ".join(f"{e.id} {e.shape} {e.dtype}" for e in list(entries.values())[:20])
    if wanted is not None:
        name = wanted.strip("/")
        if name in entries:
            return name, ()
        raise InputError(
            f"{path.name} has no image dataset {wanted!r}",
            hint=f"choose one of {listed}" if listed else "the file holds no image",
        )
    if not entries:
        raise UnreadableFileError(
            f"{path.name} holds no image: no dataset of numbers with 2 to 5 axes",
            hint="list what is in it with `lamella info`",
        )
    if len(entries) == 1:
        return next(iter(entries)), ()
    raw = [name for name in entries if name.rsplit("/", 1)[-1].lower() in _RAW_NAMES]
    if len(raw) == 1:
        message = f"dataset {raw[0]} read out of {listed}; choose another with --dataset"
        return raw[0], (Note("dataset_chosen", message),)
    raise InputError(
        f"{path.name} holds {len(entries)} datasets that could be meant",
        hint=f"choose one with --dataset: {listed}",
        details={"datasets": list(entries)},
    )


def _attributes(dataset: Any) -> dict[str, Any]:
    """Attributes as plain values; what cannot be read is left out."""
    plain: dict[str, Any] = {}
    for name in dataset.attrs:
        try:
            value = dataset.attrs[name]
        except (OSError, TypeError, ValueError, KeyError):
            continue
        if isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
        if isinstance(value, np.ndarray):
            value = value.tolist() if value.size <= 1000 else f"array of shape {value.shape}"
        elif isinstance(value, np.generic):
            value = value.item()
        plain[str(name)] = value
    return plain


def _axis_names(attributes: Mapping[str, Any], n: int) -> str | None:
    """Axes out of ``axes``, ilastik's ``axistags`` or HDF5's dimension labels."""
    candidates: list[str] = []
    if isinstance(attributes.get("axes"), str):
        candidates.append(attributes["axes"])
    try:
        tags = json.loads(str(attributes.get("axistags", "")))
        candidates.append("".join(str(tag["key"]) for tag in tags["axes"]))
    except (ValueError, KeyError, TypeError):
        pass
    labels = attributes.get("DIMENSION_LABELS")
    if isinstance(labels, list):
        words = (label.decode() if isinstance(label, bytes) else str(label) for label in labels)
        candidates.append("".join(words))
    for candidate in candidates:
        letters = candidate.lower()
        if (
            len(letters) == n
            and len(set(letters)) == n
            and set("yx") <= set(letters) <= set("tczyx")
        ):
            return letters
    return None


def _spacing(
    attributes: Mapping[str, Any], plan: AxesPlan
) -> tuple[tuple[float, ...], Unit, tuple[Note, ...]]:
    """Spacing from the attributes that PlantSeg, CREMI and funlib write, (z, y, x)."""
    n = plan.axes.n_spatial
    for key, usual in (("element_size_um", "um"), ("resolution", "nm"), ("voxel_size", "nm")):
        values = _numbers(attributes.get(key), n)
        if values is None:
            continue
        word = attributes.get("unit", attributes.get("units")) if usual == "nm" else usual
        word = word[0] if isinstance(word, list) and word else word
        notes: tuple[Note, ...] = ()
        if not isinstance(word, str):
            message = f"attribute {key!r} has no unit; taken as {usual}"
            notes, word = (Note("unit_assumed", message),), usual
        try:
            unit, factor = parse_unit(word)
        except GeometryError:
            continue
        if unit != "voxel":
            return tuple(v * factor for v in values), unit, notes
    missing = Note("spacing_missing", "the dataset gives no spacing; set it with --spacing")
    return (1.0,) * n, "voxel", (missing,)


def _numbers(value: Any, n: int) -> tuple[float, ...] | None:
    try:
        values = tuple(float(v) for v in value)
    except (TypeError, ValueError):
        return None
    values = values[-n:]
    if len(values) != n or not all(np.isfinite(v) and v > 0 for v in values):
        return None
    return values
