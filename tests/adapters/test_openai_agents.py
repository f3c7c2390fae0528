"""The OpenAI Agents SDK with its sessions in convmem: real apps and runs, and models that say what they were told to say."""

import asyncio
import subprocess
import sys
from contextlib import aclosing
from pathlib import Path
from typing import Annotated

import pytest
from agents import Agent, RunConfig, Runner, Session, SQLiteSession, function_tool
from agents.memory import SessionSettings
from agents.testing import ModelStep, ScriptedModel, assistant_message, function_call
from fastapi import Depends, FastAPI
from fastapi.responses import StreamingResponse
from fastapi.testclient import TestClient
from hypothesis import given, settings, strategies

from convmem import (
    Conversation,
    ConversationMiddleware,
    MemoryStore,
    Message,
    NoConversation,
    ReasoningPart,
    SessionKey,
    Settings,
    StoreUnavailable,
    TextPart,
    from_callable,
    get_conversation,
    open_conversation,
)
from convmem.testing import AdapterContract, CountedStore
from convmem_openai_agents import ConversationSession, from_items, stream_answer, to_items
from tests.asgi_client import world as world  # noqa: PLC0414 - a fixture

from .openai_corpus import MESSAGES, REFUSED, answer, call, output_text, result, thought, user
from .stores import backend as backend  # noqa: PLC0414 - a fixture

ADA = SessionKey.for_user("ada")
ROOT = Path(__file__).resolve().parents[2]
UNTRACED = RunConfig(tracing_disabled=True)
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


@function_tool
def look(at: str) -> str:
    """Look at something."""
    return f"{at} is a cat"


def calling(name=None, at="a"):
    return [function_call("look", {"at": at}, call_id=name or f"call-{at}")]


def saying(text):
    return [assistant_message(text)]


def agent_of(model):
    return Agent("an agent", model=model, tools=[look])


def run(model, question, session):
    return Runner.run(agent_of(model), question, session=session, run_config=UNTRACED)


def stream(model, question, session):
    return Runner.run_streamed(agent_of(model), question, session=session, run_config=UNTRACED)


def sent(model):
    """Return what the model was sent, the last time, in words."""
    items = model.last_call.input
    return [item.get("content") or item.get("arguments") or item.get("output") for item in items if item.get("role") != "assistant"]


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
    async def history(conversation: CurrentConversation) -> list[tuple[str, str, str]]:
        return [(message.role, message.text, message.state) for message in conversation.messages]

    def ask(self, route, text, user="ada"):
        return self.http.post(f"/{route}", params={"text": text}, headers={"x-user": user})

    def said(self, user="ada"):
        return [(role, text) for role, text, _ in self.http.get("/history", headers={"x-user": user}).json()]


class TestOpenAIAgents(AdapterContract):
    """Every promise of an adapter, through a run with a tool call in each turn. A native message is the list of its items."""

    natives = MESSAGES
    refused = REFUSED
    has_ids = False
    names_results = False

    @staticmethod
    def to_native(given):
        return to_items([given]) if isinstance(given, Message) else [to_items([message]) for message in given]

    @staticmethod
    def from_native(given):
        if given and isinstance(given[0], list):
            return [from_items(items)[0] for items in given]
        messages = from_items(given)
        return messages[0]

    async def speak(self, question):
        await run(ScriptedModel([calling(), saying("an answer")]), question, ConversationSession())


class TestSession:
    """The protocol, and what a run makes of it."""

    def test_the_next_request_remembers(self, store):
        """Calls and results too, and each user their own; nothing but the run is in the handler."""
        models = []

        async def chat(text: str) -> str:
            models.append(ScriptedModel([calling(at=text), saying(f"saw {text}")]))
            return str((await run(models[-1], text, ConversationSession())).final_output)

        client = Client(store, chat=chat)
        for text in ("a", "b"):
            assert client.ask("chat", text).json() == f"saw {text}"
        client.ask("chat", "c", user="bob")
        assert client.said() == [
            *(("user", "a"), ("assistant", ""), ("tool", "a is a cat"), ("assistant", "saw a")),
            *(("user", "b"), ("assistant", ""), ("tool", "b is a cat"), ("assistant", "saw b")),
        ]
        assert sent(models[1])[:4] == ["a", '{"at":"a"}', "a is a cat", "b"]
        assert sent(models[2]) == ["c", '{"at":"c"}', "c is a cat"]

    def test_a_streamed_run_remembers(self, store):
        """Stored when the client has seen the last byte, calls included."""
        models = []

        async def chat(text: str) -> StreamingResponse:
            models.append(ScriptedModel([calling(at=text), saying(f"saw {text}")]))
            return StreamingResponse(stream_answer(stream(models[-1], text, ConversationSession())))

        client = Client(store, chat=chat)
        assert client.ask("chat", "a").text == "saw a"
        assert client.said() == [("user", "a"), ("assistant", ""), ("tool", "a is a cat"), ("assistant", "saw a")]
        assert client.ask("chat", "b").text == "saw b"
        assert sent(models[1])[:4] == ["a", '{"at":"a"}', "a is a cat", "b"]

    def test_a_synchronous_run_in_a_thread_remembers(self, store):
        """`Runner.run_sync` has an event loop of its own, in which no connection of ours may live."""

        def chat(text: str) -> str:
            asyncio.set_event_loop(asyncio.new_event_loop())
            try:
                model = ScriptedModel([saying(f"saw {text}")])
                return str(Runner.run_sync(agent_of(model), text, session=ConversationSession(), run_config=UNTRACED).final_output)
            finally:
                asyncio.get_event_loop().close()

        client = Client(store, chat=chat)
        with client.http:
            for text in ("a", "b"):
                assert client.ask("chat", text).json() == f"saw {text}"
            assert client.said() == [("user", "a"), ("assistant", "saw a"), ("user", "b"), ("assistant", "saw b")]

    def test_the_question_survives_a_model_that_fails(self, store):
        """What was asked was asked; the next turn goes on behind it."""

        async def chat(text: str) -> str:
            steps = [ModelStep.raise_error(ConnectionError("the model is down"))] if text == "a" else [saying("here")]
            return str((await run(ScriptedModel(steps), text, ConversationSession())).final_output)

        client = Client(store, chat=chat)
        assert client.ask("chat", "a").status_code == 500
        assert client.said() == [("user", "a")]
        assert client.ask("chat", "b").json() == "here"
        assert client.said() == [("user", "a"), ("user", "b"), ("assistant", "here")]

    @pytest.mark.parametrize("way", ["whole", "streamed"])
    def test_a_store_that_fails_is_seen(self, way, store):
        """A run does not go on over a question that was not kept."""
        models = []

        async def chat(text: str) -> str:
            models.append(ScriptedModel([saying("here")]))
            if way == "whole":
                return str((await run(models[0], text, ConversationSession())).final_output)
            return "".join([piece async for piece in stream_answer(stream(models[0], text, ConversationSession()))])

        store.failing = True
        response = Client(store, chat=chat).ask("chat", "a")
        assert response.status_code == 503
        assert response.json()["code"] == "store_unavailable"
        assert models[0].calls == ()

    def test_a_tool_call_costs_no_trip(self, store):
        """The question is one append, and the rest of the turn another, however many calls are in it."""
        trips = []

        async def chat(text: str) -> str:
            steps = [calling(f"c{i}") for i in range(5)] if text == "many" else []
            await run(ScriptedModel([*steps, saying("an answer")]), text, ConversationSession())
            return text

        client = Client(store, chat=chat)
        for text in ("none", "many"):
            before = store.calls.copy()
            client.ask("chat", text)
            trips.append(store.calls - before)
        assert trips[0] == trips[1] == {"load": 1, "append": 2}

    @pytest.mark.asyncio
    async def test_an_interrupted_call_is_repaired(self, store):
        """A worker that died between a call and its result leaves neither to the model; the rest is there."""
        async with open_conversation(ADA, store=store) as conversation:
            conversation.append(*from_items([user("a"), thought("rs_1"), call("c1")]))
        async with open_conversation(ADA, store=store):
            model = ScriptedModel([saying("here")])
            await run(model, "b", ConversationSession())
        assert sent(model) == ["a", "b"]

    @pytest.mark.asyncio
    @pytest.mark.parametrize(("limit", "sent"), [(1, 1), (2, 1), (3, 3), (4, 4), (9, 4)])
    async def test_the_limit_is_in_items(self, limit, sent, store):
        """From the run, else from the session's settings; a result whose call is cut off is not sent, which is the SDK's own repair."""
        async with open_conversation(ADA, store=store):
            await run(ScriptedModel([calling(), saying("saw")]), "a", ConversationSession())
        async with open_conversation(ADA, store=store):
            session = ConversationSession(session_settings=SessionSettings(limit=limit))
            assert len(await session.get_items()) == min(limit, 4)
            assert await session.get_items(limit=2) == (await session.get_items(limit=4))[2:]
            assert await session.get_items(limit=0) == []
            model = ScriptedModel([saying("again")])
            await run(model, "b", session)
            assert len(model.last_call.input) == sent + 1

    @pytest.mark.asyncio
    async def test_pop_takes_one_item_of_several(self, store):
        """In this turn and in an earlier one; the log keeps what the session no longer shows."""
        said = [user("a"), thought("rs_1"), answer(output_text("I look.")), call("c1"), result("c1")]
        async with open_conversation(ADA, store=store):
            await ConversationSession().add_items(said)
        async with open_conversation(ADA, store=store):
            session = ConversationSession()
            popped = [await session.pop_item() for _ in range(2)]
            assert popped == [said[4], said[3]]
            assert await session.get_items() == said[:3]
        async with open_conversation(ADA, store=store):
            session = ConversationSession()
            assert await session.get_items() == said[:3]
            assert [await session.pop_item() for _ in range(4)] == [said[2], said[1], said[0], None]

    @pytest.mark.asyncio
    async def test_clear_begins_anew(self, store):
        """For the session and the model; the log is deleted by `delete` alone."""
        async with open_conversation(ADA, store=store):
            await ConversationSession().add_items([user("a"), answer(output_text("b"))])
        async with open_conversation(ADA, store=store):
            await ConversationSession().clear_session()
        async with open_conversation(ADA, store=store):
            assert await ConversationSession().get_items() == []
        assert len((await store.load(ADA)).entries) >= 1

    @pytest.mark.asyncio
    async def test_thoughts_of_others_are_not_sent(self, store):
        """OpenAI refuses reasoning it did not sign; its own comes back to it."""
        async with open_conversation(ADA, store=store) as conversation:
            foreign = Message.assistant((ReasoningPart(text="Hm.", signature="c2ln"), TextPart(text="b")))
            conversation.append(
                Message.user("a"), foreign, Message.user("c"), *from_items([thought("rs", "Hm."), answer(output_text("d"))])
            )
            assert [item.get("type") for item in await ConversationSession().get_items()] == [None, "message", None, "reasoning", "message"]

    def test_it_is_a_session(self):
        """For type checkers and at run time; made outside of a conversation, it says what to do."""
        with pytest.raises(NoConversation, match="ConversationMiddleware"):
            ConversationSession()

        async def made() -> Session:
            async with open_conversation(ADA, store=MemoryStore()) as conversation:
                return ConversationSession(conversation)

        assert isinstance(asyncio.run(made()), Session)


QUESTIONS = strategies.sampled_from([[user("a")], [user("b"), user("c")], [user([{"type": "input_text", "text": "d"}])]])
ANSWERS = strategies.sampled_from(
    [[answer(output_text("e"))], [thought("rs_1"), call("c1"), result("c1")], [call("c1"), call("c2"), result("c1"), result("c2")], []]
)
STEPS = strategies.lists(
    strategies.tuples(strategies.just("add"), QUESTIONS | ANSWERS)
    | strategies.tuples(strategies.just("get"), strategies.none() | strategies.integers(0, 6))
    | strategies.tuples(strategies.just("pop"), strategies.none())
    | strategies.tuples(strategies.just("clear"), strategies.none()),
    max_size=12,
)


@pytest.mark.filterwarnings("ignore::convmem.turns.RepeatedTextWarning")  # the same is said twice here
@settings(max_examples=100, deadline=None)
@given(STEPS)
def test_it_answers_as_the_sdks_own_session(steps):
    """Every sequence of calls has the results it has with `SQLiteSession`."""

    async def played(session) -> list:
        answers: list = []
        for verb, value in steps:
            if verb == "add":
                answers.append(await session.add_items(value))
            elif verb == "get":
                answers.append(await session.get_items(value))
            elif verb == "pop":
                answers.append(await session.pop_item())
            else:
                answers.append(await session.clear_session())
        return [*answers, await session.get_items()]

    async def both() -> None:
        theirs = SQLiteSession("a session")
        async with open_conversation(ADA, store=MemoryStore()):
            assert await played(ConversationSession()) == await played(theirs)
        theirs.close()

    asyncio.run(both())


class Slow(ScriptedModel):
    """A model whose stream pauses behind the first word, for ever, or breaks off there."""

    def __init__(self, *, breaks=False):
        super().__init__([saying("one two three")])
        self.breaks = breaks
        self.heard = asyncio.Event()

    async def stream_response(self, *args, **options):
        async with aclosing(super().stream_response(*args, **options)) as events:
            async for event in events:
                if event.type == "response.output_text.delta":
                    yield event.model_copy(update={"delta": "one "})
                    await (self.heard.wait() if self.breaks else asyncio.sleep(3600))  # an error overtakes what was not read
                    if self.breaks:
                        raise ConnectionError("the model is down")
                yield event


class TestStreams:
    """What arrived is kept."""

    @pytest.mark.asyncio
    @pytest.mark.parametrize("kept", [True, False])
    async def test_a_client_that_leaves_a_stream_leaves_what_it_saw(self, kept, world):
        """Through the middleware. The twin reads the run's own events: what was seen is gone."""
        leave = asyncio.Event()

        async def chat(scope, receive, send):
            run = stream(Slow(), "question", ConversationSession())

            async def texts():
                async for event in run.stream_events():
                    if getattr(getattr(event, "data", None), "type", None) == "response.output_text.delta":
                        yield event.data.delta

            async def pieces():
                async with aclosing(stream_answer(run) if kept else texts()) as answers:
                    async for piece in answers:
                        yield piece
                        leave.set()
                        await asyncio.sleep(0)

            await StreamingResponse(pieces())(scope, receive, send)

        await world.serve(chat).post(leave=leave)
        await world.at_rest()
        assert await world.states() == ["interrupted"]
        texts = await world.texts()
        assert texts[0] == "user: question"
        assert texts[1:] == (["assistant: one "] if kept else [])

    @pytest.mark.asyncio
    @pytest.mark.parametrize("way", ["cancelled", "broken"])
    async def test_what_arrived_is_kept_when_the_stream_is_cut(self, way, store):
        """A server that shuts down cancels; a model that is down raises."""
        async with open_conversation(ADA, store=store) as conversation:
            model = Slow(breaks=way == "broken")
            run = stream(model, "question", ConversationSession())

            async def read() -> None:
                async for _ in stream_answer(run):
                    model.heard.set()

            reading = asyncio.create_task(read())
            await model.heard.wait()
            if way == "cancelled":
                reading.cancel()
            with pytest.raises((asyncio.CancelledError, ConnectionError)):
                await reading
            assert [message.text for message in conversation.new_messages] == ["question", "one "]

    @pytest.mark.asyncio
    async def test_an_answer_that_was_added_whole_is_not_added_again(self, store):
        """A client may leave between the last word and the end."""
        async with open_conversation(ADA, store=store) as conversation:
            run = stream(ScriptedModel([saying("one")]), "question", ConversationSession())
            async with aclosing(stream_answer(run)) as answers:
                async for _ in answers:
                    for _ in range(200):
                        await asyncio.sleep(0)
                    assert len(conversation.new_messages) == 2
                    break
            assert [message.text for message in conversation.new_messages] == ["question", "one"]


def test_what_is_missing_is_said():
    """The line that installs it, in place of a module nobody knows."""
    code = "import sys; sys.modules['agents'] = None; import convmem_openai_agents"
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert 'pip install "convmem[openai-agents]"' in told.stderr
