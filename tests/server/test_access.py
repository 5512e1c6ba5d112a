"""Every route of the application, with every kind of token: only what is allowed is allowed.

The routes are taken from the application itself: one that is added tomorrow is tested tomorrow.
"""

import base64
import re
from dataclasses import dataclass

import pytest
from fastapi.routing import APIRoute, APIWebSocketRoute
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient, WebSocketDenialResponse

from lamella.core.places import Places
from lamella.jobs.machine import NewJob
from lamella.server.app import PREFIX, create_app, iter_routers
from lamella.server.openapi import EXAMPLES
from lamella.server.services import open_services
from lamella.server.settings import Settings
from lamella.server.tokens import SCOPES
from lamella.wire.access import TokenSpec

METHODS = ("get", "post", "put", "patch", "delete", "head", "options")
# What anybody may ask: health, the versions of tus, and addresses that are signed themselves.
PUBLIC = {
    "get_health",
    "get_ready",
    "get_version",
    "describe_upload",
    "describe_uploads",
}
# Beside the document: the manual, the document itself, preflights of signed addresses, and health
# where orchestrators look by habit.
PAGES = {
    "/", "/health", "/ready", "/version", "/metrics", f"{PREFIX}/openapi.json", f"{PREFIX}/docs",
    f"{PREFIX}/view/{{rest:path}}",
}  # fmt: skip
SIGNED = re.compile(rf"{PREFIX}/(artifacts|view)/")
# What an operation cannot do without.
HEADERS = {
    "append_upload": {"Upload-Offset": "0", "Content-Type": "application/offset+octet-stream"},
    "override_upload": {"X-HTTP-Method-Override": "HEAD"},
}
# Operations on a thing that has no owner: its rights are the scopes alone.
SHARED = ("models",)


@dataclass(frozen=True)
class Operation:
    """A row of the OpenAPI document."""

    method: str
    path: str
    name: str
    scopes: tuple[str, ...] | None
    """None: without a token."""

    def __str__(self):
        return self.name


class World:
    """A server with things of two users and tokens of every kind."""

    def __init__(self, folder):
        self.now = 1_800_000_000.0
        self.services = open_services(
            Settings(data_dir=folder / "data", min_free_bytes=0, rate_limit=0),
            places=Places(models=folder / "models"),
        )
        self.services.failure_limit.rate = 0.0
        self.app = create_app(self.services.settings, self.services)
        # Without lifespan: nothing runs in the background, so that things stay as they are.
        self.client = TestClient(self.app, raise_server_exceptions=False, follow_redirects=False)
        self.operations = tuple(_operations(self.app.openapi()))
        self.owner = self.token("maria")
        self.stranger = self.token("john")
        self.admin = self.token("root", role="admin")
        self.things = self.make_things()

    def token(self, user, role="annotator", **values):
        spec = TokenSpec.model_validate({"user": user, "role": role, **values})
        return {"Authorization": f"Bearer {self.services.tokens.add(spec).secret}"}

    def dead_tokens(self):
        """Headers by what is wrong with them."""
        store = self.services.tokens
        expired = self.token("maria", expires_s=1e-3)
        revoked = store.add(TokenSpec(user="maria"))
        store.revoke(revoked.token.id)
        good = self.owner["Authorization"]
        return {
            "none": {},
            "garbage": {"Authorization": "Bearer garbage"},
            "empty": {"Authorization": "Bearer"},
            "expired": expired,
            "revoked": {"Authorization": f"Bearer {revoked.secret}"},
            "other secret": {"Authorization": good[:-2] + ("xx" if good[-2:] != "xx" else "yy")},
            "basic": {"Authorization": "Basic " + base64.b64encode(b"maria:x").decode()},
            "cookie": {"Cookie": f"token={good}"},
        }

    def make_things(self):
        """Ids of maria's things, by the name of the path's parameter."""
        headers = {
            **self.owner,
            "Tus-Resumable": "1.0.0",
            "Upload-Length": "5",
            "Upload-Metadata": "volume " + base64.b64encode(b"0").decode(),
        }
        answer = self.client.post(f"{PREFIX}/uploads", headers=headers)
        assert answer.status_code == 201, answer.text
        upload = answer.headers["location"].rstrip("/").rpartition("/")[2]
        spec = {"request": {"input": {"path": "volume:0"}, "model": "membrane-3d"}}
        new = NewJob(owner="maria", kind="segment", spec=spec)
        job, _ = self.services.jobs.add(new)
        batch, _ = self.services.jobs.add_batch("maria", [new], name="b")
        return {
            "upload_id": upload,
            "job_id": job.id,
            "batch_id": batch.id,
            "volume_id": self.make_volume(),
            "token_id": self.services.tokens.list(user="maria")[0].id,
            "model_id": "membrane-3d",
            "name": "manifest.json",
            "labels": "labels",
            "inside": ".zattrs",
            "signed": "1900000000-" + "A" * 43,
            "sealed": "1900000000-" + "A" * 43,
        }

    def make_volume(self):
        import sqlalchemy as sa

        from lamella.server.tables import volumes

        with self.services.database.begin() as connection:
            connection.execute(
                sa.insert(volumes).values(
                    id="0f" * 8, owner="maria", name="v", state="ready", source={}, n_bytes=5,
                    location="v.mrc", created=self.now, last_used=self.now,
                )
            )  # fmt: skip
        return "0f" * 8

    def send(self, operation, headers, **changes):
        path = operation.path
        for name in re.findall(r"{(\w+)(?::path)?}", path):
            value = {**self.things, **changes}.get(name)
            assert value is not None, f"{path} has a parameter that this test does not know"
            path = re.sub(rf"{{{name}(:path)?}}", value, path)
        more = {}
        if operation.name in EXAMPLES:
            more["json"] = EXAMPLES[operation.name]
        needed = {"Tus-Resumable": "1.0.0"} if "/uploads" in path else {}
        needed |= HEADERS.get(operation.name, {})
        sent = [*needed.items(), *(headers.items() if isinstance(headers, dict) else headers)]
        return self.client.request(operation.method, path, headers=sent, **more)


def _operations(document):
    for path, entries in document["paths"].items():
        for method in METHODS:
            if method not in entries:
                continue
            entry = entries[method]
            security = entry.get("security")
            scopes = None if security is None else tuple(security[0]["token"])
            yield Operation(method.upper(), path, entry["operationId"], scopes)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    made = World(tmp_path_factory.mktemp("world"))
    yield made
    made.services.database.close()


def guarded(world):
    return [one for one in world.operations if one.scopes is not None]


def test_only_what_is_meant_to_be_public_is(world):
    """A route without a token is one on the list, or its address is signed."""
    public = {one.name for one in world.operations if one.scopes is None}
    signed = {one.name for one in world.operations if SIGNED.match(one.path)}
    assert public - signed == PUBLIC
    assert len(world.operations) > 30


def test_every_route_is_in_the_document_or_known(world):
    """Routes outside the OpenAPI document are WebSockets, and a short list of pages."""
    described = {(one.method, one.path) for one in world.operations}
    for router in iter_routers():
        for route in router.routes:
            if isinstance(route, APIWebSocketRoute):
                continue
            assert isinstance(route, APIRoute), route
            for method in route.methods:
                path = re.sub(r":path}", "}", PREFIX + route.path)
                is_known = (method, path) in described or not route.include_in_schema
                assert is_known, f"{method} {path} is not in the document"
                if not route.include_in_schema:
                    # Preflights of signed addresses, HEAD of what GET answers: never a new right.
                    assert method in ("OPTIONS", "HEAD", "GET"), (method, path)


def _all_routes(routes, prefix=""):
    """Path and methods of every route of an application, those of included routers too."""
    for route in routes:
        inner = getattr(route, "original_router", None)
        if inner is not None:
            yield from _all_routes(inner.routes, prefix + route.include_context.prefix)
        else:
            yield prefix + route.path, getattr(route, "methods", None)


def test_no_route_is_outside_the_walk(world):
    """Pages beside the document are a short list; whatever else is added must be judged here."""
    described = {one.path for one in world.operations}
    pages = set()
    for path, methods in _all_routes(world.app.routes):
        template = path.replace(":path}", "}")
        if template in described or template.endswith("/events/ws"):
            continue
        pages.add(path)
        assert methods <= {"GET", "HEAD", "OPTIONS"}, path
    assert pages == PAGES
    # Health at the root, where orchestrators look, is what it is below the prefix.
    for path in ("/health", "/ready", "/version"):
        assert world.client.get(path).status_code == 200
    assert world.client.get("/metrics").status_code == 401
    annotator = world.token("maria", scopes=["jobs:read"])
    assert world.client.get("/metrics", headers=annotator).status_code == 403


def test_streams_are_held_to_the_same_rules(world):
    """Server-sent events are another face of an address: nobody gets a first byte by it."""
    stream = {"Accept": "text/event-stream"}
    path = f"{PREFIX}/jobs/{world.things['job_id']}/events"
    for kind, headers in world.dead_tokens().items():
        answer = world.client.get(path, headers={**headers, **stream})
        assert answer.status_code == 401, kind
    blind = world.token("maria", scopes=["volumes:read"])
    assert world.client.get(path, headers={**blind, **stream}).status_code == 403
    for query in ("", "?after=0", "?after=999999", "?token=" + world.owner["Authorization"][7:]):
        answer = world.client.get(path + query, headers={**world.stranger, **stream})
        assert answer.status_code == 404
        assert answer.headers["content-type"] == "application/problem+json"


def test_a_token_in_an_address_is_no_token(world):
    """It would stand in logs and histories."""
    secret = world.owner["Authorization"].removeprefix("Bearer ")
    for name in ("token", "access_token", "authorization", "bearer", "api_key"):
        answer = world.client.get(f"{PREFIX}/jobs", params={name: secret})
        assert answer.status_code == 401
        assert secret not in answer.text


def test_dead_tokens_open_nothing(world):
    for kind, headers in world.dead_tokens().items():
        for operation in guarded(world):
            answer = world.send(operation, headers)
            assert answer.status_code == 401, (kind, str(operation), answer.text)
            assert "www-authenticate" in answer.headers
            if operation.method != "HEAD":
                assert answer.json()["code"] == "unauthenticated"


def test_every_scope_is_needed(world):
    """A token with all rights but the one that is needed: 403, before anything is looked up."""
    for operation in guarded(world):
        for scope in operation.scopes:
            others = [one for one in SCOPES if one != scope]
            headers = world.token("maria", role="admin", scopes=others)
            answer = world.send(operation, headers)
            assert answer.status_code == 403, (str(operation), scope, answer.text)


def test_viewers_change_nothing(world):
    viewer = world.token("maria", role="viewer")
    for operation in guarded(world):
        if operation.method in ("GET", "HEAD") or operation.name == "revoke_token":
            continue
        answer = world.send(operation, viewer)
        assert answer.status_code == 403, (str(operation), answer.text)


def test_things_of_others_do_not_exist(world):
    """The same answer for what is somebody else's and for what is not there: 404."""
    n_tried = 0
    for operation in guarded(world):
        names = re.findall(r"{(\w+)}", operation.path)
        is_shared = any(f"/{part}/" in operation.path for part in SHARED)
        if not names or is_shared or not set(operation.scopes) <= set(_annotator()):
            continue
        theirs = world.send(operation, world.stranger)
        missing = {name: "0" * len(world.things[name]) for name in names if name.endswith("_id")}
        nothing = world.send(operation, world.stranger, **missing)
        assert theirs.status_code == nothing.status_code == 404, (str(operation), theirs.text)
        if operation.method != "HEAD":
            told = theirs.json()["detail"]
            for name in missing:
                told = told.replace(world.things[name], missing[name])
            assert told == nothing.json()["detail"], str(operation)
        n_tried += 1
    assert n_tried > 15


def _annotator():
    from lamella.server.tokens import scopes_of_role

    return scopes_of_role("annotator")


def test_lists_show_only_ones_own(world):
    for operation in guarded(world):
        if operation.method != "GET" or "{" in operation.path or "models" in operation.path:
            continue
        if not set(operation.scopes) <= set(_annotator()):
            continue
        told = world.send(operation, world.stranger).text
        for name in ("upload_id", "job_id", "batch_id", "volume_id", "token_id"):
            assert world.things[name] not in told, str(operation)
        assert '"maria"' not in told, str(operation)
    for query in ("owner=maria", "batch=" + world.things["batch_id"]):
        answer = world.client.get(f"{PREFIX}/jobs?{query}", headers=world.stranger)
        assert answer.status_code in (200, 403, 404)
        assert world.things["job_id"] not in answer.text


def test_nobody_builds_on_things_of_others(world):
    """Ids in documents are held to the same rule as ids in addresses."""
    bodies = (
        ("jobs", {"request": {"input": {"path": "volume:{volume_id}"}, "model": "membrane-3d"}}),
        ("volumes", {"files": [{"path": "a.mrc", "upload": "{upload_id}"}]}),
    )
    for path, body in bodies:
        text = str(body).replace("'", '"')
        for name, value in world.things.items():
            text = text.replace(f"{{{name}}}", value)
        answer = world.client.post(
            f"{PREFIX}/{path}",
            content=text,
            headers={**world.stranger, "Content-Type": "application/json"},
        )
        assert answer.status_code in (404, 422), answer.text
    final = {
        **world.stranger,
        "Tus-Resumable": "1.0.0",
        "Upload-Concat": f"final;{PREFIX}/uploads/{world.things['upload_id']}",
    }
    assert world.client.post(f"{PREFIX}/uploads", headers=final).status_code in (404, 422)


def test_owners_and_admins_find_their_things(world):
    """The walk above proves something only if the same requests succeed with the right token."""
    for headers in (world.owner, world.admin):
        for operation in guarded(world):
            if operation.method not in ("GET", "HEAD") or not operation.scopes:
                continue
            if headers is world.owner and not set(operation.scopes) <= set(_annotator()):
                continue
            if any(
                word in operation.path
                for word in ("artifacts", "manifest", "zarr", "pull", "view-url")
            ):
                continue  # nothing has been run or pulled yet
            answer = world.send(operation, headers)
            assert answer.status_code < 400, (str(operation), answer.text)


def test_websockets_need_a_token_and_hide_what_is_not_ones_own(world):
    n_sockets = 0
    for router in iter_routers():
        for route in router.routes:
            if not isinstance(route, APIWebSocketRoute):
                continue
            n_sockets += 1
            path = PREFIX + re.sub(r"{(\w+)}", lambda name: world.things[name[1]], route.path)
            cases = [(headers, 401) for headers in world.dead_tokens().values()]
            for headers, status in [*cases, (world.stranger, 404)]:
                with (
                    pytest.raises(WebSocketDenialResponse) as caught,
                    world.client.websocket_connect(path, headers=headers),
                ):
                    pass
                assert caught.value.status_code == status
    assert n_sockets >= 1


FUZZ = settings(
    max_examples=max(60, settings.default.max_examples),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@FUZZ
@given(data=st.data())
def test_signed_addresses_cannot_be_guessed(world, data):
    """Whatever stands for a signature, an end, an id or a name: never the thing, never a 500."""
    operations = [one for one in world.operations if SIGNED.match(one.path)]
    operation = data.draw(st.sampled_from(operations))
    word = st.text(
        st.characters(codec="utf-8", exclude_characters="/?#\\", exclude_categories=("C",)),
        min_size=1, max_size=50,
    )  # fmt: skip
    names = re.findall(r"{(\w+)(?::path)?}", operation.path)
    changes = {
        name: data.draw(st.one_of(st.just(world.things.get(name, "x")), word), label=name)
        for name in names
    }
    path = operation.path
    for name, value in changes.items():
        path = re.sub(rf"{{{name}(:path)?}}", lambda _, value=value: value, path)
    query = data.draw(
        st.fixed_dictionaries(
            {}, optional={"expires": st.one_of(st.integers().map(str), word), "signature": word}
        )
    )
    answer = world.client.request(operation.method, path, params=query)
    assert answer.status_code in (403, 404, 405, 410, 422), (path, answer.text)


@FUZZ
@given(
    tail=st.text(min_size=1, max_size=40),
    method=st.sampled_from(METHODS),
    has_token=st.booleans(),
)
def test_odd_paths_are_answered_with_problems(world, tail, method, has_token):
    from urllib.parse import quote

    path = f"{PREFIX}/" + quote(tail.encode("utf-8", "replace"), safe="/.%:@~")
    answer = world.client.request(method, path, headers=world.owner if has_token else {})
    assert answer.status_code < 500, path
    if answer.status_code >= 400 and method != "head":
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["request_id"] == answer.headers["x-request-id"]


@pytest.mark.parametrize(
    "path",
    [
        "jobs/..%2f..%2fsecret.key",
        "jobs/../../secret.key",
        "uploads/..%2f..%2flamella.db",
        "volumes/%2e%2e/ome.zarr/%2e%2e/%2e%2e/secret.key",
        "jobs/{job_id}/artifacts/..%2f..%2f..%2fsecret.key",
        "jobs/{job_id}/artifacts/%2fetc%2fpasswd",
        "volumes/{volume_id}/ome.zarr/..%2f..%2f..%2fsecret.key",
        "volumes/{volume_id}/ome.zarr/%00",
        "models/..%2f..%2fsecret.key",
        "models/.%2e/pull",
        "tokens/%00",
    ],
)
def test_paths_never_leave_their_folder(world, path):
    for name, value in world.things.items():
        path = path.replace(f"{{{name}}}", value)
    for headers in (world.owner, world.admin):
        for method in ("GET", "HEAD", "DELETE"):
            answer = world.client.request(method, f"{PREFIX}/{path}", headers=headers)
            assert answer.status_code in (307, 403, 404, 405, 409, 422), (method, answer.text)
            assert b"root:" not in answer.content
    assert (world.services.settings.data_dir / "secret.key").is_file()


@FUZZ
@given(
    name=st.sampled_from(
        [
            "Authorization", "Range", "If-None-Match", "If-Modified-Since", "Last-Event-ID",
            "Accept", "Content-Type", "X-Request-ID", "Upload-Metadata", "Upload-Length",
            "Upload-Offset", "Upload-Concat", "Upload-Checksum", "Upload-Defer-Length",
            "Tus-Resumable", "Idempotency-Key", "X-HTTP-Method-Override", "Origin", "Host",
        ]
    ),
    value=st.binary(max_size=60).filter(lambda b: not set(b) & {0, 10, 13}),
    data=st.data(),
)  # fmt: skip
def test_odd_headers_are_never_a_defect(world, name, value, data):
    known = [one for one in world.operations if one.name != "list_events"]
    operation = data.draw(st.sampled_from(known))
    if operation.name in ("delete_upload", "delete_job", "delete_volume", "revoke_token"):
        return
    headers = [(key.encode(), text.encode()) for key, text in world.owner.items()]
    answer = world.send(operation, [*headers, (name.encode(), value)])
    assert answer.status_code < 500 or answer.status_code in (501,), (str(operation), answer.text)
    assert "\n" not in answer.headers["x-request-id"]
