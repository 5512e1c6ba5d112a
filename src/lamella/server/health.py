"""Whether the server lives, whether it can work, what it is, and what it has counted."""

from __future__ import annotations

import shutil
from importlib.metadata import version
from typing import Annotated

import sqlalchemy as sa
from fastapi import APIRouter, Response
from sqlalchemy.exc import SQLAlchemyError

from lamella.server.auth import Principal, ServicesDep, require
from lamella.server.problems import problems
from lamella.wire.document import Document

__all__ = ["router"]

router = APIRouter(tags=["health"])


class HealthDoc(Document):
    """That the server answers."""

    status: str = "alive"


class ReadyDoc(Document):
    """Whether the server can take work, and what is wrong where it cannot."""

    is_ready: bool
    checks: dict[str, str]
    """``ok``, or what is wrong, by name."""


class VersionDoc(Document):
    """What a client may rely on."""

    name: str = "lamella"
    version: str
    api: str = "v1"
    tus_version: str = "1.0.0"
    tus_extensions: tuple[str, ...]
    tus_checksums: tuple[str, ...] = ("sha1", "sha256")
    max_upload_bytes: int
    features: tuple[str, ...]


@router.get("/health", operation_id="get_health", summary="Is the server alive")
def get_health() -> HealthDoc:
    """Answer as long as the process runs; asks nothing of the database."""
    return HealthDoc()


@router.get(
    "/ready",
    operation_id="get_ready",
    summary="Can the server take work",
    responses={503: {"model": ReadyDoc, "description": "It cannot: checks say why."}},
)
def get_ready(services: ServicesDep, response: Response) -> ReadyDoc:
    """Check database, disk and cluster; 503 while the server starts, stops or cannot work."""
    checks = {"database": _database(services), "disk": _disk(services)}
    if services.settings.is_on_cluster:
        checks["cluster"] = services.dispatcher.problem() or "ok"
    if services.is_closing:
        checks["server"] = "is shutting down"
    is_ready = all(told == "ok" for told in checks.values())
    response.status_code = 200 if is_ready else 503
    return ReadyDoc(is_ready=is_ready, checks=checks)


@router.get("/version", operation_id="get_version", summary="What the server is and can")
def get_version(services: ServicesDep) -> VersionDoc:
    """Tell version and abilities, for clients to decide on."""
    return VersionDoc(
        version=version("lamella"),
        tus_extensions=(
            "creation", "creation-with-upload", "creation-defer-length", "checksum",
            "expiration", "termination", "concatenation", "concatenation-unfinished",
        ),
        max_upload_bytes=services.settings.max_upload_bytes,
        features=("batches", "events", "signed-artifacts", "view-urls", "whole-file-sha256"),
    )  # fmt: skip


@router.get(
    "/metrics",
    operation_id="get_metrics",
    summary="Counters, as Prometheus reads them",
    response_class=Response,
    responses={
        200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "Counters"},
        **problems(401, 403),
    },
)
def get_metrics(
    services: ServicesDep, _who: Annotated[Principal, require("metrics:read")]
) -> Response:
    """Requests, bytes, jobs and disk; needs a token with the scope metrics:read."""
    return Response(services.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _database(services: ServicesDep) -> str:
    try:
        with services.database.read() as connection:
            connection.execute(sa.select(1))
    except SQLAlchemyError as error:
        return f"does not answer: {type(error).__name__}"
    return "ok"


def _disk(services: ServicesDep) -> str:
    free = shutil.disk_usage(services.settings.data_dir).free
    least = services.settings.min_free_bytes
    if free < least:
        return f"{free / 1e9:.1f} GB free, {least / 1e9:.1f} GB needed"
    return "ok"
