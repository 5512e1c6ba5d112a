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

from lamella.core.errors import ServerConnectionError
from lamella.core.progress import ProgressSink, SilentSink
from lamella.io.format import SaveOptions, save_volume, storage_errors
from lamella.wire.manifest import RunManifest
from lamella.workflows.run import Run, origin_of
from lamella.workflows.run_folder import RunFolder, write_bytes

__all__ = ["DOWNLOADS", "REMOTE", "export_labels", "settle", "unpack"]

REMOTE = "remote.json"
"""Remembers the job of a run folder whose run is not here yet."""
DOWNLOADS = ".download"
"""Folder of what is coming."""
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


def settle(unpacked: Path, folder: RunFolder, input_path: str | None) -> Run:
    """Move an unpacked run to its place.

    Args:
        unpacked: the run.
        folder: of this machine.
        input_path: the input on this machine; None leaves the server's name of it.
    """
    manifest = RunManifest.read(unpacked / _MANIFEST, error=ServerConnectionError)
    there = manifest.request.input.path
    if input_path is None and there.startswith("volume:"):
        # Fetched elsewhere than where it was sent from: the input's own name tells people more.
        input_path = manifest.input.path
    if input_path is not None:
        _rename_input(unpacked, there, input_path)
        request = manifest.request
        own = request.input.model_copy(update={"path": input_path})
        manifest = manifest.model_copy(
            update={
                "request": request.model_copy(update={"input": own}),
                "input": manifest.input.model_copy(update={"path": input_path}),
            }
        )
        write_bytes(unpacked / _MANIFEST, manifest.to_json().encode())
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
    save_volume(labels, path, SaveOptions(overwrite=overwrite, sink=sink or SilentSink()))
    outputs = {**run.manifest.outputs, "export": str(path.absolute())}
    manifest = run.manifest.model_copy(update={"outputs": outputs})
    RunFolder(run.folder).write_manifest(manifest)
    return Run(run.folder, manifest, was_finished=run.was_finished)


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


def _rename_input(folder: Path, there: str, here: str) -> None:
    """Replace the server's name of the input where people and programs read it."""
    for name in _TEXTS:
        path = folder / name
        if not path.is_file():
            continue
        text = path.read_text(encoding="utf-8")
        quoted = html.escape(here) if path.suffix == ".html" else json.dumps(here)[1:-1]
        changed = text.replace(there, quoted)
        if changed != text:
            write_bytes(path, changed.encode())
