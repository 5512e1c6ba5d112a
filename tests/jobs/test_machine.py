"""The life of a job: every state and event, then any sequence of them."""

from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from lamella.core.errors import ConflictError, InputError
from lamella.jobs.machine import (
    ACTIVE_STATES,
    FINAL_STATES,
    Advance,
    Cancel,
    Claim,
    Fail,
    Finish,
    IllegalTransitionError,
    Interrupt,
    LeaseLostError,
    NewJob,
    Renew,
    Requeue,
    Retry,
    Stop,
    apply,
    new_record,
    normal_resources,
)
from lamella.wire.problem import Problem
from lamella.wire.state import JOB_STATES

PROBLEM = Problem(code="engine_failed", message="no")


def new_job():
    return new_record("j", NewJob(owner="ada", kind="segment", spec={}), now=0.0)


def job_in(state, attempt=2):
    held = {"lease_until": 9.0, "worker": "w"} if state in ACTIVE_STATES else {}
    return replace(new_job(), state=state, attempt=attempt, started=1.0, **held)


def events(attempt=2):
    return {
        "claim": Claim(worker="w", now=3.0, lease_until=9.0),
        "renew": Renew(attempt=attempt, lease_until=12.0),
        "advance": Advance(attempt=attempt, progress={"stage": "segment", "done": 1.0}),
        "cancel": Cancel(now=3.0),
        "stop": Stop(attempt=attempt, now=3.0),
        "finish": Finish(attempt=attempt, now=3.0, result={"n_objects": 1}),
        "fail": Fail(attempt=attempt, now=3.0, problem=PROBLEM),
        "interrupt": Interrupt(attempt=attempt, now=3.0, problem=PROBLEM),
        "requeue": Requeue(now=3.0),
        "retry": Retry(now=3.0),
    }


# Rows: states. Columns: what becomes of them; "-" cannot be, "lost" is an answer of nobody.
TABLE = """
              claim    renew       advance     cancel      stop       finish    fail       interrupt    requeue  retry
queued        running  lost        lost        cancelled   lost       lost      lost       lost         -        -
running       -        running     running     cancelling  -          finished  failed     interrupted  -        -
cancelling    -        cancelling  cancelling  cancelling  cancelled  finished  cancelled  cancelled    -        -
cancelled     -        lost        lost        cancelled   lost       lost      lost       lost         -        queued
failed        -        lost        lost        -           lost       lost      lost       lost         -        queued
finished      -        lost        lost        -           lost       lost      lost       lost         -        -
interrupted   -        lost        lost        cancelled   lost       lost      lost       lost         queued   queued
"""  # noqa: E501
_LINES = [line.split() for line in TABLE.strip().splitlines()]
CASES = [
    (row[0], event, outcome)
    for row in _LINES[1:]
    for event, outcome in zip(_LINES[0], row[1:], strict=True)
]


def test_the_table_is_complete():
    assert {state for state, _, _ in CASES} == set(JOB_STATES)
    assert {event for _, event, _ in CASES} == set(events())


@pytest.mark.parametrize(("state", "event", "outcome"), CASES)
def test_every_event_in_every_state(state, event, outcome):
    job = job_in(state)
    if outcome == "-":
        with pytest.raises(
            IllegalTransitionError, match=f"job j: it is {state}, expected"
        ) as error:
            apply(job, events()[event])
        assert isinstance(error.value, ConflictError)
        assert error.value.details == {"job": "j", "state": state, "attempt": 2}
    elif outcome == "lost":
        with pytest.raises(LeaseLostError, match=f"it is {state} in attempt 2"):
            apply(job, events()[event])
    else:
        after = apply(job, events()[event])
        assert after.state == outcome
        assert (after.lease_until is not None) == after.is_active


@pytest.mark.parametrize("attempt", [0, 1, 3])
@pytest.mark.parametrize("state", ACTIVE_STATES)
def test_an_answer_of_another_attempt_is_void(state, attempt):
    for name in ("renew", "advance", "stop", "finish", "fail", "interrupt"):
        with pytest.raises(LeaseLostError, match=f"attempt {attempt} does not hold job j"):
            apply(job_in(state), events(attempt)[name])


def test_a_claim_starts_the_next_attempt_afresh():
    job = replace(job_in("queued"), progress={"stage": "a"}, problem=PROBLEM)
    after = apply(job, Claim(worker="v", now=7.0, lease_until=9.5))
    assert (after.attempt, after.worker, after.started, after.lease_until) == (3, "v", 7.0, 9.5)
    assert after.progress is None
    assert after.problem is None


def test_time_that_ran_is_summed_over_attempts():
    job = apply(job_in("running"), events()["interrupt"])
    job = apply(apply(job, Requeue(now=10.0)), Claim(worker="w", now=20.0, lease_until=99.0))
    assert apply(job, Finish(attempt=3, now=25.0)).run_s == 2.0 + 5.0


def test_a_clock_that_went_back_makes_no_negative_time():
    assert apply(job_in("running"), Finish(attempt=2, now=-50.0)).run_s == 0.0


def die(job, *, at=None, counts=True, stage="segment"):
    job = apply(job, Claim(worker="w", now=1.0, lease_until=2.0))
    if at is not None:
        progress = {"stage": stage, "done": at}
        job = apply(job, Advance(attempt=job.attempt, progress=progress))
    problem = Problem(code="run_failed", message="killed")
    job = apply(job, Interrupt(attempt=job.attempt, now=2.0, problem=problem, counts=counts))
    return apply(job, Requeue(now=2.0, max_interruptions=3))


def test_a_job_that_always_dies_at_the_same_place_fails_in_the_end():
    job = new_job()
    states = []
    for _ in range(5):
        job = die(job, at=7.0)
        states.append(job.state)
        if job.state == "failed":
            break
    # The first death came after progress: it is the first of the row.
    assert states == ["queued", "queued", "queued", "failed"]
    assert job.problem.code == "run_failed"
    assert "4 times in a row" in job.problem.message
    assert "killed" in job.problem.message
    assert "memory" in job.problem.hint
    # Somebody made room: it may try as often again.
    assert die(apply(job, Retry(now=5.0)), at=7.0).state == "queued"


def test_a_job_that_gets_on_may_die_forever():
    job = new_job()
    for n in range(50):
        job = die(job, at=float(n))
        assert job.state == "queued"


def test_passing_old_marks_in_another_stage_is_no_progress():
    job = die(new_job(), at=3.0, stage="read")
    job = die(job, at=9.0, stage="segment")
    n = job.n_interruptions
    assert die(job, at=3.0, stage="read").n_interruptions == n + 1


def test_shutdowns_count_against_nothing():
    job = new_job()
    for _ in range(20):
        job = die(job, counts=False)
        assert job.state == "queued"


@pytest.mark.parametrize("amount", [-1, float("nan"), float("inf")])
def test_impossible_resources_are_refused(amount):
    with pytest.raises(InputError, match="finite amounts of resources"):
        normal_resources({"gpu": amount})


@given(
    st.dictionaries(
        st.sampled_from(["cpu", "gpu", "memory"]), st.floats(0, 64, allow_subnormal=False)
    )
)
def test_normal_resources_are_normal(resources):
    normal = normal_resources(resources)
    assert list(normal) == sorted(normal)
    # A zero that was asked for must be said again: absence of cpu means one.
    assert normal_resources({"cpu": 0, **normal}) == normal


class LifeOfAJob(RuleBasedStateMachine):
    """Any events, of any attempt, at any time."""

    def __init__(self):
        super().__init__()
        self.job = new_job()
        self.n_claims = 0
        self.n_finished = 0

    def give(self, event):
        before = self.job
        kept = replace(before)
        with suppress(IllegalTransitionError, LeaseLostError):
            self.job = apply(before, event)
        # What came in is never changed.
        assert before == kept
        assert before.attempt <= self.job.attempt
        return before

    @rule()
    def claim(self):
        before = self.give(Claim(worker="w", now=1.0, lease_until=2.0))
        self.n_claims += before.state == "queued"

    @rule(attempt=st.integers(0, 6), what=st.sampled_from(sorted(events())))
    def answer(self, attempt, what):
        if what == "claim":
            return
        event = events(attempt)[what]
        before = self.give(event)
        if what == "finish" and self.job is not before:
            self.n_finished += 1
            assert before.attempt == attempt

    @rule()
    def cancel(self):
        before = self.give(Cancel(now=2.0))
        if before.state in ("queued", "running"):
            assert self.job.state in ("cancelled", "cancelling")

    @rule()
    def go_on(self):
        self.give(Requeue(now=2.0))

    @rule()
    def retry(self):
        self.give(Retry(now=3.0))

    @invariant()
    def holds(self):
        job = self.job
        assert job.attempt == self.n_claims
        assert self.n_finished <= 1
        assert (job.state == "finished") == (self.n_finished == 1)
        assert (job.lease_until is not None) == (job.state in ACTIVE_STATES)
        assert (job.worker is not None) == (job.state in ACTIVE_STATES)
        assert (job.result is not None) == (job.state == "finished")
        assert job.state != "failed" or job.problem is not None
        assert job.is_final == (job.state in FINAL_STATES)


TestLifeOfAJob = LifeOfAJob.TestCase
