"""A TCP proxy that can be cut: connections end, new ones are refused or never answered."""

import contextlib
import socket
import threading
from urllib.parse import urlsplit


class Proxy:
    """Forwards bytes to ``target`` until it is cut; ``limit`` cuts after so many bytes."""

    def __init__(self, target):
        parts = urlsplit(target)
        self._target = (parts.hostname, parts.port)
        self._scheme = parts.scheme
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.is_cut = False
        self.n_bytes = 0
        self.limit = None
        self.n_cuts = 0
        self._pairs = []
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    @property
    def url(self):
        return f"{self._scheme}://127.0.0.1:{self.port}"

    def cut(self, *, is_silent=False):
        """Nothing goes through any more; silent: connections stay open and nobody answers."""
        with self._lock:
            self.is_cut = True
            self.n_cuts += 1
            if not is_silent:
                self._end_all()

    def mend(self):
        with self._lock:
            # What hung in the cut never comes.
            self._end_all()
            self.is_cut = False
            self.limit = None

    def close(self):
        self._listener.close()
        with self._lock:
            self._end_all()
        self._thread.join(5)

    def _end_all(self):
        for one in self._pairs:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        self._pairs.clear()

    def _accept(self):
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if self.is_cut:
                near.close()
                continue
            try:
                far = socket.create_connection(self._target)
            except OSError:
                near.close()
                continue
            with self._lock:
                self._pairs += [near, far]
            for a, b in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(a, b), daemon=True).start()

    def _pump(self, source, sink):
        with contextlib.suppress(OSError):
            while data := source.recv(16384):
                if self.is_cut:
                    return
                self.n_bytes += len(data)
                if self.limit is not None and self.n_bytes > self.limit:
                    self.limit = None
                    self.cut()
                    return
                sink.sendall(data)
        for one in (source, sink):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
