"""One WebSocket from its handshake to its close: whose it is, its turns, and what stays of them when it breaks."""

import asyncio
import sys
import types
from contextlib import suppress
from datetime import timedelta

import litestar
import pytest
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from convmem import (
    ConversationBusy,
    ConversationMiddleware,
    ForeignOrigin,
    HistoryLost,
    Message,
    NoConversation,
    SessionKey,
    Settings,
    StoreUnavailable,
    TurnClosed,
    VisitorTooLate,
    current_conversation,
    from_callable,
    get_conversation,
    open_conversation,
)
from convmem.stores.base import Lease
from convmem.stores.memory import MemoryStore
from tests import asgi_client
from tests.asgi_client import ADA, AT_ONCE, BOB, Client, plain, quick
from tests.faults.waiting import until

pytestmark = pytest.mark.asyncio
world, memory_world = asgi_client.world, asgi_client.memory_world
COOKIE = "convmem"
HOST = {"host": "chat.example"}


def app_of(handler):
    return Starlette(routes=[WebSocketRoute("/ws", handler), WebSocketRoute("/off", handler)])


async def chat(websocket: WebSocket) -> None:
    """Answer each message in a turn of its own, with what the model would have seen."""
    conversation = await get_conversation(websocket)
    await websocket.accept()
    with suppress(WebSocketDisconnect):
        while True:
            text = await websocket.receive_text()
            async with conversation.turn():
                conversation.append(Message.user(text))
                seen = [message.text for message in conversation.messages]
                conversation.append(Message.assistant(f"re {text}"))
            await websocket.send_json(seen)


def stuck_in_a_turn(inside: asyncio.Event, goes_on: asyncio.Event | None = None):
    """Return a handler that waits for a model which never answers, or answers when it is told to."""

    async def handler(websocket: WebSocket) -> None:
        conversation = await get_conversation(websocket)
        await websocket.accept()
        text = await websocket.receive_text()
        async with conversation.turn():
            conversation.append(Message.user(text))
            await conversation.save()
            inside.set()
            await (goes_on or asyncio.Event()).wait()
            conversation.append(Message.assistant("late"))
        await websocket.send_text("done")

    return handler


# Turns


async def test_several_turns_on_one_socket_are_stored_each_before_its_answer(world):
    """Each turn sees the ones before it, and is whole when the client hears of it."""
    client = world.serve(app_of(chat))
    async with client.socket() as socket:
        assert await socket.ask("one") == '["one"]'
        assert await world.texts() == ["user: one", "assistant: re one"]
        assert await socket.ask("two") == '["one","re one","two"]'
        assert await world.states() == ["complete", "complete"]
    assert socket.raised is None


async def test_a_turn_costs_a_trip_to_load_and_one_to_store(world):
    """And the handshake one, to read what there is; the lease costs none of its own."""
    client = world.serve(app_of(chat))
    async with client.socket() as socket:
        await socket.ask("one")
        await socket.ask("two")
    assert [call for call in world.store.calls if call in ("load", "append", "release", "renew")] == ["load", *["load", "append"] * 2]


async def test_a_socket_and_a_request_are_one_memory(world):
    """What a request stores between two turns is in the next one's messages, and the other way round."""
    client = world.serve(app_of(chat))
    async with client.socket() as socket:
        await socket.ask("one")
        await world.put(Message.user("by post"), Message.assistant("re by post"))
        assert await socket.ask("two") == '["one","re one","by post","re by post","two"]'


async def test_what_was_stored_is_there_before_the_first_turn(world):
    """A page that connects shows the history at once."""
    await world.put(Message.user("before"))

    async def greet(websocket: WebSocket) -> None:
        conversation = await get_conversation(websocket)
        await websocket.accept()
        await websocket.send_json([[message.text for message in conversation.messages], conversation.is_new, conversation.total_turns])

    async with world.serve(app_of(greet)).socket() as socket:
        assert await socket.hear() == '[["before"],false,1]'


async def test_appending_outside_of_a_turn_is_an_error_with_the_line_to_write(world):
    """Before the first and after it: a socket has no end with which it could be stored."""

    async def careless(websocket: WebSocket) -> None:
        conversation = await get_conversation(websocket)
        await websocket.accept()
        for _ in range(2):
            with pytest.raises(TurnClosed, match=r"append in `async with conversation\.turn\(\):`"):
                conversation.append(Message.user("nowhere"))
            with pytest.raises(TurnClosed, match=r"async with conversation\.turn\(\)"):
                await conversation.clear()
            with pytest.raises(TurnClosed, match=r"async with conversation\.turn\(\)"):
                await anext(conversation.record(["nowhere"]))
            async with conversation.turn():
                conversation.append(Message.user("here"))
        await websocket.send_text("done")

    async with world.serve(app_of(careless)).socket() as socket:
        assert await socket.hear() == "done"
    assert await world.texts() == ["user: here", "user: here"]


async def test_save_inside_a_turn_makes_the_question_durable_before_the_model_runs(world):
    """The end marker may then be sent inside the turn."""
    inside, goes_on = asyncio.Event(), asyncio.Event()
    async with world.serve(app_of(stuck_in_a_turn(inside, goes_on))).socket() as socket:
        socket.say("q")
        await inside.wait()
        assert (await world.texts(), await world.states()) == (["user: q"], ["running"])
        goes_on.set()
        assert await socket.hear() == "done"
    assert (await world.texts(), await world.states()) == (["user: q", "assistant: late"], ["complete"])


async def test_a_model_s_stream_is_recorded_on_a_socket(world):
    """Token by token to the client, one message to the store."""

    async def stream(websocket: WebSocket) -> None:
        conversation = await get_conversation(websocket)
        await websocket.accept()
        async with conversation.turn():
            conversation.append(Message.user("q"))
            async for token in conversation.record(["to", "ken", "s"]):
                await websocket.send_text(token)
        await websocket.send_text("[DONE]")

    async with world.serve(app_of(stream)).socket() as socket:
        assert [await socket.hear() for _ in range(4)] == ["to", "ken", "s", "[DONE]"]
        assert await world.texts() == ["user: q", "assistant: tokens"]


async def test_each_turn_takes_the_lease_and_gives_it_back(world):
    """Between turns nobody is kept waiting, however long the socket stays open."""
    inside, goes_on = asyncio.Event(), asyncio.Event()
    async with world.serve(app_of(stuck_in_a_turn(inside, goes_on))).socket() as socket:
        assert (await world.log()).holder.token == ""
        socket.say("q")
        await inside.wait()
        assert (await world.log()).holder.token
        goes_on.set()
        await socket.hear()
        assert (await world.log()).holder.token == ""


async def test_a_turn_longer_than_the_lease_keeps_it(world):
    """A model may take minutes; the lease says how long a dead worker blocks."""
    inside, goes_on = asyncio.Event(), asyncio.Event()
    settings = quick(lease="1.2s")
    async with world.serve(app_of(stuck_in_a_turn(inside, goes_on)), settings=settings).socket() as socket:
        socket.say("q")
        await inside.wait()
        token = (await world.log()).holder.token
        await until(lambda: world.store.calls.count("renew") >= 4)
        assert (await world.log()).holder.token == token != ""
        goes_on.set()
        assert await socket.hear() == "done"


async def test_a_turn_inside_a_turn_is_refused_at_once(world):
    """It would wait for itself; two tasks of one socket are told the same, whichever came first."""
    refused = []

    async def nested(websocket: WebSocket) -> None:
        conversation = await get_conversation(websocket)
        await websocket.accept()

        async def one() -> None:
            try:
                async with conversation.turn():
                    conversation.append(Message.user("one"))
                    await asyncio.sleep(0.05)
            except ConversationBusy as error:
                refused.append(error.own_turn)

        await asyncio.gather(one(), one())
        async with conversation.turn():
            await one()
        await websocket.send_text("done")

    async with world.serve(app_of(nested)).socket() as socket:
        assert await socket.hear() == "done"
    assert refused == [True, True]
    assert await world.texts() == ["user: one"]


async def test_an_exception_in_a_turn_stores_nothing_more_and_the_next_turn_works(world):
    """As an exception before the response does; what `save` had stored reads as interrupted."""

    async def fails(websocket: WebSocket) -> None:
        conversation = await get_conversation(websocket)
        await websocket.accept()
        with suppress(ZeroDivisionError):
            async with conversation.turn():
                conversation.append(Message.user("dropped"))
                raise ZeroDivisionError
        with suppress(ZeroDivisionError):
            async with conversation.turn():
                conversation.append(Message.user("saved"))
                await conversation.save()
                conversation.append(Message.assistant("dropped"))
                raise ZeroDivisionError
        with suppress(ZeroDivisionError):
            async with conversation.turn():
                conversation.append(Message.user("q"))
                async for _ in conversation.record(iter(["par", "tial"])):
                    raise ZeroDivisionError
        async with conversation.turn():
            assert conversation.interrupted
            conversation.append(Message.user("good"))
        await websocket.send_text("done")

    async with world.serve(app_of(fails)).socket() as socket:
        assert await socket.hear() == "done"
    assert await world.texts() == ["user: saved", "user: q", "assistant: par", "user: good"]
    assert await world.states() == ["interrupted", "interrupted", "complete"]


async def test_a_failure_of_one_turn_is_not_the_next_one_s(world):
    """An adapter reported an error in a turn that broke off before it could be raised."""

    async def fails(websocket: WebSocket) -> None:
        conversation = await get_conversation(websocket)
        await websocket.accept()
        with suppress(ZeroDivisionError):
            async with conversation.turn():
                conversation.fail(StoreUnavailable("x", "load"))
                raise ZeroDivisionError
        async with conversation.turn():
            conversation.append(Message.user("good"))
        await websocket.send_text("done")

    async with world.serve(app_of(fails)).socket() as socket:
        assert await socket.hear() == "done"
    assert await world.texts() == ["user: good"]


# Two at once


async def test_a_turn_waits_for_another_worker_s_and_then_sees_it(world):
    """By the policy `wait`, the default."""
    await world.put(Message.user("first"))
    client = world.serve(app_of(chat))
    async with client.socket() as socket:
        lease = Lease("another worker", timedelta(seconds=10))
        await world.inner.load(ADA, lease=lease)
        socket.say("mine")
        await asyncio.sleep(0.2)
        assert await world.texts() == ["user: first"]
        await world.inner.release(ADA, lease.token)
        assert await socket.hear() == '["first","mine"]'


async def test_two_sockets_on_one_conversation_take_turns(world):
    """Two tabs: each answer has seen every turn before it."""
    client = world.serve(app_of(chat))
    async with client.socket() as one, client.socket() as two:
        heard = await asyncio.gather(*(socket.ask(f"{name}{i}") for i in range(3) for name, socket in (("a", one), ("b", two))))
    assert sorted(len(text.split(",")) for text in heard if text) == [1, 3, 5, 7, 9, 11]
    assert len(await world.states()) == 6


async def test_a_socket_and_a_request_at_once_take_turns(world):
    """The request waits for the socket's turn."""
    inside, goes_on = asyncio.Event(), asyncio.Event()
    socket_app = app_of(stuck_in_a_turn(inside, goes_on))

    async def app(scope, receive, send):
        if scope["type"] == "websocket":
            await socket_app(scope, receive, send)
            return
        conversation = await get_conversation(scope)
        conversation.append(Message.user("posted"))
        await plain(send, "|".join(message.text for message in conversation.messages))

    client = world.serve(app)
    async with client.socket() as socket:
        socket.say("q")
        await inside.wait()
        posting = asyncio.create_task(client.post())
        await asyncio.sleep(0.1)
        assert not posting.done()
        goes_on.set()
        assert (await posting).text == "q|late|posted"
    assert await world.texts() == ["user: q", "assistant: late", "user: posted"]


@pytest.mark.parametrize("turns", [{"/ws": "reject"}, {"WEBSOCKET /*": "reject"}, None])
async def test_reject_is_an_exception_in_the_handler(world, turns):
    """The handler decides what its client is told; the socket stays open, and the next turn works."""

    async def tell(websocket: WebSocket) -> None:
        conversation = await get_conversation(websocket)
        await websocket.accept()
        for _ in range(2):
            await websocket.receive_text()
            try:
                async with conversation.turn():
                    conversation.append(Message.user("q"))
            except ConversationBusy as error:
                await websocket.send_text(f"busy {error.own_turn}")
            else:
                await websocket.send_text("stored")

    settings = quick(concurrency="wait" if turns else "reject")
    async with world.serve(app_of(tell), turns=turns, settings=settings).socket() as socket:
        await world.inner.load(ADA, lease=Lease("another", timedelta(seconds=10)))
        assert await asyncio.wait_for(socket.ask("go"), AT_ONCE) == "busy False"
        await world.inner.release(ADA, "another")
        assert await socket.ask("go") == "stored"


async def test_a_policy_for_posts_is_not_one_for_sockets(world):
    """`turns` names methods; a handshake is a GET on the wire, and a pattern for GET does not mean it."""
    client = world.serve(app_of(chat), turns={"POST /*": "reject", "GET /*": "reject"})
    async with client.socket() as socket:
        await world.inner.load(ADA, lease=Lease("another", timedelta(seconds=0.3)))
        assert await socket.ask("waits") == '["waits"]'


# Ends


async def test_a_client_that_leaves_in_the_middle_of_a_turn_leaves_its_question(world):
    """It reads as interrupted, as on a stream over HTTP; the lease is free at once."""

    async def listens(websocket: WebSocket) -> None:
        conversation = await get_conversation(websocket)
        await websocket.accept()
        text = await websocket.receive_text()
        async with conversation.turn():
            conversation.append(Message.user(text))
            await websocket.receive_text()

    client = world.serve(app_of(listens))
    async with client.socket() as socket:
        socket.say("q")
        await socket.leave()
    assert isinstance(socket.raised, WebSocketDisconnect)
    assert (await world.texts(), await world.states()) == (["user: q"], ["interrupted"])
    async with client.socket() as socket:
        socket.say("again")
        await socket.leave()
    assert await world.states() == ["interrupted", "interrupted"]


async def test_a_client_that_is_found_gone_by_sending_leaves_its_question(world):
    """Where the server says so; without a recording too."""
    gone = asyncio.Event()

    async def reports(websocket: WebSocket) -> None:
        conversation = await get_conversation(websocket)
        await websocket.accept()
        async with conversation.turn():
            conversation.append(Message.user("q"))
            await gone.wait()
            await websocket.send_text("searching")

    async with world.serve(app_of(reports)).socket() as socket:
        socket.hang_up()
        gone.set()
        await socket.over()
    assert isinstance(socket.raised, WebSocketDisconnect)
    assert (await world.texts(), await world.states()) == (["user: q"], ["interrupted"])


@pytest.mark.parametrize("tells", [True, False])
async def test_a_client_that_leaves_a_stream_leaves_what_arrived(world, tells):
    """Where the server says that it is gone the stream breaks off; where it does not, the answer is paid for, and stored whole."""
    gone = asyncio.Event()

    async def model():
        yield "first "
        await gone.wait()
        yield "last"

    async def stream(websocket: WebSocket) -> None:
        conversation = await get_conversation(websocket)
        await websocket.accept()
        async with conversation.turn():
            conversation.append(Message.user("q"))
            async for token in conversation.record(model()):
                await websocket.send_text(token)

    async with world.serve(app_of(stream)).socket(tells_who_is_gone=tells) as socket:
        assert await socket.hear() == "first "
        socket.hang_up()
        gone.set()
        await socket.over()
    assert await world.texts() == ["user: q", "assistant: first last"]
    assert await world.states() == ["interrupted" if tells else "complete"]


async def test_a_handler_that_finishes_although_the_client_left_has_a_whole_turn(world):
    """As a plain handler over HTTP."""
    inside, goes_on = asyncio.Event(), asyncio.Event()
    async with world.serve(app_of(stuck_in_a_turn(inside, goes_on))).socket() as socket:
        socket.say("q")
        await inside.wait()
        socket.hang_up()
        goes_on.set()
        await socket.over()
    assert (await world.texts(), await world.states()) == (["user: q", "assistant: late"], ["complete"])


async def test_a_cancelled_turn_keeps_what_was_appended(world):
    """A server that shuts down, a stop button."""
    inside = asyncio.Event()

    async def waits(websocket: WebSocket) -> None:
        conversation = await get_conversation(websocket)
        await websocket.accept()
        async with conversation.turn():
            conversation.append(Message.user("q"))
            inside.set()
            await asyncio.Event().wait()

    async with world.serve(app_of(waits)).socket() as socket:
        await inside.wait()
        socket.cancel()
        await socket.over()
    assert isinstance(socket.raised, asyncio.CancelledError)
    assert (await world.texts(), await world.states()) == (["user: q"], ["interrupted"])


async def test_a_store_that_fails_at_the_end_of_a_cancelled_turn_does_not_hide_the_cancellation(memory_world):
    """A task that was cancelled has to end as cancelled, or its canceller waits for ever."""
    inside = asyncio.Event()

    async def waits(websocket: WebSocket) -> None:
        conversation = await get_conversation(websocket)
        await websocket.accept()
        async with conversation.turn():
            conversation.append(Message.user("q"))
            inside.set()
            await asyncio.Event().wait()

    async with memory_world.serve(app_of(waits)).socket() as socket:
        await inside.wait()
        memory_world.store.fail("append")
        socket.cancel()
        await socket.over()
    assert isinstance(socket.raised, asyncio.CancelledError)


async def test_a_shutdown_waits_for_the_turn_of_a_socket_and_not_for_the_socket(memory_world):
    """A server drops its sockets and ends: the turn at work is stored before the app closes its pools; idle sockets hold nobody up."""
    inside, goes_on = asyncio.Event(), asyncio.Event()
    handlers = {"/ws": stuck_in_a_turn(inside, goes_on), "/off": chat}
    app = Starlette(routes=[WebSocketRoute(path, handler) for path, handler in handlers.items()])
    client = memory_world.serve(app)
    events: asyncio.Queue = asyncio.Queue()
    sent: list = []

    async def tell(event) -> None:
        sent.append((event["type"], await memory_world.states()))

    events.put_nowait({"type": "lifespan.startup"})
    server = asyncio.create_task(client.app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, events.get, tell))
    async with client.socket("/off") as idle, client.socket() as socket:
        await idle.ask("hello")
        socket.say("q")
        await inside.wait()
        events.put_nowait({"type": "lifespan.shutdown"})
        await asyncio.sleep(0.1)
        assert [kind for kind, _ in sent] == ["lifespan.startup.complete"]
        goes_on.set()
        await asyncio.wait_for(server, AT_ONCE)
        assert sent[-1] == ("lifespan.shutdown.complete", ["complete", "complete"])


# Who and which


async def test_a_visitor_s_cookie_is_set_by_the_handshake_and_works_for_requests(world):
    """Touched before accept: the same visitor by socket and by post, and on the next socket."""

    async def both(scope, receive, send):
        if scope["type"] == "websocket":
            await app_of(chat)(scope, receive, send)
        else:
            conversation = await get_conversation(scope)
            await plain(send, "|".join(message.text for message in conversation.messages))

    client = world.serve(both)
    async with client.socket(user=None) as socket:
        assert socket.handshake.header("convmem-identity") == "new"
        assert f"{COOKIE}=v1." in (socket.handshake.header("set-cookie") or "")
        assert socket.handshake.header("conversation-revision")
        await socket.ask("hi")
    assert (await client.get(user=None)).text == "hi|re hi"
    async with client.socket(user=None) as socket:
        assert socket.handshake.all("set-cookie") == []
        assert await socket.ask("again") == '["hi","re hi","again"]'


async def test_a_secure_cookie_is_set_over_wss(world):
    """`auto` follows the scheme of the handshake."""
    async with world.serve(app_of(chat)).socket(user=None, scheme="wss") as socket:
        assert "Secure" in (socket.handshake.header("set-cookie") or "")
    async with world.serve(app_of(chat)).socket(user=None) as socket:
        assert "Secure" not in (socket.handshake.header("set-cookie") or "")


async def test_a_visitor_first_taken_after_accept_is_too_late(world):
    """No header can carry the cookie any more; the error has the lines to write, and nobody is made up."""

    async def late(websocket: WebSocket) -> None:
        await websocket.accept()
        with pytest.raises(VisitorTooLate, match=r"get_conversation\(websocket\), then await websocket\.accept\(\)"):
            await get_conversation(websocket)
        await websocket.send_text("said")

    async with world.serve(app_of(late)).socket(user=None) as socket:
        assert await socket.hear() == "said"
        assert socket.handshake.headers == []
    assert "append" not in world.store.calls


async def test_a_visitor_whose_cookie_the_server_would_drop_is_refused(memory_world, monkeypatch):
    """Granian accepts without headers: each socket would be somebody new, and no one would say so. Who is known already is served."""
    client = memory_world.serve(app_of(chat))
    async with client.socket(user=None, headers={"convmem-visitor": "new"}) as socket:
        token = socket.handshake.header("convmem-visitor") or ""
    monkeypatch.setitem(sys.modules, "granian", types.ModuleType("granian"))
    async with client.socket(user=None) as socket:
        assert (socket.handshake.status, socket.handshake.code) == (500, "cookie_not_sent")
        assert "one request" in socket.handshake.text
        assert socket.handshake.all("set-cookie") == []
    async with client.socket(user=None, headers={"convmem-visitor": token}) as socket:
        assert await socket.ask("hi") == '["hi"]'
    async with client.socket() as socket:
        assert socket.accepted


async def test_a_known_owner_may_be_taken_after_accept(world):
    """There is no cookie to set."""

    async def late(websocket: WebSocket) -> None:
        await websocket.accept()
        async with current_conversation().turn():
            current_conversation().append(Message.user("q"))
        await websocket.send_text("said")

    async with world.serve(app_of(late)).socket() as socket:
        assert await socket.hear() == "said"
    assert await world.texts() == ["user: q"]


async def test_a_client_without_cookies_gets_its_token_in_the_header(world):
    """A mobile app sends `Convmem-Visitor: new`, then the token, on sockets and requests alike."""
    client = world.serve(app_of(chat))
    async with client.socket(user=None, headers={"convmem-visitor": "new"}) as socket:
        token = socket.handshake.header("convmem-visitor")
        assert token
        assert not socket.handshake.all("set-cookie")
        await socket.ask("hi")
    async with client.socket(user=None, headers={"convmem-visitor": token}) as socket:
        assert await socket.ask("again") == '["hi","re hi","again"]'


async def test_two_users_on_two_sockets_never_meet(world):
    """The owner is part of the address."""
    client = world.serve(app_of(chat))
    async with client.socket() as ada, client.socket(user="bob") as bob:
        await asyncio.gather(ada.ask("hers"), bob.ask("his"))
    assert (await world.texts(), await world.texts(BOB)) == (["user: hers", "assistant: re hers"], ["user: his", "assistant: re his"])


async def test_a_socket_names_its_conversation_in_the_query(world):
    """Browsers cannot set headers on a WebSocket."""
    world.keys.append(SessionKey.for_user("ada", "plans"))
    client = world.serve(app_of(chat), settings=quick(session_from="header,query:chat"))
    async with client.socket(query="chat=plans") as socket:
        await socket.ask("hi")
    assert await world.texts(SessionKey.for_user("ada", "plans")) == ["user: hi", "assistant: re hi"]
    assert await world.texts() == []


async def test_a_page_of_ours_may_name_a_conversation_on_its_first_socket(memory_world):
    """Not every browser sends `Sec-Fetch-Site` there, so its Origin says that it is a browser on our own site."""
    client = memory_world.serve(app_of(chat), settings=quick(session_from="query:chat"))
    async with client.socket(user=None, query="chat=plans", headers={**HOST, "origin": "http://chat.example"}) as socket:
        assert await socket.ask("hi") == '["hi"]'
    client.cookies.clear()
    async with client.socket(user=None, query="chat=plans", headers=HOST) as socket:
        assert (socket.handshake.status, socket.handshake.code) == (400, "session_id_not_trusted")


@pytest.mark.parametrize(("offers", "status"), [({"websocket.http.response": {}}, 400), ({}, 403), (None, 403)])
async def test_an_unusable_identity_refuses_the_handshake(world, offers, status):
    """With the whole problem document where the server can send one, else with the server's own 403."""
    client = world.serve(app_of(chat), settings=quick(session_from="query:chat"))
    async with client.socket(query="chat=no%20way", extensions=offers) as socket:
        assert not socket.accepted
        assert socket.handshake.status == status
    assert socket.raised is None
    assert socket.handshake.code == ("invalid_identity" if status == 400 else "")
    assert socket.code == (0 if status == 400 else 1008)


async def test_a_socket_off_the_paths_passes_untouched(memory_world):
    """And whoever asks there is told the line to change."""
    seen = []

    async def asks(websocket: WebSocket) -> None:
        seen.append(websocket.headers.get("origin"))
        await websocket.accept()
        with pytest.raises(NoConversation, match=r"covers /ws; add it to paths="):
            await get_conversation(websocket)
        await websocket.send_text("said")

    async with memory_world.serve(app_of(asks), paths=["/ws"]).socket("/off", headers={"origin": "https://evil.example"}) as socket:
        assert await socket.hear() == "said"
        assert socket.handshake.headers == []
    assert memory_world.store.calls == []


async def test_no_header_of_a_refusal_comes_twice(memory_world):
    """A worker of granian 2.8 dies of two fields of one name, and any page could bring that about."""

    async def denies(websocket: WebSocket) -> None:
        await get_conversation(websocket)
        await websocket.send_denial_response(Response("no", 403, {"Vary": "Accept", "Cache-Control": "max-age=0"}))

    for app in (chat, denies):
        async with memory_world.serve(app_of(app)).socket(headers={"origin": "https://evil.example"} if app is chat else None) as socket:
            assert socket.handshake.status == 403
            names = [name for name, _ in socket.handshake.headers]
            assert len(set(names)) == len(names) > 1
            assert "no-store" in (socket.handshake.header("cache-control") or "")
            assert (socket.handshake.header("vary") == "Accept, Cookie, Convmem-Visitor, X-Session-ID") == (app is denies)


async def test_a_handler_that_takes_no_conversation_costs_no_cookie_and_may_be_opened_from_anywhere(world):
    """A public ticker beside a chat."""

    async def ticker(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text("tick")

    async with world.serve(app_of(ticker)).socket(user=None, headers={"origin": "https://other.example", "host": "a.example"}) as socket:
        assert await socket.hear() == "tick"
        assert socket.handshake.headers == []


async def test_deferred_loading_is_for_who_signs_in_on_the_socket(world):
    """The first message brings the token; the app says who it is, and which conversation each message is about."""
    world.keys.append(SessionKey.for_user("ada", "plans"))

    async def signs_in(websocket: WebSocket) -> None:
        conversation = await get_conversation(websocket)
        await websocket.accept()
        owner = await websocket.receive_text()
        for session_id in (None, "plans", None):
            await conversation.load(owner=owner, session_id=session_id)
            async with conversation.turn():
                with pytest.raises(TurnClosed, match="call load"):
                    await conversation.load(owner=owner)
                conversation.append(Message.user(f"to {conversation.session_id}"))
        await websocket.send_json([message.text for message in conversation.messages])

    async with world.serve(app_of(signs_in), load="deferred", resolvers=[]).socket(user=None) as socket:
        assert world.store.calls == []
        assert await socket.ask("user:ada") == '["to default","to default"]'
    assert await world.texts(SessionKey.for_user("ada", "plans")) == ["user: to plans"]


async def test_ids_that_were_not_handed_out_are_unknown_on_a_socket_too(world):
    """`CLIENT_IDS=issued`: the handshake is a 404, and no turn begins a conversation under such an id."""
    client = world.serve(app_of(chat), settings=quick(session_from="query:chat", client_ids="issued"))
    async with client.socket(query="chat=mine") as socket:
        assert (socket.handshake.status, socket.handshake.code) == (404, "unknown_conversation")
    mine = SessionKey.for_user("ada", "mine")
    world.keys.append(mine)
    await world.put(Message.user("from before the setting"), key=mine)
    async with client.socket(query="chat=mine") as socket:
        assert await socket.ask("hi") == '["from before the setting","hi"]'
        await world.inner.delete(mine)
        socket.say("after the delete")
        assert await socket.hear() is None
        assert (socket.code, socket.reason) == (1008, "unknown_conversation")
    assert await world.texts(mine) == []


# Origins


@pytest.mark.parametrize(
    ("headers", "scheme"),
    [
        ({}, "ws"),
        ({"origin": "http://chat.example"}, "ws"),
        ({"origin": "https://chat.example"}, "ws"),  # a proxy ended TLS
        ({"origin": "https://chat.example"}, "wss"),
        ({"origin": "https://chat.example", "host": "CHAT.example:443"}, "wss"),
        ({"origin": "https://chat.example:8443", "host": "chat.example:8443"}, "wss"),
        ({"origin": "http://[::1]:8000", "host": "[::1]:8000"}, "ws"),
        ({"origin": "https://chat.example", "host": "10.0.0.7:8000", "sec-fetch-site": "same-origin"}, "ws"),  # a proxy changed Host
        ({"origin": "https://app.example", "sec-fetch-site": "same-site"}, "ws"),  # allowed
    ],
)
async def test_our_own_pages_and_those_allowed_open_sockets(memory_world, headers, scheme):
    """And whatever is no browser, which sends no Origin."""
    client = memory_world.serve(app_of(chat), settings=quick(websocket_origins="https://app.example/"))
    async with client.socket(headers={**HOST, **headers}, scheme=scheme) as socket:
        assert socket.accepted


@pytest.mark.parametrize(
    ("headers", "scheme"),
    [
        ({"origin": "https://evil.example"}, "wss"),
        ({"origin": "https://sub.chat.example", "sec-fetch-site": "same-site"}, "wss"),
        ({"origin": "https://chat.example.evil.example"}, "wss"),
        ({"origin": "https://chat.example:8443"}, "wss"),
        ({"origin": "http://chat.example"}, "wss"),
        ({"origin": "https://chat.example@evil.example"}, "wss"),
        ({"origin": "https://evil.example/chat.example"}, "wss"),
        ({"origin": "https://evil.example#chat.example"}, "wss"),
        ({"origin": "null"}, "wss"),
        ({"origin": ""}, "wss"),
        ({"origin": "file://"}, "wss"),
        ({"origin": "https://\xa0chat.example"}, "wss"),
        ({"origin": "https://evil.example", "host": ""}, "wss"),
        ({"origin": "https://evil.example", "sec-fetch-site": "cross-site"}, "wss"),
        ({"origin": "https://evil.example", "sec-fetch-site": "none"}, "wss"),
    ],
)
async def test_a_page_of_another_origin_opens_no_socket(memory_world, headers, scheme):
    """The browser sends the cookies of its user along, and nothing else keeps that page from reading the answers (CWE-1385)."""
    client = memory_world.serve(app_of(chat), settings=quick(websocket_origins="https://app.example"))
    async with client.socket(headers={**HOST, **headers}, scheme=scheme) as socket:
        assert (socket.handshake.status, socket.handshake.code) == (403, "foreign_origin")
        assert "CONVMEM_WEBSOCKET_ORIGINS" in socket.handshake.text
        assert socket.handshake.all("set-cookie") == []
        assert "evil" not in socket.handshake.text
    assert "load" not in memory_world.store.calls


async def test_two_origins_are_none(memory_world):
    """Proxies disagree on which counts."""
    client = memory_world.serve(app_of(chat))
    socket = client.socket(headers=HOST)
    socket.scope["headers"] += [(b"origin", b"http://chat.example"), (b"origin", b"https://evil.example")]
    async with socket:
        assert socket.handshake.code == "foreign_origin"


async def test_a_foreign_page_is_refused_after_accept_and_under_deferred_loading_too(memory_world):
    """Whoever the app says it is: its own session cookie came along as well."""

    async def late(websocket: WebSocket) -> None:
        await websocket.accept()
        await current_conversation().load(owner="user:ada")
        await websocket.send_text("never")

    client = memory_world.serve(app_of(late), load="deferred")
    async with client.socket(headers={**HOST, "origin": "https://evil.example"}) as socket:
        assert await socket.hear() is None
        assert (socket.code, socket.reason) == (1008, "foreign_origin")
    eager = memory_world.serve(app_of(chat))
    async with eager.socket(headers={**HOST, "origin": "https://evil.example"}) as socket:
        assert socket.handshake.status == 403


async def test_no_handler_gets_round_a_foreign_origin(memory_world):
    """A turn does not forget it, as it forgets a store that was down."""

    async def insists(websocket: WebSocket) -> None:
        await websocket.accept()
        conversation = websocket.state.conversation
        for _ in range(2):
            with pytest.raises(ForeignOrigin):
                async with conversation.turn():
                    pass
            with pytest.raises(ForeignOrigin):
                _ = conversation.messages
        await websocket.send_text("said")

    async with memory_world.serve(app_of(insists)).socket(headers={**HOST, "origin": "https://evil.example"}) as socket:
        assert await socket.hear() == "said"


# Stores that fail, histories that are lost


async def test_a_store_that_was_down_at_the_handshake_does_not_end_the_socket(world):
    """Reading is an error until a turn has loaded."""

    async def patient(websocket: WebSocket) -> None:
        await websocket.accept()
        conversation = websocket.state.conversation
        with pytest.raises(StoreUnavailable):
            _ = conversation.messages
        world.store.mend()
        async with conversation.turn():
            conversation.append(Message.user("q"))
        await websocket.send_text("stored")

    world.store.fail("load")
    async with world.serve(app_of(patient)).socket() as socket:
        assert await socket.hear() == "stored"
    assert await world.texts() == ["user: q"]


async def test_a_store_that_is_down_refuses_the_handshake_of_who_takes_the_conversation(world):
    """503 with Retry-After, as for a request; a socket that is open already is closed with 1013, try again later."""
    world.store.fail("load", times=1)
    async with world.serve(app_of(chat)).socket() as socket:
        assert (socket.handshake.status, socket.handshake.code) == (503, "store_unavailable")
        assert socket.handshake.header("retry-after") == "2"
    async with world.serve(app_of(chat)).socket() as socket:
        world.store.fail("load", times=1)
        socket.say("hi")
        assert await socket.hear() is None
        assert (socket.code, socket.reason) == (1013, "store_unavailable")
    assert socket.raised is None


async def test_degrade_goes_on_without_memory_and_finds_it_again(world):
    """Each turn tries anew; the handler can tell."""
    told = []

    async def degrades(websocket: WebSocket) -> None:
        conversation = await get_conversation(websocket)
        await websocket.accept()
        for _ in range(4):
            text = await websocket.receive_text()
            async with conversation.turn():
                conversation.append(Message.user(text))
                if text == "breaks":
                    world.store.fail("append")
            told.append((text, conversation.degraded))
            await websocket.send_text("ok")

    world.store.fail("load", times=2)
    async with world.serve(app_of(degrades), settings=quick(on_store_error="degrade")).socket() as socket:
        assert socket.handshake.header("convmem-degraded") == "true"
        await socket.ask("down")
        await socket.ask("up")
        await socket.ask("breaks")
        world.store.mend()
        await socket.ask("up again")
    assert told == [("down", True), ("up", False), ("breaks", True), ("up again", False)]
    assert await world.texts() == ["user: up", "user: up again"]


async def test_a_lost_history_is_said_once_and_the_next_turn_begins_anew(memory_world):
    """The store was emptied between two turns of one socket."""
    heard = []

    async def tells(websocket: WebSocket) -> None:
        conversation = await get_conversation(websocket)
        await websocket.accept()
        while True:
            text = await websocket.receive_text()
            try:
                async with conversation.turn():
                    conversation.append(Message.user(text))
            except HistoryLost:
                heard.append("lost")
            await websocket.send_text("ok")

    async with memory_world.serve(app_of(tells)).socket() as socket:
        await socket.ask("one")
        memory_world.inner = memory_world.store.store = MemoryStore()
        await socket.ask("two")
        await socket.ask("three")
    assert heard == ["lost"]
    assert await memory_world.texts() == ["user: three"]


async def test_a_revision_of_the_handshake_is_evidence(world):
    """A client that reconnects and says what it saw is told that it is gone, once."""
    client = world.serve(app_of(chat))
    claimed = {"conversation-revision": "lostepoch.3.entry"}
    async with client.socket(headers=claimed) as socket:
        assert (socket.handshake.status, socket.handshake.code) == (409, "history_lost")
    async with client.socket() as socket:
        assert await socket.ask("anew") == '["anew"]'


# What else is inside a socket


async def test_open_conversation_inside_a_socket_s_turn_is_the_same_turn_s_rule(world):
    """The same conversation is refused at once, another one works."""
    world.keys.append(BOB)

    async def opens(websocket: WebSocket) -> None:
        conversation = await get_conversation(websocket)
        await websocket.accept()
        async with conversation.turn():
            conversation.append(Message.user("q"))
            with pytest.raises(ConversationBusy):
                async with open_conversation(conversation.key):
                    pass
            async with open_conversation(BOB) as other:
                other.append(Message.user("for bob"))
        await websocket.send_text("done")

    async with world.serve(app_of(opens)).socket() as socket:
        assert await socket.hear() == "done"
    assert await world.texts(BOB) == ["user: for bob"]


async def test_a_configuration_error_refuses_sockets_as_it_does_requests():
    """On a server without lifespan."""
    middleware = ConversationMiddleware(app_of(chat), settings=Settings({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}))
    async with Client(middleware).socket() as socket:
        assert (socket.handshake.status, socket.handshake.code) == (503, "configuration")
    async with Client(middleware).socket(extensions=None) as socket:
        assert (socket.handshake.status, socket.code) == (403, 1013)


async def test_a_framework_that_makes_a_failure_of_our_error_is_corrected(world):
    """Litestar closes with 4500 itself, before and after it has accepted; an app that closes with a code of its own is left alone."""

    @litestar.websocket("/ws")
    async def chat(socket: litestar.WebSocket) -> None:
        conversation = await get_conversation(socket)  # type: ignore[arg-type]
        await socket.accept()
        conversation.append(Message.user("outside"))

    async def polite(websocket: WebSocket) -> None:
        with suppress(StoreUnavailable):
            await get_conversation(websocket)
        await websocket.close(1001)

    client = world.serve(litestar.Litestar([chat]))
    async with client.socket() as socket:
        assert await socket.hear() is None
        assert (socket.code, socket.reason) == (1011, "turn_closed")
    world.store.fail("load")
    async with client.socket() as socket:
        assert (socket.handshake.status, socket.handshake.code) == (503, "store_unavailable")
    async with world.serve(app_of(polite)).socket() as socket:
        assert (socket.handshake.status, socket.code) == (403, 1001)


async def test_an_error_of_the_app_s_own_reaches_the_server(memory_world):
    """Which logs it and closes the socket; we close nothing that is not about us."""

    async def breaks(websocket: WebSocket) -> None:
        await get_conversation(websocket)
        raise ZeroDivisionError

    async with memory_world.serve(app_of(breaks)).socket() as socket:
        pass
    assert isinstance(socket.raised, ZeroDivisionError)
    assert socket.handshake.status == 0


async def test_nothing_is_sent_to_a_client_that_is_gone_or_closed(memory_world):
    """Servers raise on that."""

    async def closes_and_raises(websocket: WebSocket) -> None:
        conversation = await get_conversation(websocket)
        await websocket.accept()
        if await websocket.receive_text() == "close":
            await websocket.close()
        else:
            with suppress(WebSocketDisconnect):
                await websocket.receive_text()
        conversation.append(Message.user("outside"))

    async def closes_with_1011(websocket: WebSocket) -> None:
        await get_conversation(websocket)
        await websocket.close(1011, "mine")

    async with memory_world.serve(app_of(closes_with_1011)).socket() as socket:
        assert (socket.code, socket.reason, socket.raised) == (1011, "mine", None)
    for text, code in (("close", 1000), ("stay", 0)):
        async with memory_world.serve(app_of(closes_and_raises)).socket() as socket:
            socket.say(text)
            if code:
                assert await socket.hear() is None
            await socket.leave()
        assert (socket.raised, socket.code) == (None, code)


async def test_resolvers_of_the_app_s_own_see_the_websocket_scope(memory_world):
    """As a subprotocol or a ticket in the query, where a browser cannot send a header."""

    def ticket(scope):
        return scope["query_string"].decode().removeprefix("ticket=") or None

    client = memory_world.serve(app_of(chat), resolvers=[from_callable(ticket)])
    async with client.socket(query="ticket=ada", user=None) as socket:
        await socket.ask("hi")
    assert await memory_world.texts() == ["user: hi", "assistant: re hi"]
