"""A disk that keeps only what was brought to it: nothing that was answered is lost with the power.

The file system is watched: a file's bytes count once it was synced, a name once its folder was.
"""

import random
import sys
from pathlib import Path

import pytest

from lamella.server.uploads.file import DATA_NAME, JOURNAL_NAME, UploadFile

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="asks /proc what a handle is")


class Disk:
    """What would be there after a power cut now."""

    def __init__(self) -> None:
        self.bytes: dict[Path, bytes] = {}
        self.names: dict[Path, set[str]] = {}

    def sync(self, handle: int) -> None:
        path = Path(f"/proc/self/fd/{handle}").readlink()
        self.bytes[path] = path.read_bytes()

    def sync_folder(self, folder: Path) -> None:
        self.names[folder] = {path.name for path in folder.iterdir()}

    def after_a_cut(self, upload: Path, into: Path) -> Path:
        """The upload's folder as the next start finds it."""
        assert upload.name in self.names[upload.parent], "the folder itself is lost"
        into.mkdir()
        for name in (DATA_NAME, JOURNAL_NAME):
            assert name in self.names[upload], f"{name} is lost"
            (into / name).write_bytes(self.bytes.get(upload / name, b""))
        return into


@pytest.fixture
def disk(monkeypatch):
    made = Disk()
    for module in ("file", "journal"):
        monkeypatch.setattr(f"lamella.server.uploads.{module}.sync", made.sync)
    monkeypatch.setattr("lamella.server.uploads.file.sync_folder", made.sync_folder)
    return made


def test_what_was_answered_is_there_after_a_power_cut(disk, tus, tmp_path, told_checksum):
    rng = random.Random(3)
    body = rng.randbytes(3000)
    where = tus.create(len(body)).headers["Location"]
    upload = tus.services.uploads.folder / where.rpartition("/")[2]
    offset = n_cuts = 0
    while True:
        n_cuts += 1
        with UploadFile(disk.after_a_cut(upload, tmp_path / f"cut{n_cuts}")) as file:
            assert file.offset == offset
        left = (tmp_path / f"cut{n_cuts}" / DATA_NAME).read_bytes()
        assert left == body[:offset]
        if offset == len(body):
            break
        chunk = body[offset : offset + rng.randrange(400)]
        headers = {"Upload_Checksum": told_checksum(chunk)} if rng.random() < 0.5 else {}
        answer = tus.patch(where, offset, chunk, **headers)
        assert answer.status_code == 204
        offset = int(answer.headers["Upload-Offset"])
    assert n_cuts > 5


def test_joined_parts_are_there_after_a_power_cut(disk, tus, tmp_path):
    places = [tus.create(4, Upload_Concat="partial").headers["Location"] for _ in range(2)]
    for place in places:
        tus.patch(place, 0, b"abcd")
    joined = tus.ask(
        "POST", "uploads", Upload_Concat="final;" + " ".join(places),
        Upload_Metadata="volume MA==",
    )  # fmt: skip
    assert joined.status_code == 201
    upload = tus.services.uploads.folder / joined.headers["Location"].rpartition("/")[2]
    with UploadFile(disk.after_a_cut(upload, tmp_path / "cut")) as file:
        assert file.offset == 8
    assert (tmp_path / "cut" / DATA_NAME).read_bytes() == b"abcdabcd"
