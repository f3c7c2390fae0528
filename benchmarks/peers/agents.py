"""The sessions of the OpenAI Agents SDK, with a limit, so that they load a window; starsessions and Litestar, which keep no log at all."""

from __future__ import annotations

from pathlib import Path

from agents import SQLiteSession
from agents.extensions.memory import RedisSession, SQLAlchemySession
from litestar.middleware.session.server_side import ServerSideSessionBackend, ServerSideSessionConfig
from litestar.stores.redis import RedisStore as LitestarStore
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import create_async_engine
from starsessions.serializers import JsonSerializer
from starsessions.stores.redis import RedisStore

from benchmarks.served import Served
from benchmarks.workload import WINDOW, System, answer, question


def _said(messages=2):
    return [{"role": "assistant" if i % 2 else "user", "content": answer() if i % 2 else question()} for i in range(messages)]


class _Session(System):
    limit = WINDOW

    async def fill(self, session, messages):
        await self._of(session).add_items(_said(messages))

    async def turn(self, session):
        history = self._of(session)
        loaded = len(await history.get_items(self.limit))
        await history.add_items(_said())
        return loaded


class RedisSessions(_Session):
    """`RedisSession` on one client."""

    async def open(self):
        self._redis = Redis.from_url(self.place)

    def _of(self, session):
        return RedisSession(session, redis_client=self._redis)

    async def aclose(self):
        await self._redis.aclose()


class _SQLAlchemy(_Session):
    async def open(self):
        self._engine = create_async_engine(self._url())
        await SQLAlchemySession("first", engine=self._engine, create_tables=True).get_items(1)

    def _of(self, session):
        return SQLAlchemySession(session, engine=self._engine)

    async def aclose(self):
        await self._engine.dispose()


class SQLAlchemyPostgres(_SQLAlchemy):
    """`SQLAlchemySession` on one engine, PostgreSQL by asyncpg."""

    def _url(self):
        return self.place.replace("postgresql://", "postgresql+asyncpg://")


class SQLAlchemySQLite(_SQLAlchemy):
    """`SQLAlchemySession` on one engine, SQLite by aiosqlite."""

    def _url(self):
        return f"sqlite+aiosqlite:///{self.place}/agents.db"


class SQLiteSessions(_Session):
    """`SQLiteSession`, one object for each session: each opens connections of its own."""

    async def open(self):
        self._sessions = {}

    def _of(self, session):
        history = self._sessions.get(session)
        if history is None:
            history = self._sessions[session] = SQLiteSession(session, Path(self.place) / "sessions.db")
        return history

    async def aclose(self):
        for history in self._sessions.values():
            history.close()


class RedisWhole(RedisSessions):
    """`RedisSession` without a limit: what it does unless it is told otherwise."""

    limit = None


class SQLAlchemyWhole(SQLAlchemyPostgres):
    """`SQLAlchemySession` without a limit."""

    limit = None


class SQLitePerTurn(SQLiteSessions):
    """`SQLiteSession`, an object for each turn, as an example has it that makes one for each request."""

    async def turn(self, session):
        history = SQLiteSession(session, Path(self.place) / "sessions.db")
        loaded = len(await history.get_items(WINDOW))
        await history.add_items(_said())
        history.close()
        return loaded


class Starsessions(System):
    """A list of messages in the session of a request, loaded and written back as a whole."""

    async def open(self):
        self._redis = Redis.from_url(self.place)
        self._store = RedisStore(connection=self._redis)
        self._serializer = JsonSerializer()

    async def fill(self, session, messages):
        await self._store.write(session, self._serializer.serialize({"messages": _said(messages)}), 0, 3600)

    async def turn(self, session):
        state = self._serializer.deserialize(await self._store.read(session, 0))
        messages = state.setdefault("messages", [])
        loaded = len(messages)
        messages += _said()
        await self._store.write(session, self._serializer.serialize(state), 0, 3600)
        return loaded

    async def aclose(self):
        await self._redis.aclose()


class Litestar(System):
    """The server-side session of Litestar, its backend alone: a list of messages, loaded and written back as a whole."""

    async def open(self):
        self._redis = Redis.from_url(self.place)
        self._store = LitestarStore(self._redis)
        self._backend = ServerSideSessionBackend(ServerSideSessionConfig())

    async def fill(self, session, messages):
        await self._backend.set(session, self._backend.serialize_data({"messages": _said(messages)}), self._store)

    async def turn(self, session):
        data = await self._backend.get(session, self._store)
        state = self._backend.deserialize_data(data) if data else {}
        messages = state.setdefault("messages", [])
        loaded = len(messages)
        messages += _said()
        await self._backend.set(session, self._backend.serialize_data(state), self._store)
        return loaded

    async def aclose(self):
        await self._redis.aclose()


class ServedStarsessions(Served):
    """The same as an app under uvicorn."""

    app = "benchmarks.peers.starsessions_app:app"

    async def open(self):
        self._kept = Starsessions(self.place)
        await self._kept.open()
        await super().open()

    async def fill(self, session, messages):
        await self._kept.fill(session, messages)
        self._cookies[session] = b"session=" + session.encode()

    async def aclose(self):
        await super().aclose()
        await self._kept.aclose()
