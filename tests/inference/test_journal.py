"""A journal survives being cut anywhere."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.inference.journal import JOURNAL_NAME, Journal, digest, tile_text, was_left_at


def test_an_absent_journal_is_empty(tmp_path):
    state = Journal.read(tmp_path / "none.jsonl")
    assert not state.fingerprint
    assert state.finished(0) == 0


@given(st.integers(0, 200))
def test_a_journal_cut_anywhere_reads_to_its_last_whole_line(tmp_path, n_bytes):
    path = tmp_path / "journal.jsonl"
    with Journal.start(path, {"model": "m"}) as journal:
        for layers in (8, 16, 24):
            journal.add(0, layers)
            journal.add(1, layers - 4)
    content = path.read_bytes()
    path.write_bytes(content[:n_bytes])
    state = Journal.read(path)
    whole = content[:n_bytes].rfind(b"\n") + 1
    assert state.n_bytes == whole
    assert state.finished(0) in (0, 8, 16, 24)
    with Journal.go_on(path, state) as journal:
        journal.add(0, 99)
    if whole:
        assert Journal.read(path).finished(0) == 99


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"not json\n", b'{"format_version":99}\n', b"[1]\n", b'{"format_version":1}\n'],
)
def test_what_is_no_journal_reads_as_empty(tmp_path, content):
    path = tmp_path / "journal.jsonl"
    path.write_bytes(content)
    assert not Journal.read(path).fingerprint


def test_differences_are_named(tmp_path):
    path = tmp_path / "journal.jsonl"
    Journal.start(path, {"model": "m", "plan": "p"}).close()
    state = Journal.read(path)
    assert state.differences({"model": "m", "plan": "q", "input": "i"}) == ["input", "plan"]


def test_a_run_is_known_by_its_tile(tmp_path):
    assert not was_left_at(tmp_path, (1, 64, 64))
    Journal.start(tmp_path / JOURNAL_NAME, {"tile": tile_text((1, 64, 64))}).close()
    assert was_left_at(tmp_path, (1, 64, 64))
    assert not was_left_at(tmp_path, (1, 32, 32))


def test_digests_differ_where_values_do():
    values = [("tile", 1), ("tile", 1.5), ("tile", None), ["tile", 1], ("tile", "1")]
    assert len({digest(value) for value in values}) == len(values)
    assert digest(("tile", 1)) == digest(("tile", 1))
