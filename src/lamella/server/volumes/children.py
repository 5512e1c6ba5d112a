"""Starts child processes, waits for them so long and no longer, and ends them with the server."""

import json
import signal
import subprocess
import sys
import threading
from typing import Any

from lamella.core.errors import RunCancelledError, UnreadableFileError
from lamella.wire.problem import Problem

__all__ = ["Children"]

_TOLD_BYTES = 2000


class Children:
    """Child processes of one server; see :mod:`lamella.server.volumes.child`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._is_closed = False

    def run(self, asked: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """The child's result.

        Raises:
            LamellaError: what the child found wrong.
            UnreadableFileError: it crashed, or took too long.
            RunCancelledError: the server goes down.
        """
        child = self._start()
        try:
            out, err = child.communicate(json.dumps(asked).encode(), timeout=timeout_s)
        except subprocess.TimeoutExpired:
            raise UnreadableFileError(
                f"reading it took longer than {timeout_s:.0f} s, and was stopped",
                hint="check the file with `lamella info` on your own machine",
            ) from None
        finally:
            self._end(child)
        if self._is_closed:
            raise RunCancelledError("the server goes down")
        return _result(child.returncode, out, err)

    def close(self) -> None:
        """End all of them."""
        with self._lock:
            self._is_closed = True
            for child in self._running:
                child.kill()

    def _start(self) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._is_closed:
                raise RunCancelledError("the server goes down")
            child = subprocess.Popen(
                [sys.executable, "-m", "lamella.server.volumes.child"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
            self._running.add(child)
            return child

    def _end(self, child: subprocess.Popen[bytes]) -> None:
        if child.poll() is None:
            child.kill()
            child.communicate()
        with self._lock:
            self._running.discard(child)


def _result(code: int, out: bytes, err: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(out)
    except ValueError:
        answer = {}
    if "problem" in answer:
        raise Problem.model_validate(answer["problem"]).to_error()
    if code != 0 or "result" not in answer:
        how = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        last = err[-_TOLD_BYTES:].decode(errors="replace").strip().splitlines()
        raise UnreadableFileError(
            f"the reader crashed on it ({how}){': ' + last[-1][:300] if last else ''}",
            hint="the file is damaged, or needs more memory to be read than the server gives",
        )
    return answer["result"]
