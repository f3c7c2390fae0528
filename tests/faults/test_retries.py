"""A retry of a turn is stored once on every store, whichever worker it reaches, and whatever became of the first try."""

from __future__ import annotations

import asyncio

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse

from convmem import ConversationMiddleware, IdempotencyKeyReused, Message, SessionKey, from_callable, get_conversation
from convmem.config import open_store
from convmem.messages import decode_messages
from tests.asgi_client import Client, quick, user_header
from tests.test_exchange import app_of

pytestmark = [pytest.mark.asyncio, pytest.mark.parametrize("place", ["sqlite", "redis", "postgresql"], indirect=True)]
ADA = SessionKey.for_user("ada")


async def test_retries_over_three_workers_are_stored_once(place):
    """Ten at once, one after ten other turns, one with another body, and one after an interrupted try."""
    asked = 0
    breaks = False

    async def chat(request: Request) -> JSONResponse:
        nonlocal asked
        conversation = await get_conversation(request)
        if conversation.replayed:
            return JSONResponse(conversation.new_messages[-1].text)
        asked += 1
        conversation.append(Message.user((await request.body()).decode()))
        await conversation.save()
        await asyncio.sleep(0.02)
        if breaks:
            return JSONResponse("broken", 500)
        conversation.append(Message.assistant(f"answer {asked}"))
        return JSONResponse(f"answer {asked}")

    stores = [open_store(place) for _ in range(3)]
    settings = quick(window_turns=3)
    workers = [
        Client(ConversationMiddleware(app_of(chat), store=store, settings=settings, resolvers=[from_callable(user_header)]))
        for store in stores
    ]
    try:
        answers = await asyncio.gather(*(workers[i % 3].post(text="hi", headers={"idempotency-key": "one"}) for i in range(10)))
        assert {answer.text for answer in answers if answer.status == 200} == {'"answer 1"'}
        assert {answer.code for answer in answers if answer.status != 200} <= {"conversation_busy"}
        breaks = True
        assert (await workers[1].post(text="broken", headers={"idempotency-key": "two"})).status == 500
        breaks = False
        for i in range(10):
            assert (await workers[i % 3].post(text=str(i))).status == 200
        assert (await workers[1].post(text="hi", headers={"idempotency-key": "one"})).text == '"answer 1"'
        for key in ("one", "two"):
            other = await workers[2].post(text="other", headers={"idempotency-key": key})
            assert (other.status, other.code) == (IdempotencyKeyReused.status, IdempotencyKeyReused.code)
        assert (await workers[0].post(text="broken", headers={"idempotency-key": "two"})).status == 200
        log = await stores[2].load(ADA)
        texts = [message.text for stored in log.entries for message in decode_messages(stored.entry.body)]
        assert [text for text in texts if not text.startswith("answer")] == ["hi", *map(str, range(10)), "broken"]
        assert (log.head.turns, asked, log.holder.token) == (12, 13, "")
    finally:
        for store in stores:
            await store.aclose()
