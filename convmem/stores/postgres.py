"""PostgresStore: any number of processes on any number of hosts, one statement for each verb.

One row for each entry, one for each conversation, which every append updates where it stands. Who may write is decided by the
rows themselves, at READ COMMITTED: an append locks the lease row, moves the conversation if it is still as it saw it, and only
then inserts its entry; all in one statement, of which the text is in ``sql/postgres``. A statement that had to wait for a row
sees what was before: it then stores nothing and is sent again.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import time
import warnings
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any, ClassVar, Literal, TypeVar
from urllib.parse import unquote
from uuid import UUID
from weakref import WeakKeyDictionary

import asyncpg

from convmem.exceptions import StoreUnavailable
from convmem.identifiers import new_token
from convmem.keys import SessionKey
from convmem.stores.base import (
    TOMBSTONE_LIFE,
    Appended,
    Entry,
    Head,
    Health,
    Holder,
    Kind,
    Lease,
    Listed,
    Log,
    Lookup,
    Outcome,
    Page,
    Store,
    StoredEntry,
    page_cursor,
    read_page_cursor,
)
from convmem.stores.postgres_connections import (
    BorrowedConnections,
    Connection,
    Connections,
    NotConnectedError,
    OwnConnections,
    Pooling,
    deadline_in,
)
from convmem.stores.postgres_schema import (
    Migrate,
    SchemaError,
    check_schema,
    migrate,
    missing_right,
    missing_tables,
    statement,
)

T = TypeVar("T")

MOST_TRIES = 64
"""How often a statement is sent again that lost a race: each time somebody else has got further."""
ENTRIES_A_TURN = 4
"""So many entries for each turn asked for are looked at to find where a window begins; more are when that was not enough."""
ADDRESSES_A_PAGE = 20
"""So many addresses for each conversation asked for are looked at by one page of a walk over all owners."""
_RETRIED = (asyncpg.SerializationError, asyncpg.DeadlockDetectedError)
_UNKNOWN_AFTER = (OSError, TimeoutError, asyncpg.InterfaceError, asyncpg.PostgresConnectionError, asyncpg.OperatorInterventionError)
_SURVIVES = {
    "off": "a crash of this process; the last turns may be lost when the server crashes (synchronous_commit=off)",
    "local": "a crash of the server (synchronous_commit=local); a failover may lose the last turns",
    "on": "a crash of the server (synchronous_commit=on); a failover may lose the last turns: no standby is synchronous",
}


class WeakDurabilityWarning(UserWarning):
    """The server is set so that acknowledged turns can be lost; the message says how to change that."""


class PostgresStore(Store):
    """A store in a PostgreSQL database, 13 or newer.

    Args:
        pool: An asyncpg pool, which is never closed by the store and used in the event loop it was made in only. Behind a
            pooler in transaction mode, make it with ``statement_cache_size=0``. `PostgresStore.connecting` makes connections
            of its own, for any number of event loops.
        schema: Where the tables are; only letters, digits, ``_`` and ``-``.
        migrate: ``auto`` makes missing tables at the first call, ``check`` names them then, ``off`` does not look.
        timeout: How long a call may take, waiting for a connection included, before `StoreUnavailable`.
        weak_durability: ``warn`` warns once about a server that may lose acknowledged turns, ``refuse`` does not use it.
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
        weak_durability: Literal["warn", "refuse"] = "warn",
    ) -> None:
        """Remember where; the first call connects."""
        if not schema.replace("_", "").replace("-", "").isalnum() or not schema.isascii():
            msg = f"schema is {schema[:40]!r}; use letters, digits, _ and -."
            raise ValueError(msg)
        self.schema = schema
        self._connections = pool if isinstance(pool, Connections) else BorrowedConnections(pool)
        self._migrate: Migrate = migrate
        self._timeout = timeout
        self._weak_durability = weak_durability
        self._warned = False
        self._ready: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock | None] = WeakKeyDictionary()

    @classmethod
    def connecting(
        cls,
        dsn: str,
        *,
        schema: str = "convmem",
        migrate: Migrate = "auto",
        timeout: timedelta = timedelta(seconds=5),
        weak_durability: Literal["warn", "refuse"] = "warn",
        pooling: Pooling | None = None,
        location: str = "",
        **options: Any,
    ) -> PostgresStore:
        """Return a store with connections of its own: opened when they are needed, closed with the store or their event loop.

        Args:
            dsn: ``postgresql://user:password@host:port,other:port/database``; of several hosts the one that can be written to.
            schema: See the class.
            migrate: See the class.
            timeout: See the class.
            weak_durability: See the class.
            pooling: How many connections.
            location: What `check` says about where it is; without credentials.
            options: For `asyncpg.connect`.
        """
        connections = OwnConnections({"dsn": dsn, **options}, location=location or _place_of(dsn), pooling=pooling)
        return cls(connections, schema=schema, migrate=migrate, timeout=timeout, weak_durability=weak_durability)

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
        conversation, looked_at = _id_of(key), _entries_for(turns, messages)
        token, term = (lease.token, lease.term) if lease else (None, None)
        took = False
        for tries in count(1):
            rows = await self._run("load", "load", conversation, turn, turns, messages, before, token, term, looked_at)
            seen = _Seen.of(rows)
            if seen.low is None and looked_at is not None:
                looked_at *= 8
            elif token is None or seen.is_complete or tries == MOST_TRIES:
                break
            elif seen.taken is not None and seen.is_newest:
                break
            elif seen.taken is None and seen.holder not in ("", token):
                break
            took = took or seen.taken is not None
        if took and token is not None and seen.is_complete:  # found complete only after a wait: it takes no lease
            await self.release(key, token)
            seen = seen.without_holder(token)
        return seen.log(token if seen.taken is not None else None, turn)

    async def append(self, key: SessionKey, after: Head, entry: Entry, *, ttl: timedelta | None = None, release: bool = False) -> Appended:
        """See `Store.append`."""
        arguments = (
            *(_id_of(key), *key.path),
            *(after.epoch, after.n, after.id),
            *(entry.id, entry.turn, entry.token, entry.epoch, entry.kind.value, entry.closing, entry.count, entry.turns, entry.start),
            *(entry.pinned or None, entry.hides or None, entry.format, entry.key_id, entry.body),
            *(ttl, release),
        )
        for _ in range(MOST_TRIES):
            row = (await self._run("append", "append", *arguments))[0]
            if row["outcome"] != "again":
                outcome = Outcome(row["outcome"])
                if outcome in (Outcome.STORED, Outcome.DUPLICATE):
                    return Appended(outcome, entry.head_at(after.n + 1))
                head = Head(row["epoch"], row["n"], row["entry"], row["turns"], row["start"], tuple(row["pinned"] or ()))
                return Appended(outcome, head)
        raise StoreUnavailable(self.name, "append", "the conversation never stood still; nothing was stored")

    async def renew(self, key: SessionKey, lease: Lease, head: Head) -> bool:
        """See `Store.renew`."""
        return bool(await self._run("renew", "renew", _id_of(key), lease.token, lease.term, head.epoch, head.n, head.id))

    async def release(self, key: SessionKey, token: str) -> None:
        """See `Store.release`."""
        await self._run("release", "release", _id_of(key), token)

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
            return await self._walk(tenant, after, limit, written_before)
        of_tenant, of_owner, _ = SessionKey(owner, tenant=tenant or "").path
        updated, session = read_page_cursor(after) or (None, "")
        beyond = None if updated is None else _time(updated)
        rows = await self._run("list", "list", of_tenant, of_owner, beyond, session, written_before, limit + 1)
        items = tuple(_listed(row) for row in rows[:limit])
        last = rows[limit - 1] if len(rows) > limit else None
        return Page(items, page_cursor(last["updated"].timestamp(), last["session"]) if last else None)

    async def _walk(self, tenant: str | None, after: str | None, limit: int, written_before: datetime | None) -> Page:
        """List every owner's, in the order of their ids; a page looks at so many addresses, whatever it finds."""
        of_tenant = None if tenant is None else SessionKey("user:-", tenant=tenant).path[0]
        scanned = limit * ADDRESSES_A_PAGE
        rows = await self._run("list", "walk", _read_walk_cursor(after), of_tenant, written_before, scanned)
        wanted = [row for row in rows if row["wanted"]]
        if len(wanted) > limit:
            return Page(tuple(map(_listed_in_walk, wanted[:limit])), wanted[limit - 1]["id"].hex)
        return Page(tuple(map(_listed_in_walk, wanted)), rows[-1]["id"].hex if len(rows) == scanned else None)

    async def delete(self, key: SessionKey, *, at: Head | None = None) -> bool:
        """See `Store.delete`."""
        head = (at.epoch, at.n, at.id) if at else (None, None, None)
        for _ in range(MOST_TRIES):
            row = (await self._run("delete", "delete", _id_of(key), *key.path, new_token(), *head, TOMBSTONE_LIFE))[0]
            if not row["again"]:
                return bool(row["wanted"] and row["existed"])
        raise StoreUnavailable(self.name, "delete", "the conversation never stood still; it was not deleted")

    async def check(self) -> Health:
        """See `Store.check`."""
        row = (await self._run("check", "check"))[0]
        if row["written"] is None:
            raise StoreUnavailable(self.name, "check", missing_tables(self.schema))
        where = f"{self._connections.location}, database {row['database']}, schema {self.schema}"
        return Health(self.name, where, _durability(row), f"PostgreSQL {row['version']}")

    async def migrate(self) -> list[str]:
        """Apply the numbered files of SQL that this database has not seen; return their names.

        Raises:
            StoreUnavailable: Something failed; for a missing right the message has the GRANT.
        """
        deadline = time.monotonic() + 60

        async def work(connection: Connection) -> list[str]:
            return await migrate(connection, self.schema, timeout=max(deadline - time.monotonic(), 0.001))

        return await self._translated("migrate", deadline, work)

    async def aclose(self) -> None:
        """See `Store.aclose`. A later call connects again, unless the pool was passed in and is closed."""
        self._ready.clear()
        await self._connections.aclose()

    async def _run(self, operation: str, name: str, *arguments: object) -> list[Any]:
        """Run a statement by its name. The one place through which every verb goes."""
        deadline = deadline_in(self._timeout)
        if self._ready.get(asyncio.get_running_loop(), _NEVER) is not None:
            await self._get_ready(operation, deadline)
        text = statement(name, self.schema)

        async def work(connection: Connection) -> list[Any]:
            return await connection.fetch(text, *arguments, timeout=max(deadline - time.monotonic(), 0.001))

        return await self._translated(operation, deadline, work)

    async def _translated(self, operation: str, deadline: float, work: Callable[[Connection], Awaitable[T]]) -> T:
        """Lend a connection to work, again after a lost race; every error of the driver becomes `StoreUnavailable`."""
        writes = operation in ("append", "delete")
        for tries in count(1):
            sent = False
            try:
                async with self._connections.use(deadline) as connection:
                    sent = True
                    try:
                        return await work(connection)
                    except asyncpg.InsufficientPrivilegeError as error:
                        raise SchemaError(await missing_right(connection, self.schema, error)) from error
            except NotConnectedError as error:
                raise StoreUnavailable(self.name, operation, _why_not_connected(error)) from error.__cause__
            except SchemaError as error:
                raise StoreUnavailable(self.name, operation, str(error)) from error.__cause__
            except (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError, asyncpg.UndefinedColumnError) as error:
                self._ready.clear()
                raise StoreUnavailable(self.name, operation, missing_tables(self.schema)) from error
            except _RETRIED as error:
                if tries >= MOST_TRIES or time.monotonic() >= deadline:
                    raise StoreUnavailable(self.name, operation, _sentence(error)) from error
                await asyncio.sleep(random.uniform(0, 0.002 * tries))  # noqa: S311 - to part those who met
            except (asyncpg.InvalidSQLStatementNameError, asyncpg.DuplicatePreparedStatementError) as error:
                if tries > 2 or isinstance(self._connections, BorrowedConnections):  # noqa: PLR2004 - the second has no cache
                    raise StoreUnavailable(self.name, operation, _POOLER) from error
            except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as error:
                unknown = writes and sent and isinstance(error, _UNKNOWN_AFTER)
                again = not writes and tries == 1 and isinstance(error, asyncpg.PostgresConnectionError | ConnectionError)
                if not again:
                    raise StoreUnavailable(self.name, operation, _sentence(error), unknown=unknown) from error
        raise AssertionError

    async def _get_ready(self, operation: str, deadline: float) -> None:
        """Before the first statement in an event loop: the tables, and what the server says of itself."""
        loop = asyncio.get_running_loop()
        lock = self._ready.get(loop, _NEVER)
        if lock is _NEVER:
            lock = self._ready[loop] = asyncio.Lock()
        assert lock is not None
        async with lock:
            if self._ready.get(loop, _NEVER) is None:
                return
            until = max(deadline, time.monotonic() + 60) if self._migrate == "auto" else deadline
            await self._translated(operation, deadline, lambda connection: self._look(connection, until))
            self._ready[loop] = None

    async def _look(self, connection: Connection, until: float) -> None:
        remaining = max(until - time.monotonic(), 0.001)
        if self._migrate == "auto":
            await migrate(connection, self.schema, timeout=remaining)
        if self._migrate == "check":
            await check_schema(connection, self.schema, timeout=remaining)
        row = (await connection.fetch(_SETTINGS, timeout=remaining))[0]
        if row["standby"] or row["read_only"] == "on":
            msg = "this server is a standby, or read-only; name the primary in CONVMEM_STORE, or all hosts: postgresql://a,b/database"
            raise SchemaError(msg)
        danger = _danger(row)
        if danger and self._weak_durability == "refuse":
            raise SchemaError(danger)
        if danger and not self._warned:
            self._warned = True
            warnings.warn(f"{danger[0].upper()}{danger[1:]}.", WeakDurabilityWarning, stacklevel=2)


_NEVER: Any = object()
_SETTINGS = (
    "SELECT pg_is_in_recovery() AS standby, current_setting('transaction_read_only') AS read_only,"
    " current_setting('fsync') AS fsync, current_setting('full_page_writes') AS full_page_writes,"
    " current_setting('synchronous_commit') AS synchronous_commit, current_setting('synchronous_standby_names') AS standbys"
)
_POOLER = (
    "a pooler hands each transaction to another server connection, where no prepared statement is; "
    "make the pool with statement_cache_size=0, or add statement_cache_size=0 to the URL"
)


class _Seen:
    """What one load statement saw."""

    def __init__(self, log: tuple[Any, ...], rows: list[Any]) -> None:
        (epoch, n, entry, turns, start, pinned, self.expired, self.deleted, ended, self.low) = log[:10]
        (self.holder, held_since, held_until, self.now) = log[10:14]
        (self.taken, self.until, self.is_newest) = log[14:17]
        (self.turn_n, self.turn_token, self.turn_closing, self.turn_visible) = log[17:]
        self.head = Head(epoch, n, entry, turns, start, tuple(pinned or ()))
        self.ended = frozenset(json.loads(ended or "{}"))
        self.held = (held_since, held_until)
        self.rows = rows

    @classmethod
    def of(cls, rows: list[Any]) -> _Seen:
        log = next(row["log"] for row in rows if row["log"] is not None)
        return cls(tuple(log), [row for row in rows if row["log"] is None])

    @property
    def is_complete(self) -> bool:
        return bool(self.turn_closing)

    def without_holder(self, token: str) -> _Seen:
        if self.holder == token:
            self.holder = ""
        return self

    def log(self, took: str | None, turn: str | None) -> Log:
        """Return the load's answer; `took` is the token of the lease that was taken."""
        token = took or self.holder
        since, until = (self.taken, self.until) if took else self.held
        holder = Holder(token, self.now - since, until - self.now) if token else Holder()
        found = self._lookup(token) if turn is not None else None
        if self.expired:
            head = Head(self.head.epoch, self.head.n, self.head.id, 0, self.head.n)
            return Log(head, (), (), holder, found, expired=True, deleted_at=self.deleted, ended=self.ended)
        stored = sorted((_stored(self.head.epoch, row) for row in self.rows), key=lambda each: each.n)
        low = self.low or 0
        entries = tuple(each for each in stored if each.n > low)
        pinned = tuple(each for each in stored if each.n <= low)
        return Log(self.head, entries, pinned, holder, found, deleted_at=self.deleted, ended=self.ended)

    def _lookup(self, holder: str) -> Lookup:
        if self.turn_n is None:
            return Lookup()
        if self.turn_closing:
            return Lookup("complete", self.turn_n, self.turn_visible)
        return Lookup("running" if self.turn_token == holder else "interrupted", self.turn_n, self.turn_visible)


def _stored(epoch: str, row: Any) -> StoredEntry:
    _, n, stored, messages, turns, start, format_, closing, kind, entry, turn, token, key_id, pinned, hides, body = row
    return StoredEntry(
        n,
        Entry(
            entry,
            turn,
            token,
            epoch,
            body,
            messages,
            Kind(kind),
            closing,
            turns,
            start,
            tuple(pinned or ()),
            tuple(hides or ()),
            format_,
            key_id,
        ),
        stored,
    )


def _listed(row: Any) -> Listed:
    revision = Head(row["epoch"], row["n"], row["entry"]).revision
    return Listed(row["session"], row["turns"], row["created"], row["updated"], revision)


def _listed_in_walk(row: Any) -> Listed:
    return _listed(row)


def _read_walk_cursor(after: str | None) -> UUID:
    try:
        return UUID(int=0) if after is None else UUID(hex=after)
    except ValueError:
        msg = "after is not a cursor of a page of conversations."
        raise ValueError(msg) from None


def _id_of(key: SessionKey) -> UUID:
    """Return the first half of the SHA-256 of the address: 128 bits nobody can aim at, and no counter to meet at."""
    return UUID(bytes=hashlib.sha256("/".join(key.path).encode()).digest()[:16])


def _entries_for(turns: int | None, messages: int | None) -> int | None:
    """Return how many entries to look at for a window; None for all."""
    bounds = [limit * each for limit, each in ((turns, ENTRIES_A_TURN), (messages, 2)) if limit is not None]
    return min(bounds) + 8 if bounds else None


def _time(seconds: float) -> datetime:
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, OSError, ValueError) as error:
        msg = "after is not a cursor of a page of conversations."
        raise ValueError(msg) from error


def _durability(row: Any) -> str:
    if row["fsync"] == "off":
        return "a crash of this process; a crash of the server's host may lose or destroy everything (fsync=off)"
    commit = row["synchronous_commit"]
    if row["standbys"] and commit in ("on", "remote_apply", "remote_write"):
        return f"a failover to a synchronous standby (synchronous_commit={commit}, synchronous_standby_names={row['standbys']})"
    return _SURVIVES.get(commit, _SURVIVES["on"].replace("=on", f"={commit}"))


def _danger(row: Any) -> str:
    """Return what can lose acknowledged turns when the server crashes, and the cure; empty when nothing does."""
    if row["fsync"] == "off":
        return "the PostgreSQL server runs with fsync=off and may lose everything when its host crashes; set fsync = on"
    if row["full_page_writes"] == "off":
        return "the PostgreSQL server runs with full_page_writes=off, where a crash of its host may tear pages; set full_page_writes = on"
    if row["synchronous_commit"] == "off":
        return (
            "the PostgreSQL server runs with synchronous_commit=off and loses the last acknowledged turns when it crashes; "
            "set it to on, for this user alone with: ALTER ROLE ... SET synchronous_commit = on"
        )
    return ""


def _why_not_connected(error: NotConnectedError) -> str:
    cause = error.__cause__
    if cause is None:
        return str(error)
    if isinstance(cause, asyncpg.InvalidAuthorizationSpecificationError):
        return "the server refused the user or the password in CONVMEM_STORE"
    if isinstance(cause, asyncpg.InvalidCatalogNameError):
        return "the database in CONVMEM_STORE does not exist on the server; make it with CREATE DATABASE, or name another one"
    if isinstance(cause, asyncpg.TargetServerAttributeNotMatched):
        return "no server that can be written to was found: each is a standby, or read-only; name the primary in CONVMEM_STORE"
    return f"no connection: {_sentence(cause)}"


def _sentence(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "it did not answer in time"
    return " ".join(str(error).split()) or type(error).__name__


def _place_of(dsn: str) -> str:
    """Return hosts and ports of a DSN, without credentials."""
    return unquote(dsn.partition("://")[2].partition("?")[0].rpartition("@")[2].partition("/")[0]) or "the driver's default host"
