"""Whether a TIFF file is all there: its chain of pages, and the values its tags point to.

tifffile stops at a broken link and drops tags whose value lies beyond the end, both in silence: a
file that was cut off would open as a shorter volume, or as one without its spacing.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from lamella.core.errors import UnreadableFileError

__all__ = ["check_chain"]

_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}
_BIG_TYPE_BYTES = {13: 4, 16: 8, 17: 8, 18: 8}
# Sizes, places of the voxels, description, resolution, SubIFDs, ImageJ's metadata. A broken private
# tag is its writer's sloppiness, not damage.
_ESSENTIAL = frozenset({256, 257, 258, 259, 270, 273, 278, 279, 282, 283, 322, 323, 324, 325, 330})
_IMAGEJ = frozenset({50838, 50839})


@dataclass(frozen=True, slots=True)
class _Dialect:
    """Byte order and field widths of classic and of BigTIFF files."""

    order: Literal["little", "big"]
    offset: int
    count: int
    entry: int

    def number(self, content: bytes) -> int:
        return int.from_bytes(content, self.order)


def check_chain(path: Path) -> None:
    """Follow the pages' links to the end.

    Raises:
        UnreadableFileError: when a page or a value that matters lies beyond the end of the file.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        head = stream.read(16)
        order: Literal["little", "big"] = "little" if head[:2] == b"II" else "big"
        is_big = int.from_bytes(head[2:4], order) == 43
        dialect = _Dialect(order, 8, 8, 20) if is_big else _Dialect(order, 4, 2, 12)
        at = dialect.number(head[8:16] if is_big else head[4:8])
        seen: set[int] = set()
        while at and at not in seen:
            seen.add(at)
            at = _next_page(stream, dialect, at, size, f"{path.name}: page {len(seen)}")


def _next_page(stream: IO[bytes], dialect: _Dialect, at: int, size: int, what: str) -> int:
    stream.seek(at)
    n = dialect.number(stream.read(dialect.count))
    after = at + dialect.count + n * dialect.entry
    if n == 0 or after + dialect.offset > size:
        raise _cut_off(f"{what} lies at or beyond the end of the file ({size} bytes)")
    entries = stream.read(n * dialect.entry)
    for start in range(0, len(entries), dialect.entry):
        _check_value(entries[start : start + dialect.entry], dialect, size, what)
    return dialect.number(stream.read(dialect.offset))


def _check_value(entry: bytes, dialect: _Dialect, size: int, what: str) -> None:
    code, kind = dialect.number(entry[:2]), dialect.number(entry[2:4])
    if code not in _ESSENTIAL and code not in _IMAGEJ:
        return
    count = dialect.number(entry[4 : 4 + dialect.offset])
    length = count * (_TYPE_BYTES | _BIG_TYPE_BYTES).get(kind, 1)
    if length <= dialect.offset:
        return
    place = dialect.number(entry[4 + dialect.offset :])
    if place + length > size:
        raise _cut_off(f"{what}: its tag {code} lies beyond the end of the file ({size} bytes)")


def _cut_off(message: str) -> UnreadableFileError:
    return UnreadableFileError(
        f"{message}: the file is truncated", hint="copy or download the file again"
    )
