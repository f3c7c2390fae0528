"""The app of `benchmarks.plain`, with its memory in a session of starsessions."""

from __future__ import annotations

from redis.asyncio import Redis
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starsessions import SessionAutoloadMiddleware, SessionMiddleware
from starsessions.stores.redis import RedisStore

from benchmarks import plain
from benchmarks.workload import answer


async def chat(request):
    """Look at every message, and store all of them with two more."""
    said, messages = await request.json(), request.session.setdefault("messages", [])
    texts, text = [message["content"] for message in messages], answer()
    messages += [{"role": "user", "content": said["question"]}, {"role": "assistant", "content": text}]
    return JSONResponse({"answer": text, "loaded": len(texts)})


def app(place):
    """Return the app."""
    store = RedisStore(connection=Redis.from_url(place))
    session = Middleware(SessionMiddleware, store=store, lifetime=3600, cookie_https_only=False)
    return plain.app(chat, session, Middleware(SessionAutoloadMiddleware))
