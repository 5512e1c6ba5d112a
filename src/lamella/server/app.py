"""The application: every route under ``/api/v1``, and what is around them."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from fastapi import FastAPI
from fastapi.responses import RedirectResponse

from lamella.server.context import RequestContext
from lamella.server.problems import add_problem_handlers
from lamella.server.services import Services, open_services

if TYPE_CHECKING:
    from lamella.server.settings import Settings

__all__ = ["PREFIX", "create_app"]

PREFIX = "/api/v1"

_ROUTERS = (
    "lamella.server.health",
    "lamella.server.access",
    "lamella.server.uploads.routes",
    "lamella.server.volumes.routes",
    "lamella.server.jobs.routes",
    "lamella.server.jobs.batches",
    "lamella.server.events.routes",
    "lamella.server.artifacts.routes",
    "lamella.server.pyramids.routes",
    "lamella.server.models.routes",
)


def create_app(settings: Settings, services: Services | None = None) -> FastAPI:
    """The application of a server.

    Args:
        settings: of the server.
        services: what it works with; made from the settings unless given.
    """
    services = services or open_services(settings)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        await services.start()
        try:
            yield
        finally:
            await services.stop()

    app = FastAPI(
        title="Lamella",
        lifespan=lifespan,
        openapi_url=f"{PREFIX}/openapi.json",
        docs_url=None,
        redoc_url=None,
        separate_input_output_schemas=False,
    )
    app.state.services = services
    add_problem_handlers(app)
    for module in _ROUTERS:
        if _exists(module):
            app.include_router(importlib.import_module(module).router, prefix=PREFIX)

    @app.get("/", include_in_schema=False)
    def get_root() -> RedirectResponse:
        return RedirectResponse(f"{PREFIX}/docs")

    app.add_middleware(
        RequestContext,
        metrics=services.metrics,
        is_shared=bool(settings.cors_origins),
        strict_transport=settings.tls not in ("off", "self-signed"),
    )
    return app


def _exists(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False
