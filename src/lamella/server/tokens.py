"""Tokens: random secrets that are kept as hashes only, with a role, scopes, an end, a last use.

A secret reads ``lam_<id>_<secret>``: the id finds the row, the rest (256 random bits) is compared
with its HMAC-SHA-256 in constant time. A slow password hash would add nothing: nobody guesses 256
random bits, and the key of the HMAC lies outside the database.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from lamella.core.errors import InputError, LamellaError, UnauthenticatedError, UnknownIdError
from lamella.core.registry import nearest_names
from lamella.server.tables import tokens as table
from lamella.wire.access import Role, TokenDoc, TokenSecret, TokenSpec

if TYPE_CHECKING:
    from lamella.jobs.database import Database

__all__ = ["PREFIX", "SCOPES", "Grant", "TokenStore", "scopes_of_role"]

logger = logging.getLogger(__name__)

PREFIX = "lam_"
SCOPES = (
    "jobs:read",
    "jobs:write",
    "uploads:write",
    "volumes:read",
    "volumes:write",
    "models:read",
    "models:write",
    "tokens:manage",
    "metrics:read",
)
_ANNOTATOR_WRITES = ("jobs:write", "uploads:write", "volumes:write")
_PATTERN = re.compile(r"lam_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")
_MAX_LENGTH = 64
_CACHE_S = 2.0
"""How long a token that was found is believed: one revoked by another process is dead after it."""
_TOUCH_S = 60.0
"""Last uses closer together than this are not written."""
_MAX_CACHED = 4_096


def scopes_of_role(role: Role) -> tuple[str, ...]:
    """What tokens of a role may do.

    Examples:
        >>> scopes_of_role("viewer")
        ('jobs:read', 'volumes:read', 'models:read', 'metrics:read')
    """
    if role == "admin":
        return SCOPES
    reads = tuple(scope for scope in SCOPES if scope.endswith(":read"))
    if role == "viewer":
        return reads
    return tuple(scope for scope in SCOPES if scope in reads or scope in _ANNOTATOR_WRITES)


@dataclass(frozen=True, slots=True)
class Grant:
    """A token that was found to be valid.

    Attributes:
        id: of the token.
        user: whose it is.
        role: of the user, with this token.
        scopes: what it allows.
        expires: Unix time in seconds, None = never.
    """

    id: str
    user: str
    role: Role
    scopes: frozenset[str]
    expires: float | None


@dataclass
class TokenStore:
    """The tokens of a server.

    Args:
        database: where they are kept.
        key: of the HMAC.
        clock: Unix time in seconds.
    """

    database: Database
    key: bytes
    clock: Callable[[], float] = time.time
    _cache: dict[bytes, tuple[float, Grant]] = field(default_factory=dict)
    _touched: dict[str, float] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, spec: TokenSpec) -> TokenSecret:
        """Make a token; its secret is in the answer and nowhere else.

        Raises:
            InputError: scopes that do not exist, or that the role does not have.
        """
        allowed = scopes_of_role(spec.role)
        _check_scopes(spec, allowed)
        now = self.clock()
        token_id, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
        text = f"{PREFIX}{token_id}_{secret}"
        row = {
            "id": token_id,
            "user": spec.user,
            "role": spec.role,
            "scopes": list(dict.fromkeys(spec.scopes)) or list(allowed),
            "name": spec.name,
            "hash": self._digest(text),
            "created": now,
            "expires": None if spec.expires_s is None else now + spec.expires_s,
            "last_used": None,
            "revoked": None,
        }
        with self.database.begin() as connection:
            connection.execute(sa.insert(table).values(**row))
        return TokenSecret(token=_document(row), secret=text)

    def list(self, *, user: str | None = None) -> tuple[TokenDoc, ...]:
        """Every token, of one user where given, newest first."""
        query = sa.select(table).order_by(table.c.created.desc(), table.c.id)
        if user is not None:
            query = query.where(table.c.user == user)
        with self.database.read() as connection:
            rows = connection.execute(query).mappings().all()
        return tuple(_document(dict(row)) for row in rows)

    def get(self, token_id: str) -> TokenDoc:
        """A token by its id.

        Raises:
            UnknownIdError: no such token.
        """
        with self.database.read() as connection:
            row = _find(connection, token_id)
        if row is None:
            raise _unknown(token_id)
        return _document(row)

    def revoke(self, token_id: str) -> TokenDoc:
        """End a token at once; revoking it again changes nothing.

        Raises:
            UnknownIdError: no such token.
        """
        with self.database.begin() as connection:
            connection.execute(
                sa.update(table)
                .where(table.c.id == token_id, table.c.revoked.is_(None))
                .values(revoked=self.clock())
            )
            row = _find(connection, token_id)
        with self._lock:
            self._cache.clear()
        if row is None:
            raise _unknown(token_id)
        return _document(row)

    def is_empty(self) -> bool:
        """Whether there has never been a token."""
        with self.database.read() as connection:
            return connection.execute(sa.select(table.c.id).limit(1)).first() is None

    def cached(self, text: str) -> Grant | None:
        """A token found valid a moment ago, without asking the database."""
        with self._lock:
            found = self._cache.get(_cache_key(text))
        now = self.clock()
        if found is None or not 0.0 <= now - found[0] < _CACHE_S:
            return None
        grant = found[1]
        return None if grant.expires is not None and now >= grant.expires else grant

    def verify(self, text: str) -> Grant:
        """What a secret allows.

        Raises:
            UnauthenticatedError: it is none, is not of this server, has expired or was revoked.
        """
        grant = self.cached(text)
        if grant is not None:
            return grant
        match = _PATTERN.fullmatch(text) if len(text) <= _MAX_LENGTH else None
        row = None
        if match is not None:
            with self.database.read() as connection:
                row = _find(connection, match[1])
        # The same work and the same answer, whether the id or the secret is wrong.
        expected = row["hash"] if row is not None else "0" * 64
        is_right = hmac.compare_digest(self._digest(text), expected)
        if row is None or not is_right:
            raise _refused("this token is not one of this server")
        now = self.clock()
        if row["revoked"] is not None:
            raise _refused("this token was revoked")
        if row["expires"] is not None and now >= row["expires"]:
            raise _refused("this token has expired")
        grant = Grant(row["id"], row["user"], row["role"], frozenset(row["scopes"]), row["expires"])
        self._remember(text, grant, now)
        self._touch(grant.id, now)
        return grant

    def _digest(self, text: str) -> str:
        encoded = text.encode("utf-8", "surrogatepass")
        return hmac.new(self.key, encoded, hashlib.sha256).hexdigest()

    def _remember(self, text: str, grant: Grant, now: float) -> None:
        with self._lock:
            if len(self._cache) >= _MAX_CACHED:
                self._cache.clear()
            self._cache[_cache_key(text)] = (now, grant)

    def _touch(self, token_id: str, now: float) -> None:
        with self._lock:
            if now - self._touched.get(token_id, float("-inf")) < _TOUCH_S:
                return
            self._touched[token_id] = now
        try:
            with self.database.begin() as connection:
                connection.execute(
                    sa.update(table).where(table.c.id == token_id).values(last_used=now)
                )
        except (LamellaError, SQLAlchemyError) as error:
            # A busy or full database must not turn a valid token away.
            logger.warning("last use of token %s not written: %s", token_id, error)


def _check_scopes(spec: TokenSpec, allowed: Iterable[str]) -> None:
    for scope in spec.scopes:
        if scope not in SCOPES:
            near = nearest_names(scope, SCOPES)
            raise InputError(
                f"there is no scope {scope!r}",
                hint=f"did you mean {' or '.join(near)}?" if near else ", ".join(SCOPES),
            )
        if scope not in allowed:
            raise InputError(
                f"the role {spec.role} does not have the scope {scope}",
                hint=f"it has {', '.join(allowed)}",
            )


def _cache_key(text: str) -> bytes:
    # The secrets themselves stay out of the server's memory.
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def _find(connection: sa.Connection, token_id: str) -> Mapping[str, Any] | None:
    row = connection.execute(sa.select(table).where(table.c.id == token_id)).mappings().first()
    return None if row is None else dict(row)


def _document(row: Mapping[str, Any]) -> TokenDoc:
    return TokenDoc(
        id=row["id"],
        user=row["user"],
        role=row["role"],
        scopes=tuple(row["scopes"]),
        name=row["name"],
        created=_time(row["created"]) or "",
        expires=_time(row["expires"]),
        last_used=_time(row["last_used"]),
        is_revoked=row["revoked"] is not None,
    )


def _time(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _refused(message: str) -> UnauthenticatedError:
    return UnauthenticatedError(
        message, hint="ask whoever runs the server for one (lamella tokens add)"
    )


def _unknown(token_id: str) -> UnknownIdError:
    return UnknownIdError(
        f"there is no token {token_id!r}", hint="lamella tokens list shows the ids"
    )
