"""Pydantic AI with its history in convmem: real apps and runs, and models that say what they were told to say."""

import asyncio
import subprocess
import sys
from contextlib import aclosing
from pathlib import Path
from typing import Annotated, Any

import pytest
from fastapi import Depends, FastAPI
from fastapi.responses import StreamingResponse
from fastapi.testclient import TestClient
from hypothesis import given, settings, strategies
from pydantic_ai import Agent, DeferredToolRequests, DeferredToolResults, ToolApproved, messages as native
from pydantic_ai.conversation import Conversation as NativeConversation
from pydantic_ai.conversation_store import ConversationConflict, ConversationStore, InMemoryConversationStore
from pydantic_ai.exceptions import UserError
from pydantic_ai.models.function import DeltaToolCall, FunctionModel
from pydantic_ai.usage import RunUsage

from convmem import (
    Conversation,
    ConversationMiddleware,
    Edit,
    InvalidIdentity,
    MemoryStore,
    Message,
    NoConversation,
    SessionKey,
    Settings,
    StoreUnavailable,
    from_callable,
    get_conversation,
    open_conversation,
)
from convmem.testing import AdapterContract, CountedStore
from convmem_pydantic_ai import (
    OwnerConversationStore,
    ask,
    from_model_messages,
    keep,
    message_history,
    stream_answer,
    to_model_messages,
)
from tests.asgi_client import world as world  # noqa: PLC0414 - a fixture

from .pydantic_ai_corpus import ONE_MESSAGE, asked, image, request, response, result
from .stores import backend as backend  # noqa: PLC0414 - a fixture

ADA = SessionKey.for_user("ada")
ROOT = Path(__file__).resolve().parents[2]
on_a_laptop = pytest.mark.parametrize("backend", ["memory", "sqlite"], indirect=True)
CurrentConversation = Annotated[Conversation, Depends(get_conversation)]


class Store(CountedStore):
    """A store that can be told to fail."""

    failing = False

    async def append(self, *args, **options):
        if self.failing:
            raise StoreUnavailable("counted", "append", "the disk is full")
        return await super().append(*args, **options)


@pytest.fixture
def store(backend):
    return Store(backend)


def look(at: str) -> str:
    """Look at something."""
    return f"{at} is a cat"


def question_in(messages):
    return next(part.content for message in reversed(messages) for part in reversed(message.parts) if part.part_kind == "user-prompt")


def agent(*, calls=1, fails=False, seen=None, **options):
    """Return an agent whose model looks so often at what it was asked, and then says what it saw."""

    def answer(messages, info):
        if seen is not None:
            seen.append(list(messages))
        if fails:
            raise ConnectionError("the model is down")
        asked = max(i for i, message in enumerate(messages) if any(part.part_kind == "user-prompt" for part in message.parts))
        done = sum(part.part_kind == "tool-call" for message in messages[asked:] for part in message.parts)
        if done < calls:
            return native.ModelResponse(
                [native.ThinkingPart("Hm."), native.ToolCallPart("look", {"at": str(question_in(messages))}, f"call-{done}")]
            )
        return native.ModelResponse([native.TextPart(f"saw {question_in(messages)}")])

    async def stream(messages, info):
        response = answer(messages, info)
        for i, part in enumerate(response.parts):
            if isinstance(part, native.ToolCallPart):
                yield {i: DeltaToolCall(part.tool_name, part.args_as_json_str(), tool_call_id=part.tool_call_id)}
            elif isinstance(part, native.TextPart):
                for word in part.content.split(" "):
                    yield f"{word} "

    return Agent(FunctionModel(answer, stream_function=stream), tools=[look] if calls else [], **options)


def said_in(messages):
    """Return what was said, in words."""
    return [
        str(getattr(part, "content", None) or part.args) for message in messages for part in message.parts if part.part_kind != "thinking"
    ]


class Client:
    """A client of an app with these routes."""

    def __init__(self, store, **routes):
        app = FastAPI()
        options = Settings({}, secret_key="a secret key of thirty-two bytes", turn_wait="2s", lease="1s")
        signed_in = from_callable(lambda scope: dict(scope["headers"]).get(b"x-user", b"ada").decode())
        app.add_middleware(ConversationMiddleware, store=store, settings=options, resolvers=[signed_in])
        for name, route in routes.items():
            app.post(f"/{name}")(route)
        app.get("/history")(self.history)
        self.http = TestClient(app, raise_server_exceptions=False)

    @staticmethod
    async def history(conversation: CurrentConversation) -> list[tuple[str, str]]:
        return [(message.role, message.text) for message in conversation.messages]

    def ask(self, route, text, user="ada"):
        return self.http.post(f"/{route}", params={"text": text}, headers={"x-user": user})

    def said(self, user="ada"):
        return [(role, text) for role, text in self.http.get("/history", headers={"x-user": user}).json()]


class TestPydanticAI(AdapterContract):
    """Every promise of an adapter, through a run with a tool call in each turn."""

    natives = ONE_MESSAGE
    refused = ((request(result(object())), "messages[0].parts[0]"),)
    has_ids = False

    @staticmethod
    def to_native(given):
        return to_model_messages([given])[0] if isinstance(given, Message) else to_model_messages(given)

    @staticmethod
    def from_native(given):
        return from_model_messages(given) if isinstance(given, list) else from_model_messages([given])[0]

    async def speak(self, question):
        keep(await agent().run(message_history=await ask(question)))


@on_a_laptop
class TestHistory:
    """What a run is given, and what is kept of it."""

    def test_the_next_request_remembers(self, store):
        """Calls and results too, and each user their own."""
        seen: list[Any] = []

        async def chat(text: str) -> str:
            answer = await agent(seen=seen).run(text, message_history=message_history())
            keep(answer)
            return answer.output

        client = Client(store, chat=chat)
        for text in ("a", "b"):
            assert client.ask("chat", text).json() == f"saw {text}"
        assert said_in(seen[-1]) == ["a", "{'at': 'a'}", "a is a cat", "saw a", "b", "{'at': 'b'}", "b is a cat"]
        client.ask("chat", "c", user="bob")
        assert said_in(seen[-1])[0] == "c"
        assert client.said() == [
            *(("user", "a"), ("assistant", ""), ("tool", "a is a cat"), ("assistant", "saw a")),
            *(("user", "b"), ("assistant", ""), ("tool", "b is a cat"), ("assistant", "saw b")),
        ]

    def test_a_synchronous_handler_remembers(self, store):
        """`run_sync` has an event loop of its own, and a history and `keep` need none."""

        def chat(text: str) -> str:
            asyncio.set_event_loop(asyncio.new_event_loop())
            try:
                answer = agent().run_sync(text, message_history=message_history())
                keep(answer)
                return answer.output
            finally:
                asyncio.get_event_loop().close()

        client = Client(store, chat=chat)
        with client.http:
            for text in ("a", "b"):
                assert client.ask("chat", text).json() == f"saw {text}"
            assert [text for role, text in client.said() if role == "user"] == ["a", "b"]

    def test_a_question_that_is_asked_survives_a_model_that_fails(self, store):
        """What was asked was asked; the next turn goes on behind it."""

        async def chat(text: str) -> str:
            answer = await agent(fails=text == "a", calls=0).run(message_history=await ask(text))
            keep(answer)
            return answer.output

        client = Client(store, chat=chat)
        assert client.ask("chat", "a").status_code == 500
        assert client.said() == [("user", "a")]
        assert client.ask("chat", "b").json() == "saw b"
        assert client.said() == [("user", "a"), ("user", "b"), ("assistant", "saw b")]

    def test_a_store_that_fails_is_seen_before_the_model_runs(self, store):
        """A run does not go on over a question that was not kept."""
        seen: list[Any] = []

        async def chat(text: str) -> str:
            return (await agent(seen=seen).run(message_history=await ask(text))).output

        store.failing = True
        answer = Client(store, chat=chat).ask("chat", "a")
        assert (answer.status_code, answer.json()["code"], seen) == (503, "store_unavailable", [])

    def test_a_tool_call_costs_no_trip(self, store):
        """A turn is one load and one append, one more for the question that is stored at once, however many calls are in it."""
        trips = []

        async def chat(text: str) -> None:
            calls = 5 if "many" in text else 0
            if "asked" in text:
                keep(await agent(calls=calls).run(message_history=await ask(text)))
            else:
                keep(await agent(calls=calls).run(text, message_history=message_history()))

        client = Client(store, chat=chat)
        for text in ("none", "many", "asked none", "asked many"):
            before = store.calls.copy()
            assert client.ask("chat", text).status_code == 200
            trips.append(store.calls - before)
        assert trips == [{"load": 1, "append": 1}] * 2 + [{"load": 1, "append": 2}] * 2

    @pytest.mark.asyncio
    async def test_a_picture_is_asked_about(self, store):
        """A question is whatever a run takes; instructions are the agent's, and no part of it."""
        async with open_conversation(ADA, store=store) as conversation:
            history = await ask(["What is this?", image()], conversation)
            answer = await agent(calls=0, instructions="Be brief.").run(message_history=history)
            keep(answer, conversation)
            assert [message.role for message in conversation.new_messages] == ["user", "assistant"]
        async with open_conversation(ADA, store=store):
            (question, said) = message_history()
            assert question.parts[0].content == ["What is this?", image()]
            assert said == answer.new_messages()[-1]


class TestStreams:
    """What arrived is kept."""

    @on_a_laptop
    def test_a_streamed_run_remembers(self, store):
        """Stored when the client has seen the last byte, calls included."""
        seen: list[Any] = []

        async def chat(text: str) -> StreamingResponse:
            return StreamingResponse(stream_answer(agent(seen=seen).run_stream(message_history=await ask(text))))

        client = Client(store, chat=chat)
        assert client.ask("chat", "a").text == "saw a "
        assert client.said() == [("user", "a"), ("assistant", ""), ("tool", "a is a cat"), ("assistant", "saw a ")]
        assert client.ask("chat", "b").text == "saw b "
        assert said_in(seen[-1])[:4] == ["a", '{"at":"a"}', "a is a cat", "saw a "]

    @pytest.mark.asyncio
    @on_a_laptop
    @pytest.mark.parametrize("way", ["left", "cancelled", "broken"])
    async def test_what_arrived_is_kept_when_the_stream_is_cut(self, way, store):
        """A client that leaves, a server that shuts down, a model that breaks off: the calls before it are kept too."""

        async def stream(messages, info):
            if messages[-1].parts[0].part_kind != "tool-return":
                yield {0: DeltaToolCall("look", '{"at":"a"}', tool_call_id="c1")}
                return
            yield "one "
            if way == "broken":
                raise ConnectionError("the model is down")
            await asyncio.sleep(3600)

        slow = Agent(FunctionModel(stream_function=stream), tools=[look])
        async with open_conversation(ADA, store=store) as conversation:
            arrived = asyncio.Event()

            async def read() -> None:
                async with aclosing(stream_answer(slow.run_stream(message_history=await ask("question")))) as answer:
                    async for _ in answer:
                        arrived.set()
                        if way == "left":
                            return

            reading = asyncio.create_task(read())
            await arrived.wait()
            if way == "cancelled":
                await asyncio.sleep(0.01)
                reading.cancel()
            if way == "left":
                await reading
            else:
                with pytest.raises((asyncio.CancelledError, ConnectionError)):
                    await reading
            assert [(message.role, message.text) for message in conversation.new_messages] == [
                ("user", "question"),
                ("assistant", ""),
                ("tool", "a is a cat"),
                ("assistant", "one "),
            ]

    @pytest.mark.asyncio
    async def test_a_client_that_leaves_makes_an_interrupted_turn(self, world):
        """Through the middleware."""
        leave = asyncio.Event()

        async def stream(messages, info):
            yield "one "
            await asyncio.sleep(3600)

        async def chat(scope, receive, send):
            async def pieces():
                run = Agent(FunctionModel(stream_function=stream)).run_stream(message_history=await ask("question"))
                async with aclosing(stream_answer(run)) as answer:
                    async for piece in answer:
                        yield piece
                        leave.set()

            await StreamingResponse(pieces())(scope, receive, send)

        await world.serve(chat).post(leave=leave)
        await world.at_rest()
        assert await world.states() == ["interrupted"]
        assert await world.texts() == ["user: question", "assistant: one "]


def conversation_of(*messages, **more):
    return NativeConversation(messages=list(messages), **more)


TALK = (asked("one"), response(native.TextPart("first")), asked("two"), response(native.TextPart("second")))


class TestConversationStore:
    """The framework's own interface."""

    @pytest.mark.asyncio
    async def test_a_conversation_is_loaded_run_and_saved(self, store):
        """The three lines of the framework's own pages, with usage that adds up."""
        mine: ConversationStore = OwnerConversationStore(ADA.owner, store=store)
        talk: Any
        answer: Any = None
        for i, text in enumerate(("a", "b")):
            talk = await mine.load("talk", scope=ADA.owner) or NativeConversation(conversation_id="talk")
            assert len(talk.messages) == 4 * i
            answer = await agent().run(text, conversation=talk)
            entries = await mine.save(answer, scope=ADA.owner)
            assert [entry.message for entry in entries] == answer.new_messages()
        talk = await mine.load("talk")
        assert talk is not None
        assert (talk.messages, talk.usage.requests) == (answer.all_messages(), 4)
        async with open_conversation(SessionKey(ADA.owner, "talk"), store=store) as conversation:
            assert [message.text for message in conversation.messages if message.role == "user"] == ["a", "b"]
            assert conversation.total_turns == 2

    @pytest.mark.asyncio
    async def test_who_comes_late_is_told(self, store):
        """Two runs on what both had loaded: one is stored, the other is a conflict, also with whatever else wrote meanwhile."""
        mine = OwnerConversationStore(ADA.owner, store=store)
        await mine.save(conversation_of(*TALK[:2], conversation_id="talk"))
        one, other, third = [await mine.load("talk") for _ in range(3)]
        for talk, text in ((one, "one"), (other, "other")):
            talk.messages.append(asked(text))
        await mine.save(one)
        with pytest.raises(ConversationConflict):
            await mine.save(other)
        one.messages.append(response(native.TextPart("answer")))
        await mine.save(one)
        async with open_conversation(SessionKey(ADA.owner, "talk"), store=store) as conversation:
            conversation.append(Message.user("from elsewhere"))
        one.messages.append(asked("late"))
        for late in (one, third, conversation_of(asked("new"), conversation_id="talk")):
            with pytest.raises(ConversationConflict):
                await mine.save(late)
        assert said_in((await mine.load("talk")).messages) == ["one", "first", "one", "answer", "from elsewhere"]

    @pytest.mark.asyncio
    async def test_saves_at_once_are_one_and_conflicts(self, store):
        """Across tasks, as across processes."""
        mine = OwnerConversationStore(ADA.owner, store=store)
        ends = await asyncio.gather(
            *(mine.save(conversation_of(asked(str(i)), conversation_id="talk")) for i in range(4)), return_exceptions=True
        )
        assert sorted(isinstance(end, ConversationConflict) for end in ends) == [False, True, True, True]
        assert len((await mine.load("talk")).messages) == 1

    @pytest.mark.asyncio
    async def test_a_scope_is_an_owner(self, store):
        """Another's conversation cannot be addressed, and a scope that is not the owner is none of this store's."""
        mine, theirs = (OwnerConversationStore(owner, store=store) for owner in (ADA.owner, "user:bob"))
        await mine.save(conversation_of(*TALK, conversation_id="talk"))
        assert await mine.load("talk", scope="user:bob") is None
        assert await theirs.load("talk") is None
        await theirs.delete("talk")
        assert len((await mine.load("talk", scope=ADA.owner)).messages) == 4
        assert await mine.list_conversations(scope="user:bob") == []
        with pytest.raises(UserError, match="scope"):
            await mine.save(conversation_of(asked("x")), scope="user:bob")
        with pytest.raises(InvalidIdentity):
            await mine.load("no id")

    @pytest.mark.asyncio
    async def test_a_run_that_waits_for_an_approval_goes_on(self, store):
        """What a window leaves out, a call without its result, is what the next run answers."""

        def answer(messages, info):
            if messages[-1].parts[0].part_kind == "tool-return":
                return native.ModelResponse([native.TextPart("paid")])
            return native.ModelResponse([native.ToolCallPart("pay", {"sum": 1}, "c1")])

        payer = Agent(FunctionModel(answer), output_type=[str, DeferredToolRequests])
        payer.tool_plain(requires_approval=True)(pay)
        mine = OwnerConversationStore(ADA.owner, store=store)
        await mine.save(await payer.run("pay", conversation=NativeConversation(conversation_id="talk")))
        talk = await mine.load("talk")
        assert [call.tool_call_id for call in talk.deferred_tool_requests.approvals] == ["c1"]
        answered = await payer.run(conversation=talk, deferred_tool_results=DeferredToolResults(approvals={"c1": ToolApproved()}))
        await mine.save(answered)
        talk = await mine.load("talk")
        assert (answered.output, talk.deferred_tool_requests, len(talk.messages)) == ("paid", None, 4)
        await mine.save(await payer.run("pay", conversation=NativeConversation(conversation_id="other")))
        async with open_conversation(SessionKey(ADA.owner, "other"), store=store) as conversation:
            conversation.append(Message.user("never mind"))
        assert (await mine.load("other")).deferred_tool_requests is None, "somebody has gone on without an answer"

    @pytest.mark.asyncio
    async def test_branches_and_forks(self, store):
        """An earlier turn is asked anew, and the branch that was left is come back to; a fork shares nothing that a delete could take."""
        mine = OwnerConversationStore(ADA.owner, store=store)
        saved = await mine.save(conversation_of(*TALK, conversation_id="talk", usage=RunUsage(requests=2)))
        talk = await mine.load("talk")
        other = await mine.branch("talk", at=2, expected_revision=talk.revision)
        other.messages.append(asked("otherwise"))
        await mine.save(other)
        assert said_in((await mine.load("talk")).messages) == ["one", "first", "otherwise"]
        (record,) = await mine.list_conversations()
        assert record.branches == [saved[-1].id]
        back = await mine.branch("talk", from_entry=saved[-1].id, expected_revision=other.revision)
        assert back.messages == list(TALK) == (await mine.load("talk")).messages
        async with open_conversation(SessionKey(ADA.owner, "talk"), store=store) as conversation:
            assert [message.text for message in conversation.messages] == ["one", "first", "two", "second"]
        forked = await mine.fork("talk", at=3, new_conversation_id="fork")
        again = await mine.load("fork")
        assert (forked.messages, again.messages, again.usage) == (list(TALK[:3]), list(TALK[:3]), RunUsage())
        assert {record.conversation_id: (record.forked_from, record.forked_at) for record in await mine.list_conversations()} == {
            "fork": ("talk", saved[2].id),
            "talk": (None, None),
        }
        with pytest.raises(ConversationConflict):
            await mine.fork("talk", new_conversation_id="fork")
        await mine.delete("talk")
        assert await mine.load("talk") is None
        assert (await mine.read_entry(saved[1].id)).message == TALK[1]
        again.messages.append(asked("on"))
        await mine.save(again)
        assert said_in((await mine.load("fork")).messages) == ["one", "first", "two", "on"]
        with pytest.raises(LookupError):
            await mine.read_entry("nowhere")

    @pytest.mark.asyncio
    async def test_a_list_has_at_most_so_many(self, store):
        """The last written first."""
        mine = OwnerConversationStore(ADA.owner, store=store)
        for name in ("one", "two", "three"):
            await mine.save(conversation_of(*TALK[:1], conversation_id=name))
        assert [record.conversation_id for record in await mine.list_conversations(limit=2)] == ["three", "two"]

    @pytest.mark.asyncio
    async def test_only_what_was_seen_is_deleted(self, store):
        """Whoever deletes has not seen what was said since."""
        mine = OwnerConversationStore(ADA.owner, store=store)
        await mine.save(conversation_of(*TALK[:2], conversation_id="talk"))
        old = await mine.read_record("talk")
        talk = await mine.load("talk")
        talk.messages.append(asked("since"))
        await mine.save(talk)
        with pytest.raises(ConversationConflict):
            await mine.delete_record("talk", expected_revision=old.revision)
        assert said_in((await mine.load("talk")).messages) == ["one", "first", "since"]

    @pytest.mark.asyncio
    async def test_a_conversation_that_is_deleted_while_it_is_saved_is_a_conflict(self, store):
        """The framework knows one error for whatever came in between."""

        class Deleting(CountedStore):
            async def append(self, key, after, entry, **options):
                await self.delete(key)
                return await super().append(key, after, entry, **options)

        await OwnerConversationStore(ADA.owner, store=store).save(conversation_of(*TALK[:2], conversation_id="talk"))
        mine = OwnerConversationStore(ADA.owner, store=Deleting(store))
        talk = await mine.load("talk")
        talk.messages.append(asked("on"))
        with pytest.raises(ConversationConflict):
            await mine.save(talk)

    @pytest.mark.asyncio
    async def test_it_joins_only_the_turn_that_is_its_own(self, store):
        """Not one that has ended, nor one of that address in another store."""
        mine = OwnerConversationStore(ADA.owner, store=store)
        async with open_conversation(ADA, store=CountedStore(MemoryStore())) as conversation:
            await mine.save(conversation_of(*TALK[:2], conversation_id="default"))
            assert not conversation.new_messages
        assert said_in((await mine.load("default")).messages) == ["one", "first"]
        async with open_conversation(ADA, store=store) as conversation:
            await conversation.delete()
            await mine.save(conversation_of(*TALK[2:], conversation_id="default"))
        assert said_in((await mine.load("default")).messages) == ["two", "second"]

    @pytest.mark.asyncio
    @pytest.mark.parametrize("limit", [1, 2, 3, 4])
    async def test_the_last_of_a_conversation_are_whole(self, store, limit):
        """An entry may be many messages: as many results as there were calls. None is cut, and as many come as were asked for."""
        mine = OwnerConversationStore(ADA.owner, store=store)
        said = [*TALK[:1]]
        for n in range(3):
            said.append(native.ModelResponse([native.ToolCallPart("pay", {"sum": i}, f"c{n}.{i}") for i in range(9)]))
            said.append(native.ModelRequest([native.ToolReturnPart("pay", f"paid {n}.{i}", f"c{n}.{i}") for i in range(9)]))
        said += TALK[3:]
        saved, talk = [], NativeConversation(conversation_id="talk")
        for message in said:
            talk.messages.append(message)
            saved += await mine.save(talk)
        fresh = OwnerConversationStore(ADA.owner, store=store)
        await fresh.read_record("talk")
        for end in (len(said), len(said) - 1):
            found = await fresh.read_history(saved[end - 1].id, limit=limit)
            assert [entry.message for entry in found] == said[end - limit : end]

    def test_in_a_request_it_joins_the_turn(self, store):
        """The conversation of the request is loaded already, and a save is durable when it returns: two trips for each turn."""
        trips = []

        async def chat(text: str, conversation: CurrentConversation) -> str:
            mine = OwnerConversationStore()
            talk = await mine.load(conversation.session_id, limit=20) or NativeConversation(conversation_id=conversation.session_id)
            answer = await agent(calls=0).run(text, conversation=talk)
            await mine.save(answer, scope=conversation.owner)
            talk = answer.conversation
            talk.messages.append(response(native.TextPart("more")))
            await mine.save(talk)
            return answer.output

        client = Client(store, chat=chat)
        for text in ("a", "b", "c"):
            before = store.calls.copy()
            assert client.ask("chat", text).json() == f"saw {text}"
            trips.append(store.calls - before)
        assert trips[1:] == [{"load": 1, "append": 3}] * 2
        assert [text for _, text in client.said()] == [text for name in "abc" for text in (name, f"saw {name}", "more")]

    @pytest.mark.asyncio
    async def test_reading_waits_for_nobody(self, store):
        """A list is shown while one of them is being answered; outside of a turn, a load is two reads, a save two and an append."""
        mine = OwnerConversationStore(ADA.owner, store=store)
        await mine.save(conversation_of(*TALK, conversation_id="default"))
        async with open_conversation(ADA, store=CountedStore(store)) as conversation:
            conversation.append(Message.user("running"))
            await conversation.save()
            assert len(await mine.list_conversations()) == 1
        talk = await mine.load("default")
        before = store.calls.copy()
        talk = await mine.load("default", limit=2)
        assert store.calls - before == {"load": 2}
        talk.messages.append(response(native.TextPart("on")))
        before = store.calls.copy()
        await mine.save(talk)
        assert store.calls - before == {"load": 2, "append": 1}
        assert said_in((await mine.load("default")).messages)[-3:] == ["second", "running", "on"]

    @pytest.mark.asyncio
    async def test_a_long_conversation_costs_what_its_end_costs(self, store):
        """With a limit, neither loading nor saving reads all that was said before."""
        mine = OwnerConversationStore(ADA.owner, store=store)
        async with open_conversation(ADA, store=store) as conversation:
            conversation.append(*from_model_messages(TALK))
        sizes = []
        for i in range(30):
            talk = await mine.load("default", limit=2)
            assert len(talk.messages) == 2
            talk.messages += [asked(f"question {i:02}"), response(native.TextPart(f"answer {i:02}"))]
            before = store.written
            await mine.save(talk)
            sizes.append(store.written - before)
        assert max(sizes[1:]) - min(sizes[1:]) < 64
        assert len((await mine.load("default")).messages) == 64

    @pytest.mark.asyncio
    async def test_what_another_framework_hid_is_not_there(self, store):
        """An edit counts for everybody; a save behind it goes on from what is in sight."""
        mine = OwnerConversationStore(ADA.owner, store=store)
        await mine.save(conversation_of(*TALK, conversation_id="default"))
        async with open_conversation(ADA, store=store) as conversation:
            conversation.edit(Edit(action="hide", ids=(conversation.messages[-1].id,)))
        talk = await mine.load("default")
        assert talk.messages == list(TALK[:3])
        talk.messages.append(response(native.TextPart("right")))
        await mine.save(talk)
        assert said_in((await mine.load("default")).messages) == ["one", "first", "two", "right"]


def pay(sum: int) -> str:  # noqa: A002 - the model's word
    """Pay."""
    return f"paid {sum}"


MESSAGES = strategies.lists(strategies.sampled_from(TALK), min_size=0, max_size=3)
STEPS = strategies.lists(
    strategies.tuples(strategies.just("save"), strategies.integers(0, 2), MESSAGES)
    | strategies.tuples(strategies.just("rewrite"), strategies.integers(0, 2), MESSAGES)
    | strategies.tuples(strategies.just("window"), strategies.integers(0, 2), strategies.integers(0, 4))
    | strategies.tuples(strategies.just("branch"), strategies.integers(0, 2), strategies.integers(0, 4))
    | strategies.tuples(strategies.just("back"), strategies.integers(0, 2), strategies.integers(0, 9))
    | strategies.tuples(strategies.just("fork"), strategies.integers(0, 2), strategies.integers(0, 4) | strategies.none())
    | strategies.tuples(strategies.just("delete"), strategies.integers(0, 2), strategies.none()),
    max_size=10,
)


@pytest.mark.filterwarnings("ignore::convmem.turns.RepeatedTextWarning")  # the same is said twice here
@settings(max_examples=80, deadline=None)
@given(STEPS)
def test_it_answers_as_the_frameworks_own_store(steps):
    """Every sequence of saves, rewrites, windows, branches, forks and deletes has the outcome it has with `InMemoryConversationStore`."""

    async def played(store: ConversationStore) -> list:
        outcomes: list = []
        ids: list[str] = []
        talk: Any
        for number, (verb, which, value) in enumerate(steps):
            name = f"talk-{which}"
            try:
                if verb in ("save", "rewrite"):
                    talk = await store.load(name) or NativeConversation(conversation_id=name)
                    talk.messages = [*value] if verb == "rewrite" else [*talk.messages, *value]
                    talk.usage += RunUsage(requests=1)
                    saved = await store.save(talk)
                    ids += [entry.id for entry in saved]
                    outcomes.append(len(saved))
                elif verb == "window":
                    talk = await store.load(name, limit=value)
                    outcomes.append(None if talk is None else talk.messages)
                elif verb in ("branch", "back"):
                    talk = await store.load(name)
                    at = {"at": value} if verb == "branch" else {"from_entry": ids[value % len(ids)] if ids else "none"}
                    outcomes.append((await store.branch(name, **at, expected_revision=talk.revision if talk else "none")).messages)
                elif verb == "fork":
                    outcomes.append((await store.fork(name, at=value, new_conversation_id=f"talk-{(which + 1) % 3}")).messages)
                else:
                    outcomes.append(await store.delete(name))
            except UserError as error:
                outcomes.append((number, type(error)))
            for record in sorted(await store.list_conversations(), key=lambda record: record.conversation_id):
                talk = await store.load(record.conversation_id)
                outcomes.append(
                    (
                        (record.conversation_id, record.usage, record.forked_from, len(record.branches)),
                        (talk.messages, talk.usage, talk.revision == record.revision),
                    )
                )
        return outcomes

    async def both() -> None:
        assert await played(OwnerConversationStore(ADA.owner, store=MemoryStore())) == await played(InMemoryConversationStore())

    asyncio.run(both())


def test_outside_of_a_conversation_it_says_what_to_do():
    """The line to change."""
    for use in (message_history, OwnerConversationStore):
        with pytest.raises(NoConversation, match="ConversationMiddleware"):
            use()


def test_what_is_missing_is_said():
    """The line that installs it, in place of a module nobody knows."""
    code = "import sys; sys.modules['pydantic_ai'] = None; import convmem_pydantic_ai"
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert 'pip install "convmem[pydantic-ai]"' in told.stderr
