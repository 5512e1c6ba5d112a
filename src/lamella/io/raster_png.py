"""PNG files: written losslessly, 8 or 16 bits, with spacing and record inside the file."""

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamella.io.record import RECORD_KEY
from lamella.volume import Volume
from lamella.volume.spacing import convert_length

__all__ = ["encode_png", "has_end"]

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_MAX_PER_METRE = 2**31 - 1
_COLOR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}


def encode_png(plane: NDArray[Any], *, volume: Volume, record: str | None, compress: bool) -> bytes:
    """A PNG file.

    Args:
        plane: uint8 or uint16, (y, x) or (y, x, samples) with 2 to 4 samples.
        volume: gives the resolution.
        record: Lamella's record, or None.
        compress: whether to spend time on making it small.
    """
    rows, columns = plane.shape[:2]
    samples = plane.shape[2] if plane.ndim == 3 else 1
    header = (columns, rows, plane.dtype.itemsize * 8, _COLOR_TYPES[samples], 0, 0, 0)
    chunks = [_SIGNATURE, _chunk(b"IHDR", struct.pack(">IIBBBBB", *header))]
    if volume.unit != "voxel":
        y, x = (1e3 / convert_length(s, volume.unit, "mm") for s in volume.affine.spacing[-2:])
        if all(1 <= round(v) <= _MAX_PER_METRE for v in (y, x)):
            chunks.append(_chunk(b"pHYs", struct.pack(">IIB", round(x), round(y), 1)))
    if record is not None:
        chunks.append(_chunk(b"tEXt", RECORD_KEY.encode() + b"\0" + record.encode("ascii")))
    chunks.append(_chunk(b"IDAT", zlib.compress(_filtered(plane), 6 if compress else 1)))
    chunks.append(_chunk(b"IEND", b""))
    return b"".join(chunks)


def has_end(path: Path) -> bool:
    """Whether a PNG file's chunks lead to its end mark: decoders do not miss the last bytes."""
    size = path.stat().st_size
    at = len(_SIGNATURE)
    with path.open("rb") as stream:
        while at + 12 <= size:
            stream.seek(at)
            length, kind = struct.unpack(">I4s", stream.read(8))
            if kind == b"IEND":
                return True
            at += 12 + length
    return False


def _filtered(plane: NDArray[Any]) -> bytes:
    """Rows as differences to the row above (filter 2, Up): what compresses micrographs well."""
    rows = np.ascontiguousarray(plane, plane.dtype.newbyteorder(">")).view(np.uint8)
    rows = rows.reshape(plane.shape[0], -1)
    out = np.empty((rows.shape[0], rows.shape[1] + 1), np.uint8)
    out[:, 0] = 2
    out[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=out[1:, 1:])  # modulo 256, as PNG wants it
    return out.tobytes()


def _chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)
