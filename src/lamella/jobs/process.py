"""One worker process as its parent sees it: started, spoken to, listened to, ended for sure."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["WorkerProcess", "available_cores", "end_with_parent", "resident_bytes"]

_MODULE = "lamella.jobs.worker_process"
_PR_SET_PDEATHSIG = 1


class WorkerProcess:
    """A running ``lamella.jobs.worker_process``; see there for what is said.

    Args:
        environment: variables that the worker sets before it imports anything.
        preload: modules that it imports before it says that it is ready.
        cores: the only ones it may use; all where empty.
        on_message: called with every answer, in a thread of this object.
        on_end: called once, after the last message, with words about how it ended.
    """

    def __init__(
        self,
        environment: Mapping[str, str],
        preload: Sequence[str],
        cores: Sequence[int],
        on_message: Callable[[WorkerProcess, Mapping[str, Any]], None],
        on_end: Callable[[WorkerProcess, str], None],
    ) -> None:
        self._on_message = on_message
        self._on_end = on_end
        self._lock = threading.Lock()
        # A session of its own: Ctrl-C in the terminal is the server's affair, and whatever the
        # worker starts can be ended together with it.
        grouping: dict[str, Any] = (
            {"start_new_session": True}
            if os.name == "posix"
            else {"creationflags": getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)}
        )
        self._process = subprocess.Popen(
            # -P: the folder in which the server was started is no place to import from.
            [sys.executable, "-P", "-m", _MODULE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            **grouping,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._waiter = threading.Thread(target=self._await_end, daemon=True)
        self._reader.start()
        self._waiter.start()
        self.send(
            type="set-up",
            environment=dict(environment),
            preload=list(preload),
            cores=list(cores),
            parent=os.getpid(),
        )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def send(self, **order: Any) -> None:
        """Give an order; a worker that is gone is noticed where its end is told."""
        assert self._process.stdin is not None
        with self._lock, contextlib.suppress(OSError, ValueError):
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()

    def kill(self) -> None:
        """End it at once, and what it started."""
        # Not reaped before `_await_end` has seen it: the number cannot be another's by now.
        if self._process.returncode is None:
            self._kill_group()

    def end(self, *, is_at_once: bool) -> None:
        """Let it leave: it does when its input ends, and it is killed if it does not."""
        if is_at_once:
            self.kill()
        with self._lock, contextlib.suppress(OSError, ValueError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        self._waiter.join(timeout=2.0)
        if self._waiter.is_alive():
            self.kill()

    def wait(self) -> None:
        """Return when it has ended and everything about it was told."""
        self._waiter.join(timeout=10.0)

    def _read(self) -> None:
        assert self._process.stdout is not None
        with contextlib.suppress(OSError, ValueError):
            for line in self._process.stdout:
                with contextlib.suppress(ValueError):
                    self._on_message(self, json.loads(line))

    def _await_end(self) -> None:
        if hasattr(os, "waitid"):
            # Seen, not yet reaped: its group can still be named without meaning somebody else's.
            with contextlib.suppress(OSError):
                os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
            self._kill_group()
        code = self._process.wait()
        self._reader.join(timeout=2.0)
        for stream in (self._process.stdin, self._process.stdout):
            with self._lock, contextlib.suppress(OSError, ValueError):
                assert stream is not None
                stream.close()
        self._on_end(self, _words(code))

    def _kill_group(self) -> None:
        if os.name == "posix":
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
        else:
            with contextlib.suppress(OSError):
                self._process.kill()


def available_cores() -> tuple[int, ...]:
    """Numbers of the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def resident_bytes(pid: int) -> int:
    """Memory that a process holds; 0 where the system does not say."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def end_with_parent(parent: int) -> None:
    """Let Linux end this process with its parent, even while native code lets no thread in.

    Args:
        parent: its process id.
    """
    if sys.platform != "linux":
        return
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    # It may have died between our start and this line.
    if os.getppid() != parent:
        os._exit(0)


def _words(code: int) -> str:
    if code >= 0:
        return f"it left with exit code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    hint = (
        " (the system may have run out of memory)" if -code == getattr(signal, "SIGKILL", 9) else ""
    )
    return f"it was ended by {name}{hint}"
