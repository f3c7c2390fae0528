"""LangGraph with its checkpoints in convmem: real graphs, agents, apps and stores, and models that say what they were told to say."""

import asyncio
import operator
from contextlib import aclosing, nullcontext
from typing import Annotated, Any

import pytest
from fastapi import Depends, FastAPI
from fastapi.responses import StreamingResponse
from fastapi.testclient import TestClient
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, HumanMessage, RemoveMessage
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.conformance import checkpointer_test, validate
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Command, interrupt

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
    Note,
    SessionKey,
    Settings,
    SQLiteStore,
    StoreUnavailable,
    TextPart,
    ToolCall,
    from_callable,
    get_conversation,
    open_conversation,
)
from convmem.messages import decode_body
from convmem.testing import AdapterContract, CountedStore
from convmem_langchain import ConversationSaver, MemoryMiddleware, UnsavedQuestionWarning, current_thread, from_langchain, to_langchain
from tests.stores.conftest import STORES, Place

from .langchain_corpus import CORPUS, REFUSED
from .langgraph_scenarios import SCENARIOS, THREAD, Model, Research, add, ask, calling, counting_graph, history_of, seen_in

ADA = SessionKey.for_user("ada")
CurrentConversation = Annotated[Conversation, Depends(get_conversation)]


class Store(CountedStore):
    """A store that can be told to fail, and that knows every byte it was given."""

    failing = False

    def __init__(self, store):
        super().__init__(store)
        self.bodies = []

    async def append(self, key, after, entry, **options):
        if self.failing:
            raise StoreUnavailable("counted", "append", "the disk is full")
        self.bodies.append(entry.body)
        return await super().append(key, after, entry, **options)


@pytest.fixture(params=["memory", "sqlite"])
def store(request, tmp_path):
    backend = MemoryStore() if request.param == "memory" else SQLiteStore(tmp_path / "conversations.db")
    yield Store(backend)
    asyncio.run(backend.aclose())


def compiled(builder, saver=None, **options):
    """Return a graph; untyped, because LangGraph's overloads know no plain dicts for inputs."""
    return builder.compile(checkpointer=saver or ConversationSaver(), **options)


def agent_of(*answers, saver=None):
    model = Model(*answers)
    return create_agent(model, [add], checkpointer=saver or ConversationSaver()), model


def echo(saver=None, **options):
    """Return a graph that answers with the questions it was sent."""

    def answer(state: MessagesState):
        return {"messages": AIMessage(" | ".join(message.text for message in state["messages"] if message.type == "human"))}

    builder = StateGraph(MessagesState).add_node(answer).add_edge(START, "answer")
    return compiled(builder, saver, **options)


def texts(messages):
    return [message.text for message in messages]


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

    def ask(self, route, text, user="ada", **headers):
        return self.http.post(f"/{route}", params={"text": text}, headers={"x-user": user, **headers})

    def said(self, user="ada"):
        return [tuple(said) for said in self.http.get("/history", headers={"x-user": user}).json()]


async def said(store, key=ADA):
    async with open_conversation(key, store=store) as conversation:
        return conversation.messages


class TestLangGraph(AdapterContract):
    """Every promise of an adapter, through an agent with a tool call in each turn."""

    to_native = staticmethod(to_langchain)
    from_native = staticmethod(from_langchain)
    natives = CORPUS
    refused = REFUSED

    async def speak(self, question):
        agent, _ = agent_of(calling((f"call of {question}", {"a": 1, "b": 2})), AIMessage(f"answer to {question}"))
        await agent.ainvoke(ask(question), current_thread())


# The contract of checkpointers


@pytest.mark.asyncio
@pytest.mark.parametrize("name", ["memory", "sqlite", "redis", "postgresql"])
async def test_their_own_suite_passes_on_every_store(name, request, tmp_path):
    """LangGraph's conformance tests: what every checkpointer must do, on every storage."""
    backend = STORES[name](Place(request, tmp_path))

    @checkpointer_test(name=name)
    async def saver():
        async with backend.open() as store:
            yield ConversationSaver(owner=f"user:{name}", store=store)

    report = await validate(saver)
    assert report.passed_all_base(), [result.failures for result in report.results.values()]
    assert sum(result.tests_passed for result in report.results.values()) >= 54


@pytest.mark.asyncio
async def test_their_own_suite_bites():
    """The twin: a saver that ignores a limit fails it."""

    class Limitless(ConversationSaver):
        async def alist(self, config, *, limit=None, **options):
            async for found in super().alist(config, **options):
                yield found

    @checkpointer_test(name="limitless")
    async def saver():
        yield Limitless(owner="user:ada", store=MemoryStore())

    assert not (await validate(saver)).passed_all_base()


@pytest.mark.asyncio
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
async def test_a_graph_does_what_it_does_under_its_own_saver(scenario, store):
    """States, histories, interrupts, branches and what models are sent: a turn each, in conversations."""
    expected = await seen_in(scenario, InMemorySaver(), nullcontext)
    assert await seen_in(scenario, ConversationSaver(), lambda: open_conversation(ADA, store=store)) == expected


@pytest.mark.asyncio
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
async def test_a_graph_that_nobody_opened_a_conversation_for_does_the_same(scenario):
    """A script with an owner and a store: each call of LangGraph's is a turn of its own."""
    expected = await seen_in(scenario, InMemorySaver(), nullcontext)
    async with MemoryStore() as store:
        assert await seen_in(scenario, ConversationSaver(owner="user:ada", store=store), nullcontext) == expected


@pytest.mark.asyncio
@pytest.mark.parametrize("opened", [True, False])
async def test_writes_come_in_the_order_of_their_tasks(opened, store):
    """Their suite only asks that a path is taken; a reducer that minds the order needs it back, whoever wrote first."""
    saver = ConversationSaver() if opened else ConversationSaver(owner="user:ada", store=store)
    async with open_conversation(ADA, store=store) if opened else nullcontext():
        config = await saver.aput({"configurable": {"thread_id": "default", "checkpoint_ns": ""}}, empty_checkpoint(), {}, {})
        await saver.aput_writes(config, [("notes", "c"), ("notes", "d")], "task-a", "~__pregel_pull, 2")
        await saver.aput_writes(config, [("notes", "a"), ("notes", "b")], "task-z", "~__pregel_pull, 1")
        await saver.aput_writes(config, [("__error__", "first")], "task-a", "~__pregel_pull, 2")
        await saver.aput_writes(config, [("__error__", "last"), ("notes", "no")], "task-a", "~__pregel_pull, 2")
        written = (await saver.aget_tuple(config)).pending_writes
    assert [value for _, _, value in written] == ["a", "b", "last", "c", "d"]


# What is stored


@pytest.mark.asyncio
async def test_every_message_is_stored_once(store):
    """Not in each checkpoint, not in what tasks wrote, and not in the state that an agent sends to its tools.

    The numbers are long, so that no id and no time has them in it by chance.
    """
    image = {"type": "image", "base64": "cGljdHVyZQ==", "mime_type": "image/png"}
    calls = calling(("c1", {"a": 111111111111, "b": 222222222222}), ("c2", {"a": 333333333333, "b": 444444444444}))
    agent, _ = agent_of(calls, AIMessage("the-answer"), AIMessage("the-end"))
    for question in (HumanMessage([{"type": "text", "text": "the-question"}, image]), HumanMessage("the-next")):
        async with open_conversation(ADA, store=store):
            await agent.ainvoke({"messages": [question]}, THREAD)
    stored = everything_in(store)
    for word in (b"the-question", b"the-next", b"the-answer", b"the-end", b"cGljdHVyZQ==", b"222222222222", b"444444444444"):
        assert stored.count(word) == 1, word
    for result in (b"333333333333", b"777777777777"):
        assert stored.count(result) == 1 + (result == b"333333333333"), result  # one of them is an argument too


def everything_in(store):
    """Return every byte that was stored, also of what notes hold."""
    blobs = [blob for body in store.bodies for item in decode_body(body) if isinstance(item, Note) for blob in bytes_in(item.data)]
    return b"".join([*store.bodies, *blobs])


def bytes_in(value):
    if isinstance(value, bytes):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from bytes_in(item)


@pytest.mark.asyncio
async def test_what_tasks_write_out_of_order_is_stored_once_and_read_in_order(store):
    """The first of two ends last: it stands behind the other in the log, and before it in the list, now and in an old checkpoint."""

    async def first(state):
        await asyncio.sleep(0.05)
        return {"messages": AIMessage("the-first", id="a")}

    builder = StateGraph(MessagesState).add_node(first).add_node("second", lambda state: {"messages": AIMessage("the-second", id="b")})
    graph = compiled(builder.add_edge(START, "first").add_edge(START, "second"))
    async with open_conversation(ADA, store=store):
        said_then = (await graph.ainvoke({"messages": [HumanMessage("go")]}, THREAD))["messages"]
        assert texts(said_then) == ["go", "the-first", "the-second"]
    async with open_conversation(ADA, store=store):
        assert (await graph.aget_state(THREAD)).values["messages"] == said_then
        await graph.aupdate_state(THREAD, {"messages": []}, as_node="first")
        assert [state async for state in graph.aget_state_history(THREAD)][1].values["messages"] == said_then
    stored = everything_in(store)
    assert stored.index(b"the-second") < stored.index(b"the-first")
    assert stored.count(b"the-first") == stored.count(b"the-second") == 1


class Counting(JsonPlusSerializer):
    """Counts what a saver of LangGraph's is about to write."""

    written = 0

    def dumps_typed(self, obj):
        kind, body = super().dumps_typed(obj)
        self.written += len(body)
        return kind, body


async def written_in_turns(saver, count, within, turns):
    """Return the bytes that each of so many turns has written, all of which say equally much."""
    costs = []
    for i in range(turns):
        agent, _ = agent_of(calling((f"c{i:04}", {"a": 1, "b": 2})), AIMessage(f"answer {i:04} " + "x" * 200), saver=saver)
        before = count()
        async with within():
            await agent.ainvoke(ask(f"question {i:04} " + "x" * 200), THREAD)
        costs.append(count() - before)
    return costs


@pytest.mark.asyncio
async def test_a_turn_writes_as_much_however_long_the_conversation_is(longer):
    """Within the window and far beyond it, counted at several lengths; LangGraph's own saver writes the history again with each step."""
    turns = 150 if longer else 60
    async with Store(MemoryStore()) as store:
        ours = await written_in_turns(ConversationSaver(), lambda: store.written, lambda: open_conversation(ADA, store=store), turns)
        assert store.calls["load"] == turns
        assert store.calls["append"] == 2 * turns
    lengths = [2, 10, 30, turns - 1]
    assert max(ours[length] for length in lengths) - min(ours[length] for length in lengths) < 256, ours
    serde = Counting()
    theirs = await written_in_turns(InMemorySaver(serde=serde), lambda: serde.written, nullcontext, 31)
    assert theirs[30] > 5 * theirs[2]
    assert theirs[30] > 10 * ours[30]


@pytest.mark.asyncio
async def test_a_turn_of_a_thread_that_nobody_opened_writes_as_much_however_long_it_is():
    """Each call is a turn there, and takes a load and an append; what was read is not read again."""
    async with Store(MemoryStore()) as store:
        saver = ConversationSaver(owner="user:ada", store=store)
        ours = await written_in_turns(saver, lambda: store.written, nullcontext, 20)
        calls = store.calls.copy()
        await written_in_turns(saver, lambda: store.written, nullcontext, 1)
        assert abs(ours[2] - ours[-1]) < 256
        assert store.calls["load"] - calls["load"] == store.calls["append"] + store.calls["release"] - calls["append"] - calls["release"]


# The conversation


@pytest.mark.asyncio
async def test_a_graph_and_everybody_else_read_the_same_conversation(store):
    """Calls, results and pictures are messages for all; what others say, the graph reads with its next turn."""
    agent, model = agent_of(calling(("c1", {"a": 1, "b": 2})), AIMessage("3"), AIMessage("a cat"))
    async with open_conversation(ADA, store=store):
        await agent.ainvoke(ask("1 + 2?"), current_thread())
    async with open_conversation(ADA, store=store) as conversation:
        assert [(message.role, message.text) for message in conversation.messages] == [
            ("user", "1 + 2?"),
            ("assistant", ""),
            ("tool", "3"),
            ("assistant", "3"),
        ]
        assert conversation.messages[1].tool_calls == (ToolCall(id="c1", name="add", arguments={"a": 1, "b": 2}),)
        assert conversation.messages[2].tool_call_id == "c1"
        assert conversation.total_turns == 1
        conversation.append(
            Message.user([TextPart(text="look"), ImagePart(data=b"png", media_type="image/png")]), Message.assistant("I see")
        )
    async with open_conversation(ADA, store=store):
        answer = await agent.ainvoke(ask("what is it?"), current_thread())
    assert texts(answer["messages"]) == ["1 + 2?", "", "3", "3", "look", "I see", "what is it?", "a cat"]
    assert model.sent[-1][4].content_blocks[1] == {"type": "image", "base64": "cG5n", "mime_type": "image/png"}


@pytest.mark.asyncio
@pytest.mark.filterwarnings("ignore::convmem.turns.RepeatedTextWarning")
async def test_every_message_comes_back_to_its_graph_equal(store):
    """Lossless through a state too: what a node returned is what a checkpoint holds, whatever class it is of."""
    natives = [native for native in CORPUS if not isinstance(native, RemoveMessage)]
    builder = StateGraph(MessagesState).add_node("say", lambda state: {"messages": natives}).add_edge(START, "say")
    graph = compiled(builder.add_node("end", lambda state: {}).add_edge("say", "end"))
    async with open_conversation(ADA, store=store):
        given = (await graph.ainvoke(ask("say it all"), THREAD))["messages"]
    async with open_conversation(ADA, store=store) as conversation:
        before_end = [state async for state in graph.aget_state_history(THREAD)][1]
        assert before_end.values["messages"] == given
        assert len(conversation.said.messages) == len(given) == len(natives) + 1


@pytest.mark.asyncio
async def test_a_graph_goes_on_with_what_others_began(store):
    """Moving to a graph in the middle of a conversation: its first turn has the history, though there is no checkpoint."""
    async with open_conversation(ADA, store=store) as conversation:
        conversation.append(Message.user("my name is Ada"), Message.assistant("hello"))
    async with open_conversation(ADA, store=store):
        answer = await echo().ainvoke(ask("who am I?"), current_thread())
        first = [state async for state in echo().aget_state_history(current_thread())][-1]
        assert first.parent_config is None, "what stands nowhere cannot be gone back to"
    assert texts(answer["messages"]) == ["my name is Ada", "hello", "who am I?", "my name is Ada | who am I?"]
    assert len(await said(store)) == 4


@pytest.mark.asyncio
async def test_what_others_hide_is_gone_from_the_graph_too(store):
    """A conversation that was cleared does not come back from a checkpoint."""
    for _ in range(2):
        async with open_conversation(ADA, store=store):
            await echo().ainvoke(ask("secret"), current_thread())
    async with open_conversation(ADA, store=store) as conversation:
        await conversation.clear()
    async with open_conversation(ADA, store=store):
        answer = await echo().ainvoke(ask("anything?"), current_thread())
    assert texts(answer["messages"]) == ["anything?", "anything?"]


@pytest.mark.asyncio
async def test_a_conversation_longer_than_its_window(store):
    """The graph has the window, as every framework; what is no message stays, and the past is whole for whoever goes there."""
    builder = StateGraph(Research).add_node("answer", lambda state: {"messages": AIMessage(f"answer {len(state['messages'])}")})
    graph = compiled(builder.add_edge(START, "answer"))
    for i in range(56):
        async with open_conversation(ADA, store=store):
            await graph.ainvoke(ask(f"question {i}", **({"topic": "said once"} if i == 0 else {})), THREAD)
    async with open_conversation(ADA, store=store) as conversation:
        state = await graph.aget_state(THREAD)
        assert len(state.values["messages"]) == len(conversation.messages) == 100
        assert state.values["topic"] == "said once"
        assert store.calls["load"] == 57
        past = [state async for state in graph.aget_state_history(THREAD)]
        assert store.calls["load"] == 58
        assert len(past) == 56 * 3
        early = next(state for state in past if state.metadata["step"] == 1)
        assert texts(early.values["messages"]) == ["question 0", "answer 1"]
        again = await graph.ainvoke(ask("instead"), early.config)
        assert texts(again["messages"]) == ["question 0", "answer 1", "instead", "answer 3"]
    assert texts(await said(store)) == ["question 0", "answer 1", "instead", "answer 3"]


@pytest.mark.asyncio
async def test_a_call_that_nobody_answered_is_gone_with_the_next_turn(store):
    """Left alone, it would have the model's API refuse the conversation for ever."""
    graph, model = agent_of(calling(("c1", {"a": 1, "b": 2})), AIMessage("well"), AIMessage("fine"))
    graph.interrupt_before_nodes = ["tools"]
    for question in ("add", "never mind", "how are you?"):
        async with open_conversation(ADA, store=store):
            if question == "never mind":
                state = await graph.aget_state(THREAD)
                assert state.next == ("tools",)
                assert state.values["messages"][-1].tool_calls
            await graph.ainvoke(ask(question), THREAD)
    assert texts(model.sent[-1]) == ["add", "never mind", "well", "how are you?"]


@pytest.mark.asyncio
async def test_a_message_that_cannot_be_stored_is_refused(store):
    """By its field, and the run fails: nothing is changed silently."""
    builder = StateGraph(MessagesState).add_node("say", lambda state: {"messages": AIMessage("x", additional_kwargs={"tool": object()})})
    graph = compiled(builder.add_edge(START, "say"))
    async with open_conversation(ADA, store=store):
        with pytest.raises(InvalidMessage) as caught:
            await graph.ainvoke(ask("go"), THREAD)
    assert caught.value.field == "additional_kwargs.tool"


# In an app


async def chat(text: str) -> str:
    agent, _ = agent_of(calling((f"call of {text}", {"a": 1, "b": 2})), AIMessage(f"answer to {text}"))
    return (await agent.ainvoke(ask(text), current_thread()))["messages"][-1].text


def test_a_turn_in_an_app_is_stored_once_and_whole(store):
    """One load; the question at once, because a model may fail; and one closing entry with the response."""
    client = Client(store, chat=chat)
    for text in ("one", "two"):
        before = store.calls.copy()
        assert client.ask("chat", text).json() == f"answer to {text}"
        assert store.calls - before == {"load": 1, "append": 2}
    assert [(role, text) for role, text, state in client.said() if state == "complete" and text and role != "tool"] == [
        ("user", "one"),
        ("assistant", "answer to one"),
        ("user", "two"),
        ("assistant", "answer to two"),
    ]


def test_a_streamed_run_is_stored_before_its_last_byte(store):
    """The graph ends before the stream does, and the stream's end waits for the store."""

    async def stream(text: str) -> StreamingResponse:
        async def words():
            async with aclosing(echo().astream(ask(text), current_thread(), stream_mode="updates")) as updates:
                async for update in updates:
                    yield update["answer"]["messages"].text

        return StreamingResponse(words())

    client = Client(store, stream=stream)
    assert client.ask("stream", "one").text == "one"
    assert client.ask("stream", "two").text == "one | two"
    assert client.said() == [
        ("user", "one", "complete"),
        ("assistant", "one", "complete"),
        ("user", "two", "complete"),
        ("assistant", "one | two", "complete"),
    ]


def test_a_node_that_raises_leaves_the_question_and_the_next_turn_works(store):
    """Interrupted is not lost: the run can be taken up again, or another question be asked."""
    failing = True

    def answer(state: MessagesState):
        if failing:
            raise ValueError("the model is down")
        return {"messages": AIMessage(" | ".join(message.text for message in state["messages"] if message.type == "human"))}

    graph = StateGraph(MessagesState).add_node(answer).add_edge(START, "answer").compile(checkpointer=ConversationSaver())

    async def talk(text: str) -> str:
        return (await graph.ainvoke(ask(text) if text != "again" else None, current_thread()))["messages"][-1].text

    client = Client(store, talk=talk)
    assert client.ask("talk", "one").status_code == 500
    assert client.said() == [("user", "one", "interrupted")]
    failing = False
    assert client.ask("talk", "again").json() == "one"
    failing = True
    assert client.ask("talk", "two").status_code == 500
    failing = False
    assert client.ask("talk", "three").json() == "one | two | three"


def test_a_repeated_request_is_one_turn(store):
    """The attempt that died is superseded, with its checkpoints."""
    attempts = []

    async def once(text: str) -> str:
        attempts.append(text)
        agent, _ = agent_of(*([AIMessage("done")] if len(attempts) > 1 else []))
        return (await agent.ainvoke(ask(text), current_thread()))["messages"][-1].text

    client = Client(store, once=once)
    assert client.ask("once", "one", **{"idempotency-key": "a"}).status_code == 500
    assert client.ask("once", "one", **{"idempotency-key": "a"}).json() == "done"
    assert client.said() == [("user", "one", "complete"), ("assistant", "done", "complete")]


def test_an_interrupt_is_answered_by_another_request(store):
    """What a person is asked and answers are two requests, perhaps on two workers."""

    def approve(state: MessagesState):
        return {"messages": AIMessage(f"you said {interrupt('sure?')}")}

    graph = StateGraph(MessagesState).add_node(approve).add_edge(START, "approve").compile(checkpointer=ConversationSaver())

    async def start(text: str) -> str:
        return (await graph.ainvoke(ask(text), current_thread()))["__interrupt__"][0].value

    async def answer(text: str) -> str:
        return (await graph.ainvoke(Command(resume=text), current_thread()))["messages"][-1].text

    assert Client(store, start=start).ask("start", "delete it").json() == "sure?"
    client = Client(store, answer=answer)
    assert client.ask("answer", "yes").json() == "you said yes"
    assert [text for _, text, _ in client.said()] == ["delete it", "you said yes"]


def test_a_store_that_is_down_fails_the_request(store):
    """Never an answer that was not kept."""
    client = Client(store, chat=chat)
    client.ask("chat", "one")
    store.failing = True
    answer = client.ask("chat", "two")
    assert (answer.status_code, answer.json()["code"]) == (503, "store_unavailable")
    store.failing = False
    assert client.ask("chat", "three").json() == "answer to three"


def test_a_thread_of_somebody_else_cannot_be_named(store):
    """A thread id comes from a client; the owner never does."""

    async def named(text: str) -> str:
        return (await echo().ainvoke(ask("hello"), {"configurable": {"thread_id": text}}))["messages"][-1].text

    client = Client(store, named=named)
    for thread in ("default", "work"):
        assert client.ask("named", thread, user="ada").json() == "hello"
        assert client.ask("named", thread, user="bob").json() == "hello"
        assert client.ask("named", thread, user="ada").json() == "hello | hello"
    assert client.ask("named", "../ada/default").status_code == 400


def test_synchronous_graphs_work_in_a_thread_and_on_the_event_loop(store):
    """In a thread all is as elsewhere; on the loop nothing waits for itself, and the turn is stored with its response."""

    def threaded(text: str) -> str:
        return echo().invoke(ask(text), current_thread())["messages"][-1].text

    async def blocking(text: str) -> str:
        with pytest.warns(UnsavedQuestionWarning, match="ainvoke"):
            return echo().invoke(ask(text), current_thread())["messages"][-1].text

    client = Client(store, threaded=threaded, blocking=blocking)
    before = store.calls.copy()
    assert client.ask("threaded", "one").json() == "one"
    assert store.calls - before == {"load": 1, "append": 2}
    before = store.calls.copy()
    assert client.ask("blocking", "two").json() == "one | two"
    assert store.calls - before == {"load": 1, "append": 1}


def test_what_takes_a_trip_says_so_on_the_event_loop(store):
    """It would wait for the loop it blocks; from a thread it is done."""

    def history(text: str) -> int:
        return len(list(echo().get_state_history(current_thread())))

    async def blocking(text: str) -> str:
        await chat(text)
        with pytest.raises(ConfigurationError, match="aget_state"):
            ConversationSaver().delete_thread("default")
        return "still there"

    def gone(text: str) -> str:
        ConversationSaver().delete_thread("default")
        return "gone"

    client = Client(store, chat=chat, history=history, blocking=blocking, gone=gone)
    client.ask("chat", "one")
    assert client.ask("history", "").json() == 5
    assert client.ask("blocking", "two").json() == "still there"
    assert client.ask("gone", "").json() == "gone"
    assert client.said() == []


# Scripts, threads and workers


def test_a_script_without_an_event_loop(store):
    """The saver's own thread does the work; also where a loop runs and is blocked."""
    graph = echo(ConversationSaver(owner="user:ada", store=store))
    assert graph.invoke(ask("one"), THREAD)["messages"][-1].text == "one"

    async def blocked():
        return graph.invoke(ask("two"), THREAD)["messages"][-1].text

    assert asyncio.run(blocked()) == "one | two"
    assert len(list(graph.get_state_history(THREAD))) == 6
    graph.checkpointer.delete_thread("default")
    assert graph.get_state(THREAD).values == {}
    assert asyncio.run(said(store)) == []


@pytest.mark.asyncio
async def test_without_a_conversation_and_an_owner_the_error_says_what_to_write():
    """Nobody knows whose thread that would be."""
    with pytest.raises(NoConversation, match="ConversationSaver\\(owner="):
        await echo().ainvoke(ask("one"), THREAD)
    with pytest.raises(InvalidIdentity):
        await echo(ConversationSaver(owner="user:ada", store=MemoryStore())).ainvoke(ask("one"), {"configurable": {"thread_id": "a/b"}})


@pytest.mark.asyncio
async def test_two_runs_at_once_lose_nothing(store):
    """In one turn, in two conversations of two workers, or in none: both questions and answers are there afterwards."""
    async with open_conversation(ADA, store=store):
        await echo().ainvoke(ask("first"), THREAD)
        await asyncio.gather(*(echo().ainvoke(ask(f"question {i}"), THREAD) for i in range(3)))
    there = texts(await said(store))
    assert sorted(text for text in there if text.startswith("question") and "|" not in text) == [f"question {i}" for i in range(3)]
    assert len(there) == 8

    async def worker(i):
        saver = ConversationSaver(owner="user:bob", store=store)
        return await echo(saver).ainvoke(ask(f"question {i}"), THREAD)

    await asyncio.gather(*map(worker, range(4)))
    there = texts(await said(store, SessionKey.for_user("bob")))
    assert {text for text in there if "|" not in text} == {f"question {i}" for i in range(4)}
    assert len(there) == 8
    async with open_conversation(SessionKey.for_user("bob"), store=store):
        answer = await echo().ainvoke(ask("all?"), THREAD)
    assert all(f"question {i}" in answer["messages"][-1].text for i in range(4))


@pytest.mark.asyncio
async def test_a_remembered_thread_is_read_again_once_somebody_else_wrote(store):
    """Two savers of two workers on one thread: each goes on from what is stored, not from what it remembers."""
    one, two = (echo(ConversationSaver(owner="user:ada", store=store)) for _ in range(2))
    for i in range(3):
        await one.ainvoke(ask(f"one {i}"), THREAD)
        await two.ainvoke(ask(f"two {i}"), THREAD)
    assert (await two.aget_state(THREAD)).values["messages"][-1].text == "one 0 | two 0 | one 1 | two 1 | one 2 | two 2"
    await one.checkpointer.adelete_thread("default")
    assert (await two.ainvoke(ask("new"), THREAD))["messages"][-1].text == "new"


@pytest.mark.asyncio
async def test_a_deleted_thread_is_gone_with_its_messages(store):
    """To delete a thread is to forget the conversation."""
    async with open_conversation(ADA, store=store):
        await echo().ainvoke(ask("secret"), THREAD)
    async with open_conversation(ADA, store=store):
        await ConversationSaver().adelete_thread("default")
    async with open_conversation(ADA, store=store) as conversation:
        assert conversation.is_new
        assert await ConversationSaver().aget_tuple(THREAD) is None


@pytest.mark.asyncio
async def test_the_graph_may_keep_its_messages_elsewhere(store):
    """Under another key, or no messages at all: the rest is kept as it is."""

    class Talk(MessagesState):
        talk: Annotated[list, operator.add]

    def answer(state):
        return {"talk": [AIMessage(f"{len(state['talk'])}")], "messages": [AIMessage("aside")]}

    graph = compiled(StateGraph(Talk).add_node(answer).add_edge(START, "answer"), ConversationSaver(channel="talk"))
    state = {}
    for i in range(3):
        async with open_conversation(ADA, store=store):
            state = await graph.ainvoke({"talk": [HumanMessage(f"question {i}")]}, THREAD)
    assert texts(state["talk"]) == ["question 0", "1", "question 1", "3", "question 2", "5"]
    assert texts(state["messages"]) == ["aside"] * 3
    assert texts(await said(store)) == texts(state["talk"])


@pytest.mark.asyncio
async def test_a_value_that_looks_like_ours_comes_back(store):
    """What a list of messages is folded into is a dict like any other."""

    class Noted(MessagesState):
        note: dict[str, Any]

    note = {"convmem:messages": "list", "of": [{"from": "a", "to": "b", "n": 1}], "more": {"convmem:messages": "one"}}
    graph = compiled(StateGraph(Noted).add_node("answer", lambda state: {"messages": AIMessage("noted")}).add_edge(START, "answer"))
    async with open_conversation(ADA, store=store):
        await graph.ainvoke(ask("keep this", note=note), THREAD)
    async with open_conversation(ADA, store=store):
        assert (await graph.aget_state(THREAD)).values["note"] == note


@pytest.mark.asyncio
async def test_what_is_no_message_is_written_by_the_serializer_that_was_given(store):
    """For instance one that encrypts; LangGraph narrows it, too, and hands the saver on as a copy."""

    class Secret(JsonPlusSerializer):
        def dumps_typed(self, obj):
            kind, body = super().dumps_typed(obj)
            return kind, bytes(byte ^ 0x55 for byte in body)

        def loads_typed(self, data):
            return super().loads_typed((data[0], bytes(byte ^ 0x55 for byte in data[1])))

    graph = counting_graph(lambda builder: builder.compile(checkpointer=ConversationSaver(serde=Secret())))
    history = []
    for topic in ("the-topic", "the-topic"):
        async with open_conversation(ADA, store=store):
            await graph.ainvoke(ask("question", topic=topic), THREAD)
            history = await history_of(graph)
    assert history[0][0]["topic"] == "answer 3"
    assert b"the-topic" not in everything_in(store)


def test_a_checkpointer_and_the_middleware_for_memory_are_not_for_one_agent(store):
    """The model would be given everything twice."""
    agent = create_agent(Model(AIMessage("hello")), checkpointer=ConversationSaver(), middleware=[MemoryMiddleware()])

    async def both(text: str) -> str:
        with pytest.raises(ConfigurationError, match="checkpointer"):
            await agent.ainvoke(ask(text), current_thread())
        return "refused"

    assert Client(store, both=both).ask("both", "one").json() == "refused"
