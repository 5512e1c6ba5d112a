"""What a progress bar of a pull says: all files together, the rate, the time left."""

import pytest

from lamella.models.meter import Meter
from lamella.testing.clock import Clock


@pytest.fixture
def clock():
    return Clock()


def test_rate_and_time_left_are_of_the_last_seconds(listener, clock):
    meter = Meter(listener, "pulling m", 10_000_000, clock=clock)
    meter.start("a", 0)
    for second in range(31):
        clock.now = float(second)
        # A slow start, then 200 kB a second.
        meter.tell(max(0, second - 10) * 200_000, 10_000_000)
    last = listener.events[-1]
    assert last.bytes_per_s == pytest.approx(200_000)
    assert last.eta_s == pytest.approx((10_000_000 - 20 * 200_000) / 200_000)
    assert (last.done, last.total, last.unit) == (4.0, 10.0, "MB")


def test_what_was_there_before_counts_as_done_but_not_as_speed(listener, clock):
    meter = Meter(listener, "pulling m", 2_000_000, clock=clock)
    meter.start("a", 900_000)
    meter.tell(900_000, 1_000_000)
    assert listener.events[-1].bytes_per_s == 0
    assert listener.events[-1].eta_s is None
    clock.now = 1.0
    meter.tell(1_000_000, 1_000_000)
    meter.start("b", 0)
    clock.now = 2.0
    meter.tell(500_000, 1_000_000)
    assert listener.events[-1].done == 1.5
    assert (listener.events[-1].file, listener.events[-1].file_done) == ("b", 500_000)


def test_reports_are_few_and_the_end_is_always_told(listener, clock):
    meter = Meter(listener, "pulling m", 1000, clock=clock)
    meter.start("a", 0)
    for done in range(1, 1001):
        clock.now += 0.001
        meter.tell(done, 1000)
    assert len(listener.events) <= 12
    assert listener.events[-1].fraction == 1.0


def test_an_unknown_size_never_shows_more_than_all(listener, clock):
    meter = Meter(listener, "pulling m", None, clock=clock)
    meter.start("a", 0)
    meter.tell(5_000_000, None)
    assert listener.events[-1].fraction == 1.0
    assert listener.events[-1].eta_s is None
