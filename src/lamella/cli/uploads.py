"""``lamella uploads``: what of the user's lies on a server."""

from typing import TYPE_CHECKING, Any

import click

from lamella.cli.console import table
from lamella.cli.parameters import answer_options, console_of
from lamella.cli.remote import connect, format_bytes, server_options, short_id
from lamella.core.errors import InputError

if TYPE_CHECKING:
    from lamella.wire.upload import UploadDoc, VolumeDoc

__all__ = ["command"]


@click.group()
def command() -> None:
    """Uploads and volumes on a server: list and remove them."""


@command.command("list")
@server_options
@answer_options
def list_command(**words: Any) -> None:
    """List unfinished uploads, and volumes that jobs can use."""
    console = console_of(words)
    with connect(words) as client:
        volumes = client.volumes()
        uploads = [one for one in client.uploads() if one.state == "open"]
    document = {
        "uploads": [one.model_dump(mode="json") for one in uploads],
        "volumes": [one.model_dump(mode="json") for one in volumes],
    }
    console.answer(document, lambda: _text(uploads, volumes))


@command.command("remove")
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@server_options
@answer_options
def remove_command(ids: tuple[str, ...], **words: Any) -> None:
    """Remove uploads or volumes, by the beginning of their ids."""
    console = console_of(words)
    removed: list[str] = []
    with connect(words) as client:
        known = [("volumes", one.id) for one in client.volumes()]
        known += [("uploads", one.id) for one in client.uploads()]
        for text in ids:
            found = [entry for entry in known if entry[1].startswith(text)]
            if len(found) != 1:
                what = "nothing begins" if not found else f"{len(found)} ids begin"
                raise InputError(f"{what} with {text}", hint="`lamella uploads list` shows the ids")
            client.remove(*found[0])
            removed.append(found[0][1])
    console.answer({"removed": removed}, "\n".join(f"{short_id(one)}: removed" for one in removed))


def _text(uploads: "list[UploadDoc]", volumes: "list[VolumeDoc]") -> str:
    if not uploads and not volumes:
        return "nothing of yours is there"
    rows: list[tuple[object, ...]] = []
    for one in volumes:
        shape = "" if one.geometry is None else " x ".join(map(str, one.geometry.shape))
        rows.append((short_id(one.id), one.name, format_bytes(one.n_bytes), one.state, shape))
    for one in uploads:
        share = f"{one.offset / one.n_bytes:.0%}" if one.n_bytes else ""
        until = f"{share} there, kept until {(one.expires or '')[:16].replace('T', ' ')}"
        rows.append((short_id(one.id), one.name, format_bytes(one.n_bytes), "uploading", until))
    return table(rows, ("id", "name", "size", "state", ""))
