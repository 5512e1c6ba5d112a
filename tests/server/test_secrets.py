"""A server in real use leaves no secret behind: not in its log, database, run folders or answers.

It is then told to stop while a job runs.
"""

import base64
import io
import json
import sqlite3
import ssl
import tarfile
import time

import httpx2
import numpy as np
import psutil
import pytest
import websockets.sync.client

from lamella.io.format import save_volume
from lamella.testing.server import run_server
from lamella.volume import Volume

JOB = {"model": "classical:otsu", "instances": "components"}
FINAL = ("finished", "failed", "cancelled")
# Secrets by design: whoever can read these files is the server.
OWN = ("secret.key", "key.pem")
GRACE_S = 10


class Site:
    """A server, whoever uses it, and every secret that there has been."""

    def __init__(self, server, client, folder):
        self.server, self.client, self.folder = server, client, folder
        self.secrets = {server.token.split("_", 2)[2]}
        self.answers = []

    def ask(self, method, path, **words):
        answer = self.client.request(method, f"/api/v1{path}", **words)
        self.answers.append(answer.text if "json" in answer.headers.get("content-type", "") else "")
        return answer

    def submit(self, path, **words):
        answer = self.ask(
            "POST", "/jobs", json={"request": {**JOB, "input": {"path": path}}}, **words
        )
        assert answer.status_code == 201, answer.text
        return answer.json()["id"]

    def wait(self, job, states, headers):
        deadline = time.monotonic() + 90
        while True:
            document = self.ask("GET", f"/jobs/{job}", headers=headers).json()
            if document["state"] in states:
                return document
            assert time.monotonic() < deadline, document
            time.sleep(0.05)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("secrets")
    rng = np.random.default_rng(0)
    for name, shape in (("small", (16, 48, 48)), ("large", (96, 320, 320))):
        data = rng.normal(100, 10, shape).astype(np.float32)
        data[4:12, 10:30, 10:30] += 200
        volume = Volume.from_array(data, spacing=(2.0, 1.0, 1.0), unit="um")
        save_volume(volume, folder / f"{name}.mrc")
    flags = (
        "--tls", "self-signed", "--allow-root", str(folder), "--log-level", "debug",
        "--shutdown-grace-s", str(GRACE_S), "--gpus", "none",
    )  # fmt: skip
    with run_server(folder / "data", *flags) as server:
        context = ssl.create_default_context(cafile=server.certificate)
        with httpx2.Client(base_url=server.url, verify=context, timeout=60) as client:
            yield Site(server, client, folder)


def use(site):
    """What users do in a day, the foolish things too; the id of a job that still runs."""
    admin = site.server.headers
    made = site.ask("POST", "/tokens", json={"user": "maria", "name": "laptop"}, headers=admin)
    site.answers.pop()  # the one answer that holds a secret
    secret = made.json()["secret"]
    site.secrets.add(secret.split("_", 2)[2])
    user = {"Authorization": f"Bearer {secret}"}
    job = upload_and_run(site, user)
    watch(site, job, secret)
    download(site, job, user)
    # Foolish things: secrets where none belong, and wrong ones.
    site.ask("GET", f"/jobs?token={secret}")
    site.ask("DELETE", f"/tokens/{secret}", headers=admin)
    wrong = "lam_0123456789ab_" + "W" * 43
    site.secrets.add("W" * 43)
    for header in (
        f"Bearer {wrong}",
        "Basic " + base64.b64encode(b"maria:hush-hush-hush").decode(),
    ):
        site.ask("GET", "/jobs", headers={"Authorization": header})
    site.secrets.add(base64.b64encode(b"maria:hush-hush-hush").decode())
    running = site.submit(str(site.folder / "large.mrc"), headers=user)
    site.wait(running, ("running", *FINAL), user)
    return running


def upload_and_run(site, user):
    content = (site.folder / "small.mrc").read_bytes()
    sent = site.ask(
        "POST",
        "/uploads",
        content=content,
        headers={
            **user,
            "Tus-Resumable": "1.0.0",
            "Upload-Length": str(len(content)),
            "Upload-Metadata": "filename " + base64.b64encode(b"small.mrc").decode(),
            "Content-Type": "application/offset+octet-stream",
        },
    )
    volume = sent.headers["Lamella-Volume"]
    while site.ask("GET", f"/volumes/{volume}", headers=user).json()["state"] == "preparing":
        time.sleep(0.05)
    job = site.submit(f"volume:{volume}", headers=user)
    document = site.wait(job, FINAL, user)
    assert document["state"] == "finished", document
    return job


def watch(site, job, secret):
    """As a page in a browser: the token goes as a subprotocol; and the stream."""
    context = ssl.create_default_context(cafile=site.server.certificate)
    url = site.server.url.replace("https:", "wss:")
    with websockets.sync.client.connect(
        f"{url}/api/v1/jobs/{job}/events/ws", ssl=context, proxy=None,
        subprotocols=["lamella.v1", f"bearer.{secret}"],
    ) as socket:  # fmt: skip
        assert socket.subprotocol == "lamella.v1", "the one with the token is never repeated"
        site.answers += list(socket)
    stream = {"Authorization": f"Bearer {secret}", "Accept": "text/event-stream"}
    site.answers.append(site.ask("GET", f"/jobs/{job}/events", headers=stream).text)


def download(site, job, user):
    listed = site.ask("GET", f"/jobs/{job}/artifacts", headers=user).json()
    urls = [item["url"] for item in listed]
    urls.append(site.ask("GET", f"/jobs/{job}/view-url", headers=user).json()["url"])
    site.answers[-2:] = []  # signed addresses are what these two answer
    for url in urls:
        assert "lam_" not in url
        signature = url.partition("signature=")[2] or url.partition("/view/")[2].split("/")[0]
        site.secrets.add(signature.partition("-")[2] if "/view/" in url else signature)
        site.client.get(url if "/view/" not in url else f"{url}/zarr.json")
    archive = site.client.get(f"/api/v1/jobs/{job}/artifacts/run.tar", headers=user)
    with tarfile.open(fileobj=io.BytesIO(archive.content)) as files:
        for member in files.getmembers():
            site.answers.append(files.extractfile(member).read().decode("latin-1"))
    for path in ("log", "manifest", "artifacts/report.html"):
        site.answers.append(site.client.get(f"/api/v1/jobs/{job}/{path}", headers=user).text)


@pytest.fixture(scope="module")
def used(site):
    """The site after its day: stopped while a job was running."""
    site.running = use(site)
    # So that it cannot finish meanwhile: the server finds workers that do not answer.
    for child in psutil.Process(site.server.pid).children(recursive=True):
        child.suspend()
    began = time.monotonic()
    site.exit_code = site.server.stop()
    site.stop_s = time.monotonic() - began
    return site


def test_no_secret_is_left_behind(used):
    data_dir = used.server.data_dir
    (data_dir / "first-token.txt").unlink()  # as its reader is told to
    key = (data_dir / "secret.key").read_bytes()
    private = (data_dir / "key.pem").read_text().split("\n")[1]
    needles = [
        *used.secrets, private, key.hex(), base64.b64encode(key).decode().rstrip("="),
        base64.urlsafe_b64encode(key).decode().rstrip("="),
    ]  # fmt: skip
    assert all(len(needle) >= 20 for needle in needles)
    places = {"the log": used.server.log.encode()}
    places |= {f"answer {n}": text.encode() for n, text in enumerate(used.answers)}
    for path in data_dir.rglob("*"):
        if path.is_file() and path.name not in OWN:
            places[str(path.relative_to(data_dir))] = path.read_bytes()
    assert any(name.startswith("lamella.db") for name in places)
    assert any(name.endswith("manifest.json") for name in places)
    for name, content in places.items():
        for needle in [*(text.encode() for text in needles), key]:
            assert needle not in content, name


def test_the_log_tells_who_all_the_same(used):
    lines = [json.loads(line) for line in used.server.log.splitlines() if line.startswith("{")]
    users = {line["request"].get("user") for line in lines if "request" in line}
    assert "maria" in users
    assert not [line for line in lines if line["level"] in ("error", "critical")]
    assert "Traceback" not in used.server.log


def test_changes_are_in_the_audit_log(used):
    with sqlite3.connect(used.server.data_dir / "lamella.db") as connection:
        rows = connection.execute("select action, user, token, address from audit").fetchall()
    connection.close()
    actions = {row[0] for row in rows}
    assert {"token.create", "upload.create", "job.create"} <= actions
    mine = [row for row in rows if row[0] == "job.create"]
    assert all(row[1] == "maria" and row[2] and row[3] == "127.0.0.1" for row in mine)


def test_a_stop_puts_the_running_job_back_and_the_next_start_finishes_it(used):
    assert used.exit_code == 0
    assert used.stop_s < GRACE_S + 5
    with sqlite3.connect(used.server.data_dir / "lamella.db") as connection:
        state, counted = connection.execute(
            "select state, n_interruptions from jobs where id = ?", (used.running,)
        ).fetchone()
    connection.close()
    assert (state, counted) == ("queued", 0), "told to stop is not a failure"
    assert oct((used.server.data_dir / "lamella.db").stat().st_mode & 0o077) == "0o0"
    used.server.start()
    assert used.wait(used.running, FINAL, used.server.headers)["state"] == "finished"
