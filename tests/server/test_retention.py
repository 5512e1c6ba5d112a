"""What is removed: enough, the oldest first, and nothing that may not go."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.jobs.machine import NewJob
from lamella.server.jobs.folder import job_folder
from lamella.server.retention import Held, Retention, Rules, plan_removals

HELD = st.lists(
    st.builds(
        Held,
        kind=st.sampled_from(["job", "volume", "pyramid", "copy"]),
        id=st.uuids().map(str),
        n_bytes=st.integers(0, 1000),
        used=st.floats(0, 1000),
    ),
    max_size=12,
)


@given(HELD, st.integers(1, 5000), st.integers(0, 2000))
def test_enough_goes_the_oldest_first(held, limit, in_use):
    rules = Rules(max_total_bytes=limit)
    # A copy is no part of what is held in all, and stays.
    counted = [item for item in held if item.kind != "copy"]
    total = sum(item.n_bytes for item in counted) + in_use
    plan = plan_removals(held, rules, now=1000.0, total_bytes=total, free_bytes=10**9)
    left = total - sum(item.n_bytes for item in plan)
    if total <= limit:
        assert not plan
    else:
        assert left <= limit or len(plan) == len(counted)
    kept = [item for item in counted if item not in plan]
    for item in plan:
        # Whatever stays was used later, or cannot be made again while this can.
        assert all(
            (k.kind != "pyramid", k.used) >= (item.kind != "pyramid", item.used) for k in kept
        )


@given(HELD, st.floats(1, 1000))
def test_age_alone(held, retention_s):
    rules = Rules(retention_s=retention_s)
    plan = plan_removals(held, rules, now=1000.0, total_bytes=0, free_bytes=10**9)
    old = [i for i in held if i.kind in ("job", "volume") and i.used < 1000.0 - retention_s]
    assert sorted(i.id for i in plan) == sorted(i.id for i in old)


@given(HELD, st.integers(0, 3000))
def test_a_full_disk_costs_only_what_can_be_had_again(held, free):
    rules = Rules(min_free_bytes=3000)
    plan = plan_removals(held, rules, now=1000.0, total_bytes=10**9, free_bytes=free)
    again = [item for item in held if item.kind in ("pyramid", "copy")]
    assert all(item in again for item in plan)
    freed = free + sum(item.n_bytes for item in plan)
    assert freed >= 3000 or len(plan) == len(again)


def test_a_volume_takes_its_copy_along():
    held = [Held(kind, "a", 100, used=1.0) for kind in ("volume", "copy")]
    rules = Rules(retention_s=10.0, min_free_bytes=10**6)
    plan = plan_removals(held, rules, now=1000.0, total_bytes=100, free_bytes=0)
    assert [item.kind for item in plan] == ["volume"]


@pytest.fixture
def settings(settings, stores):
    return settings.model_copy(update=stores.settings())


def add_job(services, *, state="queued", n_bytes=0):
    record, _ = services.jobs.add(NewJob(owner="ada", kind="segment", spec={}))
    if state == "finished":
        claimed = services.jobs.claim("w", {"cpu": 100.0}, 60.0)
        assert claimed.id == record.id
        services.jobs.finish(claimed.id, claimed.attempt, {})
    folder = job_folder(services.settings.data_dir, record.id)
    folder.mkdir(parents=True)
    (folder / "labels").write_bytes(bytes(n_bytes))
    return record.id


def ids_of(services):
    return {record.id for record in services.jobs.list().jobs}


@pytest.fixture
def keep(services):
    """A retention with other rules, some days later."""

    def make(days=0.0, **rules):
        retention = Retention(services, clock=lambda: time.time() + days * 86_400)
        retention._rules = Rules(**rules)
        return retention

    return make


def test_old_jobs_go_with_their_files_and_waiting_ones_stay(services, keep):
    done = add_job(services, state="finished", n_bytes=10)
    waits = add_job(services)
    assert keep(days=1, retention_s=2 * 86_400.0).sweep() == []
    removed = keep(days=3, retention_s=2 * 86_400.0).sweep()
    assert [item.id for item in removed] == [done]
    assert ids_of(services) == {waits}
    assert not job_folder(services.settings.data_dir, done).exists()
    assert job_folder(services.settings.data_dir, waits).exists()
    assert services.audit.list()[0]["action"] == "job.expire"


def test_the_oldest_jobs_go_when_there_is_too_much(services, keep):
    jobs = [add_job(services, state="finished", n_bytes=1000) for _ in range(4)]
    keep(max_total_bytes=10_000).sweep()
    assert ids_of(services) == set(jobs)
    keep(max_total_bytes=2500).sweep()
    assert ids_of(services) == set(jobs[2:])


def test_what_runs_is_never_removed(services, keep):
    add_job(services, n_bytes=1000)
    claimed = services.jobs.claim("w", {"cpu": 100.0}, 60.0)
    assert keep(days=100, retention_s=1.0, max_total_bytes=1).sweep() == []
    assert ids_of(services) == {claimed.id}


def test_what_a_removal_left_halfway_goes(services, keep):
    left = services.settings.data_dir / "jobs" / ".removed-abc"
    left.mkdir(parents=True)
    (left / "file").write_text("x")
    strange = services.settings.data_dir / "jobs" / "feedc0de"
    strange.mkdir()
    keep().sweep()
    assert not left.exists()
    # Of another database, perhaps: nothing of people's work is removed on a guess.
    assert strange.exists()
