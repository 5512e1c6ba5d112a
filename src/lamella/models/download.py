"""One file from the first of several addresses that gives it whole and right.

What came is kept in a ``.part`` file and never asked for again, under these rules:

* A request goes on where the ``.part`` ends (``Range``), also after a crash, and from another
  mirror where the file's SHA-256 is known beforehand. Where it is not, only the same address may go
  on, and only with its ETag or date (``If-Range``): bytes of two versions are never joined.
* A server that answers with the whole file all the same is compared with what is there while it
  repeats itself; from the first difference on the ``.part`` is replaced.
* Interruptions are tried again with growing, jittered waits (``Retry-After`` counts), as long as
  bytes come; an address that adds nothing ``attempts`` times in a row, or that answers 404 and the
  like, is left for the next.
* The SHA-256 is computed as bytes come. A wrong one does not tell which bytes are wrong, so the
  whole file is fetched once more, from the next mirror if there is one, else from the same; every
  mirror gets one try at a whole file, a single one two. Then it is an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import url2pathname

from lamella.core.errors import DownloadError, LamellaError, OfflineError, StorageError
from lamella.core.storage import is_disk_full, storage_error
from lamella.models.part import PartFile, PartState, open_part
from lamella.models.patience import Fetched, TransferSettings, Watcher
from lamella.models.transfer import Reply, TransferError, byte_range, open_reply

if TYPE_CHECKING:
    from lamella.wire.catalogue import DownloadDoc

__all__ = ["Fetched", "TransferSettings", "Watcher", "fetch_file", "local_path"]

_BUFFER_BYTES = 1 << 20


def local_path(address: str) -> Path | None:
    """Return the path of a ``file:`` address or of a plain path; None for web addresses.

    Examples:
        >>> local_path("https://example.org/a.zip") is None
        True
        >>> local_path("file:///data/a%20b.zip").as_posix()
        '/data/a b.zip'
    """
    parts = urlsplit(address)
    if parts.scheme == "file":
        return Path(url2pathname(parts.path))
    # One letter is a drive, not a scheme.
    return Path(address) if len(parts.scheme) < 2 else None


def fetch_file(
    file: DownloadDoc,
    part: Path,
    addresses: Sequence[str],
    watcher: Watcher,
    *,
    settings: TransferSettings | None = None,
    is_offline: bool = False,
) -> Fetched:
    """Bring a file into ``part`` and verify it; what is there already is not fetched again.

    Args:
        file: what is wanted, with its hash and size where they are known.
        part: where it grows; its folder exists.
        addresses: where it lies, the first choice first.
        watcher: progress and cancellation.
        settings: patience.
        is_offline: ask no web address.

    Raises:
        DownloadError: no address gave the right file; the message has the reason of each.
        OfflineError: the network is needed and forbidden.
        StorageError: the disk is full, or the folder may not be written.
        RunCancelledError: told to stop; what came is kept.
    """
    mirrors = [
        _Mirror(address)
        for address in dict.fromkeys(addresses)
        if not is_offline or local_path(address) is not None
    ]
    try:
        with open_part(part, watcher.check) as opened:
            fetch = _Fetch(file, opened, watcher, settings or TransferSettings())
            return fetch.run(mirrors, is_offline=is_offline)
    except LamellaError:
        raise
    except OSError as error:
        if is_disk_full(error):
            raise StorageError(
                f"the disk is full: {part} could not be written",
                hint="free some space and run the same command again: what came is kept",
            ) from error
        raise storage_error(error, part) from error


@dataclass(slots=True)
class _Mirror:
    address: str
    reasons: list[str] = field(default_factory=list)
    is_out: bool = False
    can_range: bool = True
    """False once it answered a range with something else."""
    is_steady: bool = True
    """False once its validator changed while the bytes did not."""


class _Fetch:
    def __init__(
        self, file: DownloadDoc, part: PartFile, watcher: Watcher, settings: TransferSettings
    ) -> None:
        self._file = file
        self._part = part
        self._watcher = watcher
        self._settings = settings
        self._n_moved = 0
        self._is_whole = False
        self._last = ""

    def run(self, mirrors: list[_Mirror], *, is_offline: bool) -> Fetched:
        """Fetch until the hash is right, or nobody is left to ask."""
        self._judge_what_is_there()
        expected = self._file.sha256
        for _ in range(max(2, len(mirrors))):
            used = self._complete(mirrors, is_offline=is_offline)
            found = self._part.sha256
            if expected in (None, found):
                return Fetched(found, self._part.size, self._n_moved, self._last)
            self._watcher.on_trouble(f"{self._file.name} has the wrong SHA-256: fetched once more")
            self._start_anew()
            if used is not None:
                used.reasons.append(f"gave a file with SHA-256 {found[:12]}..., not {expected}")
                mirrors = [*(mirror for mirror in mirrors if mirror is not used), used]
        raise self._failure(mirrors)

    def _judge_what_is_there(self) -> None:
        known, expected, size = self._file.n_bytes, self._file.sha256, self._part.size
        if expected is not None:
            self._is_whole = self._part.sha256 == expected and known in (None, size)
            is_wrong = not self._is_whole and known is not None and size >= known
        else:
            total = known if known is not None else self._part.state.total
            self._is_whole = size > 0 and size == total
            is_wrong = total is not None and size > total
        if is_wrong:
            self._start_anew()
        if self._is_whole:
            self._watcher.on_bytes(size, size)

    def _start_anew(self) -> None:
        self._part.cut(0)
        self._is_whole = False

    # --- from addresses -----------------------------------------------------------------------

    def _complete(self, mirrors: list[_Mirror], *, is_offline: bool) -> _Mirror | None:
        """Make the file whole; return who gave the last of it."""
        if self._is_whole:
            return None
        for mirror in mirrors:
            if not mirror.is_out:
                self._ask(mirror)
            if self._is_whole:
                return mirror
        raise self._failure(mirrors, is_offline=is_offline)

    def _ask(self, mirror: _Mirror) -> None:
        """Take from one address until the file is whole or the address is given up."""
        path = local_path(mirror.address)
        n_failed = 0
        while not self._is_whole:
            before = self._part.size
            try:
                if path is None:
                    self._one_reply(mirror)
                else:
                    self._copy(path)
                self._last = mirror.address
            except TransferError as error:
                n_failed = 0 if self._part.size > before else n_failed + 1
                mirror.reasons.append(error.reason)
                asked_s = error.wait_s or 0.0
                if asked_s > self._settings.longest_asked_wait_s:
                    mirror.reasons.append(f"{error.reason}, and asks to wait {asked_s:,.0f} s")
                    mirror.is_out = True
                if error.is_lasting or n_failed >= self._settings.attempts:
                    mirror.is_out = True
                if mirror.is_out:
                    return
                self._watcher.on_trouble(f"{self._file.name}: {error.reason}; trying again")
                self._wait(n_failed, asked_s)

    def _one_reply(self, mirror: _Mirror) -> None:
        headers = self._range_headers(mirror)
        with open_reply(
            mirror.address,
            headers,
            timeout_s=self._settings.timeout_s,
            check=self._watcher.check,
        ) as reply:
            if reply.status == 416 and headers:
                self._past_the_end(mirror, reply)
                return
            reply.check_status()
            start, total = (0, reply.n_bytes) if reply.status == 200 else byte_range(reply)
            if start != (self._part.size if reply.status == 206 else 0):
                mirror.can_range = False
                raise TransferError("the server sent another part of the file than asked for")
            self._check_version(mirror, reply, total)
            self._take(mirror, reply, total)

    def _range_headers(self, mirror: _Mirror) -> dict[str, str]:
        state = self._part.state
        is_same = state.address == mirror.address and bool(state.validator)
        may_go_on = mirror.can_range and (self._file.sha256 is not None or is_same)
        if not self._part.size or not may_go_on:
            return {}
        headers = {"Range": f"bytes={self._part.size}-"}
        if is_same and mirror.is_steady:
            headers["If-Range"] = state.validator
        return headers

    def _past_the_end(self, mirror: _Mirror, reply: Reply) -> None:
        """416: either all of it is there, or what is there is longer than the file."""
        _, total = byte_range(reply)
        size, known = self._part.size, self._file.n_bytes
        self._is_whole = known in (None, size) and (
            total == size or (total is None and self._file.sha256 == self._part.sha256)
        )
        if not self._is_whole:
            mirror.can_range = False
            raise TransferError(f"the server has nothing beyond byte {size:,}")

    def _check_version(self, mirror: _Mirror, reply: Reply, total: int | None) -> None:
        """Refuse another file than the catalogue's, or than the one begun."""
        known, state = self._file.n_bytes, self._part.state
        if not reply.tells_its_end and known is None and self._file.sha256 is None:
            reason = "neither the server nor the catalogue says how long the file is"
            raise TransferError(reason, is_lasting=True)
        if self._file.sha256 is None and reply.is_web_page:
            # What hotel networks and proxies answer instead of the file.
            raise TransferError("the server sent a web page", is_lasting=True)
        if total is not None and known not in (None, total):
            reason = f"the file there has {total:,} bytes, the catalogue says {known:,}"
            raise TransferError(reason, is_lasting=True)
        if reply.status == 206 and self._file.sha256 is None:
            same = (mirror.address, reply.validator, total)
            if same != (state.address, state.validator, state.total):
                # It went on with another version than the one asked for.
                self._start_anew()
                raise TransferError("the file on the server changed meanwhile")
        if total is not None:
            self._watcher.on_total(total)

    def _take(self, mirror: _Mirror, reply: Reply, total: int | None) -> None:
        part, limit = self._part, self._file.n_bytes
        start = 0 if reply.status == 200 else part.size
        n_before, position, differs = part.size, start, False
        state = PartState(mirror.address, reply.validator, total)
        for chunk in reply.chunks:
            self._n_moved += len(chunk)
            is_too_much = limit is not None and position + len(chunk) > limit
            piece = chunk[: limit - position] if limit is not None else chunk
            if position == part.size:
                part.write_state(state)
            differs |= part.put(position, piece)
            position += len(piece)
            if position == part.size:
                # Not before: until then the rest of the part is of the version before.
                part.write_state(state)
            if is_too_much:
                self._too_much(position)
                return
            self._watcher.on_bytes(part.size, limit if limit is not None else total)
        if start < n_before <= position and not differs:
            mirror.is_steady = False
        self._end(position, total)

    def _too_much(self, limit: int) -> None:
        """More than the catalogue says: the hash decides on what came up to there."""
        if self._file.sha256 is None:
            self._start_anew()
            raise TransferError(f"sends more than {limit:,} bytes", is_lasting=True)
        self._is_whole = True

    def _end(self, position: int, total: int | None) -> None:
        wanted = self._file.n_bytes if self._file.n_bytes is not None else total
        if wanted is not None and position < wanted:
            raise TransferError(f"the connection ended after {position:,} of {wanted:,} bytes")
        if position < self._part.size:
            self._part.cut(position)
        self._is_whole = True

    def _copy(self, path: Path) -> None:
        """Take the file from this machine."""
        known = self._file.n_bytes
        try:
            source = path.open("rb")
        except FileNotFoundError:
            raise TransferError("there is no such file", is_lasting=True) from None
        except OSError as error:
            raise TransferError(f"cannot be read ({error.strerror})", is_lasting=True) from None
        with source:
            total = path.stat().st_size
            if known not in (None, total):
                reason = f"the file has {total:,} bytes, the catalogue says {known:,}"
                raise TransferError(reason, is_lasting=True)
            self._watcher.on_total(total)
            position = 0
            while piece := source.read(_BUFFER_BYTES):
                self._watcher.check()
                self._part.put(position, piece)
                position += len(piece)
                self._n_moved += len(piece)
                self._watcher.on_bytes(position, total)
        self._end(position, None)

    def _wait(self, n_failed: int, asked_s: float) -> None:
        settings = self._settings
        own_s = min(settings.longest_wait_s, settings.first_wait_s * 2 ** max(0, n_failed - 1))
        left_s = max(asked_s, own_s * (0.5 + settings.chance()))
        while left_s > 0:
            self._watcher.check()
            settings.sleep(min(left_s, 0.2))
            left_s -= 0.2

    def _failure(self, mirrors: Sequence[_Mirror], *, is_offline: bool = False) -> DownloadError:
        name, size = self._file.name, self._part.size
        if is_offline and not mirrors:
            where = (
                f"fetch {self._file.urls[0]} elsewhere and" if self._file.urls else "bring it and"
            )
            return OfflineError(
                f"{name} is not here, and the network is forbidden",
                hint=f"{where} give the file with --from FILE; or leave out --offline",
                details={"file": name, "addresses": list(self._file.urls)},
            )
        reasons = {mirror.address: mirror.reasons[-1] for mirror in mirrors if mirror.reasons}
        told = "; ".join(f"{address}: {reason}" for address, reason in reasons.items())
        kept = f"{size / 1e6:,.1f} MB of it are kept: " if size else ""
        return DownloadError(
            f"{name} could not be fetched: {told or 'no address is known for it'}",
            hint=f"{kept}run the same command again later, name another place with --mirror URL, or"
            " bring the file and give it with --from FILE",
            details={"file": name, "reasons": reasons, "n_bytes_kept": size},
        )
