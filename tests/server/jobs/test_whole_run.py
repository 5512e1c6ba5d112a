"""A job from submission to what viewers and downloads see: as a local run, and nothing of paths."""

import hashlib
import io
import json
import tarfile
import time

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import lamella as lm
from lamella.server.events.labels import decode_labels
from lamella.wire.event import LabelsDelta, parse_event
from lamella.wire.job import ArtifactDoc, JobDoc
from lamella.wire.manifest import RunManifest


def archive_of(site):
    answer = site.get(f"/jobs/{site.job}/artifacts/run.tar")
    assert answer.status_code == 200
    return tarfile.open(fileobj=io.BytesIO(answer.content))


def artifacts_of(site):
    listed = site.get(f"/jobs/{site.job}/artifacts").json()
    return {item["name"]: ArtifactDoc.model_validate(item) for item in listed}


# --- As a local run -----------------------------------------------------------------------------


def test_a_remote_run_is_a_local_run(finished, tmp_path):
    local = lm.segment(
        finished.inputs / "nuclei.mrc",
        "classical:otsu",
        instances="components",
        run_dir=tmp_path / "local.run",
    )
    with archive_of(finished) as archive:
        archive.extractall(tmp_path, filter="data")
    remote = lm.open_run(tmp_path / f"{finished.job}.run")
    assert remote.manifest.labels == local.manifest.labels
    assert remote.manifest.labels.sha256 == local.manifest.labels.sha256
    for name in ("objects.csv",):
        assert (remote.folder / name).read_bytes() == (local.folder / name).read_bytes()
    assert np.array_equal(remote.labels.load(), local.labels.load())
    same = ("request", "options_resolved", "input", "model", "runtime", "tiles_done", "outputs")
    for name in same:
        assert getattr(remote.manifest, name) == getattr(local.manifest, name), name
    document = JobDoc.model_validate(finished.get(f"/jobs/{finished.job}").json())
    assert document.n_objects == local.manifest.labels.n_objects
    assert document.summary["labels_sha256"] == local.manifest.labels.sha256


def test_the_archive_is_named_for_the_job_and_reproducible(finished):
    listed = artifacts_of(finished)["run.tar"]
    answer = finished.get(f"/jobs/{finished.job}/artifacts/run.tar")
    again = finished.get(f"/jobs/{finished.job}/artifacts/run.tar")
    assert answer.content == again.content
    assert hashlib.sha256(answer.content).hexdigest() == listed.sha256
    assert len(answer.content) == listed.n_bytes
    path = f"/api/v1/jobs/{finished.job}/artifacts/run.tar"
    for ask in (finished.client.head, finished.client.get):
        # Also where the answer is the way to the storage, which has tags of its own.
        told = ask(path, headers=finished.owner, follow_redirects=False)
        assert told.headers["etag"] == f'"{listed.sha256}"'
    with archive_of(finished) as archive:
        names = archive.getnames()
    assert f"{finished.job}.run/manifest.json" in names
    assert all(name.startswith(f"{finished.job}.run/") for name in names)


def test_an_upload_is_called_by_its_name_everywhere(finished):
    """No path of the server in anything that leaves it: archive, events, log, documents."""
    content = (finished.inputs / "nuclei.mrc").read_bytes()
    sent = finished.client.post(
        "/api/v1/uploads",
        content=content,
        headers={
            **finished.owner,
            "Tus-Resumable": "1.0.0",
            "Upload-Length": str(len(content)),
            "Upload-Metadata": "filename bnVjbGVpLm1yYw==",
            "Content-Type": "application/offset+octet-stream",
        },
    )
    assert sent.status_code == 201, sent.text
    volume = sent.headers["Lamella-Volume"]
    finished.services.volumes.wait(volume, 30)
    job = finished.submit(f"volume:{volume}").json()["id"]
    document = finished.wait(job)
    assert document["state"] == "finished", document
    data_dir = str(finished.folder / "data")
    for path in ("", "/events?limit=1000", "/log", "/manifest", "/artifacts"):
        assert data_dir not in finished.get(f"/jobs/{job}{path}").text, path
    answer = finished.get(f"/jobs/{job}/artifacts/run.tar")
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as archive:
        for member in archive.getmembers():
            file = archive.extractfile(member)
            assert data_dir.encode() not in file.read(), member.name
    manifest = RunManifest.model_validate(finished.get(f"/jobs/{job}/manifest").json())
    assert manifest.input.path == "nuclei.mrc"
    assert manifest.request.input.path == f"volume:{volume}"
    first = finished.get(f"/jobs/{finished.job}").json()
    # The same voxels by another way: the same labels.
    assert document["summary"]["labels_sha256"] == first["summary"]["labels_sha256"]


# --- Events -------------------------------------------------------------------------------------


def events_of(site, **params):
    params = {"limit": 1000, **params}
    answer = site.get(f"/jobs/{site.job}/events", params=params)
    assert answer.status_code == 200, answer.text
    return answer.json()


def sse_of(site, *, last_event_id=None, **params):
    headers = {**site.owner, "Accept": "text/event-stream"}
    if last_event_id is not None:
        headers["Last-Event-ID"] = str(last_event_id)
    answer = site.client.get(
        f"/api/v1/jobs/{site.job}/events", params={"coalesce": "false", **params}, headers=headers
    )
    if answer.status_code == 204:
        return []
    assert answer.headers["content-type"].startswith("text/event-stream")
    found = []
    for block in answer.text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line)
        if "data" in fields:
            document = json.loads(fields["data"])
            assert (str(document["number"]), document["type"]) == (fields["id"], fields["event"])
            found.append(document)
    return found


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=15)
@given(data=st.data())
def test_every_door_tells_the_same_from_any_number(finished, data):
    whole = events_of(finished)["events"]
    assert [event["number"] for event in whole] == list(range(1, len(whole) + 1))
    after = data.draw(st.integers(0, len(whole) + 2))
    suffix = whole[after:]
    assert events_of(finished, after=after)["events"] == suffix
    assert sse_of(finished, after=after) == suffix
    # What a browser sends by itself stands above what its address says.
    assert sse_of(finished, after=0, last_event_id=after) == suffix
    with finished.client.websocket_connect(
        f"/api/v1/jobs/{finished.job}/events/ws?after={after}&coalesce=false",
        headers=finished.owner,
    ) as socket:
        heard = [json.loads(socket.receive_text()) for _ in suffix]
        assert socket.receive()["code"] == 1000
    assert heard == suffix


def test_events_tell_the_whole_story(finished):
    page = events_of(finished)
    kinds = [event["type"] for event in page["events"]]
    states = [event["state"] for event in page["events"] if event["type"] == "state"]
    assert states == ["queued", "running", "finished"]
    assert {"started", "preview", "progress", "finished"} <= set(kinds)
    assert (page["state"], page["last"]) == ("finished", len(kinds))
    assert all(parse_event(json.dumps(event)).time_s > 0 for event in page["events"])


def test_previews_are_left_out_told_or_sent_with_labels(finished):
    none = sse_of(finished, previews="none")
    boxes = sse_of(finished, previews="boxes")
    labels = sse_of(finished, previews="labels")
    assert not [event for event in none if event["type"] == "preview"]
    told = [event for event in boxes if event["type"] == "preview"]
    assert told
    assert all(event["labels"] is None for event in told)
    sent = [event for event in labels if event["type"] == "preview"]
    assert [event["number"] for event in sent] == [event["number"] for event in told]
    delta = LabelsDelta.model_validate(sent[0]["labels"])
    coarse = decode_labels(delta)
    assert coarse.shape == delta.shape
    assert coarse.any()


def test_a_stream_of_a_job_that_has_ended_ends(finished):
    last = events_of(finished)["last"]
    answer = finished.client.get(
        f"/api/v1/jobs/{finished.job}/events",
        headers={**finished.owner, "Accept": "text/event-stream", "Last-Event-ID": str(last)},
    )
    assert answer.status_code == 204
    began = time.monotonic()
    assert events_of(finished, after=last, wait_s=30)["events"] == []
    assert time.monotonic() - began < 5


def test_odd_questions_about_events(finished):
    accept = {**finished.owner, "Accept": "text/event-stream", "Last-Event-ID": "x; DROP"}
    answer = finished.client.get(f"/api/v1/jobs/{finished.job}/events", headers=accept)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_input")
    for params in ({"after": -1}, {"limit": 0}, {"previews": "all"}, {"wait_s": 61}):
        answer = finished.get(f"/jobs/{finished.job}/events", params=params)
        assert answer.status_code == 422, params


def test_the_log_is_for_people(finished):
    lines = finished.get(f"/jobs/{finished.job}/log").text.splitlines()
    assert lines[0].endswith("queued, position 1")
    assert lines[-1].endswith("finished (attempt 1)")
    assert any("classical:otsu on 24 x 64 x 64 voxels" in line for line in lines)


# --- Artifacts ----------------------------------------------------------------------------------


def test_signed_addresses_need_no_token(finished):
    for name, item in artifacts_of(finished).items():
        if item.n_bytes is None:
            continue
        answer = finished.open_url(item.url)
        assert answer.status_code == 200, name
        assert len(answer.content) == item.n_bytes
        assert answer.headers["access-control-allow-origin"] == "*"
        assert answer.headers["content-disposition"] == f'attachment; filename="{name}"'
        part = finished.open_url(item.url, headers={"Range": "bytes=-5"})
        assert (part.status_code, part.content) == (206, answer.content[-5:])
        head = finished.client.head(item.url.removeprefix("http://testserver"))
        assert (head.status_code, head.content) == (200, b"")
        assert int(head.headers["content-length"]) == item.n_bytes


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_change_of_a_signed_address_is_refused(finished, data):
    url = artifacts_of(finished)["objects.csv"].url.removeprefix("http://testserver")
    begin = url.index(finished.job)
    at = data.draw(st.integers(begin, len(url) - 1))
    letters = st.characters(codec="ascii", categories=("L", "N")) | st.sampled_from("-_")
    letter = data.draw(letters.filter(lambda c: c != url[at]))
    changed = url[:at] + letter + url[at + 1 :]
    answer = finished.client.get(changed)
    # 422: two of its parts became one, which is too long to be either.
    assert answer.status_code in (403, 404, 410, 422), changed
    assert b"voxels" not in answer.content


def test_an_expired_address_is_refused(finished):
    signer = finished.services.signer
    old = signer.sign("artifact", finished.job, "objects.csv", lifetime_s=-1)
    query = f"expires={old.expires}&signature={old.signature}"
    answer = finished.client.get(f"/api/v1/artifacts/{finished.job}/objects.csv?{query}")
    assert (answer.status_code, answer.json()["code"]) == (410, "gone")
    # One signed for viewers opens no artifact, and the other way round.
    other = signer.sign("view-job", finished.job, "objects.csv")
    query = f"expires={other.expires}&signature={other.signature}"
    answer = finished.client.get(f"/api/v1/artifacts/{finished.job}/objects.csv?{query}")
    assert answer.status_code == 403
    assert finished.client.get(f"/api/v1/artifacts/{finished.job}/objects.csv").status_code == 403


def test_exports_asked_for_and_on_demand(finished, tmp_path):
    local = finished.get(f"/jobs/{finished.job}/artifacts/labels.mrc")
    (tmp_path / "labels.mrc").write_bytes(local.content)
    name = f"/jobs/{finished.job}/artifacts/labels.nii.gz"
    deadline = time.monotonic() + 60
    while (answer := finished.get(name)).status_code == 202:
        assert answer.headers["retry-after"]
        assert answer.json() == {"name": "labels.nii.gz", "state": "preparing"}
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert answer.status_code == 200, answer.text
    (tmp_path / "labels.nii.gz").write_bytes(answer.content)
    one, two = (lm.open(tmp_path / name) for name in ("labels.mrc", "labels.nii.gz"))
    assert np.array_equal(one.load(), two.load())
    assert "labels.nii.gz" in artifacts_of(finished)


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("labels.docx", 422),
        ("labels.zarr", 422),
        ("labels.hdr", 422),
        ("labels", 404),
        ("nothing.txt", 404),
        (".lock", 404),
        ("labels.mrc.json", 422),
        ("..%2f..%2fsecret.key", 404),
        ("labels.%2f..%2f..%2fx.mrc", 404),
    ],
)
def test_what_is_no_artifact(finished, name, status):
    answer = finished.get(f"/jobs/{finished.job}/artifacts/{name}")
    assert answer.status_code == status, answer.text
    assert answer.json()["hint"]


# --- Viewers ------------------------------------------------------------------------------------


def test_labels_are_read_where_they_lie(finished, tmp_path):
    view = finished.get(f"/jobs/{finished.job}/view-url").json()
    assert (view["state"], view["version"]) == ("ready", "0.5")
    document = finished.open_url(f"{view['url']}/zarr.json")
    assert document.headers["access-control-allow-origin"] == "*"
    assert document.headers["cross-origin-resource-policy"] == "cross-origin"
    multiscale = document.json()["attributes"]["ome"]["multiscales"][0]
    assert [axis["name"] for axis in multiscale["axes"]] == ["z", "y", "x"]
    # Every file, one by one, is the run's: what zarr then opens is the labels.
    with archive_of(finished) as archive:
        prefix = f"{finished.job}.run/labels.ome.zarr/"
        names = [n.removeprefix(prefix) for n in archive.getnames() if n.startswith(prefix)]
    for name in names:
        answer = finished.open_url(f"{view['url']}/{name}")
        assert answer.status_code == 200
        (tmp_path / "l.ome.zarr" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "l.ome.zarr" / name).write_bytes(answer.content)
    array = zarr.open_array(tmp_path / "l.ome.zarr" / "0", mode="r")
    assert array.shape == (24, 64, 64)


def test_viewers_hear_no_from_other_pages_too(finished):
    view = finished.get(f"/jobs/{finished.job}/view-url").json()
    for inside in ("0/c/9/9/9", "0/%2e%2e/%2e%2e/manifest.json", "0//zarr.json", "", "0", ".lock"):
        answer = finished.open_url(f"{view['url']}/{inside}")
        assert answer.status_code == 404, inside
        assert answer.headers["access-control-allow-origin"] == "*"
    preflight = finished.client.options(
        f"{view['url'].removeprefix('http://testserver')}/zarr.json",
        headers={"Origin": "https://viewer.example", "Access-Control-Request-Method": "GET"},
    )
    assert preflight.status_code == 204
    assert preflight.headers["access-control-allow-origin"] == "*"
    assert "Range" in preflight.headers["access-control-allow-headers"]


def test_a_view_is_good_for_its_image_only(finished):
    view = finished.get(f"/jobs/{finished.job}/view-url").json()["url"]
    sealed = view.split("/view/")[1].split("/")[0]
    for path in (
        f"{sealed}/volumes/{finished.job}/ome.zarr/zarr.json",
        f"{sealed[:-1]}{'+-'[sealed[-1] == '+']}/jobs/{finished.job}/labels.ome.zarr/zarr.json",
        f"0{sealed}/jobs/{finished.job}/labels.ome.zarr/zarr.json",
        f"x/jobs/{finished.job}/labels.ome.zarr/zarr.json",
    ):
        answer = finished.client.get(f"/api/v1/view/{path}")
        assert answer.status_code in (403, 410), path
    bare = finished.client.get(f"/api/v1/jobs/{finished.job}/labels.ome.zarr/zarr.json")
    assert bare.status_code == 401


def test_a_volume_becomes_a_pyramid(finished):
    made = finished.client.post(
        "/api/v1/volumes",
        json={"path": str(finished.inputs / "nuclei.mrc")},
        headers=finished.owner,
    ).json()
    finished.services.volumes.wait(made["id"], 30)
    deadline = time.monotonic() + 60
    while (view := finished.get(f"/volumes/{made['id']}/view-url").json())["state"] == "preparing":
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert (view["state"], view["version"]) == ("ready", "0.5"), view
    answer = finished.open_url(f"{view['url']}/0/zarr.json")
    assert answer.json()["shape"] == [24, 64, 64]
    document = finished.get(f"/volumes/{made['id']}").json()
    assert document["pyramid"] == f"/api/v1/volumes/{made['id']}/ome.zarr"
    with_token = finished.get(f"/volumes/{made['id']}/ome.zarr/zarr.json")
    assert with_token.status_code == 200
    assert finished.get(f"/volumes/{made['id']}/ome.zarr/zarr.json", user="otto").status_code == 404
