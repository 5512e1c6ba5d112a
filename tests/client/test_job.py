"""Laws of jobs: submitted once, every event heard once and in order, whatever breaks."""

import pytest
from fake_server import FakeServer
from hypothesis import given
from hypothesis import strategies as st
from misfortune import KilledError, Machine, misfortunes

from lamella.client.flow import Failure, Response
from lamella.client.job import WatchOptions, act, outcome, submit, watch
from lamella.client.patience import Patience, Waiting
from lamella.core.errors import ConflictError, GeometryError, MissingPathError, RunCancelledError
from lamella.wire.event import LogEvent, RunEvent, StateEvent
from lamella.wire.job import JobDoc, JobSpec
from lamella.wire.problem import Problem
from lamella.wire.request import InputDoc, SegmentRequest

PATIENCE = Patience(chance=lambda: 0.5, n_defects=100)
SPEC = JobSpec(request=SegmentRequest(input=InputDoc(path="volume:v1"), model="classical:otsu"))


def script(server, name, n):
    server.say(name, StateEvent(state="running", attempt=1))
    for i in range(n):
        server.say(name, LogEvent(message=str(i)))


@given(
    faults=misfortunes(20),
    n=st.integers(0, 30),
    piece=st.integers(1, 300),
    has_stream=st.booleans(),
    after=st.integers(0, 5),
)
def test_every_event_is_heard_once(faults, n, piece, has_stream, after):
    server = FakeServer()
    name = Machine(server, []).run(submit(SPEC, "key", PATIENCE)).id
    script(server, name, n)
    server.say(name, StateEvent(state="finished"))
    machine = Machine(server, list(faults), piece=piece)
    heard: list[int] = []
    while True:
        last = heard[-1] if heard else after
        try:
            job = machine.run(watch(name, WatchOptions(last, has_stream=has_stream), PATIENCE))
        except KilledError:
            heard += numbers(machine)
            continue
        heard += numbers(machine)
        break
    assert heard == list(range(after + 1, n + 4))
    assert job.state == "finished"


def numbers(machine):
    found = [event.number for event in machine.told if isinstance(event, RunEvent)]
    machine.told.clear()
    return found


@given(faults=misfortunes())
def test_a_job_is_submitted_once(faults):
    server = FakeServer()
    machine = Machine(server, [fault for fault in faults if fault[0] != "killed"])
    job = machine.run(submit(SPEC, "key", PATIENCE))
    assert list(server.jobs) == [job.id]
    assert machine.run(submit(SPEC, "key", PATIENCE)).id == job.id


@given(faults=misfortunes(6))
def test_a_cancel_whose_answer_is_lost_is_a_cancel(faults):
    server = FakeServer()
    job = Machine(server, []).run(submit(SPEC, "key", PATIENCE))
    faults = [fault for fault in faults if fault[0] not in ("killed", "conflict")]
    assert Machine(server, faults).run(act(job.id, "cancel", PATIENCE)).state == "cancelled"
    assert Machine(server, []).run(act(job.id, "retry", PATIENCE)).state == "queued"
    server.say(job.id, StateEvent(state="finished"))
    with pytest.raises(ConflictError, match="is finished"):
        Machine(server, []).run(act(job.id, "cancel", PATIENCE))


def test_a_proxy_that_holds_streams_back_is_gone_around():
    server = FakeServer()
    name = Machine(server, []).run(submit(SPEC, "key", PATIENCE)).id
    script(server, name, 3)
    server.say(name, StateEvent(state="finished"))
    opened = []

    class Held(Machine):
        def _send(self, request):
            if "event-stream" in request.headers.get("accept", ""):
                opened.append(request)
                return Response(200, {"content-type": "text/event-stream"}, b"", self.now_s)
            return super()._send(request)

    class Ended(Held):
        def _read(self, stream):
            self.now_s += 45
            return Failure("timeout", "nothing came", self.now_s), b""

    machine = Ended(server, [])
    assert machine.run(watch(name, WatchOptions(), PATIENCE)).state == "finished"
    assert len(opened) == 2
    assert numbers(machine) == [1, 2, 3, 4, 5, 6]


def test_waits_are_told_and_unknown_events_are_left_out():
    server = FakeServer()
    name = Machine(server, []).run(submit(SPEC, "key", PATIENCE)).id
    server.jobs[name].events.append({"type": "from the future", "number": 2})
    server.say(name, StateEvent(state="finished"))
    machine = Machine(server, [("503", 0.0), ("cut", 0.0)])
    machine.run(watch(name, WatchOptions(), PATIENCE))
    waits = [event for event in machine.told if isinstance(event, Waiting)]
    assert waits[0].seconds >= 2.0
    assert numbers(machine) == [1, 3]


def test_how_a_job_ended():
    known = {"id": "j1", "owner": "me", "spec": SPEC, "created": ""}
    assert outcome(JobDoc(**known, state="finished")).id == "j1"
    with pytest.raises(RunCancelledError, match="j1 was cancelled"):
        outcome(JobDoc(**known, state="cancelled"))
    problem = Problem(code="invalid_geometry", message="spacing is 0", hint="--spacing")
    with pytest.raises(GeometryError, match="spacing is 0") as caught:
        outcome(JobDoc(**known, state="failed", problem=problem))
    assert caught.value.details == {"job": "j1"}


def test_a_job_of_nobody():
    with pytest.raises(MissingPathError, match="no such job"):
        Machine(FakeServer(), []).run(watch("j9", WatchOptions(), PATIENCE))
