"""PostgresStore: any number of processes on any number of hosts, one trip for each verb.

One row for each entry, one for each conversation, which every append updates where it stands. Who may write is decided by the
rows themselves, at READ COMMITTED: an append locks the lease row, moves the conversation if it is still as it saw it, and only
then inserts its entry; all in one statement, of which the text is in ``sql/postgres``. A statement that had to wait for a row
sees what was before: it then stores nothing and is sent again. Loads and appends that wait at the same time share a statement.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, ClassVar, Literal
from urllib.parse import unquote

import asyncpg
from asyncpg.pgproto.pgproto import UUID

from convmem.exceptions import StoreUnavailable
from convmem.identifiers import new_token
from convmem.keys import SessionKey
from convmem.stores.base import (
    NO_PAGE_CURSOR,
    TOMBSTONE_LIFE,
    Appended,
    Entry,
    Head,
    Health,
    Lease,
    Listed,
    Log,
    Outcome,
    Page,
    Store,
    key_of_owner,
    page_cursor,
    path_of_tenant,
    read_page_cursor,
    read_walk_cursor,
    walk_cursor,
)
from convmem.stores.packing import bits_of, pack_facts, pack_name
from convmem.stores.postgres_batches import Statement
from convmem.stores.postgres_connections import BorrowedConnections, Connections, OwnConnections, Pooling
from convmem.stores.postgres_database import MOST_TRIES, Database, Rules, durability
from convmem.stores.postgres_layout import MOST, Seen, pack, unpack
from convmem.stores.postgres_schema import Migrate, missing_tables

_LOAD, _NEXT, _FIRST = Statement("load", "load"), Statement("append", "follow", ("next",)), Statement("append", "follow", ("first",))
ENTRIES_A_MESSAGE = 2
"""So many entries for each message asked for are looked at to find where a window begins; more are when that was not enough."""
MOST_SHARED_BYTES = 2**16
"""An entry with a larger body has a statement for itself: nobody waits for the bytes of others."""
ADDRESSES_A_PAGE = 20
"""So many addresses for each conversation asked for are looked at by one page of a walk over all owners."""
ADDRESSES_A_SWEEP = 500
"""So many tombstones, and so many leases, are removed by one batch of a sweep at most."""


class PostgresStore(Store):
    """A store in a PostgreSQL database, 13 or newer.

    Args:
        pool: An asyncpg pool, which is never closed by the store and used in the event loop it was made in only. Behind a
            pooler in transaction mode, make it with ``statement_cache_size=0``. `PostgresStore.at` makes connections
            of its own, for any number of event loops.
        schema: Where the tables are; only letters, digits, ``_`` and ``-``.
        migrate: ``auto`` makes missing tables at the first call, ``check`` names them then, ``off`` does not look.
        timeout: How long a call may take, waiting for a connection included, before `StoreUnavailable`.
        unsafe: A server that may lose acknowledged turns in a crash: ``warn`` once, ``refuse`` to use it
            (a `ConfigurationError`: the app does not start), or ``allow`` it.
    """

    name: ClassVar[str] = "postgresql"
    reach: ClassVar[Literal["process", "host", "network"]] = "network"

    def __init__(
        self,
        pool: asyncpg.Pool | Connections,
        *,
        schema: str = "convmem",
        migrate: Migrate = "auto",
        timeout: timedelta = timedelta(seconds=5),
        unsafe: Literal["warn", "refuse", "allow"] = "warn",
    ) -> None:
        """Remember where; the first call connects."""
        if not schema.replace("_", "").replace("-", "").isalnum() or not schema.isascii():
            msg = f"schema is {schema[:40]!r}; use letters, digits, _ and -."
            raise ValueError(msg)
        connections = pool if isinstance(pool, Connections) else BorrowedConnections(pool)
        self._database = Database(self.name, connections, Rules(schema, migrate, timeout, unsafe))

    @classmethod
    def at(
        cls,
        dsn: str,
        *,
        schema: str = "convmem",
        migrate: Migrate = "auto",
        timeout: timedelta = timedelta(seconds=5),
        unsafe: Literal["warn", "refuse", "allow"] = "warn",
        pool_max: int = 10,
        pool_min: int = 1,
        statement_cache_size: int | None = None,
    ) -> PostgresStore:
        """Return a store with connections of its own: opened when they are needed, closed with the store or their event loop.

        Args:
            dsn: ``postgresql://user:password@host:port,other:port/database``; of several hosts the one that can be written to.
            schema: See the class.
            migrate: See the class.
            timeout: See the class.
            unsafe: See the class.
            pool_max: How many connections are open at most in one event loop.
            pool_min: How many of them stay open when they are idle.
            statement_cache_size: 0 prepares no statement; None finds out whether a pooler stands in between, where none may be.
        """
        options = {"dsn": dsn} if statement_cache_size is None else {"dsn": dsn, "statement_cache_size": statement_cache_size}
        connections = OwnConnections(options, location=_place_of(dsn), pooling=Pooling(pool_max, pool_min))
        return cls(connections, schema=schema, migrate=migrate, timeout=timeout, unsafe=unsafe)

    async def load(
        self,
        key: SessionKey,
        *,
        turns: int | None = None,
        messages: int | None = None,
        before: int | None = None,
        turn: str | None = None,
        lease: Lease | None = None,
    ) -> Log:
        """See `Store.load`."""
        if messages == 0:
            turns, messages = 0, None
        looked_at = None if messages is None else messages * ENTRIES_A_MESSAGE + 8
        token, term = (lease.token, lease.term.total_seconds()) if lease else (None, None)
        taken_when_held_by: str | None = None
        window = (_id_at(key.path), None if turns is None else min(turns, MOST), token and pack_name(token), term)
        is_plain = turn is None and messages is None and before is None
        for _ in range(MOST_TRIES):
            if is_plain:
                together = turns is not None and await self._database.share(_LOAD, window)
                rows = together or await self._database.run("load", "load", window, "one")
            else:
                wanted = {"turn": turn, "messages": messages, "before": before}
                parts = [part for part, value in wanted.items() if value is not None]
                named = None if turn is None else bits_of(turn)
                asked = (*window, named, messages, looked_at, None if before is None else min(max(before, 0), MOST))
                rows = await self._database.run("load", "load", asked, "one", "more", *parts)
            seen = Seen(rows)
            if seen.is_answer(token):
                break
            if seen.is_short and looked_at is not None:
                looked_at *= 8
            if seen.is_taken and taken_when_held_by is None:
                taken_when_held_by = seen.holder
        else:
            raise StoreUnavailable(self.name, "load", "the conversation never stood still")
        holder = seen.holder
        if taken_when_held_by is not None:
            holder = taken_when_held_by
            if seen.is_complete and token is not None:  # complete, as was seen only after a wait
                await self.release(key, token)
                seen.holder = ""
        return seen.log(lease, None if turn is None else seen.look_up(holder), turns, messages)

    async def append(self, key: SessionKey, after: Head, entry: Entry, *, ttl: timedelta | None = None, release: bool = False) -> Appended:
        """See `Store.append`."""
        pinned = f"{{{','.join(map(str, entry.pinned))}}}" if entry.pinned else None
        arguments = (
            *(_id_at(key.path), *_of_head(after)),
            *(pack_name(entry.id), pack_name(entry.token), entry.turns, entry.start, pinned),
            *(pack_facts(entry, in_place=True), entry.body, ttl, release),
        )
        if not entry.hides and len(entry.body) <= MOST_SHARED_BYTES:
            if after.epoch:
                shared = self._database.share(_NEXT, arguments)
            else:
                shared = self._database.share(_FIRST, (*arguments, *key.path, pack_name(entry.epoch)))
            if await shared:
                return Appended(Outcome.STORED, entry.head_at(after.n + 1))
        everything = (*arguments, *key.path, pack_name(entry.epoch), bits_of(after.id), entry.hides or None)
        for _ in range(MOST_TRIES):
            row = (await self._database.run("append", "append", everything))[0]
            if row["outcome"] != "again":
                outcome = Outcome(row["outcome"])
                if outcome in (Outcome.STORED, Outcome.DUPLICATE):
                    return Appended(outcome, entry.head_at(after.n + 1))
                head = Head(unpack(row["epoch"]), row["n"], unpack(row["entry"]), row["turns"], row["start"], tuple(row["pinned"] or ()))
                return Appended(outcome, head)
        raise StoreUnavailable(self.name, "append", "the conversation never stood still; nothing was stored")

    async def renew(self, key: SessionKey, lease: Lease, head: Head) -> bool:
        """See `Store.renew`."""
        return bool(await self._database.run("renew", "renew", (_id_at(key.path), pack(lease.token), lease.term, *_of_head(head))))

    async def release(self, key: SessionKey, token: str) -> None:
        """See `Store.release`."""
        await self._database.run("release", "release", (_id_at(key.path), pack(token)))

    async def list(
        self,
        owner: str | None,
        *,
        tenant: str | None = "",
        after: str | None = None,
        limit: int = 50,
        written_before: datetime | None = None,
    ) -> Page:
        """See `Store.list`."""
        if owner is None:
            return await self._walk(None if tenant is None else path_of_tenant(tenant), after, limit, written_before)
        of_tenant, of_owner, _ = key_of_owner(owner, tenant).path
        updated, session = read_page_cursor(after) or (None, "")
        beyond = None if updated is None else _time(updated)
        rows = await self._database.run("list", "list", (of_tenant, of_owner, beyond, session, written_before, limit + 1))
        items = tuple(map(_listed, rows[:limit]))
        return Page(items, page_cursor(items[-1].updated_at.timestamp(), items[-1].session_id) if len(rows) > limit else None)

    async def _walk(self, tenant: str | None, after: str | None, limit: int, written_before: datetime | None) -> Page:
        place = read_walk_cursor(after) or (tenant or "", "", "")
        scanned = limit * ADDRESSES_A_PAGE
        rows = await self._database.run("list", "walk", (*place, tenant, written_before, scanned))
        wanted = [row for row in rows if row["wanted"]]
        items = tuple(map(_listed, wanted[:limit]))
        if len(wanted) > limit:
            return Page(items, walk_cursor(items[-1].key.path))
        return Page(items, walk_cursor(_path_of(rows[-1])) if len(rows) == scanned else None)

    async def delete(self, key: SessionKey, *, at: Head | None = None) -> bool:
        """See `Store.delete`."""
        head = _of_head(at) if at else (None, None, None)
        for _ in range(MOST_TRIES):
            row = (await self._database.run("delete", "delete", (_id_at(key.path), *key.path, pack(new_token()), *head, TOMBSTONE_LIFE)))[0]
            if not row["again"]:
                return bool(row["wanted"] and row["existed"])
        raise StoreUnavailable(self.name, "delete", "the conversation never stood still; it was not deleted")

    async def sweep(self) -> int:
        """See `Store.sweep`. A lease goes two days after its last use, also where there is a conversation: the next turn makes it anew."""
        return int((await self._database.run("sweep", "sweep", (TOMBSTONE_LIFE, ADDRESSES_A_SWEEP)))[0]["removed"])

    async def check(self) -> Health:
        """See `Store.check`.

        Raises:
            ConfigurationError: The server is set so that it may lose acknowledged turns, and `unsafe` is ``refuse``.
        """
        row = (await self._database.run("check", "check"))[0]
        schema = self._database.rules.schema
        if row["written"] is None:
            raise StoreUnavailable(self.name, "check", missing_tables(schema))
        where = f"{self._database.connections.location}, database {row['database']}, schema {schema}"
        return Health(self.name, where, durability(row), f"PostgreSQL {row['version']}")

    async def migrate(self) -> tuple[str, ...]:
        """Apply the numbered files of SQL that this database has not seen; return their names.

        Raises:
            StoreUnavailable: Something failed; for a missing right the message has the GRANT.
        """
        return await self._database.migrate()

    async def aclose(self) -> None:
        """See `Store.aclose`. A later call connects again, unless the pool was passed in and is closed."""
        await self._database.aclose()


def _listed(row: Any) -> Listed:
    revision = Head(unpack(row["epoch"]), row["n"], unpack(row["entry"])).revision
    return Listed(SessionKey.of_path(_path_of(row)), row["turns"], row["created"], row["updated"], revision, expired=row["expired"])


def _of_head(head: Head) -> tuple[bytes, int, bytes]:
    """Return what a statement compares of a head."""
    return pack_name(head.epoch) if head.epoch else b"", min(head.n, MOST), pack_name(head.id) if head.id else b""


def _path_of(row: Any) -> tuple[str, str, str]:
    return row["tenant"], row["owner"], row["session"]


@lru_cache(maxsize=1024)
def _id_at(path: tuple[str, str, str]) -> UUID:
    """Return the first half of the SHA-256 of an address: 128 bits nobody can aim at, and no counter to meet at.

    A turn names its conversation at least twice.
    """
    return UUID(hashlib.sha256("/".join(path).encode()).digest()[:16])


def _time(seconds: float) -> datetime:
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, OSError, ValueError) as error:
        raise ValueError(NO_PAGE_CURSOR) from error


def _place_of(dsn: str) -> str:
    """Return hosts and ports of a DSN, without credentials."""
    return unquote(dsn.partition("://")[2].partition("?")[0].rpartition("@")[2].partition("/")[0]) or "the driver's default host"
