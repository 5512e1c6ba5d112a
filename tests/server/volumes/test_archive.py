"""What comes out of an archive is what went in; what is no plain file comes out of none."""

import io
import os
import stat
import struct
import tarfile
import tempfile
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.core.errors import InputError, LamellaError, QuotaError, UnreadableFileError
from lamella.server.volumes.archive import ArchiveLimits, content_root, unpack

LIMITS = ArchiveLimits(10**8)
NAMES = st.text("abcde", min_size=1, max_size=3)
TREES = st.dictionaries(
    st.lists(NAMES, min_size=1, max_size=3).map("/".join), st.binary(max_size=80), min_size=1,
    max_size=6,
).filter(
    lambda tree: not any(one != two and two.startswith(f"{one}/") for one in tree for two in tree)
)  # fmt: skip


def zipped(files, compression=zipfile.ZIP_DEFLATED):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as packed:
        for name, content in files.items():
            packed.writestr(name, content)
    return stream.getvalue()


def tarred(files, mode="w"):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as packed:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            packed.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def tree_of(folder):
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def unpacked(content, kind, limits=LIMITS):
    """Files that came out; nothing is left when it is refused, within the target or beside it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "archive").write_bytes(content)
        target = folder / "inside" / "target"
        try:
            n_bytes = unpack(folder / "archive", kind, target, limits)
        except BaseException:
            left = [str(one.relative_to(folder)) for one in folder.rglob("*")]
            assert sorted(left) == ["archive", "inside"]
            raise
        found = tree_of(target)
        assert n_bytes == sum(map(len, found.values()))
        return found


@given(files=TREES, how=st.sampled_from(["zip", "stored", "w", "w:gz", "w:bz2", "w:xz"]))
def test_what_was_packed_comes_out(files, how):
    if how in ("zip", "stored"):
        method = zipfile.ZIP_STORED if how == "stored" else zipfile.ZIP_DEFLATED
        assert unpacked(zipped(files, method), "zip") == files
    else:
        assert unpacked(tarred(files, how), "tar") == files


@given(
    files=TREES, kind=st.sampled_from(["zip", "tar"]), data=st.data(),
)  # fmt: skip
def test_a_damaged_archive_is_refused_or_read_never_more(files, kind, data):
    content = bytearray((zipped if kind == "zip" else tarred)(files))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(content)))
    # No error but one of ours.
    with suppress(LamellaError):
        unpacked(bytes(content[:cut]), kind)


ESCAPES = (
    "../evil", "a/../../evil", "/etc/evil", "C:/evil", "a\\..\\evil", "a/./../../evil", "..",
    "a\x07b", "a\nb", "x" * 256, "/".join("d" * 70), "\\\\host\\share",
)  # fmt: skip


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize("name", ESCAPES)
def test_names_that_lead_elsewhere(kind, name):
    pack = zipped if kind == "zip" else tarred
    with pytest.raises(InputError, match="the file name"):
        unpacked(pack({"good": b"1", name: b"2"}), kind)


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize(
    ("first", "second"), [("a/B", "a/b"), ("ä", "a\u0308"), ("x", "x/y"), ("x/y", "x"), ("k", "k")]
)
def test_names_that_would_be_one_on_some_disk(kind, first, second):
    stream = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(stream, "w") as packed:
            for name in dict.fromkeys((first, second)):
                packed.writestr(name, b"1")
            if first == second:
                with pytest.warns(UserWarning, match="Duplicate"):
                    packed.writestr(first, b"2")
        content = stream.getvalue()
    else:
        with tarfile.open(fileobj=stream, mode="w") as packed:
            for name in (first, second):
                packed.addfile(tarfile.TarInfo(name), io.BytesIO())
        content = stream.getvalue()
    with pytest.raises(InputError, match=r"differ in case|comes twice|a file and a folder"):
        unpacked(content, kind)


@pytest.mark.parametrize(
    "kind",
    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE],
)
def test_what_is_no_plain_file_in_a_tar(kind):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT) as packed:
        member = tarfile.TarInfo("link")
        member.type, member.linkname = kind, "/etc/passwd"
        packed.addfile(member)
    with pytest.raises((InputError, UnreadableFileError)):
        unpacked(stream.getvalue(), "tar")


def test_a_link_in_a_zip():
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as packed:
        entry = zipfile.ZipInfo("link")
        entry.create_system, entry.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        packed.writestr(entry, "/etc/passwd")
    with pytest.raises(InputError, match="a link or a device"):
        unpacked(stream.getvalue(), "zip")


def test_an_encrypted_zip():
    content = bytearray(zipped({"a": b"123"}))
    for place in (content.index(b"PK\x03\x04") + 6, content.index(b"PK\x01\x02") + 8):
        content[place] |= 1
    with pytest.raises(InputError, match="encrypted") as refused:
        unpacked(bytes(content), "zip")
    assert "without a password" in refused.value.hint


def test_a_bomb_of_zeros():
    content = zipped({f"{n}": bytes(2 * 10**6) for n in range(20)})
    limits = ArchiveLimits(10**9, max_ratio=100, free_bytes=10**6)
    with pytest.raises(InputError, match="a bomb"):
        unpacked(content, "zip", limits)
    with pytest.raises(InputError, match="a bomb"):
        unpacked(tarred({"0": bytes(30 * 10**6)}, "w:gz"), "tar", limits)
    # Empty label volumes compress well, and are no bombs.
    assert len(unpacked(content, "zip")) == 20


def test_a_zip_whose_files_share_their_bytes():
    """Thousands of entries of one compressed block: small to send, terabytes to unpack."""
    body = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = body.compress(bytes(10**6)) + body.flush()
    check = zlib.crc32(bytes(10**6))
    local = struct.pack("<4s5H3L2H", b"PK\3\4", 20, 0, 8, 0, 0, check, len(packed), 10**6, 1, 0)
    directory = b"".join(
        struct.pack(
            "<4s6H3L5H2L", b"PK\1\2", 20, 20, 0, 8, 0, 0, check, len(packed), 10**6, 1, 0, 0, 0, 0,
            0, 0,
        ) + bytes([name])
        for name in range(97, 107)
    )  # fmt: skip
    start = len(local) + 1 + len(packed)
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 10, 10, len(directory), start, 0)
    with pytest.raises(InputError, match="overlaps another file"):
        unpacked(local + b"a" + packed + directory + end, "zip")


def test_a_zip_that_says_less_than_it_holds():
    content = bytearray(zipped({"a": bytes(100_000)}))
    place = content.index(b"PK\x01\x02") + 24
    content[place : place + 4] = struct.pack("<L", 10)
    with pytest.raises((InputError, UnreadableFileError)):
        unpacked(bytes(content), "zip")


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_more_than_there_is_room_for(kind):
    content = (zipped if kind == "zip" else tarred)({"a": os.urandom(2000), "b": os.urandom(2000)})
    with pytest.raises(QuotaError, match="there is room for"):
        unpacked(content, kind, ArchiveLimits(3000))


def test_too_many_files():
    with pytest.raises(InputError, match="more than 3 files"):
        unpacked(tarred({f"{n}": b"" for n in range(4)}), "tar", ArchiveLimits(100, max_files=3))


@pytest.mark.parametrize("content", [b"", b"no archive at all", zipped({}), tarred({})])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_what_is_no_archive(content, kind):
    with pytest.raises(UnreadableFileError) as refused:
        unpacked(content, kind)
    assert refused.value.hint


def test_what_desktops_add_is_left_out():
    files = {"scan/a": b"1", "__MACOSX/scan/._a": b"2", "scan/.DS_Store": b"3"}
    assert unpacked(zipped(files), "zip") == {"scan/a": b"1"}


def test_the_one_folder_in_an_archive_is_what_it_is(tmp_path):
    (tmp_path / "scan.ome.zarr").mkdir()
    assert content_root(tmp_path) == tmp_path / "scan.ome.zarr"
    (tmp_path / "other").mkdir()
    assert content_root(tmp_path) == tmp_path
