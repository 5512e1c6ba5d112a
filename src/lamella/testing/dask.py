"""A real Dask cluster on this machine, each part a process of its own, for contract suites."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from lamella.testing.executor import wait_for

__all__ = ["DaskSite", "run_dask"]


@dataclass
class DaskSite:
    """A scheduler and its workers."""

    folder: Path
    security: Sequence[str] = ()
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def scheduler_file(self) -> Path:
        """Where the scheduler says how it is reached."""
        return self.folder / "scheduler.json"

    @property
    def address(self) -> str:
        """Of the scheduler."""
        return json.loads(self.scheduler_file.read_text())["address"]

    def start_scheduler(self, port: int = 0) -> subprocess.Popen[bytes]:
        """Start the scheduler and wait until it listens."""
        self.scheduler_file.unlink(missing_ok=True)
        protocol = "tls" if self.security else "tcp"
        process = self._start(
            "dask_scheduler",
            *("--protocol", protocol, "--host", "127.0.0.1", "--port", str(port)),
            "--no-dashboard",
            *("--scheduler-file", str(self.scheduler_file)),
        )
        wait_for(self.scheduler_file.exists, "the scheduler")
        return process

    def start_workers(self, n_workers: int, *options: str) -> subprocess.Popen[bytes]:
        """Start workers with nannies, a thread each; they are there some seconds later."""
        return self._start(
            "dask_worker",
            *("--scheduler-file", str(self.scheduler_file), "--host", "127.0.0.1"),
            *("--nworkers", str(n_workers), "--nthreads", "1", "--no-dashboard"),
            *("--local-directory", str(self.folder), "--death-timeout", "60"),
            *options,
        )

    def _start(self, command: str, *options: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{command}.log").open("ab") as log:
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    "-m",
                    f"distributed.cli.{command}",
                    *options,
                    *self.security,
                ],
                stdout=log,
                stderr=log,
            )
        self.processes.append(process)
        return process

    def stop(self) -> None:
        """End workers, then the scheduler; their nannies end what they started."""
        for process in reversed(self.processes):
            process.terminate()
        for process in self.processes:
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def run_dask(
    folder: Path, n_workers: int, *options: str, security: Sequence[str] = ()
) -> Iterator[DaskSite]:
    """A scheduler and ``n_workers`` workers with a thread each.

    Args:
        folder: for their files and logs.
        n_workers: processes.
        options: further words for the workers' command line, such as ``--resources GPU=1``.
        security: words for all, such as ``--tls-ca-file``; the address is ``tls://`` then.
    """
    site = DaskSite(folder, security)
    try:
        site.start_scheduler()
        site.start_workers(n_workers, *options)
        yield site
    finally:
        site.stop()
