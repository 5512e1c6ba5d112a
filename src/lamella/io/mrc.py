"""MRC, CCP4 map, IMOD .rec/.st/.ali, plain or packed with gzip or bzip2.

Plain files are mapped, not read; packed ones are unpacked into memory at the first access.

Examples:
    >>> probe(Path("a.mrc"), b"not MRC").verdict
    'no'
"""

import bz2
import gzip
import math
import threading
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from lamella.core.errors import AxesError, InputError, UnreadableFileError
from lamella.io.format import OpenOptions, Probe, SaveOptions
from lamella.io.mrc_geometry import geometry_labels, header_fields, read_geometry
from lamella.io.mrc_header import HEADER_BYTES, RAW_HEADER, MrcHeader, parse_header, read_problem
from lamella.io.narrow import SLAB_BYTES, checked_slabs, parse_dtype
from lamella.volume import Affine, Axes, FunctionArray, LazyArray, Note, Volume, iter_slabs

__all__ = ["probe", "read", "write"]

_SUFFIXES = (".mrc", ".mrcs", ".map", ".rec", ".st", ".ali", ".ccp4", ".preali")
_STACK_SUFFIXES = (".st", ".ali", ".preali", ".mrcs")
_EXTENDED_BYTES = 2**16
_STACK_ISPG = 401
_MODE_OF = {"int8": 0, "int16": 1, "float32": 2, "complex64": 4, "uint16": 6, "float16": 12}
_STORED_AS = {
    "bool": "int8",
    "uint8": "uint16",
    "uint32": "uint16",
    "uint64": "uint16",
    "float64": "float32",
    "complex128": "complex64",
}
_NARROWING_HINT = (
    "MRC holds integers up to 65535: write OME-Zarr, OME-TIFF or NIfTI instead, renumber the"
    " labels, or choose --dtype float32"
)


def probe(path: Path, head: bytes) -> Probe:
    """MRC has its magic late (byte 208) and old files have none: the fields must make sense."""
    is_named = _bare_name(path).endswith(_SUFFIXES)
    if head[:2] == b"\x1f\x8b" or head[:3] == b"BZh":
        return Probe.no("its compressed stream is damaged")
    has_magic = head[208:211] == b"MAP"
    problem = read_problem(head)
    if problem is not None:
        # A file that says MAP is MRC even when damaged: reading it gives the precise reason.
        return Probe.yes("the MAP string") if has_magic else Probe.no(problem)
    if has_magic:
        return Probe.yes("the MAP string and a sensible header")
    if is_named:
        return Probe.yes("a sensible header, without MAP string")
    return Probe.maybe("the first bytes could be an old MRC header")


def read(path: Path, options: OpenOptions) -> Volume:
    """Open an MRC file.

    Args:
        path: the file.
        options: nothing in it matters to MRC.

    Returns:
        The volume, (z, y, x); (y, x) for a single image; (t, z, y, x) for a stack of volumes.

    Raises:
        UnreadableFileError: when the header makes no sense or the file is shorter than it says.
    """
    del options
    opener = _opener(path)
    head, extended = _read_start(path, opener)
    header = parse_header(head, name=path.name)
    geometry = read_geometry(header, extended)
    notes = [*header.notes, *geometry.notes]
    source: LazyArray
    if opener is None:
        _check_size(path, header, notes)
        source = _mapped(path, header)
    else:
        source = _Unpacked(path, header, opener).array()
    columns, rows, sections = header.size_crs
    n_volumes = _count_volumes(header, notes)
    file_shape = (sections // n_volumes, rows, columns)
    shape = tuple(file_shape[axis] for axis in geometry.order)
    data = _arranged(source, n_volumes, shape, geometry.order, has_time=_is_volume_stack(header))
    axes = "tzyx" if _is_volume_stack(header) else "zyx"
    affine = geometry.affine
    if sections == 1 and int(header.raw["ispg"]) == 0 and geometry.order == (0, 1, 2):
        axes, data, affine = "yx", _plane(data), _drop_z(affine)
    _note_images(path, header, notes)
    return Volume(
        data=data,
        axes=Axes.parse(axes),
        affine=affine,
        unit=geometry.unit,
        name=_stem(path),
        notes=tuple(notes),
        metadata=_metadata(header),
        path=path,
    )


def write(volume: Volume, path: Path, options: SaveOptions) -> None:
    """Write MRC2014, slab by slab.

    uint8 is widened to uint16 (MRC's bytes are signed), float64 rounded to float32; wider integers
    are written as 16 bits when every value fits.

    Raises:
        AxesError: for channels.
        NarrowingError: when an integer does not fit.
    """
    volume = _writable(volume)
    dtype = _stored_dtype(volume, options)
    suffix = path.suffix.lower()
    if suffix not in (".gz", ".bz2"):
        _write_plain(volume, path, dtype, options)
        return
    # Statistics stand in front of the voxels they come from, and a packed file cannot be patched.
    plain = path.with_name(f"{path.name}.unpacked")
    try:
        _write_plain(volume, plain, dtype, options)
        _pack(plain, path, suffix)
    finally:
        plain.unlink(missing_ok=True)


def _opener(path: Path) -> Any:
    with path.open("rb") as stream:
        magic = stream.read(3)
    if magic[:2] == b"\x1f\x8b":
        return gzip.open
    return bz2.open if magic == b"BZh" else None


def _read_start(path: Path, opener: Any) -> tuple[bytes, bytes]:
    with _damage_named(path), (opener or open)(path, "rb") as stream:
        head = stream.read(HEADER_BYTES)
        if read_problem(head) is not None:
            return head, b""
        length = int(parse_header(head, name=path.name).raw["nsymbt"])
        return head, stream.read(min(length, _EXTENDED_BYTES))


class _damage_named:  # noqa: N801 - reads as a statement
    """Decompressors have five ways to complain about damaged bytes; we have one."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: Any, trace: Any) -> None:
        if isinstance(error, EOFError | zlib.error | gzip.BadGzipFile | ValueError) or (
            isinstance(error, OSError) and error.errno is None
        ):
            if isinstance(error, InputError):
                return
            raise UnreadableFileError(
                f"{self._path.name}: its compressed data are damaged or cut off ({error})",
                hint="copy or download the file again",
            ) from error


def _check_size(path: Path, header: MrcHeader, notes: list[Note]) -> None:
    actual = path.stat().st_size
    if actual < header.total_bytes:
        columns, rows, sections = header.size_crs
        raise UnreadableFileError(
            f"{path.name} is truncated: {sections} x {rows} x {columns} voxels need"
            f" {header.total_bytes} bytes, the file has {actual}",
            hint="copy or download the file again",
            details={"bytes": actual, "expected_bytes": header.total_bytes},
        )
    if actual > header.total_bytes:
        surplus = actual - header.total_bytes
        notes.append(Note("surplus_bytes", f"{surplus} bytes after the voxels are ignored"))


def _mapped(path: Path, header: MrcHeader) -> LazyArray:
    columns, rows, sections = header.size_crs
    if header.mode == 101:
        raw = np.memmap(path, "u1", "r", header.offset, (sections, rows, header.row_bytes))
        return _nibbles(raw, columns)
    mapped = np.memmap(path, header.dtype, "r", header.offset, (sections, rows, columns))
    # Copied: a view would hand out read-only arrays that change when the file does.
    return FunctionArray(mapped.shape, header.dtype, lambda s: np.array(mapped[s]))


def _nibbles(raw: NDArray[Any], columns: int) -> LazyArray:
    """Mode 101: two values a byte, the first one in the low four bits; rows start on a byte."""

    def read_region(slices: tuple[slice, ...]) -> NDArray[Any]:
        start, stop = slices[2].start, slices[2].stop
        packed = np.asarray(raw[slices[0], slices[1], start // 2 : (stop + 1) // 2])
        both = np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:2], -1)
        first = start - start // 2 * 2
        return both[:, :, first : first + stop - start]

    return FunctionArray((raw.shape[0], raw.shape[1], columns), "u1", read_region)


@dataclass
class _Unpacked:
    """A packed file, in memory from the first access on."""

    path: Path
    header: MrcHeader
    opener: Any
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _content: LazyArray | None = None

    def array(self) -> LazyArray:
        columns, rows, sections = self.header.size_crs
        dtype = self.header.dtype
        return FunctionArray((sections, rows, columns), dtype, lambda s: self._load()[s])

    def _load(self) -> LazyArray:
        with self._lock:
            if self._content is None:
                self._content = self._unpack()
            return self._content

    def _unpack(self) -> LazyArray:
        columns, rows, sections = self.header.size_crs
        blocks: list[bytes] = []
        left = self.header.data_bytes
        with _damage_named(self.path), self.opener(self.path, "rb") as stream:
            stream.seek(self.header.offset)
            # In pieces: a damaged header may claim far more than the file holds.
            while left > 0 and (block := stream.read(min(left, 2**24))):
                blocks.append(block)
                left -= len(block)
        if left > 0:
            raise UnreadableFileError(
                f"{self.path.name} is truncated: {left} of {self.header.data_bytes} bytes of voxels"
                " are missing after unpacking",
                hint="copy or download the file again",
            )
        flat = np.frombuffer(b"".join(blocks), np.uint8)
        if self.header.mode == 101:
            return _nibbles(flat.reshape(sections, rows, self.header.row_bytes), columns)
        return flat.view(self.header.dtype).reshape(sections, rows, columns)


def _is_volume_stack(header: MrcHeader) -> bool:
    return 401 <= int(header.raw["ispg"]) <= 630


def _count_volumes(header: MrcHeader, notes: list[Note]) -> int:
    if not _is_volume_stack(header):
        return 1
    sections, each = header.size_crs[2], int(header.raw["grid"][2])
    if each < 1 or sections % each:
        message = f"a stack of volumes of {each} sections cannot have {sections}; read as one"
        notes.append(Note("volume_stack", message))
        return 1
    notes.append(Note("volume_stack", f"{sections // each} volumes, read as time points"))
    return sections // each


def _arranged(
    source: LazyArray,
    n_volumes: int,
    shape: tuple[int, ...],
    order: tuple[int, int, int],
    *,
    has_time: bool,
) -> LazyArray:
    """The file's (sections, rows, columns) as (z, y, x), or (t, z, y, x)."""
    if not has_time and order == (0, 1, 2):
        return source
    depth = shape[order.index(0)]

    def read_volume(at: int, zyx: tuple[slice, ...]) -> NDArray[Any]:
        in_file = [zyx[order.index(axis)] for axis in range(3)]
        in_file[0] = slice(in_file[0].start + at * depth, in_file[0].stop + at * depth)
        return np.asarray(source[tuple(in_file)]).transpose(order)

    def read_region(slices: tuple[slice, ...]) -> NDArray[Any]:
        if not has_time:
            return read_volume(0, slices)
        times = range(slices[0].start, slices[0].stop)
        return np.stack([read_volume(at, slices[1:]) for at in times])

    full = (n_volumes, *shape) if has_time else shape
    return FunctionArray(full, source.dtype, read_region)


def _plane(data: LazyArray) -> LazyArray:
    return FunctionArray(data.shape[1:], data.dtype, lambda s: np.asarray(data[(0, *s)]))


def _drop_z(affine: Affine) -> Affine:
    direction = tuple(row[1:] for row in affine.direction[1:])
    return Affine(affine.spacing[1:], affine.origin[1:], direction, affine.frame)


def _note_images(path: Path, header: MrcHeader, notes: list[Note]) -> None:
    sections, grid = header.size_crs[2], int(header.raw["grid"][2])
    is_stack = int(header.raw["ispg"]) == 0 and grid == 1
    if sections > 1 and (is_stack or _bare_name(path).endswith(_STACK_SUFFIXES)):
        message = f"{sections} separate images (such as a tilt series), not a volume's depth"
        notes.append(Note("image_stack", message))


def _metadata(header: MrcHeader) -> dict[str, Any]:
    raw = header.raw
    return {
        "mode": header.mode,
        "byte_order": "little" if header.byte_order == "<" else "big",
        "space_group": int(raw["ispg"]),
        "cell_angstrom_xyz": tuple(float(v) for v in raw["cell"]),
        "grid_xyz": tuple(int(v) for v in raw["grid"]),
        "range": (float(raw["dmin"]), float(raw["dmax"])),
        "extended_header": bytes(raw["exttyp"]).decode("latin-1").strip("\0 "),
        "extended_header_bytes": int(raw["nsymbt"]),
        "labels": header.labels,
    }


def _bare_name(path: Path) -> str:
    return path.name.lower().removesuffix(".gz").removesuffix(".bz2")


def _stem(path: Path) -> str:
    name = path.name
    for suffix in (".gz", ".bz2", *_SUFFIXES):
        if name.lower().endswith(suffix):
            name = name[: -len(suffix)]
    return name


def _writable(volume: Volume) -> Volume:
    """Without channel axes and single time points; what is left has 2 to 4 axes."""
    for axis in ("c", "t"):
        if str(volume.axes) in ("tzyx", "zyx", "yx"):
            break
        if axis in volume.axes and volume.shape[volume.axes.index(axis)] == 1:
            volume = volume.select(axis, 0)
    if str(volume.axes) not in ("tzyx", "zyx", "yx"):
        raise AxesError(
            f"MRC holds no axes {str(volume.axes)!r}",
            hint="choose one channel or time with --channel or --time, or write OME-Zarr",
        )
    return volume


def _stored_dtype(volume: Volume, options: SaveOptions) -> np.dtype[Any]:
    wanted = parse_dtype(options.dtype) if options.dtype is not None else volume.dtype
    if wanted.name in ("int32", "int64"):
        lowest = min((int(slab.min()) for _, slab in iter_slabs(volume.data)), default=0)
        return np.dtype("int16" if lowest < 0 else "uint16")
    return np.dtype(_STORED_AS.get(wanted.name, wanted.name))


def _write_plain(volume: Volume, path: Path, dtype: np.dtype[Any], options: SaveOptions) -> None:
    statistics = _Statistics()
    little = dtype.newbyteorder("<")
    with path.open("wb") as stream:
        _write_header(stream, volume, dtype, statistics)
        for part in _volumes(volume):
            for _, slab in checked_slabs(part, dtype, options, hint=_NARROWING_HINT):
                statistics.add(slab)
                stream.write(np.ascontiguousarray(slab, little).data)
        stream.seek(0)
        _write_header(stream, volume, dtype, statistics)


def _volumes(volume: Volume) -> list[Volume]:
    if "t" not in volume.axes:
        return [volume]
    return [volume.select("t", at) for at in range(volume.shape[0])]


def _write_header(
    stream: IO[bytes], volume: Volume, dtype: np.dtype[Any], statistics: "_Statistics"
) -> None:
    *lead, rows, columns = volume.shape
    depth = lead[-1] if lead else 1
    size_crs = (columns, rows, math.prod(lead))
    raw = np.zeros((), RAW_HEADER.newbyteorder("<"))
    raw["size"] = size_crs
    raw["mode"] = _MODE_OF[dtype.name]
    raw["grid"] = (columns, rows, depth)
    for name, value in header_fields(volume, (columns, rows, depth)).items():
        raw[name] = value
    raw["angles"] = 90.0
    raw["map_axes"] = (1, 2, 3)
    raw["dmin"], raw["dmax"], raw["dmean"], raw["rms"] = statistics.header_values()
    raw["ispg"] = {2: 0, 3: 1, 4: _STACK_ISPG}[volume.data.ndim]
    raw["nversion"] = 20141
    raw["map_id"] = b"MAP "
    raw["stamp"] = (0x44, 0x44, 0, 0)
    labels = ["Written by Lamella", *geometry_labels(volume, size_crs)]
    raw["n_labels"] = len(labels)
    raw["labels"][: len(labels)] = [label.encode("ascii") for label in labels]
    stream.write(raw.tobytes())


def _pack(plain: Path, path: Path, suffix: str) -> None:
    with plain.open("rb") as source, path.open("wb") as raw:
        # No name and no time inside: the same volume gives the same bytes.
        packed: Any = (
            gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=raw, mtime=0)
            if suffix == ".gz"
            else bz2.BZ2File(raw, "wb")
        )
        with packed:
            while block := source.read(SLAB_BYTES):
                packed.write(block)


@dataclass
class _Statistics:
    """Range, mean and standard deviation, slab by slab (Chan et al. 1983)."""

    low: float = math.inf
    high: float = -math.inf
    n: int = 0
    mean: float = 0.0
    squares: float = 0.0
    is_known: bool = True

    def add(self, slab: NDArray[Any]) -> None:
        # In pieces that stay in the processor's cache: float64 copies of a slab would not.
        flat = slab.reshape(-1)
        for start in range(0, flat.size, 2**16):
            self._add_piece(flat[start : start + 2**16])

    def _add_piece(self, slab: NDArray[Any]) -> None:
        if slab.dtype.kind == "c" or (slab.dtype.kind == "f" and not np.isfinite(slab).all()):
            self.is_known = False
        if not self.is_known:
            return
        self.low = min(self.low, float(slab.min()))
        self.high = max(self.high, float(slab.max()))
        mean = float(slab.mean(dtype=np.float64))
        squares = float(slab.var(dtype=np.float64)) * slab.size
        total = self.n + slab.size
        shift = mean - self.mean
        self.squares += squares + shift * shift * self.n * slab.size / total
        self.mean += shift * slab.size / total
        self.n = total

    def header_values(self) -> tuple[float, float, float, float]:
        """dmin, dmax, dmean, rms; MRC2014's marks for unknown ones (dmax < dmin) where so."""
        if not self.is_known or self.n == 0:
            return 0.0, -1.0, -2.0, -1.0
        return self.low, self.high, self.mean, math.sqrt(self.squares / self.n)
