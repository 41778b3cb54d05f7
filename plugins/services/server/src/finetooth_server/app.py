"""One process, one model registry, one or more faces."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from finetooth_hooks import FinetoothError
from starlette.exceptions import HTTPException
from starlette.routing import Route

from finetooth_server.faces import OWN, Desk, Endpoint, load, root_of
from finetooth_server.guard import Guard, problem
from finetooth_server.limits.connections import most_connections
from finetooth_server.limits.fair_threads import FairThreads
from finetooth_server.rest.downloads import download_router
from finetooth_server.rest.pages import pages_router
from finetooth_server.rest.routes import open_router, refused_body, router
from finetooth_server.rest.streaming import streaming_router
from finetooth_server.scopes import show_scopes
from finetooth_server.service import Service


class Documented(FastAPI):
    """The app, with the scopes of each route in its OpenAPI document."""

    def openapi(self) -> dict[str, Any]:
        """The document, made once."""
        return self.openapi_schema if self.openapi_schema is not None else show_scopes(super().openapi())


def make_app(service: Service, faces: Collection[str] = ("api",)) -> FastAPI:
    """The ASGI app over a service, which starts and stops with it.

    Args:
        faces: `api`, `tinker`, and those that other distributions bring (`finetooth_hooks.faces`). The app's
            `state.places` has the latter's paths, by name.

    Raises:
        UserError: a package that a face needs is not installed.
    """

    brought = {name.rpartition(":")[2]: load(service.context, name) for name in faces if name not in OWN}
    serving = {name: face.app(Desk(service, name)) for name, face in brought.items()}

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        asyncio.get_running_loop().set_default_executor(FairThreads())
        service.start()
        try:
            async with AsyncExitStack() as stack:
                for _, entered in serving.values():
                    await stack.enter_async_context(entered)
                yield
        finally:
            service.stop()

    app = Documented(
        title="finetooth",
        summary="Train and sample language models step by step.",
        version="1",
        lifespan=life,
        openapi_url="/openapi.json" if "api" in faces else None,
        docs_url=None,  # FastAPI's pages load their scripts from elsewhere
        redoc_url=None,
    )
    app.state.service = service
    own = [open_router]
    if "api" in faces:
        own += [pages_router, router, download_router, streaming_router]
        app.add_exception_handler(RequestValidationError, refused_body)
        app.add_exception_handler(HTTPException, refused_body)
    if "tinker" in faces:
        from finetooth_server.tinker.routes import tinker_router

        own.append(tinker_router())
    for included in own:
        app.include_router(included)
    routes = [route for of in own for route in of.routes if isinstance(route, Route)]
    taken = {(method, route.path) for route in routes for method in route.methods or ()}
    places, shapes = {}, {}
    for name, face in brought.items():
        root, answers = root_of(name, face, taken), serving[name][0]
        places[name] = root + face.path
        shapes[places[name]] = face.refusal
        if not face.routes:
            app.router.routes.append(Route(face.path, Endpoint(face.path, answers, face)))
        for route in face.routes:
            path = places[name] + route.path
            app.router.routes.append(Route(path, Endpoint(path, answers, face, root), methods=[route.method]))
            taken.add((route.method, path))
    app.state.places = places
    app.add_exception_handler(FinetoothError, _refused)
    app.add_middleware(Guard, service=service, shapes=shapes, most=most_connections())
    return app


async def _refused(request: Request, error: Exception) -> Response:
    return problem(error)
