"""Documents of a server, read so that a newer server may say more than this client knows.

Within this program unknown fields are refused, since they are mistakes; from another version of it
they are what that version has learnt, and are left out.
"""

from typing import Any, TypeVar

from pydantic import ValidationError

from lamella.core.errors import ServerConnectionError
from lamella.wire.document import Document
from lamella.wire.event import RunEvent, parse_event

__all__ = ["document_of", "event_of", "other_version"]

D = TypeVar("D", bound=Document)


def document_of(kind: type[D], content: bytes | dict[str, Any], *, what: str) -> D:
    """A document of a server.

    Args:
        kind: of which class.
        content: JSON, or the values of it.
        what: it is, for the message.

    Raises:
        ServerConnectionError: when this client cannot read it.
    """
    try:
        if isinstance(content, bytes):
            return kind.model_validate_json(content, extra="ignore")
        return kind.model_validate(content, extra="ignore")
    except ValidationError as error:
        raise other_version(what, error) from None


def event_of(text: str | bytes) -> RunEvent | None:
    """An event; None for one that this version does not know."""
    try:
        return parse_event(text, extra="ignore")
    except ValidationError:
        return None


def other_version(what: str, error: ValidationError) -> ServerConnectionError:
    """The error of an answer that cannot be read."""
    from lamella.workflows.versions import LAMELLA_VERSION

    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"]) or "it"
    return ServerConnectionError(
        f"the server's {what} cannot be read here ({place}: {first['msg']})",
        hint=f"it may be of another version: `lamella login URL` tells its version, this is"
        f" {LAMELLA_VERSION}; update the older one",
    )
