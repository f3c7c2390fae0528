"""The Starlette app that all apps under uvicorn are, without a memory, and with one written by hand. It imports nothing of convmem."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from benchmarks.workload import answer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

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


def by_hand(place: str) -> Starlette:
    """Do a checked turn with redis-py in the handler, for whoever the cookie says."""
    from benchmarks.raw import RedisPy  # here, for the app without a memory needs no driver

    memory = RedisPy(place)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        await memory.open()
        yield
        await memory.aclose()

    async def chat(request: Request) -> Response:
        await request.json()
        loaded = await memory.turn(request.cookies.get("session", "nobody"))
        return JSONResponse({"answer": answer(), "loaded": loaded})

    return app(chat, lifespan=lifespan)
