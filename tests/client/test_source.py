"""Folders as archives that are never written, and fingerprints as local runs know them."""

import hashlib
import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.client.archive import Member, TarSource
from lamella.client.source import Digest, prepare_upload
from lamella.core.errors import InputError
from lamella.workflows.fingerprint import path_fingerprint

NAMES = st.text(
    st.characters(codec="utf-8", exclude_characters="/\0\\", exclude_categories=("Cc",)),
    min_size=1,
    max_size=40,
).filter(lambda name: name not in (".", "..") and len(name.encode()) < 200)


@given(
    files=st.dictionaries(
        st.lists(NAMES, min_size=1, max_size=3).map("/".join),
        st.binary(max_size=1500),
        min_size=1,
        max_size=5,
    ),
    places=st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), max_size=10),
)
def test_every_stretch_of_the_archive_is_that_of_the_whole(tmp_path_factory, files, places):
    folder = tmp_path_factory.mktemp("files")
    members = []
    for i, (name, data) in enumerate(files.items()):
        path = folder / str(i)
        path.write_bytes(data)
        members.append(Member(f"top/{name}", path))
    source = TarSource(members)
    whole = source.read(0, source.size)
    assert len(whole) == source.size
    assert source.read(0, source.size) == TarSource(members).read(0, source.size)
    with tarfile.open(fileobj=io.BytesIO(whole)) as archive:
        there = {m.name: archive.extractfile(m).read() for m in archive.getmembers()}
    assert there == {f"top/{name}": data for name, data in files.items()}
    for a, b in places:
        start, stop = sorted((int(a * source.size), int(b * source.size)))
        assert source.read(start, stop - start) == whole[start:stop]


def digest_of(upload):
    found = [step for step in upload.digests() if isinstance(step, Digest)]
    return found[0]


def test_a_folder_has_the_fingerprint_of_a_local_run(tmp_path):
    folder = tmp_path / "scan.ome.zarr"
    # "a.b" and "a/b" are sorted as paths, not as text.
    for name in ("zarr.json", "a.b", "a/b", "a/c", "b/.zarray", "ü/1", ".DS_Store", "b/._x"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode() * 700)
    upload = prepare_upload(folder)
    assert (upload.name, upload.unpack) == ("scan.ome.zarr", "tar")
    digest = digest_of(upload)
    assert digest.fingerprint == path_fingerprint(folder).sha256
    whole = upload.source.read(0, upload.source.size)
    assert digest.sha256 == hashlib.sha256(whole).hexdigest()
    with tarfile.open(fileobj=io.BytesIO(whole)) as archive:
        archive.extractall(tmp_path / "there", filter="data")
    there = tmp_path / "there" / "scan.ome.zarr"
    assert path_fingerprint(there).sha256 == digest.fingerprint
    # Metadata of a hierarchy stands for the hierarchy.
    assert prepare_upload(folder / "zarr.json").identity == upload.identity


def test_a_file_is_itself(tmp_path):
    path = tmp_path / "a.mrc"
    path.write_bytes(bytes(range(256)) * 10)
    upload = prepare_upload(path)
    assert (upload.name, upload.unpack, upload.inside) == ("a.mrc", "", "")
    assert digest_of(upload).sha256 == path_fingerprint(path).sha256
    assert upload.source.read(100, 300) == (bytes(range(256)) * 10)[100:400]
    upload.source.close()


@pytest.mark.parametrize(
    ("name", "content", "partners"),
    [
        ("a.hdr", b"x", ["a.img"]),
        ("a.img.gz", b"x", ["a.hdr.gz"]),
        ("a.nhdr", b"NRRD0004\ntype: uchar\ndata file: a.raw\n", ["a.raw"]),
        ("a.nhdr", b"NRRD0004\ndata file: LIST\n1.raw\n2.raw\n", ["1.raw", "2.raw"]),
        ("a.nhdr", b"NRRD0004\ndata file: s%03d.raw 1 2 1\n", ["s001.raw", "s002.raw"]),
    ],
)
def test_a_file_that_is_nothing_without_others_goes_with_them(tmp_path, name, content, partners):
    (tmp_path / name).write_bytes(content)
    for partner in (*partners, "stranger.raw.txt"):
        (tmp_path / partner).write_bytes(b"data")
    upload = prepare_upload(tmp_path / name)
    assert upload.unpack == "tar"
    assert upload.inside == name
    names = [member.name for member in upload.source.members]
    assert names == sorted(f"a/{file}" for file in (name, *partners))


def test_a_member_that_changes_is_an_error(tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "1.dcm").write_bytes(bytes(600))
    upload = prepare_upload(tmp_path / "s")
    (tmp_path / "s" / "1.dcm").write_bytes(bytes(601))
    with pytest.raises(InputError, match="changed while"):
        upload.source.read(0, upload.source.size)
    (tmp_path / "s" / "1.dcm").unlink()
    with pytest.raises(OSError, match=r"1\.dcm"):
        upload.source.read(0, upload.source.size)


def test_identities_tell_versions_apart(tmp_path):
    path = tmp_path / "a.mrc"
    path.write_bytes(b"1")
    first = prepare_upload(path)
    path.write_bytes(b"12")
    second = prepare_upload(path)
    assert first.identity != second.identity
    assert second.identity == prepare_upload(path).identity
    for upload in (first, second):
        upload.source.close()
