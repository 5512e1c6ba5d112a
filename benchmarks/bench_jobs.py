"""What the queue costs: a job that does nothing, and the way of an event from worker to listener.

    python benchmarks/bench_jobs.py [--jobs 60] [--events 200]

Embedded (SQLite, worker processes) and on a Dask cluster of two processes; beside them, in the same
run, what carries nothing but the call: a process pool and Dask itself. A job here is durable: two
commits, an attempt file, an outcome and a log on disk. Results: benchmarks/results/jobs.json.
"""

import argparse
import json
import statistics
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from lamella.jobs.cluster import ClusterExecutor, ClusterOptions
from lamella.jobs.database import open_database, sqlite_url
from lamella.jobs.dispatch import Dispatcher
from lamella.jobs.local import LocalExecutor, LocalOptions
from lamella.jobs.log import JobLog
from lamella.jobs.machine import NewJob
from lamella.jobs.store import JobStore
from lamella.jobs.tables import METADATA
from lamella.testing.dask import run_dask
from lamella.testing.dispatch import FUNCTIONS

RESULTS = Path(__file__).parent / "results"
GOALS = {"embedded event_s": 0.1, "dask event_s": 0.1}


class Ear:
    """Hears a dispatcher, and when."""

    def __init__(self):
        self.ended = threading.Event()
        self.waiting_for = ""
        self.store = self.dispatcher = None
        self.seen = 0
        self.delays = []

    def job_changed(self, job_id):
        if job_id == self.waiting_for and self.store.get(job_id).is_final:
            self.ended.set()

    def events_added(self, job_id):
        now = time.time()
        for number, line in self.dispatcher.log(job_id).read(self.seen):
            event = json.loads(line)
            if event["type"] == "log":
                self.delays.append(now - event["time_s"])
            self.seen = number


class Queue:
    def __init__(self, folder, executor):
        folder.mkdir()
        self.database = open_database(sqlite_url(folder / "jobs.db"))
        METADATA.create_all(self.database.engine)
        self.ear = Ear()
        self.ear.store = JobStore(self.database)
        self.dispatcher = self.ear.dispatcher = Dispatcher(
            self.ear.store,
            executor,
            folder_of=lambda job_id: folder / job_id,
            functions=FUNCTIONS,
            listener=self.ear,
        )
        while executor.capacity().get("cpu", 0) < 2:
            time.sleep(0.05)
        self.dispatcher.start()

    def run(self, **spec):
        """Seconds from submission to the word that the job has ended."""
        ear = self.ear
        ear.ended.clear()
        ear.seen, ear.delays = 0, []
        began = time.perf_counter()
        ear.waiting_for = ear.store.add(NewJob(owner="ada", kind="count", spec=spec))[0].id
        self.dispatcher.wake()
        # A job may end before its name is known here.
        while not ear.ended.wait(0.005):
            if ear.store.get(ear.waiting_for).is_final:
                break
        return time.perf_counter() - began

    def close(self):
        self.dispatcher.stop(1.0)
        self.database.close()


def nothing():
    return 0


def rate_of_log(folder, n):
    """Events per second that a log takes over, and reads back."""
    folder.mkdir()
    line = json.dumps({"number": 0, "time_s": 1.0, "type": "log", "message": "x" * 100}) + "\n"
    (folder / "attempt-1.jsonl").write_text(line * n)
    began = time.perf_counter()
    JobLog(folder).ingest(1)
    taken = time.perf_counter()
    assert len(JobLog(folder).read()) == n
    return n / (taken - began), n / (time.perf_counter() - taken)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=60)
    parser.add_argument("--events", type=int, default=200)
    options = parser.parse_args()
    rows = {name: [] for name in ("embedded job_s", "dask job_s", "pool call_s", "dask call_s")}
    delays = {"embedded": [], "dask": []}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (folder / "dask").mkdir()
        site = stack.enter_context(run_dask(folder / "dask", 2))
        local = Queue(folder / "local", LocalExecutor(LocalOptions(n_workers=2, n_threads=1)))
        stack.callback(local.close)
        cluster_executor = ClusterExecutor(ClusterOptions(scheduler=site.address))
        cluster = Queue(folder / "cluster", cluster_executor)
        stack.callback(cluster.close)
        pool = stack.enter_context(ProcessPoolExecutor(1))
        client = cluster_executor._client
        for repeat in range(options.jobs + 3):
            times = [local.run(n=0), cluster.run(n=0)]
            for call in (
                lambda: pool.submit(nothing).result(),
                lambda: client.submit(nothing, pure=False).result(),
            ):
                began = time.perf_counter()
                call()
                times.append(time.perf_counter() - began)
            if repeat >= 3:  # the first warm up what both need
                for row, value in zip(rows.values(), times, strict=True):
                    row.append(value)
        for name, one in (("embedded", local), ("dask", cluster)):
            one.run(n=options.events, pause_s=0.01)
            time.sleep(0.3)
            delays[name] = one.ear.delays
        taken, read = rate_of_log(folder / "log", 50_000)
    result = {name: round(statistics.median(row), 5) for name, row in rows.items()}
    for name, row in delays.items():
        result[f"{name} event_s"] = round(statistics.median(row), 5)
        result[f"{name} event p99_s"] = round(statistics.quantiles(row, n=100)[98], 5)
        assert len(row) >= options.events, f"{name}: {len(row)} of {options.events} events"
    result["events taken over per s"] = round(taken)
    result["events read per s"] = round(read)
    for name, value in result.items():
        goal = f"  (goal < {GOALS[name]})" if name in GOALS else ""
        print(f"{name:28} {value}{goal}")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "jobs.json").write_text(
        json.dumps({"median": result, "goals": GOALS}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
