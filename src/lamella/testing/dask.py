"""A real Dask cluster on this machine, each part a process of its own, for contract suites."""

from __future__ import annotations

import datetime
import ipaddress
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from lamella.testing.executor import wait_for
from lamella.testing.processes import ending_with_parent

__all__ = ["Certificates", "DaskSite", "make_certificates", "run_dask"]


@dataclass(frozen=True, slots=True)
class Certificates:
    """Of an authority of one's own, and one that it signed for this machine; paths of PEM files."""

    tls_ca: str
    tls_cert: str
    tls_key: str

    @property
    def options(self) -> dict[str, str]:
        """As :class:`lamella.jobs.batch_system.ClusterOptions` takes them."""
        return {"tls_ca": self.tls_ca, "tls_cert": self.tls_cert, "tls_key": self.tls_key}

    @property
    def words(self) -> tuple[str, ...]:
        """As Dask's programs take them."""
        return (
            *("--tls-ca-file", self.tls_ca),
            *("--tls-cert", self.tls_cert),
            *("--tls-key", self.tls_key),
        )


@dataclass
class DaskSite:
    """A scheduler and its workers."""

    folder: Path
    certificates: Certificates | None = None
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
        protocol = "tls" if self.certificates else "tcp"
        process = self._start(
            "dask_scheduler",
            *("--protocol", protocol, "--host", "127.0.0.1", "--port", str(port)),
            "--no-dashboard",
            *("--scheduler-file", str(self.scheduler_file)),
        )
        wait_for(self._is_reachable, "the scheduler")
        return process

    def _is_reachable(self) -> bool:
        """Whether the scheduler has said how; its file is empty for a moment."""
        return self.scheduler_file.exists() and self.scheduler_file.read_bytes().endswith(b"}")

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
                    *(self.certificates.words if self.certificates else ()),
                ],
                stdout=log,
                stderr=log,
                preexec_fn=ending_with_parent(),
            )
        self.processes.append(process)
        return process

    def stop(self) -> None:
        """End all of it at once; what nannies have started ends with them."""
        for process in reversed(self.processes):
            process.kill()
        for process in self.processes:
            process.wait()


@contextmanager
def run_dask(
    folder: Path, n_workers: int, *options: str, certificates: Certificates | None = None
) -> Iterator[DaskSite]:
    """A scheduler and ``n_workers`` workers with a thread each.

    Args:
        folder: for their files and logs.
        n_workers: processes.
        options: further words for the workers' command line, such as ``--resources GPU=1``.
        certificates: of all; the address is ``tls://`` then.
    """
    site = DaskSite(folder, certificates)
    try:
        site.start_scheduler()
        site.start_workers(n_workers, *options)
        yield site
    finally:
        site.stop()


def make_certificates(folder: Path) -> Certificates:
    """Make an authority, and a certificate of it for 127.0.0.1, in a folder."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    now, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
    names = [
        x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])
        for text in ("authority", "dask")
    ]
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in names]
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    made: list[str] = []
    for name, key, is_authority in zip(names, keys, (True, False), strict=True):
        certificate = (
            x509.CertificateBuilder(issuer_name=names[0], subject_name=name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - day)
            .not_valid_after(now + day)
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([address]), critical=False)
            .sign(keys[0], hashes.SHA256())
        )
        path = folder / ("authority.pem" if is_authority else "dask.pem")
        path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        made.append(str(path))
    secret = folder / "dask.key"
    secret.touch(mode=0o600)
    secret.write_bytes(
        keys[1].private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return Certificates(made[0], made[1], str(secret))
