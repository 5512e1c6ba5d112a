"""The virtual archive: what tar reads, any range of it, always the same bytes."""

import hashlib
import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.core.errors import ConflictError
from lamella.server.artifacts.tar import TarArchive, make_index

# The last one needs an extended header of its own.
NAMES = ("a.txt", "b/c.bin", "b/d/e", "ümlaut.csv", "long/" + "x" * 120 + "/" + "y" * 120)
FILES = st.dictionaries(st.sampled_from(NAMES), st.binary(max_size=2000), max_size=5)


def write(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


@given(FILES, st.integers(0, 15_000), st.integers(0, 15_000))
def test_any_range_is_that_range_of_the_whole(tmp_path_factory, files, a, b):
    folder = tmp_path_factory.mktemp("run")
    write(folder, files)
    archive = TarArchive(folder, make_index(folder, "top"))
    whole = b"".join(archive.read(0, archive.n_bytes))
    assert len(whole) == archive.n_bytes
    assert hashlib.sha256(whole).hexdigest() == archive.index.sha256
    start, stop = sorted((min(a, len(whole)), min(b, len(whole))))
    assert b"".join(archive.read(start, stop)) == whole[start:stop]
    with tarfile.open(fileobj=io.BytesIO(whole)) as found:
        told = {m.name: found.extractfile(m).read() for m in found.getmembers()}
    assert told == {f"top/{name}": content for name, content in files.items()}


def test_the_same_files_are_the_same_archive(tmp_path):
    files = {"b": b"2", "a": b"1" * 700}
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write(tmp_path / name, dict(reversed(files.items())) if name == "two" else files)
    (tmp_path / "two" / ".lock").write_text("held")
    (tmp_path / "two" / "link").symlink_to("/etc/passwd")
    one, two = (make_index(tmp_path / n, "run", exclude=(".lock",)) for n in ("one", "two"))
    assert one == two


def test_a_file_that_changed_is_told(tmp_path):
    write(tmp_path, {"a": b"123"})
    archive = TarArchive(tmp_path, make_index(tmp_path, "run"))
    (tmp_path / "a").write_bytes(b"1234")
    with pytest.raises(ConflictError, match="a of the run changed"):
        list(archive.read(0, archive.n_bytes))
    (tmp_path / "a").unlink()
    with pytest.raises(ConflictError, match="a of the run changed"):
        list(archive.read(0, archive.n_bytes))
