"""The protocol as a client sees it: every status that tus asks for, and what is left on disk."""

import base64
import errno
import hashlib
import os
import time

import pytest

from lamella.server.uploads.journal import OffsetJournal

BODY = b"0123456789"
BODY_TYPE = "application/offset+octet-stream"


def encoded(text):
    return base64.b64encode(text.encode()).decode()


def test_what_the_server_can_is_told_without_a_token(tus):
    answer = tus.client.options("/api/v1/uploads")
    assert answer.status_code == 204
    assert answer.headers["Tus-Version"] == "1.0.0"
    assert "concatenation" in answer.headers["Tus-Extension"].split(",")
    assert answer.headers["Tus-Checksum-Algorithm"] == "sha1,sha256"
    assert int(answer.headers["Tus-Max-Size"]) == tus.settings.max_upload_bytes


def test_an_upload_in_three_chunks(tus):
    place = tus.create(10, {"filename": "tomo.mrc", "sha256": hashlib.sha256(BODY).hexdigest()})
    assert place.status_code == 201
    assert "Upload-Expires" in place.headers
    where = place.headers["Location"]
    for start, stop in ((0, 4), (4, 5), (5, 10)):
        answer = tus.patch(where, start, BODY[start:stop])
        assert (answer.status_code, answer.headers["Upload-Offset"]) == (204, str(stop))
        assert answer.headers["Tus-Resumable"] == "1.0.0"
    head = tus.ask("HEAD", where)
    assert (head.headers["Upload-Length"], head.headers["Upload-Offset"]) == ("10", "10")
    assert head.headers["Cache-Control"] == "no-store"
    document = tus.ask("GET", where).json()
    assert document["state"] == "finished"
    assert document["sha256"] == hashlib.sha256(BODY).hexdigest()
    assert document["name"] == "tomo.mrc"


def test_bytes_with_the_creation(tus):
    answer = tus.ask(
        "POST", "uploads", BODY[:6], Upload_Length="10",
        Content_Type="application/offset+octet-stream",
    )  # fmt: skip
    assert (answer.status_code, answer.headers["Upload-Offset"]) == (201, "6")
    assert tus.offset(answer.headers["Location"]) == 6


def test_an_upload_of_nothing_is_finished_at_once(tus):
    where = tus.create(0).headers["Location"]
    assert tus.ask("GET", where).json()["state"] == "finished"


def test_a_length_told_later(tus):
    where = tus.create(None).headers["Location"]
    head = tus.ask("HEAD", where)
    assert head.headers["Upload-Defer-Length"] == "1"
    assert tus.patch(where, 0, BODY[:4]).status_code == 204
    assert tus.patch(where, 4, b"", Upload_Length="3").status_code == 400
    assert tus.patch(where, 4, BODY[4:], Upload_Length="10").status_code == 204
    assert tus.patch(where, 10, b"", Upload_Length="11").status_code in (204, 400)
    assert tus.ask("GET", where).json()["state"] == "finished"


@pytest.mark.parametrize("algorithm", ["sha1", "sha256"])
def test_a_chunk_with_another_checksum_is_discarded(tus, told_checksum, algorithm):
    where = tus.create(10, {"sha256": hashlib.sha256(BODY).hexdigest()}).headers["Location"]
    assert tus.patch(where, 0, BODY[:4]).status_code == 204
    wrong = tus.patch(where, 4, b"xxx", Upload_Checksum=told_checksum(BODY[4:7], algorithm))
    assert wrong.status_code == 460
    assert wrong.json()["code"] == "checksum_mismatch"
    assert wrong.json()["details"] == {"offset": 4}
    assert tus.offset(where) == 4
    rest = tus.patch(where, 4, BODY[4:], Upload_Checksum=told_checksum(BODY[4:], algorithm))
    assert rest.status_code == 204  # and the whole file's hash forgot the discarded bytes


def test_a_whole_file_with_another_sha256_is_rejected(tus):
    where = tus.create(10, {"sha256": "0" * 64}).headers["Location"]
    answer = tus.patch(where, 0, BODY)
    assert answer.status_code == 460
    assert "announced was 000" in answer.json()["detail"]
    assert tus.ask("GET", where).json()["state"] == "rejected"
    assert tus.ask("HEAD", where).status_code == 410
    assert tus.patch(where, 0, BODY).status_code == 410
    upload = where.rpartition("/")[2]
    assert not (tus.services.uploads.folder / upload).exists()


def test_parts_side_by_side_become_one(tus):
    pieces = (BODY[:3], BODY[3:7], BODY[7:])
    places = [tus.create(len(one), Upload_Concat="partial").headers["Location"] for one in pieces]
    early = tus.ask("POST", "uploads", Upload_Concat="final;" + " ".join(places))
    assert early.status_code == 409
    for place, piece in reversed(list(zip(places, pieces, strict=True))):
        assert tus.patch(place, 0, piece).status_code == 204
    assert tus.ask("HEAD", places[0]).headers["Upload-Concat"] == "partial"
    told = "final;" + " ".join(place.removeprefix("http://testserver") for place in places)
    joined = tus.ask("POST", "uploads", Upload_Concat=told)
    assert joined.status_code == 201
    where = joined.headers["Location"]
    head = tus.ask("HEAD", where)
    assert head.headers["Upload-Offset"] == head.headers["Upload-Length"] == "10"
    assert head.headers["Upload-Concat"] == "final;" + " ".join(places)
    assert tus.ask("GET", where).json()["sha256"] == hashlib.sha256(BODY).hexdigest()
    assert tus.patch(where, 10, b"x").status_code == 403
    # The answer was lost, the client asks again: the same upload, no second copy.
    assert tus.ask("POST", "uploads", Upload_Concat=told).headers["Location"] == where
    swapped = "final;" + " ".join(reversed(places))
    assert tus.ask("POST", "uploads", Upload_Concat=swapped).status_code == 409
    # The parts' bytes are gone, and count no longer.
    with tus.services.database.read() as connection:
        assert tus.services.uploads.space.used(connection, "ann") in (10, 20)


def test_parts_that_are_none(tus):
    whole = tus.create(0).headers["Location"]
    assert tus.ask("POST", "uploads", Upload_Concat=f"final;{whole}").status_code == 409
    unknown = "/elsewhere/uploads/" + "0" * 32
    assert tus.ask("POST", "uploads", Upload_Concat=f"final;{unknown}").status_code == 404
    assert tus.ask("POST", "uploads", Upload_Concat="final;").status_code == 400


def test_a_termination_leaves_nothing(tus):
    where = tus.create(10).headers["Location"]
    tus.patch(where, 0, BODY[:4])
    assert tus.ask("DELETE", where).status_code == 204
    assert tus.ask("HEAD", where).status_code == 404
    assert tus.patch(where, 4, BODY[4:]).status_code == 404
    assert list(tus.services.uploads.folder.iterdir()) == []


def test_clients_behind_proxies_that_let_only_post_pass(tus):
    where = tus.create(10).headers["Location"]
    told = {"Content_Type": "application/offset+octet-stream", "Upload_Offset": "0"}
    done = tus.ask("POST", where, BODY[:4], X_HTTP_Method_Override="PATCH", **told)
    assert (done.status_code, done.headers["Upload-Offset"]) == (204, "4")
    asked = tus.ask("POST", where, X_HTTP_Method_Override="HEAD")
    assert asked.headers["Upload-Offset"] == "4"
    assert tus.ask("POST", where, X_HTTP_Method_Override="GET").status_code == 405
    assert tus.ask("POST", where, X_HTTP_Method_Override="DELETE").status_code == 204


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"Upload_Offset": "3"}, 409),
        ({"Upload_Offset": "nine"}, 400),
        ({"Content_Type": "application/octet-stream"}, 415),
        ({"Tus_Resumable": "0.2.2"}, 412),
        ({"Upload_Checksum": "md5 AAAA"}, 400),
        ({"Upload_Checksum": "sha1 AAAA"}, 400),
        ({"Upload_Length": "12"}, 400),
    ],
)
def test_what_a_patch_may_not_say(tus, change, status):
    where = tus.create(10).headers["Location"]
    answer = tus.patch(where, **{"offset": 0, "body": b"abc"} | change)
    assert answer.status_code == status
    assert answer.json()["code"]
    assert answer.headers["Tus-Resumable"] == "1.0.0"
    if status == 412:
        assert answer.headers["Tus-Version"] == "1.0.0"
    assert tus.offset(where) == 0


def test_more_bytes_than_announced_are_refused(tus):
    where = tus.create(10).headers["Location"]
    assert tus.patch(where, 0, BODY + b"x").status_code == 413
    assert tus.offset(where) == 0


@pytest.mark.parametrize(
    "told",
    [
        {},
        {"Upload_Length": "5", "Upload_Defer_Length": "1"},
        {"Upload_Defer_Length": "2"},
        {"Upload_Length": "-5"},
        {"Upload_Length": "5", "Upload_Metadata": "sha256 eHl6"},
        {"Upload_Length": "5", "Upload_Concat": "finally"},
        {"Upload_Length": "5", "Idempotency_Key": "k" * 256},
    ],
)
def test_what_a_creation_may_not_say(tus, told):
    assert tus.ask("POST", "uploads", **told).status_code == 400
    assert list(tus.services.uploads.folder.iterdir()) == []


def test_the_same_key_finds_the_same_upload(tus):
    first = tus.create(10, Idempotency_Key="k1")
    again = tus.create(10, Idempotency_Key="k1")
    assert again.headers["Location"] == first.headers["Location"]
    assert tus.create(11, Idempotency_Key="k1").status_code == 409
    assert tus.create(10, Idempotency_Key="k2").headers["Location"] != first.headers["Location"]


def test_what_belongs_to_others_is_not_there(tus):
    where = tus.create(10).headers["Location"]
    part = tus.create(0, Upload_Concat="partial").headers["Location"]
    other = tus.other("bob")
    assert tus.ask("HEAD", where, **other).status_code == 404
    assert tus.ask("GET", where, **other).status_code == 404
    assert tus.patch(where, 0, b"x", **other).status_code == 404
    assert tus.ask("DELETE", where, **other).status_code == 404
    assert tus.ask("POST", "uploads", Upload_Concat=f"final;{part}", **other).status_code == 404
    assert tus.ask("GET", "uploads", **other).json() == []
    viewer = tus.other("eve", "viewer")
    assert tus.create(10, **viewer).status_code == 403
    admin = tus.other("root", "admin")
    assert len(tus.ask("GET", "uploads", **admin).json()) == 2


def test_too_large_an_upload_is_refused_at_once(make_tus):
    tus = make_tus(max_upload_bytes=100)
    answer = tus.create(101)
    assert answer.status_code == 413
    assert "at most 100 bytes" in answer.json()["detail"]
    where = tus.create(None).headers["Location"]
    assert tus.patch(where, 0, bytes(101)).status_code == 413


def test_a_quota_counts_what_was_promised(make_tus):
    tus = make_tus(user_quota_bytes=100)
    first = tus.create(60).headers["Location"]
    refused = tus.create(41)
    assert refused.status_code == 413
    assert refused.json()["code"] == "quota_exceeded"
    assert refused.json()["details"] == {"limit_bytes": 100, "used_bytes": 60, "asked_bytes": 41}
    assert tus.create(90, **tus.other("bob")).status_code == 201  # everybody has a quota
    tus.ask("DELETE", first)
    assert tus.create(41).status_code == 201


def test_a_deferred_length_counts_once_it_is_told(make_tus):
    tus = make_tus(user_quota_bytes=100)
    where = tus.create(None).headers["Location"]
    assert tus.patch(where, 0, bytes(50), Upload_Length="101").status_code == 413
    assert tus.patch(where, 0, bytes(50), Upload_Length="100").status_code == 204


def test_without_a_length_no_more_comes_than_there_is_room_for(make_tus):
    tus = make_tus(user_quota_bytes=100)
    where = tus.create(None).headers["Location"]
    assert tus.patch(where, 0, bytes(60)).status_code == 204
    refused = tus.patch(where, 60, bytes(41))
    assert refused.status_code == 413
    assert "60 on reach beyond the 100" in refused.json()["detail"]
    # Nor when the body does not say how long it is.
    chunked = {"Content_Type": BODY_TYPE, "Upload_Offset": "60"}
    assert tus.ask("PATCH", where, iter([bytes(20), bytes(21)]), **chunked).status_code == 413
    assert tus.offset(where) == 60
    assert tus.patch(where, 60, bytes(40)).status_code == 204


def test_a_quota_counts_joined_parts_once(make_tus):
    tus = make_tus(user_quota_bytes=100)
    places = [tus.create(45, Upload_Concat="partial").headers["Location"] for _ in range(2)]
    for place in places:
        tus.patch(place, 0, bytes(45))
    thrice = "final;" + " ".join([*places, places[0]])
    assert tus.ask("POST", "uploads", Upload_Concat=thrice).status_code == 413
    joined = tus.ask(
        "POST", "uploads", Upload_Concat="final;" + " ".join(places),
        Upload_Metadata=f"volume {encoded('0')}",
    )  # fmt: skip
    assert joined.status_code == 201
    assert tus.create(11).status_code == 413
    assert tus.create(10).status_code == 201


def test_a_user_may_have_a_quota_of_their_own(make_tus):
    import sqlalchemy as sa

    from lamella.jobs.tables import users

    tus = make_tus(user_quota_bytes=100)
    with tus.services.database.begin() as connection:
        connection.execute(
            sa.insert(users).values(
                owner="ann", weight=1.0, usage_s=0.0, usage_time=0.0, quota_bytes=10
            )
        )
    assert tus.create(11).status_code == 413
    assert tus.create(11, **tus.other("bob")).status_code == 201


def test_a_server_holds_only_so_much(make_tus):
    tus = make_tus(max_total_bytes=100)
    assert tus.create(60).status_code == 201
    assert tus.create(60, **tus.other("bob")).status_code == 413


def test_a_full_disk_is_told_before_a_byte_is_sent(make_tus):
    tus = make_tus(min_free_bytes=2**60)
    answer = tus.create(10)
    assert answer.status_code == 507
    assert answer.json()["code"] == "storage"


def test_a_disk_that_fills_up_on_the_way_loses_nothing(tus, monkeypatch):
    where = tus.create(10).headers["Location"]
    assert tus.patch(where, 0, BODY[:4]).status_code == 204

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("lamella.server.uploads.file.os.pwritev", full)
        answer = tus.patch(where, 4, BODY[4:])
    assert answer.status_code == 507
    assert answer.json()["code"] == "storage"
    assert str(tus.settings.data_dir) not in answer.text
    assert tus.offset(where) == 4
    assert tus.patch(where, 4, BODY[4:]).status_code == 204
    assert tus.ask("GET", where).json()["sha256"] == hashlib.sha256(BODY).hexdigest()


def test_an_upload_that_nobody_touches_expires(make_tus):
    tus = make_tus(upload_expiry_s=0.2)
    where = tus.create(10).headers["Location"]
    tus.patch(where, 0, BODY[:4])
    time.sleep(0.3)
    assert tus.ask("HEAD", where).status_code == 410
    assert tus.patch(where, 4, BODY[4:]).status_code == 410
    assert len(tus.services.uploads.expire()) == 1
    assert tus.ask("HEAD", where).status_code == 404
    assert list(tus.services.uploads.folder.iterdir()) == []


def test_a_crash_between_the_last_byte_and_its_record_is_mended(tus):
    """All bytes are on disk, and the database does not know it yet."""
    from lamella.server.uploads.file import UploadFile

    places = [tus.create(10).headers["Location"] for _ in range(2)]
    for place in places:
        with UploadFile(tus.services.uploads.folder / place.rpartition("/")[2]) as file:
            file.write([BODY])
            file.commit()
    tus.crash()
    assert tus.offset(places[0]) == 10  # whoever asks finishes it
    tus.services.uploads._recover()  # and so does the start of the server
    for place in places:
        assert tus.ask("GET", place).json()["state"] == "finished"
        assert tus.ask("GET", place).json()["sha256"] == hashlib.sha256(BODY).hexdigest()


def test_ids_that_are_none_are_not_found(tus):
    for name in ("..", "a" * 31, "A" * 32, "%2e%2e%2fetc", "0" * 33):
        assert tus.ask("HEAD", f"uploads/{name}").status_code in (404, 405)


def test_files_beyond_four_gigabytes(tus):
    """All but the end is a hole, which takes no room and no time."""
    n_bytes = 2**32 + 10
    where = tus.create(n_bytes, Upload_Concat="partial").headers["Location"]
    folder = tus.services.uploads.folder / where.rpartition("/")[2]
    os.truncate(folder / "data", 2**32)
    with OffsetJournal(folder / "offset") as journal:
        journal.append(2**32)
    assert tus.offset(where) == 2**32
    answer = tus.patch(where, 2**32, BODY)
    assert (answer.status_code, answer.headers["Upload-Offset"]) == (204, str(n_bytes))
    assert tus.ask("GET", where).json()["state"] == "finished"
    with (folder / "data").open("rb") as stream:
        stream.seek(2**32 - 1)
        assert stream.read() == b"\0" + BODY


def test_who_did_what_is_kept(tus):
    where = tus.create(10).headers["Location"]
    tus.ask("DELETE", where)
    import sqlalchemy as sa

    from lamella.server.tables import audit

    with tus.services.database.read() as connection:
        rows = connection.execute(sa.select(audit.c.action, audit.c.status, audit.c.user)).all()
    assert [tuple(row) for row in rows] == [
        ("upload.create", 201, "ann"), ("upload.delete", 204, "ann")
    ]  # fmt: skip
