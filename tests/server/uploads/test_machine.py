"""Random sequences of requests, crashes and restarts against a model of tus."""

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    multiple,
    rule,
    run_state_machine_as_test,
)


@dataclass
class Model:
    """What an upload must look like."""

    n_bytes: int | None
    is_partial: bool = False
    is_final: bool = False
    told: str | None = None  # announced SHA-256
    data: bytes = b""
    is_gone: bool = False
    is_used: bool = False  # a part that was joined

    @property
    def is_full(self):
        return len(self.data) == self.n_bytes


BODIES = st.binary(min_size=0, max_size=12)
# What reaches the disk is for other tests; here, waiting for it would be most of the time.
IN_MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None


def make_machine(tus_class, checksum):  # noqa: C901 - a class with its rules
    class Machine(RuleBasedStateMachine):
        places = Bundle("places")

        @initialize()
        def begin(self):
            self.folder = tempfile.TemporaryDirectory(dir=IN_MEMORY)
            self.tus = tus_class(Path(self.folder.name) / "data")
            self.models: dict[str, Model] = {}

        def teardown(self):
            if hasattr(self, "tus"):
                self.tus.services.uploads.stop()
                self.tus.services.volumes.stop()
                self.tus.services.database.close()
                self.folder.cleanup()

        def end_of(self, place, answer, status):
            """A body was taken: is the upload now whole, and as it was announced?"""
            model = self.models[place]
            if model.is_full and model.told not in (None, hashlib.sha256(model.data).hexdigest()):
                model.is_gone = True
                assert answer.status_code == 460
            else:
                assert answer.status_code == status
                assert answer.headers["Upload-Offset"] == str(len(model.data))

        @rule(target=places, n=st.integers(0, 20), kind=st.sampled_from("wpdsx"))
        def create(self, n, kind):
            """Whole, partial, deferred, and with a wrong or an unlikely SHA-256."""
            told = {"s": hashlib.sha256(bytes(n)).hexdigest(), "x": "0" * 64}.get(kind)
            answer = self.tus.create(
                None if kind == "d" else n,
                {} if told is None else {"sha256": told},
                **({"Upload_Concat": "partial"} if kind == "p" else {}),
            )
            model = Model(None if kind == "d" else n, kind == "p", told=told)
            if n == 0 and kind == "x":
                assert answer.status_code == 460
                return multiple()
            assert answer.status_code == 201
            self.models[answer.headers["Location"]] = model
            return answer.headers["Location"]

        @rule(
            place=places, body=BODIES, zeros=st.booleans(),
            shift=st.sampled_from([0, 0, 0, 0, 0, -1, 1]),
            check=st.sampled_from(["", "", "sha1", "sha256", "wrong"]), length=st.booleans(),
        )  # fmt: skip
        def patch(self, place, body, zeros, shift, check, length):
            model = self.models[place]
            body = bytes(len(body)) if zeros else body
            offset = max(0, len(model.data) + shift)
            headers = {}
            if check:
                told = checksum(body + b"!", "sha1") if check == "wrong" else checksum(body, check)
                headers["Upload_Checksum"] = told
            declares = length and model.n_bytes is None and offset == len(model.data)
            if declares:
                headers["Upload_Length"] = str(offset + len(body))
            answer = self.tus.patch(place, offset, body, **headers)
            if model.is_gone:
                assert answer.status_code in (404, 410)
                return
            if model.is_final:
                assert answer.status_code == 403
                return
            if model.is_full:
                fits = offset == len(model.data) and not body
                assert answer.status_code == (204 if fits else 409)
                return
            if offset != len(model.data):
                assert answer.status_code == 409
                assert answer.headers["Upload-Offset"] == str(len(model.data))
                return
            if declares:
                model.n_bytes = offset + len(body)
            if model.n_bytes is not None and offset + len(body) > model.n_bytes:
                assert answer.status_code == 413
                return
            if check == "wrong":
                assert answer.status_code == 460
                self.heal(place)
                return
            model.data += body
            self.end_of(place, answer, 204)

        def heal(self, place):
            """Nothing was left to send after all: whoever asks for the offset finishes it."""
            model = self.models[place]
            if model.is_full:
                assert self.tus.offset(place) == model.n_bytes

        @rule(place=places, check=st.booleans(), first=st.binary(max_size=1))
        def finish(self, place, check, first):
            """Send all that is left, perhaps after a chunk that is damaged on the way."""
            model = self.models[place]
            if model.is_gone or model.is_final or model.is_full or model.n_bytes is None:
                return
            body = first + bytes(model.n_bytes - len(model.data) - len(first))
            offset = len(model.data)
            if check:
                answer = self.tus.patch(
                    place, offset, b"?" * len(body), Upload_Checksum=checksum(body)
                )
                assert answer.status_code == (204 if b"?" * len(body) == body else 460)
                if answer.status_code == 204:
                    model.data += body
                    return
            model.data += body
            self.end_of(place, self.tus.patch(place, offset, body), 204)
            self.compare(place)

        @rule(place=places)
        def head(self, place):
            model = self.models[place]
            answer = self.tus.ask("HEAD", place)
            if model.is_gone:
                assert answer.status_code in (404, 410)
                return
            assert answer.status_code == 200
            assert answer.headers["Upload-Offset"] == str(len(model.data))
            if model.n_bytes is None:
                assert answer.headers["Upload-Defer-Length"] == "1"
            else:
                assert answer.headers["Upload-Length"] == str(model.n_bytes)

        @rule(place=consumes(places))
        def delete(self, place):
            answer = self.tus.ask("DELETE", place)
            assert answer.status_code in ((204, 404) if self.models[place].is_gone else (204,))
            self.models[place].is_gone = True

        @rule(target=places, chosen=st.lists(places, min_size=1, max_size=3))
        def concat(self, chosen):
            answer = self.tus.ask("POST", "uploads", Upload_Concat="final;" + " ".join(chosen))
            parts = [self.models[place] for place in chosen]
            if any(part.is_gone for part in parts):
                assert answer.status_code in (404, 409)
                return multiple()
            if any(not part.is_partial or not part.is_full for part in parts):
                assert answer.status_code == 409
                return multiple()
            if any(part.is_used for part in parts):
                # The same list again finds the same upload; any other is refused.
                assert answer.status_code in (201, 409, 404)
                return multiple()
            assert answer.status_code == 201
            for part in parts:
                part.is_used = True
            data = b"".join(part.data for part in parts)
            place = answer.headers["Location"]
            self.models[place] = Model(len(data), is_final=True, data=data)
            return place

        @rule(garbage=st.binary(max_size=20), torn=st.binary(max_size=11))
        def crash(self, garbage, torn):
            """Bytes that nobody acknowledged, and half a record, are left on the disk."""
            for place, model in self.models.items():
                folder = self.tus.services.uploads.folder / place.rpartition("/")[2]
                if folder.exists() and not model.is_full:
                    with (folder / "data").open("ab") as stream:
                        stream.write(garbage)
                    with (folder / "offset").open("ab") as stream:
                        stream.write(torn)
            self.tus.crash()

        @rule()
        def compare_all(self):
            for place in self.models:
                self.compare(place)

        def compare(self, place):
            model = self.models[place]
            answer = self.tus.ask("GET", place)
            if model.is_gone:
                assert answer.status_code == 404 or answer.json()["state"] == "rejected"
                return
            document = answer.json()
            assert document["offset"] == len(model.data)
            assert document["state"] == ("finished" if model.is_full else "open")
            if model.is_full and not model.is_partial:
                assert document["sha256"] == hashlib.sha256(model.data).hexdigest()
            if not model.is_used:
                path = self.tus.services.uploads.folder / document["id"] / "data"
                assert path.read_bytes()[: len(model.data)] == model.data

    return Machine


@pytest.mark.timeout(300)
def test_uploads_behave_as_the_model(tus_class, told_checksum):
    machine = make_machine(tus_class, told_checksum)
    # A step is an HTTP request: a third of the usual number of examples.
    n = max(12, settings().max_examples // 3)
    run_state_machine_as_test(machine, settings=settings(max_examples=n, stateful_step_count=30))
