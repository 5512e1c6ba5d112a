"""Volumes as a client sees them: of uploads, archives, folders, server paths and S3."""

import time

import numpy as np
import pytest

import lamella as lm
from lamella.core.errors import ConflictError, LamellaError, MissingPathError
from lamella.testing.executor import wait_for
from lamella.workflows.fingerprint import path_fingerprint


@pytest.fixture
def kept_site(make_site, stores):
    """A server that keeps volumes on this disk; then one that keeps them in S3."""
    return make_site(**stores.settings())


def same(path, volume):
    return np.array_equal(np.asarray(lm.open(path).data[...]), np.asarray(volume.data[...]))


def test_an_uploaded_file_becomes_a_volume(kept_site, mrc, small, tmp_path):
    site = kept_site
    document = site.volume(mrc, "../tomo.mrc")
    assert (document["state"], document["name"]) == ("ready", "tomo.mrc")
    assert document["dtype"] == "uint16"
    assert document["geometry"]["shape"] == [4, 6, 8]
    (tmp_path / "local.mrc").write_bytes(mrc)
    assert document["sha256"] == path_fingerprint(tmp_path / "local.mrc").sha256
    volumes = site.services.volumes
    assert same(volumes.path_of(document["id"]), small)
    # The upload's own copy is gone, and the bytes count once.
    with site.services.database.read() as connection:
        assert site.services.uploads.space.used(connection, "ann") == len(mrc)
    found = site.ask("GET", f"volumes?sha256={document['sha256']}").json()
    assert [one["id"] for one in found] == [document["id"]]
    if site.services.storage.is_remote:
        # Room is made here; whoever needs the volume brings it back.
        assert volumes.copies.evict(document["id"])
        assert same(volumes.path_of(document["id"]), small)
    assert site.ask("DELETE", f"volumes/{document['id']}").status_code == 204
    assert site.ask("GET", f"volumes/{document['id']}").status_code == 404
    assert site.files() == []
    if site.services.storage.is_remote:
        with pytest.raises(MissingPathError):
            site.services.storage.fetch_folder(f"volumes/{document['id']}", tmp_path / "gone")


@pytest.mark.parametrize("kind", ["zip", "tar", "tgz"])
def test_an_archive_of_an_ome_zarr_becomes_a_volume(site, zarr_folder, small, pack, kind):
    content = pack(zarr_folder, kind)
    document = site.volume(content, f"packed.{kind}", unpack="zip" if kind == "zip" else "tar")
    assert document["state"] == "ready", document
    # As if it lay on the client's disk.
    assert document["sha256"] == path_fingerprint(zarr_folder).sha256
    path = site.services.volumes.path_of(document["id"])
    assert path.name == "scan.ome.zarr"
    assert same(path, small)


def test_an_ome_zarr_packed_without_its_folder(site, zarr_folder, small, pack):
    content = pack(zarr_folder, "zip", prefix="")
    document = site.volume(content, "scan.ome.zarr.zip", unpack="zip")
    assert (document["state"], document["name"]) == ("ready", "scan.ome.zarr")
    assert same(site.services.volumes.path_of(document["id"]), small)


def test_the_files_of_an_ome_zarr_become_one_volume(site, zarr_folder, small):
    files = [
        {"path": str(path.relative_to(zarr_folder)), "upload": site.keep(path.read_bytes())}
        for path in sorted(zarr_folder.rglob("*"))
        if path.is_file()
    ]
    made = site.create(name="scan.ome.zarr", files=files)
    assert made.status_code == 201, made.text
    document = site.wait(made.json()["id"])
    assert document["state"] == "ready", document
    assert document["sha256"] == path_fingerprint(zarr_folder).sha256
    assert same(site.services.volumes.path_of(document["id"]), small)
    # They are used up.
    assert site.create(name="again", files=files).status_code == 409


def test_a_dicom_folder_becomes_one_volume(site, data_dir):
    folder = data_dir / "medical" / "totalsegmentator" / "example_ct_dicom"
    files = sorted(path for path in folder.iterdir() if path.is_file())
    made = site.create(
        name="ct",
        files=[{"path": path.name, "upload": site.keep(path.read_bytes())} for path in files],
    )
    document = site.wait(made.json()["id"])
    assert document["state"] == "ready", document
    local = lm.open(folder)
    assert document["geometry"]["shape"] == list(local.spatial_shape)
    assert document["sha256"] == path_fingerprint(folder).sha256


def test_a_folder_of_several_images_waits_for_a_choice(site, mrc):
    """What a job's options can settle is no refusal."""
    files = [{"path": name, "upload": site.keep(mrc)} for name in ("a.mrc", "b.mrc")]
    document = site.wait(site.create(name="two", files=files).json()["id"])
    assert document["state"] == "ready"
    assert document["geometry"] is None
    assert [note["code"] for note in document["notes"]] == ["needs_choice"]
    volumes = site.services.volumes
    assert volumes.resolve(f"volume:{document['id']}/a.mrc", "ann").name == "a.mrc"
    for inside in ("../a.mrc", "/etc/passwd", "c.mrc"):
        with pytest.raises(LamellaError):
            volumes.resolve(f"volume:{document['id']}/{inside}", "ann")
    with pytest.raises(MissingPathError):
        volumes.resolve(f"volume:{document['id']}", "bob")


@pytest.mark.parametrize("path", ["../a.mrc", "/a.mrc", "a\\b", "..", "a/../../b"])
def test_file_names_that_lead_elsewhere(site, mrc, path):
    upload = site.keep(mrc)
    answer = site.create(name="x", files=[{"path": path, "upload": upload}])
    assert answer.status_code == 422
    assert answer.json()["hint"]
    assert site.ask("GET", f"uploads/{upload}").json()["state"] == "finished"  # still there


def refused(site, document, word):
    """A refusal says why, names nothing of the server, keeps nothing, and costs nothing."""
    assert document["state"] == "refused"
    assert word in document["problem"]["message"], document["problem"]
    assert str(site.settings.data_dir) not in str(document)
    # The answer comes first: from then on no crash forgets it.
    wait_for(lambda: site.files() == [], "what was refused to go")
    with site.services.database.read() as connection:
        assert site.services.uploads.space.used(connection, "ann") == 0
    with pytest.raises(ConflictError, match="was refused"):
        site.services.volumes.path_of(document["id"])
    assert site.ask("DELETE", f"volumes/{document['id']}").status_code == 204


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("a.mrc", b"MAP " * 300, ""),
        ("notes.txt", b"hello", ""),
        ("a.tif", b"II*\0" + b"\xff" * 9, ""),
    ],
)
def test_files_that_are_no_volume_are_refused(site, name, content, word):
    document = site.volume(content, name)
    assert document["problem"]["hint"]
    refused(site, document, word)


def test_a_damaged_archive_is_refused(site):
    refused(site, site.volume(b"no archive", "a.zip", unpack="zip"), "zip archive cannot be read")


def test_an_unknown_kind_of_archive_is_refused(site, mrc):
    document = site.volume(mrc, "a.rar", unpack="rar")
    assert "expected zip or tar" in document["problem"]["message"]


def test_an_archive_that_unpacks_to_more_than_the_quota(make_site, tmp_path, pack):
    site = make_site(user_quota_bytes=50_000)
    folder = tmp_path / "scan"
    folder.mkdir()
    (folder / "zeros.raw").write_bytes(bytes(10**6))
    document = site.volume(pack(folder, "tgz"), "scan.tgz", unpack="tar")
    refused(site, document, "there is room for")


def test_a_path_of_the_server(make_site, tmp_path, mrc):
    (tmp_path / "open").mkdir()
    path = tmp_path / "open" / "tomo.mrc"
    path.write_bytes(mrc)
    site = make_site(allowed_roots=(str(tmp_path / "open"),))
    document = site.wait(site.create(path=str(path)).json()["id"])
    assert (document["state"], document["name"]) == ("ready", "tomo.mrc")
    assert site.services.volumes.path_of(document["id"]) == path
    outside = site.create(path=str(site.settings.data_dir / "secret.key"))
    assert outside.status_code == 403
    assert outside.json()["code"] == "forbidden"
    # It counts for nobody's quota, and stays when the volume is deleted.
    with site.services.database.read() as connection:
        assert site.services.uploads.space.used(connection, "ann") == 0
    assert site.ask("DELETE", f"volumes/{document['id']}").status_code == 204
    assert path.read_bytes() == mrc


def test_a_folder_of_the_server_has_the_size_of_its_files(make_site, zarr_folder):
    site = make_site(allowed_roots=(str(zarr_folder.parent),))
    document = site.wait(site.create(path=str(zarr_folder)).json()["id"])
    files = [path for path in zarr_folder.rglob("*") if path.is_file()]
    assert document["state"] == "ready"
    assert document["n_bytes"] == sum(path.stat().st_size for path in files) > 0
    with site.services.database.read() as connection:
        assert site.services.uploads.space.used(connection, "ann") == 0


def test_an_address_in_s3(make_site, s3_url, tmp_path, mrc, zarr_folder, small):
    from lamella.server.storage import S3Storage

    (tmp_path / "tomo.mrc").write_bytes(mrc)
    bucket = S3Storage(s3_url)
    bucket.put(tmp_path / "tomo.mrc", "in/tomo.mrc")
    bucket.put_folder(zarr_folder, "in/scan.ome.zarr")
    bucket.put(tmp_path / "tomo.mrc", "out/tomo.mrc")
    site = make_site(allowed_roots=(f"{s3_url}/in",))
    for name in ("tomo.mrc", "scan.ome.zarr"):
        document = site.wait(site.create(url=f"{s3_url}/in/{name}").json()["id"])
        assert (document["state"], document["name"]) == ("ready", name), document
        assert same(site.services.volumes.path_of(document["id"]), small)
    assert site.create(url=f"{s3_url}/out/tomo.mrc").status_code == 403
    missing = site.wait(site.create(url=f"{s3_url}/in/none.mrc").json()["id"])
    assert missing["state"] == "refused"
    assert "there is nothing at" in missing["problem"]["message"]
    # A job that names it finds the volume that is there.
    path = site.services.volumes.resolve(f"{s3_url}/in/tomo.mrc", "ann")
    assert len(site.ask("GET", "volumes").json()) == 3
    assert same(path, small)


def test_what_a_volume_cannot_be_made_of(site, mrc):
    open_upload = site.ask(
        "POST", "uploads", site.headers | {"Tus-Resumable": "1.0.0", "Upload-Length": "5"}
    ).headers["Location"].rpartition("/")[2]  # fmt: skip
    other = site.as_user("bob")
    theirs = site.keep(mrc)
    for spec, headers, status in (
        ({}, None, 422),
        ({"path": "/a", "url": "s3://b/c"}, None, 422),
        ({"path": "a/b"}, None, 422),
        ({"path": "/etc/passwd"}, None, 403),
        ({"url": "http://169.254.169.254/x"}, None, 422),
        ({"url": "s3://bucket/x"}, None, 403),
        ({"files": [{"path": "a", "upload": "0" * 32}]}, None, 404),
        ({"files": [{"path": "a", "upload": open_upload}]}, None, 409),
        ({"files": [{"path": "a", "upload": theirs}]}, other, 404),
        ({"files": [{"path": "a", "upload": theirs}] * 2}, None, 422),
    ):
        answer = site.create(headers, **spec)
        assert answer.status_code == status, (spec, answer.text)
        assert answer.json()["code"]
        assert answer.json()["hint"], answer.json()


def told(answer, name):
    """A problem without what differs in every answer."""
    document = {key: value for key, value in answer.json().items() if key != "request_id"}
    return str(document).replace(name, "ID")


def test_what_belongs_to_others_is_not_there(site, mrc):
    document = site.volume(mrc, "tomo.mrc")
    bob, eve, root = (
        site.as_user("bob"), site.as_user("eve", "viewer"), site.as_user("root", "admin"),
    )  # fmt: skip
    where = f"volumes/{document['id']}"
    assert site.ask("GET", where, bob).status_code == 404
    assert site.ask("DELETE", where, bob).status_code == 404
    assert site.ask("GET", "volumes", bob).json() == []
    assert site.create(eve, path="/a").status_code == 403
    assert site.ask("GET", where, root).status_code == 200
    # Nor does the answer tell what is somebody else's from what nobody has.
    upload = site.keep(mrc)
    for own, none in (
        (where, f"volumes/{'0' * 32}"),
        (f"{where}/ome.zarr/zarr.json", f"volumes/{'0' * 32}/ome.zarr/zarr.json"),
        (f"uploads/{upload}", f"uploads/{'0' * 32}"),
    ):
        theirs, nobodys = (site.ask("GET", one, bob) for one in (own, none))
        assert theirs.status_code == 404
        ids = own.split("/")[1], none.split("/")[1]
        assert told(theirs, ids[0]) == told(nobodys, ids[1])


def test_what_a_stop_left_unprepared_is_prepared_by_the_next_start(site, mrc, monkeypatch):
    """The server went down between the last byte and the volume."""
    with monkeypatch.context() as patch:
        patch.setattr(site.services.volumes, "begin", lambda _: None)
        volume = site.send(mrc, "tomo.mrc").headers["Lamella-Volume"]
    assert site.ask("GET", f"volumes/{volume}").json()["state"] == "preparing"
    assert site.ask("DELETE", f"volumes/{volume}").status_code == 409
    site.restart()
    assert site.wait(volume)["state"] == "ready"


def test_a_start_removes_folders_of_no_volume(site):
    (site.settings.data_dir / "volumes" / ("0" * 32)).mkdir()
    site.restart()
    deadline = time.monotonic() + 5
    while site.files() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert site.files() == []


def test_a_volume_that_a_job_needs_is_not_removed(site, mrc, monkeypatch):
    volume = site.volume(mrc, "tomo.mrc")["id"]
    monkeypatch.setattr(site.services.volumes, "_is_used", lambda one: one == volume)
    answer = site.ask("DELETE", f"volumes/{volume}")
    assert answer.status_code == 409
    assert "cancel the job" in answer.json()["hint"]
    assert site.services.volumes.removable() == ()


def test_an_empty_file_makes_no_volume(site):
    answer = site.send(b"", "empty.mrc")
    assert "Lamella-Volume" not in answer.headers
