"""Jobs from the client's side: submit once, listen until the end, however often the line breaks.

Events are numbered by the server; after a break the stream goes on behind the last one heard
(``Last-Event-ID``), so none is missed and none comes twice. Where a proxy holds streams back, the
same events are asked for by long polling.
"""

import json
from dataclasses import dataclass
from typing import Any

from lamella.client.answers import document_of, event_of
from lamella.client.flow import Close, Failure, Flow, Open, Pause, Read, Request, Response, Tell
from lamella.client.patience import Patience, Trouble, ask, error_of
from lamella.client.sse import EventParser, SentEvent
from lamella.core.errors import LamellaError, RunCancelledError, ServerConnectionError
from lamella.wire.event import RunEvent, StateEvent
from lamella.wire.job import JobDoc, JobSpec

__all__ = ["FINAL_STATES", "WatchOptions", "act", "outcome", "show", "submit", "watch"]

FINAL_STATES = ("finished", "failed", "cancelled")
"""States that a job does not leave by itself."""
_STREAM_SILENCE_S = 45.0
"""Three heartbeats of the server."""
_POLL_WAIT_S = 20
_POLL_LIMIT = 500
_MAX_EMPTY_STREAMS = 2


@dataclass(frozen=True, slots=True)
class WatchOptions:
    """How a job is listened to.

    Attributes:
        after: number of the last event that is known.
        previews: ``none``, ``boxes`` (where) or ``labels`` (the labels themselves).
        has_stream: try server-sent events first.
    """

    after: int = 0
    previews: str = "labels"
    has_stream: bool = True


def submit(spec: JobSpec, key: str, patience: Patience) -> Flow[JobDoc]:
    """Queue a job; however often it is asked with the same key, it is one job."""
    request = Request(
        "POST",
        "jobs",
        headers={"idempotency-key": key, "content-type": "application/json"},
        content=json.dumps(spec.model_dump(mode="json")).encode(),
    )
    answer = yield from ask(request, Trouble(patience))
    return _job(answer)


def show(job_id: str, patience: Patience) -> Flow[JobDoc]:
    """What is known about a job."""
    answer = yield from ask(Request("GET", f"jobs/{job_id}"), Trouble(patience))
    return _job(answer)


def act(job_id: str, verb: str, patience: Patience) -> Flow[JobDoc]:
    """``cancel`` or ``retry`` a job.

    An answer that was lost may make the repeated request a conflict although all is as wanted: then
    the job's state decides.
    """
    had_trouble = False
    request = Request("POST", f"jobs/{job_id}/{verb}")
    flow = ask(request, Trouble(patience), 409)
    answer: Any = None
    while True:
        try:
            instruction = flow.send(answer)
        except StopIteration as end:
            response: Response = end.value
            break
        had_trouble = had_trouble or isinstance(instruction, Pause)
        answer = yield instruction
    if response.status != 409:
        return _job(response)
    job = yield from show(job_id, patience)
    wanted = ("cancelling", "cancelled") if verb == "cancel" else ("queued", "running")
    if had_trouble and job.state in wanted:
        return job
    raise error_of(response)


def watch(job_id: str, options: WatchOptions, patience: Patience) -> Flow[JobDoc]:
    """Tell every event until the job ends; returns how it ended."""
    listener = _Listener(job_id, options, Trouble(patience))
    yield from listener.run()
    return (yield from show(job_id, patience))


def outcome(job: JobDoc) -> JobDoc:
    """The job, if it finished.

    Raises:
        RunCancelledError: when someone cancelled it.
        LamellaError: as the run raised it on the server.
    """
    if job.state == "finished":
        return job
    if job.state == "failed" and job.problem is not None:
        error = job.problem.to_error()
        error.details.setdefault("job", job.id)
        raise error
    if job.state == "cancelled":
        raise RunCancelledError(
            f"the job {job.id} was cancelled",
            hint=f"lamella jobs retry {job.id}   goes on with what is finished",
            details={"job": job.id},
        )
    raise LamellaError(f"the job {job.id} is {job.state}", details={"job": job.id})


@dataclass
class _Listener:
    job_id: str
    options: WatchOptions
    trouble: Trouble

    def __post_init__(self) -> None:
        self.last = self.options.after
        self.is_over = False
        self.has_stream = self.options.has_stream
        self.n_empty = 0

    def run(self) -> Flow[None]:
        while not self.is_over:
            yield from self._stream() if self.has_stream else self._poll()

    # -- server-sent events

    def _stream(self) -> Flow[None]:
        """One stream, from its beginning to its end or break."""
        request = Request(
            "GET",
            f"jobs/{self.job_id}/events",
            headers={
                "accept": "text/event-stream",
                "accept-encoding": "identity",
                "cache-control": "no-store",
                "last-event-id": str(self.last),
            },
            params=self._params(),
            timeout_s=_STREAM_SILENCE_S,
        )
        answer = yield Open(request)
        if isinstance(answer, Response) and answer.is_success:
            yield from self._opened(answer)
            return
        if isinstance(answer, Response) and answer.status == 406:
            self.has_stream = False
            return
        yield from self.trouble.pause(answer)

    def _opened(self, answer: Response) -> Flow[None]:
        self.trouble.answered()
        if answer.status == 204:
            # At its end, and nothing came after what is known.
            yield Close()
            yield from self._ask_whether_over()
            return
        if "text/event-stream" not in answer.headers.get("content-type", ""):
            yield Close()
            self.has_stream = False
            return
        parser = EventParser()
        before = self.last
        data: bytes | Failure = b""
        has_come = False
        while not self.is_over:
            data = yield Read()
            if isinstance(data, Failure) or not data:
                break
            has_come = True
            self.trouble.over()
            for number, event in _parsed(parser, data):
                yield from self._hear(event)
                # One that is not understood has been heard all the same.
                self.last = max(self.last, number)
        yield Close()
        if self.is_over:
            return
        if self.last > before:
            self.n_empty = 0
        elif not has_come:
            # Not even a heartbeat: something in between waits for the end of the answer.
            self.n_empty += 1
            self.has_stream = self.n_empty < _MAX_EMPTY_STREAMS
        if isinstance(data, Failure):
            yield from self.trouble.pause(data)
        else:
            yield from self._ask_whether_over()

    # -- long polling

    def _poll(self) -> Flow[None]:
        params = {**self._params(), "limit": str(_POLL_LIMIT), "wait_s": str(_POLL_WAIT_S)}
        request = Request(
            "GET",
            f"jobs/{self.job_id}/events",
            headers={"accept": "application/json"},
            params=params,
            timeout_s=_POLL_WAIT_S + 30.0,
        )
        answer = yield from ask(request, self.trouble)
        document = answer.json()
        for event in document["events"]:
            yield from self._hear(event_of(json.dumps(event)))
        self.last = max(self.last, int(document.get("last", 0)) if document["events"] else 0)
        if not document["events"]:
            self.is_over = document.get("state") in FINAL_STATES
            if not self.is_over:
                # A server that does not wait must not be asked in a tight loop.
                yield Pause(0.2)

    # -- both

    def _params(self) -> dict[str, str]:
        return {"after": str(self.last), "previews": self.options.previews}

    def _hear(self, event: RunEvent | None) -> Flow[None]:
        if event is None or event.number <= self.last:
            return
        self.last = event.number
        yield Tell(event)
        if isinstance(event, StateEvent):
            self.is_over = event.state in FINAL_STATES

    def _ask_whether_over(self) -> Flow[None]:
        """The stream ended without a final event: a proxy's limit, or an old event was lost."""
        job = yield from show(self.job_id, self.trouble.patience)
        self.is_over = job.state in FINAL_STATES and job.last_event <= self.last
        if not self.is_over:
            yield Pause(0.3)


def _parsed(parser: EventParser, data: bytes) -> list[tuple[int, RunEvent | None]]:
    """Numbers and events; None where this version does not know the event."""
    try:
        return [_sent(event) for event in parser.feed(data)]
    except ValueError as error:
        raise ServerConnectionError(f"the server's events cannot be read: {error}") from None


def _sent(sent: SentEvent) -> tuple[int, RunEvent | None]:
    event = event_of(sent.data)
    number = int(sent.id) if sent.id.isdigit() else 0
    if event is not None and number:
        event = event.model_copy(update={"number": number})
    return number, event


def _job(answer: Response) -> JobDoc:
    return document_of(JobDoc, answer.content, what="job")
