"""Requests over real sockets: bodies that are taken, left, given up, and what follows them."""

import asyncio
import random
import socket
import threading
import time

import pytest
import uvicorn
from hypothesis import given, settings
from hypothesis import strategies as st

from lamella.server.body import socket_body
from lamella.server.connection import Connection

BIG = 600_000


async def answer(send, status, body):
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def usual_body(receive):
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body


async def read_taken(taken, most=None):
    """The body, read from its socket, or its first bytes."""
    loop = asyncio.get_running_loop()
    body, taken.first = taken.first, b""
    while taken.n_left and (most is None or len(body) < most):
        block = await loop.sock_recv(taken.socket, min(taken.n_left, 65_536))
        if not block:
            break
        body += block
        taken.n_left -= len(block)
    return body


async def application(scope, receive, send):
    """/take reads the socket, /some a part of it, /leave nothing, others as usual."""
    if scope["type"] != "http":
        return
    found = socket_body(scope)
    path = scope["path"]
    if path == "/leave":
        await answer(send, 401, b"no")
        return
    taken = None
    if found is not None and path in ("/take", "/some"):
        if scope["query_string"] == b"late":
            await receive()
        taken = found.take()
    if taken is None:
        body = await usual_body(receive)
        way = b"usual"
    else:
        body = await read_taken(taken, 1000 if path == "/some" else None)
        taken.close()
        way = b"taken"
    total = sum(body) if path != "/some" else 0
    await answer(send, 200, b"%s %d %d" % (way, len(body) if path != "/some" else 0, total))


@pytest.fixture(scope="module", params=["asyncio", "uvloop"])
def port(request):
    if request.param == "uvloop":
        pytest.importorskip("uvloop")
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        application, http=Connection, loop=request.param, lifespan="off", log_config=None
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield listener.getsockname()[1]
    server.should_exit = True
    thread.join()


class Client:
    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self.file = self.socket.makefile("rb")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()
        self.socket.close()

    def answer(self):
        status = int(self.file.readline().split()[1])
        n_bytes = 0
        while line := self.file.readline().strip():
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                n_bytes = int(value)
        return status, self.file.read(n_bytes)


def request(path, body, *headers):
    lines = [f"PATCH {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def expected(way, body):
    return 200, b"%s %d %d" % (way, len(body), sum(body))


@pytest.mark.parametrize("path", ["/take", "/take?late", "/usual"])
def test_a_large_body_comes_whole_and_the_connection_goes_on(port, path):
    body = random.Random(1).randbytes(BIG)
    way = b"usual" if path == "/usual" else b"taken"
    with Client(port) as client:
        for _ in range(3):
            client.socket.sendall(request(path, body))
            status, told = client.answer()
            if path == "/take?late":  # what was received before is not told here
                assert (status, told[:5]) == (200, way)
            else:
                assert (status, told) == expected(way, body)


def test_a_small_body_comes_as_usual(port):
    with Client(port) as client:
        client.socket.sendall(request("/take", b"abc"))
        assert client.answer() == expected(b"usual", b"abc")


def test_a_body_of_untold_size_comes_as_usual(port):
    with Client(port) as client:
        head = "PATCH /take HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        chunk = b"a0000\r\n" + b"x" * 0xA0000 + b"\r\n"
        client.socket.sendall(head.encode() + chunk + b"0\r\n\r\n")
        assert client.answer() == expected(b"usual", b"x" * 0xA0000)


def test_the_next_request_may_come_in_one_piece_with_the_body(port):
    """Pipelining: what follows the body is not swallowed."""
    body = random.Random(2).randbytes(BIG)
    with Client(port) as client:
        client.socket.sendall(request("/take", body) + request("/take", b"abc"))
        assert client.answer() == expected(b"taken", body)
        assert client.answer() == expected(b"usual", b"abc")


def test_a_large_body_behind_another_request_comes_as_usual(port):
    """While an answer is owed, nobody but the event loop reads."""
    body = random.Random(3).randbytes(BIG)
    with Client(port) as client:
        client.socket.sendall(request("/usual", b"abc") + request("/take", body))
        assert client.answer() == expected(b"usual", b"abc")
        status, told = client.answer()
        assert (status, told[5:]) == (200, expected(b"", body)[1])


@pytest.mark.parametrize(("path", "status"), [("/some", 200), ("/leave", 401)])
def test_what_nobody_wants_is_skipped(port, path, status):
    """A body that is given up, or never read, does not become the next request."""
    body = b"GET /usual HTTP/1.1\r\nHost: x\r\n\r\n" * (BIG // 20)
    with Client(port) as client:
        for _ in range(2):
            client.socket.sendall(request(path, body))
            assert client.answer()[0] == status
        client.socket.sendall(request("/take", b"abc"))
        assert client.answer() == expected(b"usual", b"abc")


def test_a_client_that_waits_to_be_asked_is_asked(port):
    body = random.Random(4).randbytes(BIG)
    head, _, _ = request("/take", body, "Expect: 100-continue").partition(b"\r\n\r\n")
    with Client(port) as client:
        client.socket.sendall(head + b"\r\n\r\n")
        assert client.file.readline() == b"HTTP/1.1 100 Continue\r\n"
        assert client.file.readline() == b"\r\n"
        client.socket.sendall(body)
        assert client.answer() == expected(b"taken", body)


def test_a_client_that_leaves_harms_nobody(port):
    with Client(port) as client:
        client.socket.sendall(request("/take", bytes(BIG))[:-1000])
    with Client(port) as client:
        client.socket.sendall(request("/take", bytes(BIG)))
        assert client.answer() == expected(b"taken", bytes(BIG))


@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**16),
    sizes=st.lists(st.sampled_from([0, 10, 70_000, BIG, 2 * BIG]), min_size=1, max_size=5),
    paths=st.lists(st.sampled_from(["/take", "/usual", "/some", "/leave"]), min_size=5, max_size=5),
    piece=st.sampled_from([1000, 65_536, 10**7]),
)
def test_any_requests_on_one_connection_are_answered_in_order(port, seed, sizes, paths, piece):
    bodies = [random.Random(seed + n).randbytes(size) for n, size in enumerate(sizes)]
    with Client(port) as client:
        for path, body in zip(paths, bodies, strict=False):
            whole = request(path, body)
            for start in range(0, len(whole), piece):
                client.socket.sendall(whole[start : start + piece])
            status, told = client.answer()
            if path == "/leave":
                assert status == 401
            elif path == "/some":
                assert status == 200
            else:
                way = b"taken" if path == "/take" and len(body) >= 2**19 else b"usual"
                # A body that has come with its headers is not taken any more.
                assert (status, told[5:]) == (200, expected(b"", body)[1])
                assert told[:5] in (way, b"usual")
