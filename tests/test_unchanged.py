"""Background tasks and WebSockets of an app that does not use its conversation; `frameworks/test_unchanged.py` has its answers."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from tests import asgi_client

pytestmark = pytest.mark.asyncio
memory_world = asgi_client.memory_world

BODY: list[dict[str, Any]] = [{"type": "http.request", "body": b"", "more_body": False}]
SAID: list[dict[str, Any]] = [
    {"type": "websocket.connect"},
    {"type": "websocket.receive", "text": "a"},
    {"type": "websocket.receive", "bytes": b"b"},
    {"type": "websocket.disconnect", "code": 1005},
]
journal: list[Any] = []


async def later() -> None:
    journal.append("in the background")


async def pieces() -> AsyncIterator[str]:
    for piece in ("one", "two"):
        journal.append(f"made {piece}")
        yield piece


async def answer(request: Request) -> Response:
    return JSONResponse("ok", 201, {"x-own": "yes"}, background=BackgroundTask(later))


async def stream(request: Request) -> Response:
    return StreamingResponse(pieces(), background=BackgroundTask(later))


async def talk(websocket: WebSocket) -> None:
    await websocket.accept(subprotocol="chat", headers=[(b"x-own", b"yes")])
    journal.append(await websocket.receive_text())
    await websocket.send_text("text")
    journal.append(await websocket.receive_bytes())
    await websocket.send_bytes(b"bytes")
    await websocket.close(4001, "done")


async def refuse(websocket: WebSocket) -> None:
    await websocket.close(4003, "no")


async def fall(websocket: WebSocket) -> None:
    await websocket.accept()
    raise ZeroDivisionError


async def return_early(websocket: WebSocket) -> None:
    await websocket.accept()


async def watch(app: ASGIApp, scope: Scope, incoming: list[dict[str, Any]]) -> list[Any]:
    """Return all that happens in one connection, in order: what the app does, and what the server is sent."""
    journal.clear()
    coming = iter(incoming)

    async def receive() -> Message:
        return next(coming)

    async def send(event: Message) -> None:
        journal.append(dict(event))

    try:
        await app({**scope, "query_string": b"", "root_path": "", "headers": []}, receive, send)
    except ZeroDivisionError as error:
        journal.append(repr(error))
    return list(journal)


@pytest.mark.parametrize("path", ["/answer", "/stream"])
async def test_a_background_task_runs_behind_the_last_byte_as_without_us(memory_world, path):
    """On a route that is a turn: the lease is not waited for, and nothing is moved behind or before the task."""
    app = Starlette(routes=[Route("/answer", answer, methods=["POST"]), Route("/stream", stream, methods=["POST"])])
    scope = {"type": "http", "method": "POST", "path": path, "asgi": {"version": "3.0", "spec_version": "2.4"}}
    alone = await watch(app, scope, BODY)
    assert alone[-1] == "in the background"
    assert await watch(memory_world.serve(app).app, scope, BODY) == alone


@pytest.mark.parametrize("handler", [talk, refuse, fall, return_early])
async def test_a_websocket_is_the_apps_own(memory_world, handler):
    """Subprotocol, headers, text and bytes, the code and reason of a close, a refusal, an error, an end that is left to the server."""
    app = Starlette(routes=[WebSocketRoute("/ws", handler)])
    scope = {"type": "websocket", "path": "/ws", "subprotocols": ["chat"], "asgi": {"version": "3.0"}}
    alone = await watch(app, scope, SAID)
    assert alone
    assert await watch(memory_world.serve(app).app, scope, SAID) == alone


async def noisy(scope: Scope, receive: Receive, send: Send) -> None:
    """Send what few apps send: events of extensions, and fields nobody knows."""
    await send({"type": "http.response.debug", "info": {"x": 1}})
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-own", b"1"), (b"x-own", b"2")], "own": "field"})
    await send({"type": "http.response.push", "path": "/style.css", "headers": []})
    await send({"type": "http.response.body", "body": b"a", "more_body": True, "own": "field"})
    await send({"type": "http.response.body", "body": b"", "more_body": True})
    await send({"type": "http.response.body"})


async def test_events_and_fields_nobody_knows_reach_the_server(memory_world):
    """A middleware that builds events anew loses them."""
    scope = {"type": "http", "method": "POST", "path": "/", "asgi": {"version": "3.0"}}
    alone = await watch(noisy, scope, BODY)
    assert len(alone) == 6
    assert await watch(memory_world.serve(noisy).app, scope, BODY) == alone
