"""The numbered diary of a job: what all its attempts reported and how its state changed.

Workers append to files of their own (``attempt-N.jsonl``); the server gives every event the job's
next number and appends it here. A line says which bytes of which attempt it came from, so the diary
itself is the memory of what was taken over: after a crash at any instant nothing is missing and
nothing is there twice::

    {"number":7,"attempt":2,"offset":1841,"event":{"type":"progress","number":7,...}}

``offset`` is the end of the event's line in the attempt's file; attempt 0 is the server itself. A
last line that a crash has cut is taken away by the next writer and never shown to readers.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import threading
import time
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from lamella.core.storage import storage_error
from lamella.jobs.attempt import attempt_path
from lamella.jobs.files import lock_file, unlock_file
from lamella.wire.event import LogEvent, RunEvent

__all__ = ["JobLog", "LogCache"]

_LOGGER = logging.getLogger(__name__)
_CHUNK_BYTES = 1 << 20
_HEAD = re.compile(rb'\{"number":(\d+),"attempt":(\d+),"offset":(\d+),"event":')


class JobLog:
    """The events of one job, numbered from 1 without gaps; safe to use from several threads.

    Several objects, also in several processes, may share a file: a writer holds the operating
    system's lock and first looks for what others have written.

    Args:
        folder: the job's folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / "log.jsonl"
        self._lock = threading.RLock()
        self._forget()

    @property
    def last(self) -> int:
        """Number of the newest event, 0 where there is none."""
        with self._lock:
            self._look()
            return len(self._starts)

    @property
    def last_state(self) -> tuple[str, int] | None:
        """State and attempt of the newest :class:`~lamella.wire.event.StateEvent`."""
        with self._lock:
            self._look()
            return self._state

    @property
    def last_progress(self) -> dict[str, Any] | None:
        """The newest progress event of the newest attempt, as a document."""
        with self._lock:
            self._look()
            return self._progress

    def append(self, event: RunEvent) -> int:
        """Add an event of the server's own.

        Returns:
            Its number.

        Raises:
            StorageError: when the disk is full; nothing is added then.
        """
        document = event.model_dump(mode="json")
        document["time_s"] = document["time_s"] or time.time()
        with self._writing() as stream:
            self._write(stream, [(0, 0, document)])
            return len(self._starts)

    def ingest(self, attempt: int) -> int:
        """Take over what an attempt, and all before it, have reported since the last time.

        Returns:
            How many events are new.

        Raises:
            StorageError: when the disk is full; what was not taken over is not lost.
        """
        with self._lock:
            self._look()
            # An attempt reports only when all before it have stopped. So, in this order: see
            # whether it has begun, then take over the older ones to their ends, then this one.
            has_news = self._has_more(attempt)
            numbers = [number for number in range(1, attempt) if self._has_more(number)]
            return sum(self._take_over(number) for number in numbers + [attempt] * has_news)

    def taken_over(self, attempt: int) -> int:
        """Bytes of an attempt's file that are in this diary."""
        with self._lock:
            self._look()
            return self._offsets.get(attempt, 0)

    def read(self, after: int = 0, limit: int | None = None) -> list[tuple[int, str]]:
        """Events that follow number ``after``: their numbers and their documents as JSON lines."""
        with self._lock:
            self._look()
            first = max(after, 0)
            last = len(self._starts) if limit is None else min(len(self._starts), first + limit)
            if first >= last:
                return []
            start = self._starts[first]
            stop = self._starts[last] if last < len(self._starts) else self._n_bytes
        with self._path.open("rb") as stream:
            stream.seek(start)
            lines = stream.read(stop - start).split(b"\n")[:-1]
        return [
            (first + i + 1, line[_event_start(line) : -1].decode()) for i, line in enumerate(lines)
        ]

    # --- Inside -------------------------------------------------------------------------------

    def _forget(self) -> None:
        self._starts = array("Q")
        self._n_bytes = 0
        self._offsets: dict[int, int] = {}
        self._state: tuple[str, int] | None = None
        self._progress: dict[str, Any] | None = None

    def _has_more(self, attempt: int) -> bool:
        return _size(attempt_path(self._folder, attempt)) > self._offsets.get(attempt, 0)

    def _take_over(self, attempt: int) -> int:
        path = attempt_path(self._folder, attempt)
        n_new = 0
        with self._writing() as target:
            try:
                source = path.open("rb")
            except FileNotFoundError:
                return 0
            with source:
                offset = self._offsets.get(attempt, 0)
                source.seek(offset)
                for lines in _whole_lines(source):
                    entries: list[tuple[int, int, dict[str, Any]]] = []
                    for line in lines:
                        offset += len(line)
                        entries.append((attempt, offset, _document(line, path)))
                    self._write(target, entries)
                    n_new += len(entries)
        return n_new

    def _write(self, stream: IO[bytes], entries: list[tuple[int, int, dict[str, Any]]]) -> None:
        """Number and append events, all of them or none."""
        number = len(self._starts)
        lines: list[bytes] = []
        for attempt, offset, document in entries:
            number += 1
            document["number"] = number
            text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
            head = f'{{"number":{number},"attempt":{attempt},"offset":{offset},"event":'
            lines.append(f"{head}{text}}}\n".encode())
        pending = memoryview(b"".join(lines))
        try:
            while pending:
                pending = pending[os.write(stream.fileno(), pending) :]
        except OSError as error:
            with contextlib.suppress(OSError):
                stream.truncate(self._n_bytes)
            raise storage_error(error, self._path) from error
        for line in lines:
            self._note(line)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[IO[bytes]]:
        """The file, held against other writers, ending with a whole line."""
        with self._lock:
            try:
                stream = self._path.open("ab", buffering=0)
            except OSError as error:
                raise storage_error(error, self._path) from error
            with stream:
                lock_file(stream)
                try:
                    self._look()
                    if os.fstat(stream.fileno()).st_size > self._n_bytes:
                        stream.truncate(self._n_bytes)
                    yield stream
                finally:
                    unlock_file(stream)

    def _look(self) -> None:
        """Learn what was added since the last look, by whomever."""
        n_bytes = _size(self._path)
        if n_bytes < self._n_bytes:
            # Another file under the same name: a folder that was put back from a copy.
            self._forget()
        if n_bytes == self._n_bytes:
            return
        with self._path.open("rb") as stream:
            stream.seek(self._n_bytes)
            for lines in _whole_lines(stream):
                for line in lines:
                    self._note(line)

    def _note(self, line: bytes) -> None:
        """Remember what a line of the diary says."""
        head = _HEAD.match(line)
        attempt, offset = (int(head[2]), int(head[3])) if head else (0, 0)
        self._starts.append(self._n_bytes)
        self._n_bytes += len(line)
        if attempt:
            is_newer = attempt > max(self._offsets, default=0)
            self._offsets[attempt] = offset
            if is_newer:
                self._progress = None
            if b'"type":"progress"' in line:
                document = json.loads(line[_event_start(line) : -2])
                self._progress = document if document["type"] == "progress" else self._progress
        elif b'"type":"state"' in line:
            document = json.loads(line[_event_start(line) : -2])
            if document["type"] == "state":
                self._state = (document["state"], document["attempt"])


class LogCache:
    """The logs that were used last; any number of objects may share a file."""

    def __init__(self, folder_of: Callable[[str], Path], n_kept: int = 256) -> None:
        self._folder_of = folder_of
        self._n_kept = n_kept
        self._lock = threading.Lock()
        self._logs: OrderedDict[str, JobLog] = OrderedDict()

    def get(self, job_id: str) -> JobLog:
        """The log of a job."""
        with self._lock:
            log = self._logs.pop(job_id, None) or JobLog(self._folder_of(job_id))
            self._logs[job_id] = log
            while len(self._logs) > self._n_kept:
                self._logs.popitem(last=False)
            return log


def _event_start(line: bytes) -> int:
    head = _HEAD.match(line)
    return head.end() if head else line.index(b'"event":') + len(b'"event":')


def _whole_lines(stream: IO[bytes]) -> Iterator[list[bytes]]:
    """Whole lines, some at a time; a last one without its end is left alone."""
    rest = b""
    while chunk := stream.read(_CHUNK_BYTES):
        end = chunk.rfind(b"\n") + 1
        if end:
            yield [line + b"\n" for line in (rest + chunk[:end]).split(b"\n")[:-1]]
            rest = chunk[end:]
        else:
            rest += chunk


def _document(line: bytes, path: Path) -> dict[str, Any]:
    """The event on a line; a line that holds none becomes a word about it."""
    with contextlib.suppress(ValueError):
        document = json.loads(line)
        if isinstance(document, dict) and isinstance(document.get("type"), str):
            return document
    _LOGGER.warning("a line of %s holds no event: %.200r", path, line)
    broken = LogEvent(message="a report of the worker could not be read", time_s=time.time())
    return broken.model_dump(mode="json")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
