"""Who asks, and whether they may: bearer tokens as dependencies of routes.

A route says what it needs, a thing says whose it is::

    @router.get("/jobs/{job_id}")
    def get_job(job_id: str, who: Annotated[Principal, require("jobs:read")],
                services: ServicesDep) -> JobDoc:
        record = services.jobs.get(job_id)
        if not who.may_see(record.owner):
            raise MissingPathError(f"there is no job {job_id!r}")

What belongs to somebody else is not found (404): that it exists is nobody's business.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, cast

from fastapi import Depends, Security
from fastapi.concurrency import run_in_threadpool
from fastapi.openapi.models import HTTPBearer as BearerModel
from fastapi.security import SecurityScopes
from fastapi.security.base import SecurityBase
from starlette.requests import HTTPConnection
from starlette.websockets import WebSocket

from lamella.core.errors import (
    ForbiddenError,
    TooManyRequestsError,
    UnauthenticatedError,
)
from lamella.server.services import Services
from lamella.wire.access import Role

__all__ = [
    "Principal",
    "ServicesDep",
    "chosen_subprotocol",
    "client_address",
    "get_services",
    "require",
]

_SUBPROTOCOL = "lamella.v1"
_BEARER_SUBPROTOCOL = "bearer."


@dataclass(frozen=True, slots=True)
class Principal:
    """Whoever sent a request.

    Attributes:
        user: name.
        role: of the token.
        scopes: what the token allows.
        token_id: which token it was.
    """

    user: str
    role: Role
    scopes: frozenset[str]
    token_id: str

    @property
    def is_admin(self) -> bool:
        """Whether everybody's things are theirs to see."""
        return self.role == "admin"

    def may_see(self, owner: str) -> bool:
        """Whether a thing of this owner is theirs to see."""
        return self.is_admin or owner == self.user


async def get_services(connection: HTTPConnection) -> Services:
    """What the application works with; ``async``, or every request would visit a thread for it."""
    return cast("Services", connection.app.state.services)


ServicesDep = Annotated[Services, Depends(get_services)]


class _BearerScheme(SecurityBase):
    """Bearer tokens of requests and of WebSockets, as OpenAPI describes them."""

    def __init__(self) -> None:
        self.model = BearerModel(
            description="A token of `lamella tokens add`, as `Authorization: Bearer lam_...`."
        )
        self.scheme_name = "token"

    async def __call__(self, connection: HTTPConnection) -> str | None:
        return _sent_token(connection)


_bearer = _BearerScheme()


async def _authorise(
    needed: SecurityScopes,
    connection: HTTPConnection,
    services: ServicesDep,
    text: Annotated[str | None, Depends(_bearer)],
) -> Principal:
    if text is None:
        raise UnauthenticatedError(
            "this needs a token, and none was sent",
            hint="send it as header: Authorization: Bearer lam_...",
        )
    grant = services.tokens.cached(text)
    if grant is None:
        grant = await run_in_threadpool(_verify, services, text, client_address(connection))
    principal = Principal(grant.user, grant.role, grant.scopes, grant.id)
    connection.state.principal = principal
    wait = services.rate_limit.take(grant.id)
    if wait:
        raise TooManyRequestsError(
            "this token sends more requests than the server takes",
            hint=f"wait {wait:.2g} s; the server's setting rate_limit says how many it takes",
            details={"retry_after_s": round(wait, 3)},
        )
    if missing := [scope for scope in needed.scopes if scope not in grant.scopes]:
        raise ForbiddenError(
            f"this token does not allow {', '.join(missing)}",
            hint=f"it is a token of role {grant.role}; ask for one that does",
            details={"needed": missing},
        )
    return principal


def require(*scopes: str) -> Any:
    """The principal of a request whose token allows all of these scopes.

    Use as ``Annotated[Principal, require("jobs:write")]``; without scopes any valid token will do.
    It raises ``UnauthenticatedError``, ``ForbiddenError`` or ``TooManyRequestsError``.
    """
    return Security(_authorise, scopes=list(scopes))


def client_address(connection: HTTPConnection) -> str:
    """Address of the client, for limits and the audit log."""
    return connection.client.host if connection.client else ""


def chosen_subprotocol(websocket: WebSocket) -> str | None:
    """What a WebSocket is accepted with: ours when offered, never the one that holds a token."""
    return _SUBPROTOCOL if _SUBPROTOCOL in _subprotocols(websocket) else None


def _verify(services: Services, text: str, address: str) -> Any:
    """Verify a token; too many that are none make their address wait.

    A valid one passes all the same: behind a proxy or in a lab, an address is many people's.
    """
    try:
        return services.tokens.verify(text)
    except UnauthenticatedError:
        services.metrics.failed_logins.inc()
        wait = services.failure_limit.take(address)
        if not wait:
            raise
    raise TooManyRequestsError(
        "too many requests without a valid token came from this address",
        hint=f"wait {wait:.0f} s, and check the token",
        details={"retry_after_s": round(wait, 3)},
    )


def _sent_token(connection: HTTPConnection) -> str | None:
    kind, _, text = connection.headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer" and text.strip():
        return text.strip()
    if connection.scope["type"] == "websocket":
        # Pages in a browser cannot set headers of a WebSocket, and an address would be logged.
        for name in _subprotocols(connection):
            if name.startswith(_BEARER_SUBPROTOCOL):
                return name.removeprefix(_BEARER_SUBPROTOCOL)
    return None


def _subprotocols(connection: HTTPConnection) -> list[str]:
    listed = connection.headers.get("sec-websocket-protocol", "")
    return [name.strip() for name in listed.split(",")]
