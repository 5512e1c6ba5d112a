"""What a client does, without doing it: flows yield instructions and are sent what came of them.

A flow is a generator. It decides (what is asked next, whether a failure is tried again, where an
upload goes on) and never touches a socket, a disk or a clock; a driver carries its instructions
out. The same flow runs under :mod:`lamella.client.drive` (threads) and
:mod:`lamella.client.drive_async` (asyncio), and under tests that drop, delay and restart at will::

    flow ──Send──────▶ driver ──▶ Response | Failure
         ──Open──────▶        ──▶ Response (its body unread) | Failure
         ──Read──────▶        ──▶ bytes (empty at the end) | Failure
         ──Close─────▶        ──▶ None
         ──Pause─────▶        ──▶ None, later
         ──Do────────▶        ──▶ what the function returned (disk and hashes)
         ──Tell──────▶        ──▶ None; the caller has heard it
         ──Together──▶        ──▶ list of what each flow returned

Examples:
    >>> def version() -> Flow[str]:
    ...     answer = yield Send(Request("GET", "version"))
    ...     return answer.json()["version"]
    >>> flow = version()
    >>> next(flow).request.path
    'version'
    >>> try:
    ...     flow.send(Response(200, {}, b'{"version": "1.0"}', time_s=0.0))
    ... except StopIteration as end:
    ...     print(end.value)
    1.0
"""

import json
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias, TypeVar

from lamella.core.errors import ServerConnectionError

__all__ = [
    "Body",
    "Close",
    "Do",
    "Failure",
    "FailureKind",
    "Flow",
    "Instruction",
    "Open",
    "Pause",
    "Read",
    "Request",
    "Response",
    "Send",
    "Source",
    "Tell",
    "Together",
]

T = TypeVar("T")

FailureKind = Literal["unreachable", "timeout", "broken", "certificate", "protocol"]
"""Nobody answers; nothing came in time; the connection broke; it is another server; nonsense."""


class Source(Protocol):
    """Bytes to upload, readable at any place.

    Contract:
        * ``size`` is known beforehand and does not change.
        * ``read(start, count)`` gives exactly ``count`` bytes, the same ones every time.
        * It raises :class:`lamella.core.errors.InputError` once what lies on disk is another file.
    """

    @property
    def size(self) -> int:
        """Bytes in all."""
        ...

    def read(self, start: int, count: int) -> bytes:
        """Bytes ``start`` to ``start + count``."""
        ...


@dataclass(frozen=True, slots=True)
class Body:
    """A stretch of a source, read and hashed by the driver when it is sent."""

    source: Source
    start: int
    count: int


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked of a server.

    Attributes:
        method: of HTTP.
        path: below ``/api/v1/`` (``jobs/ID``), from the root (``/api/v1/uploads/ID``), or a whole
            address.
        headers: besides those of every request.
        params: of the query.
        content: a body at hand (JSON).
        body: a body that the driver reads; it then adds ``Upload-Checksum``.
        has_token: whether the user's token goes along; never to another host.
        timeout_s: longest silence; the driver's own unless given.
    """

    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)
    content: bytes | None = None
    body: Body | None = None
    has_token: bool = True
    timeout_s: float | None = None


@dataclass(frozen=True, slots=True)
class Response:
    """What a server answered; header names are lower case.

    ``time_s`` is the driver's clock (seconds, monotonic): flows know no other time.
    """

    status: int
    headers: Mapping[str, str]
    content: bytes
    time_s: float

    @property
    def is_success(self) -> bool:
        """Whether the status is 2xx."""
        return 200 <= self.status < 300

    def json(self) -> Any:
        """The body as JSON values.

        Raises:
            ServerConnectionError: when it is none.
        """
        try:
            return json.loads(self.content)
        except ValueError:
            raise ServerConnectionError(
                f"what answered is no Lamella server: {self.content[:40]!r} is not JSON",
                hint="check the address: `lamella serve` prints it",
            ) from None


@dataclass(frozen=True, slots=True)
class Failure:
    """No answer, or only half of one."""

    kind: FailureKind
    message: str
    time_s: float


@dataclass(frozen=True, slots=True)
class Send:
    """Ask, and wait for the whole answer."""

    request: Request


@dataclass(frozen=True, slots=True)
class Open:
    """Ask, and wait for the head of the answer; one stream of a flow is open at a time."""

    request: Request


@dataclass(frozen=True, slots=True)
class Read:
    """Wait for more of the open stream, however little."""


@dataclass(frozen=True, slots=True)
class Close:
    """Leave the open stream."""


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait before the next try."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Do:
    """Work that may block: disk, hashes."""

    work: Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Tell:
    """Something for the caller: an event, progress, a wait."""

    event: Any


@dataclass(frozen=True, slots=True)
class Together:
    """Flows that run at the same time; the first error ends them all."""

    flows: tuple["Flow[Any]", ...]


Instruction: TypeAlias = Send | Open | Read | Close | Pause | Do | Tell | Together
Flow: TypeAlias = Generator[Instruction, Any, T]
