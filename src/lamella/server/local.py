"""The tokens of a server from its own machine, whether it runs or not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lamella.core.errors import MissingPathError
from lamella.server.audit import AuditLog
from lamella.server.database import open_server_database
from lamella.server.secret import Secret
from lamella.server.tokens import TokenStore

if TYPE_CHECKING:
    from lamella.server.settings import Settings

__all__ = ["LocalAccess", "open_local"]


@dataclass(frozen=True, slots=True)
class LocalAccess:
    """What the command line changes without asking the server.

    Attributes:
        tokens: of the server; a running one knows of a revoked token within two seconds.
        audit: where it is recorded.
    """

    tokens: TokenStore
    audit: AuditLog


@contextmanager
def open_local(settings: Settings) -> Iterator[LocalAccess]:
    """Open the tokens of a server that keeps its data here.

    Raises:
        MissingPathError: no server has been started with this folder.
    """
    folder = settings.data_dir
    if not (folder / "secret.key").is_file():
        raise MissingPathError(
            f"no server keeps its data in {folder}",
            hint="start one with lamella serve, name its folder with --data-dir, or ask a running"
            " one with --server URL",
        )
    database = open_server_database(settings)
    try:
        tokens = TokenStore(database, Secret.of_folder(folder).key("tokens"))
        yield LocalAccess(tokens, AuditLog(database))
    finally:
        database.close()
