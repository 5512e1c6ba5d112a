"""A run of a server becomes a run folder of this machine: unpacked, checked, with our own paths.

The archive is unpacked beside its place; then file by file is moved, the manifest last, so that a
run folder without a manifest is never a whole run and a crash costs nothing but the moving.
"""

import html
import json
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from lamella.core.errors import ServerConnectionError
from lamella.core.progress import ProgressSink, SilentSink
from lamella.io.format import SaveOptions, save_volume, storage_errors
from lamella.wire.event import WarningEvent
from lamella.wire.manifest import NoteDoc, RunManifest
from lamella.wire.request import SegmentRequest
from lamella.workflows.run import Run, origin_of
from lamella.workflows.run_folder import DOWNLOADS, REMOTE, RunFolder, write_bytes

__all__ = ["export_labels", "settle", "unpack"]

_MANIFEST = "manifest.json"
# Where people read the input's path.
_TEXTS = ("report.json", "events.jsonl", "report.html")


def unpack(archive: Path, folder: Path) -> None:
    """Unpack the archive of a run into a new folder.

    Args:
        archive: tar, of plain files and folders, the run at its top or one folder below.
        folder: what lies there is replaced.

    Raises:
        ServerConnectionError: when it is no archive of a run.
    """
    with storage_errors(folder):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            with tarfile.open(archive, "r:") as opened:
                members = opened.getmembers()
                top = _top(members)
                for member in members:
                    name = member.name.removeprefix("./")
                    if not (member.isfile() or member.isdir()) or not name.startswith(top):
                        continue
                    opened.extract(
                        member.replace(name=name[len(top) :] or "."), folder, filter="data"
                    )
        except tarfile.TarError as error:
            raise ServerConnectionError(
                f"the server's run cannot be unpacked: {error}",
                hint="the same command again fetches it anew",
            ) from error


def settle(unpacked: Path, folder: RunFolder, asked: SegmentRequest | None) -> Run:
    """Move an unpacked run to its place.

    Args:
        unpacked: the run.
        folder: of this machine.
        asked: the request as it was made here: files are called as it calls them; None leaves the
            server's names.
    """
    manifest = RunManifest.read(unpacked / _MANIFEST, error=ServerConnectionError)
    names = _names(manifest, asked)
    if names:
        for name in _TEXTS:
            _rename(unpacked / name, names)
        write_bytes(unpacked / _MANIFEST, _renamed(manifest, names).to_json().encode())
        manifest = _renamed(manifest, names)
    with storage_errors(folder.path):
        for entry in sorted(unpacked.iterdir()):
            if entry.name not in (_MANIFEST, ".lock"):
                _move(entry, folder.path / entry.name)
        _move(unpacked / _MANIFEST, folder.manifest)
        (folder.path / REMOTE).unlink(missing_ok=True)
        shutil.rmtree(folder.path / DOWNLOADS, ignore_errors=True)
    return Run(folder.path, manifest)


def export_labels(
    run: Run, path: Path, *, overwrite: bool, sink: ProgressSink | None = None
) -> Run:
    """Write the labels of a run in another format, as a local run does."""
    labels = replace(run.labels, metadata={**run.labels.metadata, **origin_of(run.manifest)})
    listener = _Listener(sink or SilentSink())
    save_volume(labels, path, SaveOptions(overwrite=overwrite, sink=listener))
    known = run.manifest.warnings
    manifest = run.manifest.model_copy(
        update={
            "outputs": {**run.manifest.outputs, "export": str(path.absolute())},
            "warnings": (*known, *(note for note in listener.warnings if note not in known)),
        }
    )
    RunFolder(run.folder).write_manifest(manifest)
    return Run(run.folder, manifest, was_finished=run.was_finished)


class _Listener:
    """Passes events on and notes warnings: the manifest tells them too."""

    def __init__(self, sink: ProgressSink) -> None:
        self._sink: Any = sink
        self.warnings: list[NoteDoc] = []

    def emit(self, event: Any, /) -> None:
        if isinstance(event, WarningEvent):
            self.warnings.append(NoteDoc(code=event.code, message=event.message))
        self._sink.emit(event)

    def check(self) -> None:
        self._sink.check()


def _top(members: list[tarfile.TarInfo]) -> str:
    """What all names of the run begin with."""
    names = [member.name.removeprefix("./") for member in members]
    manifests = [n for n in names if n == _MANIFEST or n.endswith("/" + _MANIFEST)]
    if not manifests:
        raise ServerConnectionError(
            "the server's archive holds no run: there is no manifest.json in it",
            hint="is the server of another version?",
        )
    return min(manifests, key=len).removesuffix(_MANIFEST)


def _move(source: Path, target: Path) -> None:
    if target.is_dir() and not target.is_symlink():
        shutil.rmtree(target)
    source.replace(target)


def _names(manifest: RunManifest, asked: SegmentRequest | None) -> dict[str, str]:
    """What the server calls files of this machine, and how they are called here."""
    request = manifest.request
    there = request.input.path
    if asked is None:
        # Fetched elsewhere than where it was sent from: the input's own name tells people more.
        return {there: manifest.input.path} if there.startswith("volume:") else {}
    names: dict[str, str] = {}
    if there.startswith("volume:"):
        names[there] = asked.input.path
    if request.restore is not None and asked.restore is not None:
        psf, own = request.restore.psf, asked.restore.psf
        if psf is not None and own is not None and psf.startswith("volume:"):
            names[psf] = own
    return names


def _renamed(manifest: RunManifest, names: dict[str, str]) -> RunManifest:
    request = manifest.request
    path = names.get(request.input.path)
    changes: dict[str, object] = {}
    if path is not None:
        changes["input"] = request.input.model_copy(update={"path": path})
    if request.restore is not None and request.restore.psf in names:
        psf = {"psf": names[request.restore.psf or ""]}
        changes["restore"] = request.restore.model_copy(update=psf)
    own = manifest.input if path is None else manifest.input.model_copy(update={"path": path})
    return manifest.model_copy(update={"request": request.model_copy(update=changes), "input": own})


def _rename(path: Path, names: dict[str, str]) -> None:
    """Replace the server's names where people and programs read them."""
    if not path.is_file():
        return
    text = changed = path.read_text(encoding="utf-8")
    # A name may be the beginning of another one.
    for there, here in sorted(names.items(), key=lambda item: -len(item[0])):
        quoted = html.escape(here) if path.suffix == ".html" else json.dumps(here)[1:-1]
        changed = changed.replace(there, quoted)
    if changed != text:
        write_bytes(path, changed.encode())
