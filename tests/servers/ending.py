"""An app whose requests end in every way there is; the store can be made to fail. Callers name themselves by ``X-User``."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Scope

from convmem import ConversationMiddleware, Message, SessionKey, SQLiteStore, from_callable, get_conversation
from convmem.stores.base import Appended, Entry, Head
from convmem.testing import FaultyStore

LARGE = "x" * 65_536


class Sloppy(SQLiteStore):
    """The planted twin: gives no lease back, stores no end of a turn, and leaves a task behind for each append."""

    async def append(self, key: SessionKey, after: Head, entry: Entry, *, ttl: timedelta | None = None, release: bool = False) -> Appended:
        forgotten.append(asyncio.ensure_future(left_behind()))
        return await super().append(key, after, replace(entry, closing=False), ttl=ttl)

    async def release(self, key: SessionKey, token: str) -> None:
        return


async def left_behind() -> None:
    """Outlive the request."""
    await asyncio.sleep(60)


forgotten: list[asyncio.Task[None]] = []
kind = Sloppy if os.environ.get("TEST_PLANT") == "sloppy" else SQLiteStore
store = FaultyStore(kind(os.environ.get("TEST_DATABASE", "convmem.db")))
streaming: dict[str, asyncio.Task[object]] = {}


async def chat(request: Request) -> Response:
    """Say what was there, after the whole body has arrived."""
    text = (await request.body()).decode()
    conversation = await get_conversation(request)
    earlier = [[message.state, message.text] for message in conversation.messages]
    conversation.append(Message.user(text))
    return JSONResponse({"earlier": earlier, "interrupted": conversation.interrupted, "pid": os.getpid()})


async def plain(request: Request) -> Response:
    """Think for `seconds`, and answer in one piece."""
    conversation = await get_conversation(request)
    conversation.append(Message.user("question"))
    await asyncio.sleep(float(request.query_params.get("seconds", "0.3")))
    conversation.append(Message.assistant("answer"))
    return JSONResponse("answer")


async def stream(request: Request) -> Response:
    """Say a word, think for `seconds`, say another; `breaks` raises in between."""
    conversation = await get_conversation(request)
    conversation.append(Message.user("question"))

    async def model() -> AsyncIterator[str]:
        task = asyncio.current_task()
        assert task is not None
        streaming[conversation.owner] = task
        yield "first "
        await asyncio.sleep(float(request.query_params.get("seconds", "0.3")))
        if "breaks" in request.query_params:
            raise ConnectionError("the model is gone")
        yield "last"

    return StreamingResponse(conversation.record(model()))


async def large(request: Request) -> Response:
    """Stream far more than any buffer on the way holds."""
    conversation = await get_conversation(request)
    conversation.append(Message.user("question"))

    async def model() -> AsyncIterator[str]:
        for _ in range(32):
            yield LARGE

    return StreamingResponse(conversation.record(model()))


async def stop(request: Request) -> Response:
    """End the stream of the caller's own: a stop button, on a route that takes no turn."""
    conversation = await get_conversation(request)
    streaming[conversation.owner].cancel()
    return JSONResponse("stopped")


async def broken(request: Request) -> Response:
    """Raise before anything was answered."""
    (await get_conversation(request)).append(Message.user("question"))
    raise RuntimeError("a mistake in the handler")


async def storeless(request: Request) -> Response:
    """Lose the store after the question was loaded, or, in a stream, after it was stored."""
    conversation = await get_conversation(request)
    conversation.append(Message.user("question"), Message.assistant("answer"))
    if "stream" not in request.query_params:
        store.fail("append")
        return JSONResponse("answer")

    async def model() -> AsyncIterator[str]:
        yield "first "
        store.fail("append")
        yield "last"

    return StreamingResponse(conversation.record(model()))


async def mend(request: Request) -> Response:
    """Let the store work again."""
    store.mend()
    return JSONResponse("ok")


async def tasks(request: Request) -> Response:
    """Name the tasks that run code of the app, of its framework or of convmem, but for this request's; the server has its own."""
    here = asyncio.current_task()
    codes = [getattr(task.get_coro(), "cr_code", None) for task in asyncio.all_tasks() if task is not here]
    names = [f"{code.co_filename}:{code.co_name}" for code in codes if code is not None]
    return JSONResponse(sorted(name for name in names if any(f"/{part}/" in name for part in ("convmem", "starlette", "anyio", "tests"))))


def user(scope: Scope) -> str | None:
    return next((value.decode() for name, value in scope["headers"] if name == b"x-user"), None)


routes = [
    *(Route(f"/{handler.__name__}", handler, methods=["POST"]) for handler in (chat, plain, stream, large, broken, storeless)),
    Route("/stop", stop),
    Route("/off/mend", mend),
    Route("/off/tasks", tasks),
    Route("/", tasks),
]
app = ConversationMiddleware(Starlette(routes=routes), store=store, resolvers=[from_callable(user)])
