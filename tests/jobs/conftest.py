"""A queue on each kind of database, and a clock that tests move."""

import pytest

from lamella.jobs.database import open_database
from lamella.jobs.store import JobStore
from lamella.server.migrations import migrate


class Clock:
    def __init__(self):
        self.now = 1_000_000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def database(database_url):
    database = open_database(database_url)
    migrate(database)
    yield database
    database.close()


@pytest.fixture
def store(database, clock):
    return JobStore(database, clock)
