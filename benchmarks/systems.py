"""What is measured: one line for each system."""

from __future__ import annotations

from typing import Literal, NamedTuple

Kind = Literal["limit", "convmem", "peer"]


class System(NamedTuple):
    """A system and how it is made.

    Attributes:
        kind: The driver alone, convmem, or another history.
        store: ``redis``, ``postgresql`` or ``sqlite``.
        environment: The one it runs in.
        code: Its module and class.
        windowed: Whether it can load less than the whole history.
        shares: The system whose conversations it uses too; empty for its own.
    """

    name: str
    kind: Kind
    store: str
    environment: str
    code: str
    windowed: bool = True
    shares: str = ""


def _own(store: str) -> list[System]:
    doors = {"Store": "ThroughStore", "Conversation": "ThroughConversation", "middleware": "ThroughMiddleware"}
    first = f"convmem Store, {store}"
    return [
        System(name, "convmem", store, "own", f"benchmarks.own:{code}", shares="" if name == first else first)
        for door, code in doors.items()
        for name in [f"convmem {door}, {store}"]
    ]


SYSTEMS = [
    System("redis-py", "limit", "redis", "own", "benchmarks.raw:RedisPy"),
    System("hiredis, multiplexed", "limit", "redis", "own", "benchmarks.raw:Multiplexed"),
    System("asyncpg, held statements", "limit", "postgresql", "own", "benchmarks.raw:HeldStatements"),
    System("sqlite3, inline", "limit", "sqlite", "own", "benchmarks.raw:StdlibSQLite"),
    System("aiosqlite", "limit", "sqlite", "own", "benchmarks.raw:Aiosqlite"),
    *_own("redis"),
    *_own("postgresql"),
    *_own("sqlite"),
    System("langchain-community Redis", "peer", "redis", "langchain", "benchmarks.peers.langchain:CommunityRedis", windowed=False),
    System("LlamaIndex RedisChatStore", "peer", "redis", "llamaindex", "benchmarks.peers.llamaindex:Redis", windowed=False),
    System("openai-agents RedisSession", "peer", "redis", "agents", "benchmarks.peers.agents:RedisSessions"),
    System("starsessions", "peer", "redis", "agents", "benchmarks.peers.agents:Starsessions", windowed=False),
    System("langchain-postgres", "peer", "postgresql", "langchain", "benchmarks.peers.langchain:Postgres", windowed=False),
    System("LangGraph AsyncPostgresSaver", "peer", "postgresql", "langchain", "benchmarks.peers.langchain:GraphPostgres", windowed=False),
    System("LlamaIndex PostgresChatStore", "peer", "postgresql", "llamaindex", "benchmarks.peers.llamaindex:Postgres", windowed=False),
    System("LlamaIndex Memory", "peer", "postgresql", "llamaindex", "benchmarks.peers.llamaindex:Memories", windowed=False),
    System("openai-agents SQLAlchemySession", "peer", "postgresql", "agents", "benchmarks.peers.agents:SQLAlchemyPostgres"),
    System("LangGraph AsyncSqliteSaver", "peer", "sqlite", "langchain", "benchmarks.peers.langchain:GraphSQLite", windowed=False),
    System("openai-agents SQLAlchemySession, SQLite", "peer", "sqlite", "agents", "benchmarks.peers.agents:SQLAlchemySQLite"),
    System("openai-agents SQLiteSession", "peer", "sqlite", "agents", "benchmarks.peers.agents:SQLiteSessions"),
]
