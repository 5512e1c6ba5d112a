"""The worker's end of the protocol; runs inside an engine's environment, knows nothing of ours.

A worker is one file that the host starts as ``python -I worker.py FOLDER``, where FOLDER holds this
module::

    import sys

    sys.path.insert(0, sys.argv[1])
    import child


    def main(channel):
        import engine_of_somebody

        for z in range(channel.request["n_slices"]):
            channel.check()
            channel.progress("segmenting", z, channel.request["n_slices"], "slices")
        channel.result(n_objects=7)


    if __name__ == "__main__":
        child.serve(main)

Messages are lines of JSON on what was standard output when the worker began. From then on file
descriptor 1 is standard error, so that nothing an engine prints can be taken for a message; arrays
travel as ``.npy`` files in the exchange folder. When the host goes away, the worker ends itself.
Unless the request says ``"network": true``, connections to anywhere but this machine are refused.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

__all__ = ["PROTOCOL_VERSION", "Cancelled", "Channel", "Failed", "connect", "serve"]

PROTOCOL_VERSION = 1

_QUIET_ENGINES = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "WANDB_MODE": "disabled",
    "MPLBACKEND": "Agg",
}
"""Settings by which libraries stay off the network and off the screen; an import may read them."""

# Only this module is meant to be found in its folder: its neighbours carry everyday names.
_FOLDER = str(Path(__file__).resolve().parent)
sys.path[:] = [entry for entry in sys.path if not entry or str(Path(entry).resolve()) != _FOLDER]


class Cancelled(BaseException):
    """The host asked the worker to stop; not an Exception, so that engines do not swallow it."""


class Failed(Exception):  # noqa: N818 - how a worker ended, as Cancelled is
    """A failure the worker can explain; ``code`` is one of the codes of Lamella's errors."""

    def __init__(self, code: str, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint


class Channel:
    """The line to the host.

    Attributes:
        request: what the host asks for.
        exchange: folder where arrays are left for each other.
    """

    def __init__(
        self, stream: Any, request: Mapping[str, Any], exchange: Path, inbox: queue.Queue[Any]
    ) -> None:
        self.request = request
        self.exchange = exchange
        self._stream = stream
        self._inbox = inbox
        self._lock = threading.Lock()
        self._cancelled = threading.Event()

    def progress(self, stage: str, done: float, total: float, unit: str = "") -> None:
        """Report a step of the work."""
        self._send(type="progress", stage=stage, done=done, total=total, unit=unit)

    def log(self, message: str) -> None:
        """Tell people something in passing."""
        self._send(type="log", message=str(message))

    def warn(self, code: str, message: str) -> None:
        """Tell what the user must know about the result."""
        self._send(type="warning", code=code, message=str(message))

    def preview(self, array_path: str, factors: Iterable[float]) -> None:
        """Announce coarse labels; factors are full-resolution voxels per voxel of the array."""
        self._send(type="preview", array=array_path, factors=[float(f) for f in factors])

    def block(
        self, start: Iterable[int], stop: Iterable[int], array_path: str, **facts: Any
    ) -> None:
        """Announce the final labels of a box (half-open, full-resolution voxels)."""
        self._send(
            type="block",
            start=[int(value) for value in start],
            stop=[int(value) for value in stop],
            array=array_path,
            **facts,
        )

    def result(self, **facts: Any) -> None:
        """Say that everything is done, and what came of it."""
        self._send(type="result", **facts)

    def fail(self, code: str, message: str, hint: str | None = None) -> NoReturn:
        """End the worker with an error that the user sees as it is written here."""
        raise Failed(code, message, hint)

    def check(self) -> None:
        """Stop here if the host asked for it.

        Raises:
            Cancelled: let it pass; :func:`serve` ends the worker.
        """
        if self._cancelled.is_set():
            raise Cancelled

    def ask(self, what: str, **facts: Any) -> dict[str, Any]:
        """Ask the host for something, such as the next slice, and wait for the answer.

        Raises:
            Cancelled: the host asked the worker to stop.
        """
        self.check()
        self._send(type="ask", what=what, **facts)
        answer = self._inbox.get()
        if answer is None:
            raise Cancelled
        return answer

    def load(self, name: str) -> Any:
        """Return an array of the exchange folder, mapped into memory, read only."""
        import numpy as np

        return np.load(self.exchange / name, mmap_mode="r", allow_pickle=False)

    def save(self, name: str, array: Any) -> str:
        """Leave an array in the exchange folder, whole or not at all; returns ``name``."""
        import numpy as np

        partial = self.exchange / f"{name}.part"
        with partial.open("wb") as stream:
            np.save(stream, array, allow_pickle=False)
        partial.replace(self.exchange / name)
        return name

    def listen(self, stream: Any) -> None:
        """Take the host's messages until it is gone; then end the worker at once."""
        for line in stream:
            message = json.loads(line)
            if message.get("type") == "cancel":
                self._cancelled.set()
                self._inbox.put(None)
            else:
                self._inbox.put(message)
        os._exit(70)

    def send_error(self, code: str, message: str, hint: str | None, trace: str = "") -> None:
        """Report how the worker failed."""
        self._send(type="error", code=code, message=message, hint=hint, traceback=trace)

    def send_cancelled(self) -> None:
        """Confirm that the worker stopped because it was asked to."""
        self._send(type="cancelled")

    def _send(self, **message: Any) -> None:
        line = json.dumps(message, default=_plain, allow_nan=False).encode() + b"\n"
        with self._lock:
            self._stream.write(line)
            self._stream.flush()


def connect() -> Channel:
    """Take over standard input and output, and return the line to the host.

    Call it before the engine is imported: from here on prints are harmless, and the environment
    variables that keep libraries off the network are set.
    """
    messages = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    orders = os.fdopen(os.dup(0), "rb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    first = json.loads(orders.readline())
    if first.get("protocol") != PROTOCOL_VERSION:
        raise SystemExit(f"unknown protocol {first.get('protocol')!r}")
    request = first["request"]
    if not request.get("network"):
        os.environ.update(_QUIET_ENGINES)  # noqa: TID251 - the engine's own process
        sys.addaudithook(_refuse_network)
    channel = Channel(messages, request, Path(first["exchange"]), queue.Queue())
    threading.Thread(target=channel.listen, args=(orders,), daemon=True).start()
    return channel


def serve(main: Callable[[Channel], None]) -> NoReturn:
    """Run a worker's ``main``, report how it ended, and leave."""
    channel = connect()
    code = 0
    try:
        main(channel)
    except Cancelled:
        channel.send_cancelled()
    except Failed as error:
        channel.send_error(error.code, error.message, error.hint)
        code = 1
    except BaseException as error:  # noqa: BLE001 - whatever it was, the host must hear of it
        channel.send_error(*_explain(error), traceback.format_exc())
        code = 1
    sys.stderr.flush()
    # Engines leave threads and pools behind that would hold an ordinary exit up.
    os._exit(code)


def _explain(error: BaseException) -> tuple[str, str, str | None]:
    kinds = {kind.__name__ for kind in type(error).__mro__}
    text = f"{type(error).__name__}: {error}"
    if "OutOfMemoryError" in kinds:
        return "device_out_of_memory", text.splitlines()[0], None
    if isinstance(error, MemoryError):
        return "engine_failed", f"out of memory: {error}", "use a smaller tile, or a crop"
    return "engine_failed", text, None


def _refuse_network(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "socket.connect":
        address = arguments[1]
        if isinstance(address, tuple) and not _is_here(address[0]):
            raise PermissionError(f"the network may not be used here: {address[0]}")
    elif event == "socket.getaddrinfo" and not _is_here(arguments[0]):
        raise PermissionError(f"the network may not be used here: {arguments[0]}")


def _is_here(host: Any) -> bool:
    text = host.decode() if isinstance(host, bytes) else str(host or "")
    return text in ("", "localhost", "::1") or text.startswith("127.")


def _plain(value: Any) -> Any:
    """NumPy's scalars and arrays, and paths, as JSON values."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} is no JSON value")
