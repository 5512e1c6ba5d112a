"""One attempt in this process: what it claims, says, leaves and gives up."""

import json
import os
import subprocess
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.core.errors import ConflictError, RunCancelledError
from lamella.core.progress import Progress
from lamella.jobs.attempt import (
    Control,
    Outcome,
    Work,
    ask_to_stop,
    attempt_path,
    begin_attempt,
    claim_attempt,
    read_control,
)
from lamella.jobs.files import try_lock
from lamella.jobs.log import JobLog
from lamella.jobs.printing import printing_to_log
from lamella.jobs.process import available_cores, resident_bytes
from lamella.jobs.work import JobContext, run_work
from lamella.testing import job_functions as does
from lamella.testing.executor import messages_of
from lamella.wire.event import LogEvent
from lamella.wire.problem import Problem

JSON = st.dictionaries(st.text(max_size=5), st.none() | st.integers() | st.text(max_size=9))


def work_in(folder, function=does.count, attempt=1, **document):
    begin_attempt(folder, attempt)
    return Work("a", attempt, "test", does.name_of(function), document, folder, lock_wait_s=0.2)


class TestFilesOfAnAttempt:
    @given(document=JSON, resources=st.dictionaries(st.text(max_size=4), st.floats(0, 9)))
    def test_work_goes_through_a_pipe(self, tmp_path_factory, document, resources):
        folder = tmp_path_factory.getbasetemp()
        work = Work("a", 3, "segment", "m:f", document, folder, resources, is_shared=True)
        assert Work.from_json(json.loads(json.dumps(work.to_json()))) == work

    @given(result=st.none() | JSON, n_bytes=st.integers(0, 2**40), has_problem=st.booleans())
    def test_an_outcome_comes_back_as_it_was(self, tmp_path_factory, result, n_bytes, has_problem):
        folder = tmp_path_factory.mktemp("job")
        problem = Problem(code="run_failed", message="no\n\u03bc") if has_problem else None
        outcome = Outcome(2, "failed" if has_problem else "finished", result, problem, n_bytes)
        assert Outcome.read(folder, 2) is None
        outcome.write(folder)
        assert Outcome.read(folder, 2) == outcome
        assert Outcome.read(folder, 1) is None

    def test_half_an_outcome_is_none(self, tmp_path):
        Outcome.path(tmp_path, 1).write_text('{"attempt": 1, "sta')
        assert Outcome.read(tmp_path, 1) is None

    @pytest.mark.parametrize("text", ["", "x", "\xff", "1.5 cancel", "cancel"])
    def test_what_cannot_be_read_wants_nothing(self, tmp_path, text):
        assert read_control(tmp_path) == Control(0)
        (tmp_path / "attempt").write_text(text, encoding="latin-1")
        assert read_control(tmp_path) == Control(0)

    def test_only_the_newest_is_asked_to_stop_and_older_ones_never_begin_again(self, tmp_path):
        begin_attempt(tmp_path, 2)
        ask_to_stop(tmp_path, 1)
        assert read_control(tmp_path) == Control(2)
        with pytest.raises(ConflictError, match=r"attempt 1 .* after attempt 2"):
            begin_attempt(tmp_path, 1)
        ask_to_stop(tmp_path, 2)
        assert read_control(tmp_path) == Control(2, is_cancelled=True)
        begin_attempt(tmp_path, 3)
        assert read_control(tmp_path) == Control(3)

    def test_of_many_who_claim_one_has_it(self, tmp_path):
        claimed = []
        threads = [
            threading.Thread(target=lambda: claimed.append(claim_attempt(tmp_path, 1)))
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        (stream,) = [one for one in claimed if one is not None]
        os.close(stream)


class TestRunning:
    def test_one_that_was_begun_elsewhere_does_nothing(self, tmp_path):
        work = work_in(tmp_path, n=3)
        attempt_path(tmp_path, 1).touch()
        outcome = run_work(work)
        assert outcome.status == "interrupted"
        assert "begun by another process" in outcome.problem.message
        assert Outcome.read(tmp_path, 1) is None

    def test_one_that_was_overtaken_before_it_began_does_nothing(self, tmp_path):
        work = work_in(tmp_path, n=3)
        begin_attempt(tmp_path, 2)
        assert run_work(work).status == "interrupted"
        assert not (tmp_path / "told.txt").exists()
        assert Outcome.read(tmp_path, 1) is None

    def test_one_that_was_cancelled_before_it_began_leaves_that_as_its_outcome(self, tmp_path):
        work = work_in(tmp_path, n=3)
        ask_to_stop(tmp_path, 1)
        assert run_work(work).status == "cancelled"
        assert Outcome.read(tmp_path, 1).status == "cancelled"
        assert not (tmp_path / "told.txt").exists()

    def test_a_folder_that_an_older_attempt_holds_is_waited_for_and_left(self, tmp_path):
        work = work_in(tmp_path, n=3)
        with (tmp_path / "worker.lock").open("ab") as stream:
            assert try_lock(stream)
            outcome = run_work(work)
        assert outcome.status == "interrupted"
        assert "still holds the job's folder after 0.2 s" in outcome.problem.message
        assert "end it by hand" in outcome.problem.hint
        # The next attempt finds it free.
        assert run_work(work_in(tmp_path, attempt=2, n=3)).status == "finished"

    @pytest.mark.parametrize("name", ["lamella.jobs:nowhere", "no.such.module:f", "lamella.jobs"])
    def test_a_function_that_is_not_there_is_a_failure(self, tmp_path, name):
        begin_attempt(tmp_path, 1)
        outcome = run_work(Work("a", 1, "test", name, {}, tmp_path))
        assert outcome.status == "failed"
        assert Outcome.read(tmp_path, 1) == outcome

    def test_cancelled_by_a_word_that_came_faster_than_the_folder(self, tmp_path):
        asked = iter([False] * 3)
        work = work_in(tmp_path, n=100)
        outcome = run_work(work, is_cancelled=lambda: next(asked, True))
        assert outcome.status == "cancelled"
        assert 0 < len((tmp_path / "told.txt").read_text().split()) < 100


class TestContext:
    def make(self, folder, stream=None, **fields):
        begin_attempt(folder, 1)
        work = Work("a", 1, "test", "m:f", {}, folder, {"gpu": 1.0}, **fields)
        return JobContext(work, claim_attempt(folder, 1) if stream is None else stream)

    def test_plain_progress_becomes_an_event_and_every_event_has_a_time(self, tmp_path):
        context = self.make(tmp_path, is_shared=True)
        context.emit(Progress("tiles", 3, 9, "tiles"))
        context.emit(LogEvent(message="x", time_s=5.0))
        context.close()
        lines = [json.loads(line) for line in attempt_path(tmp_path, 1).read_text().splitlines()]
        assert (lines[0]["type"], lines[0]["done"], lines[0]["total"]) == ("progress", 3, 9)
        assert lines[0]["time_s"] > 1e9
        assert lines[1]["time_s"] == 5.0
        assert context.n_log_bytes == attempt_path(tmp_path, 1).stat().st_size
        assert (context.job_id, context.attempt, context.resources) == ("a", 1, {"gpu": 1.0})

    def test_after_the_end_and_when_overtaken_nothing_is_said(self, tmp_path):
        context = self.make(tmp_path)
        begin_attempt(tmp_path, 2)
        context.emit(LogEvent(message="late"))
        with pytest.raises(RunCancelledError, match="newer attempt has overtaken attempt 1"):
            context.check()
        context.close()
        context.emit(LogEvent(message="later"))
        context.close()
        assert attempt_path(tmp_path, 1).read_bytes() == b""

    def test_what_a_full_disk_refuses_is_said_once_there_is_room(self, tmp_path, monkeypatch):
        context, write, is_full = self.make(tmp_path), os.write, [True]

        def scarce(stream, data):
            if is_full[0]:
                raise OSError(28, "No space left on device")
            # A line in two halves.
            return write(stream, bytes(data[: max(1, len(data) // 2)]))

        monkeypatch.setattr(os, "write", scarce)
        context.emit(LogEvent(message="one"))
        assert context.n_log_bytes == 0
        is_full[0] = False
        context.emit(LogEvent(message="two"))
        context.close()
        log = JobLog(tmp_path)
        monkeypatch.undo()
        log.ingest(1)
        assert messages_of(log) == ["one", "two"]


class TestPrinting:
    def test_descriptors_are_given_back_and_a_second_one_prints_where_it_did(self, tmp_path, capfd):
        first, second = work_in(tmp_path / "a"), work_in(tmp_path / "b")
        with printing_to_log(first):
            os.write(1, b"first\n")
            with printing_to_log(second):
                os.write(2, b"second\n")
        os.write(1, b"after\n")
        assert (tmp_path / "a" / "worker-1.log").read_text() == "first\nsecond\n"
        assert not (tmp_path / "b" / "worker-1.log").exists()
        assert capfd.readouterr().out == "after\n"

    def test_a_log_that_cannot_be_made_stops_nobody(self, tmp_path):
        work = Work("a", 1, "test", "m:f", {}, tmp_path / "nowhere")
        with printing_to_log(work):
            os.write(1, b"unheard\n")


class TestProcess:
    def test_what_a_process_holds(self):
        assert resident_bytes(os.getpid()) > 10 << 20
        assert resident_bytes(2**22 + 1) == 0
        assert set(available_cores()) <= set(range(os.cpu_count()))

    @pytest.mark.parametrize("orders", [b"", b'{"type": "set-up", "parent": 1}\n'])
    def test_a_worker_without_its_parent_leaves_at_once(self, orders):
        command = [sys.executable, "-m", "lamella.jobs.worker_process"]
        done = subprocess.run(command, input=orders, capture_output=True, timeout=60, check=False)
        assert (done.returncode, done.stdout) == (0, b"")
