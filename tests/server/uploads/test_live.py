"""Large bodies against a real server, whose threads read them from the socket."""

import base64
import hashlib
import random
import re

import httpx2
import psutil
import pytest

from lamella.testing.server import run_server

BODY = random.Random(5).randbytes(3 * 2**20 + 17)


def checksum(body):
    return "sha256 " + base64.b64encode(hashlib.sha256(body).digest()).decode()


def test_one_connection_through_a_wrong_checksum_to_a_finished_upload(live_server):
    """Refused, asked, sent again in two requests: each answer is the right one, all are counted."""
    headers = live_server.headers | {"Tus-Resumable": "1.0.0"}
    told = {
        "filename": b"a.raw",
        "volume": b"0",
        "sha256": hashlib.sha256(BODY).hexdigest().encode(),
    }
    metadata = ",".join(f"{key} {base64.b64encode(value).decode()}" for key, value in told.items())
    with httpx2.Client(base_url=live_server.url, headers=headers) as client:
        made = client.post(
            "/api/v1/uploads",
            headers={"Upload-Length": str(len(BODY)), "Upload-Metadata": metadata},
        )
        assert made.status_code == 201
        place = made.headers["location"]

        def send(offset, body, check=None):
            own = {
                "Upload-Offset": str(offset),
                "Content-Type": "application/offset+octet-stream",
            }
            if check is not None:
                own["Upload-Checksum"] = check
            return client.patch(place, headers=own, content=body)

        refused = send(0, BODY, checksum(b"another"))
        assert refused.status_code == 460
        assert client.head(place).headers["upload-offset"] == "0"
        assert send(1, BODY[1:]).status_code == 409
        assert send(0, BODY[: 2**20], checksum(BODY[: 2**20])).status_code == 204
        assert send(0, BODY).status_code == 409
        done = send(2**20, BODY[2**20 :])
        assert (done.status_code, done.headers["upload-offset"]) == (204, str(len(BODY)))
        found = client.get(place).json()
        assert (found["state"], found["sha256"]) == ("finished", hashlib.sha256(BODY).hexdigest())
        counted = re.search(
            r"^lamella_http_received_bytes_total (\S+)", client.get("/metrics").text, re.MULTILINE
        )
    assert counted is not None
    # The refused bodies were not all read: two of them came whole.
    assert float(counted[1]) >= 2 * len(BODY)


def test_a_server_takes_as_many_files_as_it_may(tmp_path):
    """Six descriptors an upload: the usual 1,024 would end at 170 uploads at once."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(1024, hard), hard))
    try:
        with run_server(tmp_path / "data") as server:
            found, _ = psutil.Process(server.pid).rlimit(resource.RLIMIT_NOFILE)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert found == (65_536 if hard == resource.RLIM_INFINITY else min(hard, 65_536))
