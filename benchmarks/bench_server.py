"""The server under load, how late events come, and what the queue costs a job.

    python benchmarks/bench_server.py load              200 watchers, 50 uploads, 2,000 jobs
    python benchmarks/bench_server.py latency           from the engine's event to the client
    python benchmarks/bench_server.py overhead          a queued job against the same local run
    python benchmarks/bench_server.py load --small      a tenth of it

A real server (`lamella serve`, one worker) in a process of its own; whoever watches, uploads and
asks does so from other processes on the same machine, and so takes its cores as well.
"""

import argparse
import asyncio
import base64
import hashlib
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from pathlib import Path

import httpx2
import numpy as np

import lamella as lm
from lamella.simulation.tomogram import simulate_tomogram
from lamella.testing.server import run_server
from lamella.wire.request import InputDoc, SegmentRequest
from lamella.workflows.segment import RunOptions
from lamella.workflows.segment import segment as run_request

RESULTS = Path(__file__).parent / "results"
FLAGS = ("--gpus", "none", "--rate-limit", "0", "--log-level", "warning")
MIB = 2**20


def tomogram(path, size):
    made = simulate_tomogram((size, size, size), seed=1)
    lm.save(lm.Volume.from_array(made.intensity, spacing=(1.0, 1.0, 1.0), unit="nm"), path)
    return path


def balls(path):
    data = np.zeros((16, 48, 48), np.float32)
    data[4:10, 10:30, 10:30] = 9
    lm.save(lm.Volume.from_array(data, spacing=(1.0, 1.0, 1.0), unit="nm"), path)
    return path


def request_of(path, model, **fields):
    return {"input": {"path": str(path)}, "model": model, **fields}


def api(server, **words):
    return httpx2.Client(
        base_url=f"{server.url}/api/v1", headers=server.headers, timeout=120, **words
    )


def percentile(values, share):
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def keep(name, document, goals):
    """Write what was measured, and say of every goal (name, most) whether it was reached."""
    RESULTS.mkdir(exist_ok=True)
    missed = [goal for goal, most in goals.items() if found_of(document, goal) > most]
    whole = {**document, "goals": goals, "missed": missed}
    (RESULTS / f"{name}.json").write_text(json.dumps(whole, indent=1) + "\n")
    for key, value in document.items():
        for inner, number in value.items() if isinstance(value, dict) else [("", value)]:
            full = f"{key}.{inner}" if inner else key
            goal = f"   (goal: at most {goals[full]:g})" if full in goals else ""
            print(f"{full:32} {number}{goal}")
    print(f"missed: {', '.join(missed)}" if missed else "every goal is reached")


def found_of(document, name):
    for part in name.split("."):
        document = document[part]
    return document


# --- Load ---------------------------------------------------------------------------------------


async def watch(client, job, late):
    """Numbers of the events that one watcher was told, from a stream that is never cut."""
    numbers, kinds = [], {}
    headers = {"Accept": "text/event-stream"}
    async with client.stream("GET", f"/jobs/{job}/events", headers=headers) as stream:
        assert stream.status_code == 200, stream.status_code
        # What happened before is replayed, and not late.
        since = time.time()
        kind = ""
        async for line in stream.aiter_lines():
            if line.startswith("event: "):
                kind = line[7:]
            elif line.startswith("data: "):
                event = json.loads(line[6:])
                if event["time_s"] > since:
                    late.append(time.time() - event["time_s"])
                numbers.append(event["number"])
                kinds[event["number"]] = kind
    return numbers, kinds


def watchers(url, headers, job, n, answer):
    """A process of n watchers of one job."""

    async def run():
        late: list[float] = []
        limits = httpx2.Limits(max_connections=n + 5)
        async with httpx2.AsyncClient(
            base_url=f"{url}/api/v1", headers=headers, timeout=None, limits=limits
        ) as client:
            found = await asyncio.gather(*(watch(client, job, late) for _ in range(n)))
        return found, late

    answer.put(asyncio.run(run()))


def uploads(url, headers, n, n_bytes, answer):
    """A process of n uploads at once, each in chunks, its SHA-256 verified by the server."""
    content = os.urandom(n_bytes)
    digest = hashlib.sha256(content).hexdigest()
    metadata = ",".join(
        f"{key} {base64.b64encode(value.encode()).decode()}"
        for key, value in (("filename", "x.bin"), ("sha256", digest), ("volume", "0"))
    )

    async def one(client):
        tus = {"Tus-Resumable": "1.0.0"}
        made = await client.post(
            "/uploads",
            headers={**tus, "Upload-Length": str(n_bytes), "Upload-Metadata": metadata},
        )
        assert made.status_code == 201, made.text
        place = made.headers["location"]
        for start in range(0, n_bytes, 8 * MIB):
            sent = await client.patch(
                place,
                content=content[start : start + 8 * MIB],
                headers={
                    **tus,
                    "Upload-Offset": str(start),
                    "Content-Type": "application/offset+octet-stream",
                },
            )
            assert sent.status_code == 204, sent.text
        told = (await client.get(place)).json()
        return told["state"] == "finished" and told["sha256"] == digest

    async def run():
        limits = httpx2.Limits(max_connections=n + 5)
        began = time.monotonic()
        async with httpx2.AsyncClient(
            base_url=f"{url}/api/v1", headers=headers, timeout=600, limits=limits
        ) as client:
            good = await asyncio.gather(*(one(client) for _ in range(n)))
        return sum(good), time.monotonic() - began

    answer.put(asyncio.run(run()))


def ask(client, jobs, until, took):
    """Status requests, ten a second, of jobs here and there."""
    n = 0
    while not until():
        began = time.perf_counter()
        answer = client.get(f"/jobs/{jobs[n % len(jobs)]}")
        took.append(time.perf_counter() - began)
        assert answer.status_code == 200, answer.text
        n += 97
        time.sleep(max(0.0, 0.1 - took[-1]))


def load(arguments):
    scale = 10 if arguments.small else 1
    n_watchers, n_uploads, n_jobs = 200 // scale, 50 // scale, 2000 // scale
    upload_bytes = 64 * MIB // scale
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        big = tomogram(folder / "big.mrc", 64 if arguments.small else 160)
        small = balls(folder / "small.mrc")
        flags = (*FLAGS, "--allow-root", name, "--worker-threads", "1")
        with run_server(folder / "data", *flags) as server, api(server) as client:
            watched = client.post(
                "/jobs", json={"request": request_of(big, "membrane-3d"), "priority": 100}
            ).json()["id"]
            spec = {"request": request_of(small, "classical:otsu")}
            jobs = []
            began = time.monotonic()
            for start in range(0, n_jobs, 500):
                n = min(500, n_jobs - start)
                made = client.post("/batches", json={"jobs": [spec] * n})
                assert made.status_code == 201, made.text
                jobs += made.json()["jobs"]
            submitted_s = time.monotonic() - began
            context = multiprocessing.get_context("spawn")
            watching, sending = context.Queue(), context.Queue()
            common = (server.url, server.headers)
            processes = [
                context.Process(target=watchers, args=(*common, watched, n_watchers, watching)),
                context.Process(target=uploads, args=(*common, n_uploads, upload_bytes, sending)),
            ]
            for process in processes:
                process.start()
            took: list[float] = []
            ended = ask_while(client, [watched, *jobs], processes, (watching, sending), took)
            (told, late), (n_good, upload_s) = ended
            whole = client.get(f"/jobs/{watched}/events", params={"limit": 1000}).json()
            must = [
                event["number"]
                for event in whole["events"]
                if event["type"] not in ("progress", "preview")
            ]
            complete = sum(set(must) <= set(numbers) for numbers, _ in told)
            n_listed = count_jobs(client)
    keep(
        "server-load-small" if arguments.small else "server-load",
        {
            "watchers": n_watchers,
            "watchers_told_everything": complete,
            "events": whole["last"],
            "event_latency_ms_median": round(1000 * statistics.median(late), 1),
            "event_latency_ms_p95": round(1000 * percentile(late, 0.95), 1),
            "uploads": n_uploads,
            "uploads_whole": n_good,
            "upload_mb_s": round(n_uploads * upload_bytes / upload_s / 1e6, 1),
            "jobs": n_jobs,
            "jobs_listed": n_listed - 1,
            "jobs_submitted_per_s": round(n_jobs / submitted_s, 1),
            "status_requests": len(took),
            "status_ms_median": round(1000 * statistics.median(took), 1),
            "status_ms_p95": round(1000 * percentile(took, 0.95), 1),
            "status_ms_max": round(1000 * max(took), 1),
            "dropped": n_watchers - complete + n_uploads - n_good + n_jobs + 1 - n_listed,
        },
        {"status_ms_p95": 100.0, "dropped": 0},
    )


def ask_while(client, jobs, processes, queues, took):
    """Ask for the status of jobs until both processes have answered; their answers."""
    answers = [None, None]

    def is_over():
        for n, source in enumerate(queues):
            if answers[n] is None and not source.empty():
                answers[n] = source.get()
        died = [p for p in processes if p.exitcode not in (None, 0)]
        assert not died, "a process of clients failed: see above"
        return all(answer is not None for answer in answers)

    ask(client, jobs, is_over, took)
    for process in processes:
        process.join()
    return answers


def count_jobs(client):
    n, cursor = 0, None
    while True:
        params = {"limit": 500} | ({"cursor": cursor} if cursor else {})
        page = client.get("/jobs", params=params).json()
        n += len(page["jobs"])
        cursor = page["next_cursor"]
        if cursor is None:
            return n


# --- Latency ------------------------------------------------------------------------------------


def follow(client, job, previews="boxes"):
    """Events until the end, each with the moment it came."""
    headers = {"Accept": "text/event-stream"}
    with client.stream(
        "GET", f"/jobs/{job}/events", params={"previews": previews}, headers=headers
    ) as stream:
        for line in stream.iter_lines():
            if line.startswith("data: "):
                yield time.time(), json.loads(line[6:])


def latency(arguments):
    size = 64 if arguments.small else 160
    found = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = tomogram(folder / "tomogram.mrc", size)
        flags = (*FLAGS, "--allow-root", name)
        with run_server(folder / "data", *flags) as server, api(server) as client:
            for previews in ("boxes", "labels"):
                late = []
                for _ in range(arguments.repeats):
                    request = request_of(path, "membrane-3d")
                    job = client.post("/jobs", json={"request": request}).json()["id"]
                    late += [
                        (came - event["time_s"], event["type"])
                        for came, event in follow(client, job, previews)
                        if event["number"] > 1
                    ]
                seconds = [one for one, _ in late]
                shown = [one for one, kind in late if kind == "preview"]
                found[previews] = {
                    "events": len(late),
                    "ms_median": round(1000 * statistics.median(seconds), 1),
                    "ms_p95": round(1000 * percentile(seconds, 0.95), 1),
                    "preview_ms_median": round(1000 * statistics.median(shown), 1),
                }
    goals = {f"{name}.ms_median": 100.0 for name in found}
    keep("server-latency", {"size": size, **found}, goals)


# --- Overhead -----------------------------------------------------------------------------------


def overhead(arguments):
    size = 64 if arguments.small else arguments.size
    local_s, remote_s, hashes = [], [], set()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = tomogram(folder / "tomogram.mrc", size)
        document = request_of(path, "membrane-3d")
        request = SegmentRequest(input=InputDoc(path=str(path)), model="membrane-3d")
        flags = (*FLAGS, "--allow-root", name)
        with run_server(folder / "data", *flags) as server, api(server) as client:
            # Both sides have everything imported and in the page cache.
            warm = request.model_copy(update={"model": "classical:otsu"})
            run_request(warm, RunOptions(folder / "warm.run"))
            job = client.post("/jobs", json={"request": request_of(path, "classical:otsu")})
            list(follow(client, job.json()["id"]))
            for n in range(arguments.repeats):
                began = time.monotonic()
                run = run_request(request, RunOptions(folder / f"{n}.run"))
                local_s.append(time.monotonic() - began)
                began = time.monotonic()
                job = client.post("/jobs", json={"request": document}).json()["id"]
                list(follow(client, job, "labels"))
                remote_s.append(time.monotonic() - began)
                done = client.get(f"/jobs/{job}").json()
                hashes |= {run.manifest.labels.sha256, done["summary"]["labels_sha256"]}
    local, remote = statistics.median(local_s), statistics.median(remote_s)
    assert len(hashes) == 1, "the labels are not the same"
    keep(
        "server-overhead",
        {
            "size": size,
            "local_s": round(local, 2),
            "queued_s": round(remote, 2),
            "overhead_s": round(remote - local, 2),
            "runs": [[round(a, 2), round(b, 2)] for a, b in zip(local_s, remote_s, strict=True)],
        },
        {"overhead_s": round(0.05 * local + 2.0, 2)},
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("load", "latency", "overhead"))
    parser.add_argument("--small", action="store_true", help="a tenth of it")
    parser.add_argument("--size", type=int, default=256, help="of the volume of `overhead`")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    {"load": load, "latency": latency, "overhead": overhead}[arguments.what](arguments)


if __name__ == "__main__":
    main()
