"""Bringing a job's file home: what came is kept, the rest is asked for, the hash decides.

The file grows in a part of its own (:mod:`lamella.models.part`); its validator (the ETag, which is
the SHA-256) is kept beside it, and only bytes of that version are ever joined (``If-Range``).
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from lamella.client.flow import Close, Do, Failure, Flow, Open, Pause, Read, Request, Response, Tell
from lamella.client.patience import Patience, Trouble
from lamella.core.errors import ChecksumError, LamellaError, ServerConnectionError
from lamella.core.progress import Progress
from lamella.core.storage import storage_error
from lamella.models.part import PartState

__all__ = ["Part", "download"]

_REDIRECTS = (301, 302, 303, 307, 308)
_NOT_YET = 202
_MAX_REDIRECTS = 5


class Part(Protocol):
    """A file that is still coming; :class:`lamella.models.part.PartFile` is one."""

    size: int
    state: PartState

    @property
    def sha256(self) -> str:
        """Of all bytes there, hex."""
        ...

    def cut(self, size: int) -> None:
        """Keep the first ``size`` bytes."""
        ...

    def put(self, position: int, chunk: bytes) -> bool:
        """Bring bytes to a position at or before the end."""
        ...

    def write_state(self, state: PartState) -> None:
        """Keep where the bytes come from."""
        ...


def download(
    address: str,
    part: Part,
    patience: Patience,
    *,
    stage: str = "download",
    place: Path | None = None,
) -> Flow[str]:
    """Fetch a file into ``part``; what is there already is not fetched again.

    Args:
        address: path below ``/api/v1/``.
        part: where it grows.
        patience: with the network.
        stage: name of the progress.
        place: where ``part`` lies, for messages.

    Returns:
        The SHA-256 of the whole file, hex.

    Raises:
        ChecksumError: when the whole file, fetched twice, is not what the server says it is.
        StorageError: when it cannot be written; what came before is kept.
    """
    expected: str | None = None
    for _ in range(2):
        work = _Download(address, part, Trouble(patience), stage, place)
        yield from work.run()
        expected, found = work.expected(), part.sha256
        if expected in (None, found):
            return found
        yield Do(partial(part.cut, 0))
    raise ChecksumError(
        f"{address} came twice with a SHA-256 that is not the one announced ({expected})",
        hint="check the disk here and on the server",
    )


class _Download:
    def __init__(
        self, address: str, part: Part, trouble: Trouble, stage: str, place: Path | None
    ) -> None:
        self._address = address
        self._part = part
        self._trouble = trouble
        self._stage = stage
        self._place = place
        self._is_whole = False
        self._announced: str | None = None

    def expected(self) -> str | None:
        """The SHA-256 that the server's ETag names; a storage elsewhere has tags of its own."""
        return _sha256_of(self._part.state.validator) or self._announced

    def _is_right(self) -> bool:
        return self._part.size > 0 and self._part.sha256 == self.expected()

    def run(self) -> Flow[None]:
        """Ask for the rest until nothing is missing."""
        state = self._part.state
        if state.address != self._address or (state.total or 0) < self._part.size:
            yield Do(partial(self._part.cut, 0))
        elif self._part.size == state.total or self._is_right():
            return
        while not self._is_whole:
            answer = yield from self._open()
            if isinstance(answer, Failure):
                yield from self._trouble.pause(answer)
                continue
            yield from self._body(answer)

    def _open(self) -> Flow[Response | Failure]:
        """The answer whose body is wanted, behind redirections."""
        address, has_token = self._address, True
        for _ in range(_MAX_REDIRECTS):
            request = Request("GET", address, headers=self._headers(), has_token=has_token)
            answer = yield Open(request)
            if isinstance(answer, Failure) or answer.status not in _REDIRECTS:
                return answer
            yield Close()
            self._announced = _sha256_of(answer.headers.get("etag", "")) or self._announced
            # A signed address elsewhere: the token is none of its business.
            address, has_token = answer.headers.get("location", ""), False
            if urlsplit(address).scheme not in ("http", "https", ""):
                break
        raise ServerConnectionError(f"{self._address} leads nowhere: {address!r}")

    def _headers(self) -> dict[str, str]:
        headers = {"accept-encoding": "identity"}
        if self._part.size and self._part.state.validator:
            headers["range"] = f"bytes={self._part.size}-"
            headers["if-range"] = self._part.state.validator
        return headers

    def _body(self, answer: Response) -> Flow[None]:
        if answer.status == 416:
            yield Close()
            self._is_whole = self._is_right()
            if self._is_whole:
                return
            # Longer than the file: another version lay here.
            yield Do(partial(self._part.cut, 0))
            return
        if answer.status == _NOT_YET:
            yield Close()
            self._trouble.over()
            yield Tell(Progress("export", 0, 1, ""))
            yield Pause(1.0)
            return
        if not answer.is_success:
            yield from self._trouble.pause(answer)
            return
        self._trouble.answered()
        position, total = _stretch(answer)
        yield Do(partial(self._write, self._begin, answer, position, total))
        data: bytes | Failure = b""
        while True:
            data = yield Read()
            if isinstance(data, Failure) or not data:
                break
            self._trouble.over()
            yield Do(partial(self._write, self._part.put, self._part.size, data))
            yield Tell(self._progress(total))
        yield Close()
        if isinstance(data, Failure):
            yield from self._trouble.pause(data)
        elif total is not None and self._part.size < total:
            yield from self._trouble.pause(
                Failure("broken", "the connection ended early", answer.time_s)
            )
        else:
            self._is_whole = True

    def _write(self, work: Callable[..., object], *words: object) -> None:
        try:
            work(*words)
        except LamellaError:
            raise
        except OSError as error:
            raise storage_error(error, self._place) from error

    def _begin(self, answer: Response, position: int, total: int | None) -> None:
        if position > self._part.size:
            raise ServerConnectionError(
                f"the server sent bytes from {position} on; {self._part.size} were asked for"
            )
        validator = answer.headers.get("etag", "").removeprefix("W/")
        if position != self._part.size or validator != self._part.state.validator:
            self._part.cut(position)
        self._part.write_state(PartState(self._address, validator, total))

    def _progress(self, total: int | None) -> Progress:
        size = self._part.size / 1e6
        return Progress(self._stage, size, size if total is None else total / 1e6, "MB")


def _sha256_of(tag: str) -> str | None:
    """The SHA-256 that an ETag is, if it is one."""
    text = tag.removeprefix("W/").strip('"')
    return text if len(text) == 64 and all(c in "0123456789abcdef" for c in text) else None


def _stretch(answer: Response) -> tuple[int, int | None]:
    """Where the body begins in the file, and the file's length.

    Raises:
        ServerConnectionError: for a range that makes no sense.
    """
    if answer.status != 206:
        length = answer.headers.get("content-length", "")
        return 0, int(length) if length.isdigit() else None
    unit, _, rest = answer.headers.get("content-range", "").partition(" ")
    extent, _, total = rest.partition("/")
    first = extent.partition("-")[0]
    if unit != "bytes" or not first.isdigit():
        raise ServerConnectionError("the server sent a part of a file without saying which")
    return int(first), int(total) if total.isdigit() else None
