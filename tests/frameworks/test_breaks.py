"""What breaks where, as it is with the versions installed: when one of these fails, a framework has mended it, and its page can say so."""

import asyncio
import functools
from typing import Any

import falcon
import falcon.asgi
import httpx
import pytest
from a2wsgi import WSGIMiddleware
from asgiref.wsgi import WsgiToAsgi
from blacksheep import Application, Request, Router
from flask import Flask
from quart import Quart, request as quart_request, stream_with_context
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from convmem import Message, NoConversation, current_conversation, get_conversation
from tests import asgi_client
from tests.asgi_client import AT_ONCE, Client
from tests.faults.waiting import until
from tests.frameworks.apps import serve
from tests.frameworks.catalogue import FRAMEWORKS
from tests.servers.processes import PATIENCE

memory_world = asgi_client.memory_world
BY_NAME = {framework.name: framework for framework in FRAMEWORKS}


def owner_here() -> str:
    """Return whose conversation the context of this code has, or what convmem says instead."""
    try:
        return current_conversation().owner
    except NoConversation as error:
        return str(error)


@pytest.mark.asyncio
async def test_falcons_threads_do_not_know_the_request(memory_world):
    """`sync_to_async` and `schedule_sync` do not take the context along; the error says so. `asyncio.to_thread` does."""
    seen: dict[str, Any] = {}
    later: list[str] = []

    class Resource:
        async def on_get(self, req, resp):
            seen["falcon"] = await falcon.sync_to_async(owner_here)
            seen["asyncio"] = await asyncio.to_thread(owner_here)
            seen["request"] = (await get_conversation(req)).owner
            resp.schedule_sync(lambda: later.append(owner_here()))

    app = falcon.asgi.App()
    app.add_route("/chat", Resource())
    assert (await memory_world.serve(app).get()).status == 200
    await until(lambda: bool(later))
    assert (seen["asyncio"], seen["request"]) == ("user:ada", "user:ada")
    for sentence in (seen["falcon"], *later):
        assert "A thread may not know its request" in sentence
        assert "asyncio.to_thread" in sentence


@pytest.mark.asyncio
async def test_a_quart_stream_has_the_conversation_and_not_the_request(memory_world):
    """Quart's `request` needs `stream_with_context`; the context of the conversation is there in any case."""
    seen: list[tuple[str, str | None]] = []

    def look():
        try:
            seen.append((owner_here(), quart_request.path))
        except RuntimeError:
            seen.append((owner_here(), None))

    async def words():
        look()
        yield "x"

    app = Quart(__name__)

    @app.get("/bare")
    async def bare():
        return words()

    @app.get("/with-context")
    async def with_context():
        return stream_with_context(words)()

    @app.get("/background")
    async def background():
        app.add_background_task(look)
        return ""

    client = Client(memory_world.serve(app).app)
    for path in ("/bare", "/with-context", "/background"):
        assert (await client.get(path)).status == 200
    await until(lambda: len(seen) == 3)
    assert seen[:2] == [("user:ada", None), ("user:ada", "/with-context")]
    assert seen[2][0] == "user:ada"


@pytest.mark.asyncio
async def test_a_blacksheep_request_loses_its_scope_after_the_answer(memory_world):
    """A task that goes on takes the conversation from the context, or is handed it."""
    seen = []
    app = Application(router=Router())

    @app.router.get("/chat")
    async def chat(request: Request):
        async def later():
            await asyncio.sleep(0.05)
            seen.append((request.scope, (await get_conversation(request)).owner))

        app.later = asyncio.create_task(later())
        return "ok"

    await app.start()
    assert (await memory_world.serve(app).get()).status == 200
    await until(lambda: bool(seen))
    await app.stop()
    assert seen == [(None, "user:ada")]


@pytest.mark.asyncio
@pytest.mark.parametrize("bridge", [functools.partial(WSGIMiddleware, workers=1), WsgiToAsgi], ids=["a2wsgi", "asgiref"])
async def test_flask_over_a_bridge_knows_its_conversation_and_streams(memory_world, bridge):
    """In the thread of the view and of the stream; neither bridge waits for the end of a stream to send its beginning."""
    order = memory_world.store.calls
    flask = Flask(__name__)

    @flask.post("/chat")
    def chat():
        conversation = current_conversation()
        conversation.append(Message.user("hi"))

        def words():
            for word in ("one", "two"):
                order.append(f"made {word}")
                yield word
            current_conversation().append(Message.assistant("one two"))

        return words()

    answer = await memory_world.serve(bridge(flask)).post()
    assert answer.text == "onetwo"
    assert await memory_world.texts() == ["user: hi", "assistant: one two"]
    assert order.index("chunk") < order.index("made two"), order
    assert order[-2:] == ["append", "end"]


@pytest.mark.asyncio
async def test_a_view_of_flask_that_waits_for_the_loop_hangs_only_itself(memory_world):
    """The view is in a thread of its own, so `run_coroutine_threadsafe(...).result()` may wait for the loop."""
    flask = Flask(__name__)

    @flask.post("/chat")
    def chat():
        conversation = current_conversation()
        conversation.append(Message.user("hi"))
        asyncio.run_coroutine_threadsafe(conversation.save(), conversation.loop).result(5)
        return "ok"

    answer = await asyncio.wait_for(memory_world.serve(WSGIMiddleware(flask)).post(), AT_ONCE)
    assert answer.text == "ok"
    assert await memory_world.states() == ["complete"]


@pytest.fixture
def env():
    """Return the environment of a page's app."""
    return {"CONVMEM_SECRET_KEY": "a secret key of thirty-two bytes"}


def test_sanic_on_daphne_answers_every_request_with_500(tmp_path, env):
    """Sanic waits for a lifespan, which daphne does not have."""
    with serve(BY_NAME["sanic"], "daphne", tmp_path, env) as process:
        assert httpx.post(f"{process.url}/chat", params={"text": "Hello"}, timeout=PATIENCE).status_code == 500
        assert "Loop can only be retrieved after the app has started" in process.log


def test_a_quart_websocket_on_daphne_is_refused(tmp_path, env):
    """Quart reads `scope["scheme"]`, which daphne leaves out for WebSockets."""
    with serve(BY_NAME["quart"], "daphne", tmp_path, env) as process:
        httpx.post(f"{process.url}/chat", params={"text": "Hello"}, timeout=PATIENCE).raise_for_status()
        with pytest.raises(InvalidStatus, match="500"), connect(f"ws://127.0.0.1:{process.port}/chat/socket"):
            pass
        assert "KeyError: 'scheme'" in process.log
