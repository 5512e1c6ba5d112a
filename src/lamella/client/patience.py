"""Which failures are tried again, how long, and with which waits.

Waits grow exponentially with full jitter: the n-th is uniform between 0 and ``first_wait_s`` times
2ⁿ, at most ``longest_wait_s`` (Brooker, "Exponential Backoff And Jitter", AWS 2015: of the usual
schemes the one with the least work for server and clients). ``Retry-After`` is the least wait where
a server names one. Success resets everything: patience counts from the last answer.

======================================  ========================================================
what came                               what is done
======================================  ========================================================
no connection, broken, silent           tried again, ``total_s`` long; ``first_s`` where the
                                        server has not answered once (a wrong address, mostly)
408, 423, 425, 429, 502, 503, 504       tried again, ``total_s`` long
500                                     tried again ``n_defects`` times in a row
another certificate, no HTTP            an error at once
any other 4xx, 5xx                      an error at once, of the class the server's code names
======================================  ========================================================
"""

import email.utils
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, Literal

from lamella.client.flow import Failure, Flow, Pause, Request, Response, Send, Tell
from lamella.core.errors import (
    ChecksumError,
    ConflictError,
    ForbiddenError,
    GoneError,
    InputError,
    LamellaError,
    MissingPathError,
    QuotaError,
    RunError,
    ServerConnectionError,
    TooManyRequestsError,
    UnauthenticatedError,
)

__all__ = ["FAILURES", "STATUSES", "Contact", "Patience", "Trouble", "Waiting", "ask", "error_of"]

Answer = Response | Failure
Rule = Literal["again", "few", "never"]

STATUSES: dict[int, Rule] = {
    408: "again",  # the server gave up waiting for our request
    423: "again",  # another request holds the upload; locks free themselves
    425: "again",
    429: "again",
    500: "few",  # perhaps a defect: not for minutes
    502: "again",  # what stands before a restarting server says these three
    503: "again",
    504: "again",
}
"""What is done about a status that is no success; those not listed are never tried again."""

FAILURES: dict[str, Rule] = {
    "unreachable": "again",
    "timeout": "again",
    "broken": "again",
    "certificate": "never",
    "protocol": "never",
}
"""What is done about a request without an answer."""

_ERRORS: dict[int, type[LamellaError]] = {
    400: InputError,
    401: UnauthenticatedError,
    403: ForbiddenError,
    404: MissingPathError,
    409: ConflictError,
    410: GoneError,
    413: QuotaError,
    422: InputError,
    429: TooManyRequestsError,
    460: ChecksumError,
    507: QuotaError,
}
"""For answers that carry no problem document (a proxy's, say)."""


@dataclass(slots=True)
class Contact:
    """Whether a server has ever answered; shared by all work of one client."""

    was_made: bool = False


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a client keeps trying; all times in seconds.

    Attributes:
        total_s: without any answer, once the server has answered.
        first_s: without any answer from the beginning.
        first_wait_s: bound of the first wait; doubles.
        longest_wait_s: bound of all waits of our own.
        longest_asked_s: of waits that a server asks for; longer ones are an error.
        n_defects: tries after answers of 500.
        chance: uniform in 0..1.
        contact: with the server, so far.
    """

    total_s: float = 900.0
    first_s: float = 20.0
    first_wait_s: float = 0.5
    longest_wait_s: float = 15.0
    longest_asked_s: float = 300.0
    n_defects: int = 4
    chance: Callable[[], float] = random.random
    contact: Contact = field(default_factory=Contact, compare=False)


@dataclass(frozen=True, slots=True)
class Waiting:
    """Told before a pause: why, and for how long."""

    type: Literal["waiting"] = field(default="waiting", init=False)
    reason: str
    seconds: float


@dataclass(slots=True)
class Trouble:
    """Failures in a row of one piece of work; forgotten as soon as something succeeds.

    Attributes:
        patience: how much of it is borne.
    """

    patience: Patience
    _since_s: float | None = None
    _n_waits: int = 0
    _n_defects: int = 0

    @property
    def was_reached(self) -> bool:
        """Whether the server has answered before."""
        return self.patience.contact.was_made

    def answered(self) -> None:
        """It has."""
        self.patience.contact.was_made = True

    def over(self) -> None:
        """Something succeeded."""
        self.answered()
        self._since_s = None
        self._n_waits = self._n_defects = 0

    def wait(self, answer: Answer) -> Waiting:
        """How long to wait before the next try.

        Raises:
            LamellaError: when it makes no sense to try again, or patience has run out.
        """
        rule = (
            STATUSES.get(answer.status, "never")
            if isinstance(answer, Response)
            else FAILURES[answer.kind]
        )
        if isinstance(answer, Response) and rule == "few":
            self._n_defects += 1
        if rule == "never" or self._n_defects > self.patience.n_defects:
            raise error_of(answer)
        if isinstance(answer, Response):
            self.answered()
        if self._since_s is None:
            self._since_s = answer.time_s
        limit = self.patience.total_s if self.was_reached else self.patience.first_s
        lasted = answer.time_s - self._since_s
        if lasted >= limit:
            raise self._given_up(answer, lasted)
        return Waiting(_reason(answer), self._seconds(answer))

    def pause(self, answer: Answer) -> Flow[None]:
        """Tell of the wait, and wait; raises as :meth:`wait` does."""
        waiting = self.wait(answer)
        yield Tell(waiting)
        yield Pause(waiting.seconds)

    def _seconds(self, answer: Answer) -> float:
        # A float's exponent ends somewhere; the bound is reached long before.
        bound = self.patience.first_wait_s * 2.0 ** min(self._n_waits, 30)
        self._n_waits += 1
        seconds = self.patience.chance() * min(bound, self.patience.longest_wait_s)
        asked = retry_after_s(answer)
        if asked is None:
            return seconds
        if asked > self.patience.longest_asked_s:
            raise error_of(answer)
        return asked + seconds

    def _given_up(self, answer: Answer, lasted_s: float) -> LamellaError:
        error = error_of(answer)
        if not self.was_reached:
            return error
        return ServerConnectionError(
            f"{error.message}; tried again for {lasted_s:.0f} s",
            hint="the same command again goes on where this one stopped, once the server answers",
            details=error.details,
        )


def ask(request: Request, trouble: Trouble, *accepted: int) -> Flow[Response]:
    """Send a request until it is answered.

    Only for requests that may be repeated: what reads, what replaces, and what carries an
    idempotency key.

    Args:
        request: what to ask.
        trouble: failures so far.
        *accepted: statuses that are answers here although they are no success.

    Raises:
        LamellaError: of the class that the server's problem names.
    """
    while True:
        answer: Answer = yield Send(request)
        if isinstance(answer, Response) and (answer.is_success or answer.status in accepted):
            trouble.over()
            return answer
        yield from trouble.pause(answer)


def error_of(answer: Answer) -> LamellaError:
    """The error that an answer stands for."""
    if isinstance(answer, Failure):
        return _failure_error(answer)
    problem = _problem(answer)
    if problem is not None and isinstance(problem.get("code"), str):
        from lamella.wire.problem import Problem

        return Problem(
            code=problem["code"],
            message=str(problem.get("detail") or problem.get("message") or problem.get("title")),
            # The server's own hint is for programs.
            hint=_hint(401) if answer.status == 401 else problem.get("hint"),
            details=problem.get("details") or {},
        ).to_error()
    try:
        phrase = HTTPStatus(answer.status).phrase
    except ValueError:
        phrase = "an unknown status"
    message = f"the server answered {answer.status} ({phrase})"
    kind = _ERRORS.get(answer.status, RunError if answer.status >= 500 else InputError)
    return kind(message, hint=_hint(answer.status), details={"status": answer.status})


def retry_after_s(answer: Answer) -> float | None:
    """Seconds that the server asks to wait; None where it asks for nothing.

    Examples:
        >>> retry_after_s(Response(503, {"retry-after": "7"}, b"", 0.0))
        7.0
    """
    if isinstance(answer, Failure):
        return None
    text = answer.headers.get("retry-after", "").strip()
    if not text:
        return None
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        when = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return None
    # The server's own clock, where it tells it: ours may be wrong.
    now = _date(answer.headers.get("date", "")) or datetime.now(UTC)
    return max(0.0, (when - now).total_seconds())


def _date(text: str) -> datetime | None:
    try:
        return email.utils.parsedate_to_datetime(text)
    except ValueError:
        return None


def _problem(answer: Response) -> dict[str, Any] | None:
    if "json" not in answer.headers.get("content-type", ""):
        return None
    try:
        document = answer.json()
    except ServerConnectionError:
        return None
    return document if isinstance(document, dict) else None


def _hint(status: int) -> str | None:
    hints = {
        401: "`lamella login URL` keeps a token for all commands; else --token or LAMELLA_TOKEN",
        403: "this token may not do that: ask whoever runs the server for one that may",
        404: "check the server's address: it should not have a path, as https://gpu.lab:8443",
    }
    return hints.get(status)


def _failure_error(failure: Failure) -> LamellaError:
    hints = {
        "unreachable": "check the address, and that the server runs: `lamella serve`",
        "timeout": "the network or the server is very slow; the same command again goes on",
        "protocol": "check the address: https:// or http://, and the port",
    }
    return ServerConnectionError(failure.message, hint=hints.get(failure.kind))


def _reason(answer: Answer) -> str:
    if isinstance(answer, Failure):
        return answer.message
    return error_of(answer).message
