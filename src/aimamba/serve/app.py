"""The app: its routes, and what stands around them."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.middleware.cors import CORSMiddleware

from aimamba import __version__
from aimamba.serve import edits, errors, images, openai
from aimamba.serve.guard import Guard, Lenient
from aimamba.serve.metrics import Counted, Everywhere, Found, Metrics
from aimamba.serve.schemas import Error, Model, Models, error_responses
from aimamba.serve.service import ClientGoneError, Service

_DESCRIPTION = "Images from class names or prompts, token by token. Requests share decoding steps; see docs/serving.md."


def make_app(
    service: Service,
    metrics: Metrics | None = None,
    everywhere: Everywhere | None = None,
    further_bodies: Mapping[str, int] = {},
    exact: str = "",
) -> FastAPI:
    """Return the app of a service, which runs while the app does.

    Args:
        service: What generates the images.
        metrics: Where requests are counted; by default new ones.
        everywhere: Returns the numbers of all replicas, for ``/metrics``; by default those of ``metrics``.
        further_bodies: Paths of routes in JSON that are added later, each with the bytes that a body may have.
        exact: What paths begin with in which a slash at the end counts; empty for none.
    """
    metrics = metrics or Metrics(service)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with service.running():
            yield

    app = FastAPI(title="aimamba", version=__version__, description=_DESCRIPTION, lifespan=lifespan)
    _add_state(app, service, metrics, everywhere)
    app.include_router(images.router(service))
    app.include_router(edits.router(service))
    app.include_router(openai.router(service))
    errors.install(app)

    @app.exception_handler(ClientGoneError)
    async def _gone(_: Request, __: ClientGoneError) -> Response:
        return Response(status_code=499)  # nobody reads it

    bodies = {
        path: _media_type(methods["post"]) for path, methods in app.openapi()["paths"].items() if "post" in methods
    }
    guarded = bodies | dict.fromkeys(further_bodies, "application/json")
    app.add_middleware(Guard, config=service.config, bodies=guarded, lengths=further_bodies)
    if service.config.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(service.config.origins),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "X-API-Key"],
            expose_headers=["Retry-After", "X-Seed", "X-Label"],
        )
    app.add_middleware(Counted, metrics=metrics, known=frozenset(bodies))
    app.add_middleware(Lenient, exact=exact)
    return app


def _media_type(operation: dict[str, Any]) -> str:
    """Return the media type of the body of an operation, as OpenAPI has it."""
    return str(next(iter(operation["requestBody"]["content"])))


def _add_state(app: FastAPI, service: Service, metrics: Metrics, everywhere: Everywhere | None) -> None:
    """Add what says how the server is and what it has."""

    @app.get("/healthz", tags=["state"], summary="Whether the process answers", response_class=PlainTextResponse)
    async def health() -> str:
        return "ok\n"

    @app.get(
        "/readyz",
        tags=["state"],
        summary="Whether requests are taken",
        response_class=PlainTextResponse,
        responses={503: {"description": "Shutting down, or failed.", "content": {"text/plain": {}}}},
    )
    async def ready() -> Response:
        text, status = ("ready\n", 200) if service.ready else ("not ready\n", 503)
        return PlainTextResponse(text, status)

    @app.get(
        "/metrics",
        tags=["state"],
        summary="Numbers for Prometheus",
        response_class=PlainTextResponse,
        responses=error_responses(401),
    )
    async def numbers() -> Response:
        found = metrics.registry if everywhere is None else Found(await everywhere())
        return Response(generate_latest(found), media_type=CONTENT_TYPE_LATEST)

    pipeline = service.pipeline
    labels = range(pipeline.generator.config.num_classes)
    model = Model(
        id=service.name,
        created=service.created,
        size=pipeline.image_size,
        tokens=pipeline.generator.config.num_tokens,
        classes=[pipeline.class_name(label) for label in labels],
        prompts=pipeline.generator.config.text is not None,
    )

    @app.get("/v1/models", tags=["models"], summary="All models: there is one", responses={401: {"model": Error}})
    async def models() -> Models:
        return Models(data=[model])

    @app.get(
        "/v1/models/{name:path}",
        tags=["models"],
        summary="A model and its classes",
        responses=error_responses(401, 404),
    )
    async def one_model(name: str) -> Model:
        if name != service.name:
            raise errors.ApiError(404, f"there is no model {name[:100]!r}; there is {service.name!r}")
        return model
