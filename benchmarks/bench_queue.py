"""The queue with 2,000 jobs in it: how long a status, a submission, a claim and an answer take.

First alone, then while eight threads ask for states without a pause, as watchers do. PostgreSQL
comes from the system's package, with every commit on the disk; SQLite writes to the folder of
temporary files.

    python benchmarks/bench_queue.py [--jobs 2000] [--repeats 300]
"""

import argparse
import json
import statistics
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path

from lamella.core.errors import MissingDependencyError
from lamella.jobs.database import open_database, sqlite_url
from lamella.jobs.machine import NewJob
from lamella.jobs.store import JobStore
from lamella.server.migrations import migrate
from lamella.testing.postgres import run_postgres

RESULTS = Path(__file__).parent / "results"
N_OWNERS = 20
N_WATCHERS = 8
RESOURCES = {"cpu": 1e6}
PROGRESS = {"stage": "segment", "done": 1.0, "total": 2.0, "unit": "tiles", "eta_s": 1.0}
SPEC = {"request": {"input": {"path": "volume:abc"}, "model": "nuclei-2d", "options": {}}}


def new(n):
    return NewJob(owner=f"user-{n % N_OWNERS}", kind="segment", spec=SPEC, priority=n % 3, cost=1e6)


def milliseconds(seconds):
    ordered = sorted(seconds)
    return {
        "median": round(1e3 * statistics.median(ordered), 2),
        "p95": round(1e3 * ordered[int(0.95 * (len(ordered) - 1))], 2),
        "max": round(1e3 * ordered[-1], 2),
    }


def timed(call, into):
    began = time.perf_counter()
    answer = call()
    into.append(time.perf_counter() - began)
    return answer


def status(store, job_id):
    """What a status request needs."""
    job = store.get(job_id)
    if job.state == "queued":
        store.position(job_id)
    return store.eta_s(job_id)


@contextmanager
def watchers(store, ids, n):
    """Threads that ask for states until the block ends; their times in seconds."""
    stop, times = threading.Event(), []

    def watch(first):
        place = first
        while not stop.is_set():
            job_id = ids[place % len(ids)]
            timed(lambda job_id=job_id: status(store, job_id), times)
            place += 7

    threads = [threading.Thread(target=watch, args=(n_th,)) for n_th in range(n)]
    for thread in threads:
        thread.start()
    try:
        yield times
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def measure(url, n_jobs, n_repeats):
    database = open_database(url)
    migrate(database)
    store = JobStore(database)
    result = {"add": []}
    ids = [timed(lambda n=n: store.add(new(n)), result["add"])[0].id for n in range(n_jobs)]
    for n_watchers in (0, N_WATCHERS):
        name = f"{n_watchers} watchers"
        with watchers(store, ids, n_watchers) as times:
            part = cycle(store, ids, n_repeats)
        if n_watchers:
            part["status"] = times
        result |= {f"{key}, {name}": value for key, value in part.items()}
    began = time.perf_counter()
    store._views._make()
    view_s = time.perf_counter() - began
    database.close()
    return {key: milliseconds(value) for key, value in result.items()} | {
        "view of the whole queue": milliseconds([view_s])
    }


def cycle(store, ids, n):
    """Status, submission with position, claim, heartbeat and answer, n times."""
    times = {name: [] for name in ("status", "add", "claim", "renew", "finish")}
    for i in range(n):
        timed(lambda i=i: status(store, ids[i * 37 % len(ids)]), times["status"])
        timed(lambda i=i: store.position(store.add(new(i))[0].id), times["add"])
        job = timed(lambda: store.claim("bench", RESOURCES, 60.0), times["claim"])
        timed(lambda job=job: store.renew(job.id, job.attempt, 60.0, PROGRESS), times["renew"])
        timed(lambda job=job: store.finish(job.id, job.attempt, {"n_objects": 5}), times["finish"])
    return times


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=300)
    options = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        url = sqlite_url(Path(folder) / "queue.db")
        results["sqlite"] = measure(url, options.jobs, options.repeats)
    try:
        with run_postgres(is_durable=True) as server:
            url = server.create_database()
            results["postgresql"] = measure(url, options.jobs, options.repeats)
    except MissingDependencyError as error:
        print(f"without PostgreSQL: {error}")
    for name, table in results.items():
        print(f"\n{name}, {options.jobs} jobs in the queue: ms    median      p95      max")
        for key, values in table.items():
            print(f"  {key:42}" + "".join(f"{value:9.2f}" for value in values.values()))
    RESULTS.mkdir(exist_ok=True)
    document = {"n_jobs": options.jobs, "n_repeats": options.repeats, "milliseconds": results}
    (RESULTS / "queue.json").write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
