"""Archives are unpacked whole or not at all, never outside their folder; equal ones are equal."""

import io
import stat
import struct
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.core.errors import ModelError
from lamella.models.archive import ZipLimits, check_zip, unpack_zip, write_zip

NAMES = st.lists(
    st.text("abcdeXY0-_.", min_size=1, max_size=8).filter(
        lambda name: name.strip(".") == name and not name.startswith("._")
    ),
    min_size=1,
    max_size=3,
).map("/".join)


def is_lawful(members):
    folded = [name.casefold() for name in members]
    return len(set(folded)) == len(folded) and not any(
        a != b and b.startswith(a + "/") for a in folded for b in folded
    )


@given(st.dictionaries(NAMES, st.binary(max_size=200), min_size=1, max_size=6).filter(is_lawful))
def test_written_and_unpacked_is_the_same_and_equal_twice(tmp_path_factory, members):
    folder = tmp_path_factory.mktemp("zip")
    write_zip(folder / "a.zip", members.items())
    write_zip(folder / "b.zip", reversed(members.items()))
    assert (folder / "a.zip").read_bytes() == (folder / "b.zip").read_bytes()
    documents = unpack_zip(folder / "a.zip", folder / "out")
    assert {name: (folder / "out" / name).read_bytes() for name in documents} == members
    assert all(documents[name].n_bytes == len(content) for name, content in members.items())


def zip_with(path, *entries):
    with zipfile.ZipFile(path, "w") as archive:
        for entry, content in entries:
            archive.writestr(entry, content)
    return path


def link(name, target):
    entry = zipfile.ZipInfo(name)
    entry.create_system = 3
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    return entry, target


@pytest.mark.parametrize(
    "name",
    [
        "../escaped",
        "a/../../escaped",
        "/etc/escaped",
        "C:/escaped",
        "a\\..\\escaped",
        "a//b",
        "./a",
        "con",
        "aux.txt",
        "name ",
        "bell\x07",
    ],
)
def test_names_that_lead_elsewhere_are_refused_before_anything_is_written(tmp_path, name):
    path = zip_with(tmp_path / "x.zip", ("fine.txt", b"fine"), (zipfile.ZipInfo(name), b"bad"))
    with pytest.raises(ModelError, match="is not unpacked"):
        unpack_zip(path, tmp_path / "out")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["x.zip"]


def test_links_and_devices_are_refused(tmp_path):
    path = zip_with(tmp_path / "x.zip", link("a", "/etc/passwd"))
    with pytest.raises(ModelError, match="is a link or a device"):
        unpack_zip(path, tmp_path / "out")


@pytest.mark.parametrize("names", [("a", "A"), ("a", "a/b"), ("a/b", "A")])
def test_names_that_meet_are_refused(tmp_path, names):
    path = zip_with(tmp_path / "x.zip", *((name, b"x") for name in names))
    with pytest.raises(ModelError, match=r"is there twice|lies below a file"):
        check_zip(path)


def test_bombs_are_refused_by_ratio_size_and_count(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(10**6))
    check_zip(tmp_path / "x.zip")
    with pytest.raises(ModelError, match="times its size"):
        check_zip(tmp_path / "x.zip", ZipLimits(n_bytes_free_of_ratio=10**5))
    with pytest.raises(ModelError, match="unpacks to"):
        check_zip(tmp_path / "x.zip", ZipLimits(n_bytes=10**5))
    with pytest.raises(ModelError, match="entries"):
        check_zip(tmp_path / "x.zip", ZipLimits(n_files=0))


def test_encrypted_entries_are_refused(tmp_path):
    path = zip_with(tmp_path / "x.zip", ("a", b"x"))
    content = bytearray(path.read_bytes())
    at = content.index(b"PK\x01\x02") + 8
    struct.pack_into("<H", content, at, 1)
    path.write_bytes(content)
    with pytest.raises(ModelError, match="is encrypted"):
        check_zip(path)


def test_what_no_one_packed_is_left_out(tmp_path):
    path = zip_with(
        tmp_path / "x.zip",
        ("m/a", b"a"),
        ("__MACOSX/m/._a", b"x"),
        ("m/.DS_Store", b"x"),
        ("m/._b", b"x"),
    )
    assert list(unpack_zip(path, tmp_path / "out")) == ["m/a"]


@given(at=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_a_changed_bit_never_unpacks_to_something_else(tmp_path_factory, at, bit):
    folder = tmp_path_factory.mktemp("zip")
    members = {"m/a.bin": bytes(range(256)) * 4, "m/b.json": b'{"a": 1}'}
    write_zip(folder / "x.zip", members.items())
    content = bytearray((folder / "x.zip").read_bytes())
    content[at % len(content)] ^= 1 << bit
    (folder / "x.zip").write_bytes(content)
    try:
        found = unpack_zip(folder / "x.zip", folder / "out")
    except ModelError:
        return
    # Dates, flags and comments may differ; what is in the files may not.
    contents = {(folder / "out" / name).read_bytes() for name in found}
    assert contents <= set(members.values())


@pytest.mark.parametrize("content", [b"", b"PK", b"not a zip", b"PK\x05\x06" + bytes(18)])
def test_what_is_no_zip_is_one_clear_error(tmp_path, content):
    (tmp_path / "x.zip").write_bytes(content)
    with pytest.raises(ModelError, match=r"damaged or no zip|is empty"):
        check_zip(tmp_path / "x.zip")


def test_a_truncated_zip_is_one_clear_error(tmp_path):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a", bytes(1000))
    (tmp_path / "x.zip").write_bytes(stream.getvalue()[:-40])
    with pytest.raises(ModelError, match="damaged or no zip"):
        unpack_zip(tmp_path / "x.zip", tmp_path / "out")
