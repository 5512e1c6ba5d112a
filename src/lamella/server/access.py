"""Routes of tokens: list, add, revoke, and what the token in hand is."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Request, Response

from lamella.core.errors import MissingPathError, UnknownIdError
from lamella.server.auth import Principal, ServicesDep, require
from lamella.server.problems import problems
from lamella.wire.access import TokenDoc, TokenSecret, TokenSpec

__all__ = ["router"]

router = APIRouter(prefix="/tokens", tags=["tokens"])


@router.get("", operation_id="list_tokens", summary="List tokens")
def list_tokens(
    services: ServicesDep,
    _who: Annotated[Principal, require("tokens:manage")],
    user: str | None = None,
) -> list[TokenDoc]:
    """Tokens of every user, newest first, without their secrets."""
    return list(services.tokens.list(user=user))


@router.post(
    "", operation_id="create_token", summary="Make a token", status_code=201,
    response_model=TokenSecret,
)  # fmt: skip
def create_token(
    spec: TokenSpec,
    request: Request,
    services: ServicesDep,
    _who: Annotated[Principal, require("tokens:manage")],
) -> TokenSecret:
    """The answer holds the secret: it is shown this once, and only its hash is kept."""
    made = services.tokens.add(spec)
    services.audit.record(
        request, action="token.create", target=made.token.id, status=201,
        details={"user": spec.user, "role": spec.role, "scopes": list(made.token.scopes)},
    )  # fmt: skip
    return made


@router.get("/current", operation_id="get_current_token", summary="The token in hand")
def get_current_token(services: ServicesDep, who: Annotated[Principal, require()]) -> TokenDoc:
    """Whose the token of this request is, what it allows, and until when."""
    return services.tokens.get(who.token_id)


@router.delete(
    "/{token_id}", operation_id="revoke_token", summary="Revoke a token", status_code=204,
    response_class=Response, responses=problems(404),
)  # fmt: skip
def revoke_token(
    token_id: str,
    request: Request,
    services: ServicesDep,
    who: Annotated[Principal, require()],
) -> Response:
    """End a token at once. Everybody may revoke the token in hand; others need tokens:manage."""
    missing = MissingPathError(f"there is no token {token_id!r}", hint="GET /api/v1/tokens")
    if token_id != who.token_id and "tokens:manage" not in who.scopes:
        raise missing
    try:
        services.tokens.revoke(token_id)
    except UnknownIdError:
        raise missing from None
    services.audit.record(request, action="token.revoke", target=token_id, status=204)
    return Response(status_code=204)
