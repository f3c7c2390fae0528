"""One request from its identity to the last byte: what is held back, what is stored, and what the client is told."""

import asyncio
import contextvars
import json
import os
import re
import time
from datetime import timedelta

import pytest
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from convmem import (
    ConversationBusy,
    ConversationConflict,
    HistoryLost,
    Message,
    StoreUnavailable,
    TurnClosed,
    current_conversation,
    get_conversation,
)
from convmem.stores.base import Lease
from convmem.stores.memory import MemoryStore
from convmem.testing import FaultyStore
from tests import asgi_client
from tests.asgi_client import ADA, AT_ONCE, plain, quick, read

pytestmark = pytest.mark.asyncio
world, memory_world = asgi_client.world, asgi_client.memory_world


async def echo(request: Request) -> Response:
    """Answer what was said, in JSON."""
    conversation = await get_conversation(request)
    text = (await request.body()).decode()
    conversation.append(Message.user(text), Message.assistant(f"you said {text}"))
    return JSONResponse([message.text for message in conversation.messages])


def stream_of(*chunks, after=None):
    """Return a handler that records a model's stream."""

    async def model():
        for chunk in chunks:
            await asyncio.sleep(0)
            yield chunk
        if after is not None:
            await after()

    async def handler(request: Request) -> Response:
        conversation = await get_conversation(request)
        conversation.append(Message.user((await request.body()).decode()))
        return StreamingResponse(conversation.record(model()))

    return handler


def app_of(handler, *, methods=("GET", "POST", "DELETE", "HEAD"), middleware=(), **options):
    return Starlette(routes=[Route("/{rest:path}", handler, methods=list(methods))], middleware=list(middleware), **options)


class TestStoredBeforeTheEnd:
    async def test_the_second_request_sees_what_the_first_said(self, world):
        """That is what memory is."""
        client = world.serve(app_of(echo))
        await client.post(text="one")
        assert (await client.post(text="two")).data == ["one", "you said one", "two", "you said two"]

    async def test_a_json_turn_costs_two_trips_and_is_stored_before_its_last_byte(self, world):
        """P4 and P9."""
        client = world.serve(app_of(echo))
        answer = await client.post(text="hi")
        assert answer.whole
        assert world.store.calls == ["load", "append", "start", "chunk", "end"]
        assert await world.states() == ["complete"]

    async def test_a_streamed_turn_costs_three_trips_and_its_question_is_stored_before_it_begins(self, world):
        """A store that fails is noticed before the model runs, and the answer is stored before the end."""
        client = world.serve(app_of(stream_of("a", "b")))
        answer = await client.post(text="hi")
        assert answer.text == "ab"
        assert world.store.calls == ["load", "append", "start", "chunk", "chunk", "append", "end"]
        assert await world.texts() == ["user: hi", "assistant: ab"]
        assert await world.states() == ["complete"]

    async def test_a_request_that_appends_nothing_gives_the_lease_back_and_stores_nothing(self, world):
        """No entry for no message."""

        async def handler(request):
            return JSONResponse(len((await get_conversation(request)).messages))

        client = world.serve(app_of(handler))
        await client.post()
        assert world.store.calls == ["load", "release", "start", "chunk", "end"]
        assert (await world.log()).head.n == 0

    async def test_a_turn_stored_by_save_is_closed_by_an_empty_entry(self, world):
        """Everything already stored: the closing entry has no message and takes the lease along."""

        async def handler(request):
            conversation = await get_conversation(request)
            conversation.append(Message.user("hi"))
            await conversation.save()
            await conversation.save()
            return Response("ok")

        client = world.serve(app_of(handler))
        await client.post()
        log = await world.log()
        assert [(stored.entry.count, stored.entry.closing) for stored in log.entries] == [(1, False), (0, True)]
        assert log.head.turns == 1
        assert world.store.calls == ["load", "append", "append", "start", "chunk", "end"]

    @pytest.mark.parametrize("pieces", [1, 2, 5])
    async def test_the_event_that_completes_the_length_is_held_although_more_body_follows(self, world, pieces):
        """Quart and BaseHTTPMiddleware end a response with an empty event, long after the client has everything."""

        async def app(scope, receive, send):
            (await get_conversation(scope)).append(Message.user("hi"))
            body = b"x" * 10
            await send({"type": "http.response.start", "status": 200, "headers": [(b"Content-Length", b" 10 ")]})
            for i in range(pieces):
                part = body[i * 10 // pieces : (i + 1) * 10 // pieces]
                await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})

        client = world.serve(app)
        answer = await client.post()
        assert answer.whole
        assert world.store.calls == ["load", *([] if pieces == 1 else ["start", *["chunk"] * (pieces - 1)]), "append",
                                     *(["start"] if pieces == 1 else []), "chunk", "end"]  # fmt: skip

    @pytest.mark.parametrize("length", [b"2", None])
    async def test_headers_that_can_be_read_only_once_reach_the_client(self, memory_world, length):
        """ASGI says that they are any iterable; Sanic gives a generator."""
        fields = [(b"x-own", b"yes"), *([(b"content-length", length)] if length else [])]

        async def app(scope, receive, send):
            (await get_conversation(scope)).append(Message.user("hi"))
            await send({"type": "http.response.start", "status": 200, "headers": (field for field in fields)})
            await send({"type": "http.response.body", "body": b"ok"})

        answer = await memory_world.serve(app).post()
        assert (answer.header("x-own"), answer.text) == ("yes", "ok")

    @pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("POST", 204), ("POST", 304)])
    async def test_a_response_without_a_body_is_held_from_its_start(self, world, method, status):
        """Uvicorn and hypercorn end such a response at its start."""

        async def handler(request):
            (await get_conversation(request)).append(Message.user("hi"))
            return Response(status_code=status)

        client = world.serve(app_of(handler))
        answer = await client.request(method)
        assert answer.status == status
        assert world.store.calls == ["load", "append", "start", "end"]
        assert await world.states() == ["complete"]

    async def test_a_bodyless_start_that_no_event_follows_still_goes_out_after_the_commit(self, world):
        """An app may answer a HEAD with its start alone."""

        async def app(scope, receive, send):
            (await get_conversation(scope)).append(Message.user("hi"))
            await send({"type": "http.response.start", "status": 204, "headers": []})

        client = world.serve(app)
        assert (await client.post()).status == 204
        assert world.store.calls == ["load", "append", "start", "end"]

    async def test_a_stream_that_answers_a_head_is_held_from_its_start_too(self, world):
        """It has no length, and yet no body will follow."""
        client = world.serve(app_of(stream_of("a", "b")))
        found = []

        async def look():
            found.append(await world.states())

        client.at_the_end = look
        await client.request("HEAD")
        assert found == [["complete"]]

    async def test_a_start_without_length_goes_out_at_once(self, memory_world):
        """Streaming stays streaming: the client sees the first chunk while the handler works on the second."""
        seen = asyncio.Event()

        async def app(scope, receive, send):
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"1", "more_body": True})
            seen.set()
            await asyncio.sleep(0.05)
            await send({"type": "http.response.body", "body": b"2"})

        client = memory_world.serve(app)
        running = asyncio.create_task(client.post())
        await seen.wait()
        assert memory_world.store.calls == ["load", "start", "chunk"]
        assert (await running).text == "12"

    async def test_pathsend_and_trailers_are_held_as_ends(self, world):
        """Both end a response without a last body event."""

        async def app(scope, receive, send):
            (await get_conversation(scope)).append(Message.user("hi"))
            trailers = scope["path"] == "/trailers"
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")], "trailers": trailers})
            if trailers:
                await send({"type": "http.response.body", "body": b"123", "more_body": True})
                await send({"type": "http.response.body", "body": b""})
                await send({"type": "http.response.trailers", "headers": [], "more_trailers": True})
                await send({"type": "http.response.trailers", "headers": []})
            else:
                await send({"type": "http.response.pathsend", "path": "/tmp/file"})

        client = world.serve(app)
        assert (await client.post("/pathsend")).whole
        assert world.store.calls == ["load", "append", "start", "end"]
        world.store.calls.clear()
        assert (await client.post("/trailers")).whole
        assert world.store.calls == ["load", "start", "chunk", "append", "end"]
        assert await world.states() == ["complete", "complete"]

    async def test_a_real_commit_is_over_when_the_last_byte_arrives(self, world):
        """Looked at in the store at that very moment, for JSON and streams."""

        async def handler(request):
            return await (echo if request.url.path == "/json" else stream_of("a", "b"))(request)

        client = world.serve(app_of(handler))
        found = []

        async def look():
            found.append((await world.states(), (await world.log()).holder.token))

        client.at_the_end = look
        await client.post("/json", "1")
        await client.post("/stream", "2")
        assert found == [(["complete"], ""), (["complete", "complete"], "")]

    async def test_concurrent_readers_never_see_half_a_json_turn(self, world):
        """A turn appears whole."""
        client = world.serve(app_of(echo))
        world.store.delay = timedelta(milliseconds=5)
        seen: set[int] = set()

        async def watch():
            while not done.is_set():
                seen.add(len(await world.texts()))
                await asyncio.sleep(0.001)

        done = asyncio.Event()
        watching = asyncio.create_task(watch())
        await asyncio.gather(*(client.post(text=str(i)) for i in range(4)))
        done.set()
        await watching
        assert seen <= {0, 2, 4, 6, 8}


class TestRecord:
    @pytest.mark.parametrize("kind", ["async generator", "generator", "list", "async iterable"])
    async def test_any_iterable_is_recorded(self, world, kind):
        """Clients of models give both kinds."""

        async def agen():
            yield "a"
            yield "b"

        def gen():
            yield "a"
            yield "b"

        class Iterable:
            def __aiter__(self):
                return agen()

        async def handler(request):
            conversation = await get_conversation(request)
            conversation.append(Message.user("hi"))
            stream = {"async generator": agen, "generator": gen, "list": lambda: ["a", "b"], "async iterable": Iterable}[kind]()
            return StreamingResponse(conversation.record(stream))

        assert (await world.serve(app_of(handler)).post()).text == "ab"
        assert await world.texts() == ["user: hi", "assistant: ab"]
        assert await world.states() == ["complete"]

    async def test_a_sync_stream_runs_in_a_thread_with_the_context(self, memory_world):
        """It must not block the loop, and what it calls still finds its conversation."""
        seen = []

        def model():
            seen.append((current_conversation().owner, asyncio._get_running_loop()))
            yield "x"

        async def handler(request):
            conversation = await get_conversation(request)
            return StreamingResponse(conversation.record(model()))

        await memory_world.serve(app_of(handler)).post()
        assert seen == [("user:ada", None)]

    async def test_other_chunks_go_through_text(self, world):
        """Models' clients yield objects; a chunk without text is passed on all the same."""

        async def handler(request):
            conversation = await get_conversation(request)
            chunks = conversation.record([{"t": "a"}, {}, {"t": "b"}], text=lambda chunk: chunk.get("t"))
            return StreamingResponse(json.dumps(chunk) async for chunk in chunks)

        assert (await world.serve(app_of(handler)).post()).text == '{"t": "a"}{}{"t": "b"}'
        assert await world.texts() == ["assistant: ab"]

    async def test_bytes_without_text_are_an_error_that_says_so(self, memory_world):
        """Decoding them here would be a guess."""

        async def handler(request):
            conversation = await get_conversation(request)
            return StreamingResponse(conversation.record([b"a"]))

        answer = await memory_world.serve(app_of(handler)).post()
        assert not answer.whole
        assert "text=" in str(answer.raised)

    async def test_half_surrogates_at_a_chunk_border_are_joined_and_others_kept(self, world):
        """It never refuses text."""

        async def handler(request):
            conversation = await get_conversation(request)
            return StreamingResponse(json.dumps(chunk) async for chunk in conversation.record(["a\ud83d", "\ude00", "b\udc00"]))

        assert (await world.serve(app_of(handler)).post()).whole
        assert await world.texts() == ["assistant: a\U0001f600b\udc00"]

    async def test_a_framed_stream_is_named(self, memory_world):
        """Otherwise ``data: `` becomes part of the history."""
        with pytest.warns(UserWarning, match="server-sent events") as caught:
            await memory_world.serve(app_of(stream_of("data: hi\n\n"))).post()
        assert [type(warning.message).__name__ for warning in caught] == ["FramedStreamWarning"]

    async def test_the_question_is_stored_before_the_first_chunk_is_asked_for(self, world):
        """A worker that dies in the model loses nothing."""
        found = []

        async def model():
            found.append(await world.texts())
            yield "a"

        async def handler(request):
            conversation = await get_conversation(request)
            conversation.append(Message.user("hi"))
            return JSONResponse([chunk async for chunk in conversation.record(model())])

        await world.serve(app_of(handler)).post()
        assert found == [["user: hi"]]

    async def test_a_model_that_breaks_leaves_what_it_said_as_interrupted(self, world):
        """Exception after some output: user message and partial answer."""

        async def fail():
            raise OSError("the model is gone")

        answer = await world.serve(app_of(stream_of("half ", "an ans", after=fail))).post(text="hi")
        assert not answer.whole
        assert isinstance(answer.raised, OSError)
        assert await world.texts() == ["user: hi", "assistant: half an ans"]
        assert await world.states() == ["interrupted"]

    async def test_a_model_that_breaks_and_is_answered_for_reads_as_interrupted_too(self, world):
        """The handler turns the error into an event of its stream and ends well; the answer is partial all the same."""

        async def model():
            yield "half"
            raise OSError("gone")

        async def handler(request):
            conversation = await get_conversation(request)

            async def body():
                try:
                    async for chunk in conversation.record(model()):
                        yield chunk
                except OSError:
                    yield "[error]"

            return StreamingResponse(body())

        answer = await world.serve(app_of(handler)).post()
        assert answer.text == "half[error]"
        assert answer.whole
        assert await world.texts() == ["assistant: half"]
        assert await world.states() == ["interrupted"]

    async def test_the_models_stream_is_closed_when_the_client_leaves(self, world):
        """What nobody reads need not be paid for."""
        leave, closed = asyncio.Event(), asyncio.Event()

        async def model():
            try:
                yield "a"
                leave.set()
                await asyncio.sleep(30)
            finally:
                closed.set()

        async def handler(request):
            conversation = await get_conversation(request)
            conversation.append(Message.user("hi"))
            return StreamingResponse(conversation.record(model()))

        await asyncio.wait_for(world.serve(app_of(handler)).post(leave=leave), AT_ONCE)
        await asyncio.wait_for(closed.wait(), AT_ONCE)
        assert await world.texts() == ["user: hi", "assistant: a"]
        assert await world.states() == ["interrupted"]

    async def test_more_text_than_a_message_may_have_is_cut_off_and_kept(self, world):
        """A runaway model fills no disk."""
        client = world.serve(app_of(stream_of("x" * 600, "y" * 600)), settings=quick(max_message_bytes=1000))
        answer = await client.post(text="hi")
        assert not answer.whole
        assert await world.texts() == ["user: hi", f"assistant: {'x' * 600}"]
        assert await world.states() == ["interrupted"]

    async def test_the_next_turn_after_an_interrupted_one_works_and_says_so(self, world):
        """P12."""
        leave = asyncio.Event()
        client = world.serve(app_of(stream_of("half", after=lambda: _leave_and_wait(leave))))
        await client.post(text="one", leave=leave)

        async def handler(request):
            conversation = await get_conversation(request)
            return JSONResponse([conversation.interrupted, [(m.text, m.state) for m in conversation.messages]])

        answer = await world.serve(app_of(handler)).post()
        assert answer.data == [True, [["one", "interrupted"], ["half", "interrupted"]]]


async def _leave_and_wait(leave):
    leave.set()
    await asyncio.sleep(30)


class TestOutcomes:
    @pytest.mark.parametrize("status", [400, 404, 422, 500, 503])
    async def test_an_error_answer_stores_nothing_more(self, world, status):
        """The client will retry, and a question asked twice would be stored twice."""

        async def handler(request):
            conversation = await get_conversation(request)
            conversation.append(Message.user("hi"))
            return JSONResponse("no", status_code=status)

        answer = await world.serve(app_of(handler)).post()
        assert (answer.status, answer.data) == (status, "no")
        assert await world.texts() == []

    async def test_an_error_answer_after_save_reads_as_interrupted(self, world):
        """What `save` stored stays."""

        async def handler(request):
            conversation = await get_conversation(request)
            conversation.append(Message.user("hi"))
            await conversation.save()
            conversation.append(Message.assistant("half"))
            return JSONResponse("no", status_code=502)

        await world.serve(app_of(handler)).post()
        assert await world.texts() == ["user: hi"]
        assert await world.states() == ["interrupted"]

    async def test_an_error_that_is_streamed_stores_nothing_more(self, world):
        """No save before the start of an answer that is an error."""

        async def handler(request):
            (await get_conversation(request)).append(Message.user("hi"))
            return StreamingResponse(iter(["no"]), status_code=404)

        await world.serve(app_of(handler)).post()
        assert await world.texts() == []

    async def test_an_exception_before_the_start_stores_nothing(self, world):
        """Neither under a framework that answers for it, nor under a bare server."""

        async def handler(request):
            (await get_conversation(request)).append(Message.user("hi"))
            raise ZeroDivisionError

        async def bare(scope, receive, send):
            (await get_conversation(scope)).append(Message.user("hi"))
            raise ZeroDivisionError

        for app, status in ((app_of(handler), 500), (bare, 0)):
            answer = await world.serve(app).post()
            assert (answer.status, type(answer.raised)) == (status, ZeroDivisionError)
            assert await world.texts() == []

    async def test_an_exception_after_a_held_start_is_the_servers_500(self, world):
        """The held start never went out, so the server can still answer honestly."""

        async def app(scope, receive, send):
            (await get_conversation(scope)).append(Message.user("hi"))
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
            raise ZeroDivisionError

        answer = await world.serve(app).post()
        assert answer.seen == []
        assert await world.texts() == []

    async def test_an_exception_after_the_start_without_a_recording_keeps_what_was_stored_before_it(self, world):
        """The question was stored with the start; an answer that only the handler knew is not made up."""

        async def body(conversation):
            yield "a"
            conversation.append(Message.assistant("unsaid"))
            raise ZeroDivisionError

        async def handler(request):
            conversation = await get_conversation(request)
            conversation.append(Message.user("hi"))
            return StreamingResponse(body(conversation))

        answer = await world.serve(app_of(handler)).post()
        assert not answer.whole
        assert await world.texts() == ["user: hi"]
        assert await world.states() == ["interrupted"]

    async def test_a_client_that_leaves_before_any_output_loses_nothing(self, world):
        """What the handler appended is stored, as interrupted."""
        leave = asyncio.Event()

        async def model():
            leave.set()
            await asyncio.sleep(30)
            yield "never"

        async def handler(request):
            conversation = await get_conversation(request)
            conversation.append(Message.user("hi"))
            return StreamingResponse(conversation.record(model()))

        await asyncio.wait_for(world.serve(app_of(handler)).post(leave=leave), AT_ONCE)
        assert await world.texts() == ["user: hi"]
        assert await world.states() == ["interrupted"]

    async def test_an_app_that_ends_without_a_word_because_its_client_left_keeps_what_was_appended(self, world):
        """Quart and Django cancel the handler themselves and send nothing."""
        leave = asyncio.Event()

        async def app(scope, receive, send):
            (await get_conversation(scope)).append(Message.user("hi"))
            leave.set()
            await receive()
            assert (await receive())["type"] == "http.disconnect"

        await world.serve(app).post(leave=leave)
        assert await world.texts() == ["user: hi"]
        assert await world.states() == ["interrupted"]

    async def test_an_app_that_ends_without_a_word_for_no_reason_stores_nothing(self, world):
        """That is a bug of the app; its server answers 500."""

        async def app(scope, receive, send):
            (await get_conversation(scope)).append(Message.user("hi"))

        assert (await world.serve(app).post()).seen == []
        assert await world.texts() == []

    @pytest.mark.parametrize("length", [True, False])
    async def test_a_plain_handler_that_finished_is_whole_although_its_client_left(self, world, length):
        """Its answer is paid for; the client finds it when it comes back."""
        leave = asyncio.Event()

        async def app(scope, receive, send):
            (await get_conversation(scope)).append(Message.user("hi"), Message.assistant("hello"))
            leave.set()
            await receive()
            assert (await receive())["type"] == "http.disconnect"
            await plain(send, "hello", length=length)

        await world.serve(app).post(leave=leave)
        assert await world.texts() == ["user: hi", "assistant: hello"]
        assert await world.states() == ["complete"]

    async def test_a_recording_that_came_to_its_end_is_whole_although_the_client_left(self, world):
        """Falcon, Sanic and BlackSheep let a stream run to its end."""
        leave = asyncio.Event()

        async def app(scope, receive, send):
            conversation = await get_conversation(scope)
            conversation.append(Message.user("hi"))
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await receive()
            async for chunk in conversation.record(["a", "b"]):
                await send({"type": "http.response.body", "body": chunk.encode(), "more_body": True})
                leave.set()
                await receive()
            await send({"type": "http.response.body", "body": b""})

        await world.serve(app).post(leave=leave)
        assert await world.texts() == ["user: hi", "assistant: ab"]
        assert await world.states() == ["complete"]

    async def test_a_clean_end_that_base_http_middleware_invents_is_no_success(self, world):
        """It sends a last body event after it has cut off the stream of a client that left."""
        leave = asyncio.Event()

        async def passes(request, call_next):
            return await call_next(request)

        handler = stream_of("a", after=lambda: _leave_and_wait(leave))
        app = app_of(handler, middleware=[Middleware(BaseHTTPMiddleware, dispatch=passes)])
        await asyncio.wait_for(world.serve(app).post(text="hi", leave=leave), AT_ONCE)
        assert await world.texts() == ["user: hi", "assistant: a"]
        assert await world.states() == ["interrupted"]

    async def test_that_clean_end_is_no_success_of_a_stream_that_nobody_recorded_either(self, world):
        """Only the disconnect tells."""
        leave = asyncio.Event()

        async def passes(request, call_next):
            return await call_next(request)

        async def body():
            yield "a"
            await _leave_and_wait(leave)

        async def handler(request):
            (await get_conversation(request)).append(Message.user("hi"))
            return StreamingResponse(body())

        app = app_of(handler, middleware=[Middleware(BaseHTTPMiddleware, dispatch=passes)])
        await asyncio.wait_for(world.serve(app).post(leave=leave), AT_ONCE)
        assert await world.texts() == ["user: hi"]
        assert await world.states() == ["interrupted"]

    async def test_base_http_middleware_inside_changes_nothing_of_a_json_turn(self, world):
        """It keeps the Content-Length and sends every body as if more followed."""

        async def passes(request, call_next):
            return await call_next(request)

        client = world.serve(app_of(echo, middleware=[Middleware(BaseHTTPMiddleware, dispatch=passes)]))
        await client.post(text="hi")
        assert world.store.calls == ["load", "append", "start", "chunk", "end"]

    async def test_a_cancelled_request_keeps_what_was_said(self, world):
        """A server that shuts down cancels; the commit runs in a task of its own, and the cancellation goes on."""
        started = asyncio.Event()

        async def app(scope, receive, send):
            (await get_conversation(scope)).append(Message.user("hi"))
            started.set()
            await asyncio.sleep(30)

        running = asyncio.create_task(world.serve(app).post())
        await started.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await world.at_rest()
        assert await world.texts() == ["user: hi"]
        assert await world.states() == ["interrupted"]

    async def test_a_request_cancelled_again_and_again_during_its_commit_still_commits(self, world):
        """The commit is shielded from its caller."""
        world.store.delay = timedelta(milliseconds=100)
        client = world.serve(app_of(echo))
        running = asyncio.create_task(client.post(text="hi"))
        while "append" not in world.store.calls:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.005)
        for _ in range(3):
            running.cancel()
            await asyncio.sleep(0.005)
        with pytest.raises(asyncio.CancelledError):
            await running
        world.store.delay = timedelta()
        await world.at_rest()
        assert await world.states() == ["complete"]

    async def test_a_request_cancelled_while_it_waits_for_its_turn_leaves_no_lease(self, world):
        """A client that gives up must not block the conversation."""
        assert (await world.inner.load(ADA, lease=Lease("other", timedelta(seconds=30)))).holder.token == "other"
        client = world.serve(app_of(echo))
        waiting = [asyncio.create_task(client.post(text=str(i))) for i in range(2)]
        await asyncio.sleep(0.1)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        await world.inner.release(ADA, "other")
        assert (await client.post(text="now")).status == 200


class TestAfterTheEnd:
    async def test_appending_after_the_end_is_refused_with_the_way_out(self, world):
        """It could be stored nowhere that the client had seen."""
        raised = []

        async def late(conversation):
            try:
                conversation.append(Message.assistant("late"))
            except TurnClosed as error:
                raised.append(str(error))

        async def handler(request):
            conversation = await get_conversation(request)
            conversation.append(Message.user("hi"))
            return JSONResponse("ok", background=BackgroundTask(late, conversation))

        await world.serve(app_of(handler)).post()
        assert "conversation.turn()" in raised[0]
        assert await world.texts() == ["user: hi"]

    @pytest.mark.parametrize("streamed", [True, False])
    async def test_a_background_task_has_a_turn_of_its_own(self, world, streamed):
        """Two entries, two turns, each with its lease."""

        async def later(conversation):
            async with conversation.turn():
                conversation.append(Message.assistant(f"after {conversation.total_turns}"))

        async def handler(request):
            conversation = await get_conversation(request)
            conversation.append(Message.user("hi"))
            task = BackgroundTask(later, conversation)
            return StreamingResponse(iter(["ok"]), background=task) if streamed else JSONResponse("ok", background=task)

        assert (await world.serve(app_of(handler)).post()).whole
        assert await world.texts() == ["user: hi", "assistant: after 1"]
        assert await world.states() == ["complete", "complete"]

    async def test_a_background_task_has_its_turn_although_the_client_left_the_stream(self, world):
        """Starlette runs it before the app returns."""
        leave = asyncio.Event()

        async def model():
            yield "a"
            leave.set()
            await asyncio.sleep(30)

        async def later(conversation):
            async with conversation.turn():
                conversation.append(Message.assistant("after"))

        async def handler(request):
            conversation = await get_conversation(request)
            conversation.append(Message.user("hi"))
            return StreamingResponse(conversation.record(model()), background=BackgroundTask(later, conversation))

        answer = await asyncio.wait_for(world.serve(app_of(handler)).post(leave=leave), AT_ONCE)
        assert answer.raised is None
        assert await world.texts() == ["user: hi", "assistant: a", "assistant: after"]
        assert await world.states() == ["interrupted", "complete"]

    async def test_a_background_turn_that_raises_stores_only_what_it_saved(self, world):
        """The same rules as in a request."""

        async def later(conversation):
            async with conversation.turn():
                conversation.append(Message.assistant("saved"))
                await conversation.save()
                conversation.append(Message.assistant("unsaved"))
                raise ZeroDivisionError

        async def handler(request):
            conversation = await get_conversation(request)
            return JSONResponse("ok", background=BackgroundTask(later, conversation))

        answer = await world.serve(app_of(handler)).post()
        assert isinstance(answer.raised, ZeroDivisionError)
        assert await world.texts() == ["assistant: saved"]
        assert await world.states() == ["interrupted"]

    async def test_a_turn_inside_the_requests_own_is_refused_at_once(self, memory_world):
        """It would wait for itself."""

        async def handler(request):
            conversation = await get_conversation(request)
            async with conversation.turn():
                pass

        answer = await memory_world.serve(app_of(handler)).post()
        assert (answer.status, answer.code, answer.data["own_turn"]) == (409, "conversation_busy", True)

    @pytest.mark.parametrize("user", ["ada", None])
    async def test_a_task_that_begins_beside_the_handler_waits_for_the_requests_turn(self, world, user):
        """Quart, Sanic and `asyncio.create_task` begin it at once; a new visitor's turn holds not even a lease to wait for."""
        tasks = []

        async def later():
            conversation = current_conversation()
            async with conversation.turn():
                conversation.append(Message.assistant(f"after {len(conversation.messages)}"))
            return conversation.key

        async def handler(request):
            (await get_conversation(request)).append(Message.user("hi"))
            tasks.append(asyncio.create_task(later()))
            await asyncio.sleep(0.05)
            return JSONResponse("ok")

        answer = await world.serve(app_of(handler), settings=quick(concurrency="reject")).post(user=user)
        assert (answer.status, answer.whole) == (200, True)
        world.keys.append(key := await asyncio.wait_for(tasks[0], AT_ONCE))
        assert await world.texts(key) == ["user: hi", "assistant: after 1"]
        assert await world.states(key) == ["complete", "complete"]

    async def test_a_task_that_its_handler_waits_for_is_refused_in_the_end(self, memory_world):
        """Each would wait for the other; after TURN_WAIT the task gives up."""

        async def inner(conversation):
            async with conversation.turn():
                pass

        async def handler(request):
            conversation = await get_conversation(request)
            conversation.append(Message.user("hi"))
            await asyncio.create_task(inner(conversation))

        began = asyncio.get_running_loop().time()
        client = memory_world.serve(app_of(handler), settings=quick(turn_wait="0.4s", lease="0.3s"))
        answer = await asyncio.wait_for(client.post(), AT_ONCE)
        assert asyncio.get_running_loop().time() - began >= 0.4
        assert (answer.status, answer.code, answer.data["own_turn"]) == (409, "conversation_busy", True)

    async def test_recording_after_the_end_asks_the_model_for_nothing(self, memory_world):
        """Nobody would store the answer."""
        asked = []

        async def model():
            asked.append(1)
            yield "a"

        async def late(conversation):
            async for _ in conversation.record(model()):
                pass

        async def handler(request):
            conversation = await get_conversation(request)
            return JSONResponse("ok", background=BackgroundTask(late, conversation))

        answer = await memory_world.serve(app_of(handler)).post()
        assert isinstance(answer.raised, TurnClosed)
        assert asked == []


class TestStoreErrors:
    async def test_a_store_that_is_down_is_a_503_where_the_conversation_is_used_and_nothing_elsewhere(self, world):
        """A health check must not fail because of a memory it never asked for."""

        async def health(request):
            return PlainTextResponse("fine")

        world.store.fail("load")
        answer = await world.serve(app_of(echo)).post()
        assert (answer.status, answer.code, answer.header("retry-after")) == (503, "store_unavailable", "2")
        assert "planted" not in answer.text
        assert (await world.serve(app_of(health)).post()).text == "fine"

    async def test_a_commit_that_fails_before_anything_was_sent_is_a_503(self, world):
        """An unsaved answer is never a 200."""
        world.store.fail("append")
        answer = await world.serve(app_of(echo)).post()
        assert (answer.status, answer.code, answer.header("retry-after"), answer.whole) == (503, "store_unavailable", "2", True)
        assert answer.raised is None
        world.store.mend()
        assert await world.texts() == []

    async def test_a_store_that_fails_before_a_stream_begins_is_a_503_and_the_model_is_not_asked(self, world):
        """Not a broken 200, and no tokens paid for."""
        asked = []

        async def model():
            asked.append(1)
            yield "a"

        async def handler(request):
            conversation = await get_conversation(request)
            conversation.append(Message.user("hi"))
            return StreamingResponse(conversation.record(model()))

        world.store.fail("append")
        answer = await world.serve(app_of(handler)).post()
        assert (answer.status, answer.code, answer.whole) == (503, "store_unavailable", True)
        assert asked == []

    async def test_a_commit_that_fails_later_truncates_the_stream(self, world):
        """The client has the tokens and no end, so it knows; the app's `send` raises nothing."""
        sent = []

        async def app(scope, receive, send):
            conversation = await get_conversation(scope)
            await send({"type": "http.response.start", "status": 200, "headers": []})
            conversation.append(Message.user("hi"))
            await send({"type": "http.response.body", "body": b"a", "more_body": True})
            world.store.fail("append")
            await send({"type": "http.response.body", "body": b"b"})
            sent.append("returned")

        answer = await world.serve(app).post()
        assert sent == ["returned"]
        assert (answer.text, answer.whole) == ("a", False)
        assert isinstance(answer.raised, StoreUnavailable)

    @pytest.mark.parametrize("streamed", [True, False])
    async def test_a_lost_answer_is_asked_for_again_and_stored_once(self, world, streamed):
        """P6: the same entry id."""
        world.store.lose_answer("append", times=2)
        client = world.serve(app_of(stream_of("you said hi") if streamed else echo))
        answer = await client.post(text="hi")
        assert (answer.status, answer.whole) == (200, True)
        assert await world.texts() == ["user: hi", "assistant: you said hi"]
        assert (await world.log()).head.turns == 1
        assert await world.states() == ["complete"]

    async def test_an_outcome_that_stays_unknown_is_a_503_and_never_a_double(self, world):
        """The client may retry; the store has the turn at most once."""
        world.store.lose_answer("append", times=None)
        answer = await world.serve(app_of(echo)).post(text="hi")
        assert (answer.status, answer.code) == (503, "store_unavailable")
        world.store.mend()
        assert await world.texts() == ["user: hi", "assistant: you said hi"]

    async def test_a_failed_save_that_the_handler_handles_is_tried_again_at_the_end(self, world):
        """An app that handles an error is left alone, and what was appended stays appended."""

        async def handler(request):
            conversation = await get_conversation(request)
            conversation.append(Message.user("hi"))
            world.store.fail("append", times=1)
            with pytest.raises(StoreUnavailable):
                await conversation.save()
            return JSONResponse("ok")

        answer = await world.serve(app_of(handler)).post()
        assert (answer.status, answer.data) == (200, "ok")
        assert await world.texts() == ["user: hi"]
        assert await world.states() == ["complete"]

    @pytest.mark.parametrize("how", ["raise", "own 500", "raise from", "own 409"])
    async def test_an_error_of_ours_that_the_app_turns_into_a_5xx_is_answered_by_its_problem(self, world, how):
        """A 500 would hide what happened; an app's own 4xx is its decision."""

        async def handler(request):
            conversation = await get_conversation(request)
            conversation.append(Message.user("hi"))
            world.store.fail("append", times=1)
            try:
                await conversation.save()
            except StoreUnavailable as error:
                if how == "raise":
                    raise
                if how == "raise from":
                    raise RuntimeError from error
                return JSONResponse("mine", status_code=int(how[-3:]))

        answer = await world.serve(app_of(handler)).post()
        if how == "own 409":
            assert (answer.status, answer.data) == (409, "mine")
        else:
            assert (answer.status, answer.code) == (503, "store_unavailable")
            assert answer.raised is None
        assert await world.texts() == []

    async def test_a_store_that_is_down_at_the_load_degrades_when_asked_to(self, world):
        """An answer without memory that says so."""
        client = world.serve(app_of(echo), settings=quick(on_store_error="degrade"))
        await client.post(text="one")
        world.store.fail("load")
        world.store.fail("append")
        answer = await client.post(text="two")
        assert (answer.status, answer.data, answer.header("convmem-degraded")) == (200, ["two", "you said two"], "true")
        assert answer.header("conversation-revision") is None
        world.store.mend()
        assert (await client.post(text="three")).data == ["one", "you said one", "three", "you said three"]

    @pytest.mark.parametrize("times", [1, None])
    @pytest.mark.parametrize("streamed", [True, False])
    async def test_a_store_that_goes_down_during_the_turn_degrades_too(self, world, streamed, times):
        """The stream is whole, and nothing of the turn is made up later."""
        client = world.serve(app_of(stream_of("a", "b") if streamed else echo), settings=quick(on_store_error="degrade"))
        world.store.fail("append", times=times)
        answer = await client.post(text="hi")
        assert (answer.status, answer.whole, answer.raised, answer.header("convmem-degraded")) == (200, True, None, "true")
        world.store.mend()
        assert await world.texts() == []

    async def test_clearing_and_deleting_never_pretend_while_degraded(self, world):
        """Who asks for a deletion must not be told that it was done."""

        async def handler(request):
            conversation = await get_conversation(request)
            assert conversation.degraded
            await (conversation.delete() if request.method == "DELETE" else conversation.clear())
            return JSONResponse("done")

        client = world.serve(app_of(handler), settings=quick(on_store_error="degrade"))
        for verb in ("load", "append", "delete"):
            world.store.fail(verb)
        for method in ("DELETE", "POST"):
            answer = await client.request(method)
            assert (answer.status, answer.code) == (503, "store_unavailable")


class TestTwoAtOnce:
    async def test_two_turns_at_once_are_ordered(self, world):
        """P5 and P7: the second waits, and sees the first."""
        client = world.serve(app_of(echo))
        world.store.delay = timedelta(milliseconds=10)
        answers = await asyncio.gather(*(client.post(text=str(i)) for i in range(3)))
        assert sorted(len(answer.data) for answer in answers) == [2, 4, 6]
        assert (await world.log()).head.turns == 3

    @pytest.mark.parametrize("shared", ["one worker", "two workers"])
    async def test_two_turns_at_once_may_be_rejected_instead(self, world, shared):
        """409 with what a client needs to come back; nobody queues."""
        inside, go_on = asyncio.Event(), asyncio.Event()

        async def handler(request):
            (await get_conversation(request)).append(Message.user("x"))
            inside.set()
            await go_on.wait()
            return JSONResponse("ok")

        first = world.serve(app_of(handler), settings=quick(concurrency="reject"))
        second = first if shared == "one worker" else world.serve(app_of(handler), settings=quick(concurrency="reject"))
        running = asyncio.create_task(first.post())
        await inside.wait()
        await asyncio.sleep(0.15)
        answer = await second.post()
        assert (answer.status, answer.code, answer.data["own_turn"]) == (409, "conversation_busy", False)
        assert 0.1 <= answer.data["running_seconds"] < 20
        assert int(answer.header("retry-after")) >= 1
        go_on.set()
        assert (await running).status == 200
        assert (await world.log()).head.turns == 1

    @pytest.mark.parametrize("saves_first", [False, True])
    @pytest.mark.parametrize("shared", ["one worker", "two workers"])
    async def test_a_new_visitor_has_one_turn_at_a_time_from_the_first_byte_on(self, world, shared, saves_first):
        """The cookie is there before the answer is whole: who comes again meanwhile waits for it, and sees it."""
        speaking, go_on = asyncio.Event(), asyncio.Event()

        async def model():
            yield "one "
            speaking.set()
            await go_on.wait()
            yield "two"

        async def handler(request):
            conversation = await get_conversation(request)
            if request.method == "GET":
                return JSONResponse([message.state for message in conversation.messages])
            if conversation.messages:
                return await echo(request)
            conversation.append(Message.user("hi"))
            if saves_first:
                await conversation.save()
            return StreamingResponse(conversation.record(model()))

        first = world.serve(app_of(handler))
        second = first if shared == "one worker" else world.serve(app_of(handler))
        running = asyncio.create_task(first.post(user=None))
        await asyncio.wait_for(speaking.wait(), AT_ONCE)
        second.cookies = first.cookies
        states = (await second.get(user=None)).data
        waiting = asyncio.create_task(second.post(text="again", user=None))
        done, _ = await asyncio.wait([waiting], timeout=0.05)
        go_on.set()
        answers = [await asyncio.wait_for(each, AT_ONCE) for each in (running, waiting)]
        assert (states, done) == (["running"], set())
        assert (answers[0].text, answers[0].whole) == ("one two", True)
        assert answers[1].data == ["hi", "one two", "again", "you said again"]
        assert (await second.get(user=None)).data == ["complete"] * 4

    async def test_a_new_visitor_who_comes_again_to_the_same_worker_asks_the_store_nothing(self, memory_world):
        """Its turn stands in the worker's own queue from the first byte on, as anybody's: there others wait for it, and a shutdown does."""
        speaking, go_on = asyncio.Event(), asyncio.Event()

        async def model():
            yield "one"
            speaking.set()
            await go_on.wait()

        async def handler(request):
            return StreamingResponse((await get_conversation(request)).record(model()))

        client = memory_world.serve(app_of(handler), settings=quick(concurrency="reject"))
        running = asyncio.create_task(client.post(user=None))
        await asyncio.wait_for(speaking.wait(), AT_ONCE)
        again = await client.post(user=None)
        loads = memory_world.store.calls.count("load")
        go_on.set()
        assert (await running).text == "one"
        assert (again.code, loads) == ("conversation_busy", 1)

    @pytest.mark.parametrize(("user", "method", "loads"), [(None, "get", 0), ("ada", "post", 1)])
    async def test_a_stream_takes_no_lease_off_turns_nor_where_the_store_is_down(self, memory_world, user, method, loads):
        """Off turns nobody waits; and a request that goes on without memory has asked once."""

        async def handler(request):
            return StreamingResponse((await get_conversation(request)).record(iter(["one"])))

        memory_world.store.fail("load")
        client = memory_world.serve(app_of(handler), settings=quick(on_store_error="degrade"))
        answer = await getattr(client, method)(user=user)
        assert (answer.status, answer.text) == (200, "one")
        assert memory_world.store.calls.count("load") == loads

    async def test_a_visitor_who_signs_in_inside_the_app_streams_the_users_turn(self, world):
        """Its lease was taken when it was loaded; that a visitor had been made before does not take it once more."""

        async def handler(request):
            conversation = await get_conversation(request)
            await conversation.load(owner=ADA.owner)
            conversation.append(Message.user("hi"))
            return StreamingResponse(conversation.record(iter(["one ", "two"])))

        answer = await world.serve(app_of(handler)).post(user=None)
        assert (answer.status, answer.text) == (200, "one two")
        assert await world.texts() == ["user: hi", "assistant: one two"]

    async def test_two_workers_on_one_store_take_turns(self, world):
        """Two middleware instances know nothing of each other but the lease."""
        other = world.store if isinstance(world.inner, MemoryStore) else type(world.inner)(world.inner.path)
        clients = [world.serve(app_of(echo)), world.serve(app_of(echo), store=other)]
        answers = await asyncio.gather(*(clients[i % 2].post(text=str(i)) for i in range(4)))
        assert sorted(len(answer.data) for answer in answers) == [2, 4, 6, 8]
        if other is not world.store:
            await other.aclose()

    async def test_a_turn_that_waited_too_long_is_told_how_long_the_other_has_run(self, world):
        """The silence before a 409 is bounded by TURN_WAIT."""
        assert (await world.inner.load(ADA, lease=Lease("other", timedelta(seconds=30)))).holder.token
        loop = asyncio.get_running_loop()
        before = loop.time()
        answer = await world.serve(app_of(echo), settings=quick(turn_wait="0.5s", lease="0.2s")).post()
        assert (answer.status, answer.code) == (409, "conversation_busy")
        assert 0.4 < loop.time() - before < 10
        assert answer.data["running_seconds"] >= 0.4
        assert int(answer.header("retry-after")) > 20
        await world.inner.release(ADA, "other")

    async def test_only_so_many_may_wait(self, memory_world):
        """MAX_WAITING bounds what a slow model can pile up."""
        inside, go_on = asyncio.Event(), asyncio.Event()

        async def handler(request):
            inside.set()
            await go_on.wait()
            return JSONResponse("ok")

        client = memory_world.serve(app_of(handler), settings=quick(max_waiting=1))
        running = asyncio.create_task(client.post())
        await inside.wait()
        waiting = asyncio.create_task(client.post())
        await asyncio.sleep(0.05)
        assert (await client.post()).code == "conversation_busy"
        go_on.set()
        assert [(await running).status, (await waiting).status] == [200, 200]

    async def test_a_turn_longer_than_its_lease_keeps_it(self, world):
        """LEASE is how long a dead worker blocks, not how long a turn may take."""
        tokens = set()

        async def handler(request):
            (await get_conversation(request)).append(Message.user("x"))
            while world.store.calls.count("renew") < 4:
                await asyncio.sleep(0.1)
                tokens.add((await world.log()).holder.token)
            return JSONResponse("ok")

        assert (await world.serve(app_of(handler), settings=quick(lease="1.2s")).post()).status == 200
        assert len(tokens) == 1
        assert "" not in tokens

    async def test_the_lease_is_renewed_by_a_timer_and_not_by_a_task(self, memory_world):
        """A thousand turns that think are one timer: between two renewals the loop has nothing of ours to run."""
        before: set[asyncio.Task[object]] = set()
        seen: list[int] = []

        async def handler(request):
            (await get_conversation(request)).append(Message.user("x"))
            for _ in range(20):
                await asyncio.sleep(0.02)
                seen.append(len(asyncio.all_tasks() - before))
            return JSONResponse("ok")

        client = memory_world.serve(app_of(handler), settings=quick(lease="0.9s"))
        before |= asyncio.all_tasks()
        assert (await client.post()).status == 200
        renewals = memory_world.store.calls.count("renew")
        assert renewals
        assert sum(seen) <= renewals, seen  # a look may meet a renewal at work

    async def test_an_event_loop_blocked_longer_than_the_lease_loses_nothing_if_nobody_took_it(self, world):
        """A handler that computes for long renews nothing meanwhile; the lease runs out, and the turn is stored all the same."""

        async def handler(request):
            (await get_conversation(request)).append(Message.user("x"))
            time.sleep(0.5)  # noqa: ASYNC251 - the mistake in question
            holder = (await world.log()).holder
            assert holder.running < timedelta(seconds=0.4), "it never ran out"  # it may have been taken anew just now
            return JSONResponse("ok")

        assert (await world.serve(app_of(handler), settings=quick(lease="0.2s")).post()).status == 200
        assert await world.states() == ["complete"]

    async def test_an_event_loop_blocked_while_another_worker_took_the_lease_is_fenced_off(self, world):
        """The same, and somebody was there: the answer was made of a history that has gone on without it."""

        async def handler(request):
            (await get_conversation(request)).append(Message.user("late"))
            time.sleep(0.5)  # noqa: ASYNC251
            await world.inner.load(ADA, lease=Lease("another worker", timedelta(seconds=30)))
            return JSONResponse("ok")

        answer = await world.serve(app_of(handler), settings=quick(lease="0.2s")).post()
        assert (answer.status, answer.code) == (409, "conversation_fenced")
        assert await world.texts() == []
        await world.inner.release(ADA, "another worker")

    async def test_an_app_that_calls_itself_through_the_network_waits_and_is_told_then(self, world):
        """Nobody can know that the caller is the one it waits for: `TURN_WAIT` bounds it, and the outer turn goes on."""

        async def handler(request):
            (await get_conversation(request)).append(Message.user(request.url.path))
            if request.url.path == "/inner":
                return JSONResponse("ok")
            inner = asyncio.create_task(client.post("/inner"), context=contextvars.Context())  # a connection knows no context
            answer = await inner
            return JSONResponse([answer.status, answer.code, answer.data["own_turn"]])

        client = world.serve(app_of(handler), settings=quick(turn_wait="0.5s", lease="0.3s"))
        assert (await client.post("/outer")).data == [409, "conversation_busy", False]
        assert await world.texts() == ["user: /outer"]

    async def test_a_turn_longer_than_turn_max_is_fenced_off(self, world):
        """After that the worker sends no append either, and gives back a lease that would have lasted for a while."""

        async def handler(request):
            (await get_conversation(request)).append(Message.user("x"))
            await asyncio.sleep(1.1)
            return JSONResponse("ok")

        answer = await world.serve(app_of(handler), settings=quick(lease="1s", turn_max="1s")).post()
        assert (await world.log()).holder.token == ""
        assert (answer.status, answer.code) == (409, "conversation_fenced")
        assert "append" not in world.store.calls

    async def test_a_late_writer_is_fenced_off(self, world):
        """A worker that slept through its lease must not write under the one that holds it now."""

        async def handler(request):
            (await get_conversation(request)).append(Message.user("x"))
            token = (await world.log()).holder.token
            await world.inner.release(ADA, token)
            await world.inner.load(ADA, lease=Lease("other", timedelta(seconds=30)))
            return JSONResponse("ok")

        answer = await world.serve(app_of(handler)).post()
        assert (answer.status, answer.code) == (409, "conversation_fenced")
        assert await world.texts() == []
        await world.inner.release(ADA, "other")

    async def test_without_a_lease_somebody_elses_write_is_a_conflict(self, world):
        """A route off `turns` stores only if nobody wrote since the load."""

        async def handler(request):
            (await get_conversation(request)).append(Message.user("mine"))
            await world.put(Message.user("theirs"))
            return JSONResponse("ok")

        answer = await world.serve(app_of(handler)).get()
        assert (answer.status, answer.code) == (409, "conversation_conflict")
        assert await world.texts() == ["user: theirs"]

    async def test_a_conflict_that_the_handler_handles_is_left_alone(self, world):
        """The app has an answer of its own."""

        async def handler(request):
            conversation = await get_conversation(request)
            conversation.append(Message.user("mine"))
            await world.put(Message.user("theirs"))
            with pytest.raises(ConversationConflict):
                await conversation.save()
            return JSONResponse("ok")

        assert (await world.serve(app_of(handler)).get()).data == "ok"
        assert await world.texts() == ["user: theirs"]

    async def test_a_conversation_deleted_meanwhile_is_gone_for_this_request_only(self, world):
        """410, nothing of it lands in the next life, and the next request starts anew."""
        world_client = world.serve(app_of(echo))
        await world_client.post(text="old")

        async def handler(request):
            (await get_conversation(request)).append(Message.user("x"))
            await world.inner.delete(ADA)
            return JSONResponse("ok")

        answer = await world.serve(app_of(handler)).post()
        assert (answer.status, answer.code) == (410, "conversation_gone")
        assert (await world_client.post(text="new")).data == ["new", "you said new"]

    async def test_an_app_that_calls_itself_in_process_is_told_at_once(self, world):
        """A tool that posts to its own chat would wait for itself until TURN_WAIT."""

        async def handler(request):
            (await get_conversation(request)).append(Message.user("outer"))
            if request.url.path == "/inner":
                return JSONResponse("ok")
            via = "/through" if request.url.path == "/twice" else "/inner"
            answer = await client.post(via, user="bob" if via == "/through" else "ada")
            return JSONResponse(answer.data, answer.status) if answer.status != 200 else JSONResponse(answer.data)

        client = world.serve(app_of(handler))
        loop = asyncio.get_running_loop()
        for path in ("/once", "/twice"):
            before = loop.time()
            answer = await client.post(path)
            assert loop.time() - before < AT_ONCE, "it waited for itself"
            assert (answer.status, answer.data["own_turn"], answer.data["code"]) == (409, True, "conversation_busy")

    async def test_the_next_in_line_sees_what_a_long_stream_stored(self, world):
        """Whoever waited loads after the one before has ended."""
        client = world.serve(app_of(stream_of("a", "b", after=lambda: asyncio.sleep(0.1))))
        await asyncio.gather(*(client.post(text=str(i)) for i in range(2)))
        assert [text.partition(":")[0] for text in await world.texts()] == ["user", "assistant"] * 2


class TestEdits:
    async def test_clear_begins_anew_and_keeps_the_turn(self, world):
        """The log keeps what was said; nobody sees it."""
        client = world.serve(app_of(echo))
        await client.post(text="old")

        async def handler(request):
            conversation = await get_conversation(request)
            await conversation.clear()
            conversation.append(Message.user("new"))
            return JSONResponse([[m.text for m in conversation.messages], conversation.left_out, conversation.truncated])

        assert (await world.serve(app_of(handler)).post()).data == [["new"], 0, False]
        log = await world.log()
        assert (log.head.n, log.head.turns) == (3, 1)
        assert (await client.post(text="next")).data == ["new", "next", "you said next"]

    async def test_clear_after_a_save_whose_outcome_is_unknown_stores_both_in_order(self, world):
        """What was appended before stays before."""

        async def handler(request):
            conversation = await get_conversation(request)
            conversation.append(Message.user("before"))
            world.store.fail("append", times=1)
            with pytest.raises(StoreUnavailable):
                await conversation.save()
            await conversation.clear()
            conversation.append(Message.user("after"))
            return JSONResponse("ok")

        assert (await world.serve(app_of(handler)).post()).status == 200
        assert await world.texts() == ["user: after"]
        assert (await world.log()).head.n == 3

    async def test_clear_beside_a_save_that_runs_waits_for_it(self, world):
        """Saves happen one after the other."""

        async def handler(request):
            conversation = await get_conversation(request)
            conversation.append(Message.user("before"))
            world.store.delay = timedelta(milliseconds=20)
            await asyncio.gather(conversation.save(), conversation.clear())
            world.store.delay = timedelta()
            return JSONResponse("ok")

        answer = await world.serve(app_of(handler)).post()
        assert answer.status == 200
        assert (await world.log()).head.turns == 0

    async def test_delete_ends_the_turn_and_the_lease(self, world):
        """Missing and deleted are one outcome for whoever comes next."""
        client = world.serve(app_of(echo))
        await client.post(text="old")

        async def handler(request):
            conversation = await get_conversation(request)
            existed = await conversation.delete()
            with pytest.raises(TurnClosed):
                conversation.append(Message.user("x"))
            return JSONResponse([existed, [m.text for m in conversation.messages]])

        deleting = world.serve(app_of(handler))
        assert (await deleting.request("DELETE")).data == [True, []]
        assert (await deleting.request("POST")).data == [False, []]
        assert (await client.post(text="new")).data == ["new", "you said new"]

    async def test_a_delete_that_fails_loses_nothing(self, world):
        """The store is asked first."""

        async def handler(request):
            conversation = await get_conversation(request)
            conversation.append(Message.user("kept"))
            world.store.fail("delete", times=1)
            with pytest.raises(StoreUnavailable):
                await conversation.delete()
            return JSONResponse("ok")

        await world.serve(app_of(handler)).post()
        assert await world.texts() == ["user: kept"]


class TestEvidence:
    async def test_a_page_that_was_read_before_a_turn_was_stored_is_no_loss(self, memory_world):
        """Its answer comes later than the acknowledgement, in the same worker: a history shown while a stream ends."""
        read_it, go_on = asyncio.Event(), asyncio.Event()

        class SlowWire(FaultyStore):
            async def load(self, key, **options):
                log = await super().load(key, **options)
                if options.get("lease") is None:
                    read_it.set()
                    await go_on.wait()
                return log

        async def handler(request):
            if request.method == "POST":
                return await echo(request)
            return JSONResponse([message.text for message in (await get_conversation(request)).messages])

        await memory_world.put(Message.user("old"))
        client = memory_world.serve(app_of(handler), store=SlowWire(memory_world.inner))
        looking = asyncio.create_task(client.get())
        await read_it.wait()
        assert (await client.post(text="new")).status == 200
        go_on.set()
        answer = await looking
        assert (answer.status, answer.data) == (200, ["old"])

    async def test_what_this_worker_saw_acknowledged_and_the_store_lost_is_reported_once(self, memory_world):
        """A silent restart is the loss nobody notices."""
        client = memory_world.serve(app_of(echo))
        await client.post(text="old")
        memory_world.store.store = MemoryStore()
        answer = await client.post(text="new")
        assert (answer.status, answer.code) == (409, "history_lost")
        assert answer.data["revision"] == "-.0.-"
        assert (await client.post(text="new")).data == ["new", "you said new"]

    async def test_what_the_client_saw_and_the_store_lost_is_reported(self, memory_world):
        """The evidence survives the worker: the client sends back what it saw."""
        client = memory_world.serve(app_of(echo))
        seen = (await client.post(text="old")).header("conversation-revision")
        memory_world.store.store = MemoryStore()
        answer = await memory_world.serve(app_of(echo)).post(headers={"conversation-revision": seen})
        assert (answer.status, answer.code) == (409, "history_lost")
        again = await memory_world.serve(app_of(echo)).post(headers={"conversation-revision": answer.data["revision"]})
        assert again.status == 200

    async def test_a_route_that_does_not_touch_its_conversation_does_not_spend_the_evidence(self, memory_world):
        """Reported means that somebody was told."""

        async def handler(request):
            return await echo(request) if request.method == "POST" else PlainTextResponse("fine")

        client = memory_world.serve(app_of(handler))
        await client.post(text="old")
        memory_world.store.store = MemoryStore()
        assert (await client.get()).text == "fine"
        assert (await client.post(text="new")).code == "history_lost"

    async def test_off_turns_it_is_raised_on_first_touch_and_once(self, memory_world):
        """A handler may catch it; then it was told."""

        async def handler(request):
            if request.method == "POST":
                return await echo(request)
            try:
                return JSONResponse((await get_conversation(request)).total_turns)
            except HistoryLost as error:
                return JSONResponse(error.revision)

        client = memory_world.serve(app_of(handler))
        await client.post(text="old")
        memory_world.store.store = MemoryStore()
        assert [(await client.get()).data for _ in range(2)] == ["-.0.-", 0]

    async def test_a_history_that_outlived_its_ttl_says_so_once(self, world):
        """It has expired, it was not lost."""
        client = world.serve(app_of(echo), settings=quick(ttl="0.2s"))
        await client.post(text="old")
        await asyncio.sleep(0.3)
        answer = await client.post(text="new")
        assert (answer.status, answer.code) == (409, "history_expired")
        assert (await client.post(text="new")).data == ["new", "you said new"]

    async def test_a_conversation_deleted_elsewhere_is_no_loss(self, world):
        """A tombstone is an explanation."""
        client = world.serve(app_of(echo))
        await client.post(text="old")
        await world.inner.delete(ADA)
        assert (await client.post(text="new")).data == ["new", "you said new"]

    @pytest.mark.parametrize("claim", ["", "nonsense", "a.b.c", "x.1.\udcff", "-.0.-", "a.99999999999999999999.b", "\xe9.1.x"])
    async def test_a_claim_that_is_no_revision_is_ignored(self, memory_world, claim):
        """A header is not to be trusted with a 500."""
        raw = claim.encode("latin-1", "ignore").decode("latin-1")
        answer = await memory_world.serve(app_of(echo)).post(text="x", headers={"conversation-revision": raw})
        assert answer.status == 200


class TestHeaders:
    async def test_vary_and_cache_control_are_appended_never_replaced(self, world):
        """What the app said stands."""

        async def handler(request):
            await get_conversation(request)
            return JSONResponse("ok", headers={"vary": "accept", "cache-control": "max-age=60", "x-mine": "1"})

        answer = await world.serve(app_of(handler)).post()
        assert answer.all("vary")[0] == "accept"
        assert "Cookie" in answer.all("vary")[1]
        assert answer.all("cache-control") == ["max-age=60", "private, no-store"]
        assert answer.header("x-mine") == "1"

    async def test_a_response_that_touched_nothing_is_left_as_it_is(self, world):
        """A static file behind the middleware stays cacheable."""

        async def handler(request):
            return JSONResponse("ok")

        answer = await world.serve(app_of(handler)).post()
        assert sorted(name for name, _ in answer.headers) == ["content-length", "content-type"]

    async def test_the_revision_is_told_when_it_is_known_at_the_start(self, world):
        """After the commit for JSON; with the question for a stream."""
        client = world.serve(app_of(echo))
        answer = await client.post(text="1")
        assert answer.header("conversation-revision") == (await world.log()).head.revision
        streamed = await world.serve(app_of(stream_of("a"))).post(text="2")
        log = await world.log()
        assert streamed.header("conversation-revision") == f"{log.head.epoch}.2.{log.entries[-2].entry.id}"

    async def test_debug_headers_say_what_was_done_without_naming_anybody(self, world):
        """Off by default."""
        client = world.serve(app_of(echo), settings=quick(debug_headers=True))
        await client.post(text="1")
        said = (await client.post(text="2")).header("convmem-debug")
        facts = dict(fact.split("=", 1) for fact in said.split("; "))
        assert facts["owner"] == "callable"
        assert (facts["turns"], facts["loaded"], facts["left-out"], facts["outcome"]) == ("2", "1", "0", "stored")
        assert facts["conversation"] == ADA.digest
        assert not re.search(r"\bada\b", said.replace(facts["worker"], "")), "not a word; an id may have these digits"
        assert facts["worker"].endswith(f"/{os.getpid()}")
        assert facts["revision"] == (await world.log()).head.revision
        assert (await world.serve(app_of(echo)).post(text="3")).header("convmem-debug") is None

    async def test_debug_headers_say_how_a_turn_stands_that_is_not_plainly_stored(self, world):
        """Of a stream that it has begun, of a retry that it is replayed, of a problem which one it is, of no memory that there is none."""

        def outcome(answer):
            return dict(fact.split("=", 1) for fact in answer.header("convmem-debug").split("; "))["outcome"]

        debug = quick(debug_headers=True, on_store_error="degrade", turn_wait="0.5s", lease="0.2s")
        client = world.serve(app_of(echo), settings=debug)
        assert outcome(await world.serve(app_of(stream_of("a")), settings=debug).post(text="1")) == "open"
        key = {"idempotency-key": "k"}
        assert [outcome(await client.post(text="2", headers=key)) for _ in range(2)] == ["stored", "replayed"]
        await world.inner.load(ADA, lease=Lease("other", timedelta(seconds=30)))
        busy = await client.post(text="3")
        assert (busy.status, outcome(busy)) == (409, "conversation_busy")
        assert ADA.digest in (busy.header("convmem-debug") or "")
        await world.inner.release(ADA, "other")
        world.store.fail("load", times=1)
        assert outcome(await client.post(text="4")) == "degraded"


class TestLimits:
    @pytest.mark.parametrize(("setting", "value"), [("max_message_bytes", 250), ("max_turn_bytes", 250), ("max_turn_messages", 1)])
    async def test_too_much_is_a_413_that_names_the_setting(self, world, setting, value):
        """All or none: nothing of it was appended."""
        limits = {setting: value, **({"max_message_bytes": 250} if setting == "max_turn_bytes" else {})}
        client = world.serve(app_of(echo), settings=quick(**limits))
        answer = await client.post(text="x" * 200)
        assert (answer.status, answer.code) == (413, "limit_exceeded")
        assert answer.data["limit"] == f"CONVMEM_{setting.upper()}" or setting == "max_turn_bytes"
        assert await world.texts() == []

    async def test_the_same_text_twice_in_one_turn_is_named(self, memory_world):
        """A handler and an adapter that both append it."""

        async def handler(request):
            conversation = await get_conversation(request)
            conversation.append(Message.user("hi"))
            with pytest.warns(UserWarning, match="twice"):
                conversation.append(Message.user("hi"))
            return JSONResponse("ok")

        assert (await memory_world.serve(app_of(handler)).post()).status == 200

    async def test_a_message_already_in_the_turn_is_stored_once(self, world):
        """By its id, without a word: adapters hand over whole lists."""

        async def handler(request):
            conversation = await get_conversation(request)
            message = Message.user("hi")
            conversation.append(message, message)
            conversation.append(message)
            return JSONResponse("ok")

        await world.serve(app_of(handler)).post()
        assert await world.texts() == ["user: hi"]

    async def test_what_cannot_be_stored_is_a_500_before_the_model_runs(self, memory_world):
        """The app built it; the field is named."""

        async def handler(request):
            (await get_conversation(request)).append(Message.user("hi", metadata={"when": object()}))

        answer = await memory_world.serve(app_of(handler)).post()
        assert (answer.status, answer.code) == (500, "invalid_message")
        assert "metadata.when" in answer.data["detail"]


async def test_busy_and_interrupted_are_told_to_a_reader_of_a_running_turn(world):
    """The second tab sees "still answering", and the question."""
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def model():
        asked.set()
        yield "a"
        await go_on.wait()

    async def handler(request):
        conversation = await get_conversation(request)
        if request.method == "POST":
            conversation.append(Message.user("hi"))
            return StreamingResponse(conversation.record(model()))
        return JSONResponse([conversation.busy, conversation.interrupted, [m.state for m in conversation.messages]])

    client = world.serve(app_of(handler))
    running = asyncio.create_task(client.post())
    await asked.wait()
    assert (await client.get()).data == [True, False, ["running"]]
    go_on.set()
    await running
    assert (await client.get()).data == [False, False, ["complete", "complete"]]


async def test_reading_the_body_of_a_request_works_through_the_middleware(memory_world):
    """`receive` is passed on as it is."""

    async def app(scope, receive, send):
        await plain(send, await read(receive))

    assert (await memory_world.serve(app).post(text="hello")).text == "hello"


async def test_busy_carries_the_facts_to_a_handler_too():
    """Attributes, so that nobody parses a message."""
    error = ConversationBusy(1.25, retry_after=3)
    assert (error.running_seconds, error.retry_after, error.own_turn) == (1.25, 3, False)
