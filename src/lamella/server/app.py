"""The application: every route under ``/api/v1``, and what is around them."""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from fastapi import APIRouter, FastAPI
from fastapi.responses import HTMLResponse, RedirectResponse

from lamella.server import health
from lamella.server.context import RequestContext
from lamella.server.cors import SharedOrigins
from lamella.server.openapi import describe
from lamella.server.problems import add_problem_handlers
from lamella.server.services import Services, open_services

if TYPE_CHECKING:
    from lamella.server.settings import Settings

__all__ = ["PREFIX", "create_app", "iter_routers"]

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
    for router in iter_routers():
        app.include_router(router, prefix=PREFIX)

    # Where orchestrators look by habit.
    app.include_router(health.router, include_in_schema=False)

    @app.get("/", include_in_schema=False)
    def get_root() -> RedirectResponse:
        return RedirectResponse(f"{PREFIX}/docs")

    @app.get(f"{PREFIX}/docs", include_in_schema=False)
    def get_manual() -> HTMLResponse:
        from lamella.server.manual import render_manual

        return HTMLResponse(render_manual(app.openapi()))

    describe(app)
    app.add_middleware(
        RequestContext,
        metrics=services.metrics,
        is_shared=bool(settings.cors_origins),
        strict_transport=settings.tls not in ("off", "self-signed"),
    )
    if settings.cors_origins:
        app.add_middleware(SharedOrigins, origins=settings.cors_origins)
    return app


def iter_routers() -> Iterator[APIRouter]:
    """Every router of the application, each below :data:`PREFIX`."""
    for module in _ROUTERS:
        found = importlib.import_module(module)
        for name in ("router", "open_router"):
            if hasattr(found, name):
                yield getattr(found, name)
