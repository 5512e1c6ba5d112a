"""Who may: scopes, limits, WebSockets; what refused requests are told."""

import pytest
from fastapi import WebSocket
from starlette.testclient import WebSocketDenialResponse

from lamella.server.auth import Principal, chosen_subprotocol, require
from lamella.server.limits import RateLimit
from lamella.wire.access import TokenSpec


def test_no_token_is_401_and_says_how_to_send_one(client):
    answer = client.get("/api/v1/tokens/current")
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert answer.json()["code"] == "unauthenticated"
    assert "Authorization: Bearer" in answer.json()["hint"]


@pytest.mark.parametrize("header", ["Basic dXNlcjpwYXNz", "Bearer", "Bearer ", "lam_x", "Bearer é"])
def test_other_headers_are_no_tokens(client, header):
    answer = client.get(
        "/api/v1/tokens/current", headers={"Authorization": header.encode("latin-1")}
    )
    assert answer.status_code == 401


def test_a_missing_scope_is_403_and_named(client, tokens):
    answer = client.post("/api/v1/tokens", json={"user": "x"}, headers=tokens["annotator"])
    assert answer.status_code == 403
    assert answer.json()["details"] == {"needed": ["tokens:manage"]}


def test_a_token_that_sends_too_much_waits(client, services, tokens):
    services.rate_limit.rate, services.rate_limit.burst = 0.5, 3
    statuses = [
        client.get("/api/v1/tokens/current", headers=tokens["viewer"]).status_code for _ in range(5)
    ]
    assert statuses == [200, 200, 200, 429, 429]
    answer = client.get("/api/v1/tokens/current", headers=tokens["viewer"])
    assert 1 <= int(answer.headers["retry-after"]) <= 2
    assert client.get("/api/v1/tokens/current", headers=tokens["other"]).status_code == 200


def test_guessing_is_slowed_down_and_valid_tokens_are_not(client, services, tokens):
    assert client.get("/api/v1/tokens/current", headers=tokens["viewer"]).status_code == 200
    statuses = [
        client.get(
            "/api/v1/tokens/current", headers={"Authorization": f"Bearer lam_{i}"}
        ).status_code
        for i in range(25)
    ]
    assert statuses[:20] == [401] * 20
    assert set(statuses[20:]) == {429}
    for user in ("viewer", "other"):
        # The second one has never been seen before: whoever guesses shuts nobody out.
        assert client.get("/api/v1/tokens/current", headers=tokens[user]).status_code == 200
    assert "lamella_refused_tokens_total 25.0" in services.metrics.text()


def test_limits_forget_the_oldest_and_refill():
    now = [0.0]
    limit = RateLimit(1.0, 2.0, clock=lambda: now[0])
    assert [limit.take("a"), limit.take("a"), limit.take("a")] == [0.0, 0.0, 1.0]
    now[0] = 10.0
    assert [limit.take("a"), limit.take("a"), limit.take("a")] == [0.0, 0.0, 1.0]
    for i in range(20_000):
        limit.take(str(i))
    assert len(limit._buckets) <= 10_000


@pytest.fixture
def with_socket(app):
    from typing import Annotated

    @app.websocket("/api/v1/test-socket")
    async def talk(websocket: WebSocket, who: Annotated[Principal, require("jobs:read")]):
        await websocket.accept(subprotocol=chosen_subprotocol(websocket))
        await websocket.send_text(who.user)
        await websocket.close()

    return app


def test_websockets_take_the_header_and_the_subprotocol(with_socket, client, tokens):
    with client.websocket_connect("/api/v1/test-socket", headers=tokens["viewer"]) as socket:
        assert socket.receive_text() == "viewer"
    secret = tokens["viewer"]["Authorization"].partition(" ")[2]
    offered = ["lamella.v1", f"bearer.{secret}"]
    with client.websocket_connect("/api/v1/test-socket", subprotocols=offered) as socket:
        assert socket.receive_text() == "viewer"
        assert socket.accepted_subprotocol == "lamella.v1", "never the one with the token"


def test_websockets_without_a_right_are_refused_with_a_problem(with_socket, client, services):
    narrow = services.tokens.add(TokenSpec(user="x", role="viewer", scopes=("models:read",))).secret
    for headers, status in (({}, 401), ({"Authorization": f"Bearer {narrow}"}, 403)):
        with (
            pytest.raises(WebSocketDenialResponse) as caught,
            client.websocket_connect("/api/v1/test-socket", headers=headers),
        ):
            pass
        assert caught.value.status_code == status
        assert caught.value.json()["hint"]
