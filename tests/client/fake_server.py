"""A server of uploads and jobs in memory: pure, so that tests can drop, cut and restart at will.

``FakeServer.handle`` answers one request; ``live`` puts it behind a socket. It holds to the same
contract as the real one, and is judged by the same outside client (see test_live.py).
"""

import base64
import contextlib
import hashlib
import http.server
import json
import threading
import time
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, urlsplit

from lamella.wire.event import StateEvent

PREFIX = "/api/v1/"
FINAL = ("finished", "failed", "cancelled")


@dataclass
class FakeUpload:
    length: int
    metadata: dict[str, str]
    is_partial: bool = False
    data: bytearray = field(default_factory=bytearray)
    state: str = "open"
    volume: str | None = None


@dataclass
class FakeJob:
    spec: dict
    state: str = "queued"
    attempt: int = 1
    events: list[dict] = field(default_factory=list)
    problem: dict | None = None


class FakeServer:
    """Uploads, volumes and jobs; ``keeps_cut`` says whether bytes of a cut chunk stay."""

    def __init__(self, token: str = "", keeps_cut: bool = True) -> None:
        self.token = token
        self.keeps_cut = keeps_cut
        self.uploads: dict[str, FakeUpload] = {}
        self.volumes: dict[str, dict] = {}
        self.jobs: dict[str, FakeJob] = {}
        self.keys: dict[str, str] = {}
        self.artifacts: dict[str, bytes] = {}
        self.seen: list[tuple[str, str]] = []
        self.changed = threading.Condition()
        self.n_ids = 0

    # -- requests

    def handle(self, method, path, headers, params, content):
        """Status, headers and body of the answer."""
        self.seen.append((method, path))
        if self.token and headers.get("authorization") != f"Bearer {self.token}":
            return problem(401, "unauthenticated", "no valid token")
        parts = path.strip("/").split("/")
        handler = getattr(self, f"_{parts[0]}", None)
        if handler is None:
            return problem(404, "not_found", f"there is no {path}")
        return handler(method, parts[1:], headers, params, content)

    def _uploads(self, method, parts, headers, _params, content):
        if not parts:
            return self._create(headers) if method == "POST" else as_json(200, self._upload_docs())
        upload = self.uploads.get(parts[0])
        if upload is None:
            return problem(404, "not_found", "there is no such upload")
        if method == "HEAD":
            return 200, {"upload-offset": str(len(upload.data))}, b""
        if method == "GET":
            return as_json(200, self._upload_doc(parts[0], upload))
        if method == "DELETE":
            del self.uploads[parts[0]]
            return 204, {}, b""
        return self._patch(parts[0], upload, headers, content)

    def _create(self, headers):
        key = headers.get("idempotency-key", "")
        if key in self.keys and self.keys[key] in self.uploads:
            return 201, {"location": f"/somewhere{PREFIX}uploads/{self.keys[key]}"}, b""
        name = self._id("u")
        metadata = {}
        for pair in filter(None, headers.get("upload-metadata", "").split(",")):
            word, _, value = pair.partition(" ")
            metadata[word] = base64.b64decode(value).decode()
        concat = headers.get("upload-concat", "")
        if concat.startswith("final;"):
            parts = [place.rpartition("/")[2] for place in concat[6:].split()]
            if any(part not in self.uploads for part in parts):
                return problem(404, "not_found", "a part is gone")
            data = b"".join(bytes(self.uploads[part].data) for part in parts)
            upload = FakeUpload(len(data), metadata, data=bytearray(data))
            for part in parts:
                del self.uploads[part]
        else:
            upload = FakeUpload(int(headers["upload-length"]), metadata, concat == "partial")
        self.uploads[name] = upload
        self.keys[key] = name
        self._finish(name, upload)
        return 201, {"location": f"{PREFIX}uploads/{name}"}, b""

    def _patch(self, name, upload, headers, content):
        if int(headers["upload-offset"]) != len(upload.data):
            return problem(409, "conflict", "another offset")
        assert len(upload.data) + len(content) <= upload.length
        kind, _, digest = headers.get("upload-checksum", "").partition(" ")
        if kind and base64.b64decode(digest) != hashlib.sha256(content).digest():
            return problem(460, "checksum_mismatch", "the chunk came damaged")
        upload.data += content
        if not self._finish(name, upload):
            return problem(460, "checksum_mismatch", "the file is another")
        return 204, {"upload-offset": str(len(upload.data))}, b""

    def cut(self, path, offset, content):
        """What a chunk leaves whose connection broke in the middle."""
        upload = self.uploads.get(path.rpartition("/")[2])
        if upload is not None and self.keeps_cut and offset == len(upload.data):
            upload.data += content

    def _finish(self, name, upload):
        if len(upload.data) < upload.length or upload.is_partial:
            return True
        digest = hashlib.sha256(upload.data).hexdigest()
        if upload.metadata.get("sha256", digest) != digest:
            upload.state = "rejected"
            return False
        upload.state = "finished"
        upload.volume = self._id("v")
        self.volumes[upload.volume] = {
            "id": upload.volume,
            "owner": "me",
            "name": upload.metadata.get("filename", ""),
            "state": "ready",
            "n_bytes": upload.length,
            "sha256": digest,
            "created": "2026-01-01T00:00:00+00:00",
        }
        return True

    def _upload_doc(self, name, upload):
        return {
            "id": name,
            "owner": "me",
            "name": upload.metadata.get("filename", ""),
            "state": upload.state,
            "offset": len(upload.data),
            "n_bytes": upload.length,
            "is_partial": upload.is_partial,
            "volume": upload.volume,
            "created": "2026-01-01T00:00:00+00:00",
        }

    def _upload_docs(self):
        return [self._upload_doc(name, upload) for name, upload in self.uploads.items()]

    def _volumes(self, method, parts, _headers, params, _content):
        if parts:
            known = self.volumes.get(parts[0])
            if known is None:
                return problem(404, "not_found", "there is no such volume")
            return as_json(200, known)
        wanted = params.get("sha256")
        known = [v for v in self.volumes.values() if wanted in (None, v["sha256"])]
        return as_json(200, known)

    def _jobs(self, method, parts, headers, params, content):
        if not parts:
            if method == "POST":
                return self._submit(headers, content)
            found = [self.job_doc(name) for name in reversed(self.jobs)]
            return as_json(200, {"jobs": found, "next_cursor": None})
        if parts[0] not in self.jobs:
            return problem(404, "not_found", "there is no such job")
        if len(parts) == 1:
            return as_json(200, self.job_doc(parts[0]))
        if parts[1] == "events":
            return self._events(self.jobs[parts[0]], headers, params)
        if parts[1] == "artifacts":
            return self._artifact(parts[2], headers)
        if parts[1] == "log":
            return 200, {"content-type": "text/plain"}, b"all is well\n"
        return self._act(parts[0], parts[1])

    def _submit(self, headers, content):
        key = headers["idempotency-key"]
        if key in self.keys:
            return as_json(200, self.job_doc(self.keys[key]))
        name = self._id("j")
        self.jobs[name] = FakeJob(json.loads(content))
        self.keys[key] = name
        self.say(name, StateEvent(state="queued", position=1, attempt=1))
        return as_json(201, self.job_doc(name))

    def _act(self, name, verb):
        job = self.jobs[name]
        if verb == "cancel" and job.state in ("queued", "running"):
            self.say(name, StateEvent(state="cancelled"))
        elif verb == "retry" and job.state in ("failed", "cancelled"):
            job.attempt += 1
            self.say(name, StateEvent(state="queued", attempt=job.attempt))
        else:
            return problem(409, "conflict", f"the job is {job.state}")
        return as_json(200, self.job_doc(name))

    def _events(self, job, headers, params):
        after = int(headers.get("last-event-id", params.get("after", "0")))
        after = max(after, int(params.get("after", "0")))
        found = job.events[after:]
        if "text/event-stream" in headers.get("accept", ""):
            text = "".join(
                f"id: {e['number']}\nevent: {e['type']}\ndata: {json.dumps(e)}\n\n" for e in found
            )
            return 200, {"content-type": "text/event-stream"}, text.encode()
        page = found[: int(params.get("limit", "500"))]
        last = page[-1]["number"] if page else after
        return as_json(200, {"events": page, "last": last, "state": job.state})

    def _artifact(self, name, headers):
        data = self.artifacts[name]
        tag = f'"{hashlib.sha256(data).hexdigest()}"'
        known = {"etag": tag, "content-type": "application/x-tar", "accept-ranges": "bytes"}
        wanted = headers.get("range", "")
        if wanted and headers.get("if-range", tag) == tag:
            first = int(wanted.removeprefix("bytes=").rstrip("-"))
            if first >= len(data):
                return 416, known, b""
            known["content-range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
            known["content-length"] = str(len(data) - first)
            return 206, known, data[first:]
        return 200, {**known, "content-length": str(len(data))}, data

    # -- what the server's own side does

    def say(self, name, event):
        job = self.jobs[name]
        with self.changed:
            number = len(job.events) + 1
            job.events.append(event.model_copy(update={"number": number}).model_dump(mode="json"))
            if isinstance(event, StateEvent):
                job.state = event.state
                job.problem = None if event.problem is None else event.problem.model_dump()
            self.changed.notify_all()

    def job_doc(self, name):
        job = self.jobs[name]
        return {
            "id": name,
            "owner": "me",
            "spec": job.spec,
            "state": job.state,
            "attempt": job.attempt,
            "created": "2026-01-01T00:00:00+00:00",
            "problem": job.problem,
            "last_event": len(job.events),
        }

    def _id(self, letter):
        self.n_ids += 1
        return f"{letter}{self.n_ids}"


def as_json(status, document):
    return status, {"content-type": "application/json"}, json.dumps(document).encode()


def problem(status, code, detail):
    document = {"type": "about:blank", "title": code, "status": status, "code": code}
    content = json.dumps({**document, "detail": detail, "hint": None, "details": {}}).encode()
    return status, {"content-type": "application/problem+json"}, content


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_words):
        pass

    def _answer(self):
        server: FakeServer = self.server.fake  # type: ignore[attr-defined]
        parts = urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        content = self.rfile.read(int(headers.get("content-length", "0")))
        path = parts.path.removeprefix(PREFIX)
        params = dict(parse_qsl(parts.query))
        is_stream = path.endswith("/events") and "event-stream" in headers.get("accept", "")
        status, known, body = server.handle(self.command, path, headers, params, content)
        if is_stream and status == 200:
            self._stream(server, path, headers, params)
            return
        self.send_response(status)
        for name, value in {**known, "content-length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _stream(self, server, path, headers, params):
        job = server.jobs[path.split("/")[1]]
        after = int(headers.get("last-event-id") or params.get("after", "0"))
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        while True:
            with server.changed:
                while len(job.events) <= after and job.state not in FINAL:
                    server.changed.wait(0.05)
                found = job.events[after:]
            for event in found:
                text = f"id: {event['number']}\ndata: {json.dumps(event)}\n\n"
                self.wfile.write(text.encode())
            self.wfile.flush()
            after += len(found)
            if job.state in FINAL and after == len(job.events):
                break
        self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PATCH = do_DELETE = _answer  # noqa: N815


@contextlib.contextmanager
def live(fake, context=None):
    """The server behind a socket of this machine; yields its address."""

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False

        def handle_error(self, *_words):
            pass

    server = Server(("127.0.0.1", 0), _Handler)
    server.fake = fake  # type: ignore[attr-defined]
    scheme = "http"
    if context is not None:
        server.socket = context.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
        scheme = "https"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"{scheme}://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def until(condition, limit_s=60.0):
    """Wait until something holds."""
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)
