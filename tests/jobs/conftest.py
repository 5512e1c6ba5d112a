"""A queue on each kind of database, and a clock that tests move."""

import pytest

from lamella.jobs.store import JobStore
from lamella.testing.clock import Clock


@pytest.fixture
def clock():
    return Clock(1_000_000.0)


@pytest.fixture
def store(database, clock):
    return JobStore(database, clock)
