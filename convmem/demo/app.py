"""The demo's ASGI app. Everything it knows of a visitor it has from convmem: there is no other state, in any worker."""

from __future__ import annotations

import json
import os
import secrets
from functools import partial
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.responses import HTMLResponse, Response, StreamingResponse
from starlette.routing import Route

from convmem import ConversationMiddleware, Message, Settings, conversations, get_conversation, new_session_id
from convmem.demo import model

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from starlette.requests import Request
    from starlette.types import ASGIApp

    from convmem import Conversation

WORD_DELAY = "DEMO_WORD_DELAY"
"""The environment variable that says how many seconds the stand-in takes for a word."""

_POLICY = (
    "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def from_environment() -> ASGIApp:
    """Return the app as the environment configures it: what each worker of the server calls."""
    delay = os.environ.get(WORD_DELAY, "")  # noqa: TID251 - the demo's own; convmem.config reads all that is convmem's
    return create_app(Settings.from_environment(), delay=float(delay or 0.04))


def create_app(settings: Settings, *, delay: float = 0.0) -> Starlette:
    """Return the app.

    Args:
        settings: Of the middleware.
        delay: Seconds the stand-in takes for a word.
    """
    app = Starlette(
        routes=[
            Route("/", _page),
            Route("/health", _health),
            Route("/chat", _chat, methods=["POST"]),
            Route("/chat/stream", _chat_stream, methods=["POST"]),
            Route("/history", _history),
            Route("/conversations", _list_conversations, methods=["GET"]),
            Route("/conversations", _new_conversation, methods=["POST"]),
        ],
        middleware=[
            Middleware(ConversationMiddleware, settings=settings, paths=["/chat*", "/history", "/conversations"], turns=["POST /chat*"]),
        ],
        exception_handlers={HTTPException: _say_what_is_wrong},
    )
    app.state.settings = settings
    app.state.model = partial(model.stream, delay=delay)
    return app


async def _page(_request: Request) -> Response:
    nonce = secrets.token_urlsafe(16)
    page = files("convmem.demo").joinpath("page.html").read_text(encoding="utf-8").replace("{nonce}", nonce)
    headers = {
        "Content-Security-Policy": _POLICY.format(nonce=nonce),
        "Cache-Control": "no-store",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }
    return HTMLResponse(page, headers=headers)


async def _health(_request: Request) -> Response:
    return _json({"status": "ok"})


async def _chat(request: Request) -> Response:
    text = await _message_of(request)
    conversation = await get_conversation(request)
    conversation.append(Message.user(text))
    answer = "".join([word async for word in request.app.state.model(conversation.messages)])
    conversation.append(Message.assistant(answer))
    return _json({"answer": answer, "session_id": conversation.session_id})


async def _chat_stream(request: Request) -> Response:
    text = await _message_of(request)
    conversation = await get_conversation(request)
    conversation.append(Message.user(text))
    words = conversation.record(request.app.state.model(conversation.messages))
    headers = {"X-Accel-Buffering": "no", "Demo-Worker": str(os.getpid())}
    return StreamingResponse(_events(conversation, words), media_type="text/event-stream", headers=headers)


async def _events(conversation: Conversation, words: AsyncIterator[str]) -> AsyncIterator[str]:
    """Frame the answer as server-sent events; who reads ``[DONE]`` may rely on it being stored."""
    async for word in words:
        yield f"data: {json.dumps({'delta': word})}\n\n"
    await conversation.save()
    yield "data: [DONE]\n\n"


async def _history(request: Request) -> Response:
    conversation = await get_conversation(request)
    settings: Settings = request.app.state.settings
    return _json(
        {
            "messages": [
                {
                    "id": message.id,
                    "role": message.role,
                    "content": message.text,
                    "state": message.state,
                    "created_at": message.created_at.isoformat(),
                }
                for message in conversation.messages
            ],
            "total_turns": conversation.total_turns,
            "left_out": conversation.left_out,
            "truncated": conversation.truncated,
            "window_turns": settings.window_turns,
            "busy": conversation.busy,
            "session_id": conversation.session_id,
        },
    )


async def _list_conversations(request: Request) -> Response:
    conversation = await get_conversation(request)
    try:
        page = await conversations(conversation.owner, after=request.query_params.get("after"))
    except ValueError as error:
        raise HTTPException(400, "The parameter after is not one that this list handed out.") from error
    found = [
        {
            "session_id": item.session_id,
            "turns": item.turns,
            "created_at": item.created_at.isoformat(),
            "updated_at": item.updated_at.isoformat(),
        }
        for item in page.items
    ]
    return _json({"conversations": found, "after": page.after})


async def _new_conversation(request: Request) -> Response:
    """Hand out an id; nothing is stored until something is said."""
    conversation = await get_conversation(request)
    return _json({"session_id": new_session_id(conversation.owner)})


async def _message_of(request: Request) -> str:
    """Return the text to answer.

    Raises:
        HTTPException: The body is too large, not JSON, or holds no text to answer.
    """
    settings: Settings = request.app.state.settings
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > settings.max_message_bytes:
            raise HTTPException(413, f"The message is too long: {settings.max_message_bytes} bytes are the most.")
    try:
        sent: Any = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, 'The body is not JSON; send {"message": "…"}.') from error
    text = sent.get("message") if isinstance(sent, dict) else None
    if not isinstance(text, str):
        raise HTTPException(422, 'The body has no text under "message"; send {"message": "…"}.')
    if not text.strip():
        raise HTTPException(422, "The message is empty; say something.")
    return text


async def _say_what_is_wrong(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # what it is registered for
    return _json({"error": error.detail}, status=error.status_code, headers=error.headers)


def _json(content: dict[str, Any], *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return an answer that names its worker; in ASCII, because a message may hold what UTF-8 cannot encode."""
    body = json.dumps({**content, "pid": os.getpid()})
    return Response(body, status, {**(headers or {}), "Demo-Worker": str(os.getpid())}, "application/json")
