"""The Starlette app that all apps under uvicorn are, and that app without a memory. It imports nothing of convmem and no driver."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from benchmarks.workload import answer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.middleware import Middleware
    from starlette.requests import Request
    from starlette.responses import Response

    Handler = Callable[[Request], Awaitable[Response]]


def app(chat: Handler, *middleware: Middleware, lifespan: Any = None) -> Starlette:
    """Return an app with one route."""
    return Starlette(routes=[Route("/chat", chat, methods=["POST"])], middleware=middleware, lifespan=lifespan)


def without(place: str) -> Starlette:  # noqa: ARG001 - the form of every app
    """Read the question, answer, and know of no memory."""

    async def chat(request: Request) -> Response:
        await request.json()
        return JSONResponse({"answer": answer(), "loaded": None})

    return app(chat)
