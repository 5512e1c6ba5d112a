"""The OpenAPI document against the application: no 500, no status and no content undocumented.

Schemathesis makes the requests, valid and invalid ones, from the document alone. How many depends
on the profile: ``HYPOTHESIS_PROFILE=nightly`` makes hundreds an operation.
"""

from unittest import SkipTest

import pytest
import schemathesis
import sqlalchemy as sa
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    ignored_auth,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from lamella.core.places import Places
from lamella.jobs.machine import NewJob
from lamella.server.app import PREFIX, create_app
from lamella.server.services import open_services
from lamella.server.settings import Settings
from lamella.server.tables import volumes
from lamella.wire.access import TokenSpec

schemathesis.serializer.alias("application/offset+octet-stream", "application/octet-stream")

# There are forty operations and two modes.
N_EXAMPLES = max(5, settings.default.max_examples // 8)

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    unsupported_method,
    ignored_auth,
]


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """The document, and headers of an admin; nothing runs in the background."""
    folder = tmp_path_factory.mktemp("judged")
    services = open_services(
        Settings(data_dir=folder / "data", min_free_bytes=0, rate_limit=0),
        places=Places(models=folder / "models", is_offline=True),
    )
    services.failure_limit.rate = 0.0
    secret = services.tokens.add(TokenSpec(user="root", role="admin")).secret
    app = _without_background(create_app(services.settings, services))
    schema = schemathesis.openapi.from_asgi(f"{PREFIX}/openapi.json", app)
    known = {"model_id": "membrane-3d", **_things(services)}

    @schema.hook
    def map_path_parameters(_context, parameters):
        """Ids that are made up find nothing: half of them are real ones."""
        if not parameters or len(str(parameters)) % 2:
            return parameters
        return {name: known.get(name, value) for name, value in parameters.items()}

    @schema.hook
    def map_query(_context, query):
        """No page of events waits for its minute."""
        wait = (query or {}).get("wait_s")
        return {**query, "wait_s": min(wait, 0.01)} if isinstance(wait, int | float) else query

    yield schema, {"Authorization": f"Bearer {secret}"}
    services.database.close()


def _things(services):
    spec = {"request": {"input": {"path": "volume:0"}, "model": "membrane-3d"}}
    new = NewJob(owner="root", kind="segment", spec=spec)
    with services.database.begin() as connection:
        connection.execute(
            sa.insert(volumes).values(
                id="0f" * 8, owner="root", name="v", state="ready", source={}, n_bytes=5,
                location="v.mrc", created=1.0, last_used=1.0,
            )
        )  # fmt: skip
    job, _ = services.jobs.add(new)
    batch, _ = services.jobs.add_batch("root", [new], name="b")
    return {"job_id": job.id, "batch_id": batch.id, "volume_id": "0f" * 8}


def _without_background(app):
    """Answer requests without starting the queue: no job that is made here shall run."""

    async def answer(scope, receive, send):
        if scope["type"] != "lifespan":
            await app(scope, receive, send)
            return
        for step in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{step}.complete"})

    return answer


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_every_operation_answers_as_documented(judged, mode):
    """All operations are tried before the first failure is told."""
    schema, headers = judged
    failures, n_operations = [], 0
    for found in schema.get_all_operations():
        operation = found.ok()

        @given(case=operation.as_strategy(generation_mode=mode))
        @settings(
            max_examples=N_EXAMPLES,
            deadline=None,
            derandomize=True,
            database=None,
            # What fails is told as it is: to make it smaller takes minutes.
            phases=(Phase.explicit, Phase.generate),
            suppress_health_check=list(HealthCheck),
        )
        def judge(case):
            case.call_and_validate(headers=headers, checks=CHECKS)

        n_operations += 1
        try:
            judge()
        except (Unsatisfiable, SkipTest):
            pass  # nothing invalid can be said to an operation without parameters
        except (Exception, FailureGroup) as error:  # noqa: BLE001 - all are told at the end
            failures.append(f"{operation.label}: {error}")
    assert n_operations > 30
    assert not failures, "\n\n".join(failures)
