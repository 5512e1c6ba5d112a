"""Bringing an input to a server: hash, ask, send, go on where it was cut (tus 1.0).

::

    remembered volume? ──ready──────────────────────────────────────────────▶ volume
        │ no
    hash ─▶ same bytes there already? ──yes──────────────────────────────────▶ volume
        │ no
    create ─▶ HEAD ─▶ PATCH … PATCH ─▶ (parts joined) ─▶ finished ─▶ ready? ──▶ volume
       ▲       ▲  └─ lost, 409, 423, 5xx: wait, HEAD, go on ┘ │
       └───────┴──── 404, 410: it is gone, start anew ────────┘

What was acknowledged is never sent again: after every failure the server is asked what it has. The
chunk halves with every failure, so that a bad line gets forward, and follows the line's pace: about
a second each, so that progress is seen and a cut costs little.
"""

import base64
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from lamella.client.answers import document_of
from lamella.client.flow import Body, Do, Flow, Pause, Request, Response, Send, Source, Tell
from lamella.client.flow import Together as RunTogether
from lamella.client.memory import Memory
from lamella.client.patience import Patience, Trouble, ask, error_of
from lamella.client.source import Digest, Upload
from lamella.core.errors import ChecksumError, GoneError, LamellaError, ServerConnectionError
from lamella.core.progress import Progress
from lamella.wire.upload import UploadDoc, VolumeDoc

__all__ = ["UploadOptions", "digest_of", "upload_volume"]

_TUS = {"tus-resumable": "1.0.0"}
_OFFSET_TYPE = "application/offset+octet-stream"
_MAX_CONFLICTS = 20
_MAX_MISMATCHES = 5
_MAX_ANEW = 5
_GONE = (404, 410)


@dataclass(frozen=True, slots=True)
class UploadOptions:
    """How an input is sent.

    Attributes:
        smallest_chunk: bytes of a request when nothing gets through.
        first_chunk: bytes of the first request.
        largest_chunk: bytes of a request when all goes well; one is in memory per part.
        chunk_s: about how long a request takes, seconds.
        n_parts: parts that are sent at the same time, for large inputs.
        part_bytes: least size of a part.
        can_skip: use the same bytes where the server has them already.
    """

    smallest_chunk: int = 256 * 1024
    first_chunk: int = 2**20
    largest_chunk: int = 16 * 2**20
    chunk_s: float = 1.0
    n_parts: int = 1
    part_bytes: int = 256 * 2**20
    can_skip: bool = True


def upload_volume(
    upload: Upload, memory: Memory, patience: Patience, options: UploadOptions
) -> Flow[VolumeDoc]:
    """Send an input; returns the volume that it is on the server.

    Args:
        upload: what is sent.
        memory: where an earlier process stopped.
        patience: with the network.
        options: chunks and parts.

    Raises:
        LamellaError: saying what is wrong.
    """
    work = _Work(upload, memory, Trouble(patience), options)
    remembered = yield from work.remembered()
    if remembered is not None:
        return remembered
    digest = yield from digest_of(upload, memory)
    twin = (yield from work.twin(digest)) if options.can_skip else None
    volume = twin.id if twin is not None else (yield from work.send(digest))
    yield Do(partial(memory.put, "volume", volume))
    yield Do(partial(memory.drop, "location", "key", "part"))
    return (yield from work.ready(volume))


def digest_of(upload: Upload, memory: Memory) -> Flow[Digest]:
    """SHA-256 of an input; what was computed for this very input is not computed again."""
    sha256 = yield Do(partial(memory.get, "sha256"))
    fingerprint = yield Do(partial(memory.get, "fingerprint"))
    if sha256 and fingerprint:
        return Digest(sha256, fingerprint)
    size = upload.source.size
    steps: Iterator[int | Digest] = upload.digests()
    while True:
        step = yield Do(partial(next, steps))
        if isinstance(step, Digest):
            yield Do(partial(memory.put, "sha256", step.sha256))
            yield Do(partial(memory.put, "fingerprint", step.fingerprint))
            return step
        yield Tell(Progress("fingerprint", step / 1e6, size / 1e6, "MB"))


@dataclass
class _Work:
    upload: Upload
    memory: Memory
    trouble: Trouble
    options: UploadOptions
    acknowledged: dict[int, int] = field(default_factory=dict[int, int])

    def remembered(self) -> Flow[VolumeDoc | None]:
        """The volume of an earlier upload of this very file, if the server still has it."""
        volume = yield Do(partial(self.memory.get, "volume"))
        if volume is None:
            return None
        answer = yield from ask(Request("GET", f"volumes/{volume}"), self.trouble, *_GONE)
        if answer.is_success:
            document = document_of(VolumeDoc, answer.content, what="volume")
            if document.state == "ready":
                return document
            if document.state == "preparing":
                return (yield from self.ready(document.id))
        yield Do(partial(self.memory.drop, "volume"))
        return None

    def twin(self, digest: Digest) -> Flow[VolumeDoc | None]:
        """A volume of the same bytes and the same kind of name that is ready."""
        request = Request("GET", "volumes", params={"sha256": digest.fingerprint})
        answer = yield from ask(request, self.trouble)
        for item in _items(answer, "volumes"):
            volume = document_of(VolumeDoc, item, what="volume")
            is_same = volume.sha256 == digest.fingerprint and volume.state == "ready"
            # The name's ending can decide how a file is read.
            if is_same and _ending(volume.name) == _ending(self.upload.name):
                return volume
        return None

    def send(self, digest: Digest) -> Flow[str]:
        """All bytes, in one upload or in parts; the volume's id."""
        for _ in range(_MAX_ANEW):
            n_parts = self._n_parts()
            flow = self._send_whole(digest) if n_parts == 1 else self._send_parts(digest, n_parts)
            volume = yield from flow
            if volume is not None:
                return volume
            yield Do(partial(self.memory.drop, "location", "key", "part"))
            self.acknowledged.clear()
        raise removed(self.upload.name)

    def ready(self, volume: str) -> Flow[VolumeDoc]:
        """The volume, once the server has looked at it."""
        wait_s = 0.1
        while True:
            answer = yield from ask(Request("GET", f"volumes/{volume}"), self.trouble)
            document = document_of(VolumeDoc, answer.content, what="volume")
            if document.state == "ready":
                return document
            if document.state == "refused":
                yield Do(self.memory.drop)
                problem = document.problem
                raise (
                    LamellaError(f"the server refused {document.name}")
                    if problem is None
                    else problem.to_error()
                )
            yield Tell(Progress("preparing", 0, 1, ""))
            yield Pause(wait_s)
            wait_s = min(2.0, wait_s * 1.5)

    # -- ways of sending

    def _n_parts(self) -> int:
        fitting = self.upload.source.size // self.options.part_bytes
        return max(1, min(self.options.n_parts, fitting))

    def _metadata(self, digest: Digest) -> dict[str, str]:
        metadata = {"filename": self.upload.name, "sha256": digest.sha256}
        if self.upload.unpack:
            metadata["unpack"] = self.upload.unpack
        return metadata

    def _send_whole(self, digest: Digest) -> Flow[str | None]:
        stretch = self._stretch("", 0, self.upload.source.size, self._metadata(digest))
        location = yield from stretch.run()
        return (yield from self._finished(location))

    def _send_parts(self, digest: Digest, n_parts: int) -> Flow[str | None]:
        size = self.upload.source.size
        known = yield Do(partial(self.memory.get, "location"))
        if known is None:
            bounds = [size * i // n_parts for i in range(n_parts + 1)]
            parts = [
                self._stretch(f"part{i}of{n_parts}.", bounds[i], bounds[i + 1], {"part": str(i)})
                for i in range(n_parts)
            ]
            places = yield RunTogether(tuple(part.run() for part in parts))
            final = "final;" + " ".join(f"/api/v1/{place}" for place in places)
            headers = {"upload-concat": final, "upload-metadata": _metadata(self._metadata(digest))}
            answer = yield from _create(self.memory, "", headers, self.trouble, *_GONE)
            if answer.status in _GONE:
                return None
            known = _place(answer)
            yield Do(partial(self.memory.put, "location", known))
        return (yield from self._finished(known))

    def _stretch(self, slot: str, start: int, stop: int, metadata: dict[str, str]) -> "_Stretch":
        return _Stretch(self, slot, start, stop - start, metadata)

    def _finished(self, location: str) -> Flow[str | None]:
        """The volume of an upload that has all its bytes; None when it is gone."""
        document = yield from self.look(location, self.trouble)
        return None if document is None else document.volume

    def look(self, location: str, trouble: Trouble) -> Flow[UploadDoc | None]:
        """An upload as the server knows it; None when it is gone.

        Raises:
            ChecksumError: when its bytes are not those that were announced.
        """
        answer = yield from ask(Request("GET", location), trouble, *_GONE)
        if not answer.is_success:
            return None
        document = document_of(UploadDoc, answer.content, what="upload")
        if document.state == "rejected":
            yield Do(self.memory.drop)
            raise rejected(self.upload.name)
        return document


@dataclass
class _Stretch:
    """One upload: the whole source, or a part of it."""

    work: _Work
    slot: str
    start: int
    count: int
    metadata: dict[str, str]

    def __post_init__(self) -> None:
        options = self.work.options
        self.chunk = min(options.first_chunk, options.largest_chunk)
        self.trouble = Trouble(self.work.trouble.patience)
        self.n_conflicts = self.n_mismatches = 0
        self.answered_s = 0.0

    def run(self) -> Flow[str]:
        """Send what the server does not have; returns the upload's place (``uploads/ID``)."""
        memory, name = self.work.memory, f"{self.slot}location"
        for _ in range(_MAX_ANEW):
            place = yield Do(partial(memory.get, name))
            offset: int | None = 0
            if place is None:
                place = yield from self._create()
                yield Do(partial(memory.put, name, place))
            else:
                offset = yield from self._offset(place)
            if offset is not None and (yield from self._send(place, offset)):
                return place
            yield Do(partial(memory.drop, name, f"{self.slot}key"))
        raise removed(self.work.upload.name)

    def _create(self) -> Flow[str]:
        headers = {
            "upload-length": str(self.count),
            "upload-metadata": _metadata(self.metadata),
        }
        if self.slot:
            headers["upload-concat"] = "partial"
        answer = yield from _create(self.work.memory, self.slot, headers, self.trouble)
        self.answered_s = answer.time_s
        return _place(answer)

    def _offset(self, place: str) -> Flow[int | None]:
        """Bytes that are on the server's disk; None when the upload is gone."""
        # Patience with chunks runs out although the server answers this: only progress resets it.
        own = Trouble(self.trouble.patience)
        answer = yield from ask(Request("HEAD", place, headers=_TUS), own, *_GONE)
        if not answer.is_success:
            return None
        self.answered_s = answer.time_s
        offset = _number(answer, "upload-offset")
        return offset if 0 <= offset <= self.count else None

    def _send(self, place: str, offset: int) -> Flow[bool]:
        """Chunk after chunk; False when the upload is gone."""
        source: Source = self.work.upload.source
        yield self._progress(offset)
        while offset < self.count:
            n_bytes = min(self.chunk, self.count - offset)
            headers = {**_TUS, "upload-offset": str(offset), "content-type": _OFFSET_TYPE}
            body = Body(source, self.start + offset, n_bytes)
            answer = yield Send(Request("PATCH", place, headers=headers, body=body))
            if isinstance(answer, Response) and answer.is_success:
                offset = self._landed(answer)
                yield self._progress(offset)
                continue
            if isinstance(answer, Response) and answer.status in _GONE:
                return False
            known = yield from self._recover(place, answer)
            if known is None:
                return False
            if known > offset:
                self.trouble.over()
                self.n_conflicts = self.n_mismatches = 0
            offset = known
            yield self._progress(offset)
        return True

    def _landed(self, answer: Response) -> int:
        self.trouble.over()
        self.n_conflicts = self.n_mismatches = 0
        options = self.work.options
        # From the last answer, whatever it was, to this one.
        lasted, self.answered_s = answer.time_s - self.answered_s, answer.time_s
        if lasted < options.chunk_s / 2:
            self.chunk = min(options.largest_chunk, self.chunk * 2)
        elif lasted > options.chunk_s * 2:
            self.chunk = max(options.smallest_chunk, self.chunk // 2)
        return _number(answer, "upload-offset")

    def _recover(self, place: str, answer: Any) -> Flow[int | None]:
        """After a chunk that did not go through: wait, and ask what the server has."""
        status = answer.status if isinstance(answer, Response) else 0
        if status == 409:
            # The offset is another one, or another process sends the same file.
            self.n_conflicts += 1
            if self.n_conflicts > _MAX_CONFLICTS:
                raise error_of(answer)
            yield Pause(0.05 * self.n_conflicts)
        elif status == 460:
            yield from self._mismatch(place, answer)
        else:
            self.chunk = max(self.work.options.smallest_chunk, self.chunk // 2)
            yield from self.trouble.pause(answer)
        return (yield from self._offset(place))

    def _mismatch(self, place: str, answer: Response) -> Flow[None]:
        """A checksum was wrong: of the chunk (send it again) or of the whole file (an error)."""
        yield from self.work.look(place, self.trouble)
        self.n_mismatches += 1
        if self.n_mismatches > _MAX_MISMATCHES:
            raise error_of(answer)

    def _progress(self, offset: int) -> Tell:
        work = self.work
        work.acknowledged[self.start] = offset
        done = sum(work.acknowledged.values())
        return Tell(Progress("upload", done / 1e6, work.upload.source.size / 1e6, "MB"))


def removed(name: str) -> GoneError:
    """The error of an upload that the server does not keep."""
    return GoneError(
        f"the server removed the upload of {name} again and again",
        hint="ask whoever runs the server: its disk may be full, or uploads expire too early",
    )


def rejected(name: str) -> ChecksumError:
    """The error of an upload whose bytes are not those that were announced."""
    return ChecksumError(
        f"what arrived of {name} is not the file that was announced: its SHA-256 is another",
        hint="the same command again reads and sends it anew; if it fails again, check the disk",
    )


def _create(
    memory: Memory, slot: str, headers: dict[str, str], trouble: Trouble, *accepted: int
) -> Flow[Response]:
    """Begin an upload; the key, kept beforehand, makes it one upload however often it is asked."""
    key = yield Do(partial(memory.get, f"{slot}key"))
    if key is None:
        key = uuid.uuid4().hex
        yield Do(partial(memory.put, f"{slot}key", key))
    request = Request("POST", "uploads", headers={**_TUS, **headers, "idempotency-key": key})
    return (yield from ask(request, trouble, *accepted))


def _metadata(words: dict[str, str]) -> str:
    return ",".join(
        f"{key} {base64.b64encode(value.encode('utf-8', 'surrogateescape')).decode()}"
        for key, value in words.items()
    )


def _place(answer: Response) -> str:
    """``uploads/ID`` of a creation; whatever address a proxy in between made of it.

    Raises:
        ServerConnectionError: when the server names no place.
    """
    name = answer.headers.get("location", "").partition("?")[0].rstrip("/").rpartition("/")[2]
    if not name:
        raise ServerConnectionError(
            "the server began an upload without saying where",
            hint="is this a Lamella server? check its address",
        )
    return f"uploads/{name}"


def _number(answer: Response, header: str) -> int:
    try:
        return int(answer.headers[header])
    except (KeyError, ValueError):
        raise ServerConnectionError(
            f"the server's answer has no valid {header.title()}",
            hint="is this a Lamella server, and does a proxy in between drop headers?",
        ) from None


def _items(answer: Response, name: str) -> list[Any]:
    document = answer.json()
    return document if isinstance(document, list) else document.get(name, [])


def _ending(name: str) -> str:
    return name.lower().removesuffix(".gz").rpartition(".")[2] if "." in name else ""
