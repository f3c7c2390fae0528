"""LangChain with its memory in convmem: real apps, real chains and agents, models that only read what they are given."""

import asyncio
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Annotated

import pytest
from fastapi import Depends, FastAPI, Request
from fastapi.responses import StreamingResponse
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware
from langchain_classic.chains import ConversationChain
from langchain_classic.memory import ConversationBufferMemory, ConversationBufferWindowMemory, ConversationSummaryMemory
from langchain_core.chat_history import InMemoryChatMessageHistory
from langchain_core.language_models import FakeListLLM
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, RemoveMessage, ToolMessage
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder, PromptTemplate
from langchain_core.runnables import Runnable, RunnableLambda
from langchain_core.runnables.history import RunnableWithMessageHistory
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from starlette.testclient import TestClient

from convmem import (
    ConfigurationError,
    Conversation,
    ConversationMiddleware,
    ImagePart,
    InvalidIdentity,
    InvalidMessage,
    MemoryStore,
    Message,
    NoConversation,
    SessionKey,
    Settings,
    SQLiteStore,
    StoreUnavailable,
    TextPart,
    current_conversation,
    from_callable,
    get_conversation,
    open_conversation,
)
from convmem.testing import AdapterContract, CountedStore
from convmem_langchain import (
    ConversationHistory,
    MemoryMiddleware,
    UnsavedQuestionWarning,
    check_history_key,
    chunk_text,
    from_langchain,
    to_langchain,
)

from .langchain_corpus import CORPUS, REFUSED

pytestmark = [
    # the classes whose users we serve; LangChain removes them in 2.0
    pytest.mark.filterwarnings("ignore::langchain_core._api.deprecation.LangChainDeprecationWarning"),
    pytest.mark.filterwarnings("ignore::langchain_core._api.deprecation.LangChainPendingDeprecationWarning"),
]

ADA = SessionKey.for_user("ada")
ROOT = Path(__file__).resolve().parents[2]
CurrentConversation = Annotated[Conversation, Depends(get_conversation)]


class Store(CountedStore):
    """A store that can be told to fail."""

    failing = ""

    async def append(self, *args, **options):
        if "append" in self.failing:
            raise StoreUnavailable("counted", "append", "the disk is full")
        return await super().append(*args, **options)


@pytest.fixture(params=["memory", "sqlite"])
def store(request, tmp_path):
    backend = MemoryStore() if request.param == "memory" else SQLiteStore(tmp_path / "conversations.db")
    yield Store(backend)
    asyncio.run(backend.aclose())


def reader(messages):
    """Answer with what was read: a model that has nothing but its history."""
    return AIMessage(" | ".join(str(message.text) for message in messages if message.type == "human"))


def chain(history=ConversationHistory.current, model=reader, **keys):
    return RunnableWithMessageHistory(model if isinstance(model, Runnable) else RunnableLambda(model), history, **keys)


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


class Model(GenericFakeChatModel):
    """A chat model that says what it was told to say, and notes what it was sent."""

    sent: list = []  # noqa: RUF012 - a field of a pydantic model

    def __init__(self, *answers):
        super().__init__(messages=iter(answers), sent=[])

    def bind_tools(self, tools, **options):
        return self

    def _generate(self, messages, *args, **options):
        self.sent.append(list(messages))
        return super()._generate(messages, *args, **options)


def agent_of(model, tools=(), **options):
    """Return an agent; untyped, because LangChain's overloads know no plain strings for messages."""
    return create_agent(model, list(tools), **options)


class Completing(FakeListLLM):
    """A model of the kind before chat models, which notes what it was sent."""

    prompts: list[str] = []  # noqa: RUF012 - a field of a pydantic model, copied for each

    async def _acall(self, prompt, *args, **options):
        self.prompts.append(prompt)
        return await super()._acall(prompt, *args, **options)


def calling(*calls):
    return AIMessage("", tool_calls=[{"name": "add", "args": args, "id": name} for name, args in calls])


class Client:
    """A client of an app with these routes, as users who sign in with a header."""

    def __init__(self, store, routes, **options):
        app = FastAPI()
        settings = Settings({}, secret_key="a secret key of thirty-two bytes", turn_wait="2s", lease="1s")
        user = from_callable(lambda scope: dict(scope["headers"]).get(b"x-user", b"ada").decode())
        app.add_middleware(ConversationMiddleware, store=store, settings=settings, resolvers=[user], **options)
        for name, route in routes.items():
            app.post(f"/{name}")(route)
        app.get("/history")(self.history)
        self.http = TestClient(app, raise_server_exceptions=False)

    @staticmethod
    async def history(conversation: CurrentConversation) -> list[tuple[str, str, str]]:
        return [(message.role, message.text, message.state) for message in conversation.messages]

    def ask(self, route, text, user="ada", **headers):
        return self.http.post(f"/{route}", params={"text": text}, headers={"x-user": user, **headers})

    def said(self, user="ada", **headers):
        return [(role, text) for role, text, _ in self.http.get("/history", headers={"x-user": user, **headers}).json()]


class TestLangChain(AdapterContract):
    """Every promise of an adapter, through `RunnableWithMessageHistory`."""

    to_native = staticmethod(to_langchain)
    from_native = staticmethod(from_langchain)
    natives = CORPUS
    refused = REFUSED

    async def speak(self, question):
        await chain(model=lambda messages: AIMessage("an answer")).ainvoke(question)


class TestLangChainAgent(AdapterContract):
    """The same promises through `create_agent`, with a tool call in each turn."""

    to_native = staticmethod(to_langchain)
    from_native = staticmethod(from_langchain)
    natives = CORPUS[:3]

    async def speak(self, question):
        agent = agent_of(Model(calling(("c1", {"a": 1, "b": 1})), AIMessage("2")), [add], middleware=[MemoryMiddleware()])
        await agent.ainvoke({"messages": [HumanMessage(question)]})


class TestHistory:
    """`ConversationHistory` under `RunnableWithMessageHistory`."""

    def test_the_next_request_sees_this_one_whatever_the_handler_is(self, store):
        """Everything is made anew in each request, as in most tutorials; with LangChain's own history that forgets."""

        async def ours(text: str):
            return (await chain().ainvoke(text)).content

        def ours_in_a_thread(text: str):
            return chain().invoke(text).content

        async def streamed(text: str, conversation: CurrentConversation):
            async def answer():
                async for chunk in chain().astream(text):
                    yield chunk.content

            return StreamingResponse(answer())

        async def theirs(text: str):
            history = InMemoryChatMessageHistory()
            return (await chain(lambda: history).ainvoke(text)).content

        client = Client(store, {"ours": ours, "thread": ours_in_a_thread, "stream": streamed, "theirs": theirs})
        assert [client.ask("theirs", text).json() for text in ("one", "two")] == ["one", "two"]
        assert client.ask("ours", "one").json() == "one"
        assert client.ask("thread", "two").json() == "one | two"
        assert client.ask("stream", "three").text == "one | two | three"
        assert client.ask("ours", "four").json() == "one | two | three | four"

    def test_a_stream_is_stored_as_a_message(self, store):
        """`astream` hands a chunk to the history; whoever reads it later expects a message."""

        async def route(text: str, conversation: CurrentConversation):
            model = Model(AIMessage("an answer in pieces"))
            runs = RunnableWithMessageHistory(model, ConversationHistory.current)
            return StreamingResponse(piece.content async for piece in runs.astream(text))

        client = Client(store, {"chat": route})
        assert client.ask("chat", "hello").text == "an answer in pieces"

        async def stored():
            async with open_conversation(ADA, store=store) as conversation:
                return to_langchain(conversation.messages)

        question, answer = asyncio.run(stored())
        assert (type(question), question.content) == (HumanMessage, "hello")
        assert (type(answer), answer.content) == (AIMessage, "an answer in pieces")

    def test_a_store_that_fails_is_seen(self, store):
        """LangChain swallows what a history raises; the client of a turn that is not stored must not get its answer."""

        class Failing(InMemoryChatMessageHistory):
            async def aadd_messages(self, messages):
                raise StoreUnavailable("theirs", "append")

        async def theirs(text: str):
            failing = Failing()
            return (await chain(lambda: failing).ainvoke(text)).content

        async def ours(text: str):
            return (await chain().ainvoke(text)).content

        client = Client(store, {"theirs": theirs, "ours": ours})
        assert client.ask("theirs", "lost").status_code == 200
        store.failing = "append"
        answer = client.ask("ours", "lost")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
        store.failing = ""
        assert client.ask("ours", "kept").json() == "kept"

    @pytest.mark.parametrize("sync", [False, True])
    def test_an_answer_that_cannot_be_stored_fails_the_request(self, store, sync):
        """The same for what the history itself refuses: swallowed where it is raised, and remembered."""

        def unstorable(messages):
            return AIMessage("x", response_metadata={"raw": object()})

        async def route(text: str):
            return (await chain(model=unstorable).ainvoke(text)).content

        def route_in_a_thread(text: str):
            return chain(model=unstorable).invoke(text).content

        async def streamed(text: str, conversation: CurrentConversation):
            return StreamingResponse(chunk.content async for chunk in chain(model=unstorable).astream(text))

        client = Client(store, {"chat": route_in_a_thread if sync else route, "stream": streamed})
        answer = client.ask("chat", "hello")
        assert (answer.status_code, answer.json()["type"].rpartition("/")[2].rpartition(":")[2]) == (500, "invalid_message")
        with pytest.raises(InvalidMessage, match="response_metadata"):
            TestClient(client.http.app).post("/stream", params={"text": "hello"})
        assert client.said() == []

    def test_what_is_swallowed_outside_of_a_request_fails_the_block(self, store):
        """A job has no response to fail; its ``async with`` raises."""

        async def job():
            async with open_conversation(ADA, store=store):
                await chain(model=lambda messages: AIMessage("x", response_metadata={"raw": object()})).ainvoke("hello")

        with pytest.raises(InvalidMessage, match="response_metadata"):
            asyncio.run(job())

        async def next_job():
            async with open_conversation(ADA, store=store) as conversation:
                return conversation.messages

        assert asyncio.run(next_job()) == []

    def test_two_runs_at_once_keep_both_questions(self, store):
        """`RunnableWithMessageHistory` counts the history again when a run ends; one that grew meanwhile eats the question."""

        async def both(history):
            first, second = asyncio.Event(), asyncio.Event()

            async def model(messages):
                if messages[-1].content == "slow":
                    first.set()
                    await second.wait()
                return AIMessage("answer")

            runs = chain(history, model)
            slow = asyncio.create_task(runs.ainvoke("slow"))
            await first.wait()
            await runs.ainvoke("quick")
            second.set()
            await slow

        shared = InMemoryChatMessageHistory()
        asyncio.run(both(lambda: shared))
        assert [message.content for message in shared.messages if message.type == "human"] == ["quick"]  # theirs

        async def ours():
            async with open_conversation(ADA, store=store) as conversation:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # both answers are the same on purpose
                    await both(ConversationHistory.current)
                return [message.text for message in conversation.messages if message.role == "user"]

        assert asyncio.run(ours()) == ["quick", "slow"]

    def test_a_session_is_one_of_the_present_owner(self, store):
        """The id in ``configurable`` says which conversation, never whose."""

        def config(request):
            return {"configurable": {"session_id": request.headers.get("x-which", "trip")}}

        async def route(text: str, request: Request):
            return (await chain(ConversationHistory.for_session).ainvoke(text, config(request))).content

        def route_in_a_thread(text: str, request: Request):
            return chain(ConversationHistory.for_session).invoke(text, config(request)).content

        client = Client(store, {"chat": route, "thread": route_in_a_thread})
        assert client.ask("chat", "one").json() == "one"
        assert client.ask("thread", "two").json() == "one | two"
        assert client.ask("chat", "mine", user="bob").json() == "mine"
        assert client.ask("chat", "other", **{"x-which": "default"}).json() == "other"
        assert client.said() == [("user", "other"), ("assistant", "other")]
        assert client.ask("chat", "x", **{"x-which": "no such id!"}).status_code == InvalidIdentity.status

    def test_a_history_that_outlives_requests_mixes_nobody_up(self, store):
        """A memory at the head of a module is everybody's with LangChain's own; with ours it is whoever asks."""
        ours, theirs = ConversationHistory(), InMemoryChatMessageHistory()

        def route(history):
            async def answer(text: str):
                memory = ConversationBufferMemory(chat_memory=history)
                before = (await memory.aload_memory_variables({}))["history"]
                await memory.asave_context({"input": text}, {"output": "ok"})
                return before

            return answer

        client = Client(store, {"ours": route(ours), "theirs": route(theirs)})
        client.ask("theirs", "my secret")
        assert "my secret" in client.ask("theirs", "?", user="eve").json()
        client.ask("ours", "my secret")
        assert client.ask("ours", "?", user="eve").json() == ""
        assert "my secret" in client.ask("ours", "?").json()

    def test_a_conversation_begun_elsewhere_goes_on(self, store):
        """What the app itself or another framework wrote is in the history, a picture too."""

        async def elsewhere(text: str, conversation: CurrentConversation):
            conversation.append(Message.user((TextPart(text=text), ImagePart(url="https://a.example/1.png"))), Message.assistant("A cat."))

        async def route(text: str):
            seen = []
            await chain(model=lambda messages: seen.extend(messages) or AIMessage("ok")).ainvoke(text)
            return [message.content for message in seen]

        client = Client(store, {"elsewhere": elsewhere, "chat": route})
        client.ask("elsewhere", "What is this?")
        picture = [{"type": "text", "text": "What is this?"}, {"type": "image", "url": "https://a.example/1.png"}]
        assert client.ask("chat", "Sure?").json() == [picture, "A cat.", "Sure?"]

    def test_clear_begins_anew(self, store):
        """In a coroutine, in a thread, and in one line that says what to write where it would wait for itself."""

        async def cleared():
            await ConversationHistory.current().aclear()

        def cleared_in_a_thread():
            ConversationHistory.current().clear()

        async def cleared_wrongly():
            with pytest.raises(ConfigurationError, match="aclear"):
                ConversationHistory(current_conversation()).clear()
            return "raised"

        async def route(text: str):
            return (await chain().ainvoke(text)).content

        client = Client(store, {"chat": route, "a": cleared, "b": cleared_in_a_thread, "c": cleared_wrongly})
        for clear in ("a", "b"):
            assert client.ask("chat", "one").json() == "one"
            client.ask(clear, "")
        assert client.ask("chat", "two").json() == "two"
        assert client.ask("c", "").status_code == ConfigurationError.status  # remembered, as all that a chain may swallow

    @pytest.mark.asyncio
    @pytest.mark.parametrize("sync", [False, True])
    async def test_what_a_run_adds_is_in_what_it_reads_next(self, sync):
        """A summarizing memory reads back what it has just saved; the history of a run shows that, and nothing of other runs."""
        async with open_conversation(ADA, store=MemoryStore()) as conversation:
            history, other = ConversationHistory.current(), ConversationHistory.current()
            assert await history.aget_messages() == other.messages == []
            if sync:
                history.add_user_message("one")
            else:
                await history.aadd_messages([HumanMessage("one")])
            assert history.messages == await history.aget_messages() == [HumanMessage("one")]
            assert other.messages == []
            assert [message.text for message in conversation.messages] == ["one"]

    def test_an_order_to_remove_is_not_a_message(self, store):
        """A graph's instruction in a history would be a message nobody said."""

        async def job():
            async with open_conversation(ADA, store=store):
                with pytest.raises(InvalidMessage, match="clear"):
                    ConversationHistory.current().add_messages([RemoveMessage(id="1")])

        with pytest.raises(InvalidMessage):
            asyncio.run(job())

    def test_without_a_middleware_the_error_has_the_line_to_add(self):
        """The first thing everybody forgets."""
        with pytest.raises(NoConversation, match="add_middleware"):
            chain().invoke("hello")
        with pytest.raises(ConfigurationError, match="for_session"):
            ConversationHistory("ada")


class TestHistoryOutsideOfRequests:
    """A key names the conversation; each use opens it."""

    def test_a_script_without_an_event_loop_remembers(self, store):
        """Synchronous code has no loop; the history brings one."""
        runs = chain(ConversationHistory.opening(ADA, store=store))
        assert runs.invoke("one").content == "one"
        assert runs.invoke("two").content == "one | two"

    def test_a_notebook_with_one_too(self, store):
        """In a notebook a loop is running, and ``invoke`` is called all the same."""

        async def cell():
            runs = chain(ConversationHistory.opening(ADA, store=store))
            return runs.invoke("one").content, (await runs.ainvoke("two")).content, runs.invoke("three").content

        assert asyncio.run(cell()) == ("one", "one | two", "one | two | three")

    def test_the_store_is_the_environments(self, tmp_path, monkeypatch):
        """No setup beyond what the web app has."""
        monkeypatch.setenv("CONVMEM_STORE", f"sqlite:///{tmp_path}/script.db")
        runs = chain(ConversationHistory.opening(ADA))
        assert [runs.invoke(text).content for text in ("one", "two")] == ["one", "one | two"]

    def test_reading_and_writing_cost_the_same_however_long_it_is(self, store):
        """Each run reads once and writes once, and each of the two opens the conversation."""
        costs = []
        for i in range(12):
            before = store.calls.copy()
            chain(ConversationHistory.opening(ADA, store=store), model=lambda messages: AIMessage("ok")).invoke(f"question {i}")
            costs.append(store.calls - before)
        assert costs[0] == costs[-1] == {"load": 2, "append": 1, "release": 1}

    def test_a_failure_is_kept_where_nobody_can_be_told(self, store, caplog):
        """`RunnableWithMessageHistory` returns as if nothing had happened."""
        history = ConversationHistory(ADA, store=store)
        store.failing = "append"
        chain(lambda: history).invoke("one")
        assert isinstance(history.failure, StoreUnavailable)
        assert "messages were not kept" in caplog.text
        store.failing = ""
        chain(lambda: history).invoke("two")
        assert history.failure is None

    def test_a_key_inside_its_own_turn_joins_it(self, store):
        """Opening the conversation that runs would wait for itself."""

        async def job():
            async with open_conversation(ADA, store=store) as conversation:
                await chain(ConversationHistory.opening(ADA, store=store)).ainvoke("one")
                return conversation.new_messages

        assert [message.text for message in asyncio.run(job())] == ["one", "one"]


class TestClassicMemories:
    """`langchain_classic`'s memories by name, each made anew in each request."""

    @pytest.mark.parametrize(
        ("make", "seen"),
        [
            (ConversationBufferMemory, "Human: one\nAI: ok\nHuman: two\nAI: ok"),
            (lambda **options: ConversationBufferWindowMemory(k=1, **options), "Human: two\nAI: ok"),
            (
                lambda chat_memory: ConversationSummaryMemory.from_messages(FakeListLLM(responses=["in short"]), chat_memory),
                "in short",
            ),
        ],
    )
    def test_a_chain_with_such_a_memory_remembers(self, store, make, seen):
        """The chain, the memory and the history are all new; what was said is not."""

        async def route(text: str):
            llm = Completing(responses=["ok"])
            conversation = ConversationChain(llm=llm, memory=make(chat_memory=ConversationHistory.current()))
            check_history_key(conversation)
            await conversation.ainvoke({"input": text})
            return llm.prompts[0]

        client = Client(store, {"chat": route})
        for text in ("one", "two"):
            assert client.ask("chat", text).status_code == 200
        assert f"{seen}\nHuman: three" in client.ask("chat", "three").json()

    def test_the_same_in_a_thread(self, store):
        """``def`` handlers run the synchronous chain."""

        def route(text: str):
            memory = ConversationBufferMemory(chat_memory=ConversationHistory(), return_messages=True)
            before = memory.load_memory_variables({})["history"]
            memory.save_context({"input": text}, {"output": "ok"})
            return [message.content for message in before]

        client = Client(store, {"chat": route})
        client.ask("chat", "one")
        assert client.ask("chat", "two").json() == ["one", "ok"]


class TestCheckHistoryKey:
    """Two names that must be one."""

    PROMPT = ChatPromptTemplate.from_messages([MessagesPlaceholder("chat_history", optional=True), ("human", "{input}")])

    def test_both_sides_are_named(self):
        """With an optional placeholder LangChain says nothing at all, and the model never sees the history."""
        model = RunnableLambda(lambda prompt: AIMessage(str(len(prompt.messages))))
        wrong = chain(ConversationHistory.current, self.PROMPT | model, input_messages_key="input", history_messages_key="history")
        with pytest.raises(ConfigurationError, match=r"'history'.*'chat_history'"):
            check_history_key(wrong)
        check_history_key(
            chain(ConversationHistory.current, self.PROMPT | model, input_messages_key="input", history_messages_key="chat_history")
        )

    def test_a_classic_memory_is_checked_against_its_prompt(self):
        """By its ``memory_key``, or by the name alone."""
        memory = ConversationBufferMemory(chat_memory=ConversationHistory(), memory_key="history")
        with pytest.raises(ConfigurationError, match=r"memory_key is 'history'.*'chat_history'"):
            check_history_key(self.PROMPT, memory)
        with pytest.raises(ConfigurationError, match=r"'talk'.*'history', 'input'"):
            check_history_key(PromptTemplate.from_template("{history} {input}"), "talk")
        check_history_key(PromptTemplate.from_template("{history} {input}") | FakeListLLM(responses=["x"]), memory)

    def test_it_says_what_it_needs(self):
        """A chain alone does not tell."""
        with pytest.raises(ConfigurationError, match="memory="):
            check_history_key(self.PROMPT)


class TestMemoryMiddleware:
    """`MemoryMiddleware` in `create_agent`."""

    @pytest.mark.parametrize("sync", [False, True])
    def test_an_agent_made_in_each_request_remembers(self, store, sync):
        """With its tool calls and results, in the order they happened."""
        models = [
            Model(calling(("c1", {"a": 1, "b": 1}), ("c2", {"a": 2, "b": 2})), AIMessage("2 and 4")),
            Model(AIMessage("As I said: 2 and 4")),
        ]
        left = iter(models)

        def agent():
            return agent_of(next(left), [add], middleware=[MemoryMiddleware()])

        async def route(text: str):
            return (await agent().ainvoke({"messages": [HumanMessage(text)]}))["messages"][-1].content

        def route_in_a_thread(text: str):
            return agent().invoke({"messages": [text]})["messages"][-1].content

        client = Client(store, {"chat": route_in_a_thread if sync else route})
        assert client.ask("chat", "1 + 1 and 2 + 2?").json() == "2 and 4"
        assert client.ask("chat", "What?").json() == "As I said: 2 and 4"
        (sent,) = models[1].sent
        assert [message.type for message in sent] == ["human", "ai", "tool", "tool", "ai", "human"]
        assert [call["id"] for call in sent[1].tool_calls] == ["c1", "c2"]
        assert [message.content for message in sent if isinstance(message, ToolMessage)] == ["2", "4"]
        assert [role for role, _ in client.said()] == ["user", "assistant", "tool", "tool", "assistant", "user", "assistant"]

    @pytest.mark.parametrize("sync", [False, True])
    def test_the_question_is_stored_even_when_the_model_fails(self, store, sync):
        """The user sees an error; when they say "again", the model should know what."""

        async def route(text: str):
            await agent_of(Model(), middleware=[MemoryMiddleware()]).ainvoke({"messages": [text]})

        def route_in_a_thread(text: str):
            agent_of(Model(), middleware=[MemoryMiddleware()]).invoke({"messages": [text]})

        client = Client(store, {"chat": route_in_a_thread if sync else route})
        assert client.ask("chat", "What is 1 + 1?").status_code == 500
        assert client.http.get("/history", headers={"x-user": "ada"}).json() == [["user", "What is 1 + 1?", "interrupted"]]

    def test_a_synchronous_agent_on_the_event_loop_is_warned_about(self, store):
        """It works, but the loop that would store the question is the one that is blocked."""

        async def route(text: str):
            with pytest.warns(UnsavedQuestionWarning, match="ainvoke"):
                agent_of(Model(AIMessage("ok")), middleware=[MemoryMiddleware()]).invoke({"messages": [text]})

        client = Client(store, {"chat": route})
        client.ask("chat", "hello")
        assert client.said() == [("user", "hello"), ("assistant", "ok")]

    def test_a_streamed_agent_is_stored(self, store):
        """Token by token to the client, whole into the store."""

        async def route(text: str, conversation: CurrentConversation):
            agent = agent_of(Model(AIMessage("an answer in pieces")), middleware=[MemoryMiddleware()])

            async def answer():
                async for chunk in agent.astream({"messages": [text]}, stream_mode="messages"):
                    yield chunk_text(chunk) or ""

            return StreamingResponse(answer())

        client = Client(store, {"chat": route})
        assert client.ask("chat", "hello").text == "an answer in pieces"
        assert client.said() == [("user", "hello"), ("assistant", "an answer in pieces")]

    def test_what_was_done_before_an_answer_that_never_came_is_kept(self, store):
        """A cancelled run keeps its tool calls: they may have changed the world."""
        silent = asyncio.Event()

        class Silent(Model):
            async def _agenerate(self, messages, *args, **options):
                if len(self.sent) == 1:
                    silent.set()
                    await asyncio.sleep(3600)
                return await super()._agenerate(messages, *args, **options)

        async def ask():
            model = Silent(calling(("c1", {"a": 1, "b": 1})))
            async with open_conversation(ADA, store=store):
                await agent_of(model, [add], middleware=[MemoryMiddleware()]).ainvoke({"messages": ["1 + 1?"]})

        async def job():
            asking = asyncio.create_task(ask())
            await silent.wait()
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking

        asyncio.run(job())

        async def later():
            async with open_conversation(ADA, store=store) as conversation:
                return [(message.role, message.state) for message in conversation.messages]

        assert asyncio.run(later()) == [(role, "interrupted") for role in ("user", "assistant", "tool")]

    def test_with_a_checkpointer_it_says_that_history_would_be_doubled(self, store):
        """Two memories under one agent; the model would read everything twice."""

        async def job():
            agent = agent_of(Model(AIMessage("ok")), middleware=[MemoryMiddleware()], checkpointer=InMemorySaver())
            async with open_conversation(ADA, store=store):
                await agent.ainvoke({"messages": ["hello"]}, {"configurable": {"thread_id": "1"}})

        with pytest.raises(ConfigurationError, match="checkpointer"):
            asyncio.run(job())

    def test_a_summary_for_the_model_is_not_said_by_anybody(self, store):
        """A summarizing middleware replaces old messages in the state; the store keeps what was said."""

        class Summary(AgentMiddleware):
            async def abefore_model(self, state, runtime):
                note = HumanMessage("Summary: one", id="s1", additional_kwargs={"lc_source": "summarization"})
                return {"messages": [RemoveMessage(id=message.id) for message in state["messages"][:-1]] + [note]}

        async def route(text: str):
            agent = agent_of(Model(AIMessage("ok", id=f"answer to {text}")), middleware=[MemoryMiddleware(), Summary()])
            await agent.ainvoke({"messages": [text]})

        client = Client(store, {"chat": route})
        for text in ("one", "two"):
            assert client.ask("chat", text).status_code == 200
        assert client.said() == [("user", "one"), ("assistant", "ok"), ("user", "two"), ("assistant", "ok")]

    def test_a_message_sent_anew_is_a_new_one(self, store):
        """A front end that numbers its messages from 1 in each tab is no reason to lose a question."""

        async def route(text: str):
            model = Model(AIMessage("ok"))
            await agent_of(model, middleware=[MemoryMiddleware()]).ainvoke({"messages": [HumanMessage(text, id="1")]})
            return [message.content for message in model.sent[0]]

        client = Client(store, {"chat": route})
        client.ask("chat", "one")
        assert client.ask("chat", "two").json() == ["one", "ok", "two"]

    def test_a_tool_call_costs_no_trip(self, store):
        """One load, one save of the question, one end; however many tools and however long the history."""
        costs = []

        async def route(text: str):
            calls = [calling((f"c{i}", {"a": i, "b": 1})) for i in range(int(text))]
            await agent_of(Model(*calls, AIMessage(f"done {len(costs)}")), [add], middleware=[MemoryMiddleware()]).ainvoke(
                {"messages": [f"question {len(costs)}"]}
            )

        client = Client(store, {"chat": route})
        for tools in ("0", "3", "0", "6", "3"):
            before = store.calls.copy()
            assert client.ask("chat", tools).status_code == 200
            costs.append(store.calls - before)
        assert costs == [{"load": 1, "append": 2}] * len(costs)

    def test_outside_of_any_conversation_it_says_what_is_missing(self):
        """An agent called in a script."""
        with pytest.raises(NoConversation, match="open_conversation"):
            agent_of(Model(AIMessage("ok")), middleware=[MemoryMiddleware()]).invoke({"messages": ["hello"]})


class TestTheWrongPlace:
    """Two classes whose names end alike, and two packages that may be missing."""

    def test_the_agents_middleware_given_to_an_app(self):
        """The message has both lines."""
        app = FastAPI()
        app.add_middleware(MemoryMiddleware)
        with pytest.raises(ConfigurationError, match="from convmem import ConversationMiddleware"):
            app.build_middleware_stack()

    def test_the_apps_middleware_given_to_an_agent(self):
        """The message has the line to import."""
        given = ConversationMiddleware(FastAPI())
        with pytest.raises(AttributeError, match="from convmem_langchain import MemoryMiddleware"):
            agent_of(Model(), middleware=[given])
        assert not hasattr(given, "wrap_tool_call")

    @pytest.mark.parametrize(
        ("missing", "name", "line"),
        [
            ("langchain_core", "ConversationHistory", 'pip install "convmem[langchain]"'),
            ("langchain", "MemoryMiddleware", '"langchain>=1"'),
            ("langgraph", "ConversationSaver", 'pip install "convmem[langgraph]"'),
        ],
    )
    def test_what_is_not_installed_is_named_with_its_line(self, missing, name, line):
        """Not a ModuleNotFoundError from the middle of a package."""
        code = f"import sys; sys.modules[{missing!r}] = None; import convmem_langchain; from convmem_langchain import {name}"
        path = {"PYTHONPATH": f"{ROOT}:{ROOT / 'adapters'}"}
        done = subprocess.run([sys.executable, "-c", code], env=path, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert f"ImportError: {'convmem_langchain' if missing == 'langchain_core' else name} needs" in done.stderr
        assert line in done.stderr

    def test_importing_the_adapter_imports_no_framework(self):
        """Half of LangChain is a second of start; who only converts messages does not pay for agents."""
        code = (
            "import sys, convmem_langchain; assert 'langchain_core' not in sys.modules; convmem_langchain.to_langchain;"
            "assert 'langchain' not in sys.modules and 'langgraph' not in sys.modules"
        )
        path = {"PYTHONPATH": f"{ROOT}:{ROOT / 'adapters'}"}
        subprocess.run([sys.executable, "-c", code], env=path, check=True)


def test_a_model_without_any_chain_is_recorded(store):
    """The plain way: the window in LangChain's form, the stream through ``record``."""

    async def route(text: str, conversation: CurrentConversation):
        conversation.append(Message.user(text))
        stream = Model(AIMessage("an answer in pieces")).astream(to_langchain(conversation.messages))
        pieces: list[AIMessageChunk] = [piece async for piece in conversation.record(stream, text=chunk_text)]
        return "".join(str(piece.text) for piece in pieces)

    client = Client(store, {"chat": route})
    assert client.ask("chat", "hello").json() == "an answer in pieces"
    assert client.said() == [("user", "hello"), ("assistant", "an answer in pieces")]
