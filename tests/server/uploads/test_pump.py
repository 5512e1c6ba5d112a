"""Bodies that a thread reads from their socket: whole, cut, silent, taken over, checked."""

import asyncio
import contextlib
import errno
import fcntl
import hashlib
import os
import random
import socket
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.server.body import TakenBody
from lamella.server.uploads import blocks as blocks_module
from lamella.server.uploads import file as file_module
from lamella.server.uploads import pump as pump_module
from lamella.server.uploads.file import (
    ALIGNMENT,
    DATA_NAME,
    RunningHash,
    UploadFile,
    committed_offset,
    create_folder,
)
from lamella.server.uploads.locks import Hold, UploadLocks
from lamella.server.uploads.receive import BodyReceiver
from lamella.testing.executor import wait_for


class Owner:
    """Stands where the connection is: what it is told when a body ends."""

    n_left = None

    def give_back(self, n_left):
        self.n_left = n_left


class Sender:
    """The other end of a connection; what is sent lies in its buffer until it is read."""

    opened: ClassVar[list[socket.socket]] = []

    def __init__(self, n_bytes, first=b""):
        self.socket, inside = socket.socketpair()
        self.opened += [self.socket, inside]
        inside.setblocking(False)
        self._inside = inside
        self.owner = Owner()
        self.body = TakenBody(self.owner, inside, first, n_bytes - len(first))

    @property
    def is_read(self):
        """Whether nothing of what was sent waits to be read."""
        with contextlib.suppress(BlockingIOError):
            return not self._inside.recv(1, socket.MSG_PEEK)
        return True

    def send(self, *pieces, end=None):
        """Send in a thread of its own, as a client does."""

        def work():
            for piece in pieces:
                self.socket.sendall(piece)
            if end is not None:
                end(self.socket)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        return thread


@pytest.fixture(autouse=True)
def _closed():
    yield
    while Sender.opened:
        Sender.opened.pop().close()


@pytest.fixture
def receiver():
    with ThreadPoolExecutor(2) as writers, ThreadPoolExecutor(2) as readers:
        yield BodyReceiver(writers, readers, silence_s=5.0)


@pytest.fixture(params=["direct", "cached", "refused"])
def way(request, monkeypatch):
    """How bytes get to the file: past the cache, through it, or past it if the disk allowed."""
    # Blocks and what goes past the cache as small as they can be: all that is sent meets both.
    monkeypatch.setattr(blocks_module, "BLOCK_BYTES", 4 * ALIGNMENT)
    monkeypatch.setattr(file_module, "_LEAST_DIRECT_BYTES", ALIGNMENT)
    if request.param == "cached":
        monkeypatch.setattr(file_module, "_open_direct", lambda path: None)
    if request.param == "refused":
        monkeypatch.setattr(file_module, "_open_direct", lambda path: os.open(path, os.O_WRONLY))
        write_all = file_module._write_all

        def refuse(handle, pieces, start):
            # As a disk with larger sectors: some of them are there already.
            if is_direct(handle):
                write_all(handle, [pieces[0][:ALIGNMENT]], start)
                raise OSError(errno.EINVAL, "Invalid argument")
            write_all(handle, pieces, start)

        monkeypatch.setattr(file_module, "_write_all", refuse)
    return request.param


def is_direct(handle):
    """Whether it can only be written, as the one that writes past the cache."""
    return fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY


def receive(receiver, folder, sender, check=None, running=None):
    async def whole():
        with UploadFile(folder, running) as file:
            got = await receiver.receive(sender.body, file, Hold(), 2**40, check)
            return got, file.commit()

    return asyncio.run(whole())


def hash_of(running, folder, size):
    running.catch_up(folder / DATA_NAME, lambda: size)
    return running.hexdigest()


@pytest.mark.parametrize("is_checked", [False, True])
def test_a_whole_body(receiver, folder, way, is_checked):
    body = random.Random(1).randbytes(5_000_011)
    sender = Sender(len(body), body[:77])
    sender.send(body[77:])
    check = hashlib.sha1(usedforsecurity=False) if is_checked else None
    running = RunningHash()
    got, offset = receive(receiver, folder, sender, check, running)
    assert (got.end, got.n_bytes, offset) == ("whole", len(body), len(body))
    assert (folder / DATA_NAME).read_bytes() == body
    assert hash_of(running, folder, offset) == hashlib.sha256(body).hexdigest()
    if check is not None:
        assert check.digest() == hashlib.sha1(body, usedforsecurity=False).digest()
    assert sender.owner.n_left == 0


def test_a_hash_that_begins_anew_follows_while_bytes_come(receiver, folder, way):
    """After a restart: what lies there is read while more comes, and nobody asks for it."""
    old, new = random.Random(6).randbytes(900_000), random.Random(7).randbytes(900_000)
    with UploadFile(folder) as file:
        file.write([old])
        file.commit()
    running = RunningHash()
    sender = Sender(len(new))
    sender.send(new)
    receive(receiver, folder, sender, running=running)
    wait_for(lambda: running.position == len(old + new), "the hash")
    assert running.hexdigest() == hashlib.sha256(old + new).hexdigest()


def test_what_follows_the_body_stays_in_the_socket(receiver, folder, way):
    sender = Sender(1000)
    sender.send(bytes(1000) + b"GET / HTTP/1.1\r\n")
    with socket.fromfd(sender.body.socket.fileno(), socket.AF_UNIX, socket.SOCK_STREAM) as same:
        receive(receiver, folder, sender)
        assert same.recv(100) == b"GET / HTTP/1.1\r\n"
    assert (folder / DATA_NAME).read_bytes() == bytes(1000)


def reset(one):
    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    one.close()


@pytest.mark.parametrize("end", [socket.socket.close, reset])
def test_a_cut_body_keeps_what_came(receiver, folder, way, end):
    sender = Sender(1000, b"ab")
    sender.send(b"cde", end=end)
    got, offset = receive(receiver, folder, sender)
    assert (got.end, offset) == ("cut", 5)
    assert (folder / DATA_NAME).read_bytes() == b"abcde"
    assert sender.owner.n_left == 995


def test_a_reset_over_tcp_is_a_cut(receiver, folder, way):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        inside, _ = listener.accept()
    inside.setblocking(False)
    body = TakenBody(Owner(), inside, b"", 100)
    reset(client)
    sender = Sender(0)
    sender.body = body
    got, offset = receive(receiver, folder, sender)
    assert (got.end, offset) == ("cut", 0)


def test_a_silent_connection_is_given_up(folder, way):
    sender = Sender(1000)
    sender.send(b"abc")
    with ThreadPoolExecutor(1) as writers, ThreadPoolExecutor(1) as readers:
        got, offset = receive(BodyReceiver(writers, readers, silence_s=0.05), folder, sender)
    assert (got.end, offset) == ("silent", 3)


def test_more_bodies_than_threads_that_all_wait_for_their_clients(tmp_path, way):
    """A slow client holds no thread: with one thread, the last of five is served first."""

    async def whole():
        with ThreadPoolExecutor(1) as writers, ThreadPoolExecutor(1) as readers:
            receiver = BodyReceiver(writers, readers)
            senders, tasks, files = [], [], []
            for number in range(5):
                create_folder(tmp_path / str(number))
                files.append(UploadFile(tmp_path / str(number)))
                senders.append(Sender(6))
                body = receiver.receive(senders[-1].body, files[-1], Hold(), 6)
                tasks.append(asyncio.create_task(body))
            for sender in senders:
                sender.socket.sendall(b"abc")
            await asyncio.sleep(0.1)
            for sender, task in zip(reversed(senders), reversed(tasks), strict=True):
                sender.socket.sendall(b"def")
                got = await asyncio.wait_for(task, 30)
                assert got.end == "whole"
            for file in files:
                file.commit()
                file.close()

    asyncio.run(whole())
    for number in range(5):
        assert (tmp_path / str(number) / DATA_NAME).read_bytes() == b"abcdef"


def test_bodies_take_turns(tmp_path, way, monkeypatch):
    """A fast client does not keep the only thread to itself."""
    monkeypatch.setattr(pump_module, "_TURN_BYTES", 2**16)
    bodies = [random.Random(n).randbytes(10**6 + n) for n in range(4)]
    ended = []

    async def send(receiver, number):
        create_folder(tmp_path / str(number))
        sender = Sender(len(bodies[number]))
        sender.send(bodies[number])
        running = RunningHash()
        with UploadFile(tmp_path / str(number), running) as file:
            got = await receiver.receive(sender.body, file, Hold(), 2**30)
            ended.append(file.end)
            file.commit()
        assert got.end == "whole"
        return hash_of(running, tmp_path / str(number), len(bodies[number]))

    async def whole():
        with ThreadPoolExecutor(1) as writers, ThreadPoolExecutor(1) as readers:
            receiver = BodyReceiver(writers, readers)
            return await asyncio.gather(*(send(receiver, number) for number in range(4)))

    hashes = asyncio.run(whole())
    assert hashes == [hashlib.sha256(body).hexdigest() for body in bodies]
    for number, body in enumerate(bodies):
        assert (tmp_path / str(number) / DATA_NAME).read_bytes() == body


def test_the_next_request_takes_over_from_one_that_still_sends(folder, way):
    """The newest request wins, and what the one before had sent is kept."""

    async def send(locks, receiver, sender, seen):
        async with locks.hold("u") as hold:
            with UploadFile(folder) as file:
                seen.append(file.offset)
                got = await receiver.receive(sender.body, file, hold, 2**30)
                file.commit()
                return got.end

    async def whole():
        with ThreadPoolExecutor(2) as writers, ThreadPoolExecutor(2) as readers:
            locks, receiver = UploadLocks(patience_s=5), BodyReceiver(writers, readers)
            seen: list[int] = []
            dead, alive = Sender(10), Sender(2)
            dead.socket.sendall(b"abc")
            alive.socket.sendall(b"de")
            first = asyncio.create_task(send(locks, receiver, dead, seen))
            while not dead.is_read:
                await asyncio.sleep(0.01)
            second = asyncio.create_task(send(locks, receiver, alive, seen))
            ends = await asyncio.wait_for(asyncio.gather(first, second), 30)
            return ends, seen, dead.owner.n_left

    assert asyncio.run(whole()) == (["interrupted", "whole"], [0, 3], 7)
    assert (folder / DATA_NAME).read_bytes() == b"abcde"


def test_a_disk_that_is_full_is_told_and_nothing_of_it_is_safe(receiver, folder, monkeypatch):
    def fail(self, pieces):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(UploadFile, "append", fail)
    sender = Sender(10)
    sender.send(b"0123456789")
    with pytest.raises(OSError, match="No space"):
        receive(receiver, folder, sender)
    assert committed_offset(folder) == 0
    assert sender.body.socket.fileno() == -1
    # Nobody keeps memory that others wait for.
    pool = receiver._blocks
    share = blocks_module.Share()
    blocks = [pool.take(share, 1) for _ in range(6)]
    assert all(blocks)
    others = [pool.take(blocks_module.Share(), 1) for _ in range(10)]
    assert all(others)


def test_the_hash_of_a_cut_and_discarded_body_is_that_of_the_kept_bytes(receiver, folder, way):
    """A thread may still hash what is thrown away."""
    kept, thrown = random.Random(2).randbytes(700_000), random.Random(3).randbytes(900_000)
    running = RunningHash()

    async def whole():
        for body, keep in [(kept, True), (thrown, False), (thrown, False)]:
            sender = Sender(len(body))
            sender.send(body)
            with UploadFile(folder, running) as file:
                await receiver.receive(sender.body, file, Hold(), 2**30)
                if keep:
                    file.commit()
                else:
                    file.discard()

    asyncio.run(whole())
    assert (folder / DATA_NAME).read_bytes() == kept
    assert hash_of(running, folder, len(kept)) == hashlib.sha256(kept).hexdigest()


@given(
    sizes=st.lists(st.integers(0, 40_000), min_size=1, max_size=8),
    first=st.integers(0, 3000),
    n_pages=st.sampled_from([1, 2, 1024]),
    seed=st.integers(0, 2**16),
)
def test_pieces_of_any_size_make_the_same_file(tmp_path_factory, sizes, first, n_pages, seed):
    """Moved = sent, however it came."""
    pieces = [random.Random(seed + n).randbytes(size) for n, size in enumerate(sizes)]
    body = random.Random(seed).randbytes(first) + b"".join(pieces) + b"."
    folder = tmp_path_factory.mktemp("pump") / "upload"
    create_folder(folder)
    sender = Sender(len(body), body[:first])
    sender.send(*pieces, b".")
    running = RunningHash()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks_module, "BLOCK_BYTES", n_pages * ALIGNMENT)
        patch.setattr(file_module, "_LEAST_DIRECT_BYTES", ALIGNMENT)
        with ThreadPoolExecutor(1) as writers, ThreadPoolExecutor(1) as readers:
            got, offset = receive(BodyReceiver(writers, readers), folder, sender, None, running)
    while Sender.opened:
        Sender.opened.pop().close()
    assert (got.end, offset) == ("whole", len(body))
    assert (folder / DATA_NAME).read_bytes() == body
    assert hash_of(running, folder, offset) == hashlib.sha256(body).hexdigest()


def test_bodies_wait_for_memory_that_others_hold(folder, way):
    """With all blocks lent, a body comes to nothing until one is back, and then whole."""
    body = random.Random(8).randbytes(200_000)
    sender = Sender(len(body))
    sender.send(body)
    with ThreadPoolExecutor(1) as writers, ThreadPoolExecutor(1) as readers:
        receiver = BodyReceiver(writers, readers)
        receiver._blocks = pool = blocks_module.BlockPool(1)
        held = [pool.take(blocks_module.Share(), 0)]
        timer = threading.Timer(0.2, held.clear)
        began = time.monotonic()
        timer.start()
        got, _ = receive(receiver, folder, sender, running=(running := RunningHash()))
        assert time.monotonic() - began > 0.15
    assert got.end == "whole"
    assert (folder / DATA_NAME).read_bytes() == body
    assert hash_of(running, folder, len(body)) == hashlib.sha256(body).hexdigest()


def test_the_hash_is_of_what_came_though_it_was_busy_elsewhere(folder, way):
    """More comes than blocks can wait for: it is taken as the hash gets on, and stays in order."""
    body = random.Random(9).randbytes(40 * ALIGNMENT + 5)
    sender = Sender(len(body))
    sender.send(body)
    running = RunningHash()
    with ThreadPoolExecutor(3) as writers, ThreadPoolExecutor(1) as readers:
        with running._lock:
            task = writers.submit(
                receive, BodyReceiver(writers, readers), folder, sender, None, running
            )
            time.sleep(0.2)
            assert not task.done()
        assert task.result(30)[0].end == "whole"
    assert (folder / DATA_NAME).read_bytes() == body
    assert hash_of(running, folder, len(body)) == hashlib.sha256(body).hexdigest()
