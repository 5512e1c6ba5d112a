"""The store against a model, with power cuts, dead workers and late answers at any instant.

What must hold whatever happens: no job is lost, none finishes twice, none runs twice at a time
with a valid lease, and a transaction that was cut has done nothing.
"""

import sqlalchemy as sa
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from lamella.core.errors import ConflictError
from lamella.jobs.database import open_database
from lamella.jobs.fairness import decayed
from lamella.jobs.machine import ACTIVE_STATES, LeaseLostError, NewJob
from lamella.jobs.store import JobStore
from lamella.jobs.tables import METADATA
from lamella.server.migrations import migrate
from lamella.wire.problem import Problem

LEASE_S = 30.0
MAX_INTERRUPTIONS = 2
PROBLEM = Problem(code="engine_failed", message="no")


class PowerCut(BaseException):
    """The process ends here."""


class Cutter:
    """Raises before the n-th statement of a transaction, or right after its commit."""

    def __init__(self, engine):
        self.left = None
        sa.event.listen(engine, "before_cursor_execute", self.count)
        sa.event.listen(engine, "commit", self.count)

    def count(self, *_):
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                self.left = None
                raise PowerCut


class Expected:
    """What the model knows about a job."""

    def __init__(self, owner, priority, number, machine):
        self.machine = machine
        self.owner, self.priority, self.number = owner, priority, number
        self.state, self.attempt, self.lease_until = "queued", 0, None
        self.started = None
        self.n_interruptions = self.n_finished = 0

    def end(self, state):
        if self.state in ACTIVE_STATES:
            self.machine.use(self.owner, self.machine.now - self.started)
        self.state, self.lease_until = state, None
        self.n_finished += state == "finished"

    def interrupted(self, counts):
        if self.state == "cancelling":
            self.end("cancelled")
            return
        self.n_interruptions += counts
        self.end("failed" if self.n_interruptions > MAX_INTERRUPTIONS else "queued")


class StoreMachine(RuleBasedStateMachine):
    def __init__(self, url):
        super().__init__()
        self.url = url
        self.now = 1_000.0
        self.jobs = {}
        self.keys = {}
        self.used = {"a": (0.0, self.now), "b": (0.0, self.now)}
        # What workers believe they hold: (job, attempt), true or not.
        self.beliefs = []
        self.start()
        with self.database.begin() as connection:
            for table in reversed(METADATA.sorted_tables):
                connection.execute(table.delete())

    def start(self):
        self.database = open_database(self.url)
        migrate(self.database)
        self.cutter = Cutter(self.database.engine)
        self.store = JobStore(self.database, lambda: self.now, max_interruptions=MAX_INTERRUPTIONS)

    def teardown(self):
        self.cutter.left = None
        self.everything_ends()
        self.database.close()

    def attempt(self, call, cut):
        """The answer, or None where a cut came before the commit."""
        self.cutter.left = cut
        try:
            return call()
        except PowerCut:
            self.cutter.left = None
            self.database.close()
            self.start()
            return None
        finally:
            self.cutter.left = None

    cuts = st.none() | st.integers(0, 6)

    # --- People -------------------------------------------------------------------------------

    @rule(
        owner=st.sampled_from("ab"),
        priority=st.integers(-1, 1),
        key=st.none() | st.sampled_from("xyz"),
        cut=cuts,
    )
    def add(self, owner, priority, key, cut):
        job = NewJob(owner=owner, kind="k", spec={}, priority=priority, idempotency_key=key)
        known = self.keys.get((owner, key)) if key else None
        try:
            answer = self.attempt(lambda: self.store.add(job), cut)
        except ConflictError:
            assert known is not None
            assert known[1] != priority
            return
        if answer is None:
            return
        record, is_new = answer
        assert is_new == (known is None)
        if not is_new:
            assert record.id == known[0]
            return
        self.jobs[record.id] = Expected(owner, priority, record.number, self)
        if key:
            self.keys[owner, key] = (record.id, priority)

    @rule(data=st.data(), cut=cuts)
    @precondition(lambda self: self.jobs)
    def cancel(self, data, cut):
        job_id, job = data.draw(st.sampled_from(list(self.jobs.items())))
        try:
            answer = self.attempt(lambda: self.store.cancel(job_id), cut)
        except ConflictError:
            assert job.state in ("finished", "failed")
            return
        if answer is None:
            return
        if job.state == "running":
            job.state = "cancelling"
        elif job.state == "queued":
            job.end("cancelled")
        assert answer.state == job.state

    @rule(data=st.data(), cut=cuts)
    @precondition(lambda self: self.jobs)
    def retry(self, data, cut):
        job_id, job = data.draw(st.sampled_from(list(self.jobs.items())))
        try:
            answer = self.attempt(lambda: self.store.retry(job_id), cut)
        except ConflictError:
            assert job.state not in ("failed", "cancelled")
            return
        if answer is not None:
            assert job.state in ("failed", "cancelled")
            job.state, job.n_interruptions = "queued", 0

    # --- Workers ------------------------------------------------------------------------------

    @rule(cut=cuts, worker_dies=st.booleans())
    def claim(self, cut, worker_dies):
        best = self.next_job()
        answer = self.attempt(lambda: self.store.claim("w", {"cpu": 2.0}, LEASE_S), cut)
        if answer is None:
            # Nothing waits, or the cut: the invariant looks whether anything changed.
            return
        job = self.jobs[answer.id]
        assert answer.id == best
        job.state, job.attempt, job.lease_until = "running", job.attempt + 1, self.now + LEASE_S
        job.started = self.now
        assert answer.attempt == job.attempt
        if not worker_dies:
            self.beliefs.append((answer.id, answer.attempt))

    def use(self, owner, seconds):
        if seconds > 0:
            self.used[owner] = (self.usage(owner) + seconds, self.now)

    def usage(self, owner):
        amount, time = self.used[owner]
        return decayed(amount, self.now - time)

    def next_job(self):
        """Fewest running, least used, oldest job; of that owner the highest priority, then age."""
        queued = {key: job for key, job in self.jobs.items() if job.state == "queued"}
        if not queued:
            return None
        held = dict.fromkeys("ab", 0)
        for job in self.jobs.values():
            held[job.owner] += job.state in ACTIVE_STATES
        oldest = {
            owner: min((job.number for job in queued.values() if job.owner == owner), default=None)
            for owner in "ab"
        }
        owner = min(
            (owner for owner in "ab" if oldest[owner] is not None),
            key=lambda owner: (held[owner], self.usage(owner), oldest[owner]),
        )
        own = [(key, job) for key, job in queued.items() if job.owner == owner]
        return min(own, key=lambda item: (-item[1].priority, item[1].number))[0]

    @rule(
        data=st.data(),
        cut=cuts,
        what=st.sampled_from(["finish", "fail", "stop", "renew", "interrupt", "release"]),
    )
    @precondition(lambda self: self.beliefs)
    def answer(self, data, cut, what):
        # Beliefs are kept: late and repeated answers come as well.
        job_id, attempt = data.draw(st.sampled_from(self.beliefs))
        job = self.jobs[job_id]
        is_held = job.state in ACTIVE_STATES and job.attempt == attempt
        call = {
            "finish": lambda: self.store.finish(job_id, attempt, {"by": attempt}),
            "fail": lambda: self.store.fail(job_id, attempt, PROBLEM),
            "stop": lambda: self.store.stopped(job_id, attempt),
            "renew": lambda: self.store.renew(job_id, attempt, LEASE_S),
            "interrupt": lambda: self.store.interrupt(job_id, attempt),
            "release": lambda: self.store.release(job_id, attempt),
        }[what]
        try:
            answer = self.attempt(call, cut)
        except LeaseLostError:
            assert not is_held
            return
        except ConflictError:
            assert what == "stop"
            assert job.state == "running"
            return
        if answer is None:
            return
        assert is_held
        if what == "renew":
            job.lease_until = self.now + LEASE_S
            assert answer == job.state
        elif what in ("interrupt", "release"):
            job.interrupted(counts=what == "interrupt")
        elif what == "finish":
            job.end("finished")
        else:
            job.end("cancelled" if job.state == "cancelling" else "failed")

    @rule(seconds=st.sampled_from([1.0, 29.0, 31.0]))
    def time_passes(self, seconds):
        self.now += seconds

    @rule(cut=cuts)
    def recover(self, cut):
        overdue = {
            key
            for key, job in self.jobs.items()
            if job.lease_until is not None and job.lease_until < self.now
        }
        answer = self.attempt(self.store.recover, cut)
        if answer is None:
            # Some may have been recovered before the cut; the others still wait for it.
            for key in overdue:
                if self.store.get(key).lease_until is None:
                    self.jobs[key].interrupted(counts=True)
            return
        assert {record.id for record in answer} == overdue
        for key in overdue:
            self.jobs[key].interrupted(counts=True)

    @rule()
    def restart(self):
        self.database.close()
        self.start()

    # --- Laws ---------------------------------------------------------------------------------

    @invariant()
    def the_tables_are_what_the_model_says(self):
        found = {job.id: job for job in self.store.list(limit=10_000).jobs}
        assert set(found) == set(self.jobs)
        for key, job in self.jobs.items():
            record = found[key]
            seen = (record.state, record.attempt, record.lease_until, record.n_interruptions)
            assert seen == (job.state, job.attempt, job.lease_until, job.n_interruptions)
            assert job.n_finished <= 1

    @invariant()
    def positions_are_those_of_the_queued(self):
        # Not from the cache: how long that is used depends on how long things took.
        positions = self.store._views._make().positions
        queued = {key for key, job in self.jobs.items() if job.state == "queued"}
        assert set(positions) == queued
        assert sorted(positions.values()) == list(range(1, len(queued) + 1))
        if queued:
            assert positions[self.next_job()] == 1

    def everything_ends(self):
        """Whatever happened: from here every job comes to an end, each once."""
        self.now += 10 * LEASE_S
        self.recover(cut=None)
        for _ in range(len(self.jobs) + 1):
            record = self.store.claim("last", {"cpu": 1.0}, LEASE_S)
            if record is None:
                break
            job = self.jobs[record.id]
            job.attempt, job.state, job.started = job.attempt + 1, "running", self.now
            self.store.finish(record.id, record.attempt)
            job.end("finished")
        self.the_tables_are_what_the_model_says()
        assert all(job.state in ("finished", "failed", "cancelled") for job in self.jobs.values())


def test_store_is_its_model(database_url):
    run_state_machine_as_test(
        lambda: StoreMachine(database_url), settings=settings(stateful_step_count=40)
    )
