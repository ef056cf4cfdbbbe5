"""The server as an ASGI application."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from ..engine import AsyncLLM
from ..version import __version__
from .answer_formats import AUTO
from .content_type import check_content_type
from .faults import fault_of
from .guard import Guard
from .metrics import Counts
from .routes import Routes

LOOKED_AT = ["GET", "HEAD"]
"""Methods of routes that only show something."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """How requests are treated.

    Attributes:
        model: the served name.
        api_keys: one of which every request must bring; empty for none.
        max_body_bytes: of a request.
        body_seconds: that a body may take to arrive.
        answer_seconds: that an answer may take.
        answer_format: of chats, a name in `answer_formats`, or `auto`.
        allowed_origins: pages of which browsers let read answers, beside the server's own; `*` for
            all.
    """

    model: str
    api_keys: tuple[str, ...] = ()
    max_body_bytes: int = 4 << 20
    body_seconds: float = 60.0
    answer_seconds: float = 600.0
    answer_format: str = AUTO
    allowed_origins: tuple[str, ...] = ()


def make_app(engine: AsyncLLM, settings: ServerSettings) -> ASGIApp:
    """The application, which opens the engine when it starts and closes it at its end.

    Args:
        engine: not open yet; its model has a tokenizer.
    """
    counts = Counts()
    routes = Routes(
        engine,
        model=settings.model,
        answer_seconds=settings.answer_seconds,
        answer_format=settings.answer_format,
        counts=counts,
    )

    @asynccontextmanager
    async def opened(_: FastAPI) -> AsyncIterator[None]:
        async with engine:
            yield

    app = FastAPI(
        title="cacheshrink_hybrid",
        version=__version__,
        lifespan=opened,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
    )
    app.api_route("/", methods=LOOKED_AT)(routes.page)
    app.api_route("/pool", methods=LOOKED_AT)(routes.pool)
    app.api_route("/health", methods=LOOKED_AT)(routes.health)
    app.api_route("/metrics", methods=LOOKED_AT)(routes.metrics)
    app.api_route("/v1/models", methods=LOOKED_AT)(routes.models)
    app.api_route("/v1/models/{name:path}", methods=LOOKED_AT)(routes.one_model)
    reads_json = [Depends(check_content_type)]
    app.post("/v1/completions", dependencies=reads_json)(routes.completions)
    app.post("/v1/chat/completions", dependencies=reads_json)(routes.chat)
    for kind in (RequestValidationError, HTTPException, Exception):
        app.exception_handler(kind)(_answer_fault)
    guard = Guard(
        app,
        counts,
        api_keys=settings.api_keys,
        max_body_bytes=settings.max_body_bytes,
        body_seconds=settings.body_seconds,
    )
    if not settings.allowed_origins:
        return guard
    return CORSMiddleware(
        guard, settings.allowed_origins, allow_methods=("GET", "POST"), allow_headers=("*",)
    )


async def _answer_fault(_: Request, error: Exception) -> Response:
    return fault_of(error).response()
