"""A real server for tests: ``lamella serve`` in a process of its own, on a free port.

It dies with the test, whatever happens to the test; it can be killed and started again on the same
folder and the same port. Start it in a thread that lives as long as it should: Linux ends it with
the thread that started it.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from lamella.core.errors import RunError
from lamella.testing.processes import ending_with_parent

__all__ = ["LiveServer", "run_server"]

_START_S = 60.0
_STOP_S = 40.0


class LiveServer:
    """A server's process.

    Args:
        data_dir: its folder.
        flags: of ``lamella serve``, besides folder and port.
        environment: variables besides those of this process.

    Attributes:
        url: where it is.
        token: of an admin.
        fingerprint: of its certificate; None without TLS.
        certificate: path of its certificate; None without TLS.
    """

    def __init__(
        self,
        data_dir: Path,
        flags: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.data_dir, self.flags = data_dir, tuple(flags)
        self.environment = {**os.environ, **(environment or {})}  # noqa: TID251 - handed on
        self.url = ""
        self.token = ""
        self.fingerprint: str | None = None
        self.certificate: str | None = None
        self._port = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def headers(self) -> dict[str, str]:
        """What a request of the admin carries."""
        return {"Authorization": f"Bearer {self.token}"}

    @property
    def pid(self) -> int:
        """Number of its process."""
        assert self._process is not None, "it was started"
        return self._process.pid

    @property
    def log(self) -> str:
        """What it has logged."""
        return self._log_path.read_text() if self._log_path.is_file() else ""

    @property
    def is_running(self) -> bool:
        """Whether its process lives."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it, and return when it answers.

        Raises:
            RunError: with its log, when it did not come up.
        """
        words = [
            sys.executable, "-m", "lamella", "serve", "--json", "--data-dir", str(self.data_dir),
            "--port", str(self._port), "--log-format", "json", "--min-free-bytes", "0", *self.flags,
        ]  # fmt: skip
        self.data_dir.parent.mkdir(parents=True, exist_ok=True)
        with self._log_path.open("ab") as log:
            self._process = subprocess.Popen(
                words,
                stdout=subprocess.PIPE,
                stderr=log,
                env=self.environment,
                start_new_session=True,
                preexec_fn=ending_with_parent(),
            )
        told = self._hear()
        self.url, self.fingerprint = told["url"], told["fingerprint"]
        self.certificate = told["certificate"]
        self._port = int(self.url.rpartition(":")[2])
        if told["token_file"]:
            self.token = Path(told["token_file"]).read_text().strip()

    def kill(self) -> None:
        """Kill the server at once; its workers notice by themselves."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            self._process.wait()
            self._close()

    def stop(self) -> int:
        """Ask it to stop and wait; its exit code."""
        assert self._process is not None, "it was started"
        self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(_STOP_S)
        finally:
            self.close()

    def restart(self) -> None:
        """Kill it and start it again on the same folder and port."""
        self.kill()
        self.start()

    def close(self) -> None:
        """End it and whatever it started."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._close()

    @property
    def _log_path(self) -> Path:
        return self.data_dir.parent / f"{self.data_dir.name}.log"

    def _hear(self) -> dict[str, Any]:
        assert self._process is not None
        stream = self._process.stdout
        assert stream is not None
        line = _read_line(stream, _START_S)
        if not line:
            self.close()
            raise RunError(f"the server did not come up: {self.log[-3000:]}")
        return json.loads(line)

    def _close(self) -> None:
        if self._process is not None and self._process.stdout is not None:
            self._process.stdout.close()


@contextmanager
def run_server(
    data_dir: Path, *flags: str, environment: Mapping[str, str] | None = None
) -> Iterator[LiveServer]:
    """Run a server as long as the block; see :class:`LiveServer`."""
    server = LiveServer(data_dir, flags, environment)
    try:
        server.start()
        yield server
    finally:
        server.close()


def _read_line(stream: IO[bytes], timeout_s: float) -> bytes:
    deadline, line = time.monotonic() + timeout_s, b""
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while not line.endswith(b"\n"):
            if not selector.select(max(0.0, deadline - time.monotonic())):
                return b""
            more = os.read(stream.fileno(), 65_536)
            if not more:
                return b""
            line += more
    return line
