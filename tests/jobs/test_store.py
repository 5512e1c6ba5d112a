"""The queue, on SQLite and on PostgreSQL."""

import pytest

from lamella.core.errors import (
    ConflictError,
    InputError,
    QuotaError,
    UnknownIdError,
)
from lamella.jobs.machine import LeaseLostError, NewJob
from lamella.jobs.store import JobStore
from lamella.jobs.users import Limits
from lamella.wire.problem import Problem

ROOM = {"cpu": 8.0, "gpu": 1.0}
PROBLEM = Problem(code="engine_failed", message="no", hint="so", details={"a": [1, None]})


def new(owner="ada", **values):
    return NewJob(**{"owner": owner, "kind": "segment", "spec": {"input": "a.mrc"}, **values})


def add(store, owner="ada", **values):
    return store.add(new(owner, **values))[0]


def claim(store, resources=None, worker="w", lease_s=30.0):
    return store.claim(worker, resources or ROOM, lease_s)


# --- Submitting ---------------------------------------------------------------------------------


def test_a_job_comes_back_as_it_was_given(store, clock):
    spec = {"text": "µm ✓", "deep": {"list": [1, 2.5, None, True]}}
    job, is_new = store.add(
        new(
            spec=spec,
            name="first",
            priority=-3,
            resources={"gpu": 1},
            volume="v1",
            idempotency_key="k",
            cost=1e9,
            estimate_key="segment:m",
        )
    )
    assert is_new
    assert store.get(job.id) == job
    assert (job.spec, job.name, job.priority, job.volume) == (spec, "first", -3, "v1")
    assert job.resources == {"cpu": 1.0, "gpu": 1.0}
    assert (job.state, job.attempt, job.created, job.queued) == ("queued", 0, clock.now, clock.now)
    assert (job.cost, job.estimate_key, job.idempotency_key) == (1e9, "segment:m", "k")


def test_the_same_key_is_the_same_job(store):
    first, _ = store.add(new(idempotency_key="k"))
    again, is_new = store.add(new(idempotency_key="k"))
    assert not is_new
    assert again == first
    assert store.counts() == {"queued": 1}


def test_the_same_key_of_another_user_is_another_job(store):
    store.add(new(idempotency_key="k"))
    assert store.add(new("bob", idempotency_key="k"))[1]


def test_the_same_key_for_something_else_is_refused(store):
    store.add(new(idempotency_key="k"))
    with pytest.raises(ConflictError, match="'k' was used for another request") as refused:
        store.add(new(idempotency_key="k", spec={"input": "b.mrc"}))
    assert "new key" in refused.value.hint


def test_a_key_is_seen_even_when_the_queue_is_full(database, clock):
    store = JobStore(database, clock, limits=Limits(max_queued=1))
    first, _ = store.add(new(idempotency_key="k"))
    assert store.add(new(idempotency_key="k")) == (first, False)


def test_more_than_allowed_is_refused(database, clock):
    store = JobStore(database, clock, limits=Limits(max_queued=2))
    add(store), add(store)
    with pytest.raises(QuotaError, match="ada has 2 jobs in the queue and asks for 1 more; 2 are"):
        add(store)
    add(store, "bob")
    claim(store)
    add(store)


def test_a_user_may_have_another_limit(store):
    store.set_user("ada", max_queued=1)
    add(store)
    with pytest.raises(QuotaError):
        add(store)
    store.set_user("ada", weight=2.0)
    with pytest.raises(QuotaError):
        add(store)


def test_an_impossible_weight_is_refused(store):
    with pytest.raises(InputError, match="weight above 0"):
        store.set_user("ada", weight=0.0)


@pytest.mark.parametrize(
    "values",
    [
        {"owner": "a" * 65},
        {"owner": ""},
        {"kind": "k" * 33},
        {"name": "n" * 201},
        {"name": "a\0b"},
        {"idempotency_key": "k" * 256},
        {"resources": {"gpu": -1}},
        {"resources": {f"resource-{n}": 1 for n in range(40)}},
    ],
)
def test_what_a_database_would_refuse_is_refused_before(store, values):
    with pytest.raises(InputError):
        store.add(NewJob(**{"owner": "ada", "kind": "segment", "spec": {}, **values}))
    assert store.counts() == {}


def test_nul_within_a_document_is_kept(store):
    assert store.get(add(store, spec={"a": "x\0y"}).id).spec == {"a": "x\0y"}


# --- Looking ------------------------------------------------------------------------------------


def test_lists_are_newest_first_and_go_on_where_they_stopped(store):
    ids = [add(store, "ada" if n % 2 else "bob").id for n in range(7)]
    seen, cursor = [], None
    while True:
        page = store.list(limit=3, cursor=cursor)
        seen += [job.id for job in page.jobs]
        cursor = page.next_cursor
        if cursor is None:
            break
        # What is added meanwhile is newer than any page that follows.
        add(store)
    assert seen == ids[::-1]


def test_lists_by_owner_state_and_batch(store):
    batch, _ = store.add_batch("ada", [new(), new()])
    other = add(store, "bob")
    store.cancel(other.id)
    assert {job.id for job in store.list(batch=batch.id).jobs} == set(batch.jobs)
    assert [job.id for job in store.list("bob").jobs] == [other.id]
    assert [job.id for job in store.list(states=["cancelled", "failed"]).jobs] == [other.id]
    assert store.list(states=[]).jobs == ()
    assert store.counts("ada") == {"queued": 2}


@pytest.mark.parametrize("cursor", ["", "x", "-1", "1;drop", "9" * 30])
def test_a_cursor_that_no_list_gave_is_refused(store, cursor):
    with pytest.raises(InputError, match="expected a cursor"):
        store.list(cursor=cursor)


def test_an_unknown_job_or_batch_is_one_clear_error(store):
    for call in (
        store.get,
        store.cancel,
        store.retry,
        store.delete,
        lambda job: store.finish(job, 1),
        lambda job: store.renew(job, 1, 5.0),
    ):
        with pytest.raises(UnknownIdError, match="no job 'nope'"):
            call("nope")
    with pytest.raises(UnknownIdError, match="no batch 'nope'"):
        store.get_batch("nope")


def test_whether_a_volume_is_in_use(store):
    job = add(store, volume="v")
    assert store.uses_volume("v")
    assert not store.uses_volume("other")
    store.cancel(job.id)
    assert not store.uses_volume("v")


# --- Batches ------------------------------------------------------------------------------------


def test_a_batch_is_all_of_its_jobs(store):
    batch, is_new = store.add_batch("ada", [new(name=str(n)) for n in range(5)], name="scan")
    assert is_new
    assert [store.get(job).name for job in batch.jobs] == ["0", "1", "2", "3", "4"]
    assert store.get_batch(batch.id) == batch
    claimed = claim(store)
    assert claimed.id == batch.jobs[0]
    assert store.get_batch(batch.id).states == {"queued": 4, "running": 1}


def test_a_batch_is_taken_whole_or_not_at_all(database, clock):
    store = JobStore(database, clock, limits=Limits(max_queued=3))
    add(store)
    with pytest.raises(QuotaError, match="asks for 3 more"):
        store.add_batch("ada", [new(), new(), new()])
    with pytest.raises(InputError):
        store.add_batch("ada", [new(), new(name="n" * 999)])
    assert store.counts() == {"queued": 1}
    store.add_batch("ada", [new(), new()])


def test_the_same_key_is_the_same_batch(store):
    first, _ = store.add_batch("ada", [new(), new()], idempotency_key="k")
    again, is_new = store.add_batch("ada", [new(), new()], idempotency_key="k")
    assert (again, is_new) == (first, False)
    with pytest.raises(ConflictError):
        store.add_batch("ada", [new()], idempotency_key="k")


@pytest.mark.parametrize(
    "jobs", [[], [new("bob")], [new(idempotency_key="k")]], ids=["empty", "other", "key"]
)
def test_a_batch_that_cannot_be_is_refused(store, jobs):
    with pytest.raises(InputError):
        store.add_batch("ada", jobs)


def test_cancelling_a_batch_leaves_what_has_ended(store):
    batch, _ = store.add_batch("ada", [new(), new(), new()])
    done, runs = claim(store), claim(store)
    store.finish(done.id, 1)
    assert {job.id for job in store.cancel_batch(batch.id)} == set(batch.jobs[1:])
    states = {"finished": 1, "cancelling": 1, "cancelled": 1}
    assert store.get_batch(batch.id).states == states
    assert runs.id == batch.jobs[1]


def test_a_batch_goes_with_its_last_job(store):
    batch, _ = store.add_batch("ada", [new(), new()])
    store.cancel_batch(batch.id)
    store.delete(batch.jobs[0])
    assert store.get_batch(batch.id).jobs == batch.jobs[1:]
    store.delete(batch.jobs[1])
    with pytest.raises(UnknownIdError):
        store.get_batch(batch.id)


# --- Running ------------------------------------------------------------------------------------


def test_from_the_queue_to_the_end(store, clock):
    job = add(store)
    claimed = claim(store)
    assert (claimed.id, claimed.state, claimed.attempt, claimed.worker) == (
        job.id,
        "running",
        1,
        "w",
    )
    clock.now += 5
    progress = {"stage": "segment", "done": 3.0, "total": 9.0, "unit": "tiles", "eta_s": None}
    assert store.renew(job.id, 1, 30.0, progress) == "running"
    assert store.get(job.id).progress == progress
    assert store.get(job.id).lease_until == clock.now + 30
    clock.now += 5
    done = store.finish(job.id, 1, {"n_objects": 3})
    assert done == store.get(job.id)
    assert (done.state, done.result, done.run_s) == ("finished", {"n_objects": 3}, 10.0)
    assert claim(store) is None


def test_a_failure_keeps_its_problem(store):
    job = add(store)
    claim(store)
    assert store.fail(job.id, 1, PROBLEM).state == "failed"
    assert store.get(job.id).problem == PROBLEM
    assert store.retry(job.id).problem is None


def test_cancelling_a_running_job_asks_it_to_stop(store):
    job = add(store)
    claim(store)
    assert store.cancel(job.id).state == "cancelling"
    assert store.renew(job.id, 1, 30.0) == "cancelling"
    assert store.stopped(job.id, 1).state == "cancelled"
    assert store.cancel(job.id).state == "cancelled"


def test_cancelling_what_has_ended_is_refused(store):
    job = add(store)
    claim(store)
    store.finish(job.id, 1)
    with pytest.raises(ConflictError, match=r"cannot cancel job .* it is finished"):
        store.cancel(job.id)


def test_nobody_stops_unasked(store):
    job = add(store)
    claim(store)
    with pytest.raises(ConflictError, match="cannot stop"):
        store.stopped(job.id, 1)
    assert store.get(job.id).state == "running"


def test_only_what_has_ended_can_be_removed(store):
    job = add(store)
    with pytest.raises(ConflictError, match="is queued"):
        store.delete(job.id)
    claim(store)
    with pytest.raises(ConflictError, match="is running"):
        store.delete(job.id)
    store.finish(job.id, 1)
    assert store.delete(job.id).state == "finished"
    with pytest.raises(UnknownIdError):
        store.get(job.id)


def test_a_retry_counts_against_the_limit(database, clock):
    store = JobStore(database, clock, limits=Limits(max_queued=1))
    job = add(store)
    store.cancel(job.id)
    add(store)
    with pytest.raises(QuotaError):
        store.retry(job.id)
    assert store.get(job.id).state == "cancelled"


# --- Leases and fencing -------------------------------------------------------------------------


def test_a_lease_that_runs_out_gives_the_job_to_another(store, clock):
    job = add(store)
    claim(store, worker="first", lease_s=30)
    clock.now += 29
    assert not store.recover()
    assert not store.expired()
    clock.now += 2
    assert [each.id for each in store.expired()] == [job.id]
    (back,) = store.recover()
    assert (back.state, back.n_interruptions) == ("queued", 1)
    assert claim(store, worker="second").attempt == 2
    # The first one was only slow: all it says is void.
    for call in (
        lambda: store.finish(job.id, 1, {"late": True}),
        lambda: store.fail(job.id, 1, PROBLEM),
        lambda: store.renew(job.id, 1, 30.0),
        lambda: store.interrupt(job.id, 1),
        lambda: store.release(job.id, 1),
        lambda: store.stopped(job.id, 1),
    ):
        with pytest.raises(LeaseLostError):
            call()
    assert store.finish(job.id, 2, {"late": False}).result == {"late": False}
    with pytest.raises(LeaseLostError):
        store.finish(job.id, 2)


def test_an_answer_within_the_lease_of_a_dead_server_counts(store, clock):
    """The server was down for long, the worker was not: nobody has taken its job away yet."""
    job = add(store)
    claim(store, lease_s=30)
    clock.now += 3600
    assert store.finish(job.id, 1).state == "finished"
    assert not store.recover()


def test_a_job_that_kills_its_worker_fails_in_the_end(store, clock):
    job = add(store)
    states = []
    while (claimed := claim(store)) is not None:
        states.append(store.interrupt(job.id, claimed.attempt).state)
        assert len(states) < 10
    assert states == ["queued"] * 3 + ["failed"]
    assert "4 times in a row" in store.get(job.id).problem.message


def test_a_shutdown_puts_jobs_back_without_counting(store):
    job = add(store)
    for n in range(1, 12):
        assert claim(store).attempt == n
        assert store.release(job.id, n).state == "queued"
    assert store.get(job.id).n_interruptions == 0


def test_an_interrupted_cancellation_is_a_cancellation(store, clock):
    job = add(store)
    claim(store)
    store.cancel(job.id)
    clock.now += 60
    assert [each.state for each in store.recover()] == ["cancelled"]
    assert store.get(job.id).state == "cancelled"


# --- Who is next --------------------------------------------------------------------------------


def order_of(store, resources=None):
    jobs = []
    while (job := claim(store, resources)) is not None:
        jobs.append(job)
    return jobs


def test_jobs_of_two_users_take_turns(store):
    for _ in range(4):
        add(store, "ada", priority=50)
    for _ in range(2):
        add(store, "bob")
    assert [job.owner for job in order_of(store)] == ["ada", "bob", "ada", "bob", "ada", "ada"]


def test_a_heavier_user_gets_more(store):
    store.set_user("ada", weight=2.0)
    for _ in range(6):
        add(store, "ada")
        add(store, "bob")
    owners = [job.owner for job in order_of(store, {"cpu": 1.0})[:6]]
    assert sorted(owners) == ["ada"] * 4 + ["bob"] * 2


def test_priority_then_age(store):
    low, high, early = add(store, priority=-1), add(store, priority=5), add(store)
    late = add(store)
    expected = [high.id, early.id, late.id, low.id]
    assert [job.id for job in order_of(store)] == expected


def test_who_used_much_lately_waits(store, clock):
    add(store, "ada")
    job = claim(store)
    clock.now += 1000
    store.finish(job.id, 1)
    add(store, "ada"), add(store, "bob")
    assert claim(store).owner == "bob"


def test_old_usage_is_forgotten(store, clock):
    for owner, seconds in (("ada", 4000), ("bob", 100)):
        add(store, owner)
        job = claim(store)
        clock.now += seconds
        store.finish(job.id, 1)
        clock.now += 20 * 86400 if owner == "ada" else 0
    add(store, "bob"), add(store, "ada")
    assert claim(store).owner == "ada"


def test_only_what_fits_is_claimed(store):
    add(store, "ada", resources={"gpu": 1})
    small = add(store, "ada", priority=-9)
    assert claim(store, {"cpu": 1.0}).id == small.id
    assert claim(store, {"cpu": 1.0}) is None
    assert claim(store, {"cpu": 1.0, "gpu": 1.0}).resources == {"cpu": 1.0, "gpu": 1.0}


def test_users_run_no_more_than_allowed(database, clock):
    store = JobStore(database, clock, limits=Limits(max_running=2))
    for _ in range(4):
        add(store)
    store.set_user("bob", max_running=1)
    add(store, "bob"), add(store, "bob")
    assert sorted(job.owner for job in order_of(store)) == ["ada", "ada", "bob"]


def test_resources_are_kept_for_a_job_that_waited_long(store, clock):
    for _ in range(2):
        add(store, "bob")
    first, second = order_of(store, {"cpu": 1.0})
    large = add(store, "ada", resources={"cpu": 2})
    clock.now += 700
    add(store, "bob")
    store.finish(first.id, 1)
    # One of two is free, and kept.
    assert claim(store, {"cpu": 1.0}) is None
    store.finish(second.id, 1)
    assert claim(store, {"cpu": 2.0}).id == large.id


# --- Positions and estimates --------------------------------------------------------------------


@pytest.fixture
def new_views(monkeypatch):
    """However long it takes to look, on a machine however busy: the next one looks anew."""
    monkeypatch.setattr("lamella.jobs.view._QUICK_S", 60.0)


def test_positions_are_the_order_of_starting(store):
    ids = [add(store, owner, priority=n % 3).id for n, owner in enumerate("aababcab" * 3)]
    by_position = sorted(ids, key=store.position)
    assert [store.position(job) for job in by_position] == list(range(1, len(ids) + 1))
    assert [job.id for job in order_of(store, {"cpu": 99.0})] == by_position


@pytest.mark.usefixtures("new_views")
def test_only_those_who_wait_have_a_position(store):
    first, second = add(store), add(store)
    assert (store.position(first.id), store.position(second.id)) == (1, 2)
    claim(store)
    assert (store.position(first.id), store.position(second.id)) == (None, 1)
    store.cancel(second.id)
    assert store.position(second.id) is None
    assert store.position("nope") is None


@pytest.mark.usefixtures("new_views")
def test_what_needs_no_look_at_the_queue_is_answered_at_once(store):
    """Only from a file of this machine; elsewhere whoever asks would wait for a network."""
    job = add(store)
    assert not store.answers_at_once(job.id), "nobody has looked yet"
    store.position(job.id)
    is_file = store.database.dialect == "sqlite"
    assert store.answers_at_once(job.id) == is_file
    later = add(store)
    assert not store.answers_at_once(later.id), "the queue has changed"
    store.position(later.id)
    assert store.answers_at_once(job.id) == store.answers_at_once(later.id) == is_file


@pytest.mark.usefixtures("new_views")
def test_estimates_follow_what_jobs_took(store, clock):
    def run(seconds, **values):
        job = add(store, **values)
        claim(store, {"cpu": 1.0})
        clock.now += seconds
        store.finish(job.id, 1)

    waits = add(store)
    assert store.eta_s(waits.id) is not None or store.position(waits.id) == 1
    store.cancel(waits.id)
    for seconds in (90, 100, 5000):
        run(seconds)
    running = add(store)
    claim(store, {"cpu": 1.0})
    clock.now += 40
    first, second = add(store), add(store)
    assert store.eta_s(running.id) == 60.0
    assert store.eta_s(first.id) == 60.0
    assert store.eta_s(second.id) == 160.0


def test_estimates_grow_with_the_volume(store, clock):
    job = add(store, cost=1e6, estimate_key="m")
    claim(store, {"cpu": 1.0})
    clock.now += 10
    store.finish(job.id, 1)
    running = add(store, cost=4e6, estimate_key="m")
    claim(store, {"cpu": 1.0})
    assert store.eta_s(running.id) == 40.0


def test_without_any_finished_job_nothing_is_told(store):
    add(store)
    running = claim(store, {"cpu": 1.0})
    waits = add(store)
    assert store.eta_s(running.id) is None
    assert store.eta_s(waits.id) is None


def test_a_view_is_made_once_for_many(store, monkeypatch):
    for _ in range(20):
        add(store)
    made = []
    make = store._views._make
    monkeypatch.setattr(store._views, "_make", lambda: made.append(1) or make())
    ids = [job.id for job in store.list().jobs]
    for _ in range(30):
        for job in ids:
            store.position(job)
    assert len(made) <= 5
