"""The app of `benchmarks.plain`, with convmem as its memory. Each is made for one place."""

from __future__ import annotations

import asyncio
import gc
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from benchmarks.plain import app
from benchmarks.still import SECRET
from benchmarks.workload import WINDOW, answer
from convmem import ConversationMiddleware, Message, Settings, Window, get_conversation, open_store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request
    from starlette.responses import Response


def reading(place: str) -> Starlette:
    """Look at every message of the window, and store the turn."""

    async def chat(request: Request) -> Response:
        said, conversation = await request.json(), await get_conversation(request)
        texts = [message.text for message in conversation.messages]
        text = answer()
        conversation.append(Message.user(said["question"]), Message.assistant(text))
        return JSONResponse({"answer": text, "loaded": len(texts)})

    return app(chat, _memory(place))


def silent(place: str) -> Starlette:
    """Store the turn, and look at nothing that was said before: it is loaded all the same."""

    async def chat(request: Request) -> Response:
        said, conversation = await request.json(), await get_conversation(request)
        text = answer()
        conversation.append(Message.user(said["question"]), Message.assistant(text))
        return JSONResponse({"answer": text, "loaded": None})

    return app(chat, _memory(place))


def _memory(place: str) -> Middleware:
    settings = Settings({}, secret_key=SECRET, cookie_secure="auto")
    return Middleware(ConversationMiddleware, store=open_store(place), settings=settings, window=Window(turns=WINDOW // 2))


def mixed(place: str) -> Starlette:
    """Everything an app does with a conversation, for a long time; and what the worker holds meanwhile."""

    async def chat(request: Request) -> Response:
        said, conversation = await request.json(), await get_conversation(request)
        loaded, text = len(conversation.messages), answer()
        conversation.append(Message.user(said["question"]), Message.assistant(text))
        return JSONResponse({"answer": text, "loaded": loaded})

    async def stream(request: Request) -> Response:
        async def model() -> AsyncIterator[str]:
            for word in answer().split(" ")[:20]:
                await asyncio.sleep(0.001)
                yield f"{word} "

        said, conversation = await request.json(), await get_conversation(request)
        conversation.append(Message.user(said["question"]))
        return StreamingResponse(conversation.record(model()))

    async def history(request: Request) -> Response:
        conversation = await get_conversation(request)
        return JSONResponse([message.text for message in conversation.messages])

    async def delete(request: Request) -> Response:
        conversation = await get_conversation(request)
        return JSONResponse(await conversation.delete())

    async def bare(_request: Request) -> Response:
        return JSONResponse({"answer": answer()})

    async def state(_request: Request) -> Response:
        gc.collect()
        return JSONResponse({"tasks": len(asyncio.all_tasks())})

    routes = [
        Route("/chat", chat, methods=["POST"]),
        Route("/stream", stream, methods=["POST"]),
        Route("/history", history),
        Route("/conversation", delete, methods=["DELETE"]),
        Route("/bare", bare),
        Route("/state", state),
    ]
    return Starlette(routes=routes, middleware=[_memory(place)])
