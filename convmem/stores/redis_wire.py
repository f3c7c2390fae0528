"""How a script reaches a Redis server and its reply comes back: one connection carries the calls of all tasks.

redis-py opens the connections (URL, TLS, AUTH, Sentinel); here everything that waits in one step of the event loop is written
at once, and replies are handed out in order. Nothing here knows what the scripts do.
"""

from __future__ import annotations

import asyncio
import random
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import hiredis
from redis.asyncio.connection import AbstractConnection
from redis.crc import key_slot
from redis.exceptions import (
    AskError,
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    MovedError,
    NoScriptError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)

from convmem.stores.redis_layout import Script

Address = tuple[str, int]
Part = bytes | str | int

_MOST_WAITING = 10_000
_PAUSES = (0.02, 1.0)


def pack(*command: Part) -> bytes:
    """Return a command as it goes over the wire."""
    packed: bytes = hiredis.pack_command(command)  # type: ignore[arg-type]  # its stub knows tuples of one part only
    return packed


_ASKING = pack("ASKING")


class Lost(Exception):
    """There is no reply.

    Attributes:
        sent: Whether the server may have got the command all the same.
    """

    def __init__(self, reason: str, *, sent: bool) -> None:
        """Say why."""
        self.sent = sent
        super().__init__(reason)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long calls wait, in seconds.

    Attributes:
        connect: For a connection, all attempts together.
        reply: For the reply, once the call is sent.
    """

    connect: float = 2.0
    reply: float = 5.0


@dataclass(frozen=True, slots=True)
class Acks:
    """How many replicas have to confirm a write, and for how many milliseconds they are waited for."""

    replicas: int
    timeout: int


@dataclass(slots=True, eq=False)
class _Call:
    """A command on its way; its future gets the reply, and how many replicas have confirmed it."""

    packed: bytes
    replies: int
    acks: Acks | None
    future: asyncio.Future[tuple[Any, int]]
    timer: asyncio.Timeout
    link: _Link | None = None
    reply: Any = None

    @property
    def sent(self) -> bool:
        return self.link is not None


class _Link:
    """A connection and the calls whose replies it owes. They end with it: no reply is ever taken for one to a call on another.

    Attributes:
        given_up: Done when its replies are not waited for any more.
        retired: Whether it takes no more calls: it ends after the reply to the last of them.
    """

    __slots__ = ("connection", "flying", "given_up", "retired")

    def __init__(self, connection: AbstractConnection) -> None:
        self.connection = connection
        self.flying: deque[_Call | list[_Call]] = deque()
        self.given_up: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.retired = False

    def give_up(self) -> None:
        self.retired = True
        if not self.given_up.done():
            self.given_up.set_result(None)


class Lane:
    """One connection, shared by the tasks of one event loop; it is made when it is needed, and made anew when it broke.

    Args:
        make: Returns a connection that is not connected yet.
        patience: How long calls wait.
    """

    def __init__(self, make: Callable[[], Awaitable[AbstractConnection]], patience: Patience) -> None:
        """Connect to nothing yet."""
        self._make = make
        self._patience = patience
        self._queue: deque[_Call] = deque()
        self._link: _Link | None = None
        self._wanted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._not_before = 0.0
        self._pause = _PAUSES[0]

    async def call(self, packed: bytes, *, replies: int = 1, acks: Acks | None = None) -> tuple[Any, int]:
        """Send a packed command and return its last reply, and how many replicas confirmed it when `acks` asks.

        Raises:
            Lost: No reply; the connection failed, or the patience was over.
            ResponseError: The server answered with an error.
        """
        if len(self._queue) + (len(self._link.flying) if self._link else 0) >= _MOST_WAITING:
            reason = f"{_MOST_WAITING} calls wait for it already"
            raise Lost(reason, sent=False)
        loop = asyncio.get_running_loop()
        timer = asyncio.timeout(self._patience.reply if self._link else self._patience.connect)
        call = _Call(packed, replies, acks, loop.create_future(), timer)
        try:
            async with timer:
                self._queue.append(call)
                self._wanted.set()
                if self._task is None or self._task.done():
                    self._task = loop.create_task(self._serve(), name="convmem-redis")
                reply, confirmed = await call.future
        except TimeoutError:
            if call.link is None:
                reason = f"no connection within {self._patience.connect:g} s"
                raise Lost(reason, sent=False) from None
            call.link.give_up()  # it may be dead without a word: the next call gets a new connection
            reason = f"no reply within {self._patience.reply:g} s"
            raise Lost(reason, sent=True) from None
        if isinstance(reply, ResponseError):
            raise reply
        return reply, confirmed

    async def aclose(self) -> None:
        """End the connection; calls on their way are lost."""
        task, self._task = self._task, None
        if task is None or task.done():
            return
        loop = task.get_loop()
        if loop.is_closed():
            return
        if loop is not asyncio.get_running_loop():
            loop.call_soon_threadsafe(task.cancel)
            return
        task.cancel()
        await asyncio.wait([task])

    async def _serve(self) -> None:
        """Connect and carry calls, for as long as there are any or the connection stays."""
        error: BaseException = asyncio.CancelledError()
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None
        try:
            while self._queue:
                if self._not_before > loop.time():
                    await asyncio.sleep(self._not_before - loop.time())
                connection: AbstractConnection | None = None
                try:
                    async with asyncio.timeout(self._patience.connect):
                        connection = await self._make()
                        await connection.connect()  # type: ignore[no-untyped-call]
                except (RedisError, OSError) as failure:
                    self._not_before = loop.time() + self._pause * random.uniform(0.5, 1)  # noqa: S311 - so that workers do not come at once
                    self._pause = min(2 * self._pause, _PAUSES[1])
                    error = failure
                    return
                else:
                    if task.cancelling():
                        return  # the driver loses a cancellation now and then while it connects, and nobody would end this connection
                    self._pause, self._not_before = _PAUSES[0], loop.time() + _PAUSES[0]
                    connection.socket_timeout = None  # the lane reads all the time; each call has its own patience
                    await self._carry(_Link(connection))
                finally:
                    if connection is not None:
                        with suppress(RedisError, OSError):
                            await connection.disconnect(nowait=True)
        except BaseException as unforeseen:
            error = unforeseen
            raise
        finally:
            self._fail(self._queue, error)

    async def _carry(self, link: _Link) -> None:
        """Write and read until either fails."""
        self._link = link
        self._wanted.set()
        tasks = [asyncio.ensure_future(self._write(link)), asyncio.ensure_future(self._read(link))]
        error: BaseException = asyncio.CancelledError()
        try:
            done, _ = await asyncio.wait([*tasks, link.given_up], return_when=asyncio.FIRST_COMPLETED)
            error = next(filter(None, (each.exception() for each in done)), error)
        finally:
            self._link = None
            for task in tasks:
                task.cancel()
            self._fail(link.flying, error)
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _write(self, link: _Link) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            if link.retired:
                continue
            batch = [call for call in self._queue if not call.future.done()]
            self._queue.clear()
            if not batch:
                continue
            confirmed = [call for call in batch if call.acks]
            for call in batch:
                call.link = link
                call.timer.reschedule(loop.time() + self._patience.reply)
            link.flying.extend(batch)
            parts = [call.packed for call in batch]
            if confirmed:
                wanted = [call.acks for call in confirmed if call.acks]
                parts.append(pack("WAIT", max(a.replicas for a in wanted), max(a.timeout for a in wanted)))
                link.flying.append(confirmed)
            await link.connection.send_packed_command(b"".join(parts), check_health=False)

    async def _read(self, link: _Link) -> None:
        flying = link.flying
        while flying or not link.retired:
            try:
                reply = await link.connection.read_response(disable_decoding=True)
            except ResponseError as error:
                reply = error
            if not flying:
                msg = "the server sent a reply that nobody asked for"
                raise ConnectionError(msg)
            first = flying[0]
            if isinstance(first, list):
                flying.popleft()
                for call in first:
                    _settle(call, reply if isinstance(reply, int) else 0)
                continue
            first.replies -= 1
            if first.replies:
                continue
            flying.popleft()
            first.reply = reply
            if isinstance(reply, ReadOnlyError):  # a primary that was demoted: the next connection may lead to the new one
                link.retired = True
            if first.acks is None or isinstance(reply, ResponseError):
                _settle(first, 0)

    @staticmethod
    def _fail(calls: deque[Any], error: BaseException) -> None:
        while calls:
            item = calls.popleft()
            for call in item if isinstance(item, list) else [item]:
                if not call.future.done():
                    call.future.set_exception(error if _is_refusal(error) else Lost(_reason(error), sent=call.sent))


def _settle(call: _Call, confirmed: int) -> None:
    if not call.future.done():
        call.future.set_result((call.reply, confirmed))


def _is_refusal(error: BaseException) -> bool:
    """Return whether the server does not want us, which trying again does not change."""
    return isinstance(error, AuthenticationError) or (isinstance(error, ResponseError) and not isinstance(error, BusyLoadingError))


def _reason(error: BaseException) -> str:
    return "the connection was closed" if isinstance(error, asyncio.CancelledError) else str(error) or type(error).__name__


_Lanes = dict[asyncio.AbstractEventLoop, dict[tuple[Address | None, bool], Lane]]


class Wire(ABC):
    """The way to one server, or to the nodes of a cluster.

    Attributes:
        is_cluster: Whether keys without a common hash tag may be on different nodes.
        location: Where it leads, readable for an operator, without secrets.
    """

    is_cluster = False

    def __init__(self, patience: Patience, location: str) -> None:
        """Connect to nothing yet."""
        self._patience = patience
        self.location = location
        self._lanes: _Lanes = {}
        self._lock = threading.Lock()

    @abstractmethod
    async def send(self, key: bytes | None, packed: bytes, acks: Acks | None = None, *, again: bool = True) -> tuple[Any, int]:
        """Send a packed command to the node that has a key, None for any; see `Lane.call`.

        Args:
            key: One of its keys.
            packed: The command.
            acks: Wait for replicas.
            again: Whether it may be sent again when its reply was lost.
        """

    @abstractmethod
    async def primaries(self) -> Sequence[Address | None]:
        """Return the nodes that hold keys, in an order that stays the same."""

    @abstractmethod
    async def ask(self, node: Address | None, *command: Part) -> Any:
        """Send a command to a node; see `Lane.call`."""

    async def run(
        self, script: Script, keys: Sequence[bytes], args: Sequence[Part], acks: Acks | None = None, *, again: bool = True
    ) -> tuple[Any, int]:
        """Run a script where its first key is: by its digest, or whole where the server does not know it. See `send`."""
        try:
            return await self.send(keys[0], pack(b"EVALSHA", script.digest, len(keys), *keys, *args), acks, again=again)
        except NoScriptError:
            return await self.send(keys[0], pack(b"EVAL", script.source, len(keys), *keys, *args), acks, again=again)

    async def aclose(self) -> None:
        """End the connections of every event loop."""
        lanes, self._lanes = self._lanes, {}
        for each in lanes.values():
            for lane in each.values():
                await lane.aclose()

    def _lane(self, address: Address | None, *, durable: bool) -> Lane:
        """Return this event loop's lane to a node; writes that replicas confirm have one of their own, for it is held up by them."""
        loop = asyncio.get_running_loop()
        lanes = self._lanes.get(loop)
        if lanes is None:
            with self._lock:  # event loops may run in several threads
                lanes = {}
                self._lanes = {**{other: theirs for other, theirs in self._lanes.items() if not other.is_closed()}, loop: lanes}
        lane = lanes.get((address, durable))
        if lane is None:
            lane = lanes[address, durable] = Lane(lambda: self._make(address), self._patience)
        return lane

    @abstractmethod
    def _make(self, address: Address | None) -> Awaitable[AbstractConnection]:
        """Return a new connection, not connected yet."""


class _Tries:
    """Tries until the patience for connecting is over: for what was not sent, and for what may be repeated without harm."""

    def __init__(self, patience: Patience, *, again: bool) -> None:
        """Begin."""
        self._deadline = asyncio.get_running_loop().time() + patience.connect
        self._pause = _PAUSES[0]
        self._again = again

    async def again(self, error: Exception) -> None:
        """Wait a moment; raise the error instead when another try might do it twice, or when time is up."""
        if (isinstance(error, Lost) and error.sent and not self._again) or asyncio.get_running_loop().time() + self._pause > self._deadline:
            raise error
        await asyncio.sleep(self._pause * random.uniform(0.5, 1))  # noqa: S311 - so that workers do not come at once
        self._pause = min(2 * self._pause, _PAUSES[1] / 2)


class SingleWire(Wire):
    """The way to one server, or to the one that Sentinels name.

    Args:
        make: Returns a connection to it, not connected yet.
        patience: How long calls wait.
        location: Where that is, readable for an operator, without secrets.
    """

    def __init__(self, make: Callable[[], Awaitable[AbstractConnection]], patience: Patience, location: str) -> None:
        """Connect to nothing yet."""
        super().__init__(patience, location)
        self._connection = make

    def _make(self, address: Address | None) -> Awaitable[AbstractConnection]:  # noqa: ARG002 - there is one
        return self._connection()

    async def send(self, key: bytes | None, packed: bytes, acks: Acks | None = None, *, again: bool = True) -> tuple[Any, int]:  # noqa: ARG002 - one server
        """See `Wire.send`."""
        tries = _Tries(self._patience, again=again)
        while True:
            lane = self._lane(None, durable=acks is not None)
            try:
                return await lane.call(packed, acks=acks)
            except (Lost, ReadOnlyError) as error:
                await tries.again(error)

    async def primaries(self) -> Sequence[Address | None]:
        """See `Wire.primaries`."""
        return (None,)

    async def ask(self, node: Address | None, *command: Part) -> Any:  # noqa: ARG002 - there is one
        """See `Wire.ask`."""
        return (await self.send(None, pack(*command)))[0]


class ClusterWire(Wire):
    """The way to the nodes of a cluster; where each slot is is learnt from them, and learnt again when they say it moved.

    Args:
        make: Returns a connection to an address, not connected yet.
        seeds: Where to ask first.
        patience: How long calls wait.
        location: Where they are, readable for an operator, without secrets.
    """

    is_cluster = True

    def __init__(
        self, make: Callable[[Address], Awaitable[AbstractConnection]], seeds: Sequence[Address], patience: Patience, location: str
    ) -> None:
        """Connect to nothing yet."""
        super().__init__(patience, location)
        self._connection = make
        self._seeds = tuple(seeds)
        self._ranges: tuple[tuple[int, int, Address], ...] = ()
        self._moved: dict[int, Address] = {}

    def _make(self, address: Address | None) -> Awaitable[AbstractConnection]:
        assert address is not None
        return self._connection(address)

    async def send(self, key: bytes | None, packed: bytes, acks: Acks | None = None, *, again: bool = True) -> tuple[Any, int]:
        """See `Wire.send`."""
        slot = 0 if key is None else key_slot(key)
        tries = _Tries(self._patience, again=again)
        while True:
            try:
                return await self._at(slot, packed, acks)
            except (Lost, TryAgainError, ClusterDownError, ReadOnlyError, AskError) as error:  # a MOVED is an AskError too
                await tries.again(error)
                self._ranges = ()

    async def _at(self, slot: int, packed: bytes, acks: Acks | None) -> tuple[Any, int]:
        at = await self._address(slot)
        lane = self._lane(at, durable=acks is not None)
        try:
            return await lane.call(packed, acks=acks)
        except MovedError as moved:
            self._ranges = ()
            address = self._moved[slot] = (str(moved.host or at[0]), int(moved.port))  # no host: this one's (Redis 7)
            return await self._lane(address, durable=acks is not None).call(packed, acks=acks)
        except AskError as asked:
            address = (str(asked.host or at[0]), int(asked.port))
            return await self._lane(address, durable=acks is not None).call(_ASKING + packed, replies=2, acks=acks)
        except Lost:
            self._ranges = ()
            raise

    async def _address(self, slot: int) -> Address:
        for first, last, address in await self._learnt():
            if first <= slot <= last:
                return self._moved.get(slot, address)
        reason = f"the cluster has no node for slot {slot}"
        raise Lost(reason, sent=False)

    async def _learnt(self) -> tuple[tuple[int, int, Address], ...]:
        if self._ranges:
            return self._ranges
        error: Exception = Lost("no address is known", sent=False)
        for address in dict.fromkeys([*self._known(), *self._seeds]):
            try:
                slots, _ = await self._lane(address, durable=False).call(pack("CLUSTER", "SLOTS"))
            except Lost as lost:
                error = Lost(str(lost), sent=False)
                continue
            except ResponseError as refused:
                error = refused
                continue
            self._moved.clear()
            self._ranges = tuple(
                (first, last, ((primary[0] or address[0].encode()).decode(), primary[1])) for first, last, primary, *_ in slots
            )
            return self._ranges
        raise error

    def _known(self) -> list[Address]:
        lanes = self._lanes.get(asyncio.get_running_loop(), {})
        return [address for address, _ in lanes if address is not None]

    async def primaries(self) -> Sequence[Address | None]:
        """See `Wire.primaries`."""
        return sorted({address for _, _, address in await self._learnt()})

    async def ask(self, node: Address | None, *command: Part) -> Any:
        """See `Wire.ask`."""
        packed = pack(*command)
        assert node is not None
        try:
            return (await self._lane(node, durable=False).call(packed))[0]
        except Lost:
            self._ranges = ()  # it may have left the cluster
            raise
