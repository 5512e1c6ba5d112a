"""One holder at a time, among threads and processes; a dead one holds nothing."""

import subprocess
import sys
import threading
import time

import pytest

from lamella.core.errors import StorageError
from lamella.models.lock import hold, is_held, owner_of

HOLD = """
import sys, time
from pathlib import Path
from lamella.models.lock import hold
with hold(Path(sys.argv[1]), on_wait=lambda: None):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("number", range(20))
def test_threads_come_one_after_the_other(tmp_path, number):
    inside, most, done = 0, 0, 0

    def work():
        nonlocal inside, most, done
        with hold(tmp_path / "l" / "x.lock", on_wait=lambda: None, sleep=lambda _s: None):
            inside += 1
            most = max(most, inside)
            time.sleep(0.002 * (number % 3))
            inside -= 1
            done += 1

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # Nobody was turned away because the file vanished between two looks at it.
    assert (most, done) == (1, 8)
    assert not (tmp_path / "l" / "x.lock").exists(), "nothing is left behind"


def test_a_killed_holder_holds_nothing(tmp_path):
    path = tmp_path / "x.lock"
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "held\n"
        assert is_held(path)
        assert owner_of(path).startswith(f"process {process.pid} on ")
    finally:
        process.kill()
        process.communicate()
    assert path.exists()
    assert not is_held(path)
    with hold(path, on_wait=lambda: pytest.fail("a dead process is not waited for")):
        assert is_held(path)
    assert not path.exists()


def test_who_waits_may_give_up(tmp_path):
    class EnoughError(Exception):
        pass

    def enough():
        raise EnoughError

    with hold(tmp_path / "x.lock", on_wait=enough):
        with pytest.raises(EnoughError), hold(tmp_path / "x.lock", on_wait=enough):
            pass
        assert is_held(tmp_path / "x.lock")


def test_nobody_holds_what_is_not_there(tmp_path):
    assert not is_held(tmp_path / "none.lock")
    assert owner_of(tmp_path / "none.lock") == ""


def test_a_place_that_may_not_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError), hold(tmp_path / "file" / "x.lock", on_wait=lambda: None):
        pass
