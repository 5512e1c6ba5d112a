"""NIfTI-1, NIfTI-2 (single files, pairs, .gz) and Analyze 7.5: read; NIfTI: written.

Geometry: the sform where its code is set, else the qform, else the spacing alone; differences
between them are noted. Four-dimensional files are time series (t) unless their intent or their
fourth unit says that the values belong to one voxel (c); a fifth axis is c.

Uncompressed files are mapped: a slice costs a slice. Compressed ones are unpacked once.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamella.core.errors import UnreadableFileError
from lamella.io.format import OpenOptions, Probe, SaveOptions
from lamella.io.layout import Layout, in_plane, lazy_array
from lamella.io.nifti_header import RECORD_ECODE, NiftiHeader, header_kind, parse_header
from lamella.io.nifti_labels import label_table
from lamella.io.record import parse_record, with_record
from lamella.io.unpacked import (
    Packing,
    UnpackedBytes,
    check_claim,
    decompression_errors,
    open_packed,
)
from lamella.volume import LabelClass, Labels, Volume

__all__ = ["probe", "read", "write"]

_HEADER_BYTES = 540
_MOST_EXTENSION_BYTES = 16 * 2**20
_PAIRS = {".hdr": ".img", ".img": ".hdr"}


def probe(path: Path, head: bytes) -> Probe:
    """By the header's size and magic; an Analyze header, which has none, also by its name."""
    kind = header_kind(head)
    if path.is_dir():
        return Probe.no("a folder")
    if kind in ("NIfTI-1", "NIfTI-2"):
        return Probe.yes(f"a {kind} header")
    name = path.name.lower()
    if kind == "Analyze 7.5" and name.endswith((".hdr", ".hdr.gz")):
        return Probe.yes("an Analyze 7.5 header")
    if name.endswith((".img", ".img.gz")):
        header = _partner(path)
        if header is None:
            return Probe.no("an .img file without the .hdr file that describes it")
        return Probe.yes(f"described by {header.name}")
    return Probe.no("no NIfTI or Analyze header (sizeof_hdr is neither 348 nor 540)")


def read(path: Path, options: OpenOptions) -> Volume:
    """Open lazily.

    Raises:
        UnreadableFileError: for damaged or truncated files.
        GeometryError: for an affine that makes no grid.
        InputError: for files that hold no image, and unsupported voxel types.
    """
    header_path, data_path = _paths(path)
    head, record, classes = _read_head(header_path)
    header = parse_header(header_path, head, axes=options.axes)
    if record is not None and options.axes is None:
        header = replace(header, layout=_as_recorded(header.layout, str(record.get("axes"))))
    volume = _volume(path, data_path, header)
    if record is None and classes and volume.dtype.kind in "ui":
        known = {name: getattr(volume, name) for name in Volume.__dataclass_fields__}
        return Labels(**known, classes=classes)
    return with_record(volume, record)


def write(volume: Volume, path: Path, options: SaveOptions) -> None:
    """Write a single file, compressed where the name ends in ``.gz``.

    Raises:
        InputError: for names of pairs, and types that NIfTI does not hold.
    """
    from lamella.io.nifti_write import write_nifti

    write_nifti(volume, path, options)


def _volume(path: Path, data_path: Path, header: NiftiHeader) -> Volume:
    packing = _packing(data_path)
    check_claim(data_path, header.n_bytes, packing, offset=0 if packing else header.offset)
    lengths, stored = header.layout.lengths, header.stored
    if packing is None:
        mapped = np.memmap(data_path, stored, "r", header.offset, lengths)

        def source() -> NDArray[Any]:
            return mapped

    else:
        unpacked = UnpackedBytes(
            data_path, open_packed(data_path, packing), header.n_bytes, skip=header.offset
        )

        def source() -> NDArray[Any]:
            return unpacked.get().view(stored).reshape(lengths)

    dtype = header.rescale.dtype_of(stored.newbyteorder("="))
    axes = header.layout.axes
    is_plane = "z" not in axes
    volume = Volume(
        data=lazy_array(header.layout, source, dtype, header.rescale.apply),
        axes=axes,
        affine=in_plane(header.affine) if is_plane else header.affine,
        unit=header.unit,
        name=_stem(path),
        channel_names=_sample_names(header),
        notes=header.notes,
        metadata=header.metadata,
        path=path,
    )
    if header.is_labels and volume.dtype.kind in "ui":
        return Labels(**{name: getattr(volume, name) for name in Volume.__dataclass_fields__})
    return volume


def _sample_names(header: NiftiHeader) -> tuple[str, ...]:
    is_rgb = header.layout.letters[-1] == "c"
    return tuple("RGBA"[: header.layout.lengths[-1]]) if is_rgb else ()


def _as_recorded(layout: Layout, axes: str) -> Layout:
    """Drop or keep axes of length 1 as they were when Lamella wrote the file."""
    usual = ("c", "t", "z", "y", "x")
    if len(layout.lengths) > 5 or set(layout.letters) - {*usual, None} or not set(axes) <= {*usual}:
        return layout
    letters = list(usual[-len(layout.lengths) :])
    recorded: list[str | None] = [name if name in axes else None for name in letters]
    is_possible = all(
        name is not None or length == 1
        for name, length in zip(recorded, layout.lengths, strict=True)
    )
    return Layout(layout.lengths, tuple(recorded)) if is_possible else layout


def _paths(path: Path) -> tuple[Path, Path]:
    """Where the header is and where the data."""
    kind_suffix = "".join(path.suffixes[-2:]).lower()
    plain = kind_suffix.removesuffix(".gz")
    if not plain.endswith((".hdr", ".img")):
        return path, path
    partner = _partner(path)
    is_header = plain.endswith(".hdr")
    if is_header and _is_single(path):
        return path, path
    if partner is None:
        lacking = "its .img file with the voxels" if is_header else "its .hdr file"
        raise UnreadableFileError(
            f"{path} is one half of a pair: {lacking} is missing",
            hint="put the .hdr and the .img file into the same folder",
        )
    return (path, partner) if is_header else (partner, path)


def _is_single(path: Path) -> bool:
    with decompression_errors(path), _open(path)() as stream:
        return stream.read(348)[344:347] == b"n+1"


def _partner(path: Path) -> Path | None:
    name = path.name
    gz = ".gz" if name.lower().endswith(".gz") else ""
    stem = name[: len(name) - len(gz)]
    suffix = Path(stem).suffix
    other = _PAIRS.get(suffix.lower())
    if other is None:
        return None
    if suffix.isupper():
        other = other.upper()
    base = stem[: len(stem) - len(suffix)]
    for ending in (gz, "" if gz else ".gz"):
        candidate = path.with_name(base + other + ending)
        if candidate.is_file():
            return candidate
    return None


def _packing(path: Path) -> Packing | None:
    with path.open("rb") as stream:
        magic = stream.read(3)
    if magic[:2] == b"\x1f\x8b":
        return "gzip"
    return "bzip2" if magic == b"BZh" else None


def _open(path: Path) -> Any:
    packing = _packing(path)
    return (lambda: path.open("rb")) if packing is None else open_packed(path, packing)


def _read_head(
    path: Path,
) -> tuple[bytes, dict[str, Any] | None, tuple[LabelClass, ...]]:
    """The header, and what follows it: Lamella's record, or another program's table of classes."""
    with decompression_errors(path), _open(path)() as stream:
        head = stream.read(_HEADER_BYTES)
        kind = header_kind(head)
        if kind not in ("NIfTI-1", "NIfTI-2"):
            return head, None, ()
        size = 540 if kind == "NIfTI-2" else 348
        order: Any = "little" if int.from_bytes(head[:4], "little") == size else "big"
        mark = "<" if order == "little" else ">"
        if kind == "NIfTI-2":
            offset = float(np.frombuffer(head[168:176], mark + "i8")[0])
        else:
            offset = float(np.frombuffer(head[108:112], mark + "f4")[0])
        if not np.isfinite(offset):
            return head, None, ()
        rest = stream.read(int(min(max(offset - len(head), 0), _MOST_EXTENSION_BYTES)))
        extensions = (head + rest)[size : int(max(offset, size))]
        return head, _record(extensions, order), label_table(extensions)


def _record(extensions: bytes, order: Any) -> dict[str, Any] | None:
    """Lamella's record among the header's extensions: a flag, then (size, code, text) each."""
    if len(extensions) < 4 or extensions[0] == 0:
        return None
    at = 4
    while at + 8 <= len(extensions):
        size = int.from_bytes(extensions[at : at + 4], order)
        code = int.from_bytes(extensions[at + 4 : at + 8], order)
        if size < 16 or size % 16:
            return None
        if code == RECORD_ECODE:
            record = parse_record(extensions[at + 8 : at + size].rstrip(b"\0"))
            if record is not None:
                return record
        at += size
    return None


def _stem(path: Path) -> str:
    name = path.name
    for suffix in (".nii.gz", ".nii", ".hdr.gz", ".img.gz", ".hdr", ".img"):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return path.stem
