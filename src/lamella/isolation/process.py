"""Run an engine's worker in a process of its own: messages in, messages out, nothing shared.

The host sends one line of JSON with the request; the worker (see :mod:`lamella.isolation.child`)
answers with lines of JSON until a ``result``, an ``error`` or a ``cancelled``. Whatever the worker
does (prints, crashes, is killed) this process goes on, and what is told to the caller is one
:class:`~lamella.core.errors.LamellaError`.

=============  ===========================================================
from worker    fields
=============  ===========================================================
progress       stage, done, total, unit
log            message
warning        code, message
preview        array, factors
block          start, stop, array, and facts of the worker's own
ask            what, and facts; the host answers with one line
result         facts of the worker's own; the last message
error          code, message, hint, traceback; the last message
cancelled      the last message
=============  ===========================================================
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from lamella.core.errors import EngineError, RunCancelledError
from lamella.isolation.child import PROTOCOL_VERSION
from lamella.wire.event import LogEvent, ProgressEvent, WarningEvent
from lamella.wire.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from lamella.core.progress import ProgressSink
    from lamella.wire.event import EventSink

__all__ = ["exchanged_array", "relay", "run_worker"]

_POLL_S = 0.1
_LAST_WORDS_S = 1.0
_STDERR_BYTES = 64 * 1024
_TAIL_LINES = 12
_LAST = ("result", "error", "cancelled")


def run_worker(
    python: Path,
    worker: Path,
    request: Mapping[str, Any],
    *,
    sink: ProgressSink | EventSink,
    on_message: Callable[[Mapping[str, Any]], Mapping[str, Any] | None],
    exchange: Path,
    grace_s: float = 5.0,
) -> Mapping[str, Any]:
    """Start a worker, pass its messages on, and wait until it is done.

    Args:
        python: interpreter of the engine's environment.
        worker: the worker's file.
        request: JSON values; ``"network": True`` lets the worker use the network.
        sink: asked for cancellation several times a second.
        on_message: receives every message but the last, in this thread. What it returns for an
            ``ask`` is the answer. What it raises stops the worker and passes through.
        exchange: existing folder for arrays.
        grace_s: how long a worker that was told to stop may take before it is killed.

    Returns:
        The worker's ``result`` message.

    Raises:
        RunCancelledError: the caller cancelled.
        EngineError: the worker died, or failed without saying more.
        LamellaError: of the kind the worker named.
    """
    # The worker runs in the exchange folder, where a relative path means something else.
    exchange = exchange.absolute()
    process = _Worker(python.absolute(), worker.absolute(), exchange)
    try:
        process.send(
            {"protocol": PROTOCOL_VERSION, "request": dict(request), "exchange": str(exchange)}
        )
        return _converse(process, sink, on_message)
    except BaseException:
        # A cancelled run, or a caller who can't go on: the worker gets the chance to stop cleanly.
        process.ask_to_stop()
        raise
    finally:
        process.end(grace_s)


def relay(message: Mapping[str, Any], sink: EventSink) -> bool:
    """Emit progress, log and warning messages as events; False for any other message."""
    kind = message["type"]
    if kind == "progress":
        total = max(float(message["total"]), 0.0)
        done = min(max(float(message["done"]), 0.0), total)
        stage, unit = str(message["stage"]), str(message.get("unit", ""))
        sink.emit(ProgressEvent(stage=stage, done=done, total=total, unit=unit))
    elif kind == "log":
        sink.emit(LogEvent(message=str(message["message"])))
    elif kind == "warning":
        sink.emit(WarningEvent(code=str(message["code"]), message=str(message["message"])))
    else:
        return False
    return True


def exchanged_array(exchange: Path, name: str) -> NDArray[Any]:
    """Map an array that a worker left in the exchange folder; read only.

    Raises:
        EngineError: a name outside the folder, or a file that is no array.
    """
    path = (exchange / name).resolve()
    if not path.is_relative_to(exchange.resolve()):
        raise EngineError(f"the worker named an array outside its folder: {name!r}")
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise EngineError(f"the worker left no readable array {name!r}: {error}") from error
    return array


def _converse(
    process: _Worker,
    sink: ProgressSink | EventSink,
    on_message: Callable[[Mapping[str, Any]], Mapping[str, Any] | None],
) -> Mapping[str, Any]:
    while True:
        sink.check()
        message = process.next_message()
        if message is None:
            continue
        if message["type"] not in _LAST:
            answer = on_message(message)
            if message["type"] == "ask":
                process.send(dict(answer or {}))
            continue
        if message["type"] == "result":
            return message
        if message["type"] == "cancelled":
            raise RunCancelledError("cancelled", hint="run the same request again to go on")
        raise _error_of(message, process)


def _error_of(message: Mapping[str, Any], process: _Worker) -> Exception:
    problem = Problem(
        code=str(message.get("code", "engine_failed")),
        message=str(message.get("message", "the engine failed")),
        hint=message.get("hint"),
        details={"traceback": message["traceback"]} if message.get("traceback") else {},
    )
    error = problem.to_error()
    # Codes of the worker's own are failures of the engine.
    if type(error).code != problem.code:
        error = EngineError(error.message, hint=error.hint, details=error.details)
    error.details.setdefault("stderr", process.last_words()[-4000:])
    return error


class _Worker:
    """A worker process with its two reading threads."""

    def __init__(self, python: Path, worker: Path, exchange: Path) -> None:
        from lamella.isolation import child

        folder = str(Path(child.__file__).resolve().parent)
        # Its own group (session): whatever the engine starts is ended together with it.
        grouping: dict[str, Any] = (
            {"start_new_session": True}
            if os.name == "posix"
            else {"creationflags": getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)}
        )
        try:
            self._process = subprocess.Popen(
                [str(python), "-I", "-u", str(worker), folder],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=exchange,
                **grouping,
            )
        except OSError as error:
            raise EngineError(
                f"the engine's interpreter {python} can't be started: {error.strerror}",
                hint="make its environment anew: lamella engines install ENGINE --fresh",
            ) from error
        self._messages: queue.Queue[Mapping[str, Any]] = queue.Queue()
        self._stderr = bytearray()
        self._readers = [
            threading.Thread(target=self._read_messages, args=(self._process.stdout,), daemon=True),
            threading.Thread(target=self._read_stderr, args=(self._process.stderr,), daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def send(self, document: Mapping[str, Any]) -> None:
        """Send a line; a worker that is gone is noticed where its messages are read."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError, ValueError):
            self._process.stdin.write(json.dumps(document).encode() + b"\n")
            self._process.stdin.flush()

    def next_message(self) -> Mapping[str, Any] | None:
        """The next message; None when there is none for a moment.

        Raises:
            EngineError: the worker is gone without a last message.
        """
        is_over = self._process.poll() is not None
        if is_over:
            # What it wrote before its end is still on the way.
            self._readers[0].join(timeout=1.0)
        try:
            return self._messages.get(timeout=0.0 if is_over else _POLL_S)
        except queue.Empty:
            pass
        if not is_over:
            return None
        raise self._death()

    def ask_to_stop(self) -> None:
        """Tell the worker that nobody waits for it any more."""
        self.send({"type": "cancel"})

    def end(self, grace_s: float) -> None:
        """Give the worker time to end, then make sure that nothing of it is left."""
        deadline = time.monotonic() + grace_s
        while self._process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        self._kill_group()
        self._process.wait()
        for reader in self._readers:
            reader.join(timeout=1.0)
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert stream is not None
            with contextlib.suppress(OSError):
                stream.close()

    def last_words(self) -> str:
        """The last of what a worker that ends wrote to standard error; it may be on the way."""
        self._readers[1].join(timeout=_LAST_WORDS_S)
        return bytes(self._stderr).decode("utf-8", "replace").strip()

    def _kill_group(self) -> None:
        if os.name == "posix":
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
        elif self._process.poll() is None:
            self._process.kill()

    def _death(self) -> EngineError:
        code = self._process.returncode
        if code < 0:
            name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
            how = f"was killed by {name}"
        else:
            how = f"ended with exit code {code} and no result"
        hint = "what is finished is kept: run the same request again to go on"
        if code == -9:
            hint = "the system may have run out of memory; " + hint
        text = self.last_words()
        tail = "\n".join(text.splitlines()[-_TAIL_LINES:])
        return EngineError(
            f"the engine's process {how}" + (f"; its last words:\n{tail}" if tail else ""),
            hint=hint,
            details={"exit_code": code, "stderr": text[-4000:]},
        )

    def _read_messages(self, stream: IO[bytes]) -> None:
        with contextlib.suppress(OSError, ValueError):
            for line in stream:
                with contextlib.suppress(ValueError):
                    message = json.loads(line)
                    if isinstance(message, dict) and "type" in message:
                        self._messages.put(message)
                        continue
                # Written before the worker had taken standard output over.
                self._keep(line)

    def _read_stderr(self, stream: IO[bytes]) -> None:
        with contextlib.suppress(OSError, ValueError):
            while chunk := stream.read1(8192):  # type: ignore[attr-defined]
                self._keep(chunk)

    def _keep(self, chunk: bytes) -> None:
        self._stderr += chunk
        del self._stderr[:-_STDERR_BYTES]
