"""What langchain-community, langchain-postgres and LangGraph's checkpointers keep."""

from __future__ import annotations

import uuid
from pathlib import Path

from langchain_community.chat_message_histories import RedisChatMessageHistory, SQLChatMessageHistory
from langchain_core.messages import AIMessage, HumanMessage
from langchain_postgres import PostgresChatMessageHistory
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph import START, MessagesState, StateGraph
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool
from sqlalchemy.ext.asyncio import create_async_engine

from benchmarks.workload import System, answer, question


def _said(messages=2):
    return [AIMessage(answer()) if i % 2 else HumanMessage(question()) for i in range(messages)]


class CommunityRedis(System):
    """`RedisChatMessageHistory`, one object for each session; its asynchronous methods run the synchronous client in threads."""

    async def open(self):
        self._histories = {}

    def _of(self, session):
        history = self._histories.get(session)
        if history is None:
            history = self._histories[session] = RedisChatMessageHistory(session, url=self.place)
        return history

    async def fill(self, session, messages):
        await self._of(session).aadd_messages(_said(messages))

    async def turn(self, session):
        history = self._of(session)
        loaded = len(await history.aget_messages())
        await history.aadd_messages(_said())
        return loaded


class CommunityRedisPerTurn(CommunityRedis):
    """`RedisChatMessageHistory`, made for each turn as its documentation does: each opens a connection."""

    def _of(self, session):
        return RedisChatMessageHistory(session, url=self.place)


class _CommunitySQL(System):
    async def open(self):
        self._engine = create_async_engine(self._url())
        await self._of("first").aget_messages()  # makes the table, and two at once would meet

    def _of(self, session):
        return SQLChatMessageHistory(session, connection=self._engine, async_mode=True)

    async def fill(self, session, messages):
        await self._of(session).aadd_messages(_said(messages))

    async def turn(self, session):
        history = self._of(session)
        loaded = len(await history.aget_messages())
        await history.aadd_messages(_said())
        return loaded

    async def aclose(self):
        await self._engine.dispose()


class CommunityPostgres(_CommunitySQL):
    """`SQLChatMessageHistory` on one engine, PostgreSQL by asyncpg; its table has no index on the session."""

    def _url(self):
        return self.place.replace("postgresql://", "postgresql+asyncpg://")


class CommunitySQLite(_CommunitySQL):
    """`SQLChatMessageHistory` on one engine, SQLite by aiosqlite."""

    def _url(self):
        return f"sqlite+aiosqlite:///{self.place}/community.db"


class Postgres(System):
    """`PostgresChatMessageHistory` on connections of a pool."""

    async def open(self):
        self._pool = AsyncConnectionPool(self.place, min_size=10, max_size=10, open=False, kwargs={"autocommit": True})
        await self._pool.open()
        async with self._pool.connection() as link:
            await PostgresChatMessageHistory.acreate_tables(link, "history")

    def _of(self, session, link):
        return PostgresChatMessageHistory("history", str(uuid.uuid5(uuid.NAMESPACE_URL, session)), async_connection=link)

    async def fill(self, session, messages):
        async with self._pool.connection() as link:
            await self._of(session, link).aadd_messages(_said(messages))

    async def turn(self, session):
        async with self._pool.connection() as link:
            loaded = len(await self._of(session, link).aget_messages())
        async with self._pool.connection() as link:
            await self._of(session, link).aadd_messages(_said())
        return loaded

    async def aclose(self):
        await self._pool.close()


class _Graph(System):
    """A graph of one node that answers, its state kept by a checkpointer: what `create_agent` does with a checkpointer."""

    durability = None

    def _compile(self, saver):
        self._loaded = {}

        def model(state, config):
            self._loaded[config["configurable"]["thread_id"]] = len(state["messages"]) - 1
            return {"messages": [AIMessage(answer())]}

        graph = StateGraph(MessagesState)
        graph.add_node("model", model)
        graph.add_edge(START, "model")
        self._graph = graph.compile(checkpointer=saver)

    async def fill(self, session, messages):
        await self._graph.aupdate_state({"configurable": {"thread_id": session}}, {"messages": _said(messages)}, as_node="model")

    async def turn(self, session):
        said = {"messages": [HumanMessage(question())]}
        await self._graph.ainvoke(said, {"configurable": {"thread_id": session}}, durability=self.durability)
        return self._loaded.pop(session)


class GraphPostgres(_Graph):
    """`AsyncPostgresSaver` on a pool."""

    async def open(self):
        keywords = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}
        self._pool = AsyncConnectionPool(self.place, min_size=10, max_size=10, open=False, kwargs=keywords)
        await self._pool.open()
        saver = AsyncPostgresSaver(self._pool)
        await saver.setup()
        self._compile(saver)

    async def aclose(self):
        await self._pool.close()


class GraphPostgresAtTheEnd(GraphPostgres):
    """`AsyncPostgresSaver`, told to write once when the graph has ended: what was said is lost with a crash before."""

    durability = "exit"


class GraphSQLite(_Graph):
    """`AsyncSqliteSaver`."""

    async def open(self):
        self._opened = AsyncSqliteSaver.from_conn_string(str(Path(self.place) / "langgraph.db"))
        self._compile(await self._opened.__aenter__())

    async def aclose(self):
        await self._opened.__aexit__(None, None, None)
