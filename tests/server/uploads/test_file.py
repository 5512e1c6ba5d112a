"""Bytes on disk: what was committed is there after a cut at any byte, and nothing more."""

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.server.uploads.file import (
    DATA_NAME,
    JOURNAL_NAME,
    RunningHash,
    UploadFile,
    committed_offset,
    create_folder,
)
from lamella.server.uploads.journal import OffsetJournal, read_offset

PIECES = st.lists(st.binary(max_size=300), min_size=1, max_size=8)


@given(offsets=st.lists(st.integers(0, 2**62), min_size=1, max_size=6), data=st.data())
def test_a_journal_cut_at_any_byte_says_what_it_said_before(tmp_path_factory, offsets, data):
    path = tmp_path_factory.mktemp("journal") / "offset"
    with OffsetJournal(path) as journal:
        for offset in offsets:
            journal.append(offset)
    whole = path.read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut] + data.draw(st.binary(max_size=11)))
    expected = ([0, *offsets])[cut // 12]
    # Random bytes behind the cut may complete a record: only then is another offset right.
    if path.read_bytes()[: (cut // 12 + 1) * 12] != whole[: (cut // 12 + 1) * 12]:
        assert read_offset(path) == expected
    with OffsetJournal(path) as journal:
        journal.append(7)
    assert read_offset(path) == 7


def test_no_journal_is_offset_zero(tmp_path):
    assert read_offset(tmp_path / "offset") == 0


def test_holes_of_zeros_are_no_records(tmp_path):
    path = tmp_path / "offset"
    with OffsetJournal(path) as journal:
        journal.append(12)
    path.write_bytes(path.read_bytes() + bytes(48))
    assert read_offset(path) == 12


@given(batches=st.lists(st.tuples(PIECES, st.booleans()), max_size=6), tail=st.binary(max_size=50))
def test_only_committed_bytes_survive_a_crash(tmp_path_factory, batches, tail):
    folder = tmp_path_factory.mktemp("u") / "upload"
    create_folder(folder)
    file = UploadFile(folder, RunningHash())
    kept = written = b""
    for pieces, is_committed in batches:
        file.write(pieces)
        written += b"".join(pieces)
        if is_committed:
            assert file.commit() == len(written)
            kept = written
    file.close()
    # What a crash may leave behind the acknowledged bytes.
    with (folder / DATA_NAME).open("ab") as stream:
        stream.write(tail)
    assert committed_offset(folder) == len(kept)
    running = RunningHash()
    with UploadFile(folder, running) as again:
        assert again.offset == again.end == len(kept)
        running.catch_up(folder / DATA_NAME, lambda: again.end)
        again.write([b"more"])
        again.commit()
    assert (folder / DATA_NAME).read_bytes() == kept + b"more"
    assert running.hexdigest() == hashlib.sha256(kept + b"more").hexdigest()


@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["write", "commit", "discard", "forget", "catch up"]), PIECES),
        max_size=15,
    )
)
def test_the_running_hash_is_that_of_the_bytes(tmp_path_factory, steps):
    folder = tmp_path_factory.mktemp("u") / "upload"
    create_folder(folder)
    path = folder / DATA_NAME
    running = RunningHash()
    file = UploadFile(folder, running)
    for step, pieces in steps:
        match step:
            case "write":
                file.write(pieces)
            case "commit":
                file.commit()
            case "discard":
                file.discard()
            case "forget":
                # A restart: the bytes are there, the hash has seen none of them.
                file.commit()
                file.close()
                running = RunningHash()
                file = UploadFile(folder, running)
            case "catch up":
                running.catch_up(path, lambda end=file.end: end)
    file.commit()
    file.close()
    running.catch_up(path, lambda: file.end)
    assert running.position == path.stat().st_size
    assert running.hexdigest() == hashlib.sha256(path.read_bytes()).hexdigest()


def test_many_small_pieces_are_written_whole(folder):
    pieces = [bytes([number % 256]) * (number % 5) for number in range(3000)]
    with UploadFile(folder) as file:
        file.write(pieces)
        file.commit()
    assert (folder / DATA_NAME).read_bytes() == b"".join(pieces)


def test_a_file_that_lost_bytes_is_an_error_not_a_wrong_hash(folder):
    with UploadFile(folder, RunningHash()) as file:
        file.write([b"12345"])
        file.commit()
    (folder / DATA_NAME).write_bytes(b"123")
    with pytest.raises(OSError, match="fewer bytes"):
        RunningHash().catch_up(folder / DATA_NAME, lambda: 5)


def test_names_of_the_folder(folder: Path):
    assert sorted(path.name for path in folder.iterdir()) == [DATA_NAME, JOURNAL_NAME]
