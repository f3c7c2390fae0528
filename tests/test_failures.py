"""What adapters need of a conversation: a failure that nobody can swallow, and text that stays the text it is."""

import enum

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from convmem import (
    ConversationMiddleware,
    InvalidMessage,
    MemoryStore,
    Message,
    SessionKey,
    Settings,
    StoreUnavailable,
    from_callable,
    get_conversation,
    open_conversation,
)

ADA = SessionKey.for_user("ada")


class Reason(str, enum.Enum):  # noqa: UP042 - this is how generated clients write it
    STOP = "stop"


def client(store, handler):
    app = Starlette(routes=[Route("/chat", handler, methods=["POST"])])
    settings = Settings({}, secret_key="a secret key of thirty-two bytes", turn_wait="2s", lease="1s")
    return TestClient(ConversationMiddleware(app, store=store, settings=settings, resolvers=[from_callable(lambda scope: "ada")]))


async def stored(store):
    async with open_conversation(ADA, store=store) as conversation:
        return [message.text for message in conversation.messages]


def test_an_outage_is_logged_a_line_a_request_and_one_traceback(caplog):
    """A thousand requests meet one cause: the log names it each time, and shows where it came from once a minute."""

    class Down(MemoryStore):
        async def load(self, key, **options):
            raise StoreUnavailable("memory", "load") from ConnectionRefusedError("nobody there")

    async def chat(request: Request):
        await get_conversation(request)
        return PlainTextResponse("ok")

    app = client(Down(), chat)
    assert [app.post("/chat").status_code for _ in range(3)] == [503, 503, 503]
    lines = [record for record in caplog.records if record.message.startswith("store_unavailable: ")]
    assert [bool(record.exc_info and record.exc_info[0]) for record in lines] == [True, False, False]


@pytest.mark.asyncio
@pytest.mark.parametrize("streams", [False, True])
async def test_a_failed_turn_answers_with_its_failure(streams):
    """A framework may swallow what its memory raises; the client must not see an answer that was not kept."""
    store = MemoryStore()

    async def chat(request: Request):
        conversation = await get_conversation(request)
        conversation.append(Message.user("hello"))
        conversation.fail(StoreUnavailable("memory", "append"))
        conversation.fail(InvalidMessage("content", "a later one does not count"))
        return StreamingResponse(iter(["ok"])) if streams else PlainTextResponse("ok")

    answer = client(store, chat).post("/chat")
    assert answer.status_code == 503
    assert await stored(store) == []


@pytest.mark.asyncio
async def test_a_failed_block_raises_and_gives_the_lease_back():
    """The next turn does not wait for a lease to run out."""
    store = MemoryStore()

    async def fail(block):
        async with block as conversation:
            conversation.append(Message.user("hello"))
            conversation.fail(StoreUnavailable("memory", "append"))

    with pytest.raises(StoreUnavailable):
        await fail(open_conversation(ADA, store=store))
    assert await stored(store) == []
    async with open_conversation(ADA, store=store) as conversation:
        await conversation.save()
    with pytest.raises(StoreUnavailable):
        await fail(conversation.turn())
    async with conversation.turn():
        conversation.append(Message.user("again"))
    assert await stored(store) == ["again"]


@pytest.mark.asyncio
async def test_text_of_an_enumeration_is_its_value():
    """``str()`` of such a member is its name: stored that way, ``stop`` would come back as ``Reason.STOP``."""
    store = MemoryStore()
    async with open_conversation(ADA, store=store) as conversation:
        conversation.append(Message.user("hello", metadata={"reason": Reason.STOP, Reason.STOP: 1}))
    async with open_conversation(ADA, store=store) as conversation:
        assert conversation.messages[0].metadata == {"reason": "stop", "stop": 1}
