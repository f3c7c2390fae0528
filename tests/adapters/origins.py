"""What other libraries keep, filled and read by these libraries themselves, to be imported from."""

from __future__ import annotations

import json
import sqlite3
import uuid
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar

import psycopg
import pytest
from agents import SQLiteSession
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.storage.chat_store import SimpleChatStore
from redis import Redis
from sqlalchemy import create_engine

from convmem import Message
from convmem_langchain import to_langchain
from convmem_llamaindex import to_llamaindex
from convmem_openai_agents import to_items
from tests.adapters import langchain_corpus, openai_corpus
from tests.adapters.test_llamaindex_messages import CORPUS as LLAMAINDEX

with warnings.catch_warnings():  # it says that nobody looks after it any more
    warnings.simplefilter("ignore", DeprecationWarning)
    from langchain_community.chat_message_histories import RedisChatMessageHistory, SQLChatMessageHistory
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage, message_to_dict
from langchain_postgres import PostgresChatMessageHistory
from llama_index.storage.chat_store.redis import RedisChatStore  # type: ignore[import-untyped]


class Origin:
    """One library's store.

    Attributes:
        source: What `import_conversations` calls it.
        options: What it needs beside the place.
        place: Where it is.
        corpus: Messages of all kinds, as far as it can store them.
        is_fast: Whether it stores ten thousand messages in a second or two.
    """

    source: ClassVar[str]
    options: ClassVar[dict[str, str]] = {}
    place: str
    corpus: ClassVar[Sequence[Any]]
    is_fast: ClassVar[bool] = False

    def __init__(self, request: pytest.FixtureRequest, folder: Path) -> None:
        raise NotImplementedError

    def name(self, number: int) -> str:
        """Return a session id in a form the library takes."""
        return f"session-{number}"

    async def say(self, name: str, messages: Sequence[Any]) -> None:
        """Let the library store messages."""
        raise NotImplementedError

    async def said(self, name: str) -> list[Any]:
        """Return what the library reads."""
        raise NotImplementedError

    def native(self, messages: Sequence[Message]) -> list[Any]:
        """Return messages of ours as the library's."""
        raise NotImplementedError

    def talk(self, turns: int) -> list[Any]:
        """Return messages of the library: a system message, then turns, each third one with a tool call and its result."""
        raise NotImplementedError

    async def damage(self, name: str) -> None:
        """Put something at the end of a conversation that is no message."""
        raise NotImplementedError


class _LangChain(Origin):
    def native(self, messages):
        return to_langchain(messages)

    def talk(self, turns):
        said: list[Any] = [SystemMessage("Be brief.")]
        for n in range(turns):
            said.append(HumanMessage(f"Frage {n} 🐈"))
            if n % 3 == 0:
                said.append(AIMessage("", tool_calls=[{"name": "look", "args": {"n": n}, "id": f"c{n}"}]))
                said.append(ToolMessage(f"seen {n}", tool_call_id=f"c{n}"))
            said.append(AIMessage(f"Antwort {n}"))
        return said


def _stored(messages: Sequence[Any], *unstorable: str) -> list[Any]:
    """Return those that the library can store: as JSON, without what a database refuses."""
    kept = []
    for message in messages:
        try:
            text = json.dumps(message_to_dict(message))
        except TypeError:
            continue
        if message_to_dict(message)["type"] in langchain_corpus_types and not any(part in text for part in unstorable):
            kept.append(message)
    return kept


langchain_corpus_types = {"human", "ai", "system", "tool", "function", "chat", "remove"}


class LangChainRedis(_LangChain):
    """langchain-community's ``RedisChatMessageHistory``."""

    source = "langchain-redis"
    corpus = _stored(langchain_corpus.CORPUS)

    def __init__(self, request, folder):
        self.place = f"{request.getfixturevalue('valkey_server').url}/7"
        with Redis.from_url(self.place) as redis:
            redis.flushdb()
            redis.rpush("somebody else's list", "x")
            redis.set("message_store:no list", "x")

    def _of(self, name):
        return RedisChatMessageHistory(name, url=self.place)

    async def say(self, name, messages):
        history = self._of(name)
        history.add_messages(messages)
        history.redis_client.close()

    async def said(self, name):
        history = self._of(name)
        messages = history.messages
        history.redis_client.close()
        return messages

    async def damage(self, name):
        with Redis.from_url(self.place) as redis:
            redis.lpush(f"message_store:{name}", "{")


class LangChainPostgres(_LangChain):
    """langchain-postgres' ``PostgresChatMessageHistory``."""

    source = "langchain-postgres"
    options: ClassVar = {"table": "history"}
    corpus = _stored(langchain_corpus.CORPUS, "\\u0000", "\\ud8", "Infinity")

    def __init__(self, request, folder):
        self.place = request.getfixturevalue("postgres_url")
        with psycopg.connect(self.place) as link:
            PostgresChatMessageHistory.drop_table(link, "history")
            PostgresChatMessageHistory.create_tables(link, "history")

    def name(self, number):
        return str(uuid.UUID(int=number))

    async def say(self, name, messages):
        with psycopg.connect(self.place) as link:
            PostgresChatMessageHistory("history", name, sync_connection=link).add_messages(messages)

    async def said(self, name):
        with psycopg.connect(self.place) as link:
            return PostgresChatMessageHistory("history", name, sync_connection=link).messages

    async def damage(self, name):
        with psycopg.connect(self.place) as link:
            link.execute("INSERT INTO history (session_id, message) VALUES (%s, %s)", (name, '{"type": "nobody"}'))

    def date(self, moment: datetime) -> None:
        """Let everything have been said then."""
        with psycopg.connect(self.place) as link:
            link.execute("UPDATE history SET created_at = %s", (moment,))


class _LangChainSQL(_LangChain):
    source = "langchain-sql"
    _engine_url: str

    async def _with(self, name, work: Callable[[SQLChatMessageHistory], Any]) -> Any:
        engine = create_engine(self._engine_url)
        try:
            history = SQLChatMessageHistory(name, connection=engine)
            found = work(history)
            history.session_maker.remove()
            return found
        finally:
            engine.dispose()

    async def say(self, name, messages):
        await self._with(name, lambda history: history.add_messages(messages))

    async def said(self, name):
        return await self._with(name, lambda history: history.messages)


class LangChainSQLite(_LangChainSQL):
    """langchain-community's ``SQLChatMessageHistory`` in SQLite."""

    is_fast = True
    corpus = _stored(langchain_corpus.CORPUS)

    def __init__(self, request, folder):
        self.place = str(folder / "history.db")
        self._engine_url = f"sqlite:///{self.place}"

    async def damage(self, name):
        with closing(sqlite3.connect(self.place)) as link, link:
            link.execute("INSERT INTO message_store (session_id, message) VALUES (?, ?)", (name, "null"))


class LangChainSQLPostgres(_LangChainSQL):
    """langchain-community's ``SQLChatMessageHistory`` in PostgreSQL."""

    corpus = _stored(langchain_corpus.CORPUS)

    def __init__(self, request, folder):
        url = request.getfixturevalue("postgres_url")
        with psycopg.connect(url) as link:
            link.execute("DROP TABLE IF EXISTS message_store")
        self._engine_url = self.place = url.replace("postgresql://", "postgresql+psycopg://")

    async def damage(self, name):
        with psycopg.connect(self.place.replace("+psycopg", "")) as link:
            link.execute("INSERT INTO message_store (session_id, message) VALUES (%s, %s)", (name, "["))


def _dumped(messages: Iterable[ChatMessage]) -> list[ChatMessage]:
    """Return those that the library can store and read."""
    kept = []
    for message in messages:
        try:
            ChatMessage.model_validate_json(message.model_dump_json())
        except (ValueError, TypeError):
            continue
        kept.append(message)
    return kept


class _LlamaIndex(Origin):
    corpus: ClassVar = _dumped(LLAMAINDEX.values())

    def native(self, messages):
        return to_llamaindex(messages)

    def talk(self, turns):
        from llama_index.core.base.llms.types import TextBlock, ToolCallBlock

        said = [ChatMessage("Be brief.", role="system")]
        for n in range(turns):
            said.append(ChatMessage(f"Frage {n} 🐈", role="user"))
            if n % 3 == 0:
                call = ToolCallBlock(tool_call_id=f"c{n}", tool_name="look", tool_kwargs={"n": n})
                said.append(ChatMessage(role="assistant", blocks=[TextBlock(text="I look."), call]))
                said.append(ChatMessage(f"seen {n}", role="tool", additional_kwargs={"tool_call_id": f"c{n}"}))
            said.append(ChatMessage(f"Antwort {n}", role="assistant"))
        return said


class LlamaIndexRedis(_LlamaIndex):
    """``RedisChatStore``."""

    source = "llamaindex-redis"

    def __init__(self, request, folder):
        self.place = f"{request.getfixturevalue('valkey_server').url}/8"
        with Redis.from_url(self.place) as redis:
            redis.flushdb()
            redis.set("no list", "x")

    async def say(self, name, messages):
        store = RedisChatStore(redis_url=self.place)
        for message in messages:
            store.add_message(name, message)
        store._redis_client.close()

    async def said(self, name):
        store = RedisChatStore(redis_url=self.place)
        messages = store.get_messages(name)
        store._redis_client.close()
        return messages

    async def damage(self, name):
        with Redis.from_url(self.place) as redis:
            redis.rpush(name, "[]")


class LlamaIndexFile(_LlamaIndex):
    """``SimpleChatStore``, persisted.

    With pydantic 2.14 its own ``persist`` fails, so here the file is written as it does it with 2.13. `LlamaIndexPersisted` lets the
    library write it, beside a pydantic with which it can.
    """

    source = "llamaindex-file"

    def __init__(self, request, folder):
        self._file = folder / "chat_store.json"
        self.place = str(self._file)

    async def say(self, name, messages):
        document = json.loads(self._file.read_text()) if self._file.exists() else {"store": {}, "class_name": "SimpleChatStore"}
        document["store"].setdefault(name, []).extend(message.model_dump(mode="json") for message in messages)
        self._file.write_text(json.dumps(document, ensure_ascii=False))

    async def said(self, name):
        return SimpleChatStore.from_persist_path(self.place).get_messages(name)

    async def damage(self, name):
        document = json.loads(self._file.read_text())
        document["store"][name].append({"role": "nobody"})
        self._file.write_text(json.dumps(document))


class LlamaIndexPostgres(_LlamaIndex):
    """``PostgresChatStore``, in an environment of its own."""

    source = "llamaindex-postgres"
    corpus: ClassVar = [message for message in _LlamaIndex.corpus if "\\u0000" not in message.model_dump_json()]

    def __init__(self, request, folder):
        self._filler = request.getfixturevalue("filler")
        self.place = request.getfixturevalue("postgres_server").database()

    async def say(self, name, messages):
        self._filler.say("postgres", self.place, name, messages)

    async def said(self, name):
        return self._filler.said("postgres", self.place, name)

    async def damage(self, name):
        with psycopg.connect(self.place) as link:
            link.execute("UPDATE chatstore SET value = array_append(value, '[]'::json) WHERE key = %s", (name,))


class LlamaIndexPersisted(LlamaIndexFile):
    """``SimpleChatStore``, persisted by itself in an environment of its own; it reads no file that is damaged."""

    def __init__(self, request, folder):
        super().__init__(request, folder)
        self._filler = request.getfixturevalue("filler")
        self._damaged = False

    async def say(self, name, messages):
        if self._damaged:
            await super().say(name, messages)
        else:
            self._filler.say("file", self.place, name, messages)

    async def said(self, name):
        return self._filler.said("file", self.place, name)

    async def damage(self, name):
        await super().damage(name)
        self._damaged = True


class OpenAIAgentsSQLite(Origin):
    """The SDK's ``SQLiteSession``."""

    source = "openai-agents-sqlite"
    is_fast = True
    corpus = tuple(item for items in openai_corpus.MESSAGES for item in items)

    def __init__(self, request, folder):
        self.place = str(folder / "sessions.db")

    async def say(self, name, messages):
        with closing(SQLiteSession(name, self.place)) as session:
            await session.add_items(list(messages))

    async def said(self, name):
        with closing(SQLiteSession(name, self.place)) as session:
            return await session.get_items()

    def native(self, messages):
        return to_items(messages)

    def talk(self, turns):
        said: list[Any] = [{"role": "system", "content": "Be brief."}]
        for n in range(turns):
            said.append(openai_corpus.user(f"Frage {n} 🐈"))
            if n % 3 == 0:
                said += [openai_corpus.thought(f"rs{n}"), openai_corpus.call(f"c{n}"), openai_corpus.result(f"c{n}")]
            said.append(openai_corpus.answer(openai_corpus.output_text(f"Antwort {n}")))
        return said

    async def damage(self, name):
        with closing(sqlite3.connect(self.place)) as link, link:
            link.execute("INSERT INTO agent_messages (session_id, message_data) VALUES (?, ?)", (name, "no json"))

    def date(self, moment: datetime) -> None:
        """Let everything have been said then; in the form of CURRENT_TIMESTAMP."""
        with closing(sqlite3.connect(self.place)) as link, link:
            link.execute("UPDATE agent_messages SET created_at = ?", (f"{moment:%Y-%m-%d %H:%M:%S}",))


ORIGINS = (LangChainRedis, LangChainPostgres, LangChainSQLite, LangChainSQLPostgres, LlamaIndexRedis, LlamaIndexFile, OpenAIAgentsSQLite)
IN_OWN_ENVIRONMENTS = (LlamaIndexPostgres, LlamaIndexPersisted)
