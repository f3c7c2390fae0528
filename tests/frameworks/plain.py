"""Apps that know nothing of conversations, one a framework, and what a server sees of each, with and without the middleware.

``python -m tests.frameworks.plain NAME`` prints both as JSON: for every request, the events and what happened between them. Each
framework runs in a process of its own, because some of them can be configured only once.
"""

import asyncio
import json
import sys
from typing import Any

from convmem import ConversationMiddleware, Settings, open_store

REQUESTS = [
    ("GET", "/json", b""),
    ("HEAD", "/json", b""),
    ("POST", "/echo", b"what was sent\xff"),
    ("GET", "/teapot", b""),
    ("GET", "/empty", b""),
    ("GET", "/stream", b""),
    ("GET", "/error", b""),
    ("GET", "/nothing", b""),
    ("OPTIONS", "/json", b""),
]
CONTENT = {"a": 1, "b": "ä"}
HEADERS = {"X-Own": "yes", "Cache-Control": "max-age=60", "Vary": "Accept"}
journal: list[Any] = []


async def pieces():
    """Stream three pieces, and note when each is made."""
    for piece in (b"one ", b"two ", b"three"):
        journal.append(f"made {piece.decode()}")
        yield piece
        await asyncio.sleep(0.01)


def starlette():
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse, Response, StreamingResponse
    from starlette.routing import Route

    async def as_json(request):
        return JSONResponse(CONTENT)

    async def echo(request):
        return Response(await request.body(), media_type="application/octet-stream")

    async def teapot(request):
        response = Response("short and stout", 418, HEADERS)
        response.set_cookie("tea", "green")
        return response

    async def empty(request):
        return Response(status_code=204)

    async def stream(request):
        return StreamingResponse(pieces(), media_type="text/plain")

    async def error(request):
        raise ZeroDivisionError

    posts = [Route("/echo", echo, methods=["POST"])]
    gets = [Route(f"/{name}", handler) for name, handler in [("json", as_json), ("teapot", teapot), ("empty", empty)]]
    return Starlette(routes=[*posts, *gets, Route("/stream", stream), Route("/error", error)])


def fastapi():
    from fastapi import FastAPI, Request, Response
    from fastapi.responses import StreamingResponse

    app = FastAPI()

    @app.get("/json")
    async def as_json():
        return CONTENT

    @app.post("/echo")
    async def echo(request: Request):
        return Response(await request.body(), media_type="application/octet-stream")

    @app.get("/teapot")
    def teapot():
        response = Response("short and stout", 418, HEADERS)
        response.set_cookie("tea", "green")
        return response

    @app.get("/empty", status_code=204)
    async def empty():
        return None

    @app.get("/stream")
    async def stream():
        return StreamingResponse(pieces(), media_type="text/plain")

    @app.get("/error")
    async def error():
        raise ZeroDivisionError

    return app


def litestar():
    from litestar import Litestar, Request, Response, get, post
    from litestar.datastructures import Cookie
    from litestar.logging import LoggingConfig
    from litestar.response import Stream

    @get("/json")
    async def as_json() -> dict[str, object]:
        return CONTENT

    @post("/echo", status_code=200)
    async def echo(request: Request) -> Response[bytes]:
        return Response(await request.body(), media_type="application/octet-stream")

    @get("/teapot", sync_to_thread=True)
    def teapot() -> Response[str]:
        return Response("short and stout", status_code=418, headers=HEADERS, cookies=[Cookie("tea", value="green")])

    @get("/empty", status_code=204)
    async def empty() -> None:
        return None

    @get("/stream")
    async def stream() -> Stream:
        return Stream(pieces(), media_type="text/plain")

    @get("/error")
    async def error() -> None:
        raise ZeroDivisionError

    return Litestar([as_json, echo, teapot, empty, stream, error], logging_config=LoggingConfig(log_exceptions="never"))


def quart():
    from quart import Quart, make_response, request

    app = Quart(__name__)

    @app.get("/json")
    async def as_json():
        return CONTENT

    @app.post("/echo")
    async def echo():
        return await request.get_data(), {"Content-Type": "application/octet-stream"}

    @app.get("/teapot")
    async def teapot():
        response = await make_response("short and stout", 418, HEADERS)
        response.set_cookie("tea", "green")
        return response

    @app.get("/empty")
    def empty():
        return "", 204

    @app.get("/stream")
    async def stream():
        return pieces(), {"Content-Type": "text/plain"}

    @app.get("/error")
    async def error():
        raise ZeroDivisionError

    return app


def django():
    from django.conf import settings
    from django.core.asgi import get_asgi_application
    from django.http import HttpResponse, JsonResponse, StreamingHttpResponse
    from django.urls import path

    async def as_json(request):
        return JsonResponse(CONTENT)

    async def echo(request):
        return HttpResponse(request.body, content_type="application/octet-stream")

    def teapot(request):
        response = HttpResponse("short and stout", status=418, headers=HEADERS)
        response.set_cookie("tea", "green")
        return response

    async def empty(request):
        return HttpResponse(status=204)

    async def stream(request):
        return StreamingHttpResponse(pieces(), content_type="text/plain")

    async def error(request):
        raise ZeroDivisionError

    urls = [path("json", as_json), path("echo", echo), path("teapot", teapot), path("empty", empty)]
    settings.configure(ROOT_URLCONF=(*urls, path("stream", stream), path("error", error)), ALLOWED_HOSTS=["*"], LOGGING_CONFIG=None)
    return get_asgi_application()


def falcon():
    import falcon.asgi

    class Resource:
        async def on_get_json(self, req, resp):
            resp.media = CONTENT

        async def on_post_echo(self, req, resp):
            resp.data = await req.bounded_stream.read()
            resp.content_type = "application/octet-stream"

        async def on_get_teapot(self, req, resp):
            resp.status, resp.text = falcon.HTTP_418, "short and stout"
            resp.set_headers(HEADERS)
            resp.set_cookie("tea", "green")

        async def on_get_empty(self, req, resp):
            resp.status = falcon.HTTP_204

        async def on_get_stream(self, req, resp):
            resp.stream, resp.content_type = pieces(), "text/plain"

        async def on_get_error(self, req, resp):
            raise ZeroDivisionError

    app, resource = falcon.asgi.App(), Resource()
    for name in ("json", "echo", "teapot", "empty", "stream", "error"):
        app.add_route(f"/{name}", resource, suffix=name)
    return app


def blacksheep():
    from blacksheep import Application, Content, Cookie, Request, Response, Router, StreamedContent

    app = Application(router=Router())

    @app.router.get("/json")
    async def as_json():
        return CONTENT

    @app.router.post("/echo")
    async def echo(request: Request):
        return Response(200, content=Content(b"application/octet-stream", await request.read()))

    @app.router.get("/teapot")
    def teapot():
        headers = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
        response = Response(418, headers, Content(b"text/plain", b"short and stout"))
        response.set_cookie(Cookie("tea", "green"))
        return response

    @app.router.get("/empty")
    async def empty():
        return Response(204)

    @app.router.get("/stream")
    async def stream():
        return Response(200, content=StreamedContent(b"text/plain", pieces))

    @app.router.get("/error")
    async def error():
        raise ZeroDivisionError

    return app


def sanic():
    from sanic import Sanic, empty as no_content, json as as_json_response, raw, text

    app = Sanic("plain", configure_logging=False)

    @app.get("/json")
    async def as_json(request):
        return as_json_response(CONTENT)

    @app.post("/echo")
    async def echo(request):
        return raw(request.body)

    @app.get("/teapot")
    def teapot(request):
        response = text("short and stout", 418, HEADERS)
        response.add_cookie("tea", "green")
        return response

    @app.get("/empty")
    async def empty(request):
        return no_content()

    @app.get("/stream")
    async def stream(request):
        response = await request.respond(content_type="text/plain")
        async for piece in pieces():
            await response.send(piece)
        await response.eof()

    @app.get("/error")
    async def error(request):
        raise ZeroDivisionError

    return app


def asgi():
    async def app(scope, receive, send):
        status, content = 200, [json.dumps(CONTENT).encode()]
        match scope["path"]:
            case "/echo":
                content = [(await receive())["body"]]
            case "/teapot":
                status, content = 418, [b"short and stout"]
            case "/stream":
                await send({"type": "http.response.start", "status": 200, "headers": []})
                async for piece in pieces():
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
                await send({"type": "http.response.body"})
                return
            case "/empty" | "/nothing":
                status, content = (204 if scope["path"] == "/empty" else 404), []
            case "/error":
                raise ZeroDivisionError
        headers = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
        await send({"type": "http.response.start", "status": status, "headers": [*headers, (b"set-cookie", b"tea=green")]})
        await send({"type": "http.response.body", "body": b"".join(content)})

    return app


def flask():
    from a2wsgi import WSGIMiddleware
    from flask import Flask, make_response, request

    app = Flask(__name__)

    @app.get("/json")
    def as_json():
        return CONTENT

    @app.post("/echo")
    def echo():
        return request.get_data(), {"Content-Type": "application/octet-stream"}

    @app.get("/teapot")
    def teapot():
        response = make_response("short and stout", 418, HEADERS)
        response.set_cookie("tea", "green")
        return response

    @app.get("/empty")
    def empty():
        return "", 204

    @app.get("/stream")
    def stream():
        return iter([b"one ", b"two ", b"three"]), {"Content-Type": "text/plain"}

    @app.get("/error")
    def error():
        raise ZeroDivisionError

    return WSGIMiddleware(app)


async def watch(app, method: str, path: str, body: bytes) -> list[Any]:
    """Send one request as a server does, and return what happened, in order."""
    over, asked = asyncio.Event(), False

    async def receive():
        nonlocal asked
        if not asked:
            asked = True
            return {"type": "http.request", "body": body, "more_body": False}
        await over.wait()
        return {"type": "http.disconnect"}

    async def send(event):
        headers = [[name.decode("latin-1"), value.decode("latin-1")] for name, value in event.get("headers", ())]
        body = bytes(event.get("body", b"")).decode("latin-1")
        journal.append([event["type"], event.get("status"), headers, body, event.get("more_body", False)])
        if event["type"] == "http.response.body" and not event.get("more_body", False):
            over.set()

    scope = {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": method, "scheme": "http",
        "path": path, "raw_path": path.encode(), "root_path": "", "query_string": b"", "client": ("127.0.0.1", 1), "server": ("test", 80),
        "headers": [(b"host", b"test"), (b"content-length", str(len(body)).encode()), (b"cookie", b"tea=green; other=1")],
    }  # fmt: skip
    journal.clear()
    try:
        await app(scope, receive, send)
    except Exception as error:  # noqa: BLE001 - a server logs it
        journal.append(f"raised {error!r}")
    return list(journal)


async def both(name: str) -> dict[str, list[Any]]:
    """Return what a server sees of the app alone, and of the app inside the middleware."""
    app = globals()[name]()
    wrapped = ConversationMiddleware(
        app, store=open_store("memory://"), settings=Settings({}, secret_key="a secret key of thirty-two bytes")
    )
    events: asyncio.Queue[dict[str, str]] = asyncio.Queue()
    started, told = asyncio.Event(), []

    async def tell(event):
        told.append(event)
        started.set()

    lifespan = asyncio.create_task(wrapped({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, events.get, tell))
    await events.put({"type": "lifespan.startup"})
    await started.wait()
    assert told == [{"type": "lifespan.startup.complete"}]
    seen = {which: [await watch(one, *request) for request in REQUESTS] for which, one in [("alone", app), ("wrapped", wrapped)]}
    await events.put({"type": "lifespan.shutdown"})
    await lifespan
    return seen


if __name__ == "__main__":
    print(json.dumps(asyncio.run(asyncio.wait_for(both(sys.argv[1]), 30))))
