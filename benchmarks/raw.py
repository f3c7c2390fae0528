"""The limit: the driver alone doing a checked turn under a lease, with no message typed and no error named.

Load and append are one call each, as the stores of convmem do it; a writer who is not the newest is refused.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections import deque
from pathlib import Path
from typing import Any, cast

import aiosqlite
import asyncpg
import hiredis
from redis.asyncio import Redis

from benchmarks.workload import WINDOW, System, answer, question

_LOAD = """
local v = redis.call('HGET', KEYS[1], 'v')
local held = redis.call('HGET', KEYS[1], 'l')
if held and held ~= ARGV[1] then return {v or '0', 0} end
redis.call('HSET', KEYS[1], 'l', ARGV[1])
return {v or '0', 1, redis.call('LRANGE', KEYS[2], -50, -1)}
"""
_APPEND = """
if (redis.call('HGET', KEYS[1], 'v') or '0') ~= ARGV[1] or redis.call('HGET', KEYS[1], 'l') ~= ARGV[2] then return 0 end
redis.call('RPUSH', KEYS[2], unpack(ARGV, 3))
redis.call('HSET', KEYS[1], 'v', ARGV[1] + #ARGV - 2)
redis.call('HDEL', KEYS[1], 'l')
return 1
"""


def _said(messages: int = 2) -> list[bytes]:
    return [
        json.dumps({"role": "assistant" if i % 2 else "user", "content": answer() if i % 2 else question()}).encode()
        for i in range(messages)
    ]


class _RawRedis(System):
    """A list and a hash for each conversation, a script each way."""

    _digests: tuple[bytes, bytes]

    async def open(self) -> None:
        """Load the scripts."""
        self._redis = Redis.from_url(self.place, max_connections=64)
        self._digests = tuple([(await self._redis.script_load(script)).encode() for script in (_LOAD, _APPEND)])  # type: ignore[assignment]

    async def fill(self, session: str, messages: int) -> None:
        """Push them in one command."""
        keys = self._keys(session)
        await self._redis.rpush(keys[1].decode(), *_said(messages))
        await self._redis.hset(keys[0].decode(), "v", str(messages))

    async def turn(self, session: str) -> int:
        """Load, append."""
        token, keys = b"token", self._keys(session)
        v, held, entries = await self._call(b"EVALSHA", self._digests[0], b"2", *keys, token)
        stored = await self._call(b"EVALSHA", self._digests[1], b"2", *keys, v, token, *_said())
        assert held == stored == 1
        return len(entries)

    async def _call(self, *command: bytes) -> Any:
        raise NotImplementedError

    def _keys(self, session: str) -> tuple[bytes, bytes]:
        return f"raw:{{{session}}}:m".encode(), f"raw:{{{session}}}:l".encode()

    async def aclose(self) -> None:
        """Disconnect."""
        await self._redis.aclose()


class RedisPy(_RawRedis):
    """By redis-py and its pool, as everybody does it."""

    async def _call(self, *command: bytes) -> Any:
        return await self._redis.execute_command(*command)  # type: ignore[no-untyped-call]


class Multiplexed(_RawRedis):
    """By one connection for all tasks: what waits goes out in one write, hiredis reads the replies."""

    async def open(self) -> None:
        """Connect."""
        await super().open()
        host, _, port = self.place.removeprefix("redis://").partition("/")[0].partition(":")
        loop = asyncio.get_running_loop()
        _, self._link = await loop.create_connection(_Link, host, int(port))

    async def _call(self, *command: bytes) -> Any:
        return await self._link.call(command)

    async def aclose(self) -> None:
        """Disconnect."""
        self._link.transport.close()
        await super().aclose()


class _Link(asyncio.Protocol):
    transport: asyncio.Transport

    def __init__(self) -> None:
        self._reader = hiredis.Reader()
        self._waiting: deque[asyncio.Future[Any]] = deque()
        self._out: list[bytes] = []
        self._loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass

    def call(self, command: tuple[bytes, ...]) -> asyncio.Future[Any]:
        if not self._out:
            self._loop.call_soon(self._write)
        self._out.append(hiredis.pack_command(command))  # type: ignore[arg-type]  # its stub knows tuples of one part only
        future = self._loop.create_future()
        self._waiting.append(future)
        return future

    def _write(self) -> None:
        out, self._out = self._out, []
        self.transport.write(b"".join(out))

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        while (reply := self._reader.gets()) is not False:
            self._waiting.popleft().set_result(reply)


class HeldStatements(System):
    """PostgreSQL by asyncpg: prepared statements on connections that are handed out fairly and never reset."""

    _LOAD = """
        WITH taken AS (
            INSERT INTO raw_lease AS l (session, token, until) VALUES ($1, $2, now() + interval '8 s')
            ON CONFLICT (session) DO UPDATE SET token = excluded.token, until = excluded.until WHERE l.until < now() OR l.token = $2
            RETURNING 1)
        SELECT seq, body, (SELECT count(*) FROM taken) FROM raw_turn WHERE session = $1 ORDER BY seq DESC LIMIT $3"""
    _APPEND = """
        WITH freed AS (DELETE FROM raw_lease WHERE session = $1 AND token = $4 RETURNING 1)
        INSERT INTO raw_turn (session, seq, body) SELECT $1, $2, $3 FROM freed ON CONFLICT DO NOTHING RETURNING seq"""

    async def open(self) -> None:
        """Make the tables, connect."""
        link = await asyncpg.connect(self.place)
        await link.execute(
            "CREATE TABLE IF NOT EXISTS raw_turn (session text, seq bigint, body bytea, PRIMARY KEY (session, seq));"
            "CREATE UNLOGGED TABLE IF NOT EXISTS raw_lease (session text PRIMARY KEY, token text, until timestamptz)"
        )
        self._free: asyncio.Queue[tuple[Any, Any, Any]] = asyncio.Queue()
        for _ in range(10):
            each = await asyncpg.connect(self.place)
            self._free.put_nowait((each, await each.prepare(self._LOAD), await each.prepare(self._APPEND)))
        await link.close()

    async def fill(self, session: str, messages: int) -> None:
        """Copy them in."""
        link, *others = await self._free.get()
        rows = [(session, seq + 1, b"[" + b",".join(_said()) + b"]") for seq in range(messages // 2)]
        await link.copy_records_to_table("raw_turn", records=rows)
        self._free.put_nowait((link, *others))

    async def turn(self, session: str) -> int:
        """Load, append."""
        held = await self._free.get()
        rows = await held[1].fetch(session, "token", WINDOW // 2)
        self._free.put_nowait(held)
        held = await self._free.get()
        stored = await held[2].fetch(session, rows[0][0] + 1 if rows else 1, b"[" + b",".join(_said()) + b"]", "token")
        self._free.put_nowait(held)
        assert len(stored) == 1
        return 2 * len(rows)

    async def aclose(self) -> None:
        """Disconnect."""
        while not self._free.empty():
            await self._free.get_nowait()[0].close()


_PRAGMAS = ("page_size = 8192", "journal_mode = WAL", "synchronous = FULL")
_TURNS = "CREATE TABLE IF NOT EXISTS turn (session, seq INTEGER, body BLOB, PRIMARY KEY (session, seq)) WITHOUT ROWID"
_LEASES = "CREATE TABLE IF NOT EXISTS lease (session PRIMARY KEY, token, until REAL) WITHOUT ROWID"
_HOLD = "INSERT INTO lease VALUES (?, 'token', unixepoch() + 8) ON CONFLICT DO UPDATE SET until = unixepoch() + 8"
_NEWEST = "SELECT seq, body FROM turn WHERE session = ? ORDER BY seq DESC LIMIT ?"
_FREE = "DELETE FROM lease WHERE session = ? AND token = 'token'"
_ADD = "INSERT INTO turn VALUES (?, ?, ?)"


def _rows(session: str, messages: int) -> list[tuple[str, int, bytes]]:
    return [(session, seq + 1, b"[" + b",".join(_said()) + b"]") for seq in range(messages // 2)]


class StdlibSQLite(System):
    """SQLite by the standard library, called on the event loop: it waits for the disk, and nothing else runs meanwhile."""

    async def open(self) -> None:
        """Make the file."""
        self._link = sqlite3.connect(str(Path(self.place) / "raw.db"), isolation_level=None)
        for pragma in _PRAGMAS:
            self._link.execute(f"PRAGMA {pragma}")
        for table in (_TURNS, _LEASES):
            self._link.execute(table)

    async def fill(self, session: str, messages: int) -> None:
        """Insert them in one transaction."""
        self._link.execute("BEGIN IMMEDIATE")
        self._link.executemany(_ADD, _rows(session, messages))
        self._link.execute("COMMIT")

    async def turn(self, session: str) -> int:
        """Load, append."""
        run = self._link.execute
        run("PRAGMA synchronous = NORMAL")
        run("BEGIN IMMEDIATE")
        run(_HOLD, (session,))
        rows = run(_NEWEST, (session, WINDOW // 2)).fetchall()
        run("COMMIT")
        await asyncio.sleep(0)
        run("PRAGMA synchronous = FULL")
        run("BEGIN IMMEDIATE")
        freed = run(_FREE, (session,)).rowcount
        run(_ADD, (session, rows[0][0] + 1 if rows else 1, b"[" + b",".join(_said()) + b"]"))
        run("COMMIT")
        assert freed == 1
        return 2 * len(rows)

    async def aclose(self) -> None:
        """Close it."""
        self._link.close()


class Aiosqlite(System):
    """SQLite by aiosqlite, as most asyncio programs use it: one connection and its thread, a hop for each statement.

    A transaction is of a connection and not of a task, so the tasks take turns by a lock. A checked turn is these two transactions,
    both flushed: to change `synchronous` between them would be two hops more.
    """

    async def open(self) -> None:
        """Make the file."""
        self._link = await aiosqlite.connect(Path(self.place) / "raw.db", isolation_level=None)
        for pragma in _PRAGMAS:
            await self._link.execute(f"PRAGMA {pragma}")
        for table in (_TURNS, _LEASES):
            await self._link.execute(table)
        self._alone = asyncio.Lock()

    async def fill(self, session: str, messages: int) -> None:
        """Insert them in one transaction."""
        async with self._alone:
            await self._link.execute("BEGIN IMMEDIATE")
            await self._link.executemany(_ADD, _rows(session, messages))
            await self._link.execute("COMMIT")

    async def turn(self, session: str) -> int:
        """Load, append."""
        run = self._link.execute
        async with self._alone:
            await run("BEGIN IMMEDIATE")
            await run(_HOLD, (session,))
            rows = list(await self._link.execute_fetchall(_NEWEST, (session, WINDOW // 2)))
            await run("COMMIT")
        async with self._alone:
            await run("BEGIN IMMEDIATE")
            freed = (await run(_FREE, (session,))).rowcount
            await run(_ADD, (session, rows[0][0] + 1 if rows else 1, b"[" + b",".join(_said()) + b"]"))
            await run("COMMIT")
        assert freed == 1
        return 2 * len(rows)

    async def aclose(self) -> None:
        """Close it."""
        await self._link.close()
