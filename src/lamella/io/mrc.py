"""MRC, CCP4 map, IMOD .rec/.st/.ali, plain or packed with gzip or bzip2.

Plain files are mapped, not read; packed ones are unpacked into memory at the first access.

Examples:
    >>> probe(Path("a.mrc"), b"not MRC").verdict
    'no'
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamella.core.errors import UnreadableFileError
from lamella.io.format import OpenOptions, Probe
from lamella.io.mrc_geometry import read_geometry
from lamella.io.mrc_header import HEADER_BYTES, MrcHeader, parse_header, read_problem
from lamella.io.mrc_write import write
from lamella.io.unpacked import (
    Packing,
    UnpackedBytes,
    check_claim,
    decompression_errors,
    open_packed,
)
from lamella.volume import Affine, Axes, FunctionArray, LazyArray, Note, Volume

__all__ = ["probe", "read", "write"]

_SUFFIXES = (".mrc", ".mrcs", ".map", ".rec", ".st", ".ali", ".ccp4", ".preali")
_STACK_SUFFIXES = (".st", ".ali", ".preali", ".mrcs")
_EXTENDED_BYTES = 2**16


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
    packing = _packing(path)
    head, extended = _read_start(path, packing)
    header = parse_header(head, name=path.name)
    geometry = read_geometry(header, extended)
    notes = [*header.notes, *geometry.notes]
    source: LazyArray
    if packing is None:
        _check_size(path, header, notes)
        source = _mapped(path, header)
    else:
        source = _unpacked(path, header, packing)
    columns, rows, sections = header.size_crs
    n_volumes = _count_volumes(header, notes)
    file_shape = (sections // n_volumes, rows, columns)
    shape = tuple(file_shape[axis] for axis in geometry.order)
    data = _arranged(source, n_volumes, shape, geometry.order, has_time=header.is_volume_stack)
    axes = "tzyx" if header.is_volume_stack else "zyx"
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


def _packing(path: Path) -> Packing | None:
    with path.open("rb") as stream:
        magic = stream.read(3)
    if magic[:2] == b"\x1f\x8b":
        return "gzip"
    return "bzip2" if magic == b"BZh" else None


def _read_start(path: Path, packing: Packing | None) -> tuple[bytes, bytes]:
    opener = open_packed(path, packing) if packing else lambda: path.open("rb")
    with decompression_errors(path), opener() as stream:
        head = stream.read(HEADER_BYTES)
        if read_problem(head) is not None:
            return head, b""
        length = int(parse_header(head, name=path.name).raw["nsymbt"])
        return head, stream.read(min(length, _EXTENDED_BYTES))


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


def _unpacked(path: Path, header: MrcHeader, packing: Packing) -> LazyArray:
    """A packed file, unpacked at the first access."""
    columns, rows, sections = header.size_crs
    check_claim(path, header.data_bytes, packing)
    content = UnpackedBytes(path, open_packed(path, packing), header.data_bytes, skip=header.offset)

    def read_region(slices: tuple[slice, ...]) -> NDArray[Any]:
        flat = content.get()
        if header.mode == 101:
            raw = flat.reshape(sections, rows, header.row_bytes)
            return np.asarray(_nibbles(raw, columns)[slices])
        return np.array(flat.view(header.dtype).reshape(sections, rows, columns)[slices])

    return FunctionArray((sections, rows, columns), header.dtype, read_region)


def _count_volumes(header: MrcHeader, notes: list[Note]) -> int:
    if not header.is_volume_stack:
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
