"""When jobs start."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.jobs.estimate import Durations, Occupied, Planned, plan_starts

CPU = {"cpu": 1.0}


def queue(*seconds):
    return [Planned(str(n), CPU, each) for n, each in enumerate(seconds)]


def test_one_after_another():
    starts = plan_starts(queue(10.0, 5.0, 1.0), [Occupied(CPU, 3.0)], CPU)
    assert starts == {"0": 3.0, "1": 13.0, "2": 18.0}


def test_two_at_once():
    starts = plan_starts(queue(10.0, 5.0, 1.0, 1.0), [], {"cpu": 2.0})
    assert starts == {"0": 0.0, "1": 0.0, "2": 5.0, "3": 6.0}


def test_what_is_not_known_is_not_told():
    assert plan_starts(queue(None, 5.0), [], CPU) == {"0": 0.0}
    assert plan_starts(queue(1.0), [Occupied(CPU, None)], CPU) == {}


def test_a_job_that_can_never_run_holds_up_nobody():
    jobs = [Planned("large", {"gpu": 1.0}, 1.0), *queue(4.0)]
    assert plan_starts(jobs, [], CPU) == {"0": 0.0}


def test_a_large_job_is_not_overtaken():
    jobs = [Planned("large", {"cpu": 2.0}, 4.0), Planned("small", CPU, 1.0)]
    starts = plan_starts(jobs, [Occupied(CPU, 6.0)], {"cpu": 2.0})
    assert starts == {"large": 6.0, "small": 10.0}


def test_more_running_than_there_is():
    """The capacity is remembered from another worker, or jobs were started by hand."""
    starts = plan_starts(queue(1.0), [Occupied(CPU, 5.0), Occupied(CPU, 9.0)], CPU)
    assert starts == {"0": 9.0}


def test_medians_are_not_moved_by_one_long_job():
    assert Durations.of([(10, None), (11, None), (5000, None)]).expected_s() == 11
    assert Durations.of([(10, 1), (20, 2), (99999, 3)]).expected_s(cost=4) == 40


def test_without_a_cost_the_time_counts():
    assert Durations.of([(10, 5.0)]).expected_s() == 10
    assert Durations.of([(10, None)]).expected_s(cost=3.0) == 10
    assert Durations.of([]).expected_s(cost=3.0) is None


@given(
    st.lists(st.floats(0.1, 100), max_size=12),
    st.lists(st.floats(0.1, 100), max_size=3),
    st.integers(1, 4),
)
def test_slots_are_never_overbooked_and_never_idle(expected, remaining, n_slots):
    remaining = remaining[:n_slots]
    starts = plan_starts(
        queue(*expected), [Occupied(CPU, seconds) for seconds in remaining], {"cpu": float(n_slots)}
    )
    assert len(starts) == len(expected)
    spans = [(0.0, seconds) for seconds in remaining]
    spans += [(starts[str(n)], starts[str(n)] + seconds) for n, seconds in enumerate(expected)]
    ordered = [starts[str(n)] for n in range(len(expected))]
    assert ordered == sorted(ordered)
    for start in ordered:
        busy = sum(begin <= start < end for begin, end in spans)
        assert busy <= n_slots
        # Just before a job starts that had to wait, every slot was busy.
        if start > 0:
            before = start * (1 - 1e-9)
            assert sum(begin <= before < end for begin, end in spans) == n_slots


@pytest.mark.parametrize("n", [2000])
def test_the_plan_of_a_long_queue_is_complete(n):
    starts = plan_starts(queue(*[1.0] * n), [], {"cpu": 4.0})
    assert starts[str(n - 1)] == (n - 1) // 4
