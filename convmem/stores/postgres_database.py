"""The database of a PostgresStore: its statements by name, what they fail with, and what has to be true before the first of them."""

from __future__ import annotations

import asyncio
import random
import time
import warnings
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from functools import partial
from itertools import count
from typing import Any, Literal, NamedTuple, NoReturn, TypeVar
from weakref import WeakKeyDictionary

import asyncpg

from convmem.exceptions import ConfigurationError, StoreUnavailable
from convmem.stores.postgres_batches import Batches, Statement
from convmem.stores.postgres_connections import ERRORS, BorrowedConnections, Connections, Link, NotConnectedError
from convmem.stores.postgres_schema import Migrate, SchemaError, check_schema, migrate, missing_right, missing_tables, statement

T = TypeVar("T")

MOST_TRIES = 64
"""How often a statement is sent again that lost a race: each time somebody else has got further."""
MIGRATING = 60.0
"""Seconds for which a call may wait that makes the tables, or meets somebody who does."""
_WRITES = ("append", "delete")
_RACES = (asyncpg.SerializationError, asyncpg.DeadlockDetectedError)
_POOLED = (asyncpg.InvalidSQLStatementNameError, asyncpg.DuplicatePreparedStatementError)
_UNPREPARED = (*_POOLED, asyncpg.InvalidCachedStatementError)
"""A pooler is in between, or a table was changed: nothing was done, and what comes on a new connection is prepared anew."""
_NO_TABLES = (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError, asyncpg.UndefinedColumnError)
_CUT = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
)
"""What may come after the server has done what it was asked; any other error of it says that it has not."""
_SETTINGS = (
    "SELECT pg_is_in_recovery() AS standby, current_setting('transaction_read_only') AS read_only,"
    " current_setting('fsync') AS fsync, current_setting('full_page_writes') AS full_page_writes,"
    " current_setting('synchronous_commit') AS synchronous_commit"
)


class UnsafePostgresWarning(UserWarning):
    """The server is set so that acknowledged turns can be lost; the message says how to change that."""


class Rules(NamedTuple):
    """What a store was told about its database.

    Attributes:
        schema: Where the tables are.
        migrate: What is done about missing ones.
        timeout: How long a call may take.
        unsafe: What is done about a server that may lose acknowledged turns.
    """

    schema: str = "convmem"
    migrate: Migrate = "auto"
    timeout: timedelta = timedelta(seconds=5)
    unsafe: Literal["warn", "refuse", "allow"] = "warn"


class Database:
    """One database, from any event loop. Every error of the driver becomes `StoreUnavailable`."""

    def __init__(self, store: str, connections: Connections, rules: Rules) -> None:
        """Connect to nothing yet; `store` is the name in errors."""
        self.connections, self.rules = connections, rules
        self._store = store
        self._seconds = rules.timeout.total_seconds()
        self._warned = False
        self._ready: WeakKeyDictionary[asyncio.AbstractEventLoop, Batches] = WeakKeyDictionary()
        self._getting_ready: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()

    async def run(self, operation: str, name: str, arguments: Sequence[object] = (), *parts: str) -> list[Any]:
        """Run a statement by its name, for a verb of the store. This and `share` are where every verb goes through."""
        deadline = time.monotonic() + self._seconds
        if asyncio.get_running_loop() not in self._ready:
            await self._get_ready(operation, deadline)
        return await self._send(Statement(operation, name, parts), "", arguments, deadline)

    def share(self, statement: Statement, arguments: Sequence[object]) -> Awaitable[list[Any]]:
        """Run a statement, together with others that wait; no row at all says that it has to be run alone."""
        deadline = time.monotonic() + self._seconds
        batches = self._ready.get(asyncio.get_running_loop())
        return batches.call(statement, arguments, deadline) if batches else self._share_first(statement, arguments, deadline)

    async def _share_first(self, statement: Statement, arguments: Sequence[object], deadline: float) -> list[Any]:
        batches = await self._get_ready(statement.operation, deadline)
        return await batches.call(statement, arguments, deadline)

    def _overdue(self, operation: str, *, sent: bool) -> NoReturn:
        self._fail(operation, TimeoutError() if sent else NotConnectedError(self.connections.busy))

    def _send(self, wanted: Statement, form: str, arguments: Sequence[object], deadline: float) -> Awaitable[list[Any]]:
        text = statement(wanted.name, self.rules.schema, form, *wanted.parts)
        return self._lend(wanted.operation, deadline, partial(Link.run, query=text, args=arguments, deadline=deadline))

    async def migrate(self) -> tuple[str, ...]:
        """Apply the numbered files this database has not seen; return their names."""
        begun = time.monotonic()
        deadline, until = begun + self.rules.timeout.total_seconds(), begun + MIGRATING
        return await self._lend("migrate", deadline, lambda link: migrate(link, self.rules.schema, timeout=_left(until)))

    async def aclose(self) -> None:
        """Close what is ours; a later call connects again."""
        self._ready.clear()
        await self.connections.aclose()

    async def _lend(self, operation: str, deadline: float, work: Callable[[Link], Awaitable[T]]) -> T:
        """Lend a connection to work: once more after an error that is nobody's fault, and for which nothing was stored."""
        for tries in count(1):
            try:
                async with self.connections.use(deadline) as connection:
                    try:
                        return await work(connection)
                    except asyncpg.InsufficientPrivilegeError as error:
                        raise SchemaError(await missing_right(connection, self.rules.schema, error)) from error
            except _RACES as error:
                if tries == MOST_TRIES or time.monotonic() >= deadline:
                    self._fail(operation, error)
                await asyncio.sleep(random.uniform(0, 0.002 * tries))  # noqa: S311 - to part those who met
            except _UNPREPARED as error:
                if tries > 2 or isinstance(self.connections, BorrowedConnections):  # noqa: PLR2004 - the second prepares nothing
                    self._fail(operation, error)
            except _CUT as error:  # it died while nobody used it; what reads, or is repeated with the same token, is sent once more
                if tries > 1 or operation in _WRITES or isinstance(error, TimeoutError):
                    self._fail(operation, error)
            except (NotConnectedError, SchemaError, *ERRORS) as error:
                self._fail(operation, error)
        raise AssertionError

    def _fail(self, operation: str, error: BaseException) -> NoReturn:
        """Raise what the caller of a verb is told."""
        cause = error.__cause__ if isinstance(error, NotConnectedError | SchemaError) else error
        if isinstance(error, _NO_TABLES):
            self._ready.clear()
            sentence = missing_tables(self.rules.schema)
        else:
            sentence = _sentence(error)
        unknown = operation in _WRITES and isinstance(error, _CUT)
        raise StoreUnavailable(self._store, operation, sentence, unknown=unknown) from cause

    async def _get_ready(self, operation: str, deadline: float) -> Batches:
        """Before the first statement in an event loop: the tables, and what the server says of itself."""
        loop = asyncio.get_running_loop()
        async with self._getting_ready.setdefault(loop, asyncio.Lock()):
            if loop in self._ready:
                return self._ready[loop]
            until = time.monotonic() + MIGRATING if self.rules.migrate == "auto" else deadline
            await self._lend(operation, deadline, lambda connection: self._look(connection, until))
            return self._ready.setdefault(loop, Batches(self._send, self._overdue))

    async def _look(self, connection: Link, deadline: float) -> None:
        row = (await connection.fetch(_SETTINGS, timeout=_left(deadline)))[0]
        if row["standby"] or row["read_only"] == "on":
            raise SchemaError(_STANDBY)
        danger = _danger(row)
        if danger and self.rules.unsafe == "refuse":
            raise ConfigurationError(_as_sentence(danger))
        if self.rules.migrate == "auto":
            await migrate(connection, self.rules.schema, timeout=_left(deadline))
        if self.rules.migrate == "check":
            await check_schema(connection, self.rules.schema, timeout=_left(deadline))
        if danger and self.rules.unsafe == "warn" and not self._warned:
            self._warned = True
            warnings.warn(_as_sentence(danger), UnsafePostgresWarning, stacklevel=2)


_STANDBY = "this server is a standby, or read-only; name the primary in CONVMEM_STORE, or all hosts: postgresql://a,b/database"
_POOLER = (
    "a pooler hands each transaction to another server connection, where no prepared statement is; "
    "make the pool with statement_cache_size=0, or add it to the URL"
)

_SENTENCES: dict[tuple[type[BaseException], ...], str] = {
    (asyncpg.InvalidAuthorizationSpecificationError,): "the server refused the user or the password in CONVMEM_STORE",
    (asyncpg.InvalidCatalogNameError,): (
        "the database in CONVMEM_STORE does not exist on the server; make it with CREATE DATABASE, or name another one"
    ),
    (asyncpg.TargetServerAttributeNotMatched, asyncpg.ReadOnlySQLTransactionError): _STANDBY,
    _POOLED: _POOLER,
    (TimeoutError,): "it did not answer in time",
}


def durability(row: Any) -> str:
    """Return what an acknowledged append survives, from a server's settings."""
    if row["fsync"] == "off":
        return "a crash of this process; a crash of the server's host may lose or destroy everything (fsync=off)"
    commit = row["synchronous_commit"]
    if commit == "off":
        return "a crash of this process; the last turns may be lost when the server crashes (synchronous_commit=off)"
    if row["standbys"] and commit != "local":
        return f"a crash of the server and a failover to a synchronous standby (synchronous_commit={commit}, {row['standbys']})"
    return f"a crash of the server; a failover may lose the last turns, for no standby is synchronous (synchronous_commit={commit})"


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


def _as_sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}."


def _sentence(error: BaseException) -> str:
    cause = error.__cause__ if isinstance(error, NotConnectedError) else error
    for errors, sentence in _SENTENCES.items():
        if isinstance(cause, errors):
            return sentence
    words = " ".join(str(cause or error).split()) or type(cause).__name__
    return words if cause is error or cause is None else f"no connection: {words}"


def _left(deadline: float) -> float:
    return max(deadline - time.monotonic(), 0.001)
