"""LlamaIndex's chat stores, and its `Memory`."""

from __future__ import annotations

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.memory import Memory
from llama_index.core.storage.chat_store.sql import SQLAlchemyChatStore
from llama_index.storage.chat_store.postgres import PostgresChatStore
from llama_index.storage.chat_store.redis import RedisChatStore

from benchmarks.workload import System, answer, question


def _said(messages=2):
    return [ChatMessage(role="assistant" if i % 2 else "user", content=answer() if i % 2 else question()) for i in range(messages)]


class _ChatStore(System):
    async def fill(self, session, messages):
        await self._store.aset_messages(session, _said(messages))

    async def turn(self, session):
        loaded = len(await self._store.aget_messages(session))
        for message in _said():
            await self._store.async_add_message(session, message)
        return loaded


class Redis(_ChatStore):
    """`RedisChatStore`."""

    async def open(self):
        self._store = RedisChatStore(redis_url=self.place)


class Postgres(_ChatStore):
    """`PostgresChatStore`."""

    async def open(self):
        where = self.place.partition("://")[2]
        self._store = PostgresChatStore.from_params(
            connection_string=f"postgresql+psycopg://{where}", async_connection_string=f"postgresql+asyncpg://{where}"
        )


class Memories(System):
    """`Memory` with its messages in PostgreSQL, one object for each session, all on one store and its engine."""

    tokens = 30_000

    def _url(self):
        return self.place.replace("postgresql://", "postgresql+asyncpg://")

    async def open(self):
        self._memories = {}
        self._store = SQLAlchemyChatStore(table_name="memory", async_database_uri=self._url())
        await self._store.get_messages("none")

    def _of(self, session):
        memory = self._memories.get(session)
        if memory is None:
            memory = Memory(session_id=session, sql_store=self._store, token_limit=self.tokens)
            self._memories[session] = memory
        return memory

    async def fill(self, session, messages):
        await self._of(session).aput_messages(_said(messages))

    async def turn(self, session):
        memory = self._of(session)
        loaded = len(await memory.aget())
        await memory.aput_messages(_said())
        return loaded


class MemoriesWhole(Memories):
    """`Memory` whose limit is never reached."""

    tokens = 100_000_000


class MemoriesSQLite(Memories):
    """`Memory` with its messages in SQLite."""

    def _url(self):
        return f"sqlite+aiosqlite:///{self.place}/memory.db"
