"""An HTTP server that does what servers do on bad days, and counts every byte it sends."""

import hashlib
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Fault:
    """What happens to one request; ``at`` counts bytes of the reply's body."""

    kind: str = "none"
    at: int = 0
    status: int = 500
    headers: tuple[tuple[str, str], ...] = ()
    content: bytes = b""


@dataclass
class Sent:
    """One request as it was answered."""

    path: str
    start: int
    if_range: str
    status: int
    n_sent: int = 0


@dataclass
class WildServer:
    """Serves ``files`` by path; the next fault of ``faults`` befalls the next request."""

    files: dict[str, bytes] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    always: Fault = Fault()
    has_etag: bool = True
    can_range: bool = True
    log: list[Sent] = field(default_factory=list)
    piece: int = 4096
    pause_s: float = 0.0

    def __enter__(self):
        owner = self

        class Handler(_Handler):
            server_of_tests = owner

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._released = threading.Event()
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        )
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def url(self, path):
        return f"http://127.0.0.1:{self._server.server_port}/{path}"

    @property
    def n_sent(self):
        return sum(one.n_sent for one in self.log)

    def etag(self, content):
        return f'"{hashlib.sha256(content).hexdigest()[:12]}"'

    def wait_released(self, seconds):
        self._released.wait(seconds)


_WORDS = {
    "compressed": {"Content-Encoding": "gzip"},
    "page": {"Content-Type": "text/html; charset=utf-8"},
}
"""What a reply says of itself on some days."""


class _Handler(BaseHTTPRequestHandler):
    server_of_tests: WildServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        own = self.server_of_tests
        fault = own.faults.pop(0) if own.faults else own.always
        path = self.path.lstrip("/")
        asked = self.headers.get("Range", "")
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        sent = Sent(path, start, self.headers.get("If-Range", ""), 0)
        own.log.append(sent)
        self.close_connection = True
        content = fault.content if fault.kind == "changed" else own.files.get(path)
        if fault.kind == "changed":
            own.files[path] = content
        if content is None:
            self._head(sent, 404, {"Content-Length": "0"})
        elif fault.kind == "status":
            self._head(sent, fault.status, {"Content-Length": "0", **dict(fault.headers)})
        elif fault.kind == "hang_up":
            sent.status = -1
        else:
            self._content(fault, sent, content, asked)

    def _content(self, fault, sent, content, asked):
        own = self.server_of_tests
        start, tag = sent.start, own.etag(content)
        if self.headers.get("If-None-Match") == tag:
            self._head(sent, 304, {"ETag": tag})
            return
        if own.has_etag and sent.if_range not in ("", tag):
            asked, start = "", 0
        if not own.can_range or fault.kind == "no_range":
            asked, start = "", 0
        headers = {"ETag": tag} if own.has_etag else {}
        headers |= _WORDS.get(fault.kind, {})
        if asked and start >= len(content):
            headers |= {"Content-Range": f"bytes */{len(content)}", "Content-Length": "0"}
            self._head(sent, 416, headers)
            return
        body = content[start:]
        if asked:
            told = start + 1 if fault.kind == "wrong_range" else start
            headers["Content-Range"] = f"bytes {told}-{len(content) - 1}/{len(content)}"
        body, length = _spoiled(fault, body)
        if fault.kind == "chunked":
            self._head(sent, 200, {**headers, "Transfer-Encoding": "chunked"})
            self._send(sent, b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
            return
        if fault.kind != "no_length":
            headers["Content-Length"] = str(length)
        self._head(sent, 206 if asked else 200, headers)
        sent.start = start
        self._send(sent, body)
        if fault.kind == "stall":
            own.wait_released(10)

    def _head(self, sent, status, headers):
        sent.status = status
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Connection", "close")
        self.end_headers()

    def _send(self, sent, body):
        step = self.server_of_tests.piece
        try:
            for begin in range(0, len(body), step):
                # Counted first: the client may be done before this thread goes on.
                sent.n_sent += len(body[begin : begin + step])
                self.wfile.write(body[begin : begin + step])
                if self.server_of_tests.pause_s:
                    self.server_of_tests.wait_released(self.server_of_tests.pause_s)
        except OSError:
            pass


def _spoiled(fault, body):
    """Body and declared length."""
    length = len(body)
    if fault.kind in ("drop", "stall"):
        body = body[: fault.at]
    elif fault.kind == "corrupt" and body:
        at = fault.at % len(body)
        body = body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]
    elif fault.kind == "claims_more":
        length += 100
    elif fault.kind == "claims_less":
        length = max(0, length - 100)
    elif fault.kind == "sends_more":
        body, length = body + b"!" * 100, length + 100
    return body, length
