"""Where PostgresStore gets a connection: a pool that was passed in, or connections of its own, held per event loop.

A connection of our own is handed back without a reset query (no statement of ours leaves anything in a session), goes straight to
whoever waits longest, and is dropped after any call that did not end normally. It holds its prepared statements, and runs them
without looking anything up. No background task keeps anything alive.
"""

from __future__ import annotations

import asyncio
import random
import socket
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import count
from typing import Any
from weakref import WeakKeyDictionary

import asyncpg

FIRST_PAUSE = 0.05
LONGEST_PAUSE = 2.0
IDLE_FOR = 300.0
"""Seconds after which a connection that is not needed is closed, down to the number that is kept."""
_PROBE = "SELECT pg_backend_pid()"
_PLANS = "SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off"
"""Every statement finds its rows by an index, whatever is asked for: a plan that is made anew takes longer than what it plans, and one
that was made when a table was empty must not read it from end to end when it is full."""
_KEEPALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}
_HOPELESS = (
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.InsufficientPrivilegeError,
    asyncpg.ClientConfigurationError,
    asyncpg.UndefinedObjectError,
    asyncpg.InvalidParameterValueError,
    UnicodeError,  # no host can have such a name
)
"""What a second attempt to connect would be told as well."""
ERRORS = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError)
"""Whatever asyncpg raises."""
NOT_TO_BE_USED_AGAIN = (
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.InvalidSQLStatementNameError,
    asyncpg.DuplicatePreparedStatementError,
    asyncpg.InvalidCachedStatementError,
    asyncpg.OperatorInterventionError,
    asyncpg.PostgresConnectionError,
)
"""Errors of a server that has changed its part, or a table, or of a pooler in between: every connection to it is given up."""


class NotConnectedError(Exception):
    """There was no connection to be had in time, so nothing was sent; the cause is the driver's error, if there was one."""


class Link:
    """A connection, and the statements that are prepared on it.

    Args:
        driver: asyncpg's.
        prepares: Whether statements can be: not where the connection is handed from one server connection to another.
    """

    __slots__ = ("_names", "_prepared", "driver")

    def __init__(self, driver: asyncpg.Connection, *, prepares: bool = False) -> None:
        """Prepare nothing yet."""
        self.driver = driver
        self._prepared: dict[str, Any] | None = {} if prepares else None
        self._names = count()

    async def fetch(self, query: str, *args: object, timeout: float | None = None) -> list[Any]:
        """Run a statement that comes once, and return its rows."""
        return await self.driver.fetch(query, *args, timeout=timeout)  # type: ignore[no-any-return]

    def run(self, query: str, args: Sequence[object], deadline: float) -> Awaitable[list[Any]]:
        """Run a statement that comes again and again, and return its rows; until a moment of `time.monotonic`.

        asyncpg's own `fetch` looks it up in a cache, and guards and times what nobody asks about: 9 of the 50 us that a call takes
        of this process that does nothing.
        """
        if self._prepared is None:
            return self.fetch(query, *args, timeout=max(deadline - time.monotonic(), 0.001))
        statement = self._prepared.get(query)
        if statement is None:
            return self._prepare_and_run(self._prepared, query, args, deadline)
        protocol, state = self.driver._protocol, statement._state  # noqa: SLF001 - there is no public way that does only this
        timeout = max(deadline - time.monotonic(), 0.001)
        return protocol.bind_execute(state, args, "", 0, False, timeout)  # type: ignore[no-any-return]  # noqa: FBT003

    async def _prepare_and_run(self, prepared: dict[str, Any], query: str, args: Sequence[object], deadline: float) -> list[Any]:
        timeout = max(deadline - time.monotonic(), 0.001)
        prepared[query] = await self.driver.prepare(query, name=f"c{next(self._names)}", timeout=timeout)
        return await self.run(query, args, deadline)


class Connections(ABC):
    """A source of connections.

    Attributes:
        location: Where they lead to, readable for an operator.
        busy: What to say when none came free in time.
    """

    location: str
    busy: str = "all connections of the app's pool were busy"

    @abstractmethod
    def use(self, deadline: float) -> AbstractAsyncContextManager[Link]:
        """Lend a connection until the block ends.

        Raises:
            NotConnectedError: None was to be had before the deadline, a moment of `time.monotonic`.
        """

    @abstractmethod
    async def aclose(self) -> None:
        """Close the connections that are ours."""


class BorrowedConnections(Connections):
    """Those of a pool that somebody else made, and closes."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        """Take nothing out of it yet."""
        self._pool = pool
        self.location = "a pool of the app's"

    @asynccontextmanager
    async def use(self, deadline: float) -> AsyncIterator[Link]:
        """See `Connections.use`."""
        try:
            connection = await self._pool.acquire(timeout=max(deadline - time.monotonic(), 0.001))
        except ERRORS as error:
            raise NotConnectedError from error
        try:
            yield Link(connection)
        except asyncpg.QueryCanceledError:
            raise
        except NOT_TO_BE_USED_AGAIN:
            connection.terminate()
            raise
        finally:
            await self._pool.release(connection)

    async def aclose(self) -> None:
        """Leave the pool open: whoever made it closes it."""


@dataclass(frozen=True, slots=True)
class Pooling:
    """How many connections of our own there are in each event loop.

    Attributes:
        most: At most this many.
        kept: So many stay open when they are idle.
    """

    most: int = 10
    kept: int = 1


class OwnConnections(Connections):
    """Connections that are opened when they are first needed, a set for each event loop.

    Args:
        options: For `asyncpg.connect`. Without a ``statement_cache_size`` it is found out whether a pooler such as pgbouncer
            stands in between, which hands each transaction to another server connection: then no statement is prepared.
        location: Where they lead to, readable for an operator.
        pooling: How many.
    """

    def __init__(self, options: dict[str, Any], *, location: str, pooling: Pooling | None = None) -> None:
        """Open nothing yet."""
        self.location = location
        self._pooling = pooling or Pooling()
        self.busy = f"all {self._pooling.most} connections of this process were busy; raise pool_max in CONVMEM_STORE"
        self._options = {
            "max_cached_statement_lifetime": 0,
            "max_cacheable_statement_size": 0,
            "target_session_attrs": "read-write",
            **options,
        }
        self._direct: bool | None = None if "statement_cache_size" not in self._options else False
        self._of_loops: WeakKeyDictionary[asyncio.AbstractEventLoop, _OfLoop] = WeakKeyDictionary()
        self._lock = threading.Lock()

    def use(self, deadline: float) -> AbstractAsyncContextManager[Link]:
        """See `Connections.use`."""
        return _Loan(self, self._of_loops.get(asyncio.get_running_loop()), deadline)

    async def here(self) -> _OfLoop:
        """Return the connections of the running event loop, of which there is none yet."""
        with self._lock:
            for loop in [each for each in self._of_loops if each.is_closed()]:  # by somebody who did not end its generators
                del self._of_loops[loop]  # its connections refer to it, so that it would stay
            held = self._of_loops.setdefault(asyncio.get_running_loop(), _OfLoop(self._connect, self._pooling, self.busy))
        await held.follow_loop()
        return held

    def prepare_no_more(self) -> None:
        """Connect from now on as behind a pooler."""
        self._direct, self._options["statement_cache_size"] = False, 0

    async def aclose(self) -> None:
        """Close those of this event loop in peace, those of others as well as it can be done from here."""
        with self._lock:
            of_loops = dict(self._of_loops)
            self._of_loops.clear()
        for loop, held in of_loops.items():
            if loop is asyncio.get_running_loop():
                await held.aclose()
            elif not loop.is_closed():
                loop.call_soon_threadsafe(held.end)

    async def _connect(self, seconds: float) -> Link:
        """Connect, and find out the first time whether prepared statements can be used."""
        connection = await asyncpg.connect(timeout=seconds, **self._options)
        try:
            if self._direct is None:
                self._direct = not await _is_pooled(connection, seconds)
                self._options.setdefault("statement_cache_size", 100)
                if not self._direct:
                    self.prepare_no_more()
                    connection.terminate()
                    connection = await asyncpg.connect(timeout=seconds, **self._options)
            if self._direct:
                await connection.execute(_PLANS, timeout=seconds)
        except BaseException:
            connection.terminate()
            raise
        _keep_alive(connection)
        return Link(connection, prepares=self._options["statement_cache_size"] != 0)


class _Loan:
    """A connection of our own, until the block ends."""

    __slots__ = ("_connections", "_deadline", "_held", "_link")

    def __init__(self, connections: OwnConnections, held: _OfLoop | None, deadline: float) -> None:
        self._connections, self._held, self._deadline = connections, held, deadline

    async def __aenter__(self) -> Link:
        held = self._held or await self._connections.here()
        self._held, self._link = held, held.idle() or await held.take(self._deadline)
        return self._link

    async def __aexit__(self, _: object, error: BaseException | None, __: object) -> None:
        assert self._held is not None
        if error is None or isinstance(error, asyncpg.QueryCanceledError):  # the server's own statement_timeout ended one statement
            self._held.give(self._link)
        elif isinstance(error, NOT_TO_BE_USED_AGAIN):
            if isinstance(error, asyncpg.InvalidSQLStatementNameError | asyncpg.DuplicatePreparedStatementError):
                self._connections.prepare_no_more()
            self._held.drop(self._link)
            self._held.drop_idle()
        elif isinstance(error, asyncpg.PostgresError):
            self._held.give(self._link)
        else:
            self._held.drop(self._link)


class _OfLoop:
    """The connections of one event loop."""

    def __init__(self, connect: Callable[[float], Awaitable[Link]], pooling: Pooling, busy: str) -> None:
        self._connect, self._pooling, self._busy = connect, pooling, busy
        self._idle: deque[tuple[Link, float]] = deque()
        self._waiting: deque[asyncio.Future[Link | None]] = deque()
        self._open = 0
        self._ending: set[asyncio.Task[None]] = set()
        self._failing_since = 0.0
        self._failures = 0
        self._not_before = 0.0
        self._error: BaseException | None = None
        self._watch: AsyncGenerator[None] | None = None
        self._closed = False

    async def follow_loop(self) -> None:
        """Arrange that the connections are closed with their event loop: it ends asynchronous generators before it closes."""
        if self._watch is None:
            self._watch = self._until_loop_ends()
            await anext(self._watch)

    async def _until_loop_ends(self) -> AsyncGenerator[None]:
        try:
            yield
        finally:
            await self._close_all()

    def idle(self) -> Link | None:
        """Return one that nobody uses; None when there is none."""
        while self._idle:
            link, _ = self._idle.pop()
            if not link.driver.is_closed():
                return link
            self._open -= 1
        return None

    async def take(self, deadline: float) -> Link:
        while True:
            link = self.idle()
            if link is not None:
                return link
            if self._open < self._pooling.most:
                return await self._opened(deadline)
            link = await self._wait(deadline)
            if link is not None:
                return link

    def give(self, link: Link) -> None:
        if self._closed or (self._waiting and link.driver.is_closed()):  # one that nobody waits for is looked at when it is taken
            self.drop(link)
            return
        if self._waiting and (waiter := self._next_waiter()) is not None:
            waiter.set_result(link)
            return
        now = time.monotonic()
        self._idle.append((link, now))
        oldest, since = self._idle[0]
        if self._open > self._pooling.kept and now - since > IDLE_FOR:
            self._idle.popleft()
            self.drop(oldest)

    def drop(self, link: Link) -> None:
        """Give one up. What it was doing is cancelled on the server, too."""
        self._open -= 1
        self._end(link.driver)
        self._wake()

    def drop_idle(self) -> None:
        while self._idle:
            self.drop(self._idle.pop()[0])

    def end(self) -> None:
        self._closed = True
        self.drop_idle()

    async def aclose(self) -> None:
        if self._watch is not None:
            await self._watch.aclose()

    async def _close_all(self) -> None:
        self.end()
        if self._ending:
            await asyncio.wait(self._ending, timeout=2)

    def _end(self, connection: asyncpg.Connection) -> None:
        if connection.is_closed():
            return
        task = asyncio.get_running_loop().create_task(_end(connection))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    def _wake(self) -> None:
        """Let whoever waits longest look again."""
        waiter = self._next_waiter()
        if waiter is not None:
            waiter.set_result(None)

    def _next_waiter(self) -> asyncio.Future[Link | None] | None:
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                return waiter
        return None

    async def _wait(self, deadline: float) -> Link | None:
        waiter: asyncio.Future[Link | None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        try:
            async with asyncio.timeout(max(deadline - time.monotonic(), 0)):
                return await waiter
        except BaseException as error:
            if waiter.done() and not waiter.cancelled():  # it came at the same moment: somebody else takes it
                link = waiter.result()
                if link is not None:
                    self.give(link)
                else:
                    self._wake()
            if not isinstance(error, TimeoutError):
                raise
            raise NotConnectedError(self._busy) from None

    async def _opened(self, deadline: float) -> Link:
        """Connect, again and again until the deadline; but at once with an error when the server has been away for longer.

        The pauses grow and are random, and one attempt decides for all who wait: a server that comes back is not stormed.
        """
        self._open += 1
        patience = deadline - time.monotonic()
        try:
            while True:
                await self._pause(deadline, patience)
                try:
                    link = await self._connect(max(deadline - time.monotonic(), 0.001))
                except (*ERRORS, UnicodeError) as error:
                    self._failed(error)
                    if isinstance(error, _HOPELESS):
                        raise NotConnectedError from error
                else:
                    self._failures, self._error, self._not_before = 0, None, 0.0
                    return link
        except BaseException:
            self._open -= 1
            self._wake()
            raise

    async def _pause(self, deadline: float, patience: float) -> None:
        now = time.monotonic()
        if now >= self._not_before:
            return
        if self._not_before >= deadline or now - self._failing_since > patience:
            raise NotConnectedError from self._error
        await asyncio.sleep(self._not_before - now)

    def _failed(self, error: BaseException) -> None:
        if not self._failures:
            self._failing_since = time.monotonic()
        self._failures += 1
        if self._error is None or not isinstance(error, TimeoutError):  # one that a deadline cut off says less than the one before it
            self._error = error
        pause = min(FIRST_PAUSE * 2 ** min(self._failures, 10), LONGEST_PAUSE)
        self._not_before = time.monotonic() + random.uniform(pause / 2, pause)  # noqa: S311 - to spread the attempts


async def _end(connection: asyncpg.Connection) -> None:
    """Close in peace within a second: a statement that still runs is cancelled by the driver first."""
    with suppress(*ERRORS):
        await connection.close(timeout=1)
    connection.terminate()


async def _is_pooled(connection: asyncpg.Connection, seconds: float) -> bool:
    """Return whether what we are connected to is not the server itself: a pooler makes up the process id of a connection.

    Asked in two messages with a nameless statement, which a pooler may send to two servers: an error is an answer as well.
    """
    try:
        statement = await connection.prepare(_PROBE, name="", timeout=seconds)
        return bool(await statement.fetchval(timeout=seconds) != connection.get_server_pid())
    except asyncpg.InvalidSQLStatementNameError:
        return True


def _keep_alive(connection: asyncpg.Connection) -> None:
    """Notice a server whose host vanished, which no reset ever tells."""
    link = connection._transport.get_extra_info("socket")  # noqa: SLF001 - asyncpg has no other way to it
    if link is None or link.family not in (socket.AF_INET, socket.AF_INET6):
        return
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        if hasattr(socket, name):
            link.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
