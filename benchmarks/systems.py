"""What is measured: one line for each system."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

DIRECT, SERVED = "no server, no store", "uvicorn"

Kind = Literal["limit", "usual", "convmem", "peer"]


class System(NamedTuple):
    """A system and how it is made.

    Attributes:
        kind: The driver alone at its best, or as it is mostly used; convmem; or another history.
        store: ``redis``, ``postgresql``, ``sqlite`` or ``none``.
        environment: The one it runs in.
        code: Its module and class.
        windowed: Whether it can load less than the whole history.
        shares: The system whose conversations it uses too; empty for its own.
        extra: Measured only when all peers are asked for.
        sizes: Lengths of conversations that it is measured with; empty for all.
        group: Whose table it stands in; empty for that of its store.
    """

    name: str
    kind: Kind
    store: str
    environment: str
    code: str
    windowed: bool = True
    shares: str = ""
    extra: bool = False
    sizes: Sequence[int] = ()
    group: str = ""


def _direct(name: str, kind: Kind, code: str) -> System:
    return System(name, kind, "none", "own", code, sizes=(0,), group=DIRECT)


def _served(name: str, kind: Kind, code: str, environment: str = "own", *, windowed: bool = True) -> System:
    return System(f"uvicorn, {name}", kind, "redis", environment, code, windowed=windowed, sizes=(100,), group=SERVED)


def _extra(name: str, store: str, environment: str, code: str, *, windowed: bool = False) -> System:
    return System(name, "peer", store, environment, f"benchmarks.peers.{code}", windowed=windowed, extra=True)


def _own(store: str) -> list[System]:
    doors = {
        "Store": "ThroughStore",
        "Conversation": "ThroughConversation",
        "Conversation unread before": "UnreadConversation",
        "middleware": "ThroughMiddleware",
    }
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
    System("asyncpg, pool", "usual", "postgresql", "own", "benchmarks.raw:Pool"),
    System("sqlite3, inline", "limit", "sqlite", "own", "benchmarks.raw:StdlibSQLite"),
    System("aiosqlite", "usual", "sqlite", "own", "benchmarks.raw:Aiosqlite"),
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
    _direct("bare app", "limit", "benchmarks.own:Direct"),
    _direct("convmem middleware, nothing appended", "convmem", "benchmarks.own:DirectReading"),
    _direct("convmem middleware, a commit", "convmem", "benchmarks.own:DirectAppending"),
    _served("no memory", "limit", "benchmarks.served:Without"),
    _served("redis-py by hand", "usual", "benchmarks.served:ByHand"),
    _served("convmem, the handler reads nothing", "convmem", "benchmarks.served:Silent"),
    _served("convmem, the handler reads every message", "convmem", "benchmarks.served:Reading"),
    _served("starsessions", "peer", "benchmarks.peers.agents:ServedStarsessions", "agents", windowed=False),
    System("LangGraph AsyncSqliteSaver", "peer", "sqlite", "langchain", "benchmarks.peers.langchain:GraphSQLite", windowed=False),
    System("openai-agents SQLAlchemySession, SQLite", "peer", "sqlite", "agents", "benchmarks.peers.agents:SQLAlchemySQLite"),
    System("openai-agents SQLiteSession", "peer", "sqlite", "agents", "benchmarks.peers.agents:SQLiteSessions"),
    _extra("openai-agents RedisSession, no limit", "redis", "agents", "agents:RedisWhole"),
    _extra("litestar server session", "redis", "agents", "agents:Litestar"),
    _extra("langchain-community Redis, an object a turn", "redis", "langchain", "langchain:CommunityRedisPerTurn"),
    _extra("langchain-community SQL", "postgresql", "langchain", "langchain:CommunityPostgres"),
    _extra("LangGraph AsyncPostgresSaver, at the end", "postgresql", "langchain", "langchain:GraphPostgresAtTheEnd"),
    _extra("LlamaIndex Memory, no token limit", "postgresql", "llamaindex", "llamaindex:MemoriesWhole"),
    _extra("openai-agents SQLAlchemySession, no limit", "postgresql", "agents", "agents:SQLAlchemyWhole"),
    _extra("google-adk DatabaseSessionService", "postgresql", "adk", "adk:Postgres"),
    _extra("google-adk DatabaseSessionService, 50 events", "postgresql", "adk", "adk:PostgresRecent", windowed=True),
    _extra("langchain-community SQL, SQLite", "sqlite", "langchain", "langchain:CommunitySQLite"),
    _extra("LlamaIndex Memory, SQLite", "sqlite", "llamaindex", "llamaindex:MemoriesSQLite"),
    _extra("openai-agents SQLiteSession, an object a turn", "sqlite", "agents", "agents:SQLitePerTurn", windowed=True),
    _extra("google-adk DatabaseSessionService, SQLite", "sqlite", "adk", "adk:SQLite"),
]
