"""Who may do what on a server."""

from typing import Literal

from pydantic import Field

from lamella.wire.document import Document

__all__ = ["Role", "TokenDoc", "TokenSecret", "TokenSpec"]

Role = Literal["viewer", "annotator", "admin"]


class TokenSpec(Document):
    """A token to be made."""

    user: str = Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9._@-]+$")
    role: Role = "annotator"
    scopes: tuple[str, ...] = ()
    """Fewer rights than the role's, where given."""
    name: str = Field(default="", max_length=200)
    """What it is for."""
    expires_s: float | None = Field(default=None, gt=0, le=100 * 365 * 86_400)
    """Seconds until it stops to be valid, at most a hundred years; None = until it is revoked."""


class TokenDoc(Document):
    """A token without its secret."""

    id: str
    user: str
    role: Role
    scopes: tuple[str, ...]
    name: str
    created: str
    expires: str | None = None
    last_used: str | None = None
    is_revoked: bool = False


class TokenSecret(Document):
    """A new token: ``secret`` is shown this once, and only its hash is kept."""

    token: TokenDoc
    secret: str
