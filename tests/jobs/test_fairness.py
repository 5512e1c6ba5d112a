"""Who is next."""

from collections import Counter
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from lamella.jobs.fairness import Share, Waiting, choose, decayed, fits, in_order

CPU = {"cpu": 1.0}


@dataclass(frozen=True)
class Job:
    owner: str
    number: int
    priority: int = 0
    resources: dict = field(default_factory=lambda: dict(CPU))


def waiting(owner, number=1, queued=0.0, **resources):
    return Waiting(
        owner=owner, resources=resources or CPU, first_number=number, first_queued=queued
    )


def chosen(groups, shares, free, total=None, now=0.0):
    return [group.owner for group in choose(groups, shares, free, total or free, now=now)]


def test_who_holds_least_is_next():
    shares = {"ada": Share(held=2.0), "bob": Share(held=1.0)}
    assert chosen([waiting("ada", 1), waiting("bob", 9)], shares, CPU) == ["bob"]


def test_a_weight_of_two_may_hold_twice_as_much():
    shares = {"ada": Share(held=3.0, weight=2.0), "bob": Share(held=2.0)}
    assert chosen([waiting("ada", 9), waiting("bob", 1)], shares, CPU) == ["ada"]


def test_of_those_who_hold_the_same_the_one_who_used_least():
    shares = {"ada": Share(usage=100.0), "bob": Share(usage=5.0)}
    assert chosen([waiting("ada", 1), waiting("bob", 9)], shares, CPU) == ["bob"]


def test_of_equals_the_one_who_waits_longest():
    shares = {"ada": Share(), "bob": Share()}
    assert chosen([waiting("ada", 9), waiting("bob", 1)], shares, CPU) == ["bob"]


def test_who_is_at_the_limit_waits():
    shares = {"ada": Share(n_running=2, max_running=2), "bob": Share(held=50.0, n_running=50)}
    assert chosen([waiting("ada", 1), waiting("bob", 9)], shares, CPU) == ["bob"]


def test_nothing_starts_where_nothing_fits():
    assert chosen([waiting("ada", gpu=1.0)], {"ada": Share()}, CPU) == []


def test_a_large_job_lets_small_ones_pass_until_its_patience_ends():
    groups = [waiting("ada", 1, 0.0, cpu=4.0), waiting("bob", 2, 0.0, cpu=1.0)]
    shares = {"ada": Share(), "bob": Share(held=1.0)}
    free, total = {"cpu": 3.0}, {"cpu": 4.0}
    assert chosen(groups, shares, free, total, now=599.0) == ["bob"]
    assert chosen(groups, shares, free, total, now=601.0) == []
    assert chosen(groups, shares, total, total, now=601.0) == ["ada"]


def test_what_is_kept_for_a_large_job_leaves_the_rest():
    groups = [waiting("ada", 1, 0.0, cpu=1.0, gpu=2.0), waiting("bob", 2, 0.0, cpu=1.0)]
    shares = {"ada": Share(), "bob": Share(held=1.0)}
    total = {"cpu": 4.0, "gpu": 2.0}
    # One of two GPUs is in use; a CPU beyond the one that is kept is free for others.
    assert chosen(groups, shares, {"cpu": 3.0, "gpu": 1.0}, total, now=1e4) == ["bob"]
    assert chosen(groups, shares, {"cpu": 1.0, "gpu": 1.0}, total, now=1e4) == []


def test_a_job_that_can_never_run_here_holds_up_nobody():
    groups = [waiting("ada", 1, 0.0, cpu=64.0), waiting("bob", 2, 0.0)]
    shares = {"ada": Share(), "bob": Share(held=1.0)}
    assert chosen(groups, shares, {"cpu": 2.0}, {"cpu": 2.0}, now=1e6) == ["bob"]


def test_nobody_overtakes_others_by_priority():
    jobs = [Job("ada", n, priority=100) for n in range(4)] + [Job("bob", n + 10) for n in range(4)]
    assert [job.owner for job in in_order(jobs, {})] == ["ada", "bob"] * 4


def test_priority_orders_the_jobs_of_one():
    jobs = [Job("ada", 1), Job("ada", 2, priority=5), Job("ada", 3, priority=5)]
    assert [job.number for job in in_order(jobs, {})] == [2, 3, 1]


def test_usage_halves_in_a_day():
    assert decayed(8.0, 3 * 86400.0) == 1.0
    assert decayed(8.0, -5.0) == 8.0


def test_sums_of_fractions_fit():
    assert fits({"gpu": 0.1 + 0.2}, {"gpu": 0.3})


owners = st.sampled_from("abcd")
shares_of = st.fixed_dictionaries(
    {
        owner: st.builds(
            Share,
            held=st.integers(0, 3).map(float),
            usage=st.sampled_from([0.0, 1.0, 50.0]),
            weight=st.sampled_from([0.5, 1.0, 2.0]),
        )
        for owner in "abcd"
    }
)
jobs_of = st.lists(st.tuples(owners, st.integers(-2, 2), st.sampled_from([1.0, 2.0])), max_size=30)


@given(jobs_of, shares_of)
def test_the_order_is_what_choosing_one_by_one_gives(specs, shares):
    """The fast order of the whole queue = the slow rule, job by job."""
    jobs = [
        Job(owner, n, priority, {"cpu": amount})
        for n, (owner, priority, amount) in enumerate(specs)
    ]
    slow = []
    left = list(jobs)
    state = dict(shares)
    while left:
        groups = [waiting(job.owner, job.number, **job.resources) for job in left]
        (owner, *_) = chosen(groups, state, {"cpu": 99.0})
        own = [job for job in left if job.owner == owner]
        job = min(own, key=lambda job: (-job.priority, job.number))
        left.remove(job)
        slow.append(job)
        share = state[job.owner]
        state[job.owner] = Share(
            held=share.held + job.resources["cpu"], usage=share.usage, weight=share.weight
        )
    assert list(in_order(jobs, shares)) == slow


@given(st.lists(owners, min_size=1, max_size=60))
def test_every_prefix_is_shared_evenly(names):
    jobs = [Job(owner, n) for n, owner in enumerate(names)]
    n_left = Counter(names)
    n_served = Counter()
    for job in in_order(jobs, {}):
        # Whoever has something left has been served at most one time less than any other.
        assert all(n_served[job.owner] <= n_served[other] for other in n_left if n_left[other] > 0)
        n_served[job.owner] += 1
        n_left[job.owner] -= 1
    assert n_served == Counter(names)
