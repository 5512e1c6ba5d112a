"""Files that are whole or not there, and locks that are one holder's."""

import subprocess
import sys
import threading

import pytest

from lamella.core.errors import StorageError
from lamella.jobs.files import lock_file, try_lock, unlock_file, write_whole


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "a"
    for content in (b"one", b"", b"another one"):
        write_whole(path, content)
        assert path.read_bytes() == content
    assert names_in(tmp_path) == ["a"]


def test_what_cannot_be_written_leaves_nothing_behind(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError):
        write_whole(tmp_path / "folder", b"x")
    with pytest.raises(StorageError):
        write_whole(tmp_path / "nowhere" / "a", b"x")
    assert names_in(tmp_path) == ["folder"]


def test_readers_see_one_of_the_contents_whoever_writes(tmp_path):
    path, seen, failures = tmp_path / "a", set(), []
    contents = [bytes([65 + i]) * 5000 for i in range(4)]
    write_whole(path, contents[0])

    def write(content):
        try:
            for _ in range(20):
                write_whole(path, content)
        except StorageError as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        seen.add(path.read_bytes())
    for thread in threads:
        thread.join()
    assert not failures
    assert seen <= set(contents)
    assert names_in(tmp_path) == ["a"]


def test_a_lock_is_one_holders_until_it_is_given_back(tmp_path):
    with (tmp_path / "lock").open("ab") as one, (tmp_path / "lock").open("ab") as other:
        assert try_lock(one)
        assert not try_lock(other)
        unlock_file(one)
        assert try_lock(other)
        threading.Timer(0.1, unlock_file, (other,)).start()
        lock_file(one)
        assert not try_lock(other)


def test_a_lock_ends_with_its_process(tmp_path):
    program = (
        "import sys, time; from lamella.jobs.files import try_lock\n"
        f"stream = open({str(tmp_path / 'lock')!r}, 'ab'); print(try_lock(stream), flush=True)\n"
        "time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline().strip() == b"True"
        with (tmp_path / "lock").open("ab") as stream:
            assert not try_lock(stream)
            holder.kill()
            holder.wait()
            assert try_lock(stream)
    finally:
        holder.kill()
        holder.communicate()
