"""An S3 server of one's own for tests: moto's, in a process that ends with this one.

It keeps objects in memory, and speaks S3 as s3fs and clients with presigned addresses expect it.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from lamella.core.errors import RunError

__all__ = ["S3Server", "run_s3"]

# Port 0 is one that nobody else has; the process ends when nobody holds its standard input.
_PROGRAM = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


@dataclass
class S3Server:
    """A running server.

    Attributes:
        endpoint: where it is.
    """

    endpoint: str
    _n_buckets: int = field(default=0, repr=False)

    @property
    def environment(self) -> dict[str, str]:
        """Variables by which s3fs, and whatever else asks AWS, finds it."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "lamella",
            "AWS_SECRET_ACCESS_KEY": "lamella-secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def create_bucket(self) -> str:
        """The address of a prefix in a new, empty bucket."""
        from urllib.request import Request, urlopen

        self._n_buckets += 1
        name = f"lamella-{self._n_buckets}"
        # moto checks no signatures: a bucket is one plain request.
        made = Request(f"{self.endpoint}/{name}", method="PUT")
        with urlopen(made, timeout=30) as answer:
            assert answer.status == 200, answer.status
        return f"s3://{name}/kept"


@contextmanager
def run_s3() -> Iterator[S3Server]:
    """A server that runs until the block ends, or this process dies.

    Raises:
        RunError: when it does not start.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        port = process.stdout.readline().strip()
        if not port:
            raise RunError("the S3 server did not start", hint="moto[server] has to be installed")
        yield S3Server(f"http://127.0.0.1:{int(port)}")
    finally:
        process.stdin.close()
        process.kill()
        process.wait()
        process.stdout.close()
