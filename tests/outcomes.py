"""Every outcome of a turn: how it comes about, what is raised and answered, what a handler reads, and on what evidence.

`python -m tests.outcomes` writes the table of ``docs/reference/outcomes.md``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from convmem import (
    ConversationBusy,
    ConversationConflict,
    ConversationFenced,
    ConversationGone,
    ConvmemError,
    CorruptEntry,
    HistoryExpired,
    HistoryLost,
    IdempotencyKeyReused,
    InvalidIdempotencyKey,
    LimitExceeded,
    Message,
    StoreUnavailable,
    TurnClosed,
    get_conversation,
)
from convmem.identifiers import new_id, new_token
from convmem.messages import encode_message, encode_messages
from convmem.stores.base import Entry, Lease
from tests.asgi_client import ADA, Answer, Client, World, quick

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "outcomes.md"
BEGIN, END = "<!-- written by python -m tests.outcomes -->", "<!-- end of what is written -->"
ATTRIBUTES = ("busy", "corrupt", "degraded", "interrupted", "is_new", "replayed")
KEY = {"idempotency-key": "k"}


@dataclass(frozen=True)
class Row:
    """One outcome.

    Attributes:
        condition: In one sentence.
        evidence: What says so.
        provoke: Brings it about on a world with nothing in it, and returns the answer.
        error: What is raised; None when the request goes on.
        attribute: What the handler reads instead, or as well on a route where it goes on.
    """

    condition: str
    evidence: str
    provoke: Callable[[World], Awaitable[Answer]]
    error: type[ConvmemError] | None = None
    attribute: str = ""


def app_of(during: Callable[[], Awaitable[object]] | None = None) -> Callable[..., Awaitable[Response]]:
    """Return an endpoint that appends, lets something happen, and answers with what its conversation says of itself."""

    async def chat(request: Request) -> Response:
        conversation = await get_conversation(request)
        facts = {name: getattr(conversation, name) for name in ATTRIBUTES}
        if request.query_params.get("verify"):
            conversation.verify()
        if not request.query_params.get("read"):
            conversation.append(Message.user((await request.body()).decode() or "x"))
        if during is not None:
            await during()
        return JSONResponse(facts)

    return chat


def serve(world: World, during: Callable[[], Awaitable[object]] | None = None, **settings: object) -> Client:
    """Return a client of that endpoint."""
    from tests.test_exchange import app_of as routed

    return world.serve(routed(app_of(during)), settings=quick(**settings))


async def _held(world: World, ask: Callable[[Client], Awaitable[Answer]]) -> Answer:
    await world.inner.load(ADA, lease=Lease("another worker", timedelta(seconds=30)))
    answer = await ask(serve(world, concurrency="reject"))
    await world.inner.release(ADA, "another worker")
    return answer


async def _busy(world: World) -> Answer:
    return await _held(world, lambda client: client.post())


async def _busy_to_a_reader(world: World) -> Answer:
    return await _held(world, lambda client: client.get(query="read=1"))


async def _same_turn(world: World) -> Answer:
    inside, go_on = asyncio.Event(), asyncio.Event()

    async def wait() -> None:
        inside.set()
        await go_on.wait()

    client = serve(world, wait)
    running = asyncio.create_task(client.post(headers=KEY))
    await inside.wait()
    answer = await client.post(headers=KEY)
    go_on.set()
    await running
    return answer


async def _own_turn(world: World) -> Answer:
    answers: list[Answer] = []

    async def call_itself() -> None:
        answers.append(await client.post())

    client = serve(world, call_itself)
    await client.post()
    return answers[0]


async def _replayed(world: World) -> Answer:
    client = serve(world)
    await client.post(headers=KEY)
    return await client.post(headers=KEY)


async def _reused(world: World) -> Answer:
    client = serve(world)
    await client.post(headers=KEY)
    return await client.post(text="other", headers=KEY)


async def _bad_key(world: World) -> Answer:
    return await serve(world).post(headers={"idempotency-key": "a, b"})


async def _append(world: World, *, body: bytes = b"[]", closing: bool = True) -> None:
    head = (await world.log()).head
    entry = Entry(new_id(), new_id(), new_token(), head.epoch or new_token(), body, count=1, closing=closing, turns=head.turns + 1)
    assert (await world.inner.append(ADA, head, entry)).outcome == "stored"


async def _interrupted(world: World) -> Answer:
    await _append(world, body=encode_messages([encode_message(Message.user("hi"))]), closing=False)
    return await serve(world).post()


async def _conflict(world: World) -> Answer:
    return await serve(world, lambda: world.put(Message.user("theirs"))).get()


async def _fenced(world: World) -> Answer:
    async def lose_the_lease() -> None:
        await world.inner.release(ADA, (await world.log()).holder.token)
        await world.inner.load(ADA, lease=Lease("another worker", timedelta(seconds=30)))

    answer = await serve(world, lose_the_lease).post()
    await world.inner.release(ADA, "another worker")
    return answer


async def _too_long(world: World) -> Answer:
    return await serve(world, lambda: asyncio.sleep(0.4), lease="0.2s", turn_max="0.3s").post()


async def _gone(world: World) -> Answer:
    await world.put(Message.user("old"))
    return await serve(world, lambda: world.inner.delete(ADA)).post()


async def _lost_to_the_worker(world: World) -> Answer:
    """The worker acknowledged a turn that is gone: a store that was flushed, told by its app of another conversation."""
    from convmem.stores.memory import MemoryStore

    client = serve(world)
    await client.post()
    world.store.store = MemoryStore()
    answer = await client.post()
    world.store.store = world.inner
    return answer


async def _lost_to_the_client(world: World) -> Answer:
    await world.put(Message.user("old"))
    head = (await world.log()).head
    return await serve(world).post(headers={"conversation-revision": f"{head.epoch}.{head.n + 1}.{new_id()}"})


async def _expired(world: World) -> Answer:
    client = serve(world, ttl="0.2s")
    await client.post()
    await asyncio.sleep(0.3)
    return await client.post()


async def _new(world: World) -> Answer:
    return await serve(world).post()


async def _down(world: World) -> Answer:
    world.store.fail("load")
    return await serve(world).post()


async def _degraded(world: World) -> Answer:
    world.store.fail("load")
    return await serve(world, on_store_error="degrade").post()


async def _corrupt(world: World) -> Answer:
    await _append(world, body=b"{broken")
    return await serve(world).post()


async def _corrupt_strictly(world: World) -> Answer:
    await _append(world, body=b"{broken")
    return await serve(world).post(query="verify=1")


async def _too_much(world: World) -> Answer:
    return await serve(world, max_turn_messages=1, max_message_bytes=200).post(text="x" * 500)


async def _closed(world: World) -> Answer:
    """Append to a turn that has ended: here because the handler has deleted the conversation."""
    from tests.test_exchange import app_of as routed

    async def chat(request: Request) -> Response:
        conversation = await get_conversation(request)
        await conversation.delete()
        conversation.append(Message.user("x"))
        return JSONResponse("ok")

    return await world.serve(routed(chat)).post()


ROWS = (
    Row("There was never anything, or nobody knows of it", "none: without evidence a conversation is new", _new, None, "is_new"),
    Row("The turn before this one has no end", "a turn without a closing entry whose lease is not live", _interrupted, None, "interrupted"),
    Row("Another turn runs, on a route that takes turns, and waiting is over", "the live lease", _busy, ConversationBusy),
    Row("Another turn runs, on another route", "the live lease", _busy_to_a_reader, None, "busy"),
    Row("Another try of this turn runs (`same_turn`)", "the turn's name in the live lease", _same_turn, ConversationBusy),
    Row("The turn in the way is the caller's own (`own_turn`)", "the context of the task", _own_turn, ConversationBusy),
    Row("This turn was completed before", "its closing entry, looked up by the key", _replayed, None, "replayed"),
    Row("Its key came with another request", "the fingerprint in the stored attempt", _reused, IdempotencyKeyReused),
    Row("Its key has another form", "the header", _bad_key, InvalidIdempotencyKey),
    Row(
        "Somebody else wrote since the load, without a lease",
        "the log goes on behind the head that was loaded",
        _conflict,
        ConversationConflict,
    ),
    Row("The lease was lost and another holds it", "the live lease", _fenced, ConversationFenced),
    Row("The turn ran longer than `CONVMEM_TURN_MAX`", "the worker's clock", _too_long, ConversationFenced),
    Row("The conversation was deleted meanwhile", "the tombstone", _gone, ConversationGone),
    Row(
        "The store lost what this worker saw acknowledged",
        "the worker's newest head of that conversation",
        _lost_to_the_worker,
        HistoryLost,
    ),
    Row("The store lost what the client saw", "`Conversation-Revision` of the request", _lost_to_the_client, HistoryLost),
    Row("The conversation outlived `CONVMEM_TTL`", "the same, and its age", _expired, HistoryExpired),
    Row("The store is down, with `CONVMEM_ON_STORE_ERROR=fail`", "the driver's error, as `__cause__`", _down, StoreUnavailable),
    Row("The store is down, with `degrade`; a header says so", "the driver's error, in the log", _degraded, None, "degraded"),
    Row("A stored entry cannot be decoded", "its position", _corrupt, None, "corrupt"),
    Row("The same, and the handler calls `verify()`", "its position", _corrupt_strictly, CorruptEntry),
    Row("A message or a turn is too large", "the limit's setting", _too_much, LimitExceeded),
    Row("Something is appended after the turn has ended", "the turn", _closed, TurnClosed),
)


def table() -> str:
    """Return the table of the page."""
    lines = ["| what happened | raised | answered | the handler reads | evidence |", "| --- | --- | --- | --- | --- |"]
    for row in ROWS:
        raised = f"[`{row.error.__name__}`](errors/{row.error.code}.md)" if row.error else "nothing"
        answered = f"{row.error.status} `{row.error.code}`" if row.error else "by the app"
        reads = f"`conversation.{row.attribute}`" if row.attribute else ""
        lines.append(f"| {row.condition} | {raised} | {answered} | {reads} | {row.evidence} |")
    return "\n".join(lines)


def page(text: str) -> str:
    """Return the page with its table as it is to be."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
