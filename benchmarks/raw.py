"""The limit: the driver alone doing a checked turn under a lease, with no message typed and no error named.

Load and append are one call each, as the stores of convmem do it; a writer who is not the newest is refused.
"""

from __future__ import annotations

import asyncio
import itertools
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
_WINDOW = "SELECT seq, body FROM turn WHERE session = ? ORDER BY seq DESC LIMIT ?"


def _turn() -> list[bytes]:
    return [json.dumps({"role": "user", "content": question()}).encode(), json.dumps({"role": "assistant", "content": answer()}).encode()]


_TURNS = itertools.cycle([_turn() for _ in range(251)])


def _said(messages: int = 2) -> list[bytes]:
    return [message for _ in range(messages // 2) for message in next(_TURNS)]


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
        link = await asyncpg.connect(self.place)
        rows = [(session, seq + 1, b"[" + b",".join(_said()) + b"]") for seq in range(messages // 2)]
        await link.copy_records_to_table("raw_turn", records=rows)
        await link.close()

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


class Pool(HeldStatements):
    """The same statements by asyncpg's pool, as everybody does it: each connection is reset when it comes back."""

    async def open(self) -> None:
        """Make the tables, connect."""
        await super().open()
        await super().aclose()
        self._pool = await asyncpg.create_pool(self.place, min_size=10, max_size=10)

    async def turn(self, session: str) -> int:
        """Load, append."""
        rows = await self._pool.fetch(self._LOAD, session, "token", WINDOW // 2)
        seq = rows[0][0] + 1 if rows else 1
        stored = await self._pool.fetch(self._APPEND, session, seq, b"[" + b",".join(_said()) + b"]", "token")
        assert len(stored) == 1
        return 2 * len(rows)

    async def aclose(self) -> None:
        """Disconnect."""
        await self._pool.close()


class StdlibSQLite(System):
    """SQLite by the standard library, called on the event loop: it waits for the disk, and nothing else runs meanwhile."""

    async def open(self) -> None:
        """Make the file."""
        self._link = sqlite3.connect(str(Path(self.place) / "raw.db"), isolation_level=None)
        for pragma in ("page_size = 8192", "journal_mode = WAL", "synchronous = FULL"):
            self._link.execute(f"PRAGMA {pragma}")
        self._link.execute("CREATE TABLE IF NOT EXISTS turn (session, seq INTEGER, body BLOB, PRIMARY KEY (session, seq)) WITHOUT ROWID")
        self._link.execute("CREATE TABLE IF NOT EXISTS lease (session PRIMARY KEY, token, until REAL) WITHOUT ROWID")

    async def fill(self, session: str, messages: int) -> None:
        """Insert them in one transaction."""
        self._link.execute("BEGIN IMMEDIATE")
        rows = [(session, seq + 1, b"[" + b",".join(_said()) + b"]") for seq in range(messages // 2)]
        self._link.executemany("INSERT INTO turn VALUES (?, ?, ?)", rows)
        self._link.execute("COMMIT")

    async def turn(self, session: str) -> int:
        """Load, append."""
        run = self._link.execute
        run("PRAGMA synchronous = NORMAL")
        run("BEGIN IMMEDIATE")
        run("INSERT INTO lease VALUES (?, 'token', unixepoch() + 8) ON CONFLICT DO UPDATE SET until = unixepoch() + 8", (session,))
        rows = run(_WINDOW, (session, WINDOW // 2)).fetchall()
        run("COMMIT")
        await asyncio.sleep(0)
        run("PRAGMA synchronous = FULL")
        run("BEGIN IMMEDIATE")
        freed = run("DELETE FROM lease WHERE session = ? AND token = 'token'", (session,)).rowcount
        body = b"[" + b",".join(_said()) + b"]"
        run("INSERT INTO turn VALUES (?, ?, ?)", (session, rows[0][0] + 1 if rows else 1, body))
        run("COMMIT")
        assert freed == 1
        return 2 * len(rows)

    async def aclose(self) -> None:
        """Close it."""
        self._link.close()


class Aiosqlite(System):
    """The same by aiosqlite, as everybody does it: one connection, one thread, one call after the other."""

    async def open(self) -> None:
        """Make the file."""
        self._made = StdlibSQLite(self.place)
        await self._made.open()
        self._link = await aiosqlite.connect(str(Path(self.place) / "raw.db"), isolation_level=None)
        self._turn = asyncio.Lock()

    async def fill(self, session: str, messages: int) -> None:
        """Insert them in one transaction."""
        await self._made.fill(session, messages)

    async def turn(self, session: str) -> int:
        """Load, append."""
        run, now = self._link.execute, "unixepoch() + 8"
        async with self._turn:  # a transaction belongs to the connection
            await run("PRAGMA synchronous = NORMAL")
            await run("BEGIN IMMEDIATE")
            await run(f"INSERT INTO lease VALUES (?, 'token', {now}) ON CONFLICT DO UPDATE SET until = {now}", (session,))
            rows = list(await self._link.execute_fetchall(_WINDOW, (session, WINDOW // 2)))
            await run("COMMIT")
        async with self._turn:
            await run("PRAGMA synchronous = FULL")
            await run("BEGIN IMMEDIATE")
            freed = (await run("DELETE FROM lease WHERE session = ? AND token = 'token'", (session,))).rowcount
            body = b"[" + b",".join(_said()) + b"]"
            await run("INSERT INTO turn VALUES (?, ?, ?)", (session, rows[0][0] + 1 if rows else 1, body))
            await run("COMMIT")
        assert freed == 1
        return 2 * len(rows)

    async def aclose(self) -> None:
        """Close it."""
        await self._link.close()
        await self._made.aclose()
