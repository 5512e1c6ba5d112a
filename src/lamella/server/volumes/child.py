"""A process that touches what strangers sent, so that the server does not have to.

``python -m lamella.server.volumes.child`` reads one JSON document from its input and writes one to
its output: an archive is unpacked, or an input is hashed and opened. A reader that crashes, eats
memory or never ends takes only this process with it. The process dies with the server.
"""

import ctypes
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from lamella.core.errors import InputError, LamellaError, UnknownFormatError, UnreadableFileError
from lamella.core.storage import storage_error
from lamella.server.volumes.archive import ArchiveLimits, unpack
from lamella.wire.manifest import GeometryDoc, NoteDoc
from lamella.wire.problem import Problem
from lamella.wire.request import SpacingDoc

__all__ = ["inspect", "main"]

_MEMORY_BYTES = 8 * 2**30
_MAX_TRIED = 8
_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Do what the document on the input asks for; the answer holds a problem or a result."""
    _limit()
    asked = json.load(sys.stdin)
    # Whatever a library prints must not mix with the answer.
    answer_to = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        answer: dict[str, Any] = {"result": _answer(asked)}
    except LamellaError as error:
        answer = {"problem": Problem.from_error(error).model_dump(mode="json")}
    except OSError as error:
        answer = {"problem": Problem.from_error(storage_error(error)).model_dump(mode="json")}
    json.dump(answer, answer_to)
    answer_to.close()


def _answer(asked: dict[str, Any]) -> dict[str, Any]:
    path = Path(asked["path"])
    match asked["action"]:
        case "unpack":
            limits = ArchiveLimits(asked["max_bytes"])
            n_bytes = unpack(path, asked["kind"], Path(asked["target"]), limits)
            os.sync()
            return {"n_bytes": n_bytes}
        case "inspect":
            return inspect(path, needs_fingerprint=asked["needs_fingerprint"])
        case other:
            raise InputError(f"unknown action {other!r}")


def inspect(path: Path, *, needs_fingerprint: bool) -> dict[str, Any]:
    """What an input is, as JSON values: geometry, dtype, notes, and its SHA-256.

    What options of a job can settle is no error here: which of several images, the axes, a
    geometry to be resampled. The note ``needs_choice`` then says what to choose.

    Args:
        path: file or folder.
        needs_fingerprint: whether to read all of it for its SHA-256 (as a local run would).

    Raises:
        LamellaError: what the reader has against it.
    """
    from lamella.io.format import open_volume

    try:
        volume = open_volume(path)
    except InputError as error:
        is_settled = isinstance(error, UnreadableFileError | UnknownFormatError)
        if is_settled and not _holds_images(path):
            raise
        told = " ".join(filter(None, (error.message, error.hint)))
        found: dict[str, Any] = {
            "geometry": None,
            "dtype": None,
            "notes": [NoteDoc(code="needs_choice", message=told).model_dump(mode="json")],
        }
    else:
        affine = volume.affine
        geometry = GeometryDoc(
            shape=volume.spatial_shape,
            axes=str(volume.axes),
            spacing=SpacingDoc.of(volume.spacing),
            origin=affine.origin,
            direction=affine.direction,
            frame=affine.frame,
        )
        notes = [NoteDoc(code=note.code, message=note.message) for note in volume.notes]
        found = {
            "geometry": geometry.model_dump(mode="json"),
            "dtype": str(volume.dtype),
            "notes": [note.model_dump(mode="json") for note in notes],
        }
    if needs_fingerprint:
        from lamella.workflows.fingerprint import path_fingerprint

        known = path_fingerprint(path)
        found |= {"sha256": known.sha256, "n_bytes": known.n_bytes}
    return found


def _holds_images(path: Path) -> bool:
    """Whether a folder that is no volume itself holds files that are some."""
    if not path.is_dir():
        return False
    files = sorted(one for one in path.iterdir() if one.is_file())
    return any(_opens(one) for one in files[:_MAX_TRIED])


def _opens(path: Path) -> bool:
    from lamella.io.format import open_volume

    try:
        open_volume(path)
    except LamellaError:
        return False
    return True


def _limit() -> None:
    """Die with the server, leave no core file, and take only so much memory."""
    import resource

    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        # Of its own memory: files that are mapped, however large, do not count.
        resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    main()
