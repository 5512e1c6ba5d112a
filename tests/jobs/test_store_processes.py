"""Several processes at one queue, some of them killed: nothing lost, nothing taken twice."""

import json
import random
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager

from lamella.jobs.machine import NewJob
from lamella.jobs.users import Limits

# Claims, now and then submits, and reports every acknowledged change as one line.
WORKER = """
import json, random, sys, time
from lamella.jobs.database import open_database
from lamella.jobs.machine import LeaseLostError, NewJob
from lamella.jobs.store import JobStore
from lamella.jobs.users import Limits

url, name, max_running, seconds = sys.argv[1:5]
store = JobStore(open_database(url), limits=Limits(max_running=int(max_running)))
say = lambda *what: print(json.dumps(what), flush=True)
say("ready")
sys.stdin.readline()
draw = random.Random(name)
end = time.monotonic() + float(seconds)
waits = sys.argv[6] == "together"
while time.monotonic() < end:
    job = store.claim(name, {"cpu": 1.0}, 0.4)
    if job is None:
        if store.counts() == {"finished": int(sys.argv[5])}:
            break
        store.recover()
        time.sleep(0.005)
        continue
    if waits:
        say("first")
        sys.stdin.readline()
        waits = False
    say("claimed", job.id, job.attempt, job.owner)
    time.sleep(draw.uniform(0, 0.004))
    try:
        store.renew(job.id, job.attempt, 0.4, {"stage": "s", "done": job.attempt})
        store.finish(job.id, job.attempt, {"by": name})
    except LeaseLostError:
        say("lost", job.id, job.attempt)
    else:
        say("finished", job.id, job.attempt)
"""


@contextmanager
def workers(url, n, *, max_running=1000, seconds=60, n_jobs=0, together=False):
    """Processes that begin together, and are gone at the end.

    `together`: none takes a second job before all have their first, whatever the machine does.
    """
    arguments = [str(max_running), str(seconds), str(n_jobs), "together" if together else "free"]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, url, f"w{i}", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for i in range(n)
    ]
    try:
        for word in ["ready", "first"] if together else ["ready"]:
            for process in processes:
                assert json.loads(process.stdout.readline()) == [word]
            for process in processes:
                process.stdin.write("\n")
                process.stdin.flush()
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def lines_of(processes):
    texts = [process.communicate(timeout=90)[0] for process in processes]
    # The last line of one that was killed may be cut.
    return [
        [tuple(json.loads(line)) for line in text.splitlines() if line.endswith("]")]
        for text in texts
    ]


def submit(store, n):
    return [store.add(NewJob(owner="abc"[i % 3], kind="k", spec={"n": i}))[0].id for i in range(n)]


def test_no_job_is_claimed_twice(store, database_url):
    store.clock = time.time
    ids = submit(store, 60)
    with workers(database_url, 3, n_jobs=len(ids), together=True) as processes:
        said = lines_of(processes)
    claims = Counter((line[1], line[2]) for lines in said for line in lines if line[0] == "claimed")
    finishes = Counter(line[1] for lines in said for line in lines if line[0] == "finished")
    assert set(claims.values()) == {1}
    assert {job for job, _ in claims} == set(ids)
    assert finishes == Counter(ids)
    assert store.counts() == {"finished": len(ids)}


def test_killed_workers_lose_nothing(store, database_url):
    store.clock = time.time
    ids = submit(store, 60)
    draw = random.Random(1)
    said = []
    for _ in range(2):
        with workers(database_url, 2, n_jobs=len(ids)) as processes:
            time.sleep(draw.uniform(0.05, 0.25))
            for process in processes:
                process.kill()
            said += lines_of(processes)
    # Those who were killed hold what they had claimed until their lease runs out.
    with workers(database_url, 2, n_jobs=len(ids)) as processes:
        said += lines_of(processes)
    claims = Counter((line[1], line[2]) for lines in said for line in lines if line[0] == "claimed")
    finishes = Counter(line[1] for lines in said for line in lines if line[0] == "finished")
    assert set(claims.values()) == {1}
    assert set(finishes.values()) == {1}
    assert store.counts() == {"finished": len(ids)}
    for job in store.list(limit=1000).jobs:
        assert job.result is not None


def test_limits_hold_for_many_processes_at_once(store, database_url):
    store.clock = time.time
    store.limits = Limits(max_running=1)
    ids = submit(store, 20)
    with workers(database_url, 2, max_running=1, n_jobs=len(ids)) as processes:
        most = Counter()
        while any(process.poll() is None for process in processes):
            running = Counter(job.owner for job in store.list(states=["running"]).jobs)
            most |= running
            time.sleep(0.002)
        lines_of(processes)
    assert store.counts() == {"finished": len(ids)}
    assert set(most.values()) <= {1}


ADDER = """
import json, sys
from lamella.core.errors import QuotaError
from lamella.jobs.database import open_database
from lamella.jobs.machine import NewJob
from lamella.jobs.store import JobStore
from lamella.jobs.users import Limits

store = JobStore(open_database(sys.argv[1]), limits=Limits(max_queued=40))
print("ready", flush=True)
sys.stdin.readline()
said = []
for n in range(30):
    job = NewJob(owner="ada", kind="k", spec={"n": n}, idempotency_key=f"key-{n}")
    said.append([*(lambda record, is_new: (record.id, is_new))(*store.add(job))])
for n in range(30):
    try:
        store.add(NewJob(owner="ada", kind="k", spec={"n": n}))
    except QuotaError:
        pass
print(json.dumps(said), flush=True)
"""


def test_one_key_makes_one_job_whoever_asks_at_once(store, database_url):
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", ADDER, database_url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    try:
        for process in processes:
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            process.stdin.write("\n")
            process.stdin.flush()
        said = [json.loads(process.communicate(timeout=90)[0]) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for n in range(30):
        assert len({each[n][0] for each in said}) == 1
        assert sum(each[n][1] for each in said) == 1
    # And the limit was kept exactly, though three asked at once.
    assert store.counts() == {"queued": 40}
