"""The middleware from outside: which requests it takes, whose they are, how it starts and stops, and what it leaves alone."""

import asyncio
import logging
from datetime import timedelta
from typing import Annotated, Any, cast

import fastapi
import httpx
import litestar
import pytest
from fastapi import Depends, FastAPI, HTTPException
from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, AuthenticationBackend, SimpleUser
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Mount, Route
from starlette.types import Receive

from convmem import (
    Conversation,
    ConversationMiddleware,
    ConversationNotLoaded,
    Identity,
    InvalidIdentity,
    Message,
    NoConversation,
    SessionKey,
    SQLiteStore,
    TurnClosed,
    Window,
    current_conversation,
    from_callable,
    get_conversation,
    new_session_id,
)
from convmem.identity import KeyRing, new_session_id as issue
from convmem.stores.base import Lease
from convmem.stores.memory import MemoryStore
from convmem.testing import FaultyStore
from tests import asgi_client
from tests.asgi_client import ADA, AT_ONCE, SECRET, Client, plain, quick, user_header

pytestmark = pytest.mark.asyncio
world, memory_world = asgi_client.world, asgi_client.memory_world


async def say(request) -> JSONResponse:
    """Append one message and answer with all, and with whose they are."""
    conversation = await get_conversation(request)
    conversation.append(Message.user("x"))
    return JSONResponse({"owner": conversation.owner, "session": conversation.session_id, "count": len(conversation.messages)})


def app_of(handler=say, **options):
    return Starlette(routes=[Route("/{rest:path}", handler, methods=["GET", "POST", "OPTIONS"])], **options)


class TestRoutes:
    async def test_other_scopes_and_options_pass_untouched(self, memory_world):
        """The very same objects reach the app, and no store is asked."""
        seen = []

        async def app(scope, receive, send):
            seen.append((scope, receive, send))

        client = memory_world.serve(app)

        async def receive():
            return {}

        async def send(message):
            pass

        options = {"type": "http", "method": "OPTIONS", "path": "/chat"}
        for scope in ({"type": "webtransport"}, options):
            before = dict(scope)
            await client.app(scope, receive, send)
            assert seen.pop() == (scope, receive, send)
            assert scope == before
        assert memory_world.store.calls == []

    async def test_off_paths_there_is_no_conversation_and_the_error_has_the_line(self, memory_world):
        """Also no trip, no lease and no header."""
        found = []

        async def handler(request):
            if request.url.path == "/other":
                try:
                    await get_conversation(request)
                except NoConversation as error:
                    found.append(str(error))
            return JSONResponse("ok")

        client = memory_world.serve(app_of(handler), paths=["/chat*", "/a.b"])
        answer = await client.post("/other")
        assert "paths=[...]" in found[0]
        assert "/chat*, /a.b" in found[0]
        assert memory_world.store.calls == ["start", "chunk", "end"]
        assert len(answer.headers) == 2
        assert NoConversation.status == 500

    @pytest.mark.parametrize(
        ("path", "covered"),
        [
            ("/chat", True),
            ("/chat/1/2", True),
            ("/chatter", True),
            ("/a.b", True),
            ("/chat\n", True),
            ("/axb", False),
            ("/", False),
            ("/x/chat", False),
        ],
    )
    async def test_a_star_matches_anything_and_the_rest_is_literal(self, memory_world, path, covered):
        """A dot is a dot, and a slash is no border."""
        seen = []

        async def app(scope, receive, send):
            seen.append(isinstance(scope.get("convmem"), Conversation))
            await plain(send)

        await memory_world.serve(app, paths=["/chat*", "/a.b"]).get(path)
        assert seen == [covered]

    async def test_paths_are_below_root_path(self, memory_world):
        """Behind a proxy's prefix the patterns stay the same, whether the server repeats it in the path or not."""
        client = memory_world.serve(app_of(), paths=["/chat"])
        for path, root in (("/api/chat", "/api"), ("/chat", "/api"), ("/chat", "")):
            assert (await client.post(path, root_path=root)).header("conversation-revision"), (path, root)

    async def test_turns_default_to_post_and_other_methods_take_no_lease(self, memory_world):
        """A GET that reads history waits for nobody."""
        held = []

        async def handler(request):
            await get_conversation(request)
            held.append((request.method, bool((await memory_world.log()).holder.token)))
            return JSONResponse("ok")

        client = memory_world.serve(app_of(handler))
        await client.post()
        await client.get()
        assert held == [("POST", True), ("GET", False)]

    async def test_turns_may_name_methods_and_policies_and_the_first_match_wins(self, memory_world):
        """A mapping chooses for each route."""
        inside, go_on = asyncio.Event(), asyncio.Event()

        async def handler(request):
            await get_conversation(request)
            if request.url.path == "/slow":
                inside.set()
                await go_on.wait()
            return JSONResponse("ok")

        turns = {"GET /events": "wait", "/slow": "wait", "POST /quick*": "reject", "*": "wait"}
        client = memory_world.serve(app_of(handler), turns=turns)
        running = asyncio.create_task(client.post("/slow"))
        await inside.wait()
        assert (await client.post("/quick/1")).code == "conversation_busy"
        waiting = asyncio.create_task(client.get("/events"))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        go_on.set()
        assert [(await running).status, (await waiting).status] == [200, 200]

    async def test_a_pattern_without_a_method_never_leases_a_head(self, memory_world):
        """HEAD is asked by monitors."""
        held = []

        async def app(scope, receive, send):
            held.append(bool((await memory_world.log()).holder.token))
            await plain(send)

        client = memory_world.serve(app, turns=["*"])
        for method in ("HEAD", "GET", "DELETE"):
            await client.request(method)
        assert held == [False, True, True]

    async def test_appending_without_a_lease_works_and_logs_the_line_to_add_once(self, memory_world, caplog):
        """Also when it is the conflict that shows it."""
        caplog.set_level(logging.WARNING, "convmem")

        async def handler(request):
            (await get_conversation(request)).append(Message.user("mine"))
            if request.url.path == "/conflict":
                await memory_world.put(Message.user("theirs"))
            return JSONResponse("ok")

        client = memory_world.serve(app_of(handler))
        assert (await client.get("/conflict")).code == "conversation_conflict"
        assert (await client.get("/fine")).status == 200
        lines = [record.getMessage() for record in caplog.records if "turns=" in record.getMessage()]
        assert len(lines) == 1
        assert "'GET /conflict'" in lines[0]

    @pytest.mark.parametrize(
        ("options", "word"),
        [
            ({"paths": "/chat"}, "paths=['/chat']"),
            ({"paths": ["chat"]}, "paths='chat'"),
            ({"turns": ["post /chat"]}, "POST /chat"),
            ({"turns": {"/chat": "never"}}, "'wait' or 'reject'"),
            ({"load": "lazy"}, "'eager', 'deferred'"),
            ({"load": ["chat"]}, "begins with / or *"),
        ],
    )
    async def test_a_wrong_option_is_told_at_the_start_and_by_every_request(self, memory_world, options, word):
        """The constructor raises nothing: servers swallow that."""
        client = memory_world.serve(app_of(), **options)
        for _ in range(2):
            answer = await client.post()
            assert (answer.status, answer.code) == (503, "configuration")
        sent = await lifespan(client.app)
        assert sent[0]["type"] == "lifespan.startup.failed"
        assert word in sent[0]["message"]


class TestScope:
    async def test_the_servers_own_scope_and_state_are_never_written_to(self, memory_world):
        """Uvicorn hands the same state to every request."""
        state = {"db": object()}
        seen = []

        async def app(scope, receive, send):
            scope["state"]["mine"] = 1
            seen.append((scope["state"]["db"], scope["state"]["conversation"], scope["convmem"]))
            await plain(send)

        client = memory_world.serve(app)
        client.state = state
        answer = await client.post()
        assert list(state) == ["db"]
        assert "convmem" not in answer.scope
        assert seen[0][0] is state["db"]
        assert seen[0][1] is seen[0][2]

    @pytest.mark.parametrize(("key", "names"), [(None, ["conversation"]), ("memory", ["memory"]), ("", [])])
    async def test_the_state_key_can_be_renamed_or_left_out(self, memory_world, key, names):
        """An app may dump its state."""
        seen = []

        async def app(scope, receive, send):
            seen.append(list(scope.get("state", {})))
            await plain(send)

        await memory_world.serve(app, state_key=key).post()
        assert seen == [names]

    async def test_the_same_object_is_found_everywhere(self, memory_world):
        """By request, by scope, by anything with a scope, in the context, in a thread, in the state."""

        class Wrapper:
            def __init__(self, **fields):
                self.__dict__.update(fields)

        async def handler(request):
            one = await get_conversation(request)
            found = [
                request.state.conversation,
                current_conversation(),
                await get_conversation(request.scope),
                await get_conversation(cast("HTTPConnection", Wrapper(scope=request.scope))),
                await get_conversation(cast("HTTPConnection", Wrapper(scope=None, transport=Wrapper(scope=request.scope)))),
                await run_in_threadpool(current_conversation),
                await asyncio.create_task(get_conversation(cast("HTTPConnection", Wrapper(scope=None)))),
            ]
            return JSONResponse([other is one for other in found])

        assert (await memory_world.serve(app_of(handler)).post()).data == [True] * 7

    async def test_outside_of_any_request_the_error_names_the_middleware(self):
        """The first thing somebody forgets."""
        with pytest.raises(NoConversation, match="add_middleware"):
            current_conversation()
        with pytest.raises(NoConversation, match="add_middleware"):
            await get_conversation(cast("HTTPConnection", {"type": "http"}))

    async def test_a_sync_handler_appends_from_its_thread(self, world):
        """Half of all FastAPI handlers are `def`."""
        app = FastAPI()

        @app.post("/chat")
        def chat(conversation: Annotated[Conversation, Depends(get_conversation)]) -> int:
            conversation.append(Message.user("hi"))
            current_conversation().append(Message.assistant("hello"))
            return len(conversation.messages)

        client = world.serve(app)
        assert [(await client.post()).data for _ in range(2)] == [2, 4]
        visitor = await client.post(user=None)
        assert visitor.data == 2
        assert visitor.all("set-cookie")


class TestFrameworks:
    async def test_fastapi_gets_no_query_parameter_from_the_dependency(self):
        """An optional or `Any` annotation would become a public one."""
        app = FastAPI()

        @app.post("/chat")
        async def chat(text: str, conversation: Annotated[Conversation, Depends(get_conversation)]) -> str:
            return text

        operation = app.openapi()["paths"]["/chat"]["post"]
        assert [parameter["name"] for parameter in operation["parameters"]] == ["text"]
        assert "requestBody" not in operation

    async def test_the_example_of_the_documentation_works(self, world):
        """FastAPI, `add_middleware`, a dependency, a string as the answer."""
        app = FastAPI()
        app.add_middleware(
            ConversationMiddleware, paths=["/chat*"], store=world.store, settings=quick(), resolvers=[from_callable(user_header)]
        )

        @app.post("/chat")
        async def chat(text: str, conversation: Annotated[Conversation, Depends(get_conversation)]) -> str:
            conversation.append(Message.user(text))
            answer = " | ".join(message.text for message in conversation.messages)
            conversation.append(Message.assistant(answer))
            return answer

        client = Client(app)
        await client.post(query="text=one")
        assert (await client.post(query="text=two")).data == "one | one | two"

    async def test_litestar_finds_it_too(self, world):
        """It reads `scope["state"]`, and hands the scope to its handlers."""

        @litestar.post("/chat", sync_to_thread=True)
        def chat(request: litestar.Request) -> int:
            request.state.conversation.append(Message.user("hi"))
            return len(current_conversation().messages)

        @litestar.get("/stream")
        async def stream(request: litestar.Request) -> litestar.response.Stream:
            conversation = await get_conversation(cast("HTTPConnection", request))
            conversation.append(Message.user("hi"))
            return litestar.response.Stream(conversation.record(["a", "b"]))

        client = world.serve(litestar.Litestar([chat, stream]))
        assert [(await client.post()).data for _ in range(2)] == [1, 2]
        assert (await client.get("/stream")).text == "ab"
        assert (await world.texts())[-1] == "assistant: ab"

    async def test_fastapi_answers_an_error_of_ours_with_its_problem_unless_a_handler_is_registered(self, memory_world):
        """`add_exception_handler` is an app's way to handle it."""
        app = FastAPI()

        @app.post("/chat")
        async def chat(conversation: Annotated[Conversation, Depends(get_conversation)]) -> None:
            await conversation.load(session_id="no id at all")

        client = memory_world.serve(app)
        assert (await client.post()).code == "invalid_identity"

        @app.exception_handler(InvalidIdentity)
        async def mine(request: Request, error: InvalidIdentity) -> JSONResponse:
            return JSONResponse("mine", status_code=422)

        app.middleware_stack = None
        assert (await client.post()).data == "mine"

    async def test_a_mounted_app_has_the_conversation_of_the_whole(self, memory_world):
        """Routing rewrites root_path in the scope; identity was read before."""
        app = Starlette(routes=[Mount("/v1", app=app_of())])
        client = memory_world.serve(app, paths=["/v1/*"])
        assert [(await client.post("/v1/chat")).data["count"] for _ in range(2)] == [1, 2]

    async def test_problems_pass_through_a_cors_middleware_that_stands_outside(self, memory_world):
        """A browser could not read them otherwise."""
        memory_world.store.fail("load")
        inner = memory_world.serve(app_of()).app
        client = Client(CORSMiddleware(inner, allow_origins=["https://a.test"]))
        answer = await client.post(headers={"origin": "https://a.test"})
        assert (answer.code, answer.header("access-control-allow-origin")) == ("store_unavailable", "https://a.test")


class TestVisitors:
    async def test_a_visitor_is_minted_when_the_conversation_is_touched_and_comes_back_by_cookie(self, world):
        """P2, without any account."""
        client = world.serve(app_of())
        first = await client.post(user=None)
        assert first.header("convmem-identity") == "new"
        assert "HttpOnly" in first.header("set-cookie")
        assert world.store.calls == ["append", "start", "chunk", "end"]
        second = await client.post(user=None)
        assert second.data == {**first.data, "count": 2}
        assert second.header("convmem-identity") is None

    async def test_two_visitors_never_meet(self, world):
        """P3."""
        one, two = world.serve(app_of()), world.serve(app_of())
        owners = [(await client.post(user=None)).data["owner"] for client in (one, two, one, two)]
        assert owners[0] == owners[2] != owners[1] == owners[3]

    async def test_a_request_that_touches_nothing_sets_no_cookie_and_asks_no_store(self, memory_world):
        """A static page makes nobody a visitor."""

        async def handler(request):
            assert request.state.conversation is not None
            return JSONResponse("ok")

        answer = await memory_world.serve(app_of(handler)).post(user=None)
        assert memory_world.store.calls == ["start", "chunk", "end"]
        assert answer.all("set-cookie") == answer.all("vary") == []

    @pytest.mark.parametrize("touch", ["state", "get_conversation", "current_conversation"])
    async def test_every_way_to_touch_it_counts(self, memory_world, touch):
        """A member of the state object too, not only the functions."""

        async def handler(request):
            if touch == "state":
                assert request.state.conversation.messages == []
            elif touch == "current_conversation":
                current_conversation()
            else:
                await get_conversation(request)
            return StreamingResponse(iter(["ok"]))

        assert (await memory_world.serve(app_of(handler)).post(user=None)).all("set-cookie")

    async def test_a_visitor_first_touched_inside_a_stream_is_too_late(self, memory_world):
        """The cookie could not be set any more; the message says where to take the conversation."""

        async def body(request):
            yield "a"
            current_conversation().append(Message.user("x"))

        async def handler(request):
            return StreamingResponse(body(request))

        answer = await memory_world.serve(app_of(handler)).post(user=None)
        assert not answer.whole
        assert type(answer.raised).__name__ == "VisitorTooLate"
        assert "not inside the generator" in str(answer.raised)

    async def test_a_streamed_first_answer_carries_the_cookie_and_is_stored(self, world):
        """The start goes out after the question, and under a lease: whoever has the cookie may come again."""

        async def handler(request):
            conversation = await get_conversation(request)
            conversation.append(Message.user("hi"))
            return StreamingResponse(conversation.record(["a"]))

        client = world.serve(app_of(handler))
        answer = await client.post(user=None)
        assert answer.all("set-cookie")
        assert world.store.calls == ["load", "append", "start", "chunk", "append", "end"]

    async def test_a_tampered_cookie_is_never_adopted_and_said_so(self, world):
        """A new visitor, and the answer tells."""
        client = world.serve(app_of())
        owner = (await client.post(user=None)).data["owner"]
        (name, token), *_ = client.cookies.items()
        client.cookies[name] = token[:-1] + ("A" if token[-1] != "A" else "B")
        answer = await client.post(user=None)
        assert answer.data["owner"] != owner
        assert answer.header("convmem-identity") == "rejected"

    async def test_a_foreign_session_id_reaches_nobodys_conversation_but_ones_own(self, world):
        """The owner is part of the address."""
        client = world.serve(app_of())
        await client.post(headers={"x-session-id": "plans"})
        other = await client.post(user="bob", headers={"x-session-id": "plans"})
        assert other.data == {"owner": "user:bob", "session": "plans", "count": 1}

    async def test_a_session_id_alone_is_no_identity_for_a_program(self, memory_world):
        """It must not be somebody's forgotten conversation, and not silently a new one."""
        client = memory_world.serve(app_of())
        answer = await client.post(user=None, headers={"x-session-id": "plans"})
        assert (answer.status, answer.code) == (400, "session_id_not_trusted")
        browser = await client.post(user=None, headers={"x-session-id": "plans", "sec-fetch-site": "same-origin"})
        assert browser.data["session"] == "plans"

    async def test_a_trusted_session_header_is_its_own_owner(self, memory_world):
        """Services behind their own gateway."""
        client = memory_world.serve(app_of(), settings=quick(trust_session_header=True))
        answers = [await client.post(user=None, headers={"x-session-id": name}) for name in ("a", "a", "b")]
        assert [(answer.data["owner"], answer.data["count"]) for answer in answers] == [("header:a", 1), ("header:a", 2), ("header:b", 1)]

    async def test_a_cross_site_request_without_its_cookie_is_told_and_no_cookie_is_set(self, memory_world):
        """A cross-site POST must not overwrite the visitor's cookie."""
        answer = await memory_world.serve(app_of()).post(user=None, headers={"sec-fetch-site": "cross-site"})
        assert (answer.status, answer.code) == (403, "identity_cross_site")
        assert answer.all("set-cookie") == []
        assert "CONVMEM_COOKIE_SAMESITE" in answer.data["detail"]

    async def test_two_parallel_first_requests_are_two_visitors(self, world):
        """Said in the documentation; the cookie that arrives last stays."""
        both = asyncio.Barrier(2)

        async def meet(request):
            await both.wait()
            return await say(request)

        client = world.serve(app_of(meet))
        answers = await asyncio.gather(client.post(user=None), client.post(user=None))
        assert len({answer.data["owner"] for answer in answers}) == 2

    async def test_a_program_without_cookies_asks_for_a_token_and_gets_it_once(self, world):
        """`Convmem-Visitor: new`, then the token of the answer."""
        client = world.serve(app_of())
        first = await client.post(user=None, headers={"convmem-visitor": "new"})
        token = first.header("convmem-visitor")
        assert first.all("set-cookie") == []
        assert "no-store" in first.header("cache-control")
        second = await client.post(user=None, headers={"convmem-visitor": token, "x-session-id": "plans"})
        assert second.data == {"owner": first.data["owner"], "session": "plans", "count": 1}

    async def test_two_principals_that_differ_are_a_401(self, memory_world):
        """Never the first that wins silently."""
        resolvers = [from_callable(lambda scope: "ada"), from_callable(lambda scope: "bob")]
        answer = await memory_world.serve(app_of(), resolvers=resolvers).post()
        assert (answer.status, answer.code) == (401, "principal_conflict")

    async def test_a_tenant_comes_from_a_resolver_alone(self, world):
        """Two tenants' users of one name are two owners."""
        tenant = ["a"]
        client = world.serve(app_of(), resolvers=[from_callable(lambda scope: Identity(owner="user:ada", tenant=tenant[0]))])
        await client.post(headers={"x-tenant": "b"})
        tenant[0] = "b"
        assert (await client.post()).data["count"] == 1


class TestIssuedIds:
    async def test_an_id_that_was_not_handed_out_is_a_404(self, world):
        """`CLIENT_IDS=issued`: missing and foreign are one answer, and no lease stays."""
        client = world.serve(app_of(), settings=quick(client_ids="issued"))
        for name in ("mine", "x" * 80):
            answer = await client.post(headers={"x-session-id": name})
            assert (answer.status, answer.code) == (404, "unknown_conversation")
        assert (await client.post()).data["session"] == "default"

    async def test_an_id_that_was_handed_out_is_good_for_its_owner_only(self, world):
        """It ends in a MAC over owner and tenant."""

        async def handler(request):
            if request.url.path == "/new":
                return JSONResponse(new_session_id((await get_conversation(request)).owner))
            return await say(request)

        client = world.serve(app_of(handler), settings=quick(client_ids="issued"))
        name = (await client.get("/new")).data
        assert (await client.post(headers={"x-session-id": name})).data["session"] == name
        assert (await client.post(user="bob", headers={"x-session-id": name})).code == "unknown_conversation"

    async def test_an_id_in_the_body_is_held_to_the_same_rule(self, world):
        """`load(session_id=...)` is one of the ways to say which."""

        async def handler(request):
            conversation = await get_conversation(request)
            if request.url.path == "/new":
                return JSONResponse(new_session_id("user:ada"))
            await conversation.load(session_id=(await request.body()).decode())
            return await say(request)

        for load in ("eager", ["/chat"]):
            client = world.serve(app_of(handler), settings=quick(client_ids="issued"), load=load)
            answer = await client.post(text="mine")
            assert (answer.status, answer.code) == (404, "unknown_conversation")
            name = (await client.get("/new")).data
            assert (await client.post(text=name)).data["session"] == name
            assert (await client.post(text=name, user="bob")).code == "unknown_conversation"

    async def test_a_new_visitor_cannot_bring_an_id_either(self, world):
        """Nobody has handed it out."""

        async def handler(request):
            await (await get_conversation(request)).load(session_id="mine")
            return await say(request)

        client = world.serve(app_of(handler), settings=quick(client_ids="issued"), load="deferred")
        answer = await client.post(user=None, headers={"sec-fetch-site": "same-origin"})
        assert (answer.code, answer.all("set-cookie")) == ("unknown_conversation", [])

    async def test_an_id_from_the_body_without_an_owner_is_refused_as_one_from_the_header_is(self, world):
        """A client without cookies would be somebody new with each request, and its chat would forget without a word."""

        async def handler(request):
            await (await get_conversation(request)).load(session_id=(await request.body()).decode())
            return await say(request)

        client = world.serve(app_of(handler), load="deferred")
        assert (await client.post(user=None, text="mine")).code == "session_id_not_trusted"
        assert (await client.post(user=None, text="default")).status == 200
        own_site = await client.post(user=None, text="mine", headers={"sec-fetch-site": "same-origin"})
        assert own_site.data["session"] == "mine"

    async def test_an_issued_id_of_a_user_who_signs_in_inside_the_app_is_good(self, world):
        """Judged by the owner that `load` names, not by the one the request seemed to have."""

        async def handler(request):
            await (await get_conversation(request)).load(owner="user:ada")
            return await say(request)

        name = new_session_id_for("user:ada")
        client = world.serve(app_of(handler), settings=quick(client_ids="issued"), load="deferred")
        answer = await client.post(user=None, headers={"x-session-id": name})
        assert (answer.status, answer.data["session"]) == (200, name)


def new_session_id_for(owner: str) -> str:
    return issue(owner, keyring=KeyRing([SECRET.encode()]), issued=True)


class TestDeferred:
    @pytest.mark.parametrize("load", ["deferred", ["/chat*"]])
    async def test_nothing_happens_before_load(self, world, load):
        """No owner, no trip, no lease; and what is used too early says what to do."""
        raised = []

        async def handler(request):
            conversation = await get_conversation(request)
            for use in (lambda: conversation.messages, lambda: conversation.append(Message.user("x")), lambda: conversation.owner):
                try:
                    use()
                except Exception as error:  # noqa: BLE001 - looked at below
                    raised.append(f"{type(error).__name__} {error}")
            with pytest.raises(ConversationNotLoaded):
                await conversation.save()
            assert world.store.calls == []
            await conversation.load(owner="user:ada", session_id="plans")
            return await say(request)

        answer = await world.serve(app_of(handler), load=load).post()
        assert answer.data == {"owner": "user:ada", "session": "plans", "count": 1}
        assert world.store.calls == ["load", "append", "start", "chunk", "end"]
        assert len(raised) == 3
        assert all(text.startswith("ConversationNotLoaded") and "await conversation.load(" in text for text in raised)
        world.keys.append(SessionKey("user:ada", "plans"))

    async def test_a_handler_that_never_loads_answers_as_if_there_were_no_memory(self, memory_world):
        """And one that appends all the same gets a 500 with the line."""

        async def handler(request):
            conversation = await get_conversation(request)
            if request.url.path == "/use":
                conversation.append(Message.user("x"))
            return JSONResponse("ok")

        client = memory_world.serve(app_of(handler), load="deferred")
        fine = await client.post("/fine", user=None)
        assert (fine.data, fine.all("set-cookie"), fine.all("vary")) == ("ok", [], [])
        answer = await client.post("/use")
        assert (answer.status, answer.code) == (500, "conversation_not_loaded")
        assert "await conversation.load(" in answer.data["detail"]
        assert memory_world.store.calls.count("load") == 0

    async def test_an_argument_left_out_is_resolved_then(self, world):
        """The owner by the request, the id by the header; a visitor is minted then."""

        async def handler(request):
            await (await get_conversation(request)).load()
            return await say(request)

        client = world.serve(app_of(handler), load="deferred")
        answer = await client.post(headers={"x-session-id": "plans"})
        assert answer.data == {"owner": "user:ada", "session": "plans", "count": 1}
        visitor = await client.post(user=None)
        assert visitor.data["owner"].startswith("visitor:")
        assert (await client.post(user=None)).data == {**visitor.data, "count": 2}

    async def test_sign_in_inside_the_app_is_seen_by_a_load_that_leaves_the_owner_out(self, world):
        """Resolved then means: with the user that the app has found meanwhile."""

        async def handler(request):
            await (await get_conversation(request)).load()
            return await say(request)

        app = app_of(handler, middleware=[Middleware(AuthenticationMiddleware, backend=Tokens())])
        client = world.serve(app, load="deferred", resolvers=[])
        answer = await client.post(user=None, headers={"authorization": "ada", "x-session-id": "plans"})
        assert answer.data == {"owner": "user:ada", "session": "plans", "count": 1}
        assert answer.all("set-cookie") == []

    async def test_an_owner_given_keeps_the_session_the_request_names(self, world):
        """FastAPI's dependency knows who; the header still says which."""
        app = FastAPI()

        async def signed_in(authorization: Annotated[str, fastapi.Header()]) -> str:
            if not authorization:
                raise HTTPException(401)
            return authorization

        async def loaded(
            user: Annotated[str, Depends(signed_in)], conversation: Annotated[Conversation, Depends(get_conversation)]
        ) -> Conversation:
            await conversation.load(owner=f"user:{user}")
            return conversation

        @app.post("/chat")
        async def chat(conversation: Annotated[Conversation, Depends(loaded)]) -> list[Any]:
            conversation.append(Message.user("x"))
            return [conversation.owner, conversation.session_id, len(conversation.messages)]

        client = world.serve(app, load="deferred")
        answer = await client.post(user=None, headers={"authorization": "ada", "x-session-id": "plans"})
        assert answer.data == ["user:ada", "plans", 1]
        bad = await client.post(user=None, headers={"authorization": "ada", "x-session-id": "no/id"})
        assert (bad.status, bad.code) == (400, "invalid_identity")

    async def test_a_malformed_id_is_not_replaced_by_the_default(self, world):
        """Neither where loading is deferred nor where it was eager."""

        async def handler(request):
            await request.state.conversation.load(owner="user:ada")
            return await say(request)

        for load in ("eager", "deferred"):
            answer = await world.serve(app_of(handler), load=load).post(headers={"x-session-id": "\xa0default"})
            assert (answer.status, answer.code) == (400, "invalid_identity")

    async def test_load_on_an_eager_conversation_moves_it_and_gives_the_old_lease_back(self, world):
        """Until something was appended."""
        other = SessionKey("user:ada", "other")
        world.keys.append(other)

        async def handler(request):
            conversation = await get_conversation(request)
            await conversation.load(session_id="other")
            assert not (await world.log(ADA)).holder.token
            assert (await world.log(other)).holder.token
            conversation.append(Message.user("moved"))
            try:
                await conversation.load(session_id="third")
            except Exception as error:  # noqa: BLE001 - looked at below
                return JSONResponse([type(error).__name__, str(error)])

        answer = await world.serve(app_of(handler)).post()
        assert answer.data[0] == "TurnClosed"
        assert "call load() before it" in answer.data[1]
        assert await world.texts() == []
        assert await world.texts(other) == ["user: moved"]

    async def test_of_two_loads_at_once_one_is_refused_and_no_turn_is_left_behind(self, memory_world):
        """A turn that nobody ends would keep its conversation busy for as long as the worker lives."""
        raised = []

        async def handler(request):
            conversation = await get_conversation(request)
            loads = [conversation.load(owner="user:ada", session_id=name) for name in ("one", "two")]
            raised.extend(await asyncio.gather(*loads, return_exceptions=True))
            return await say(request)

        memory_world.store.delay = timedelta(milliseconds=1)
        client = memory_world.serve(app_of(handler), load="deferred")
        assert (await client.post()).data["session"] == "one"
        assert [type(error) for error in raised] == [type(None), TurnClosed]
        memory_world.keys += [SessionKey("user:ada", "one"), SessionKey("user:ada", "two")]

    async def test_a_busy_conversation_is_told_to_the_handler(self, world):
        """`load()` raises what the middleware would have answered."""

        async def handler(request):
            await (await get_conversation(request)).load(owner="user:ada")

        await world.inner.load(ADA, lease=Lease("other", timedelta(seconds=30)))
        answer = await world.serve(app_of(handler), load="deferred", settings=quick(concurrency="reject")).post()
        assert (answer.status, answer.code) == (409, "conversation_busy")
        await world.inner.release(ADA, "other")

    async def test_load_degrades_when_asked_to(self, memory_world):
        """The same policy wherever the load happens."""

        async def handler(request):
            await (await get_conversation(request)).load()
            return await say(request)

        memory_world.store.fail("load")
        client = memory_world.serve(app_of(handler), load="deferred", settings=quick(on_store_error="degrade"))
        answer = await client.post()
        assert (answer.status, answer.header("convmem-degraded")) == (200, "true")


class Tokens(AuthenticationBackend):
    """Signs in whomever the Authorization header names."""

    async def authenticate(self, conn):
        name = conn.headers.get("authorization")
        return (AuthCredentials(["authenticated"]), SimpleUser(name)) if name else None


class TestOrder:
    async def test_authentication_outside_is_the_owner(self, world):
        """Starlette runs the middleware added last first."""
        app = app_of()
        app.add_middleware(ConversationMiddleware, store=world.store, settings=quick())
        app.add_middleware(AuthenticationMiddleware, backend=Tokens())
        answer = await Client(app).post(user=None, headers={"authorization": "ada"})
        assert answer.data["owner"] == "user:ada"

    async def test_authentication_inside_is_an_error_that_says_how_to_order_them(self, world):
        """Nothing is stored under a visitor."""
        app = app_of()
        app.add_middleware(AuthenticationMiddleware, backend=Tokens())
        app.add_middleware(ConversationMiddleware, store=world.store, settings=quick())
        answer = await Client(app).post(user=None, headers={"authorization": "ada"})
        assert (answer.status, answer.code) == (500, "identity_order")
        assert "app.add_middleware(ConversationMiddleware" in answer.data["detail"]
        assert "append" not in world.store.calls
        assert answer.all("set-cookie") == []

    @pytest.mark.parametrize("how", ["end", "save", "stream", "raise", "leave", "cancel"])
    async def test_a_user_who_signs_in_after_the_conversation_was_taken_stores_nothing_under_the_visitor(self, memory_world, how):
        """Dependencies run in any order; every way to the store asks again."""
        leave = asyncio.Event()

        async def app(scope, receive, send):
            conversation = await get_conversation(scope)
            conversation.append(Message.user("secret"))
            scope["user"] = SimpleUser("ada")
            if how == "save":
                await conversation.save()
            if how == "stream":
                await send({"type": "http.response.start", "status": 200, "headers": []})
            if how == "raise":
                await send({"type": "http.response.start", "status": 200, "headers": []})
                raise ZeroDivisionError
            if how == "leave":
                leave.set()
                await receive()
                await receive()
                return
            if how == "cancel":
                raise asyncio.CancelledError
            await plain(send)

        client = memory_world.serve(app, resolvers=[])
        try:
            answer = await client.post(user=None, leave=leave)
        except asyncio.CancelledError:
            assert how == "cancel"
        else:
            assert how == "leave" or answer.code == "identity_order"
        assert "append" not in memory_world.store.calls

    async def test_an_unreadable_user_is_an_error_that_names_from_callable(self, memory_world):
        """A display name is never used."""

        class Odd:
            is_authenticated = True
            display_name = "Ada"

        async def outer(scope, receive, send):
            await inner({**scope, "user": Odd()}, receive, send)

        inner = memory_world.serve(app_of(), resolvers=[]).app
        answer = await Client(outer).post(user=None)
        assert (answer.status, answer.code) == (400, "invalid_identity")
        assert "from_callable" in answer.data["detail"]


async def lifespan(app, *, shutdown: bool = True, extra=()) -> list[dict[str, Any]]:
    """Run an app's lifespan as a server does; return what it sent."""
    waiting = [{"type": "lifespan.startup"}, *([{"type": "lifespan.shutdown"}] if shutdown else [])]
    sent: list[dict[str, Any]] = []

    async def receive():
        return waiting.pop(0)

    async def send(message):
        sent.append(message)

    await app({"type": "lifespan", "asgi": {"version": "3.0"}}, receive, send)
    return sent


class TestLifespan:
    async def test_it_starts_and_stops_with_the_apps_own_lifespan(self, memory_world):
        """The app's startup and shutdown run, and its state is its own."""
        ran = []

        async def app(scope, receive, send):
            assert scope["type"] == "lifespan"
            for what in ("startup", "shutdown"):
                assert (await receive())["type"] == f"lifespan.{what}"
                ran.append(what)
                await send({"type": f"lifespan.{what}.complete"})

        sent = await lifespan(memory_world.serve(app).app)
        assert ran == ["startup", "shutdown"]
        assert [message["type"] for message in sent] == ["lifespan.startup.complete", "lifespan.shutdown.complete"]

    @pytest.mark.parametrize("how", ["raises", "returns", "raises late"])
    async def test_an_app_without_lifespan_is_stood_in_for(self, memory_world, how):
        """Else a server that insists on it would not start."""

        async def app(scope, receive, send):
            if how == "raises late":
                await receive()
            if how != "returns":
                raise KeyError(scope["type"])

        sent = await lifespan(memory_world.serve(app).app)
        assert [message["type"] for message in sent] == ["lifespan.startup.complete", "lifespan.shutdown.complete"]

    async def test_a_store_that_cannot_be_used_stops_the_start_with_a_sentence(self, tmp_path):
        """A folder that is not there is a wrong setting."""
        middleware = ConversationMiddleware(app_of(), settings=quick(store=f"sqlite:///{tmp_path}/nowhere/x.db"))
        sent = await lifespan(middleware)
        assert sent[0]["type"] == "lifespan.startup.failed"
        assert "CONVMEM_STORE" in sent[0]["message"]
        assert "nowhere does not exist" in sent[0]["message"]

    async def test_a_wrong_environment_stops_the_start_and_without_lifespan_is_a_503(self, monkeypatch, caplog):
        """P13."""
        monkeypatch.setenv("CONVMEM_TURN_WAIT", "soon")
        caplog.set_level(logging.ERROR, "convmem")
        middleware = ConversationMiddleware(app_of())
        sent = await lifespan(middleware)
        assert sent[0]["type"] == "lifespan.startup.failed"
        assert "CONVMEM_TURN_WAIT" in sent[0]["message"]
        answer = await Client(ConversationMiddleware(app_of())).post()
        assert (answer.status, answer.code) == (503, "configuration")
        assert "CONVMEM_TURN_WAIT" not in answer.text
        assert any("CONVMEM_TURN_WAIT" in record.getMessage() for record in caplog.records)

    async def test_a_store_passed_in_is_never_closed_and_its_own_is(self, tmp_path, caplog):
        """Close only what was opened."""
        caplog.set_level(logging.WARNING, "convmem")
        own = ConversationMiddleware(app_of(), settings=quick(store=f"sqlite:///{tmp_path}/own.db"), resolvers=[from_callable(user_header)])
        assert (await Client(own).post()).status == 200
        await lifespan(own)
        assert (await Client(own).post()).data["count"] == 2
        await lifespan(own)

        class Closed(FaultyStore):
            closed = False

            async def aclose(self):
                self.closed = True

        given = Closed(MemoryStore())
        middleware = ConversationMiddleware(app_of(), store=given, settings=quick())
        await lifespan(middleware)
        assert not given.closed

    async def test_shutdown_waits_for_requests_in_flight_before_the_app_is_told(self, world):
        """The app closes its pools after us; granian stops a worker as soon as its answers are out."""
        order = []
        inside, go_on = asyncio.Event(), asyncio.Event()

        async def app(scope, receive, send):
            if scope["type"] == "lifespan":
                for what in ("startup", "shutdown"):
                    await receive()
                    order.append(what)
                    await send({"type": f"lifespan.{what}.complete"})
                return
            (await get_conversation(scope)).append(Message.user("x"))
            if scope["path"] == "/chat":
                await client.post("/nested", user="bob")
                inside.set()
                await go_on.wait()
            await plain(send)
            order.append("answered")

        client = world.serve(app)
        running = asyncio.create_task(client.post())
        await inside.wait()
        stopping = asyncio.create_task(lifespan(client.app))
        await asyncio.sleep(0.1)
        assert sorted(order) == ["answered", "startup"]
        go_on.set()
        await asyncio.gather(running, stopping)
        assert order[-2:] == ["answered", "shutdown"]

    async def test_two_first_requests_at_once_agree_on_one_store(self, tmp_path):
        """Without a lifespan both find nothing ready."""
        own = ConversationMiddleware(app_of(), settings=quick(store=f"sqlite:///{tmp_path}/own.db"), resolvers=[from_callable(user_header)])
        answers = await asyncio.gather(*(Client(own).post() for _ in range(3)))
        assert sorted(answer.data["count"] for answer in answers) == [1, 2, 3]
        await lifespan(own)


async def test_a_request_through_httpx_works(world):
    """A second client, not written here."""
    app = world.serve(app_of()).app
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        counts = [(await client.post("/chat", headers={"x-user": "ada"})).json()["count"] for _ in range(2)]
    assert counts == [1, 2]


async def test_an_app_that_calls_itself_through_httpx_is_told_at_once(world):
    """The same, by the transport tools really use; the outer turn goes on."""

    async def handler(request):
        conversation = await get_conversation(request)
        conversation.append(Message.user("outer"))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(client.app), base_url="http://test") as http:
            answer = await http.post("/chat", headers={"x-user": "ada"})
        return JSONResponse([answer.status_code, answer.json()["own_turn"]])

    client = world.serve(app_of(handler))
    assert (await asyncio.wait_for(client.post(), AT_ONCE)).data == [409, True]
    assert await world.texts() == ["user: outer"]


async def test_the_window_of_the_middleware_is_what_handlers_see(world):
    """`left_out` and `truncated` say how much there is besides."""

    async def handler(request):
        conversation = await get_conversation(request)
        conversation.append(Message.user(f"turn {conversation.total_turns}"))
        facts = [len(conversation.messages), conversation.left_out, conversation.truncated, conversation.total_turns]
        return JSONResponse(facts)

    client = world.serve(app_of(handler), window=Window(turns=2))
    assert [(await client.post()).data for _ in range(4)] == [[1, 0, False, 0], [2, 0, False, 1], [3, 0, False, 2], [3, 1, True, 3]]


async def test_two_files_of_one_store_are_one_memory(tmp_path):
    """Two middleware instances on one SQLite file, as in two processes."""
    stores = [SQLiteStore(tmp_path / "convmem.db") for _ in range(2)]
    options: dict[str, Any] = {"settings": quick(), "resolvers": [from_callable(user_header)]}
    clients = [Client(ConversationMiddleware(app_of(), store=store, **options)) for store in stores]
    answers = await asyncio.gather(*(clients[i % 2].post() for i in range(6)))
    assert sorted(answer.data["count"] for answer in answers) == [1, 2, 3, 4, 5, 6]
    for store in stores:
        await store.aclose()


async def test_without_asyncio_the_sentence_says_what_to_change():
    """Hypercorn can run under trio."""

    def call_without_a_loop():
        sent = []

        async def send(message):
            sent.append(message)

        scope = {"type": "http", "method": "GET", "path": "/chat", "headers": []}
        call = ConversationMiddleware(app_of(), store=MemoryStore(), settings=quick())(scope, cast("Receive", None), send)
        with pytest.raises(StopIteration):
            call.send(None)
        return sent

    assert (await asyncio.to_thread(call_without_a_loop))[0]["status"] == 503
