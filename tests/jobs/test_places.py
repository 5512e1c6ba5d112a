"""Where a job stands in the queue: told when it is queued, and again when that is news."""

import json
import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

from lamella.jobs.database import open_database
from lamella.jobs.dispatch import Dispatcher
from lamella.jobs.machine import NewJob
from lamella.jobs.store import JobStore
from lamella.jobs.tables import METADATA


@pytest.fixture
def queue(database_url, tmp_path):
    database = open_database(database_url)
    METADATA.create_all(database.engine)
    store = JobStore(database)
    told = []
    dispatcher = Dispatcher(
        store,
        cast("Any", SimpleNamespace(name="here")),
        folder_of=lambda job_id: tmp_path / job_id,
        functions={},
        listener=cast(
            "Any",
            SimpleNamespace(events_added=told.append, job_changed=lambda _: None),
        ),
    )
    yield store, dispatcher, told
    database.close()


def places(dispatcher, job_id):
    events = [json.loads(line) for _, line in dispatcher.log(job_id).read()]
    return [(event["state"], event["position"]) for event in events]


def test_a_job_is_told_its_place_and_again_when_that_is_another(queue):
    store, dispatcher, told = queue
    ids = [store.add(NewJob(owner="ada", kind="count", spec={}))[0].id for _ in range(3)]
    for job_id in ids:
        dispatcher.changed(job_id)
    assert [places(dispatcher, job_id) for job_id in ids] == [
        [("queued", 1)],
        [("queued", 2)],
        [("queued", 3)],
    ]
    told.clear()
    for job_id in ids:
        dispatcher.placed(job_id)
    assert told == []
    store.cancel(ids[0])
    dispatcher.changed(ids[0])
    deadline = time.monotonic() + 10
    # What is known of the whole queue may be a moment old.
    while len(places(dispatcher, ids[2])) < 2 and time.monotonic() < deadline:
        dispatcher.placed(ids[2])
        time.sleep(0.02)
    dispatcher.placed(ids[2])
    assert places(dispatcher, ids[2]) == [("queued", 3), ("queued", 2)]
    assert told == [ids[0], ids[2]]


def test_a_job_that_waits_no_longer_has_no_place(queue):
    store, dispatcher, told = queue
    job_id = store.add(NewJob(owner="ada", kind="count", spec={}))[0].id
    dispatcher.changed(job_id)
    claimed = store.claim("here", {"cpu": 1.0}, 60.0)
    assert claimed is not None
    told.clear()
    # Claimed, and not yet said: nothing about the queue may follow now.
    dispatcher.placed(job_id)
    dispatcher.changed(job_id)
    dispatcher.placed(job_id)
    dispatcher.placed("gone")
    assert places(dispatcher, job_id) == [("queued", 1), ("running", None)]
    assert told == [job_id]
