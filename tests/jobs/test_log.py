"""Every event reaches the diary exactly once, in order, whatever is cut or killed when."""

import json
import os
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.core.errors import StorageError
from lamella.jobs.attempt import attempt_path
from lamella.jobs.log import JobLog
from lamella.wire.event import LogEvent, ProgressEvent, StateEvent, parse_event


def report(folder, attempt, messages, *, cut=None):
    """Append what a worker would; ``cut`` bytes of the last line only."""
    text = b"".join(
        json.dumps(LogEvent(message=message, time_s=1.0).model_dump(mode="json")).encode() + b"\n"
        for message in messages
    )
    with attempt_path(folder, attempt).open("ab") as stream:
        stream.write(text if cut is None else text[:cut])


def messages_of(log):
    return [json.loads(line)["message"] for _, line in log.read()]


def check_numbers(log):
    rows = log.read()
    assert [number for number, _ in rows] == list(range(1, len(rows) + 1))
    assert [parse_event(line).number for _, line in rows] == list(range(1, len(rows) + 1))


WORDS = st.lists(st.text(max_size=12), max_size=12)


class TestEveryEventExactlyOnce:
    @given(words=WORDS, cuts=st.lists(st.integers(0, 4000), max_size=5))
    def test_wherever_the_diary_is_cut(self, tmp_path_factory, words, cuts):
        """A server that is killed while it writes leaves any prefix of what it was writing."""
        folder = tmp_path_factory.mktemp("job")
        report(folder, 1, words)
        JobLog(folder).ingest(1)
        path = folder / "log.jsonl"
        for cut in cuts:
            if path.exists():
                os.truncate(path, min(cut, path.stat().st_size))
            log = JobLog(folder)
            log.ingest(1)
            assert messages_of(log) == words
            check_numbers(log)

    @given(words=WORDS, steps=st.lists(st.integers(0, 300), max_size=8))
    def test_however_much_the_worker_has_written_when_it_is_asked(
        self, tmp_path_factory, words, steps
    ):
        folder = tmp_path_factory.mktemp("job")
        report(folder, 1, words)
        path = attempt_path(folder, 1)
        whole = path.read_bytes()
        path.write_bytes(b"")
        log, n_new, n_written = JobLog(folder), 0, 0
        for step in [*steps, len(whole)]:
            with path.open("ab") as stream:
                stream.write(whole[n_written : n_written + step])
            n_written += step
            n_new += log.ingest(1)
            assert messages_of(log) == words[:n_new]
        assert messages_of(log) == words
        check_numbers(log)

    @given(
        attempts=st.lists(st.tuples(WORDS, st.booleans()), min_size=1, max_size=4),
        restarts=st.booleans(),
    )
    def test_of_every_attempt_also_when_an_older_one_was_cut(
        self, tmp_path_factory, attempts, restarts
    ):
        folder = tmp_path_factory.mktemp("job")
        log, expected = JobLog(folder), []
        for number, (words, is_cut) in enumerate(attempts, start=1):
            report(folder, number, words)
            expected += words
            if is_cut:
                # The worker was killed in the middle of a line: that event was never reported.
                report(folder, number, ["lost"], cut=9)
            log = JobLog(folder) if restarts else log
        log.ingest(len(attempts))
        assert messages_of(log) == expected
        assert log.ingest(len(attempts)) == 0
        check_numbers(log)

    def test_late_words_of_an_older_attempt_come_before_the_newer_one(self, tmp_path):
        log = JobLog(tmp_path)
        report(tmp_path, 1, ["a"])
        log.ingest(1)
        report(tmp_path, 1, ["b"])
        report(tmp_path, 2, ["c"])
        log.ingest(2)
        assert messages_of(log) == ["a", "b", "c"]

    def test_with_several_writers_and_readers_at_once(self, tmp_path):
        n_each = 60

        def write(name):
            log = JobLog(tmp_path)
            for i in range(n_each):
                log.append(LogEvent(message=f"{name}{i}"))

        threads = [threading.Thread(target=write, args=(name,)) for name in "abc"]
        for thread in threads:
            thread.start()
        reader, seen = JobLog(tmp_path), []
        while any(thread.is_alive() for thread in threads):
            seen += reader.read(len(seen))
        for thread in threads:
            thread.join()
        seen += reader.read(len(seen))
        check_numbers(JobLog(tmp_path))
        texts = [json.loads(line)["message"] for _, line in seen]
        assert len(texts) == 3 * n_each
        for name in "abc":
            own = [text for text in texts if text.startswith(name)]
            assert own == [f"{name}{i}" for i in range(n_each)]


class TestReading:
    def test_after_a_number_and_not_more_than_asked(self, tmp_path):
        log = JobLog(tmp_path)
        for i in range(5):
            assert log.append(LogEvent(message=str(i))) == i + 1
        assert [number for number, _ in log.read(2)] == [3, 4, 5]
        assert [number for number, _ in log.read(1, limit=2)] == [2, 3]
        assert log.read(5) == []
        assert log.read(99) == []
        assert log.last == 5

    def test_events_come_back_as_they_were(self, tmp_path):
        log = JobLog(tmp_path)
        told = ProgressEvent(stage='ti"les\n', done=1, total=3, unit="\u03bcm", time_s=5.0)
        log.append(told)
        (_, line) = log.read()[0]
        assert parse_event(line) == told.model_copy(update={"number": 1})

    def test_an_event_that_was_never_dated_is_dated_now(self, tmp_path):
        log = JobLog(tmp_path)
        log.append(LogEvent(message="x"))
        assert json.loads(log.read()[0][1])["time_s"] > 1e9

    def test_nothing_of_a_job_that_never_ran(self, tmp_path):
        log = JobLog(tmp_path)
        assert (log.last, log.last_state, log.last_progress, log.read()) == (0, None, None, [])
        assert log.ingest(3) == 0
        assert not (tmp_path / "log.jsonl").exists()

    def test_a_line_that_holds_no_event_is_told_and_not_in_the_way(self, tmp_path, caplog):
        report(tmp_path, 1, ["a"])
        with attempt_path(tmp_path, 1).open("ab") as stream:
            stream.write(b"{broken\n")
        report(tmp_path, 1, ["b"])
        log = JobLog(tmp_path)
        log.ingest(1)
        assert messages_of(log) == ["a", "a report of the worker could not be read", "b"]
        assert "holds no event" in caplog.text

    def test_a_large_diary_is_read_in_parts(self, tmp_path):
        report(tmp_path, 1, [f"{i} " + "x" * 5000 for i in range(500)])
        log = JobLog(tmp_path)
        assert log.ingest(1) == 500
        again = JobLog(tmp_path)
        assert again.last == 500
        assert json.loads(again.read(498)[0][1])["message"].startswith("498 ")


class TestWhatItRemembers:
    def test_the_newest_state_and_progress(self, tmp_path):
        log = JobLog(tmp_path)
        log.append(StateEvent(state="running", attempt=1))
        line = ProgressEvent(stage="tiles", done=3, total=9, time_s=1.0).model_dump_json()
        attempt_path(tmp_path, 1).write_text(line + "\n")
        log.ingest(1)
        for each in (log, JobLog(tmp_path)):
            assert each.last_state == ("running", 1)
            assert each.last_progress["done"] == 3
        report(tmp_path, 2, ["a new attempt"])
        log.ingest(2)
        assert log.last_progress is None

    def test_words_that_look_like_an_event_are_only_words(self, tmp_path):
        log = JobLog(tmp_path)
        log.append(StateEvent(state="running", attempt=1))
        trick = StateEvent(state="failed", attempt=2).model_dump(mode="json")
        log.append(LogEvent(message=json.dumps(trick, separators=(",", ":"))))
        assert log.last_state == ("running", 1)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")  # noqa: PTH110
def test_a_full_disk_loses_nothing(tmp_path):
    """The diary of a full disk says so; what the worker reported is taken over later."""
    report(tmp_path, 1, ["a"])
    (tmp_path / "log.jsonl").symlink_to("/dev/full")
    log = JobLog(tmp_path)
    with pytest.raises(StorageError, match="disk is full"):
        log.ingest(1)
    (tmp_path / "log.jsonl").unlink()
    assert log.ingest(1) == 1
    assert messages_of(log) == ["a"]
