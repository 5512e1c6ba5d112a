"""Several files as one tar archive that exists only while it is read, at any place.

The archive is deterministic: members in the order given, times and owners zero; the same files
give the same bytes, on every machine. So an upload of it can be resumed, and has one SHA-256::

    header · bytes · padding to 512 │ header · bytes · padding │ ... │ 1024 zero bytes
"""

import tarfile
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lamella.core.errors import InputError
from lamella.core.storage import storage_error

__all__ = ["Member", "TarSource"]

_BLOCK = 512
_END = bytes(2 * _BLOCK)


@dataclass(frozen=True, slots=True)
class Member:
    """A file and its name in the archive, with ``/``."""

    name: str
    path: Path


class TarSource:
    """The bytes of an archive of files.

    Args:
        members: names are unique; the order is kept.
    """

    def __init__(self, members: Iterable[Member]) -> None:
        self.members = tuple(members)
        self._states: list[tuple[int, int]] = []
        self._starts: list[int] = []
        self._index: dict[str, int] = {}
        self._n_header: list[int] = []
        place = 0
        for member in self.members:
            known = member.path.stat()
            self._index[member.name] = len(self._starts)
            self._states.append((known.st_size, known.st_mtime_ns))
            self._starts.append(place)
            n_header = len(_header(member.name, known.st_size))
            self._n_header.append(n_header)
            place += n_header + known.st_size + (-known.st_size % _BLOCK)
        self.end = place
        """Where the last member ends."""
        self.size = place + len(_END)

    def header(self, member: Member) -> bytes:
        """What stands before a member's bytes."""
        return _header(member.name, self._states[self._index[member.name]][0])

    def extent(self, member: Member) -> tuple[int, int]:
        """Where a member's own bytes begin and end."""
        i = self._index[member.name]
        start = self._starts[i] + self._n_header[i]
        return start, start + self._states[i][0]

    def read(self, start: int, count: int) -> bytes:
        """Bytes ``start`` to ``start + count``.

        Raises:
            InputError: when a file has changed since the archive was laid out.
        """
        pieces: list[bytes] = []
        place, stop = start, start + count
        i = max(0, bisect_right(self._starts, start) - 1)
        while place < stop and i < len(self.members):
            next_start = self._starts[i + 1] if i + 1 < len(self.members) else self.end
            end = min(stop, next_start)
            if place < end:
                pieces.append(self._read_member(i, place - self._starts[i], end - self._starts[i]))
                place = end
            i += 1
        if place < stop:
            pieces.append(_END[place - self.end : stop - self.end])
        return b"".join(pieces)

    def close(self) -> None:
        """Nothing is held open."""

    def _read_member(self, i: int, start: int, stop: int) -> bytes:
        """Header, bytes and padding of a member between two places relative to its start."""
        member, (size, _) = self.members[i], self._states[i]
        n_header = self._n_header[i]
        pieces: list[bytes] = []
        if start < n_header:
            pieces.append(_header(member.name, size)[start:stop])
        first, last = max(0, start - n_header), min(size, stop - n_header)
        if first < last:
            pieces.append(self._read_file(i, first, last - first))
        if stop > n_header + size:
            pieces.append(bytes(stop - max(start, n_header + size)))
        return b"".join(pieces)

    def _read_file(self, i: int, start: int, count: int) -> bytes:
        path = self.members[i].path
        try:
            with path.open("rb") as stream:
                stream.seek(start)
                data = stream.read(count)
            known = path.stat()
        except OSError as error:
            raise storage_error(error, path) from error
        if len(data) != count or (known.st_size, known.st_mtime_ns) != self._states[i]:
            raise InputError(
                f"{path} changed while it was uploaded",
                hint="wait until nothing writes there, then run the same command again",
            )
        return data


def _header(name: str, size: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size = size
    member.mode = 0o644
    # pax where a name is long or not ASCII, or a file larger than 8 GiB; plain ustar otherwise.
    return member.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
