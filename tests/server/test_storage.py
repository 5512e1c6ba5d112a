"""Both storages keep the same promises; S3 is a server of this machine."""

import hashlib
import io

import httpx2
import pytest

from lamella.core.errors import InputError, MissingPathError, StorageError
from lamella.server.storage import LocalStorage, S3Storage, Storage, fetch_url, url_bytes


@pytest.fixture(params=["local", "s3"])
def storage(request, tmp_path):
    if request.param == "local":
        return LocalStorage(tmp_path / "kept")
    return S3Storage(request.getfixturevalue("s3_url"))


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(bytes(range(256)) * 300)
    return path


def test_it_is_a_storage(storage):
    assert isinstance(storage, Storage)
    assert storage.is_remote == isinstance(storage, S3Storage)


def test_a_file_comes_back_as_it_was(storage, source, tmp_path):
    storage.put(source, "jobs/1/run.tar")
    assert storage.size("jobs/1/run.tar") == source.stat().st_size
    storage.fetch("jobs/1/run.tar", tmp_path / "b.bin")
    assert (tmp_path / "b.bin").read_bytes() == source.read_bytes()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_file_is_read_from_anywhere(storage, source):
    storage.put(source, "a")
    with storage.open("a") as stream:
        stream.seek(-5, io.SEEK_END)
        assert stream.read() == source.read_bytes()[-5:]
        stream.seek(1000)
        assert stream.read(10) == source.read_bytes()[1000:1010]


def test_the_last_put_counts_also_for_who_has_read_before(storage, source):
    storage.put(source, "a")
    assert storage.size("a") == source.stat().st_size
    source.write_bytes(b"other")
    storage.put(source, "a")
    assert storage.size("a") == 5
    with storage.open("a") as stream:
        assert stream.read() == b"other"


def test_a_folder_comes_back_with_all_its_files(storage, tmp_path):
    folder = tmp_path / "scan.ome.zarr"
    for name in ("zarr.json", "0/c/0/0", "0/c/0/1", "0/zarr.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    storage.put_folder(folder, "volumes/1")
    storage.put(folder / "zarr.json", "volumes/10/zarr.json")
    names = ("zarr.json", "0/c/0/0", "0/c/0/1", "0/zarr.json")
    assert storage.sizes("volumes/1") == {name: len(name) for name in names}
    storage.fetch_folder("volumes/1", tmp_path / "back")
    found = {p.relative_to(tmp_path / "back").as_posix(): p.read_text()
             for p in (tmp_path / "back").rglob("*") if p.is_file()}  # fmt: skip
    assert found == {name: name for name in ("zarr.json", "0/c/0/0", "0/c/0/1", "0/zarr.json")}
    storage.delete_folder("volumes/1")
    assert storage.size("volumes/1/zarr.json") is None
    # What only begins with the same words is another folder's.
    assert storage.size("volumes/10/zarr.json") == len("zarr.json")


def test_what_is_not_there(storage, tmp_path):
    assert storage.size("a") is None
    storage.delete("a")
    storage.delete_folder("b")
    assert storage.sizes("b") == {}
    with pytest.raises(MissingPathError):
        storage.fetch("a", tmp_path / "a")
    with pytest.raises(MissingPathError):
        storage.open("a").close()
    with pytest.raises(MissingPathError):
        storage.fetch_folder("b", tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


def test_what_is_removed_is_gone(storage, source):
    storage.put(source, "a")
    storage.delete("a")
    assert storage.size("a") is None


@pytest.mark.parametrize("key", ["../secret.key", "/etc/passwd", "a/../../b", ""])
def test_keys_stay_below_their_root(storage, source, key):
    for work in (lambda: storage.put(source, key), lambda: storage.size(key)):
        with pytest.raises(InputError, match="no key"):
            work()


class TestS3:
    def test_presigned_addresses_need_no_token_and_name_the_file(self, s3_url, source):
        storage = S3Storage(s3_url)
        storage.put(source, "jobs/1/labels.mrc")
        url = storage.url("jobs/1/labels.mrc", 60.0, name="labels.mrc")
        # Version 4 of the signature: the only one that every region takes.
        assert "X-Amz-Algorithm=AWS4-HMAC-SHA256" in url
        assert "X-Amz-Expires=60" in url
        answer = httpx2.get(url, trust_env=False)
        assert answer.content == source.read_bytes()
        assert answer.headers["content-disposition"] == 'attachment; filename="labels.mrc"'
        part = httpx2.get(url, headers={"Range": "bytes=10-19"}, trust_env=False)
        assert (part.status_code, part.content) == (206, source.read_bytes()[10:20])

    def test_a_large_file_goes_in_parts(self, s3_url, tmp_path, monkeypatch):
        monkeypatch.setattr("lamella.server.storage._PART_BYTES", 5 << 20)
        content = hashlib.sha256(b"x").digest() * (12 << 15)
        (tmp_path / "large").write_bytes(content)
        storage = S3Storage(s3_url)
        storage.put(tmp_path / "large", "large")
        storage.fetch("large", tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == content

    def test_addresses_of_people_are_fetched_as_file_or_folder(self, s3_url, source, tmp_path):
        storage = S3Storage(s3_url)
        storage.put(source, "data/a.mrc")
        storage.put(source, "data/more/b.mrc")
        n_bytes = source.stat().st_size
        assert url_bytes(f"{s3_url}/data/a.mrc") == n_bytes
        assert url_bytes(f"{s3_url}/data") == 2 * n_bytes
        fetch_url(f"{s3_url}/data/a.mrc", tmp_path / "one.mrc")
        fetch_url(f"{s3_url}/data/", tmp_path / "both")
        for path in ("one.mrc", "both/a.mrc", "both/more/b.mrc"):
            assert (tmp_path / path).read_bytes() == source.read_bytes()
        for work in (url_bytes, lambda url: fetch_url(url, tmp_path / "none")):
            with pytest.raises(MissingPathError, match="there is nothing"):
                work(f"{s3_url}/nothing")

    def test_a_bucket_that_is_not_there(self, s3_server, source):
        with pytest.raises((StorageError, MissingPathError)):
            S3Storage("s3://no-such-bucket/x").put(source, "a")

    def test_a_server_that_does_not_answer(self, s3_server, source, monkeypatch):
        storage = S3Storage(
            "s3://bucket/x",
            endpoint_url="http://127.0.0.1:1",
            config_kwargs={"retries": {"total_max_attempts": 1}},
        )
        storage._system.retries = 1
        with pytest.raises(StorageError, match=r"S3 (failed|cannot be reached)"):
            storage.put(source, "a")

    @pytest.mark.parametrize("url", ["http://bucket/x", "s3:///x", "/srv/files"])
    def test_what_is_no_storage(self, url):
        with pytest.raises(InputError, match="s3://bucket/prefix"):
            S3Storage(url)
