"""Why apps forget: for each known cause the code people usually write, which forgets, and the same app with ours, which does not.

Each test has both halves, so that it also says when a framework has mended its own. `ROWS` numbers the causes; what has no
number here is a promise of identities, stores or commands, and is tested with them.
"""

import asyncio
import importlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated
from uuid import uuid4

import httpx
import pytest
from fastapi import Depends, FastAPI, Request
from fastapi.testclient import TestClient
from langchain.agents import create_agent
from langchain_classic.memory import ConversationBufferWindowMemory, ConversationTokenBufferMemory
from langchain_core.chat_history import InMemoryChatMessageHistory
from langchain_core.language_models import FakeListLLM
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage, get_buffer_string, messages_from_dict, messages_to_dict
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder
from langchain_core.runnables import RunnableLambda
from langchain_core.runnables.history import RunnableWithMessageHistory
from langgraph.checkpoint.memory import InMemorySaver
from llama_index.core import Document, MockEmbedding, StorageContext, VectorStoreIndex, load_index_from_storage
from llama_index.core.agent.workflow import ReActAgent
from llama_index.core.base.llms.types import ChatMessage, MessageRole
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.llms.mock import MockFunctionCallingLLM
from llama_index.core.memory import ChatMemoryBuffer, ChatSummaryMemoryBuffer, Memory
from llama_index.core.storage.chat_store import SimpleChatStore
from pydantic_core import PydanticSerializationError

from convmem import (
    ConfigurationError,
    Conversation,
    ConversationMiddleware,
    MemoryStore,
    SessionKey,
    Settings,
    SQLiteStore,
    Store,
    StoreUnavailable,
    Window,
    from_callable,
    get_conversation,
)
from convmem.messages import decode_messages
from convmem.testing import CountedStore
from convmem_langchain import ConversationHistory, MemoryMiddleware, check_history_key
from convmem_llamaindex import ConversationSyncChatStore, memory_for
from tests.adapters import forgetful_apps
from tests.adapters.forgetful_apps import reader, reading, user
from tests.servers.processes import HOST, PATIENCE, PYTHON, Server, clean_environment

ROWS = {
    1: "test_a_memory_made_in_the_handler_forgets_and_ours_is_filled_again",
    2: "test_a_killed_process_forgets_its_dict_and_ours_goes_on",
    3: "test_two_workers_are_two_dicts_and_one_conversation",
    4: "test_replicas_behind_a_load_balancer_forget_in_turns_and_ours_share_every_turn",
    5: "test_a_process_for_each_request_forgets_and_ours_has_stored_before_it_is_frozen",
    6: "test_a_reloaded_module_forgets_and_ours_is_set_up_again_on_what_is_there",
    7: "test_a_random_session_id_loses_what_is_stored_and_ours_comes_from_who_asks",
    10: "test_a_persisted_index_holds_no_chat_and_ours_is_kept_beside_it",
    12: "test_the_names_of_old_tutorials_are_gone_and_ours_are_here",
    14: "test_one_engine_for_all_tells_a_user_what_another_said_and_ours_is_whose_turn_it_is",
    16: "test_a_history_written_as_text_cannot_be_read_and_ours_keeps_calls_and_results",
    18: "test_an_agent_made_anew_forgets_and_ours_is_rehydrated",
    19: "test_a_small_limit_deletes_for_good_and_ours_only_hides",
    20: "test_a_summary_replaces_the_original_and_ours_keeps_it",
    23: "test_a_follow_up_question_means_nothing_alone_and_ours_knows_what_it_is_about",
    25: "test_a_store_that_fails_is_passed_over_in_silence_and_ours_says_so",
    26: "test_a_whole_history_is_written_for_each_turn_and_ours_writes_what_is_new",
    30: "test_a_key_the_prompt_does_not_have_hides_the_history_and_ours_names_both",
}
"""The number of each cause, and the test that shows it."""

pytestmark = [
    # the classes whose users we serve; LangChain removes them in 2.0
    pytest.mark.filterwarnings("ignore::langchain_core._api.deprecation.LangChainDeprecationWarning"),
    pytest.mark.filterwarnings("ignore::langchain_core._api.deprecation.LangChainPendingDeprecationWarning"),
    # the workflows below LlamaIndex's agents look at every attribute of an agent, deprecated ones of pydantic too
    pytest.mark.filterwarnings("ignore::pydantic.PydanticDeprecatedSince20", "ignore::pydantic.PydanticDeprecatedSince211"),
    pytest.mark.filterwarnings("ignore:is_running called from within a step:DeprecationWarning"),  # by its ReActAgent
]

ROOT = Path(__file__).resolve().parents[2]
NAME, ASKS = "my name is Ada", "what is my name?"
BOTH = f"{NAME} | {ASKS}"
CurrentConversation = Annotated[Conversation, Depends(get_conversation)]


def theirs(chat) -> TestClient:
    """Return a client of an app as people write it."""
    app = FastAPI()
    app.post("/chat", response_model=None)(chat)
    return TestClient(app)


def ours(chat, database: Path | None = None, *, store: Store | None = None, **options) -> TestClient:
    """Return a client of the same app inside the middleware; used as a context, it is a deployment with its start and its end."""
    client = theirs(chat)
    url = {} if database is None else {"store": f"sqlite:///{database}"}
    settings = Settings({}, secret_key="a secret key of thirty-two bytes", **url)
    client.app.add_middleware(ConversationMiddleware, store=store, settings=settings, resolvers=[from_callable(user)], **options)
    return client


def ask(client: TestClient, text: str, who: str = "ada"):
    answer = client.post("/chat", params={"text": text}, headers={"x-user": who})
    assert answer.status_code == 200, answer.text
    return answer.json()


def stored(database: Path, who: str = "ada") -> list[str]:
    """Return the texts of all that was ever stored, whatever of it a model still sees."""

    async def load():
        async with SQLiteStore(database) as store:
            log = await store.load(SessionKey.for_user(who))
        return [message.text for entry in log.entries for message in decode_messages(entry.entry.body)]

    return asyncio.run(load())


def llama() -> MockFunctionCallingLLM:
    """Return LlamaIndex's `reader`; its answer is one that a ReAct agent takes for final."""

    def answer(messages, **options):
        heard = " | ".join(message.content or "" for message in messages if message.role is MessageRole.USER)
        return ChatMessage(role=MessageRole.ASSISTANT, content=f"Thought: I can answer.\nAnswer: {heard}")

    return MockFunctionCallingLLM(response_generator=answer, is_chat_model=True)


def heard(answer) -> str:
    return str(answer).rpartition("Answer: ")[2]


class Talker(GenericFakeChatModel):
    """LangChain's `reader` as a chat model."""

    def __init__(self) -> None:
        super().__init__(messages=iter(()))

    def _generate(self, messages, *args, **options):
        self.messages = iter([reader(messages)])
        return super()._generate(messages, *args, **options)


def agent_of(**options):
    """Return an agent; untyped, because LangChain's overloads know no plain strings for messages."""
    return create_agent(Talker(), [], **options)


async def langchain_ours(text: str) -> str:
    return (await reading(ConversationHistory.current).ainvoke(text)).content


async def llamaindex_ours(text: str) -> str:
    return heard(await SimpleChatEngine.from_defaults(llm=llama(), memory=memory_for()).achat(text))


OURS = {"LangChain": langchain_ours, "LlamaIndex": llamaindex_ours}


def test_every_row_has_its_test():
    """A table that names what nobody runs promises nothing."""
    tests = [name for name in globals() if name.startswith("test_") and name != "test_every_row_has_its_test"]
    assert sorted(ROWS.values()) == sorted(tests)
    assert [globals()[name].__doc__ for name in tests if not globals()[name].__doc__] == []


@pytest.mark.parametrize("framework", OURS)
def test_a_memory_made_in_the_handler_forgets_and_ours_is_filled_again(framework, tmp_path):
    """The first example of every tutorial, put into a route: the object lives as long as the request."""

    async def langchain(text: str):
        history = InMemoryChatMessageHistory()
        return (await reading(lambda: history).ainvoke(text)).content

    async def llamaindex(text: str):
        memory = ChatMemoryBuffer.from_defaults(token_limit=3000)
        return heard(await SimpleChatEngine.from_defaults(llm=llama(), memory=memory).achat(text))

    usual = theirs({"LangChain": langchain, "LlamaIndex": llamaindex}[framework])
    assert [ask(usual, text) for text in (NAME, ASKS)] == [NAME, ASKS]
    with ours(OURS[framework], tmp_path / "c.db") as client:
        assert [ask(client, text) for text in (NAME, ASKS)] == [NAME, BOTH]


def real(database: Path, *options: str) -> Server:
    """Return a real server of both apps, not started yet."""
    argv = [PYTHON, "-m", "uvicorn", "tests.adapters.forgetful_apps:app", "--host", HOST, "--port", "{port}", *options]
    return Server(argv, {"CONVMEM_STORE": f"sqlite:///{database}", "PYTHONPATH": f"{ROOT}:{ROOT / 'adapters'}"}, cwd=ROOT)


def test_a_killed_process_forgets_its_dict_and_ours_goes_on(tmp_path):
    """A dict is gone with its process; a deployment that ends politely is no different to it."""
    with real(tmp_path / "c.db") as process:

        def seen(path: str, text: str) -> str:
            return httpx.post(f"{process.url}/{path}", params={"text": text}, timeout=PATIENCE).json()["seen"]

        assert [seen(path, "hi") for path in ("theirs", "ours")] == ["hi", "hi"]
        assert [seen(path, NAME) for path in ("theirs", "ours")] == [f"hi | {NAME}"] * 2
        process.kill()
        process.start()
        assert seen("theirs", ASKS) == ASKS
        assert seen("ours", ASKS) == f"hi | {BOTH}"


def test_two_workers_are_two_dicts_and_one_conversation(tmp_path):
    """``--workers 2``: which of them answers is chance, so the usual code works on a laptop and forgets now and then in production."""
    with real(tmp_path / "c.db", "--workers", "2") as process:

        def talk(path: str) -> tuple[list[str], list[list[str]]]:
            """Talk over new connections until both workers have answered more than once."""
            said: list[str] = []
            seen: list[list[str]] = []
            pids: list[int] = []
            while len(set(pids)) < 2 or min(map(pids.count, pids)) < 2:
                assert len(said) < 400, "one worker answers alone"
                time.sleep(0.1 if len(said) > 20 else 0)  # the other may begin much later
                said.append(str(len(said)))
                answer = httpx.post(f"{process.url}/{path}", params={"text": said[-1]}, timeout=PATIENCE).json()
                seen.append(answer["seen"].split(" | "))
                pids.append(answer["pid"])
            return said, seen

        said, seen = talk("theirs")
        assert set(seen[-1]) < set(said)
        said, seen = talk("ours")
        assert seen == [said[max(i - 50, 0) : i + 1] for i in range(len(said))]  # the window holds 50 turns and the present one


def test_replicas_behind_a_load_balancer_forget_in_turns_and_ours_share_every_turn(tmp_path):
    """Round robin over three: no affinity is needed, and each reads what another has just written."""

    def replica():
        memories: dict[str, ChatMemoryBuffer] = {}

        async def chat(text: str, request: Request):
            memory = memories.setdefault(user(request.scope), ChatMemoryBuffer.from_defaults())
            return heard(await SimpleChatEngine.from_defaults(llm=llama(), memory=memory).achat(text))

        return chat

    texts = [str(i) for i in range(7)]
    replicas = [theirs(replica()) for _ in range(3)]
    assert [ask(replicas[i % 3], text) for i, text in enumerate(texts)] == ["0", "1", "2", "0 | 3", "1 | 4", "2 | 5", "0 | 3 | 6"]
    with (
        ours(llamaindex_ours, tmp_path / "c.db") as a,
        ours(langchain_ours, tmp_path / "c.db") as b,
        ours(llamaindex_ours, tmp_path / "c.db") as c,
    ):
        answers = [ask((a, b, c)[i % 3], text) for i, text in enumerate(texts)]
    assert [heard(answer) for answer in answers] == [" | ".join(texts[: i + 1]) for i in range(7)]


def test_a_process_for_each_request_forgets_and_ours_has_stored_before_it_is_frozen(tmp_path):
    """Serverless: no start, no end, and nothing may run behind the last byte."""

    def invoke(path: str, text: str) -> str:
        environment = {"CONVMEM_STORE": f"sqlite:///{tmp_path}/c.db", "PYTHONPATH": f"{ROOT}:{ROOT / 'adapters'}"}
        command = [sys.executable, "-m", "tests.adapters.forgetful_apps", path, text]
        done = subprocess.run(command, env=clean_environment(environment), cwd=ROOT, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    assert [invoke("theirs", text) for text in (NAME, ASKS)] == [NAME, ASKS]
    assert [invoke("ours", text) for text in (NAME, ASKS)] == [NAME, BOTH]


def test_a_reloaded_module_forgets_and_ours_is_set_up_again_on_what_is_there(tmp_path, monkeypatch):
    """``--reload``, and a notebook cell that is run again: the head of the module makes a new, empty dict."""
    monkeypatch.setenv("CONVMEM_STORE", f"sqlite:///{tmp_path}/c.db")
    answers = {}
    for text in (NAME, ASKS):
        module = importlib.reload(forgetful_apps)
        with TestClient(module.app) as client:
            answers[text] = [client.post(path, params={"text": text}).json()["seen"] for path in ("/theirs", "/ours")]
    assert answers == {NAME: [NAME, NAME], ASKS: [ASKS, BOTH]}


@pytest.mark.parametrize("framework", OURS)
def test_a_random_session_id_loses_what_is_stored_and_ours_comes_from_who_asks(framework, tmp_path):
    """The history is there, on disk even; nobody will ever ask for it by that id again."""
    histories: dict[str, InMemoryChatMessageHistory] = {}

    async def langchain(text: str):
        config = {"configurable": {"session_id": str(uuid4())}}
        chain = reading(lambda session_id: histories.setdefault(session_id, InMemoryChatMessageHistory()))
        return (await chain.ainvoke(text, config)).content

    async def llamaindex(text: str):
        memory = Memory.from_defaults(async_database_uri=f"sqlite+aiosqlite:///{tmp_path}/theirs.db")  # its default id is random
        answer = await SimpleChatEngine.from_defaults(llm=llama(), memory=memory).achat(text)
        await memory.sql_store._async_engine.dispose()  # which the usual code leaves out
        return heard(answer)

    usual = theirs({"LangChain": langchain, "LlamaIndex": llamaindex}[framework])
    assert [ask(usual, text) for text in (NAME, ASKS)] == [NAME, ASKS]
    assert NAME.encode() in (tmp_path / "theirs.db").read_bytes() if framework == "LlamaIndex" else len(histories) == 2
    with ours(OURS[framework], tmp_path / "c.db") as client:
        assert [ask(client, text) for text in (NAME, ASKS)] == [NAME, BOTH]
        assert ask(client, "hello", "bob") == "hello"


def test_a_persisted_index_holds_no_chat_and_ours_is_kept_beside_it(tmp_path):
    """``storage_context.persist()`` writes documents, vectors and no word of what was said."""
    folder = tmp_path / "storage"

    def deployed(memory_of):
        if folder.exists():
            context = StorageContext.from_defaults(persist_dir=str(folder))
            index = load_index_from_storage(context, embed_model=MockEmbedding(embed_dim=2))
        else:
            index = VectorStoreIndex.from_documents([Document(text="a note")], embed_model=MockEmbedding(embed_dim=2))

        async def chat(text: str):
            engine = index.as_chat_engine(chat_mode="context", llm=llama(), memory=memory_of())
            answer = await engine.achat(text)
            index.storage_context.persist(str(folder))
            assert [node.text for node in answer.source_nodes] == ["a note"]
            return heard(answer)

        return chat

    memories = ChatMemoryBuffer.from_defaults(), ChatMemoryBuffer.from_defaults()
    assert ask(theirs(deployed(lambda: memories[0])), NAME) == NAME
    assert ask(theirs(deployed(lambda: memories[1])), ASKS) == ASKS
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert files
    assert not [file for file in files if NAME in file.read_text()]
    with ours(deployed(memory_for), tmp_path / "c.db") as client:
        assert ask(client, NAME) == NAME
    with ours(deployed(memory_for), tmp_path / "c.db") as client:
        assert ask(client, ASKS) == BOTH


def test_the_names_of_old_tutorials_are_gone_and_ours_are_here(tmp_path):
    """What their imports say today; our names stay where the documentation has them."""
    for module in ("langchain.memory", "langchain.chains"):
        with pytest.raises(ModuleNotFoundError, match=module):
            importlib.import_module(module)
    for module, name in (("llama_index.core", "GPTSimpleVectorIndex"), ("llama_index.core.agent", "OpenAIAgent")):
        assert not hasattr(importlib.import_module(module), name)
    with pytest.raises(ValueError, match="ServiceContext is deprecated"):
        importlib.import_module("llama_index.core").ServiceContext.from_defaults()
    assert not [name for name in ("from_tools", "chat", "achat") if hasattr(ReActAgent, name)]
    here = {
        "langchain.agents": ["create_agent"],
        "langchain_classic.chains": ["ConversationChain"],
        "langchain_classic.memory": ["ConversationBufferMemory", "ConversationBufferWindowMemory", "ConversationSummaryMemory"],
        "langchain_core.runnables.history": ["RunnableWithMessageHistory"],
        "llama_index.core.memory": ["ChatMemoryBuffer", "ChatSummaryMemoryBuffer", "Memory"],
        "convmem_langchain": ["ConversationHistory", "MemoryMiddleware", "check_history_key", "from_langchain", "to_langchain"],
        "convmem_llamaindex": ["ConversationChatStore", "ConversationSyncChatStore", "memory_for", "stream_answer"],
    }
    assert [(module, name) for module, names in here.items() for name in names if not hasattr(importlib.import_module(module), name)] == []
    for chat in OURS.values():
        with ours(chat, tmp_path / f"{chat.__name__}.db") as client:
            assert [ask(client, text) for text in (NAME, ASKS)] == [NAME, BOTH]


@pytest.mark.parametrize("mine", [False, True])
def test_one_engine_for_all_tells_a_user_what_another_said_and_ours_is_whose_turn_it_is(mine, tmp_path):
    """Two users at the same time, both inside the handler: one gets the other's secret, and the engine "remembers" very well."""
    engine = SimpleChatEngine.from_defaults(llm=llama(), memory=ChatMemoryBuffer.from_defaults())

    async def main() -> tuple[str, str]:
        inside = asyncio.Barrier(2)

        async def usual(text: str):
            await inside.wait()
            return heard(await engine.achat(text))

        async def wanted(text: str):
            await inside.wait()
            return await llamaindex_ours(text)

        async with SQLiteStore(tmp_path / "c.db") as store:
            app = ours(wanted, store=store).app if mine else theirs(usual).app
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http:

                async def turn(who: str, text: str) -> str:
                    return (await http.post("/chat", params={"text": text}, headers={"x-user": who})).json()

                await asyncio.gather(turn("ada", "a secret of Ada"), turn("bob", "hello from Bob"))
                return await asyncio.gather(turn("ada", "more"), turn("bob", "go on"))

    for_ada, for_bob = asyncio.run(main())
    if mine:
        assert (for_ada, for_bob) == ("a secret of Ada | more", "hello from Bob | go on")
    else:
        assert "secret" in for_bob
        assert "Bob" in for_ada or "go on" in for_ada, "of what both say at once the engine may lose one"


def test_a_history_written_as_text_cannot_be_read_and_ours_keeps_calls_and_results(tmp_path):
    """A text has no roles and no ids; the next request fails, or a model is given one long quotation of itself."""
    saved: dict[str, str] = {}

    async def as_json(text: str):
        memory = ChatMemoryBuffer.from_defaults(chat_history=saved.get("ada"))
        answer = heard(await SimpleChatEngine.from_defaults(llm=llama(), memory=memory).achat(text))
        saved["ada"] = memory.to_string()
        return answer

    client = theirs(as_json)
    with pytest.raises((AttributeError, PydanticSerializationError)):  # with pydantic 2.14 it cannot even be written
        assert [ask(client, text) for text in (NAME, ASKS)] == []

    call = AIMessage("", tool_calls=[{"name": "weather", "args": {"city": "Oslo", "days": 2}, "id": "c1"}])
    result = ToolMessage("rain", tool_call_id="c1", name="weather", artifact=None)

    def turn(history, text: str):
        before = [(message.type, message.content, getattr(message, "tool_calls", [])) for message in history.messages]
        history.add_user_message(text)
        history.add_messages([call, result, AIMessage("It rains.")])
        return before

    def as_text(text: str):
        history = InMemoryChatMessageHistory()
        if "text" in saved:
            history.add_user_message(saved["text"])
        before = turn(history, text)
        saved["text"] = get_buffer_string(history.messages)
        return before

    client = theirs(as_text)
    ask(client, NAME)
    ((kind, content, _),) = ask(client, ASKS)
    assert kind == "human"
    assert content.startswith(f"Human: {NAME}\nAI:")

    def kept(text: str):
        return turn(ConversationHistory(), text)

    with ours(kept, tmp_path / "c.db") as client:
        ask(client, NAME)
        expected = [
            ["human", NAME, []],
            ["ai", "", [{**call.tool_calls[0], "type": "tool_call"}]],
            ["tool", "rain", []],
            ["ai", "It rains.", []],
        ]
        assert ask(client, ASKS) == expected


@pytest.mark.parametrize("framework", OURS)
def test_an_agent_made_anew_forgets_and_ours_is_rehydrated(framework, tmp_path):
    """An agent is no memory: what it needs is to be handed its history again, even where a checkpointer was meant to do that."""

    async def langchain(text: str, request: Request):
        agent = agent_of(checkpointer=InMemorySaver())
        config = {"configurable": {"thread_id": user(request.scope)}}
        return (await agent.ainvoke({"messages": [text]}, config))["messages"][-1].content

    async def langchain_rehydrated(text: str):
        return (await agent_of(middleware=[MemoryMiddleware()]).ainvoke({"messages": [text]}))["messages"][-1].content

    async def llamaindex(text: str):
        memory = ChatMemoryBuffer.from_defaults(token_limit=3000)
        return heard(await ReActAgent(tools=[], llm=llama(), streaming=False).run(user_msg=text, memory=memory))

    async def llamaindex_rehydrated(text: str):
        return heard(await ReActAgent(tools=[], llm=llama(), streaming=False).run(user_msg=text, memory=memory_for()))

    usual, wanted = {"LangChain": (langchain, langchain_rehydrated), "LlamaIndex": (llamaindex, llamaindex_rehydrated)}[framework]
    client = theirs(usual)
    assert [ask(client, text) for text in (NAME, ASKS)] == [NAME, ASKS]
    with ours(wanted, tmp_path / "c.db") as client:
        assert [ask(client, text) for text in (NAME, ASKS)] == [NAME, BOTH]


def test_a_small_limit_deletes_for_good_and_ours_only_hides(tmp_path):
    """k=1 or a few tokens while testing, and more later: what the model was not shown is there again, or it is nowhere."""
    history = InMemoryChatMessageHistory()
    counting = FakeListLLM(responses=["ok"], custom_get_token_ids=lambda text: list(range(len(text.split()))))

    def limited_to(tokens: int):
        def chat(text: str):
            memory = ConversationTokenBufferMemory(llm=counting, chat_memory=history, max_token_limit=tokens, return_messages=True)
            before = [message.content for message in memory.load_memory_variables({})["history"] if message.type == "human"]
            memory.save_context({"input": text}, {"output": "ok"})
            return before

        return chat

    turns = [(8, NAME), (8, "two"), (3000, "three")]
    assert [ask(theirs(limited_to(tokens)), text) for tokens, text in turns] == [[], [NAME], ["two"]]

    def windowed(k: int):
        async def chat(text: str, conversation: CurrentConversation):
            memory = ConversationBufferWindowMemory(k=k, chat_memory=ConversationHistory.current(), return_messages=True)
            before = (await memory.aload_memory_variables({}))["history"]
            told = conversation.truncated, conversation.total_turns, conversation.left_out
            await memory.asave_context({"input": text}, {"output": "ok"})
            return [message.content for message in before if message.type == "human"], told

        return chat

    with ours(windowed(1), tmp_path / "c.db") as client:
        assert [ask(client, text)[0] for text in (NAME, "two", "three")] == [[], [NAME], ["two"]]
    with ours(windowed(50), tmp_path / "c.db", window=Window(turns=1)) as client:
        assert ask(client, "four") == [["three"], [True, 3, 2]]
    with ours(windowed(50), tmp_path / "c.db") as client:
        assert ask(client, "five") == [[NAME, "two", "three", "four"], [False, 4, 0]]


def test_a_summary_replaces_the_original_and_ours_keeps_it(tmp_path):
    """A long talk in short is for the model; people, auditors and the next, better summary want what was said."""
    chat_store = SimpleChatStore()

    def summarising(store_of):
        def chat(text: str):
            memory = ChatSummaryMemoryBuffer.from_defaults(
                llm=MockFunctionCallingLLM(response_generator=lambda messages, **_: ChatMessage("in short", role=MessageRole.ASSISTANT)),
                chat_store=store_of(),
                token_limit=6,
                tokenizer_fn=str.split,
            )
            memory.put(ChatMessage(text, role=MessageRole.USER))
            memory.put(ChatMessage("ok", role=MessageRole.ASSISTANT))
            return [message.content for message in memory.get()]

        return chat

    texts = [NAME, "what do you know", "tell me more now"]
    client = theirs(summarising(lambda: chat_store))
    assert [ask(client, text) for text in texts][-1] == ["in short", "tell me more now", "ok"]
    assert [message.content for message in chat_store.get_messages("chat_history")] == ["in short", "tell me more now", "ok"]
    with ours(summarising(ConversationSyncChatStore), tmp_path / "c.db") as client:
        assert [ask(client, text) for text in texts][-1] == ["in short", "tell me more now", "ok"]
    assert list(dict.fromkeys(text for text in stored(tmp_path / "c.db") if text in texts)) == texts


def test_a_follow_up_question_means_nothing_alone_and_ours_knows_what_it_is_about(tmp_path):
    """After a question about people, "And Lyon?": a chain with a prompt alone answers each as if it were the first."""

    def model(prompt):
        asked = [message.text for message in prompt.messages if message.type == "human"]
        topic = "people" if any("How many people" in text for text in asked) else "what?"
        return AIMessage(f"{topic} in {asked[-1].rstrip('?').split()[-1]}")

    alone = ChatPromptTemplate.from_messages([("system", "Be brief."), ("human", "{question}")])
    with_history = ChatPromptTemplate.from_messages([("system", "Be brief."), MessagesPlaceholder("history"), ("human", "{question}")])

    async def usual(text: str):
        return (await (alone | RunnableLambda(model)).ainvoke({"question": text})).content

    async def wanted(text: str):
        chain = RunnableWithMessageHistory(
            with_history | RunnableLambda(model),
            ConversationHistory.current,
            input_messages_key="question",
            history_messages_key="history",
        )
        check_history_key(chain)
        return (await chain.ainvoke({"question": text})).content

    texts = ["How many people live in Paris?", "And Lyon?"]
    client = theirs(usual)
    assert [ask(client, text) for text in texts] == ["people in Paris", "what? in Lyon"]
    with ours(wanted, tmp_path / "c.db") as client:
        assert [ask(client, text) for text in texts] == ["people in Paris", "people in Lyon"]


def test_a_store_that_fails_is_passed_over_in_silence_and_ours_says_so():
    """LangChain logs what a history raises and answers; the user reads 200 and is forgotten."""

    class FullDisk(InMemoryChatMessageHistory):
        async def aadd_messages(self, messages):
            raise OSError("the disk is full")

    async def usual(text: str):
        history = FullDisk()
        return (await reading(lambda: history).ainvoke(text)).content

    assert [ask(theirs(usual), text) for text in (NAME, ASKS)] == [NAME, ASKS]

    class Full(MemoryStore):
        full = True

        async def append(self, *args, **options):
            if self.full:
                raise StoreUnavailable("memory", "append", "the disk is full")
            return await super().append(*args, **options)

    store = Full()
    client = ours(langchain_ours, store=store)
    answer = client.post("/chat", params={"text": NAME})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
    store.full = False
    assert [ask(client, text) for text in (NAME, ASKS)] == [NAME, BOTH]


def test_a_whole_history_is_written_for_each_turn_and_ours_writes_what_is_new(tmp_path):
    """A blob per conversation grows with it, in bytes and in time; here the hundredth turn costs what the second did."""
    file = tmp_path / "chat.json"
    costs: list[int] = []

    def usual(text: str):
        history = InMemoryChatMessageHistory()
        if file.exists():
            history.add_messages(messages_from_dict(json.loads(file.read_text())))
        history.add_messages([HumanMessage(text), AIMessage("ok")])
        costs.append(file.write_text(json.dumps(messages_to_dict(history.messages))))
        return len(history.messages)

    texts = [f"question {i:03}" for i in range(100)]
    client = theirs(usual)
    assert [ask(client, text) for text in texts][-1] == 200
    assert costs[-1] > 40 * costs[1]

    async def wanted(text: str):
        memory = memory_for()
        await memory.aput_messages([ChatMessage(text, role=MessageRole.USER), ChatMessage("ok", role=MessageRole.ASSISTANT)])
        return len(await memory.aget())

    store = CountedStore(MemoryStore())
    client = ours(wanted, store=store, window=Window(turns=None))
    bills, remembered = [], []
    for text in texts:
        before, bytes_before = store.calls.copy(), store.written
        remembered.append(ask(client, text))
        bills.append((dict(store.calls - before), store.written - bytes_before))
    assert remembered[-1] == 200
    assert bills[1:] == [bills[1]] * 99
    assert bills[1][0] == {"load": 1, "append": 2}  # the question before the model runs, and the end


def test_a_key_the_prompt_does_not_have_hides_the_history_and_ours_names_both(tmp_path):
    """An optional placeholder with another name is valid to LangChain: all is stored, nothing is read, nobody is told."""

    def heeding(value):
        return reader(value.messages)

    prompt = ChatPromptTemplate.from_messages([MessagesPlaceholder("chat_history", optional=True), ("human", "{input}")])
    model = prompt | RunnableLambda(heeding)
    history = InMemoryChatMessageHistory()

    async def usual(text: str):
        chain = RunnableWithMessageHistory(model, lambda: history, input_messages_key="input", history_messages_key="history")
        return (await chain.ainvoke({"input": text})).content

    client = theirs(usual)
    assert [ask(client, text) for text in (NAME, ASKS)] == [NAME, ASKS]
    assert len(history.messages) == 4

    def deployed(key: str):
        chain = RunnableWithMessageHistory(model, ConversationHistory.current, input_messages_key="input", history_messages_key=key)
        check_history_key(chain)

        async def chat(text: str):
            return (await chain.ainvoke({"input": text})).content

        return chat

    with pytest.raises(ConfigurationError, match=r"'history'.*'chat_history'"):
        deployed("history")
    with ours(deployed("chat_history"), tmp_path / "c.db") as client:
        assert [ask(client, text) for text in (NAME, ASKS)] == [NAME, BOTH]
