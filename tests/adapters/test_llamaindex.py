"""LlamaIndex over a conversation: its memories, agents and chat engines remember, and lose nothing on the way."""

import asyncio
import copy
import secrets
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from pathlib import Path

import pytest
import pytest_asyncio
from fastapi import FastAPI, Response
from fastapi.responses import StreamingResponse
from fastapi.testclient import TestClient
from llama_index.core.agent.workflow import AgentWorkflow, FunctionAgent
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, ImageBlock, MessageRole, TextBlock, ToolCallBlock
from llama_index.core.chat_engine import CondensePlusContextChatEngine, ContextChatEngine, SimpleChatEngine
from llama_index.core.llms.mock import MockFunctionCallingLLM, MockLLM
from llama_index.core.memory import ChatMemoryBuffer, ChatSummaryMemoryBuffer, Memory
from llama_index.core.memory.memory import BaseMemoryBlock
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.core.storage.chat_store.base_db import MessageStatus

from convmem import (
    Conversation,
    ConversationMiddleware,
    ImagePart,
    InvalidIdentity,
    MemoryStore,
    Message,
    NoConversation,
    SessionKey,
    Settings,
    SQLiteStore,
    StoreUnavailable,
    ToolCall,
    current_conversation,
    open_conversation,
)
from convmem.messages import decode_messages
from convmem_llamaindex import (
    ConversationChatStore,
    ConversationSyncChatStore,
    NewConversationWarning,
    _queue,
    memory_for,
    stream_answer,
    sync_conversation,
    to_llamaindex,
)
from convmem_llamaindex._portal import portal
from tests.asgi_client import world as world  # noqa: PLC0414 - a fixture

KEY = SessionKey.for_user("42")
ROOT = Path(__file__).resolve().parents[2]
SECRET = secrets.token_urlsafe(48)
USER, ASSISTANT, SYSTEM = MessageRole.USER, MessageRole.ASSISTANT, MessageRole.SYSTEM
CALL = ToolCallBlock(tool_call_id="c1", tool_name="weather", tool_kwargs={"city": "Oslo"})

# the workflows below LlamaIndex's agents look at every attribute of an agent, deprecated ones of pydantic too
pytestmark = pytest.mark.filterwarnings("ignore::pydantic.PydanticDeprecatedSince20", "ignore::pydantic.PydanticDeprecatedSince211")


class CountingStore(MemoryStore):
    """A store that counts its trips, and can be down."""

    def __init__(self) -> None:
        super().__init__()
        self.trips: Counter[str] = Counter()
        self.loops: set[int] = set()
        self.written = 0
        self.down = False

    async def load(self, key, **options):
        self.trips["load"] += 1
        self.loops.add(id(asyncio.get_running_loop()))
        return await super().load(key, **options)

    async def append(self, key, after, entry, **options):
        if self.down:
            raise StoreUnavailable("memory", "append")
        self.trips["append"] += 1
        self.written += len(entry.body)
        self.loops.add(id(asyncio.get_running_loop()))
        return await super().append(key, after, entry, **options)

    async def list(self, owner, **options):
        self.loops.add(id(asyncio.get_running_loop()))
        return await super().list(owner, **options)


@pytest.fixture
def store() -> CountingStore:
    return CountingStore()


@pytest_asyncio.fixture(params=["memory", "sqlite"])
async def any_store(request, tmp_path):
    async with MemoryStore() if request.param == "memory" else SQLiteStore(tmp_path / "log.db") as opened:
        yield opened


def words(text: str) -> list[str]:
    return text.split()


def said(messages) -> list[str]:
    return [message.content or "" for message in messages]


def user(text: str) -> ChatMessage:
    return ChatMessage(text, role=USER)


def assistant(text: str) -> ChatMessage:
    return ChatMessage(text, role=ASSISTANT)


class Model(MockFunctionCallingLLM):
    """A model that answers with the number of messages it saw; asked about the weather, it calls a tool first."""

    def __init__(self, seen: list[list[ChatMessage]]) -> None:
        def answer(messages, **kwargs):
            seen.append([message.model_copy(deep=True) for message in messages])
            last = messages[-1]
            if last.content == "fail":
                raise RuntimeError("the model is down")
            if kwargs.get("tools") and last.role is USER and "weather" in (last.content or ""):
                return ChatMessage(
                    role=ASSISTANT, blocks=[ToolCallBlock(tool_call_id="c1", tool_name="weather", tool_kwargs={"city": "Oslo"})]
                )
            return ChatMessage(role=ASSISTANT, content=f"answer to {last.content}")

        super().__init__(response_generator=answer, is_chat_model=True)


class Slow(MockLLM):
    """A model that takes its time between words, and may break off after the first."""

    breaks: bool = False

    def __init__(self, *, breaks: bool = False) -> None:
        super().__init__(is_chat_model=True)
        self.breaks = breaks

    async def astream_chat(self, messages, **kwargs):
        async def words():
            for word in ("one ", "two ", "three"):
                yield ChatResponse(message=ChatMessage(role=ASSISTANT, content=""), delta=word)
                await asyncio.sleep(0.3)  # in which a client hears the word, and leaves
                if self.breaks:
                    raise ConnectionError("the model is down")

        return words()


def weather(city: str) -> str:
    """Say what the weather is like."""
    return f"rain in {city}"


class Notes(BaseRetriever):
    def _retrieve(self, query_bundle):
        return [NodeWithScore(node=TextNode(text="a note"), score=1.0)]


@pytest.fixture
def seen() -> list[list[ChatMessage]]:
    return []


@pytest.fixture
def model(seen) -> Model:
    return Model(seen)


async def visible(store) -> list[str]:
    async with open_conversation(KEY, store=store) as conversation:
        return [message.text for message in conversation.messages]


@pytest.mark.asyncio
class TestMemory:
    """`Memory` over `ConversationChatStore`, as LlamaIndex's chat store contract has it."""

    async def test_the_next_request_remembers(self, any_store):
        """The whole point: a memory made anew for each request finds what the one before was told."""
        for text in ("one", "two"):
            async with open_conversation(KEY, store=any_store):
                memory = memory_for()
                await memory.aput(user(text))
                await memory.aput_messages([assistant(f"answer to {text}")])
        async with open_conversation(KEY, store=any_store):
            assert said(await memory_for().aget()) == ["one", "answer to one", "two", "answer to two"]

    async def test_every_method_of_the_store(self, any_store):
        """One by one, in one turn and seen from the next."""
        async with open_conversation(KEY, store=any_store) as conversation:
            chat, key = ConversationChatStore(), conversation.session_id
            await chat.add_message(key, user("a"))
            await chat.add_messages(key, [assistant("b"), user("c"), assistant("d")])
            assert said(await chat.get_messages(key)) == list("abcd")
            assert said(await chat.get_messages(key, limit=2, offset=1)) == list("bc")
            assert await chat.count_messages(key) == 4
            assert said(await chat.archive_oldest_messages(key, 2)) == list("ab")
            assert said(await chat.get_messages(key)) == list("cd")
            assert said(await chat.get_messages(key, status=MessageStatus.ARCHIVED)) == list("ab")
            assert said(await chat.get_messages(key, status=None)) == list("abcd")
        async with open_conversation(KEY, store=any_store):
            assert (await chat.count_messages(key), await chat.count_messages(key, None)) == (2, 4)
            assert said(await chat.get_messages(key, status=MessageStatus.ARCHIVED)) == list("ab")
            await chat.add_message(key, user("e"), MessageStatus.ARCHIVED)
            assert said(await chat.delete_oldest_messages(key, 1)) == ["c"]
            deleted = await chat.delete_message(key, 0)
            assert deleted is not None
            assert deleted.content == "d"
            assert await chat.delete_message(key, 0) is None
            assert said(await chat.get_messages(key, status=None)) == list("abe")
            await chat.set_messages(key, [user("x")], MessageStatus.ARCHIVED)
            await chat.set_messages(key, [user("y"), assistant("z")])
        async with open_conversation(KEY, store=any_store):
            assert said(await chat.get_messages(key)) == list("yz")
            assert said(await chat.get_messages(key, status=None)) == list("xyz")
            await chat.delete_messages(key, MessageStatus.ARCHIVED)
            assert said(await chat.get_messages(key, status=None)) == list("yz")
            await chat.delete_messages(key)
            assert await chat.get_messages(key, status=None) == []
        assert await visible(any_store) == []

    async def test_archived_is_not_deleted(self, any_store):
        """What no longer fits into the model's tokens is still what the page shows."""
        for i in range(6):
            async with open_conversation(KEY, store=any_store):
                memory = memory_for(token_limit=10, tokenizer_fn=words)
                await memory.aput_messages([user(f"question {i} ?"), assistant(f"answer {i} .")])
        async with open_conversation(KEY, store=any_store) as conversation:
            memory = memory_for(token_limit=10, tokenizer_fn=words)
            assert said(await memory.aget()) == ["question 5 ?", "answer 5 ."]
            assert len(await memory.aget_all()) == 12
            assert len(await memory.aget_all(status=MessageStatus.ARCHIVED)) == 10
            assert len(conversation.messages) == 12

    async def test_memory_blocks_are_given_each_message_once(self, any_store):
        """What was archived by one request is not archived again by the next."""
        given: list[str] = []

        class Block(BaseMemoryBlock[str]):
            async def _aget(self, messages=None, **block_kwargs):
                return ""

            async def _aput(self, messages):
                given.extend(said(messages))

        for i in range(6):
            async with open_conversation(KEY, store=any_store):
                memory = memory_for(token_limit=10, tokenizer_fn=words, memory_blocks=[Block(name="block")])
                await memory.aput_messages([user(f"question {i} ?"), assistant(f"answer {i} .")])
        assert given == [text for i in range(5) for text in (f"question {i} ?", f"answer {i} .")]

    async def test_the_system_message_is_never_evicted(self, any_store):
        """Theirs archives it with the rest: the agent forgets who it is."""
        async with open_conversation(KEY, store=any_store):
            await memory_for().aput(ChatMessage("be brief", role=SYSTEM))
        for i in range(6):
            async with open_conversation(KEY, store=any_store):
                memory = memory_for(token_limit=10, tokenizer_fn=words)
                await memory.aput_messages([user(f"question {i} ?"), assistant(f"answer {i} .")])
                queue = await memory.aget()
                assert queue[0].role is SYSTEM
                assert len(queue) == 3
        async with open_conversation(KEY, store=any_store) as conversation:
            chat = ConversationChatStore()
            assert said(await chat.delete_oldest_messages(conversation.session_id, 2)) == ["question 5 ?"]
            assert said(await chat.get_messages(conversation.session_id)) == ["be brief", "answer 5 ."]

    async def test_two_puts_at_once_over_the_limit_lose_nothing(self, any_store):
        """Theirs archives by position alone, and ends with an empty queue."""
        async with open_conversation(KEY, store=any_store) as conversation:
            memory = memory_for(token_limit=10, tokenizer_fn=words)
            await memory.aput_messages([user("an old question of six words"), assistant("x")])
            await asyncio.gather(*(memory.aput(user(f"new {name} {name}")) for name in "ab"))
            assert sorted(said(await memory.aget())) == ["new a a", "new b b"]
            assert len(conversation.new_messages) == 4

    @pytest.mark.parametrize("guarded", [True, False])
    async def test_a_message_put_between_a_reading_and_its_archiving_stays(self, guarded, any_store, monkeypatch):
        """Positions count in the list they were counted in. The twin counts in the list as it is: it takes a message too many."""
        if not guarded:
            monkeypatch.setattr(_queue, "read", _queue.active)
        async with open_conversation(KEY, store=any_store) as conversation:
            chat, key = ConversationChatStore(), conversation.session_id
            both = asyncio.Barrier(2)

            async def put(text: str) -> list[str]:
                await chat.add_message(key, user(text))
                await both.wait()
                queue = await chat.get_messages(key)
                await both.wait()
                return said(await chat.archive_oldest_messages(key, len(queue) - 2))

            await chat.add_messages(key, [user("a"), assistant("b")])
            taken = await asyncio.gather(put("c"), put("d"))
            assert sorted(taken) == ([[], ["a", "b"]] if guarded else [["a", "b"], ["c", "d"]])
            assert said(await chat.get_messages(key)) == (["c", "d"] if guarded else [])

    async def test_set_messages_is_one_entry(self, any_store):
        """Theirs deletes first and inserts later: a failure between loses everything."""
        async with open_conversation(KEY, store=any_store):
            await memory_for().aput_messages([user("a"), assistant("b")])
        before = (await any_store.load(KEY)).head.n
        async with open_conversation(KEY, store=any_store):
            await memory_for().aset([user("x"), assistant("y")])
        after = await any_store.load(KEY)
        assert after.head.n == before + 1
        assert await visible(any_store) == ["x", "y"]

    async def test_set_messages_that_fails_changes_nothing(self, store):
        """All or nothing, here as everywhere."""
        async with open_conversation(KEY, store=store):
            await memory_for().aput_messages([user("a"), assistant("b")])
        store.down = True
        with pytest.raises(StoreUnavailable):
            async with open_conversation(KEY, store=store):
                await memory_for().aset([user("x")])
        store.down = False
        assert await visible(store) == ["a", "b"]

    async def test_a_queue_that_grew_is_not_written_again(self, store):
        """Summarising memories set the whole list after each message; bytes written are the new ones."""
        async with open_conversation(KEY, store=store):
            await memory_for().aput_messages([user("a" * 10_000), assistant("b")])
        store.written = 0
        async with open_conversation(KEY, store=store):
            memory = memory_for()
            await memory.aset([*await memory.aget(), user("c")])
        assert store.written < 1000
        assert (await visible(store))[1:] == ["b", "c"]

    async def test_the_same_text_after_a_replacement_is_no_warning(self, any_store):
        """`RepeatedTextWarning` is about a handler and an adapter that both append, not about starting over."""
        async with open_conversation(KEY, store=any_store):
            memory = memory_for()
            await memory.aput(user("hello"))
            await memory.aset([])
            await memory.aput(user("hello"))

    async def test_what_blocks_write_into_messages_stays_theirs(self, any_store):
        """Memory blocks put a session_id into the messages they are handed."""
        async with open_conversation(KEY, store=any_store):
            memory = memory_for()
            await memory.aput(user("hello"))
            (message,) = await memory.aget()
            message.additional_kwargs["session_id"] = "x"
            message.blocks.append(TextBlock(text="more"))
            assert await memory.aget() == [user("hello")]

    async def test_a_copy_of_a_memory_is_over_the_same_conversation(self, any_store):
        """Frameworks copy what they are given."""
        async with open_conversation(KEY, store=any_store):
            memory = memory_for()
            await copy.deepcopy(memory).aput(user("hello"))
            assert said(await memory.aget()) == ["hello"]

    async def test_what_does_not_fit_the_owner_is_refused(self, any_store):
        """A key is an id of the owner's, never an address of somebody else's."""
        async with open_conversation(KEY, store=any_store):
            chat = ConversationChatStore()
            for key in ("../other", "user:7", ""):
                with pytest.raises(InvalidIdentity):
                    await chat.get_messages(key)

    async def test_other_keys_are_other_conversations_of_the_owner(self, any_store):
        """Read and written under their own lease, stored when the call returns."""
        async with open_conversation(KEY, store=any_store) as conversation:
            chat = ConversationChatStore()
            with pytest.warns(NewConversationWarning, match="'work'.*'default'"):
                await chat.add_message("work", user("a"))
            await chat.add_messages("work", [assistant("b")])
            assert said(await chat.get_messages("work")) == ["a", "b"]
            assert await chat.count_messages("work") == 2
            assert conversation.messages == []
            assert await chat.get_keys() == ["work"]
            await chat.add_message(conversation.session_id, user("here"))
            assert set(await chat.get_keys()) == {"default", "work"}
            assert said(await chat.archive_oldest_messages("work", 1)) == ["a"]
            assert said(await chat.get_messages("work")) == ["b"]
        async with open_conversation(SessionKey.for_user("7"), store=any_store):
            assert await chat.get_keys() == []
            assert await chat.get_messages("work") == []

    async def test_a_memory_without_a_session_id_says_that_it_will_forget(self, any_store):
        """The classic: it makes an id up each time."""
        async with open_conversation(KEY, store=any_store):
            with pytest.warns(NewConversationWarning, match=r"memory_for\(\)"):
                await Memory.from_defaults(chat_store=ConversationChatStore()).aput(user("hello"))

    async def test_without_a_conversation_the_error_says_what_to_do(self):
        """Nothing is kept somewhere it will not be found."""
        for call in (memory_for, lambda: ConversationSyncChatStore().get_messages("default")):
            with pytest.raises(NoConversation, match="open_conversation"):
                call()
        with pytest.raises(NoConversation):
            await ConversationChatStore().get_messages("default")

    async def test_errors_surface(self, store):
        """A store that is down is an error and not an empty history."""
        async with open_conversation(KEY, store=store):
            memory = memory_for()
            store.down = True
            with pytest.raises(StoreUnavailable):
                await memory.aput(user("hello"))
            store.down = False


@pytest.mark.asyncio
class TestSyncStore:
    """`ChatMemoryBuffer` over `ConversationSyncChatStore`."""

    async def test_every_method_of_the_store(self, any_store):
        """As `SimpleChatStore` answers, but for what it forgets."""
        async with open_conversation(KEY, store=any_store) as conversation:
            chat, key = ConversationSyncChatStore(), conversation.session_id
            assert chat.get_messages(key) == []
            assert chat.delete_messages(key) is None
            assert chat.delete_last_message(key) is None
            chat.set_messages(key, [user("a"), assistant("b")])
            chat.add_message(key, user("c"))
            assert said(chat.get_messages(key)) == list("abc")
            last = chat.delete_last_message(key)
            assert last == user("c")
            assert chat.delete_message(key, 5) is None
            assert chat.delete_message(key, 0) == user("a")
            assert said(await chat.aget_messages(key)) == ["b"]
            await chat.async_add_message(key, user("d"))
            assert await chat.adelete_last_message(key) == user("d")
            assert chat.delete_messages(key) == [assistant("b")]
            await chat.aset_messages(key, [user("e")])
            assert await chat.adelete_messages(key) == [user("e")]
            assert await chat.adelete_messages(key) is None
            await chat.aset_messages(key, [user("f")])
        assert await visible(any_store) == ["f"]

    async def test_a_buffer_remembers_without_a_key(self, any_store):
        """Its default key is the conversation at hand."""
        for text in ("one", "two"):
            async with open_conversation(KEY, store=any_store):
                buffer = ChatMemoryBuffer.from_defaults(chat_store=ConversationSyncChatStore(), token_limit=1000, tokenizer_fn=words)
                await buffer.aput(user(text))
        async with open_conversation(KEY, store=any_store):
            buffer = ChatMemoryBuffer.from_defaults(chat_store=ConversationSyncChatStore(), token_limit=1000, tokenizer_fn=words)
            assert said(await buffer.aget()) == ["one", "two"]
            assert said(buffer.get()) == ["one", "two"]

    async def test_a_token_limit_hides_older_turns_and_a_larger_one_brings_them_back(self, any_store):
        """The window is not the history."""
        async with open_conversation(KEY, store=any_store):
            for text in ("one", "two", "three"):
                ConversationSyncChatStore().add_message("chat_history", user(text))
            small = ChatMemoryBuffer.from_defaults(chat_store=ConversationSyncChatStore(), token_limit=1, tokenizer_fn=words)
            assert said(small.get()) == ["three"]
        async with open_conversation(KEY, store=any_store):
            large = ChatMemoryBuffer.from_defaults(chat_store=ConversationSyncChatStore(), token_limit=100, tokenizer_fn=words)
            assert said(large.get()) == ["one", "two", "three"]

    async def test_a_summary_buffer_works_over_it(self, any_store, model):
        """It sets the summarised list after each reading; what it replaces stays in the log."""
        async with open_conversation(KEY, store=any_store):
            buffer = ChatSummaryMemoryBuffer.from_defaults(
                chat_store=ConversationSyncChatStore(), chat_store_key="default", llm=model, token_limit=8, tokenizer_fn=words
            )
            for i in range(4):
                buffer.put(user(f"question number {i} ?"))
                buffer.put(assistant(f"answer number {i} ."))
            summarised = buffer.get()
        async with open_conversation(KEY, store=any_store):
            assert ConversationSyncChatStore().get_messages("default")[-1] == summarised[-1]

    async def test_other_conversations_from_a_blocked_loop(self, store):
        """One connection for all such calls, not one a call: they meet in one event loop."""
        async with open_conversation(KEY, store=store):
            chat = ConversationSyncChatStore()
            with pytest.warns(NewConversationWarning):
                chat.add_message("work", user("a"))
            store.loops.clear()
            for _ in range(3):
                assert said(chat.get_messages("work")) == ["a"]
            assert chat.get_keys() == ["work"]
            assert store.loops == {id(portal.loop)}


@pytest.mark.asyncio
class TestCallsWithoutALoop:
    """Synchronous calls, inside a running loop and outside of one."""

    async def test_inside_a_running_loop_no_call_reaches_the_store_from_a_loop_of_its_own(self, store):
        """LlamaIndex makes an event loop for each of these calls; a connection for each would follow."""
        async with open_conversation(KEY, store=store):
            memory = memory_for(token_limit=10, tokenizer_fn=words)
            for i in range(5):
                memory.put(user(f"question {i} ?"))
                memory.put(assistant(f"answer {i} ."))
                memory.get()
            assert len(memory.get_all()) == 10
        assert store.loops <= {id(asyncio.get_running_loop()), id(portal.loop)}
        assert len(await visible(store)) == 10

    async def test_in_a_thread_the_question_is_stored_before_the_model_runs(self, store):
        """A handler that is a plain function runs in a thread, and its model may fail."""
        async with open_conversation(KEY, store=store):
            memory = memory_for()
            await asyncio.to_thread(memory.put, user("question"))
            assert store.trips["append"] == 1
            buffer = ConversationSyncChatStore()
            await asyncio.to_thread(buffer.add_message, "chat_history", user("another"))
            assert store.trips["append"] == 2
        assert store.loops == {id(asyncio.get_running_loop())}

    async def test_many_threads_at_once(self, any_store):
        """No message is lost or doubled between staging and saving."""
        async with open_conversation(KEY, store=any_store) as conversation:
            chat = ConversationSyncChatStore(conversation)

            def put(i: int) -> None:
                for j in range(10):
                    chat.add_message("chat_history", user(f"{i} {j}"))

            await asyncio.gather(*(asyncio.to_thread(put, i) for i in range(8)))
        async with open_conversation(KEY, store=any_store) as conversation:
            texts = [message.text for message in conversation.messages]
        assert sorted(texts) == sorted(f"{i} {j}" for i in range(8) for j in range(10))


@pytest.mark.asyncio
class TestStreams:
    """A streamed answer, as far as it came."""

    @pytest.mark.parametrize("whole", [True, False])
    async def test_what_arrived_is_kept_when_the_client_leaves(self, whole, any_store):
        """P12: the reader saw it, so it is there when the page is loaded again."""
        async with open_conversation(KEY, store=any_store) as conversation:
            answer = await SimpleChatEngine.from_defaults(llm=Slow(), memory=memory_for()).astream_chat("question")
            async with aclosing(stream_answer(answer)) as pieces:
                async for piece in pieces:
                    if not whole:
                        assert piece == "one "
                        break
            said_here = [message.text for message in conversation.new_messages]
            assert said_here == (["question", "one two three"] if whole else ["question", "one "])
        assert await visible(any_store) == said_here

    @pytest.mark.parametrize("kept", [True, False])
    async def test_a_client_that_leaves_a_stream_leaves_what_it_saw(self, kept, world):
        """Through the middleware. The twin is the engine's own generator: what was seen is gone."""
        leave = asyncio.Event()

        async def chat(scope, receive, send):
            answer = await SimpleChatEngine.from_defaults(llm=Slow(), memory=memory_for()).astream_chat("question")

            async def pieces():
                async with aclosing(stream_answer(answer) if kept else answer.async_response_gen()) as stream:
                    async for piece in stream:
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

    @pytest.mark.parametrize("way", ["cancelled", "broken"])
    async def test_what_arrived_is_kept_when_the_stream_is_cut(self, way, any_store):
        """A server that shuts down cancels; a model that is down raises."""
        async with open_conversation(KEY, store=any_store) as conversation:
            answer = await SimpleChatEngine.from_defaults(llm=Slow(breaks=way == "broken"), memory=memory_for()).astream_chat("question")
            arrived = asyncio.Event()

            async def read() -> None:
                async for _ in stream_answer(answer):
                    arrived.set()

            reading = asyncio.create_task(read())
            await arrived.wait()
            if way == "cancelled":
                reading.cancel()
                answer.awrite_response_to_history_task.cancel()
            with pytest.raises((asyncio.CancelledError, ConnectionError)):
                await reading
            assert [message.text for message in conversation.new_messages] == ["question", "one "]


class TestWithoutALoop:
    """Scripts and frameworks that have no event loop at all."""

    def test_a_script(self, tmp_path, model):
        """`sync_conversation` opens the turn; the engine's synchronous calls join it."""
        store = SQLiteStore(tmp_path / "log.db")
        for text in ("one", "two"):
            with sync_conversation(KEY, store=store) as conversation:
                engine = SimpleChatEngine.from_defaults(llm=model, memory=memory_for(conversation))
                answer = engine.chat(text)
                assert str(answer) == f"answer to {text}"
        with sync_conversation(KEY, store=store) as conversation:
            assert [message.text for message in conversation.messages] == ["one", "answer to one", "two", "answer to two"]
        portal.submit(store.aclose()).result()

    def test_an_error_in_the_block_keeps_the_question(self, model):
        """As with `open_conversation`: what was saved stays, as interrupted."""
        store = MemoryStore()
        with pytest.raises(RuntimeError, match="the model is down"), sync_conversation(KEY, store=store) as conversation:
            SimpleChatEngine.from_defaults(llm=model, memory=memory_for(conversation)).chat("fail")
        with sync_conversation(KEY, store=store) as conversation:
            assert conversation.interrupted
            assert [message.text for message in conversation.messages] == ["fail"]

    def test_an_error_on_opening_surfaces(self):
        """In a script too."""
        with pytest.raises(StoreUnavailable), sync_conversation(KEY, store=Unreachable()):
            pytest.fail("there is no conversation")


class Unreachable(MemoryStore):
    async def load(self, key, **options):
        raise StoreUnavailable("memory", "load")


def app_of(store, handler: Callable) -> TestClient:
    app = FastAPI()
    app.post("/chat", response_model=None)(handler)
    app.add_middleware(ConversationMiddleware, store=store, settings=Settings(secret_key=SECRET))
    return TestClient(app, base_url="https://testserver")


def log_of(store: MemoryStore) -> list[str]:
    """Return the text of everything in the log of the one conversation there is."""
    (row,) = store._conversations.values()
    return [message.text for stored in row.log for message in decode_messages(stored.entry.body)]


def simple(model: Model):
    return SimpleChatEngine.from_defaults(llm=model, memory=memory_for())


def context(model: Model):
    return ContextChatEngine.from_defaults(retriever=Notes(), llm=model, memory=memory_for())


def condense(model: Model):
    return CondensePlusContextChatEngine.from_defaults(retriever=Notes(), llm=model, memory=memory_for(), skip_condense=True)


ENGINES = [simple, context, condense]


class TestRequests:
    """Agents and engines inside requests of a real app."""

    @pytest.mark.parametrize("engine", ENGINES)
    @pytest.mark.parametrize("way", ["achat", "chat in a thread", "chat on the loop", "astream_chat", "stream_chat"])
    def test_an_engine_made_for_each_request_remembers(self, engine, way, model, seen, store):
        """Rows 1 and 7 of the causes: the engine is new, the conversation is not."""

        async def asynchronous(text: str):
            return str(await engine(model).achat(text))

        def in_thread(text: str):
            return str(engine(model).chat(text))

        async def on_loop(text: str):
            return str(engine(model).chat(text))

        async def astream(text: str):
            answer = await engine(model).astream_chat(text)
            return StreamingResponse(answer.async_response_gen())

        def stream(text: str):
            return StreamingResponse(engine(model).stream_chat(text).response_gen)

        handlers = {"achat": asynchronous, "chat in a thread": in_thread, "chat on the loop": on_loop}
        handlers |= {"astream_chat": astream, "stream_chat": stream}
        with app_of(store, handlers[way]) as client:
            for text in ("one", "two", "three"):
                assert f"answer to {text}" in client.post("/chat", params={"text": text}).text
        assert [text for text in said(seen[-1]) if "note" not in text] == ["one", "answer to one", "two", "answer to two", "three"]
        assert store.trips["load"] == (3 if "stream" in way else 2)  # a new visitor has nothing to load; a stream needs its lease
        a_turn = {"achat": 2, "chat in a thread": 2, "chat on the loop": 1}.get(way, 3)  # a stream begins only after a save
        assert store.trips["append"] <= 3 * a_turn

    @pytest.mark.parametrize("agent_of", ["FunctionAgent", "AgentWorkflow"])
    @pytest.mark.parametrize("memory_of", ["Memory", "ChatMemoryBuffer"])
    def test_an_agent_with_a_tool_remembers_its_calls(self, agent_of, memory_of, model, seen, store):
        """The call and its result come back as one; reads and writes do not grow."""

        async def chat(text: str) -> str:
            agent = FunctionAgent(tools=[weather], llm=model, streaming=False)
            memory = memory_for() if memory_of == "Memory" else ChatMemoryBuffer.from_defaults(chat_store=ConversationSyncChatStore())
            runner = agent if agent_of == "FunctionAgent" else AgentWorkflow(agents=[agent])
            return str(await runner.run(user_msg=text, memory=memory))

        costs = []
        with app_of(store, chat) as client:
            for text in ("the weather?", "why?", *(f"the weather {i}?" for i in range(20))):
                store.trips.clear()
                response = client.post("/chat", params={"text": text})
                assert response.status_code == 200, response.text
                costs.append(dict(store.trips))
        assert costs == [{"append": 2}, *[{"load": 1, "append": 2}] * 21]  # a new visitor has nothing to load
        roles = [message.role.value for message in seen[2]]
        assert roles == ["user", "assistant", "tool", "assistant", "user"]
        assert seen[2][1].blocks[-1] == CALL
        assert "rain in Oslo" in (seen[2][2].content or "")

    @pytest.mark.parametrize("agent", [True, False])
    def test_the_question_survives_a_model_that_fails(self, agent, model, seen, store):
        """Stored before the model runs; it reads as interrupted, and the conversation goes on."""

        async def chat(text: str) -> str:
            if agent:
                return str(await FunctionAgent(tools=[weather], llm=model, streaming=False).run(user_msg=text, memory=memory_for()))
            return str(await simple(model).achat(text))

        with app_of(store, chat) as client:
            client.post("/chat", params={"text": "hi"})
            with pytest.raises(Exception, match="the model is down"):
                client.post("/chat", params={"text": "fail"})
            assert client.post("/chat", params={"text": "hello"}).status_code == 200
        assert log_of(store) == ["hi", "answer to hi", "fail", "hello", "answer to hello"]
        assert said(seen[-1]) == ["hi", "answer to hi", "fail", "hello"]

    def test_two_visitors_share_nothing(self, model, store):
        """Row 14: one engine for all mixes its users."""

        async def chat(text: str) -> str:
            return " | ".join(said(await memory_for().aget())) + str(await simple(model).achat(text))

        with app_of(store, chat) as one, TestClient(one.app, base_url="https://testserver") as other:
            one.post("/chat", params={"text": "my secret"})
            assert "secret" not in other.post("/chat", params={"text": "hello"}).text
            assert "secret" in one.post("/chat", params={"text": "hello"}).text

    def test_their_usual_code_forgets(self, model, seen):
        """The twin: the same app with a memory of LlamaIndex's own, made where everybody makes it."""

        async def chat(text: str) -> str:
            memory = Memory.from_defaults(session_id="user-42", token_limit=3000)
            answer = str(await SimpleChatEngine.from_defaults(llm=model, memory=memory).achat(text))
            await memory.sql_store._async_engine.dispose()  # which the usual code leaves out
            return answer

        app = FastAPI()
        app.post("/chat")(chat)
        with TestClient(app) as client:
            client.post("/chat", params={"text": "one"})
            client.post("/chat", params={"text": "two"})
        assert said(seen[-1]) == ["two"]

    def test_a_history_given_to_an_agent_replaces_what_was_stored_and_the_log_keeps_it(self, model, seen, store):
        """`chat_history=` sets the memory; here that hides, and deletes nothing."""

        async def chat(text: str, response: Response) -> str:
            given = [user("instead")] if text == "replace" else None
            agent = FunctionAgent(tools=[weather], llm=model, streaming=False)
            return str(await agent.run(user_msg=text, memory=memory_for(), chat_history=given))

        with app_of(store, chat) as client:
            client.post("/chat", params={"text": "before"})
            client.post("/chat", params={"text": "replace"})
        assert said(seen[-1]) == ["instead", "replace"]
        assert log_of(store) == ["before", "answer to before", "instead", "replace", "answer to replace"]


@pytest.mark.asyncio
class TestAcrossFrameworks:
    """What others wrote, and what others will read."""

    async def test_a_conversation_begun_elsewhere(self, any_store):
        """With a tool call and an image, valid for a model."""
        call = ToolCall(id="1", name="look", arguments={"x": 1})
        async with open_conversation(KEY, store=any_store) as conversation:
            conversation.append(
                Message.system("be brief"),
                Message.user("what is this?"),
                Message.assistant("", tool_calls=(call,), extras={"langchain": {"id": "run-1"}}),
                Message.tool("a cat", tool_call_id="1", name="look"),
                Message.assistant("A cat."),
            )
        async with open_conversation(KEY, store=any_store):
            memory = memory_for()
            theirs = await memory.aget()
            assert [message.role.value for message in theirs] == ["system", "user", "assistant", "tool", "assistant"]
            assert theirs[2].blocks == [ToolCallBlock(tool_call_id="1", tool_name="look", tool_kwargs={"x": 1})]
            assert theirs[3].additional_kwargs == {"tool_call_id": "1", "name": "look"}
            await memory.aput(ChatMessage(role=USER, blocks=[TextBlock(text="and this?"), ImageBlock(image=b"\x89PNG\r\n\x1a\n")]))
        async with open_conversation(KEY, store=any_store) as conversation:
            assert conversation.messages[2].extras == {"langchain": {"id": "run-1"}}
            assert conversation.messages[-1].content[1] == ImagePart(data=b"\x89PNG\r\n\x1a\n", media_type="image/png")
            assert to_llamaindex(conversation.messages) == await memory_for().aget()

    async def test_a_call_without_its_result_is_not_shown_to_the_model(self, any_store):
        """P10: the worker died between the two; the model would refuse the history."""
        async with open_conversation(KEY, store=any_store):
            call = ToolCallBlock(tool_call_id="1", tool_name="f", tool_kwargs={})
            await memory_for().aput_messages([user("go"), ChatMessage(role=ASSISTANT, blocks=[call])])
        async with open_conversation(KEY, store=any_store):
            memory = memory_for()
            assert said(await memory.aget()) == ["go"]
            assert len(await memory.aget_all()) == 2


def test_what_is_missing_is_said():
    """Without the extra, the import names the line to type."""
    code = "import sys; sys.modules['llama_index'] = None; import convmem_llamaindex"
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'adapters'}"}
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, env=environment)
    assert 'ImportError: convmem_llamaindex needs: pip install "convmem[llamaindex]"' in done.stderr


def test_the_store_of_one_thread_is_not_another_s():
    """A conversation given by name works where no context goes: LlamaIndex streams into its memory from a bare thread."""

    async def main() -> list[str]:
        async with open_conversation(KEY, store=MemoryStore()) as conversation:
            memory = memory_for(conversation)
            with ThreadPoolExecutor(1) as threads:
                assert await asyncio.wrap_future(threads.submit(lambda: threading.current_thread() is not threading.main_thread()))
                thread = threading.Thread(target=memory.put, args=(user("from a thread"),))
                thread.start()
                await asyncio.to_thread(thread.join)
            assert isinstance(current_conversation(), Conversation)
            return said(await memory.aget())

    assert asyncio.run(main()) == ["from a thread"]
