"""The 1024 bytes at the start of an MRC file, read with the doubts that real files deserve.

Follows MRC2014 (Cheng et al. 2015, doi:10.1016/j.jsb.2015.04.002) and what programs write in
practice: old files without the ``MAP`` string and machine stamp, bytes that IMOD stores unsigned,
extended headers of FEI, SerialEM and CCP4. The order in the header is (x, y, z); everything that
leaves this room is (z, y, x).
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lamella.core.errors import UnreadableFileError
from lamella.volume import Note

__all__ = [
    "HEADER_BYTES",
    "IMOD_STAMP",
    "MODES",
    "RAW_HEADER",
    "MrcHeader",
    "parse_header",
    "read_problem",
]

ByteOrder = Literal["<", ">"]
HEADER_BYTES = 1024
IMOD_STAMP = 1146047817
_IMOD_SIGNED_BYTES = 1
_MAX_SIDE = 2**24

RAW_HEADER = np.dtype(
    [
        ("size", "i4", 3),
        ("mode", "i4"),
        ("start", "i4", 3),
        ("grid", "i4", 3),
        ("cell", "f4", 3),
        ("angles", "f4", 3),
        ("map_axes", "i4", 3),
        ("dmin", "f4"),
        ("dmax", "f4"),
        ("dmean", "f4"),
        ("ispg", "i4"),
        ("nsymbt", "i4"),
        ("extra1", "V8"),
        ("exttyp", "S4"),
        ("nversion", "i4"),
        ("extra2", "V40"),
        ("imod_stamp", "i4"),
        ("imod_flags", "i4"),
        ("extra3", "V36"),
        ("origin", "f4", 3),
        ("map_id", "S4"),
        ("stamp", "u1", 4),
        ("rms", "f4"),
        ("n_labels", "i4"),
        ("labels", "S80", 10),
    ]
)
assert RAW_HEADER.itemsize == HEADER_BYTES

# 101 is two 4-bit values a byte; it has no dtype of its own and is unpacked to uint8.
MODES: dict[int, str] = {0: "i1", 1: "i2", 2: "f4", 4: "c8", 6: "u2", 12: "f2", 101: "u1"}


@dataclass(frozen=True, slots=True)
class MrcHeader:
    """A header that makes sense.

    Args:
        raw: one record of :data:`RAW_HEADER`, native byte order.
        byte_order: of the file, ``"<"`` or ``">"``.
        dtype: of the voxels in the file, with its byte order.
        notes: odd things found.
    """

    raw: Any
    byte_order: ByteOrder
    dtype: np.dtype[Any]
    notes: tuple[Note, ...] = ()

    @property
    def mode(self) -> int:
        """MRC's number of the voxel type."""
        return int(self.raw["mode"])

    @property
    def size_crs(self) -> tuple[int, int, int]:
        """Columns, rows, sections: the order in the file, fastest first."""
        columns, rows, sections = (int(n) for n in self.raw["size"])
        return columns, rows, sections

    @property
    def offset(self) -> int:
        """Where the voxels start, in bytes."""
        return HEADER_BYTES + int(self.raw["nsymbt"])

    @property
    def row_bytes(self) -> int:
        """Length of a row in the file."""
        columns = self.size_crs[0]
        return (columns + 1) // 2 if self.mode == 101 else columns * self.dtype.itemsize

    @property
    def data_bytes(self) -> int:
        """Length of the voxels in the file."""
        _, rows, sections = self.size_crs
        return self.row_bytes * rows * sections

    @property
    def total_bytes(self) -> int:
        """Length the file must have."""
        return self.offset + self.data_bytes

    @property
    def has_map_string(self) -> bool:
        """Whether it is a header after MRC 2000."""
        return bytes(self.raw["map_id"]).startswith(b"MAP")

    @property
    def is_volume_stack(self) -> bool:
        """Whether it is a stack of volumes of ``mz`` sections each."""
        return 401 <= int(self.raw["ispg"]) <= 630

    @property
    def labels(self) -> tuple[str, ...]:
        """The text labels in use."""
        n = min(10, max(0, int(self.raw["n_labels"])))
        texts = (bytes(label).decode("latin-1") for label in self.raw["labels"][:n])
        cleaned = ("".join(c for c in text if c.isprintable()).rstrip() for text in texts)
        return tuple(text for text in cleaned if text)


def read_problem(head: bytes) -> str | None:
    """Why these bytes start no MRC file, or None when they do.

    Args:
        head: at least the first 1024 bytes, if the file has them.
    """
    if len(head) < HEADER_BYTES:
        return f"{len(head)} bytes are shorter than an MRC header (1024 bytes)"
    orders: tuple[ByteOrder, ...] = ("<", ">")
    problems = {order: _problem(_record(head, order)) for order in orders}
    if None in problems.values():
        return None
    return problems[_stamped_order(_record(head, "<")) or "<"]


def parse_header(head: bytes, *, name: str) -> MrcHeader:
    """Interpret a header.

    Args:
        head: at least the first 1024 bytes.
        name: of the file, for messages.

    Raises:
        UnreadableFileError: when the fields make no sense in either byte order, or the voxel type
            is one that Lamella does not read.
    """
    problem = read_problem(head)
    if problem is not None:
        raise UnreadableFileError(
            f"{name} has no valid MRC header: {problem}",
            hint="the file may be truncated or of another format; copy or download it again",
        )
    stamped = _stamped_order(_record(head, "<"))
    order, notes = _byte_order(head, stamped)
    raw = _record(head, order)
    mode = int(raw["mode"])
    dtype = np.dtype(MODES[mode]).newbyteorder(order)
    if mode == 0:
        dtype, note = _byte_type(raw)
        notes = (*notes, note) if note else notes
    return MrcHeader(raw, order, dtype, notes)


def _record(head: bytes, order: ByteOrder) -> NDArray[Any]:
    raw = np.frombuffer(head[:HEADER_BYTES], RAW_HEADER.newbyteorder(order))[0]
    return raw.astype(RAW_HEADER)


def _stamped_order(raw: Any) -> ByteOrder | None:
    first = int(raw["stamp"][0])
    if first == 0x44:
        return "<"
    return ">" if first == 0x11 else None


def _byte_order(head: bytes, stamped: ByteOrder | None) -> tuple[ByteOrder, tuple[Note, ...]]:
    """The stamp's order where the fields make sense in it, else the order in which they do."""
    orders: tuple[ByteOrder, ...] = (">", "<") if stamped == ">" else ("<", ">")
    order: ByteOrder = next(o for o in orders if _problem(_record(head, o)) is None)
    if stamped is None:
        return order, ()
    if order != stamped:
        message = "the machine stamp names the wrong byte order; the fields make sense in the other"
        return order, (Note("byte_order", message),)
    return order, ()


def _problem(raw: Any) -> str | None:
    """What is impossible about the fields, or None."""
    size = [int(n) for n in raw["size"]]
    if min(size) < 1 or max(size) > _MAX_SIDE:
        return f"impossible size {size[0]} x {size[1]} x {size[2]}"
    mode = int(raw["mode"])
    if mode not in MODES:
        known = ", ".join(str(m) for m in MODES)
        return f"voxel type (mode) {mode}, where {known} are known"
    nsymbt = int(raw["nsymbt"])
    if nsymbt < 0 or nsymbt > 2**30:
        return f"impossible length {nsymbt} of the extended header"
    return None


def _byte_type(raw: Any) -> tuple[np.dtype[Any], Note | None]:
    """Whether mode 0 holds signed or unsigned bytes.

    The standard says signed; IMOD says so in a flag, and wrote unsigned bytes without one before
    2012. Where nothing is said, the header's own statistics decide: signed bytes have no value
    above 127.
    """
    signed, unsigned = np.dtype("i1"), np.dtype("u1")
    if int(raw["imod_stamp"]) == IMOD_STAMP:
        is_signed = bool(int(raw["imod_flags"]) & _IMOD_SIGNED_BYTES)
        return (signed, None) if is_signed else (unsigned, None)
    low, high = float(raw["dmin"]), float(raw["dmax"])
    is_told = math.isfinite(low) and math.isfinite(high) and low < high
    if is_told and high > 127 and low >= 0:
        return unsigned, Note(
            "unsigned_bytes",
            f"mode 0 read as unsigned bytes: the header's range {low:g} to {high:g} says so",
        )
    if is_told and low < 0:
        return signed, None
    if not bytes(raw["map_id"]).startswith(b"MAP"):
        return unsigned, Note(
            "unsigned_bytes",
            "mode 0 read as unsigned bytes: an old header without MAP string, as early IMOD wrote",
        )
    return signed, None
