"""Carries out flows against a server in memory, with a list of misfortunes on the way."""

import base64
import errno
import hashlib
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

from lamella.client.flow import (
    Close,
    Do,
    Failure,
    Open,
    Pause,
    Read,
    Response,
    Send,
    Tell,
    Together,
)
from lamella.models.part import PartState

FAULTS = (
    "lost_before", "lost_after", "timeout", "cut", "500", "502", "503", "429", "423", "408",
    "damaged", "gone", "killed", "conflict",
)  # fmt: skip


class KilledError(Exception):
    """The client's process ends here."""


@dataclass
class MemoryPart:
    """A file that is coming, in memory, on a disk with room for ``room`` bytes."""

    data: bytearray = field(default_factory=bytearray)
    state: PartState = field(default_factory=PartState)
    n_come: int = 0
    room: int = 1 << 30

    @property
    def size(self):
        return len(self.data)

    @property
    def sha256(self):
        return hashlib.sha256(self.data).hexdigest()

    def cut(self, size):
        del self.data[size:]

    def put(self, position, chunk):
        assert position == len(self.data)
        if len(self.data) + len(chunk) > self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.data += chunk
        self.n_come += len(chunk)
        return False

    def write_state(self, state):
        self.state = state


@dataclass
class Machine:
    """A driver whose network is as bad as ``faults`` say, then good."""

    server: Any
    faults: list[tuple[str, float]]
    now_s: float = 0.0
    told: list[Any] = field(default_factory=list)
    acknowledged: dict[str, int] = field(default_factory=dict)
    resent: int = 0
    largest: int = 0
    piece: int = 1 << 16

    def run(self, flow):
        answer = None
        stream = b""
        try:
            while True:
                try:
                    instruction = flow.send(answer)
                except StopIteration as end:
                    return end.value
                self.now_s += 0.01
                answer = None
                if isinstance(instruction, Tell):
                    self.told.append(instruction.event)
                elif isinstance(instruction, Pause):
                    self.now_s += instruction.seconds
                elif isinstance(instruction, Do):
                    answer = instruction.work()
                elif isinstance(instruction, Together):
                    answer = [self.run(part) for part in instruction.flows]
                elif isinstance(instruction, Send):
                    answer = self._send(instruction.request)
                elif isinstance(instruction, Open):
                    answer = self._send(instruction.request)
                    stream = answer.content if isinstance(answer, Response) else b""
                elif isinstance(instruction, Read):
                    answer, stream = self._read(stream)
                else:
                    assert isinstance(instruction, Close)
        finally:
            flow.close()

    def _read(self, stream):
        fault, share = self._fault() if stream else ("", 0.0)
        if fault == "killed":
            raise KilledError
        if fault in ("cut", "lost_before", "timeout"):
            return Failure("broken", "cut", self.now_s), b""
        size = max(1, int(share * len(stream))) if fault else self.piece
        return stream[:size], stream[size:]

    def _fault(self):
        return self.faults.pop(0) if self.faults else ("", 0.0)

    def _send(self, request):
        headers = dict(request.headers)
        content = request.content or b""
        if request.body is not None:
            content = request.body.source.read(request.body.start, request.body.count)
            digest = base64.b64encode(hashlib.sha256(content).digest()).decode()
            headers["upload-checksum"] = f"sha256 {digest}"
        if request.method == "PATCH":
            offset = int(headers["upload-offset"])
            self.largest = max(self.largest, len(content))
            self.resent += max(0, self.acknowledged.get(request.path, 0) - offset)
        fault, share = self._fault()
        early = self._before(fault, share, request, headers, content)
        if early is not None:
            return early
        if fault == "damaged" and request.method == "PATCH" and content:
            content = bytes([content[0] ^ 1]) + content[1:]
        answer = self._handle(request, headers, content)
        if fault in ("lost_after", "cut"):
            return Failure("broken", "lost on the way back", self.now_s)
        if "upload-offset" in answer.headers:
            self.acknowledged[request.path] = int(answer.headers["upload-offset"])
        return answer

    def _before(self, fault, share, request, headers, content):
        """What happens before the server has done what it was asked."""
        is_patch = request.method == "PATCH"
        if fault == "killed":
            # Sometimes the server had heard it, sometimes not.
            if share > 0.5:
                self._handle(request, headers, content)
            raise KilledError
        if fault in ("lost_before", "timeout"):
            kind = "unreachable" if fault == "lost_before" else "timeout"
            return Failure(kind, "lost", self.now_s)
        if fault == "cut" and is_patch:
            come = content[: int(share * len(content))]
            self.server.cut(request.path, int(headers["upload-offset"]), come)
            return Failure("broken", "cut", self.now_s)
        if fault == "gone" and request.path.startswith("uploads/"):
            self.server.uploads.pop(request.path.rpartition("/")[2], None)
        if fault == "conflict" and is_patch:
            return Response(409, {}, b"", self.now_s)
        if fault.isdigit():
            retry = {"retry-after": "2"} if fault in ("429", "503") else {}
            return Response(int(fault), retry, b"", self.now_s)
        return None

    def _handle(self, request, headers, content):
        status, known, body = self.server.handle(
            request.method, request.path, headers, dict(request.params), content
        )
        return Response(status, known, body, self.now_s)


def misfortunes(max_size=12):
    return st.lists(st.tuples(st.sampled_from(FAULTS), st.floats(0, 1)), max_size=max_size)
