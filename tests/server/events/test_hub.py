"""The hub: replay from any number, one end, every pace, many listeners for little."""

import asyncio
import json
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.core.errors import TooManyRequestsError
from lamella.jobs.log import JobLog
from lamella.server.events import channel as channel_module
from lamella.server.events.hub import Follow, Hub, JobSource
from lamella.wire.event import LogEvent, ProgressEvent, StateEvent


class Jobs:
    """One job in a folder; counts how often its log is read."""

    def __init__(self, folder):
        self.folder = folder
        self.log = JobLog(folder)
        self.state = "running"
        self.n_reads = 0
        read = self.log.read

        def counted(after=0, limit=None):
            self.n_reads += 1
            return read(after, limit)

        self.log.read = counted
        self.hub = Hub(
            JobSource(
                log_of=lambda _: self.log,
                state_of=lambda _: self.state,
                folder_of=lambda _: self.folder,
            )
        )

    def say(self, event):
        self.log.append(event)
        self.hub.events_added("a")

    def end(self, state="finished"):
        self.state = state
        self.say(StateEvent(state=state, attempt=1))
        self.hub.job_changed("a")

    async def all(self, **how):
        found = []
        async for piece in self.hub.follow("a", "ada", Follow(**how)):
            found += piece
        return [entry.number for entry in found]


@pytest.fixture
def jobs(tmp_path):
    return Jobs(tmp_path)


def progress(done, stage="tiles"):
    return ProgressEvent(stage=stage, done=done, total=100)


@given(st.integers(0, 12), st.integers(0, 14), st.integers(2, 5))
def test_replay_from_any_number_is_the_suffix_of_the_whole(tmp_path_factory, n, after, kept):
    jobs = Jobs(tmp_path_factory.mktemp("job"))
    for number in range(n):
        jobs.say(progress(number))
    jobs.end()

    async def run():
        await jobs.hub.start()
        with pytest.MonkeyPatch.context() as patch:
            # So that what is asked for lies in memory, on disk, and across.
            patch.setattr(channel_module, "_KEPT", kept)
            patch.setattr(channel_module, "_READ", 3)
            whole = await jobs.all(is_coalesced=False)
            part = await jobs.all(is_coalesced=False, after=after)
        await jobs.hub.stop()
        return whole, part

    whole, part = asyncio.run(run())
    assert whole == list(range(1, n + 2))
    assert part == [number for number in whole if number > after]


def test_events_come_while_they_happen_and_the_end_ends_it(jobs):
    async def run():
        await jobs.hub.start()
        listener = asyncio.create_task(jobs.all(is_coalesced=False))

        def work():
            for number in range(50):
                jobs.say(progress(number))
            jobs.end()

        thread = threading.Thread(target=work)
        thread.start()
        numbers = await asyncio.wait_for(listener, 20)
        thread.join()
        await jobs.hub.stop()
        return numbers

    assert asyncio.run(run()) == list(range(1, 52))


def test_a_slow_listener_hears_less_and_the_end(jobs):
    async def run():
        await jobs.hub.start()
        jobs.say(LogEvent(message="hello"))
        heard = []
        async for piece in jobs.hub.follow("a", "ada", Follow()):
            heard += piece
            if len(heard) == 1:
                # While it does not pull, 300 events come.
                for number in range(100):
                    jobs.say(progress(number, "one"))
                    jobs.say(progress(number, "two"))
                    jobs.say(LogEvent(message=str(number)))
                jobs.end()
        await jobs.hub.stop()
        return heard

    heard = asyncio.run(run())
    assert [e.type for e in heard].count("log") == 101
    stages = [e.document["stage"] for e in heard if e.type == "progress"]
    # One piece at most was on its way when the others came.
    assert len(stages) <= 6
    assert heard[-1].document["state"] == "finished"


def test_two_hundred_listeners_read_the_log_as_often_as_one(jobs):
    for number in range(200):
        jobs.log.append(progress(number))

    async def run():
        await jobs.hub.start()
        listeners = [asyncio.create_task(jobs.all()) for _ in range(200)]
        await asyncio.sleep(0.05)
        reads_of_replay = jobs.n_reads
        for number in range(20):
            jobs.say(LogEvent(message=str(number)))
            await asyncio.sleep(0)
        jobs.end()
        found = await asyncio.wait_for(asyncio.gather(*listeners), 20)
        await jobs.hub.stop()
        return reads_of_replay, found

    reads, found = asyncio.run(run())
    assert reads <= 4
    assert jobs.n_reads <= 4 + 2 * 21
    # Everybody hears all that must not be dropped, whatever was left out of the progress.
    tails = {tuple(numbers[-21:]) for numbers in found}
    assert tails == {tuple(range(201, 222))}


def test_silence_is_filled_with_heartbeats(jobs):
    async def run():
        await jobs.hub.start()
        pieces = jobs.hub.follow("a", "ada", Follow(heartbeat_s=0.02))
        heard = [await anext(pieces) for _ in range(3)]
        await pieces.aclose()
        assert jobs.hub.n_streams == 0
        await jobs.hub.stop()
        return heard

    assert asyncio.run(run()) == [[], [], []]


def test_an_end_that_was_never_told_ends_the_stream(jobs, monkeypatch):
    monkeypatch.setattr("lamella.server.events.hub._END_GRACE_S", 0.05)
    jobs.say(progress(1))
    jobs.state = "failed"

    async def run():
        await jobs.hub.start()
        numbers = await asyncio.wait_for(jobs.all(), 10)
        await jobs.hub.stop()
        return numbers

    assert asyncio.run(run()) == [1]


def test_a_retried_job_is_followed_beyond_its_first_end(jobs):
    jobs.end("failed")
    jobs.state = "queued"
    jobs.say(StateEvent(state="queued", attempt=1))

    async def run():
        await jobs.hub.start()
        assert not await jobs.hub.is_over("a", 2)
        listener = asyncio.create_task(jobs.all())
        await asyncio.sleep(0.05)
        jobs.end()
        numbers = await asyncio.wait_for(listener, 10)
        assert await jobs.hub.is_over("a", 3)
        assert not await jobs.hub.is_over("a", 2)
        await jobs.hub.stop()
        return numbers

    assert asyncio.run(run()) == [1, 2, 3]


def test_removal_and_shutdown_end_streams(jobs):
    jobs.say(progress(1))

    async def run(end):
        hub = jobs.hub
        await hub.start()
        listener = asyncio.create_task(jobs.all())
        await asyncio.sleep(0.05)
        end()
        return await asyncio.wait_for(listener, 10)

    assert asyncio.run(run(lambda: jobs.hub.job_removed("a"))) == [1]
    assert asyncio.run(run(lambda: jobs.hub.begin_shutdown())) == [1]


def test_a_page_waits_for_its_first_event_only(jobs):
    async def run():
        await jobs.hub.start()
        empty, _ = await jobs.hub.page("a", Follow(), limit=10, wait_s=0.05)
        waiting = asyncio.create_task(jobs.hub.page("a", Follow(), limit=10, wait_s=10))
        await asyncio.sleep(0.05)
        jobs.say(progress(1))
        found, last = await asyncio.wait_for(waiting, 5)
        jobs.end()
        await asyncio.sleep(0.05)
        # Of a job that has ended nothing more is to be expected.
        after_end, _ = await asyncio.wait_for(
            jobs.hub.page("a", Follow(after=2), limit=10, wait_s=60), 5
        )
        await jobs.hub.stop()
        return empty, [entry.number for entry in found], last, after_end

    assert asyncio.run(run()) == ([], [1], 1, [])


def test_streams_of_a_user_are_counted(jobs, monkeypatch):
    monkeypatch.setattr("lamella.server.events.hub._STREAMS_PER_USER", 1)

    async def run():
        await jobs.hub.start()
        pieces = jobs.hub.follow("a", "ada", Follow(heartbeat_s=0.01))
        await anext(pieces)
        with pytest.raises(TooManyRequestsError, match="as many as allowed"):
            jobs.hub.admit("ada")
        jobs.hub.admit("bob")
        await pieces.aclose()
        jobs.hub.admit("ada")
        await jobs.hub.stop()

    asyncio.run(run())


def test_what_the_queue_says_before_the_loop_runs_is_harmless(jobs):
    jobs.hub.events_added("a")
    jobs.hub.job_removed("a")


def test_lines_are_json_of_the_events(jobs):
    jobs.say(LogEvent(message='line\nbreak "quoted" \u2028'))
    jobs.end()

    async def run():
        await jobs.hub.start()
        found = [entry async for piece in jobs.hub.follow("a", "u", Follow()) for entry in piece]
        await jobs.hub.stop()
        return found

    first = asyncio.run(run())[0]
    text = first.encoded().decode()
    assert text.startswith("id: 1\nevent: log\ndata: {")
    assert text.endswith("}\n\n")
    assert text.count("\n") == 4
    assert json.loads(text.split("data: ")[1])["message"] == 'line\nbreak "quoted" \u2028'
