"""``lamella serve`` as a process: it comes up, refuses what is unsafe, and stops cleanly."""

import hashlib
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time

import httpx2
import pytest

from lamella.core.errors import ConflictError, InputError, ServerConnectionError, StorageError
from lamella.server.database import open_server_database
from lamella.server.run import serve
from lamella.server.settings import Settings
from lamella.testing.server import run_server


def lamella(*words, **options):
    return subprocess.run(
        [sys.executable, "-m", "lamella", *map(str, words)],
        capture_output=True, text=True, timeout=60, check=False, **options,
    )  # fmt: skip


KINDS = (InputError, StorageError, ConflictError, ServerConnectionError)


def refused(**settings):
    """What is said, and what to do, where nothing can be served."""
    with pytest.raises(KINDS) as caught:
        serve(Settings.model_validate({"port": 0, **settings}))
    assert caught.value.hint
    return f"{caught.value.message}\n{caught.value.hint}"


ADVICE = ("without TLS", "--tls self-signed", "--tls CERT.pem", "--public-url", "--insecure")


def test_it_refuses_to_be_reached_without_tls_and_says_what_to_do(tmp_path):
    done = lamella("serve", "--host", "0.0.0.0", "--data-dir", tmp_path / "data")
    assert done.returncode == 2
    assert all(advice in done.stderr for advice in ADVICE)
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "data").exists(), "nothing is made before it is safe"


@pytest.mark.parametrize("host", ["", "0.0.0.0", "::", "192.0.2.7", "gpu.lab", "127.0.0.1.lab"])
def test_every_other_address_too(tmp_path, host):
    told = refused(host=host, data_dir=tmp_path / "data")
    assert all(advice in told for advice in ADVICE)
    assert not (tmp_path / "data").exists()


def test_a_port_in_use_is_one_clear_error(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        told = refused(data_dir=tmp_path, port=port)
    assert f"port {port} of 127.0.0.1 is in use" in told
    assert "--port" in told


def test_a_foreign_address_is_one_clear_error(tmp_path):
    told = refused(data_dir=tmp_path, host="192.0.2.7", insecure=True)
    assert "cannot be listened on" in told


def test_a_data_folder_that_cannot_be_used_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    assert "is a file" in refused(data_dir=tmp_path / "file")
    # Nobody, not even root, makes a folder there.
    told = refused(data_dir="/proc/lamella")
    assert "cannot be made or written" in told
    assert "--data-dir" in told


def test_a_database_that_does_not_answer_is_one_clear_error(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    url = f"postgresql://lab:hushhush@127.0.0.1:{port}/lamella"
    told = refused(data_dir=tmp_path / "a", database_url=url)
    assert f"postgresql://lab:***@127.0.0.1:{port}/lamella cannot be used" in told
    assert "hushhush" not in told
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "lamella.db").write_bytes(os.urandom(8192))
    assert "file is not a database" in refused(data_dir=tmp_path / "b")


def test_a_scheduler_that_does_not_answer_is_one_clear_error(tmp_path, monkeypatch):
    monkeypatch.setattr("lamella.jobs.batch_system._CONNECT_S", 0.5)
    told = refused(data_dir=tmp_path, scheduler="tcp://127.0.0.1:1")
    assert "no Dask scheduler answers at tcp://127.0.0.1:1" in told
    assert "start it with `dask scheduler`" in told


def test_a_newer_schema_is_one_clear_error(tmp_path):
    import sqlite3

    open_server_database(Settings(data_dir=tmp_path)).close()
    with sqlite3.connect(tmp_path / "lamella.db") as connection:
        connection.execute("update alembic_version set version_num = '9999_later'")
    connection.close()
    assert "newer" in refused(data_dir=tmp_path)


def test_a_certificate_that_is_none_is_one_clear_error(tmp_path):
    (tmp_path / "junk.pem").write_text("junk")
    words = {"data_dir": tmp_path / "data", "tls": str(tmp_path / "junk.pem")}
    assert "--tls-key" in refused(**words)
    assert "they are not PEM" in refused(**words, tls_key=tmp_path / "junk.pem")


def test_the_first_token_works_and_is_shown_once(live_server):
    assert live_server.token.startswith("lam_")
    path = live_server.data_dir / "first-token.txt"
    assert path.stat().st_mode & 0o777 == 0o600
    answer = httpx2.get(f"{live_server.url}/api/v1/tokens/current", headers=live_server.headers)
    assert answer.json()["role"] == "admin"
    path.unlink()
    # The lock goes with the process, however it ends.
    live_server.restart()
    assert not path.exists()
    answer = httpx2.get(f"{live_server.url}/api/v1/tokens", headers=live_server.headers)
    assert len(answer.json()) == 1
    assert live_server.token not in live_server.log


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """A server that tests only look at."""
    with run_server(tmp_path_factory.mktemp("running") / "data") as server:
        yield server


def test_only_its_user_reads_the_data_folder(running):
    assert running.data_dir.stat().st_mode & 0o777 == 0o700
    for name in ("secret.key", "lamella.db", "first-token.txt"):
        assert (running.data_dir / name).stat().st_mode & 0o077 == 0, name
    assert (running.data_dir / "secret.key").stat().st_mode & 0o777 == 0o600


def test_two_servers_never_share_a_folder(running):
    told = refused(data_dir=running.data_dir)
    assert f"process {running.pid}" in told
    assert "--data-dir" in told
    assert running.is_running


def test_self_signed_certificate_names_this_machine_and_is_kept(tmp_path):
    with run_server(tmp_path / "data", "--tls", "self-signed") as server:
        assert server.url.startswith("https://")
        context = ssl.create_default_context(cafile=server.certificate)
        for host in ("127.0.0.1", "localhost"):
            with httpx2.Client(verify=context) as client:
                url = server.url.replace("127.0.0.1", host)
                assert client.get(f"{url}/api/v1/health").json() == {"status": "alive"}
        port = int(server.url.rpartition(":")[2])
        der = ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate(("127.0.0.1", port)))
        assert hashlib.sha256(der).hexdigest() == server.fingerprint
        assert (tmp_path / "data" / "key.pem").stat().st_mode & 0o777 == 0o600
        before = server.fingerprint
        server.restart()
        assert server.fingerprint == before, "pins stay valid"


def test_it_stops_cleanly_and_finishes_what_is_under_way(live_server):
    """A request that came before the signal is answered; the exit code is 0."""
    answers = []
    body = json.dumps({"user": "maria"}).encode()
    with socket.create_connection(("127.0.0.1", int(live_server.url.rpartition(":")[2]))) as line:
        head = (
            "POST /api/v1/tokens HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
            f"Authorization: Bearer {live_server.token}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nExpect: 100-continue\r\n\r\n"
        )
        line.sendall(head.encode())
        # Said when the request is under way and its body is asked for.
        assert line.recv(65_536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        line.sendall(body[:5])
        stopping = threading.Thread(target=lambda: answers.append(live_server.stop()))
        stopping.start()
        time.sleep(0.5)
        line.sendall(body[5:])
        received = b""
        while more := line.recv(65_536):
            received += more
        stopping.join(30)
    assert received.startswith(b"HTTP/1.1 201"), received
    assert answers == [0]


def test_ctrl_c_stops_it_without_a_traceback(live_server):
    os.kill(live_server.pid, signal.SIGINT)
    deadline = time.monotonic() + 20
    while live_server.is_running and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not live_server.is_running
    assert "Traceback" not in live_server.log


def test_the_log_is_json_with_request_ids_and_without_secrets(live_server):
    url = f"{live_server.url}/api/v1/artifacts/7/labels.mrc?expires=1&signature=verysecretvalue"
    httpx2.get(url, headers={"X-Request-ID": "my-own-id"})
    httpx2.get(f"{live_server.url}/api/v1/tokens", headers=live_server.headers)
    live_server.stop()
    lines = [json.loads(line) for line in live_server.log.splitlines() if line.startswith("{")]
    ids = [line["request"]["request_id"] for line in lines if "request" in line]
    assert "my-own-id" in ids
    assert "verysecretvalue" not in live_server.log
    assert live_server.token not in live_server.log
    assert live_server.token.split("_", 2)[2] not in live_server.log


def test_settings_are_shown_with_their_sources_and_without_secrets(tmp_path):
    (tmp_path / "server.toml").write_text('workers = 3\ndatabase_url = "postgresql://a:hush@b/c"\n')
    done = lamella(
        "serve", "--show-settings", "--json", "--data-dir", tmp_path, "--max-upload-bytes", "5GB",
        env={**os.environ, "LAMELLA_SERVER_PORT": "9123"},
    )  # fmt: skip
    shown = json.loads(done.stdout)["settings"]
    assert shown["workers"] == {"value": "3", "source": f"file {tmp_path / 'server.toml'}"}
    assert shown["port"] == {"value": "9123", "source": "environment LAMELLA_SERVER_PORT"}
    assert shown["max_upload_bytes"]["value"] == "5 GB"
    assert shown["host"]["source"] == "default"
    assert "hush" not in done.stdout


def test_starting_imports_nothing_heavy():
    code = (
        "import sys\nimport lamella.server.app, lamella.cli.serve\n"
        "heavy = {'torch', 'zarr', 'openvino', 'pandas', 'scipy', 'distributed', 'alembic',"
        " 'skimage', 'numba', 'h5py', 'httpx2', 'cryptography', 's3fs', 'fsspec'}\n"
        "found = heavy & set(sys.modules)\nassert not found, found"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
