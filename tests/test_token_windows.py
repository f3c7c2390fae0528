"""A window in tokens, from the store to the handler: pages are read until it is full, all of one moment, and never more."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from convmem import Edit, Message, ToolCall, Window, get_conversation, open_conversation
from convmem.messages import decode_messages
from convmem.middleware import rules_of
from convmem.stores.base import Lease
from convmem.testing import FaultyStore
from convmem.tokens import Meter, default_counter
from convmem.windows import Turn, view
from tests import asgi_client
from tests.asgi_client import ADA, AT_ONCE, BOB, quick
from tests.test_tokens import SHIPPED

pytestmark = pytest.mark.asyncio
world, memory_world = asgi_client.world, asgi_client.memory_world


def by_length(message: Message) -> int:
    return len(message.text)


async def show(request: Request) -> JSONResponse:
    conversation = await get_conversation(request)
    if request.method == "POST":
        conversation.append(Message.user("now"))
    facts = {"texts": [message.text for message in conversation.messages]}
    facts |= {name: getattr(conversation, name) for name in ("total_turns", "left_out", "truncated")}
    return JSONResponse(facts)


app = Starlette(routes=[Route("/chat", show, methods=["GET", "POST"])])


def tokens(n: int, **options) -> Window:
    return Window(**{"turns": None, "tokens": n, "counter": by_length, **options})


async def fill(world, turns: int, *, size: int = 5) -> None:
    """Store turns of twice `size` tokens each: ``q0…`` and ``a0…``."""
    for i in range(turns):
        await world.put(Message.user(f"q{i}".ljust(size, ".")), Message.assistant(f"a{i}".ljust(size, ".")))


class Watched(FaultyStore):
    """Notes how much each load returned, and lets a test act in between."""

    def __init__(self, store) -> None:
        super().__init__(store)
        self.pages: list[int] = []
        self.between: Callable[[], Awaitable[None]] | None = None

    async def load(self, key, **asked):
        if asked.get("before") is not None and self.between is not None:
            await self.between()
        log = await super().load(key, **asked)
        self.pages.append(len(log.entries))
        return log


@pytest.mark.parametrize(("stored", "trips"), [(1, 1), (4, 1), (5, 2), (30, 2)])
async def test_pages_are_read_until_the_window_is_full(world, stored, trips):
    """Up to 100 tokens are ten turns, minus the room of the question; the first page of such a window is four turns."""
    await fill(world, stored)
    store = Watched(world.inner)
    answer = (await world.serve(app, store=store, window=tokens(100)).post()).data
    assert (answer["total_turns"], answer["left_out"]) == (stored, max(0, stored - 9))
    assert len(answer["texts"]) == 2 * min(9, stored) + 1
    assert answer["truncated"] == (stored > 9)
    assert len(store.pages) == trips


async def test_the_cost_of_a_turn_does_not_grow_with_the_conversation(world):
    """P9: as many pages, and entries, for a hundred turns as for thirty."""
    costs = []
    for more in (30, 70):
        await fill(world, more)
        store = Watched(world.inner)
        await world.serve(app, store=store, window=tokens(100)).get()
        costs.append(store.pages)
    assert costs[0] == costs[1] == [4, 8]
    store = Watched(world.inner)
    await world.serve(app, store=store, window=tokens(100, turns=6)).get()
    assert store.pages == [4, 2]


async def test_every_window_is_what_all_of_the_history_would_have_shown(world):
    """Whatever the budget, pages are an economy and nothing else."""
    await world.put(Message.system("s" * 7), Message.user("q" * 40), Message.assistant("a"))
    for i in range(40):
        await world.put(Message.user("q" * (i * 7 % 13 + 1)), Message.assistant("a" * (i * 5 % 11)))
    log = await world.log()
    turns = [Turn(tuple(m for stored in turn.entries for m in decode_messages(stored.entry.body))) for turn in log.turns]
    for budget in (1, 8, 20, 50, 120, 200, 350, 460, 500, 10_000):
        for limits in ({}, {"turns": 12}, {"messages": 15}):
            window = tokens(budget, **limits)
            answer = (await world.serve(app, window=window).get()).data
            naive = view(turns, window)
            assert answer["texts"] == [m.text for m in naive.messages], (budget, limits)
            assert answer["left_out"] == len(turns) - naive.turns


async def test_turns_that_an_edit_hid_make_room_for_older_ones(world):
    """A page of hidden turns is not a full window."""
    await fill(world, 20)
    async with open_conversation(ADA, store=world.inner) as conversation:
        hidden = [m.id for m in await conversation.history() if any(m.text.startswith(f"{who}{i}.") for i in range(12, 20) for who in "qa")]
        assert len(hidden) == 16
        conversation.edit(Edit(action="hide", ids=tuple(hidden)), Message.user("edited"))
    answer = (await world.serve(app, window=tokens(46)).get()).data
    assert answer["texts"] == ["q8...", "a8...", "q9...", "a9...", "q10..", "a10..", "q11..", "a11..", "edited"]


async def test_pinned_system_messages_of_older_pages_count(world):
    """They are in every window, so they are paid for first."""
    await world.put(Message.system("s" * 50), Message.user("old"))
    await fill(world, 30)
    answer = (await world.serve(app, window=tokens(100)).get()).data
    assert answer["texts"][0] == "s" * 50
    assert len(answer["texts"]) == 1 + 2 * 5


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_conversation_deleted_between_two_pages_is_absent(world, method):
    """Never the newest half of a life that has ended."""
    await fill(world, 30)
    store = Watched(world.inner)

    async def delete() -> None:
        await world.inner.delete(ADA)

    store.between = delete
    answer = (await world.serve(app, store=store, window=tokens(100)).request(method)).data
    assert answer["texts"] == (["now"] if method == "POST" else [])
    assert answer["total_turns"] == 0


async def test_a_turn_whose_conversation_was_deleted_between_two_pages_holds_the_lease_all_the_same(world):
    """A delete ends the lease; the turn takes it again, or waits for whoever took it first."""
    await fill(world, 30)
    store = Watched(world.inner)
    held: list[str] = []

    async def delete_and_take() -> None:
        store.between = None
        await world.inner.delete(ADA)
        await world.inner.load(ADA, lease=Lease("another", quick().lease))

    async def holds(request: Request) -> JSONResponse:
        await get_conversation(request)
        held.append((await world.log()).holder.token)
        return JSONResponse("ok")

    store.between = delete_and_take
    asking = asyncio.create_task(
        world.serve(Starlette(routes=[Route("/chat", holds, methods=["POST"])]), store=store, window=tokens(100)).post()
    )
    await asyncio.sleep(0.3)
    assert held == []
    await world.inner.release(ADA, "another")
    assert (await asking).status == 200
    assert held != [""]


async def test_a_log_that_moves_between_two_pages_is_read_anew(world):
    """A reader takes no lease: another worker's turn may end in between; what is shown is all of one moment."""
    await fill(world, 30)
    store = Watched(world.inner)
    moves = iter(range(1))

    async def move() -> None:
        with suppress(StopIteration):
            await world.put(Message.user(f"new{next(moves)}"))

    store.between = move
    answer = (await world.serve(app, store=store, window=tokens(100)).get()).data
    assert answer["total_turns"] == 31
    assert answer["texts"][-1] == "new0"
    assert len(answer["texts"]) == 2 * 9 + 1
    assert answer["left_out"] == 31 - 10


async def test_a_log_that_never_rests_leaves_a_short_window_that_says_so(world):
    """Nobody waits for ever, and the newest turns are there."""
    await fill(world, 30)
    store = Watched(world.inner)
    number = iter(range(100))

    async def move() -> None:
        await world.put(Message.user(f"new{next(number)}"))

    store.between = move
    answer = (await world.serve(app, store=store, window=tokens(100)).get()).data
    assert answer["texts"][-1].startswith("new")
    assert answer["left_out"] == answer["total_turns"] - 4 > 20
    assert len(store.pages) < 10


async def test_a_conversation_that_is_deleted_over_and_over_holds_no_turn_up_for_ever(world):
    """It gives up paging after three attempts; then it is told that what it had loaded is gone, as any turn is."""
    await fill(world, 5)
    store = Watched(world.inner)

    async def again() -> None:
        await world.inner.delete(ADA)
        await fill(world, 5)

    store.between = again
    answer = await asyncio.wait_for(world.serve(app, store=store, window=tokens(1000)).post(), AT_ONCE)
    assert (answer.status, answer.code, len(store.pages)) == (410, "conversation_gone", 6)


async def test_the_lease_is_held_while_pages_are_read_and_taken_once(world):
    """A turn that waits for another one does not page in vain."""
    await fill(world, 30)
    store = Watched(world.inner)
    await world.inner.load(ADA, lease=Lease("another", quick().lease))
    asking = asyncio.create_task(world.serve(app, store=store, window=tokens(100)).post())
    await asyncio.sleep(0.3)
    waited = len(store.pages)
    assert set(store.pages) == {4}
    await world.inner.release(ADA, "another")
    answer = (await asking).data
    assert len(answer["texts"]) == 19
    assert store.pages[-3:] == [4, 8, 16] or store.pages[-2:] == [4, 8]
    assert len(store.pages) - waited <= 4


async def test_new_messages_take_their_part_and_are_never_left_out(world):
    """What the handler appends pushes out what is oldest, read again without counting anything twice."""
    await fill(world, 8)
    counted: list[str] = []
    seen: list[int] = []

    def counter(message: Message) -> int:
        counted.append(message.text)
        return len(message.text)

    async def grows(request: Request) -> JSONResponse:
        conversation = await get_conversation(request)
        for size in (0, 35, 100):
            conversation.append(Message.user("x" * size + "!"))
            seen.append(len(conversation.messages) - len(conversation.new_messages))
            assert [m.text for m in conversation.messages[-len(conversation.new_messages) :]] == [m.text for m in conversation.new_messages]
        return JSONResponse("ok")

    window = Window(turns=None, tokens=81, counter=counter)
    await world.serve(Starlette(routes=[Route("/chat", grows, methods=["POST"])]), window=window).post()
    assert seen == [16, 8, 0]
    assert len(counted) == len(set(counted))


async def test_the_lease_is_given_back_when_the_counter_fails(world):
    """An error of the app's own, with its name."""

    def broken(message: Message) -> int:
        raise ZeroDivisionError

    await fill(world, 5)
    answer = await world.serve(app, window=Window(tokens=5, counter=broken)).post()
    assert (answer.status, answer.code) == (500, "counter_failed")


async def test_a_store_that_fails_at_the_second_page_is_an_error(world):
    """P8: not a window that is silently shorter."""
    await fill(world, 30)
    store = Watched(world.inner)

    async def fail() -> None:
        store.fail("load", times=1)

    store.between = fail
    answer = await world.serve(app, store=store, window=tokens(100)).post()
    assert (answer.status, answer.code) == (503, "store_unavailable")
    store.between = None
    assert (await world.serve(app, store=store, window=tokens(100)).post()).status == 200


async def test_the_setting_works(world, monkeypatch):
    """`CONVMEM_WINDOW_TOKENS`, with the estimate: four tokens a message and one for four bytes."""
    monkeypatch.setattr("convmem.middleware.tiktoken_cache", lambda: None)
    await fill(world, 10, size=20)
    answer = (await world.serve(app, settings=quick(window_tokens=60)).get()).data
    assert (len(answer["texts"]), answer["left_out"]) == (6, 7)
    assert (await world.serve(app, settings=quick(window_tokens="none")).get()).data["left_out"] == 0


async def test_tiktoken_counts_where_the_app_names_no_counter(monkeypatch):
    """Eleven letters are three tokens by the estimate, and two by the encoding."""
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(SHIPPED))
    default_counter.cache_clear()
    for rules in (rules_of(quick(window_tokens=60)), rules_of(quick(), Window(tokens=60))):
        assert Meter(rules.window.counter).of(Message.user("hello world")) == 4 + 2
    assert rules_of(quick()).window.counter is None
    assert rules_of(quick(), tokens(5)).window.counter is by_length


async def test_the_result_of_a_browser_s_tool_brings_its_call_back(world):
    """The turn before ended with the call; until the result is appended, and not longer, the call would be invalid."""
    call = Message.assistant("", tool_calls=[ToolCall(id="1", name="where_am_i")])
    await world.put(Message.user("q"), call)

    async def answers(request: Request) -> JSONResponse:
        conversation = await get_conversation(request)
        before = [m.role for m in conversation.messages]
        conversation.append(Message.tool("Graz", tool_call_id="1"))
        return JSONResponse([before, [m.role for m in conversation.messages]])

    chat = Starlette(routes=[Route("/chat", answers, methods=["POST"])])
    assert (await world.serve(chat).post()).data == [["user"], ["user", "assistant", "tool"]]


async def test_the_first_truncation_is_logged_however_far_it_jumps(world, caplog):
    """One long turn can push out many; once for each conversation and worker."""
    caplog.set_level("INFO", "convmem")
    client = world.serve(app, window=tokens(100))
    await fill(world, 9)
    await client.get()
    assert "outgrown" not in caplog.text
    await world.put(Message.user("long" * 20))
    for _ in range(3):
        await client.get()
    (line,) = [record.getMessage() for record in caplog.records if "outgrown" in record.getMessage()]
    assert "does not see 7 of its turns" in line


async def test_a_window_that_holds_less_than_its_first_page_is_outgrown_too(world, caplog):
    """And turns that are dropped for another reason do not make it so."""
    caplog.set_level("INFO", "convmem")
    await fill(world, 2, size=30)
    async with open_conversation(ADA, store=world.inner) as conversation:
        with suppress(ZeroDivisionError):
            async with open_conversation(BOB, store=world.inner) as other:
                other.append(Message.user("q"))
                await other.save()
                raise ZeroDivisionError
        assert not conversation.truncated
    await world.serve(app, window=tokens(1000, unfinished="drop")).get(user="bob")
    await world.serve(app, window=tokens(130)).get()
    assert "outgrown" not in caplog.text
    await world.serve(app, window=tokens(100)).get()
    assert "does not see 1 of its turns" in caplog.text


async def test_each_turn_on_a_socket_reads_its_pages_and_counts_anew(world):
    """What another worker stored in between is in the window of the next turn."""
    await fill(world, 30)

    async def chat(websocket: WebSocket) -> None:
        conversation = await get_conversation(websocket)
        await websocket.accept()
        for _ in range(2):
            await websocket.receive_text()
            async with conversation.turn():
                texts = [message.text for message in conversation.messages]
            await websocket.send_json(texts)

    client = world.serve(Starlette(routes=[WebSocketRoute("/ws", chat)]), window=tokens(20))
    async with client.socket() as socket:
        assert await socket.ask("go") == '["q28..","a28..","q29..","a29.."]'
        await world.put(Message.user("posted"))
        assert await socket.ask("go") == '["q29..","a29..","posted"]'
