"""Back-pressure over real sockets: one that stops reading costs neither the job nor the others."""

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections import Counter

import httpx2
import numpy as np
import pytest
import uvicorn
import websockets.sync.client
from starlette.applications import Starlette
from starlette.routing import Route, WebSocketRoute

import lamella as lm
from lamella.jobs.log import JobLog
from lamella.server.events import channel as channel_module
from lamella.server.events.hub import Follow, Hub, JobSource
from lamella.server.events.labels import decode_labels
from lamella.server.events.routes import _serve as serve_websocket
from lamella.server.events.stream import EventStream
from lamella.simulation.tomogram import simulate_tomogram
from lamella.testing.server import run_server
from lamella.wire.event import LabelsDelta, LogEvent, PreviewEvent, ProgressEvent, StateEvent

N_EVENTS = 6000
WORDS = "x" * 2000
PREVIEW = PreviewEvent(
    path="labels.ome.zarr",
    factors=(1.0, 1.0),
    box_start=(0, 0),
    box_stop=(64, 64),
    is_final=True,
)


def small_socket(url):
    """A connection of which the systems on both sides hold little: it is soon full."""
    host, _, port = url.removeprefix("http://").partition(":")
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    made.connect((host, int(port)))
    return made


class Stalled:
    """Asks for a stream, and reads nothing until it is told to."""

    def __init__(self, url, path, headers=None):
        self.socket = small_socket(url)
        lines = [f"GET {path} HTTP/1.1", "Host: here", "Accept: text/event-stream"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        self.socket.sendall("\r\n".join([*lines, "Connection: close", "", ""]).encode())

    def read(self):
        """Everything, now: numbers and documents of the events."""
        self.socket.settimeout(30)
        pieces = []
        while piece := self.socket.recv(65536):
            pieces.append(piece)
        text = b"".join(pieces).decode()
        return [
            json.loads(line.removeprefix("data: "))
            for line in text.split("\n")
            if line.startswith("data: ")
        ]

    def close(self):
        self.socket.close()


class StalledWebSocket:
    """The same by a WebSocket."""

    def __init__(self, url, path):
        self._stack = contextlib.ExitStack()
        self.connection = self._stack.enter_context(
            websockets.sync.client.connect(
                f"ws://here/ws{path}",
                sock=small_socket(url),
                # A message lies ready; the thread of the connection reads no further.
                max_queue=1,
                ping_interval=None,
                compression=None,
                proxy=None,
            )
        )

    def read(self):
        """Everything, now."""
        documents = [json.loads(message) for message in self.connection]
        return [document for document in documents if document["type"] != "heartbeat"]

    def close(self):
        self._stack.close()


@contextlib.contextmanager
def serving(folder):
    """A job's log behind a real server of its own."""
    log = JobLog(folder)
    source = JobSource(lambda _: log, lambda _: "running", lambda _: folder)
    hub = Hub(source)

    async def stream(request):
        whole = request.query_params.get("coalesce") == "false"
        return EventStream(hub.follow("a", "ada", Follow(is_coalesced=not whole)))

    async def watch(websocket):
        whole = websocket.query_params.get("coalesce") == "false"
        await websocket.accept()
        await serve_websocket(websocket, hub.follow("a", "ada", Follow(is_coalesced=not whole)), 0)
        await websocket.close()

    @contextlib.asynccontextmanager
    async def lifespan(_):
        await hub.start()
        yield
        await hub.stop()

    routes = [Route("/events", stream), WebSocketRoute("/ws/events", watch)]
    app = Starlette(routes=routes, lifespan=lifespan)
    config = uvicorn.Config(app, port=0, log_level="error", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    listening = server.servers[0].sockets[0]
    # Accepted connections inherit it. Left alone, Linux lets what waits to be sent grow to
    # megabytes, and how many events had left before nobody read would be a matter of luck.
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 32768)
    try:
        yield log, hub, f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)


@pytest.mark.parametrize("kind", [Stalled, StalledWebSocket])
def test_who_stops_reading_keeps_nobody_waiting_and_misses_nothing(tmp_path, kind):
    with serving(tmp_path) as (log, hub, url):
        coalesced, whole = kind(url, "/events"), kind(url, "/events?coalesce=false")
        heard = []

        def listen():
            with httpx2.stream("GET", f"{url}/events", timeout=60) as stream:
                heard.extend(line for line in stream.iter_lines() if line.startswith("data: "))

        listener = threading.Thread(target=listen)
        listener.start()
        while hub.n_streams < 3:
            time.sleep(0.01)
        most = 0
        for number in range(N_EVENTS):
            log.append(ProgressEvent(stage="tiles", done=number, total=N_EVENTS))
            log.append(LogEvent(message=f"{number} {WORDS}"))
            log.append(PREVIEW)
            hub.events_added("a")
            most = max(most, *(len(channel._tail) for channel in hub._channels.values()))
        log.append(StateEvent(state="finished", attempt=1))
        hub.events_added("a")
        # The job is done, and whoever reads has heard so, while two have not read a byte.
        listener.join(120)
        assert not listener.is_alive()
        assert json.loads(heard[-1][6:])["state"] == "finished"
        assert hub.n_streams == 2
        assert most <= 2 * channel_module._KEPT + channel_module._READ
        told, less = whole.read(), coalesced.read()
        assert [event["number"] for event in told] == list(range(1, 3 * N_EVENTS + 2))
        kinds = Counter(event["type"] for event in less)
        assert kinds["log"] == N_EVENTS
        # Of progress and of previews that paint over each other, the newest of what it was behind.
        assert 0 < kinds["progress"] < N_EVENTS / 10
        assert 0 < kinds["preview"] < N_EVENTS / 10
        assert less[-1] == told[-1]
        coalesced.close()
        whole.close()


def follow(client, job, **params):
    headers = {"Accept": "text/event-stream"}
    with client.stream("GET", f"/jobs/{job}/events", headers=headers, params=params) as stream:
        for line in stream.iter_lines():
            if line.startswith("data: "):
                yield json.loads(line[6:])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slow")
    made = simulate_tomogram((64, 96, 96), seed=1)
    volume = lm.Volume.from_array(made.intensity, spacing=(1.0, 1.0, 1.0), unit="nm")
    lm.save(volume, folder / "tomogram.mrc")
    flags = ("--allow-root", str(folder), "--gpus", "none", "--worker-threads", "1")
    with (
        run_server(folder / "data", *flags) as server,
        httpx2.Client(
            base_url=f"{server.url}/api/v1", headers=server.headers, timeout=120
        ) as client,
    ):
        yield server, client, folder


def test_previews_of_a_real_job_end_as_its_labels_though_others_do_not_read(site):
    server, client, folder = site
    request = {"input": {"path": str(folder / "tomogram.mrc")}, "model": "membrane-3d"}
    job = client.post("/jobs", json={"request": request}).json()["id"]
    path = f"/api/v1/jobs/{job}/events?previews=labels"
    stalled = [Stalled(server.url, path, server.headers) for _ in range(20)]
    canvas = np.full((64, 96, 96), 255, np.uint8)
    kinds = []
    for event in follow(client, job, previews="labels"):
        kinds.append(event["type"])
        if event["type"] == "preview":
            delta = LabelsDelta.model_validate(event["labels"])
            labels = decode_labels(delta)
            for axis, factor in enumerate(delta.factors):
                labels = labels.repeat(int(factor), axis)
            start, stop = event["box_start"], event["box_stop"]
            canvas[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))] = labels
    assert (kinds[0], kinds[-1]) == ("state", "state")
    assert kinds.count("preview") >= 2
    run = lm.open_run(folder / "data" / "jobs" / job / "run")
    assert run.manifest.status == "finished"
    assert np.array_equal(canvas, run.labels.load())
    assert canvas.any()
    for one in stalled:
        assert one.read()[-1]["state"] == "finished"
        one.close()
