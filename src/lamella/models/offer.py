"""What can be pulled: the catalogue shipped with the package, the user's own, those of servers.

The user's catalogues come first and hide shipped entries of the same id. A server's catalogue is
kept, so that it can be read without the network; it is asked again with its ETag. A catalogue that
cannot be read is a problem in the list, not the end of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

from lamella.core.errors import LamellaError, ModelError, StorageError
from lamella.core.storage import storage_error
from lamella.models.download import local_path
from lamella.models.transfer import TransferError, open_reply
from lamella.wire.catalogue import CatalogueDoc, CatalogueEntry

if TYPE_CHECKING:
    from lamella.core.places import Places

__all__ = ["Offer", "Offers", "list_kept_catalogues", "read_offers", "shipped_catalogue"]

_LARGEST_BYTES = 16 * 10**6
_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Offer:
    """An entry and the catalogue it stands in."""

    entry: CatalogueEntry
    catalogue: str


@dataclass(frozen=True, slots=True)
class Offers:
    """Everything that can be pulled.

    Attributes:
        offers: by id, each id once.
        problems: what is wrong with catalogues, one sentence each.
    """

    offers: tuple[Offer, ...]
    problems: tuple[str, ...] = ()

    def find(self, model_id: str) -> Offer | None:
        """Return the offer of an id."""
        return next((offer for offer in self.offers if offer.entry.id == model_id), None)


def shipped_catalogue() -> Path:
    """Return the folder of the catalogues shipped with the package."""
    return Path(__file__).parent / "catalogues"


def read_offers(places: Places, *, asks_servers: bool = True) -> Offers:
    """Read every catalogue.

    Args:
        places: the user's catalogues, and where copies of servers' ones are kept.
        asks_servers: False reads kept copies only, for error messages and completion.
    """
    found: dict[str, Offer] = {}
    problems: list[str] = []
    for source in (*places.catalogues, str(shipped_catalogue())):
        for name, base, content in _read(source, places, problems, asks_servers=asks_servers):
            try:
                document = CatalogueDoc.parse_json(content, what=name, error=ModelError)
                entries = [_resolved(entry, base) for entry in document.models]
            except LamellaError as error:
                problems.append(error.message)
                continue
            for entry in entries:
                found.setdefault(entry.id, Offer(entry, document.title or name))
    return Offers(tuple(found[key] for key in sorted(found)), tuple(problems))


def _read(
    source: str, places: Places, problems: list[str], *, asks_servers: bool
) -> Iterator[tuple[str, str, bytes]]:
    """Yield name, base address and content of each document a source stands for."""
    path = local_path(source)
    if path is None:
        content = _from_server(source, places, problems, asks_servers=asks_servers)
        if content is not None:
            yield source, source, content
        return
    path = path.expanduser()
    try:
        files = sorted(path.glob("*.json")) if path.is_dir() else [path]
        for file in files:
            if file.stat().st_size > _LARGEST_BYTES:
                problems.append(f"the catalogue {file} is too large to be one")
                continue
            yield str(file), file.resolve().as_uri(), file.read_bytes()
    except OSError as error:
        problems.append(f"the catalogue {source} cannot be read: {error.strerror or error}")


def _resolved(entry: CatalogueEntry, base: str) -> CatalogueEntry:
    """Make relative addresses whole."""
    files = tuple(
        file.model_copy(update={"urls": tuple(_address(url, base, entry.id) for url in file.urls)})
        for file in entry.files
    )
    return entry.model_copy(update={"files": files})


def _address(url: str, base: str, model_id: str) -> str:
    scheme = urlsplit(url).scheme
    if scheme in ("http", "https"):
        return url
    is_local = urlsplit(base).scheme == "file"
    if scheme == "file" and is_local:
        return url
    if scheme or (not is_local and local_path(urljoin(base, url)) is not None):
        # A server must not choose which files of this machine are read.
        raise ModelError(f"{base} offers {model_id} at {url!r}, which is no web address")
    return urljoin(base, url)


# --- servers ------------------------------------------------------------------------------------


def _from_server(
    address: str, places: Places, problems: list[str], *, asks_servers: bool
) -> bytes | None:
    """Return a server's catalogue, or the copy kept of it."""
    copy, note = _copy_paths(address, places)
    kept = copy.read_bytes() if copy is not None and copy.is_file() else None
    if places.is_offline or not asks_servers:
        if kept is None and asks_servers:
            problems.append(f"{address} was never read here, and the network is forbidden")
        return kept
    tag = _kept_tag(note) if kept is not None and note is not None else ""
    try:
        status, fresh_tag, content = _ask(address, tag)
    except TransferError as error:
        told = "; its copy is used" if kept is not None else ""
        problems.append(f"{address}: {error.reason}{told}")
        return kept
    if status == 304:
        return kept
    if copy is not None and note is not None:
        with suppress(StorageError):
            _keep(copy, content)
            _keep(note, json.dumps({"address": address, "etag": fresh_tag}).encode())
    return content


def _ask(address: str, tag: str) -> tuple[int, str, bytes]:
    headers = {"If-None-Match": tag} if tag else {}
    with open_reply(address, headers, timeout_s=_TIMEOUT_S, check=lambda: None) as reply:
        if reply.status == 304:
            return 304, tag, b""
        reply.check_status()
        content = bytearray()
        for chunk in reply.chunks:
            content += chunk
            if len(content) > _LARGEST_BYTES:
                raise TransferError("this is too large for a catalogue", is_lasting=True)
        if reply.n_bytes not in (None, len(content)):
            raise TransferError("the connection ended early")
        return reply.status, reply.headers.get("etag", ""), bytes(content)


def _copy_paths(address: str, places: Places) -> tuple[Path | None, Path | None]:
    if places.models is None:
        return None, None
    name = hashlib.sha256(address.encode()).hexdigest()[:16]
    folder = places.models / ".catalogues"
    return folder / f"{name}.json", folder / f"{name}.note"


def _kept_tag(note: Path) -> str:
    with suppress(OSError, ValueError, KeyError, TypeError):
        return str(json.loads(note.read_text(encoding="utf-8"))["etag"])
    return ""


def _keep(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(path.name + ".new")
        fresh.write_bytes(content)
        fresh.replace(path)
    except OSError as error:
        raise storage_error(error, path) from error


def list_kept_catalogues(places: Places) -> Iterator[tuple[str, Path]]:
    """Yield address and path of every copy that is kept of a server's catalogue."""
    if places.models is None:
        return
    for note in sorted((places.models / ".catalogues").glob("*.note")):
        with suppress(OSError, ValueError, KeyError, TypeError):
            address = str(json.loads(note.read_text(encoding="utf-8"))["address"])
            yield address, note.with_suffix(".json")
