"""Bodies that come whole, are cut, fall silent, or are taken over by the next request."""

import asyncio
import errno
import hashlib
import itertools
import random
from concurrent.futures import ThreadPoolExecutor

import pytest

from lamella.core.errors import ConflictError
from lamella.server.problems import ProtocolError
from lamella.server.uploads.file import (
    DATA_NAME,
    RunningHash,
    UploadFile,
    committed_offset,
    create_folder,
)
from lamella.server.uploads.locks import Hold, UploadLocks
from lamella.server.uploads.receive import BodyReceiver


@pytest.fixture
def threads():
    with ThreadPoolExecutor(2) as executor:
        yield executor


def body_of(*messages):
    """A `receive` that gives messages and then waits for ever."""
    left = list(messages)

    async def receive():
        if left:
            return left.pop(0)
        await asyncio.Event().wait()
        raise AssertionError

    return receive


def piece(body, more=True):
    return {"type": "http.request", "body": body, "more_body": more}


CUT = {"type": "http.disconnect"}


def run(receiver, folder, messages, hold=None, limit=100, check=None):
    async def whole():
        with UploadFile(folder) as file:
            got = await receiver(file, body_of(*messages), hold or Hold(), limit, check)
            return got, file.commit()

    return asyncio.run(whole())


@pytest.fixture
def receiver(threads):
    async def receive(file, body, hold, limit, check, silence_s=60.0):
        made = BodyReceiver(threads, threads, silence_s)
        return await made.receive(body, file, hold, limit, check)

    return receive


def test_a_whole_body(receiver, folder):
    check = hashlib.sha1(usedforsecurity=False)
    got, offset = run(receiver, folder, [piece(b"abc"), piece(b"de", False)], check=check)
    assert (got.end, got.n_bytes, offset) == ("whole", 5, 5)
    assert (folder / DATA_NAME).read_bytes() == b"abcde"
    assert check.hexdigest() == hashlib.sha1(b"abcde", usedforsecurity=False).hexdigest()


def test_a_cut_body_keeps_what_came(receiver, folder):
    got, offset = run(receiver, folder, [piece(b"abc"), CUT])
    assert (got.end, offset) == ("cut", 3)


def test_more_than_was_announced_is_refused(receiver, folder):
    with pytest.raises(ProtocolError) as refused:
        run(receiver, folder, [piece(b"abc"), piece(b"defg")], limit=5)
    assert refused.value.status == 413


def test_a_silent_connection_is_given_up(threads, folder):
    async def whole():
        with UploadFile(folder) as file:
            made = BodyReceiver(threads, threads, silence_s=0.05)
            got = await made.receive(body_of(piece(b"abc")), file, Hold(), 100)
            return got, file.commit()

    got, offset = asyncio.run(whole())
    assert (got.end, offset) == ("silent", 3)


def test_the_next_request_takes_over_from_a_dead_connection(threads, folder):
    """The first body never ends; the second request does not wait for it."""

    async def send(locks, receiver, messages, seen):
        async with locks.hold("u") as hold:
            with UploadFile(folder) as file:
                seen.append(file.offset)
                got = await receiver.receive(body_of(*messages), file, hold, 100)
                file.commit()
                return got.end

    async def whole():
        locks, receiver = UploadLocks(patience_s=5), BodyReceiver(threads, threads)
        seen: list[int] = []
        dead = asyncio.create_task(send(locks, receiver, [piece(b"abc")], seen))
        await asyncio.sleep(0.05)
        assert locks.is_held("u")
        alive = asyncio.create_task(send(locks, receiver, [piece(b"de", False)], seen))
        ends = await asyncio.wait_for(asyncio.gather(dead, alive), 30)
        assert not locks.is_held("u")
        return ends, seen

    ends, seen = asyncio.run(whole())
    assert ends == ["interrupted", "whole"]
    assert seen == [0, 3]  # what the dead one had sent was kept
    assert (folder / DATA_NAME).read_bytes() == b"abcde"


def test_many_takeovers_in_a_row_leave_one_writer(threads, folder):
    async def whole():
        locks, receiver = UploadLocks(patience_s=5), BodyReceiver(threads, threads)
        n_inside = 0

        async def send():
            nonlocal n_inside
            async with locks.hold("u") as hold:
                n_inside += 1
                assert n_inside == 1
                with UploadFile(folder) as file:
                    await receiver.receive(body_of(piece(b"x")), file, hold, 100)
                    file.commit()
                n_inside -= 1

        tasks = [asyncio.create_task(send()) for _ in range(8)]
        await asyncio.sleep(0.2)
        async with locks.hold("u"):
            pass
        await asyncio.wait_for(asyncio.gather(*tasks), 30)
        return locks

    locks = asyncio.run(whole())
    assert not locks.is_held("u")


def test_a_request_that_will_not_end_is_a_conflict(threads):
    async def whole():
        locks = UploadLocks(patience_s=0.05)
        async with locks.hold("u"):
            with pytest.raises(ConflictError, match="still being written"):
                async with locks.hold("u"):
                    pass
        async with locks.hold("u"):
            pass

    asyncio.run(whole())


def test_cancelling_a_request_waits_for_its_write(threads, folder):
    """A lock is never given back while a thread still writes."""

    class Slow(UploadFile):
        n_writing = 0

        def append(self, pieces):
            import time

            Slow.n_writing += 1
            time.sleep(0.2)
            super().append(pieces)
            Slow.n_writing -= 1

    async def whole():
        with Slow(folder) as file:
            big = piece(bytes(5 * 2**20))
            receiver = BodyReceiver(threads, threads)
            task = asyncio.create_task(receiver.receive(body_of(big, big), file, Hold(), 2**30))
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert Slow.n_writing == 0
            return file.end

    assert asyncio.run(whole()) == 10 * 2**20


def big_body(n):
    return [*(piece(bytes(5 * 2**20)) for _ in range(n)), piece(b"", False)]


def test_a_long_body_becomes_safe_as_it_comes(threads, folder, monkeypatch):
    """A crash in the middle of one huge request does not cost all of it."""
    monkeypatch.setattr("lamella.server.uploads.disk._COMMIT_BYTES", 2**20)
    offsets = []

    async def whole():
        messages = big_body(6)

        async def receive():
            await asyncio.sleep(0.03)
            offsets.append(committed_offset(folder))
            return messages.pop(0)

        with UploadFile(folder) as file:
            await BodyReceiver(threads, threads).receive(receive, file, Hold(), 2**30)
            assert file.end == 30 * 2**20
            file.commit()

    asyncio.run(whole())
    assert offsets == sorted(offsets)
    assert 0 < offsets[-1] <= 30 * 2**20
    assert committed_offset(folder) == 30 * 2**20


def test_a_disk_that_fails_behind_the_write_is_not_overlooked(threads, folder, monkeypatch):
    """The system tells of a lost write once, to whoever syncs first."""
    n_failed = 0

    def fail(_handle):
        nonlocal n_failed
        n_failed += 1
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("lamella.server.uploads.disk._COMMIT_BYTES", 2**20)
    monkeypatch.setattr("lamella.server.uploads.file.sync", fail)

    async def whole():
        with UploadFile(folder) as file:
            body = body_of(*big_body(2))
            with pytest.raises(OSError, match="Input/output"):
                await BodyReceiver(threads, threads).receive(body, file, Hold(), 2**30)

    asyncio.run(whole())
    assert n_failed
    assert committed_offset(folder) == 0


@pytest.mark.parametrize("n_threads", [1, 3])
def test_many_bodies_at_once_share_threads_and_keep_their_order(tmp_path, monkeypatch, n_threads):
    """Batches of a body are written in order, also where its turns alternate with others'."""
    monkeypatch.setattr("lamella.server.uploads.receive._BATCH_BYTES", 1)
    monkeypatch.setattr("lamella.server.uploads.receive._LEAST_BATCH_BYTES", 1)
    bodies = [random.Random(n).randbytes(997) for n in range(5)]

    async def send(receiver, body, folder):
        pieces = [piece(body[at : at + 7], at + 7 < len(body)) for at in range(0, len(body), 7)]
        running = RunningHash()
        with UploadFile(folder, running) as file:
            got = await receiver.receive(body_of(*pieces), file, Hold(), len(body))
            # All threads have let go of the file: nothing is written any more.
            assert (got.end, got.n_bytes, file.end) == ("whole", len(body), len(body))
            assert file.commit() == len(body)
        return running.hexdigest()

    async def whole():
        with ThreadPoolExecutor(n_threads) as executor:
            receiver = BodyReceiver(executor, executor)
            return await asyncio.gather(
                *(
                    send(receiver, body, folder)
                    for body, folder in zip(bodies, folders, strict=True)
                )
            )

    folders = [tmp_path / str(n) for n in range(len(bodies))]
    for folder in folders:
        create_folder(folder)
    hashes = asyncio.run(whole())
    assert [(folder / DATA_NAME).read_bytes() for folder in folders] == bodies
    assert hashes == [hashlib.sha256(body).hexdigest() for body in bodies]


def test_a_write_that_fails_ends_the_body_at_once(threads, folder, monkeypatch):
    """What was written before stays as it was; what came behind is not written past the gap."""
    monkeypatch.setattr("lamella.server.uploads.receive._BATCH_BYTES", 1)
    monkeypatch.setattr("lamella.server.uploads.receive._LEAST_BATCH_BYTES", 1)
    n_written = itertools.count()

    async def whole():
        with UploadFile(folder) as file:
            append = file.append

            def failing(pieces):
                if next(n_written) == 3:
                    raise OSError(errno.ENOSPC, "no space left")
                append(pieces)

            file.append = failing
            pieces = [piece(bytes([n]) * 5) for n in range(40)]
            with pytest.raises(OSError, match="no space left"):
                await BodyReceiver(threads, threads).receive(body_of(*pieces), file, Hold(), 1000)
            return file.commit()

    assert asyncio.run(whole()) == 15
    assert (folder / DATA_NAME).read_bytes() == b"".join(bytes([n]) * 5 for n in range(3))
