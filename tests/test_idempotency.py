"""A client may repeat a request under the same Idempotency-Key: its turn is stored once, and answered from what was stored (P6)."""

import asyncio
import contextvars
import json
import re
from datetime import timedelta

import pytest
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse

from convmem import Message, get_conversation
from convmem.idempotency import FINGERPRINTED
from convmem.stores.base import Lease
from convmem.stores.memory import MemoryStore
from tests import asgi_client
from tests.asgi_client import ADA, AT_ONCE, BOB, quick, read
from tests.test_exchange import app_of, echo, stream_of

pytestmark = pytest.mark.asyncio
world, memory_world = asgi_client.world, asgi_client.memory_world
KEY = {"idempotency-key": '"8e03978e-40d5-43dd-bc93-6894a57f9324"'}


class Model:
    """Answers with a number that goes up each time it is asked."""

    def __init__(self) -> None:
        self.asked = 0

    def answer(self) -> str:
        self.asked += 1
        return f"answer {self.asked}"

    async def stream(self):
        for word in self.answer().partition(" "):
            await asyncio.sleep(0)
            yield word


def chat_of(model: Model):
    """Return the handler of the docs: it looks whether the turn is replayed before it asks the model."""

    async def chat(request: Request):
        conversation = await get_conversation(request)
        if conversation.replayed:
            return JSONResponse([conversation.new_messages[-1].text, len(conversation.messages), conversation.total_turns])
        conversation.append(Message.user((await request.body()).decode()))
        conversation.append(Message.assistant(model.answer()))
        return JSONResponse([conversation.messages[-1].text, len(conversation.messages), conversation.total_turns])

    return chat


def naive_of(model: Model):
    """Return a handler that knows nothing of replays."""

    async def chat(request: Request):
        conversation = await get_conversation(request)
        conversation.append(Message.user((await request.body()).decode()))
        await conversation.save()
        answer = model.answer()
        conversation.append(Message.assistant(answer))
        return PlainTextResponse(answer)

    return chat


class TestReplayed:
    async def test_a_finished_turn_is_answered_from_what_was_stored(self, world):
        """No second turn, no second call of the model, no lease, and a header that says so."""
        model = Model()
        client = world.serve(app_of(chat_of(model)))
        first = await client.post(text="hi", headers=KEY)
        assert first.header("convmem-replayed") is None
        world.store.calls.clear()
        again = await client.post(text="hi", headers=KEY)
        assert (first.data, again.data) == (["answer 1", 2, 0], ["answer 1", 2, 1])
        assert (model.asked, again.header("convmem-replayed")) == (1, "true")
        assert [call for call in world.store.calls if call not in ("start", "chunk", "end")] == ["load"]
        assert await world.texts() == ["user: hi", "assistant: answer 1"]

    @pytest.mark.parametrize("window", [50, 3])
    async def test_a_turn_retried_ten_turns_later_is_still_stored_once(self, world, window):
        """Also when it is older than the window: what it stored is found, and the messages end with it, as they did then."""
        model = Model()
        client = world.serve(app_of(chat_of(model)), settings=quick(window_turns=window))
        await client.post(text="before")
        first = await client.post(text="hi", headers=KEY)
        for i in range(10):
            await client.post(text=str(i))
        head = (await world.log()).head
        again = await client.post(text="hi", headers=KEY)
        assert (again.data, model.asked) == ([*first.data[:2], 12], 12)
        assert (await world.log()).head == head

    async def test_a_handler_that_knows_nothing_of_replays_stores_nothing_twice(self, world):
        """What it appends and saves again is left out, and nothing breaks."""
        model = Model()
        client = world.serve(app_of(naive_of(model)))
        answers = [await client.post(text="hi", headers=KEY) for _ in range(3)]
        assert [answer.text for answer in answers] == ["answer 1", "answer 2", "answer 3"]
        assert await world.texts() == ["user: hi", "assistant: answer 1"]
        assert await world.states() == ["complete"]

    async def test_a_stream_is_replayed_without_asking_the_model(self, world):
        """`record` yields the stored answer; the handler is the same as ever."""
        model = Model()

        async def chat(request):
            conversation = await get_conversation(request)
            conversation.append(Message.user((await request.body()).decode()))
            return StreamingResponse(conversation.record(model.stream()))

        client = world.serve(app_of(chat))
        requests: list[tuple[str, dict[str, str]]] = [("hi", KEY), ("more", {}), ("hi", KEY)]
        first, other, again = [await client.post(text=text, headers=headers) for text, headers in requests]
        assert [first.text, other.text, again.text] == ["answer 1", "answer 2", "answer 1"]
        assert (again.whole, model.asked) == (True, 2)
        assert (await world.log()).head.turns == 2

    async def test_the_stream_that_is_not_asked_is_closed(self, memory_world):
        """A client of a model holds a connection for it."""
        closed: list[bool] = []

        class Stream:
            def __aiter__(self):
                raise AssertionError("the model is asked")

            async def aclose(self):
                closed.append(True)

        async def chat(request):
            conversation = await get_conversation(request)
            if not conversation.replayed:
                conversation.append(Message.assistant("answer"))
                return PlainTextResponse("answer")
            return StreamingResponse(conversation.record(Stream()))

        client = memory_world.serve(app_of(chat))
        assert [(await client.post(headers=KEY)).text for _ in range(2)] == ["answer", "answer"]
        assert closed == [True]

    async def test_a_stream_of_other_chunks_passes_through_and_is_not_stored_again(self, world, caplog):
        """Nobody can make a chunk of a text; the log says what to look at."""
        model = Model()

        async def chunks():
            yield {"text": model.answer()}

        async def chat(request):
            conversation = await get_conversation(request)
            conversation.append(Message.user("hi"))
            recorded = conversation.record(chunks(), text=lambda chunk: chunk["text"])
            return StreamingResponse(json.dumps(chunk) async for chunk in recorded)

        client = world.serve(app_of(chat))
        answers = [(await client.post(headers=KEY)).data["text"] for _ in range(2)]
        assert answers == ["answer 1", "answer 2"]
        assert await world.texts() == ["user: hi", "assistant: answer 1"]
        assert "conversation.replayed" in caplog.text

    async def test_a_clear_is_not_done_again(self, world):
        """Repeating "start over" must not take away what was said since."""

        async def fresh(request):
            conversation = await get_conversation(request)
            await conversation.clear()
            return JSONResponse(conversation.replayed)

        client = world.serve(app_of(fresh))
        await world.put(Message.user("old"))
        assert (await client.post(headers=KEY)).data is False
        await world.put(Message.user("new"))
        assert (await client.post(headers=KEY)).data is True
        assert await world.texts() == ["user: new"]

    async def test_what_was_cleared_since_is_replayed_as_nothing(self, world):
        """The turn ran, so it does not run again; what its owner took out of sight stays there."""
        model = Model()

        async def chat(request):
            conversation = await get_conversation(request)
            if request.url.path == "/clear":
                await conversation.clear()
                return JSONResponse("")
            if not conversation.replayed:
                conversation.append(Message.user("hi"), Message.assistant(model.answer()))
            return JSONResponse([len(conversation.new_messages), len(conversation.messages)])

        client = world.serve(app_of(chat))
        assert (await client.post(headers=KEY)).data == [2, 2]
        await client.post("/clear")
        assert (await client.post(headers=KEY)).data == [0, 0]
        assert model.asked == 1

    async def test_history_has_everything_and_in_order(self, world):
        """An export made in a replay shows the later turns where they are."""

        async def chat(request):
            conversation = await get_conversation(request)
            conversation.append(Message.user((await request.body()).decode()))
            return JSONResponse([message.text for message in await conversation.history()])

        client = world.serve(app_of(chat))
        await client.post(text="a", headers=KEY)
        await client.post(text="b")
        assert (await client.post(text="a", headers=KEY)).data == ["a", "b"]

    async def test_a_replay_waits_for_nobody(self, world):
        """The answer is there already: another turn that runs, here or elsewhere, is not in its way."""
        inside, go_on = asyncio.Event(), asyncio.Event()

        async def chat(request):
            conversation = await get_conversation(request)
            conversation.append(Message.user((await request.body()).decode()))
            if request.url.path == "/long":
                inside.set()
                await go_on.wait()
            return JSONResponse(conversation.replayed)

        client = world.serve(app_of(chat))
        await client.post(text="hi", headers=KEY)
        running = asyncio.create_task(client.post("/long"))
        await inside.wait()
        assert (await asyncio.wait_for(client.post(text="hi", headers=KEY), AT_ONCE)).data is True
        go_on.set()
        await running
        await world.inner.load(ADA, lease=Lease("another worker", timedelta(seconds=30)))
        assert (await asyncio.wait_for(client.post(text="hi", headers=KEY), AT_ONCE)).data is True
        await world.inner.release(ADA, "another worker")

    async def test_a_background_turn_after_a_replay_is_one_of_its_own(self, world):
        """It has no name that a client repeats; the handler decides by `replayed` whether to start it."""

        async def chat(request):
            conversation = await get_conversation(request)
            conversation.append(Message.user("hi"))
            response = JSONResponse(conversation.closed)

            async def later():
                async with conversation.turn():
                    conversation.append(Message.user("later"))

            response.background = None if conversation.replayed else BackgroundTask(later)
            return response

        client = world.serve(app_of(chat))
        assert [(await client.post(headers=KEY)).data for _ in range(2)] == [False, False]
        assert await world.texts() == ["user: hi", "user: later"]


class TestWhileItRuns:
    @pytest.mark.parametrize("shared", ["one worker", "two workers"])
    @pytest.mark.parametrize("policy", ["wait", "reject"])
    async def test_a_retry_while_the_first_runs_is_a_409_at_once(self, world, shared, policy):
        """Whatever the policy: a client that waits twice for one answer pays for nothing but the wait."""
        inside, go_on = asyncio.Event(), asyncio.Event()

        async def chat(request):
            conversation = await get_conversation(request)
            conversation.append(Message.user("hi"))
            inside.set()
            await go_on.wait()
            return JSONResponse(conversation.replayed)

        first = world.serve(app_of(chat), settings=quick(concurrency=policy))
        second = first if shared == "one worker" else world.serve(app_of(chat), settings=quick(concurrency=policy))
        running = asyncio.create_task(first.post(headers=KEY))
        await inside.wait()
        answer = await asyncio.wait_for(second.post(headers=KEY), AT_ONCE)
        assert (answer.status, answer.code, answer.data["same_turn"], answer.data["own_turn"]) == (409, "conversation_busy", True, False)
        assert int(answer.header("retry-after")) >= 1
        go_on.set()
        assert (await running).data is False
        assert (await second.post(headers=KEY)).data is True

    async def test_a_retry_of_one_that_still_waits_for_its_turn_is_told_the_same(self, memory_world):
        """Otherwise both would be let in, one after the other."""
        inside, go_on = asyncio.Event(), asyncio.Event()

        async def chat(request):
            (await get_conversation(request)).append(Message.user((await request.body()).decode()))
            inside.set()
            await go_on.wait()
            return JSONResponse("ok")

        client = memory_world.serve(app_of(chat))
        others = asyncio.create_task(client.post(text="other"))
        await inside.wait()
        waiting = asyncio.create_task(client.post(text="hi", headers=KEY))
        await asyncio.sleep(0.05)
        assert (await asyncio.wait_for(client.post(text="hi", headers=KEY), AT_ONCE)).data["same_turn"] is True
        go_on.set()
        assert [(await others).status, (await waiting).status] == [200, 200]
        assert await memory_world.texts() == ["user: other", "user: hi"]

    async def test_parallel_duplicates_over_several_workers_are_stored_once(self, world):
        """Ten of the same at once: one runs, the rest are told to come back or given its answer."""
        model = Model()

        async def chat(request):
            conversation = await get_conversation(request)
            if conversation.replayed:
                return PlainTextResponse(conversation.new_messages[-1].text)
            conversation.append(Message.user("hi"))
            await conversation.save()
            await asyncio.sleep(0.02)
            answer = model.answer()
            conversation.append(Message.assistant(answer))
            return PlainTextResponse(answer)

        others = [world.store if isinstance(world.inner, MemoryStore) else type(world.inner)(world.inner.path) for _ in range(3)]
        workers = [world.serve(app_of(chat), store=store) for store in others]
        answers = await asyncio.gather(*(workers[i % 3].post(headers=KEY) for i in range(10)))
        assert {answer.status for answer in answers} <= {200, 409}
        assert {answer.text for answer in answers if answer.status == 200} == {"answer 1"}
        assert all(answer.data["same_turn"] for answer in answers if answer.status == 409)
        assert await world.texts() == ["user: hi", "assistant: answer 1"]
        for store in others:
            if store is not world.store:
                await store.aclose()

    async def test_a_zombie_whose_retry_has_won_stores_nothing(self, world):
        """It slept through its lease while a retry completed the turn: the late write finds it complete, and that is the end of it."""
        asked = 0

        async def chat(request):
            nonlocal asked
            asked += 1
            conversation = await get_conversation(request)
            conversation.append(Message.user("hi"), Message.assistant(f"answer {asked}"))
            if asked == 1:
                await world.inner.release(ADA, (await world.log()).holder.token)
                retry = asyncio.create_task(elsewhere.post(headers=KEY), context=contextvars.Context())
                assert (await retry).status == 200
            return JSONResponse("ok")

        elsewhere = world.serve(app_of(chat))
        assert (await world.serve(app_of(chat)).post(headers=KEY)).status == 200
        assert await world.texts() == ["user: hi", "assistant: answer 2"]


class TestInterrupted:
    async def test_an_interrupted_turn_is_superseded_by_its_retry(self, world):
        """The half answer goes out of sight with its question; a message sent anew would have been a new turn."""
        breaks = True

        async def chat(request):
            conversation = await get_conversation(request)
            assert not conversation.replayed
            conversation.append(Message.user("hi"))

            async def model():
                yield "half"
                if breaks:
                    raise ConnectionError
                yield " and half"

            return StreamingResponse(conversation.record(model()))

        client = world.serve(app_of(chat))
        assert not (await client.post(headers=KEY)).whole
        assert await world.states() == ["interrupted"]
        await world.put(Message.user("between"))
        breaks = False
        assert (await client.post(headers=KEY)).text == "half and half"
        assert await world.texts() == ["user: between", "user: hi", "assistant: half and half"]
        assert (await world.log()).head.turns == 2

    async def test_a_turn_that_stored_nothing_is_run_again(self, world):
        """An error before anything was stored leaves no trace, so that a retry is the first try."""
        broken = True

        async def chat(request):
            (await get_conversation(request)).append(Message.user("hi"))
            return JSONResponse("broken" if broken else "ok", 500 if broken else 200)

        client = world.serve(app_of(chat))
        assert (await client.post(headers=KEY)).status == 500
        broken = False
        assert (await client.post(headers=KEY)).data == "ok"
        assert await world.texts() == ["user: hi"]

    async def test_a_commit_whose_answer_was_lost_is_found_by_the_retry(self, world):
        """The client got a 503, the turn is stored: the retry is a replay and not a second turn."""
        model = Model()
        client = world.serve(app_of(chat_of(model)))
        world.store.lose_answer("append", times=4)
        assert (await client.post(text="hi", headers=KEY)).status == 503
        world.store.mend()
        assert (await client.post(text="hi", headers=KEY)).data[0] == "answer 1"
        assert await world.texts() == ["user: hi", "assistant: answer 1"]

    async def test_a_key_lives_as_long_as_its_conversation(self, world):
        """What was deleted is unknown, and its keys with it."""
        model = Model()
        client = world.serve(app_of(chat_of(model)))
        await client.post(text="hi", headers=KEY)
        await world.inner.delete(ADA)
        assert (await client.post(text="hi", headers=KEY)).data[0] == "answer 2"


class TestAnotherRequest:
    @pytest.mark.parametrize(
        ("path", "query", "text"),
        [("/chat", "", "other"), ("/chat", "", ""), ("/chat", "", "hi "), ("/chat", "a=1", "hi"), ("/other", "", "hi")],
    )
    async def test_the_same_key_with_another_request_is_a_422(self, world, path, query, text):
        """A key that is used twice by mistake would answer the second message with the first one's answer."""
        model = Model()
        client = world.serve(app_of(chat_of(model)))
        await client.post(text="hi", headers=KEY)
        answer = await client.post(path, text, query=query, headers=KEY)
        assert (answer.status, answer.code, model.asked) == (422, "idempotency_key_reused", 1)
        assert answer.data["type"] == "urn:convmem:problem:idempotency_key_reused"
        assert (await client.post(text="hi", headers=KEY)).status == 200

    @pytest.mark.parametrize("state", ["complete long ago", "interrupted", "interrupted long ago", "running here", "running elsewhere"])
    async def test_whatever_became_of_the_first(self, world, state):
        """Complete or not, here or elsewhere, within the window or not: another body is another message."""
        inside, go_on = asyncio.Event(), asyncio.Event()

        async def chat(request):
            conversation = await get_conversation(request)
            conversation.append(Message.user((await request.body()).decode()))
            await conversation.save()
            if request.url.path == "/later":
                return JSONResponse("ok")
            if "running" in state:
                inside.set()
                await go_on.wait()
            return JSONResponse("ok", 500 if "interrupted" in state else 200)

        client = world.serve(app_of(chat), settings=quick(window_turns=2))
        elsewhere = world.serve(app_of(chat), settings=quick(window_turns=2))
        first = asyncio.create_task(client.post(text="hi", headers=KEY))
        if "running" in state:
            await inside.wait()
        else:
            await first
        if "long ago" in state:
            for i in range(4):
                await client.post("/later", str(i))
        answer = await asyncio.wait_for((elsewhere if state == "running elsewhere" else client).post(text="other", headers=KEY), AT_ONCE)
        assert (answer.status, answer.code) == (422, "idempotency_key_reused")
        go_on.set()
        await first
        assert "other" not in str(await world.texts())

    async def test_the_same_key_of_another_owner_or_conversation_is_another_key(self, world):
        """Keys are looked up within a conversation: nobody can find out what others have sent."""
        model = Model()
        client = world.serve(app_of(chat_of(model)))
        for user, headers in (("ada", {}), ("bob", {}), ("ada", {"x-session-id": "plans"})):
            answer = await client.post(text=f"{user}{headers}", user=user, headers={**KEY, **headers})
            assert answer.status == 200
        assert model.asked == 3
        assert await world.texts(BOB) == ["user: bob{}", "assistant: answer 2"]

    async def test_the_boundary_of_a_form_does_not_count(self, memory_world):
        """Browsers make one for each try; a form sent again is the same request."""

        def form(boundary: str, text: str) -> tuple[str, dict[str, str]]:
            body = f'--{boundary}\r\nContent-Disposition: form-data; name="text"\r\n\r\n{text}\r\n--{boundary}--\r\n'
            return body, {**KEY, "content-type": f"multipart/form-data; boundary={boundary}"}

        model = Model()
        client = memory_world.serve(app_of(chat_of(model)))
        statuses = []
        for boundary, text in (("----one", "hi"), ("----other", "hi"), ("----other", "ho")):
            body, headers = form(boundary, text)
            statuses.append((await client.post(text=body, headers=headers)).status)
        assert (statuses, model.asked) == ([200, 200, 422], 1)

    @pytest.mark.parametrize(("changed", "status"), [("length", 422), ("beginning", 422), ("behind the bound", 200)])
    async def test_of_a_large_body_the_beginning_and_the_length_count(self, memory_world, changed, status):
        """Bounded: the middleware holds no more of a body than this, and says where it stops looking."""
        model = Model()
        client = memory_world.serve(app_of(chat_of(model)))
        body = "a" * (3 * FINGERPRINTED)
        other = {"length": body + "a", "beginning": "b" + body[1:], "behind the bound": body[:-1] + "b"}[changed]
        for text, expected in ((body, 200), (other, status)):
            answer = await client.post(text=text, headers={**KEY, "content-length": str(len(text))})
            assert answer.status == expected


class TestTheBody:
    async def test_the_app_gets_the_events_the_server_sent(self, memory_world):
        """Read ahead, handed on: pieces, their borders and their end are as they were, and of a large body the rest flows by itself."""
        sent = [{"type": "http.request", "body": bytes([i]) * 30_000, "more_body": i < 4} for i in range(5)]
        given: list[object] = []
        waiting = list(sent)
        held = 0

        async def app(scope, receive, send):
            nonlocal held
            conversation = await get_conversation(scope)
            held = len(sent) - len(waiting)
            conversation.append(Message.user("hi"))
            given.extend([await receive() for _ in sent])
            await asgi_client.plain(send, "ok")

        client = memory_world.serve(app)

        async def receive():
            return waiting.pop(0)

        done: list[dict] = []

        async def send(event):
            done.append(event)

        scope = {
            "type": "http", "method": "POST", "path": "/chat", "query_string": b"", "root_path": "",
            "headers": [(b"x-user", b"ada"), *((name.encode(), value.encode()) for name, value in KEY.items())],
        }  # fmt: skip
        await client.app(scope, receive, send)
        assert given == sent
        assert held == 3
        assert done[0]["status"] == 200

    async def test_without_a_key_nothing_is_read_before_the_app_asks(self, memory_world):
        """An app that answers before it reads, or never reads, behaves as it does without convmem."""
        asked: list[str] = []

        async def app(scope, receive, send):
            (await get_conversation(scope)).append(Message.user("hi"))
            asked.append("app")
            await read(receive)
            await asgi_client.plain(send, "ok")

        client = memory_world.serve(app)

        async def receive():
            asked.append("receive")
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(event):
            pass

        scope = {"type": "http", "method": "POST", "path": "/chat", "query_string": b"", "root_path": "", "headers": [(b"x-user", b"ada")]}
        await client.app(scope, receive, send)
        assert asked == ["app", "receive"]

    async def test_no_lease_is_held_while_a_slow_client_sends_its_body(self, world):
        """With a key the body is read first: an upload blocks nobody's turn."""
        begin = asyncio.Event()

        async def receive():
            await begin.wait()
            return {"type": "http.request", "body": b"hi", "more_body": False}

        async def send(event):
            pass

        client = world.serve(app_of(echo))
        scope = {
            "type": "http", "method": "POST", "path": "/chat", "query_string": b"", "root_path": "",
            "headers": [(b"x-user", b"ada"), (b"idempotency-key", b"k")],
        }  # fmt: skip
        uploading = asyncio.create_task(client.app(scope, receive, send))
        await asyncio.sleep(0.05)
        assert (await asyncio.wait_for(client.post(text="first"), AT_ONCE)).status == 200
        begin.set()
        await uploading
        assert (await world.texts())[::2] == ["user: first", "user: hi"]

    async def test_a_client_that_leaves_within_its_body_is_no_other_request_later(self, memory_world):
        """Half a body has no fingerprint: the whole one is still welcome."""

        async def app(scope, receive, send):
            conversation = await get_conversation(scope)
            conversation.append(Message.user("hi"))
            await conversation.save()
            event = await receive()
            while event.get("more_body"):
                event = await receive()
            if event["type"] == "http.request":
                await asgi_client.plain(send, "ok")

        client = memory_world.serve(app)
        events = [{"type": "http.request", "body": b"he", "more_body": True}, {"type": "http.disconnect"}]

        async def receive():
            return events.pop(0)

        async def send(event):
            pass

        scope = {
            "type": "http", "method": "POST", "path": "/chat", "query_string": b"", "root_path": "",
            "headers": [(b"x-user", b"ada"), *((name.encode(), value.encode()) for name, value in KEY.items())],
        }  # fmt: skip
        await client.app(scope, receive, send)
        assert await memory_world.states() == ["interrupted"]
        assert (await client.post(text="hello", headers=KEY)).status == 200
        assert await memory_world.states() == ["complete"]


class TestTheKey:
    @pytest.mark.parametrize(
        "key", ['"a b"', '"a\\"b"', "8e03978e-40d5-43dd-bc93-6894a57f9324", "a", '"' + "x" * 255 + '"', "req:1/2=3", "'"]
    )
    async def test_a_string_or_a_bare_token_is_a_key(self, memory_world, key):
        """The draft's form, and what most clients send."""
        model = Model()
        client = memory_world.serve(app_of(chat_of(model)))
        answers = [(await client.post(text="hi", headers={"idempotency-key": key})).data[0] for _ in range(2)]
        assert answers == ["answer 1", "answer 1"]

    async def test_both_forms_of_a_key_are_the_same_key(self, memory_world):
        """A proxy or a library that quotes must not make another turn of it."""
        model = Model()
        client = memory_world.serve(app_of(chat_of(model)))
        for key in ("abc", '"abc"', ' "abc" '):
            assert (await client.post(text="hi", headers={"idempotency-key": key})).data[0] == "answer 1"

    @pytest.mark.parametrize(
        "key", ["", '""', '"', 'a"', '"a"b"', "a b", "a,b", '"\\x"', '"a";p=1', "ä", '"\x7f"', "x" * 256, '"' + "x" * 256 + '"']
    )
    async def test_another_form_is_a_400_where_the_conversation_is_used(self, memory_world, key):
        """And nothing on a route that has a use of its own for the header."""
        model = Model()
        client = memory_world.serve(app_of(chat_of(model)))
        answer = await client.post(text="hi", headers={"idempotency-key": key})
        assert (answer.status, answer.code, model.asked) == (400, "invalid_idempotency_key", 0)
        if len(key) > 1:
            assert key not in answer.text

        async def untouched(request):
            return PlainTextResponse("ok")

        assert (await memory_world.serve(app_of(untouched)).post(headers={"idempotency-key": key})).text == "ok"

    async def test_two_keys_are_a_400(self, memory_world):
        """Which of them would count is a guess."""
        app = memory_world.serve(app_of(echo)).app

        async def doubled(scope, receive, send):
            await app({**scope, "headers": [*scope["headers"], (b"idempotency-key", b"b")]}, receive, send)

        answer = await asgi_client.Client(doubled).post(text="hi", headers={"idempotency-key": "a"})
        assert (answer.status, answer.code) == (400, "invalid_idempotency_key")

    async def test_the_header_has_the_name_of_the_setting(self, memory_world):
        """Some clients call it X-Request-ID, and the usual name then means nothing."""
        model = Model()
        client = memory_world.serve(app_of(chat_of(model)), settings=quick(idempotency_header="X-Request-ID"))
        texts = [
            (await client.post(text="hi", headers={name: "1"})).data[0]
            for name in ("x-request-id", "x-request-id", *["idempotency-key"] * 2)
        ]
        assert texts == ["answer 1", "answer 1", "answer 2", "answer 3"]

    async def test_off_turns_a_key_means_nothing(self, memory_world):
        """Without a lease there is no turn to name; such a route is read only, or takes a conflict."""
        client = memory_world.serve(app_of(echo))
        for length in (2, 4):
            assert len((await client.get(text="x", headers=KEY)).data) == length

    async def test_what_a_client_sent_is_not_in_the_store(self, memory_world):
        """Neither key nor body stands in the names of what is stored, encoded or not; of the key there is a digest."""
        client = memory_world.serve(app_of(echo))
        await client.post(text="hi", headers={"idempotency-key": '"a secret"'})
        (entry,) = [stored.entry for stored in (await memory_world.log()).entries]
        assert "secret" not in f"{entry.turn}{entry.token}"
        assert re.fullmatch(r"key-[A-Za-z0-9_-]{32}", entry.turn)

    async def test_a_new_visitors_first_turn_is_found_again(self, memory_world):
        """The cookie arrived and the answer did not: the retry brings both."""
        model = Model()
        client = memory_world.serve(app_of(chat_of(model)))
        first = await client.post(text="hi", user=None, headers=KEY)
        again = await client.post(text="hi", user=None, headers=KEY)
        assert [first.data[0], again.data[0], model.asked] == ["answer 1", "answer 1", 1]

    async def test_it_names_the_turn_a_handler_loads(self, memory_world):
        """Deferred loading finds the same turn, and says the same of a bad key."""

        async def chat(request):
            conversation = await get_conversation(request)
            await conversation.load(session_id=(await request.body()).decode() or None)
            conversation.append(Message.user("x"))
            return JSONResponse([conversation.replayed, conversation.session_id])

        client = memory_world.serve(app_of(chat), load="deferred")
        for expected in (False, True):
            assert (await client.post(text="plans", headers=KEY)).data == [expected, "plans"]
        assert (await client.post(text="plans", headers={"idempotency-key": "a,b"})).code == "invalid_idempotency_key"
        assert (await client.post(text="trips", headers=KEY)).data == [False, "trips"]

    async def test_a_handler_that_moves_to_another_conversation_moves_in_a_replay_too(self, world):
        """It names the turn there; that the first conversation has one of this name is no reason to refuse."""

        async def chat(request):
            conversation = await get_conversation(request)
            if request.headers.get("x-move"):
                await conversation.load(session_id="plans")
            conversation.append(Message.user("x"))
            return JSONResponse([conversation.replayed, conversation.session_id])

        client = world.serve(app_of(chat))
        assert (await client.post(headers=KEY)).data == [False, "default"]
        for expected in (False, True):
            assert (await client.post(headers={**KEY, "x-move": "1"})).data == [expected, "plans"]

    async def test_while_the_store_is_down_a_degraded_answer_stores_nothing_and_the_retry_does(self, world):
        """`degrade` remembers no key either; the first try that is stored counts."""
        model = Model()
        client = world.serve(app_of(chat_of(model)), settings=quick(on_store_error="degrade"))
        world.store.fail("load", times=1)
        assert (await client.post(text="hi", headers=KEY)).header("convmem-degraded") == "true"
        for expected in ("answer 2", "answer 2"):
            assert (await client.post(text="hi", headers=KEY)).data[0] == expected
        assert (await world.log()).head.turns == 1


async def test_a_stream_of_the_shared_kind_is_replayed_too(world):
    """The helper the other tests stream with is no special case."""
    client = world.serve(app_of(stream_of("a", "b")))
    assert [(await client.post(text="hi", headers=KEY)).text for _ in range(2)] == ["ab", "ab"]
