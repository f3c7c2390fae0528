"""Apps that real servers run in these tests. Each is configured by its environment, as any deployment is."""

import asyncio
import os
from datetime import timedelta

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from convmem import ConversationMiddleware, Message, SQLiteStore, from_callable, get_conversation
from convmem.testing import FaultyStore


async def chat(request: Request) -> Response:
    conversation = await get_conversation(request)
    conversation.append(Message.user((await request.body()).decode()))
    facts = {"owner": conversation.owner, "pid": os.getpid(), "texts": [message.text for message in conversation.messages]}
    return JSONResponse({**facts, "interrupted": conversation.interrupted})


async def stream(request: Request) -> Response:
    """Say one word, then think for `seconds`, then say another."""
    conversation = await get_conversation(request)
    conversation.append(Message.user("question"))

    async def model():
        yield "first "
        await asyncio.sleep(float(request.query_params.get("seconds", "0.2")))
        yield "last"

    return StreamingResponse(conversation.record(model()))


async def bodyless(request: Request) -> Response:
    conversation = await get_conversation(request)
    conversation.append(Message.user("x"))
    return Response(status_code=int(request.path_params["status"]))


async def home(request: Request) -> Response:
    return PlainTextResponse("ready")


class InPieces:
    """Answers as Quart does: every piece with more_body=True, and an empty end long after the length was reached."""

    async def __call__(self, scope, receive, send):
        conversation = await get_conversation(scope)
        conversation.append(Message.user("x"))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
        await send({"type": "http.response.body", "body": b"ab", "more_body": True})
        await send({"type": "http.response.body", "body": b"cd", "more_body": True})
        await asyncio.sleep(0.5)
        await send({"type": "http.response.body", "body": b""})


async def talk(websocket: WebSocket) -> None:
    """Make a turn of each message; one that begins with ``slow`` takes a second, ``stuck`` half a minute."""
    conversation = await get_conversation(websocket)
    await websocket.accept()
    async for text in websocket.iter_text():
        async with conversation.turn():
            conversation.append(Message.user(text))
            await conversation.save()
            facts = {"texts": [message.text for message in conversation.messages], "interrupted": conversation.interrupted}
            if text.startswith(("slow", "stuck")):
                await websocket.send_text("began")
                await asyncio.sleep(1 if text.startswith("slow") else 30)
            conversation.append(Message.assistant(f"re {text}"))
        await websocket.send_json({**facts, "owner": conversation.owner, "pid": os.getpid()})


routes = [
    Route("/", home),
    Route("/chat", chat, methods=["POST"]),
    Route("/stream", stream, methods=["POST"]),
    Route("/status/{status}", bodyless, methods=["POST", "HEAD"]),
    Route("/pieces", InPieces(), methods=["POST"]),
    WebSocketRoute("/ws", talk),
]

plain = ConversationMiddleware(Starlette(routes=routes))


def slow_store():
    """Return the app on a store each of whose calls takes 0.3 s; callers name themselves."""
    store = FaultyStore(SQLiteStore(os.environ["TEST_DATABASE"]))
    store.delay = timedelta(seconds=0.3)

    def user(scope):
        return next((value.decode() for name, value in scope["headers"] if name == b"x-user"), None)

    return ConversationMiddleware(Starlette(routes=routes), store=store, resolvers=[from_callable(user)])
