"""How often: what a bucket lets through, whatever the times of the requests are."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from lamella.server.app import PREFIX
from lamella.server.limits import RateLimit

PAUSES = st.lists(st.floats(0, 5), min_size=1, max_size=80)


@given(rate=st.floats(0.1, 50), burst=st.floats(1, 20), pauses=PAUSES)
def test_no_stretch_of_time_lets_more_through_than_burst_and_rate(rate, burst, pauses):
    now = [0.0]
    limit = RateLimit(rate, burst, clock=lambda: now[0])
    taken = []
    for pause in pauses:
        now[0] += pause
        if limit.take("a") == 0.0:
            taken.append(now[0])
    for n, first in enumerate(taken):
        for m, last in enumerate(taken[n:], start=1):
            assert m <= burst + rate * (last - first) + 1e-6


@given(rate=st.floats(0.1, 50), burst=st.floats(1, 20), n=st.integers(1, 60))
def test_whoever_waits_as_long_as_told_is_let_through(rate, burst, n):
    now = [0.0]
    limit = RateLimit(rate, burst, clock=lambda: now[0])
    for _ in range(n):
        wait = limit.take("a")
        if wait:
            now[0] += wait + 1e-6
            assert limit.take("a") == 0.0


@given(st.lists(st.sampled_from("ab"), max_size=60))
def test_keys_do_not_cost_each_other(keys):
    limit = RateLimit(1.0, 5.0, clock=lambda: 0.0)
    let_through = {"a": 0, "b": 0}
    for key in keys:
        let_through[key] += limit.take(key) == 0.0
    assert let_through == {key: min(5, keys.count(key)) for key in "ab"}


def test_nothing_is_limited_by_none():
    limit = RateLimit(0.0, 0.0)
    assert all(limit.take("a") == 0.0 for _ in range(1000))


@pytest.mark.parametrize("path", ["jobs", "tokens/current", "uploads"])
def test_over_http_it_is_429_with_the_time_to_wait(app, services, tokens, path):
    services.rate_limit.rate, services.rate_limit.burst = 0.5, 2.0
    client = TestClient(app)
    answers = [client.get(f"{PREFIX}/{path}", headers=tokens["viewer"]) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 429, 429]
    assert answers[-1].json()["code"] == "too_many_requests"
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 2
    # Others are not made to wait for it.
    assert client.get(f"{PREFIX}/{path}", headers=tokens["other"]).status_code == 200
