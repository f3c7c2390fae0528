"""How a script reaches a Redis server and its reply comes back: one connection carries the calls of all tasks.

A protocol over hiredis: everything that waits in one step of the event loop is written at once, and replies are handed out in order.
Who opens its connections is another's: `redis_address.py` to the servers of a URL, `redis_driver.py` as a client that was passed in
would. Nothing here knows what the scripts do.
"""

from __future__ import annotations

import asyncio
import random
import threading
from abc import ABC, abstractmethod
from binascii import crc_hqx
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, cast

import hiredis

Address = tuple[str, int]
Part = bytes | str | int

_MOST_WAITING = 10_000
_PAUSES = (0.02, 1.0)
_NOTHING = object()
_PASSING = frozenset(("LOADING", "READONLY"))
"""What a server says that will serve soon, or has a successor."""
_MOVING = _PASSING | {"ASK", "CLUSTERDOWN", "MOVED", "TRYAGAIN"}
_SLOTS = 16384


def pack(*command: Part) -> bytes:
    """Return a command as it goes over the wire."""
    packed: bytes = hiredis.pack_command(command)  # type: ignore[arg-type]  # its stub knows tuples of one part only
    return packed


_ASKING = pack("ASKING")


class Lost(Exception):
    """There is no reply.

    Attributes:
        sent: Whether the server may have got the command all the same.
        final: Whether the connection was closed on purpose: nobody opens another one for what was on its way.
    """

    def __init__(self, reason: str, *, sent: bool, final: bool = False) -> None:
        """Say why."""
        self.sent, self.final = sent, final
        super().__init__(reason)


class Refused(Exception):
    """The server answers with an error.

    Attributes:
        code: Its first word, which says what kind of error it is.
    """

    def __init__(self, text: str) -> None:
        """Take what the server says; before Redis 7 a script was told "ERR Error running script (...): -READONLY ..."."""
        told = text.rpartition(": -")[2] if text.startswith("ERR Error running script ") else text
        self.code = told.partition(" ")[0]
        super().__init__(text)

    @property
    def is_for_now(self) -> bool:
        """Whether the server would not say so a while later: it is still reading its file, or has too many connections."""
        return self.code == "LOADING" or str(self).startswith("ERR max number of clients")

    @property
    def is_of_the_sign_in(self) -> bool:
        """Whether it does not know who this is, or knows no passwords at all."""
        return self.code in ("NOAUTH", "WRONGPASS") or str(self).startswith("ERR AUTH ")


@dataclass(frozen=True, slots=True)
class Patience:
    """How long calls wait, in seconds.

    Attributes:
        connect: For a connection, all attempts together.
        reply: For the reply, once the call is sent.
    """

    connect: float = 2.0
    reply: float = 5.0

    @property
    def least(self) -> float:
        """The shorter of them: so often it is looked at what waits."""
        return min(self.connect, self.reply)


@dataclass(frozen=True, slots=True)
class Acks:
    """How many replicas have to confirm a write, and for how many milliseconds they are waited for."""

    replicas: int
    timeout: int


class _Call:
    """Commands on their way together; the future gets the list of their replies, and how many replicas confirmed them when `acks` asks."""

    __slots__ = ("acks", "commands", "deadline", "future", "replies", "sent")

    def __init__(self, commands: tuple[bytes, ...], acks: Acks | None, future: asyncio.Future[list[Any]], deadline: float) -> None:
        self.commands, self.acks, self.future, self.deadline = commands, acks, future, deadline
        self.replies: list[Any] = []
        self.sent = False

    def take(self, reply: Any) -> bool:
        """Take the next reply; return whether it was the last that comes to this call alone."""
        replies = self.replies
        replies.append(reply)
        if len(replies) < len(self.commands):
            return False
        if self.acks is None or isinstance(reply, Refused):
            self.settle()
        return True

    def settle(self) -> None:
        if self.future.done():
            return None
        for reply in self.replies:
            if isinstance(reply, Refused):
                return self.future.set_exception(reply)
        self.future.set_result(self.replies)
        return None

    def fail(self, error: BaseException) -> None:
        if not self.future.done():
            closed = isinstance(error, asyncio.CancelledError)
            self.future.set_exception(error if _is_refusal(error) else Lost(_reason(error), sent=self.sent, final=closed))


class _Confirmation:
    """The WAIT behind a batch."""

    __slots__ = ("calls", "deadline")

    def __init__(self, calls: list[_Call], deadline: float) -> None:
        self.calls, self.deadline = calls, deadline

    @property
    def command(self) -> bytes:
        wanted = [call.acks for call in self.calls if call.acks]
        return pack("WAIT", max(each.replicas for each in wanted), max(each.timeout for each in wanted))

    def take(self, reply: Any) -> bool:
        for call in self.calls:
            call.replies.append(reply if isinstance(reply, int) else 0)
            call.settle()
        return True

    def fail(self, error: BaseException) -> None:
        for call in self.calls:
            call.fail(error)


class Link(asyncio.Protocol):
    """A connection and the calls whose replies it owes. They end with it: no reply is ever taken for one to a call on another.

    Attributes:
        flying: The calls whose replies it owes, in their order.
        ended: Why, when it is over.
        retired: Whether it takes no more calls: it ends after the reply to the last of them.
    """

    __slots__ = ("_reader", "_transport", "ended", "flying", "retired")

    def __init__(self) -> None:
        """Be there for a connection; `connection_made` brings it."""
        self._reader = hiredis.Reader(replyError=self._error, notEnoughData=_NOTHING)
        self.flying: deque[_Call | _Confirmation] = deque()
        self.ended: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
        self.retired = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, before anything was said or after all that was said was read."""
        self._transport = cast("asyncio.WriteTransport", transport)

    def ask(self, *commands: bytes) -> asyncio.Future[list[Any]]:
        """Send packed commands before there are calls, to sign in; nobody looks how long that takes. See `Lane.call`."""
        call = _Call(commands, None, asyncio.get_running_loop().create_future(), inf)
        if self.ended.done():
            call.fail(self.ended.result())
        else:
            self.send((call,), inf)
        return call.future

    def send(self, calls: Iterable[_Call], deadline: float) -> None:
        """Write calls at once, but those that nobody waits for any more."""
        parts: list[bytes] = []
        confirmed: list[_Call] = []
        for call in calls:
            if not call.future.done():
                call.sent, call.deadline = True, deadline
                parts += call.commands
                self.flying.append(call)
                if call.acks is not None:
                    confirmed.append(call)
        if confirmed:
            confirmation = _Confirmation(confirmed, deadline)
            self.flying.append(confirmation)
            parts.append(confirmation.command)
        if parts:
            self._transport.write(b"".join(parts))

    def data_received(self, data: bytes) -> None:
        """Hand out replies in the order of the calls."""
        flying, next_reply = self.flying, self._reader.gets
        try:
            self._reader.feed(data)
            while (reply := next_reply()) is not _NOTHING:
                if reply.__class__ is hiredis.PushNotification:
                    continue
                if not flying:
                    said = str(reply) if isinstance(reply, Refused) else "the server sent a reply that nobody asked for"
                    return self.end(ConnectionError(said))
                if flying[0].take(reply):
                    flying.popleft()
        except hiredis.ProtocolError as error:
            return self.end(error)
        if self.retired and not flying:
            self.end(ConnectionError("the server is not the primary any more"))
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self.end(exc or ConnectionError("the server closed the connection"))

    def end(self, error: BaseException) -> None:
        """Close it; what was on its way is lost. Once."""
        if self.ended.done():
            return
        self.retired = True  # whoever carries it learns of its end a step later, and calls that come until then are for the next one
        self.ended.set_result(error)
        self._transport.abort()
        while self.flying:
            self.flying.popleft().fail(error)

    def _error(self, text: str) -> Refused:
        error = Refused(text)
        if error.code == "READONLY":  # a primary that was demoted: the next connection may lead to the new one
            self.retired = True
        return error


class Lane:
    """One connection, shared by the tasks of one event loop; it is made when it is needed, and made anew when it broke.

    Args:
        make: Returns a new connection, signed in and silent.
        patience: How long calls wait.
        loop: The event loop of these tasks.
    """

    def __init__(self, make: Callable[[], Awaitable[Link]], patience: Patience, loop: asyncio.AbstractEventLoop) -> None:
        """Connect to nothing yet."""
        self._make = make
        self._loop = loop
        self._patience = patience
        self._queue: deque[_Call] = deque()
        self._link: Link | None = None
        self._task: asyncio.Task[None] | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._not_before = 0.0
        self._pause = _PAUSES[0]

    def call(self, commands: tuple[bytes, ...], acks: Acks | None = None) -> asyncio.Future[list[Any]]:
        """Send packed commands; the future gets their replies, and at the end how many replicas confirmed them when `acks` asks.

        Raises:
            Lost: No reply; the connection failed, or the patience was over.
            Refused: The server answered one of them with an error, the first such.
        """
        queue, link, loop = self._queue, self._link, self._loop
        future: asyncio.Future[list[Any]] = loop.create_future()
        if len(queue) + (len(link.flying) if link else 0) >= _MOST_WAITING:
            future.set_exception(Lost(f"{_MOST_WAITING} calls wait for it already", sent=False))
            return future
        queue.append(_Call(commands, acks, future, loop.time() + self._patience.connect))
        if self._watch is None:
            self._watch = loop.call_later(self._patience.least, self._look)
        if link is not None:
            if not link.flying:
                self._send()
            elif len(queue) == 1:  # all that the tasks of this step still ask for goes with it
                loop.call_soon(self._send)
        elif self._task is None or self._task.done():
            self._task = loop.create_task(self._serve(), name="convmem-redis")
        return future

    def _send(self) -> None:
        """Send what waits."""
        link, queue = self._link, self._queue
        if link is not None and queue and not link.retired:
            link.send(queue, self._loop.time() + self._patience.reply)
            queue.clear()

    def _look(self) -> None:
        """Give up what has waited too long, and look again as long as anything waits."""
        loop, queue, link = self._loop, self._queue, self._link
        now = loop.time()
        while queue and queue[0].deadline <= now:
            queue.popleft().fail(ConnectionError(f"no connection within {self._patience.connect:g} s"))
        if link is not None and link.flying and link.flying[0].deadline <= now:
            link.end(
                ConnectionError(f"no reply within {self._patience.reply:g} s")
            )  # it may be dead without a word: the next call gets a new one
        first = [calls[0].deadline for calls in (queue, link.flying if link else ()) if calls]
        self._watch = loop.call_at(min(*first, now + self._patience.least), self._look) if first else None

    async def aclose(self) -> None:
        """End the connection; calls on their way are lost."""
        task, self._task = self._task, None
        if task is None or task.done():
            return
        loop = self._loop
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
        loop = self._loop
        task = asyncio.current_task()
        assert task is not None
        try:
            while self._queue:
                if self._not_before > loop.time():
                    await asyncio.sleep(self._not_before - loop.time())
                try:
                    async with asyncio.timeout(self._patience.connect):
                        link = await self._make()
                except (Refused, Lost, OSError, UnicodeError) as failure:  # no host can have the last one's name
                    self._not_before = loop.time() + self._pause * random.uniform(0.5, 1)  # noqa: S311 - so that workers do not come at once
                    self._pause = min(2 * self._pause, _PAUSES[1])
                    error = failure
                    return
                if task.cancelling():  # redis-py loses a cancellation now and then, and nobody would end this connection
                    link.end(error)
                    return
                self._pause, self._not_before = _PAUSES[0], loop.time() + _PAUSES[0]
                await self._carry(link)
        except BaseException as unforeseen:
            error = unforeseen
            raise
        finally:
            while self._queue:
                self._queue.popleft().fail(error)
            if self._watch is not None:
                self._watch.cancel()
                self._watch = None

    async def _carry(self, link: Link) -> None:
        """Carry calls by a connection until it ends."""
        self._link = link
        try:
            self._send()
            await asyncio.wait([link.ended])  # to wait for it and be cancelled would cancel it too
        finally:
            self._link = None
            link.end(asyncio.CancelledError())


def slot_of(key: bytes) -> int:
    """Return the slot of a key of ours, which has one hash tag or none."""
    _, brace, tag = key.partition(b"{")
    return crc_hqx(tag.partition(b"}")[0] if brace else key, 0) % _SLOTS


def _is_refusal(error: BaseException) -> bool:
    """Return whether the server does not want us, which trying again does not change."""
    return isinstance(error, Refused) and not error.is_for_now


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
    async def send(self, key: bytes | None, *commands: bytes, acks: Acks | None = None, again: bool = True) -> list[Any]:
        """Send packed commands to the node that has a key, None for any; see `Lane.call`.

        Args:
            key: One of their keys; the others are where it is.
            commands: Together in one trip.
            acks: Wait for replicas.
            again: Whether it may be sent again when its reply was lost.
        """

    @abstractmethod
    async def primaries(self) -> Sequence[Address | None]:
        """Return the nodes that hold keys, in an order that stays the same."""

    @abstractmethod
    async def ask(self, node: Address | None, *command: Part) -> Any:
        """Send a command to a node; see `Lane.call`."""

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
            lane = lanes[address, durable] = Lane(lambda: self._make(address), self._patience, loop)
        return lane

    @abstractmethod
    def _make(self, address: Address | None) -> Awaitable[Link]:
        """Return a new connection, signed in and silent."""


class _Tries:
    """Tries until the patience for connecting is over: for what was not sent, and for what may be repeated without harm.

    Args:
        deadline: When that is.
        passing: What kinds of error another try may not meet.
        again: Whether a call whose reply was lost may be repeated.
    """

    def __init__(self, deadline: float, passing: frozenset[str], *, again: bool) -> None:
        """Begin."""
        self._deadline = deadline
        self._passing = passing
        self._pause = _PAUSES[0]
        self._again = again

    async def again(self, error: Lost | Refused) -> None:
        """Wait a moment; raise the error instead when another try might do it twice or would not help, or when time is up."""
        over = error.final or (error.sent and not self._again) if isinstance(error, Lost) else error.code not in self._passing
        if over or asyncio.get_running_loop().time() + self._pause > self._deadline:
            raise error
        await asyncio.sleep(self._pause * random.uniform(0.5, 1))  # noqa: S311 - so that workers do not come at once
        self._pause = min(2 * self._pause, _PAUSES[1] / 2)


class SingleWire(Wire):
    """The way to one server, or to the one that Sentinels name.

    Args:
        make: Returns a new connection to it, signed in and silent.
        patience: How long calls wait.
        location: Where that is, readable for an operator, without secrets.
    """

    def __init__(self, make: Callable[[], Awaitable[Link]], patience: Patience, location: str) -> None:
        """Connect to nothing yet."""
        super().__init__(patience, location)
        self._connection = make

    def _make(self, address: Address | None) -> Awaitable[Link]:  # noqa: ARG002 - there is one
        return self._connection()

    async def send(self, key: bytes | None, *commands: bytes, acks: Acks | None = None, again: bool = True) -> list[Any]:  # noqa: ARG002 - one server
        """See `Wire.send`."""
        began, tries = asyncio.get_running_loop().time(), None
        while True:
            try:
                return await self._lane(None, durable=acks is not None).call(commands, acks)
            except (Lost, Refused) as error:
                tries = tries or _Tries(began + self._patience.connect, _PASSING, again=again)
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
        make: Returns a new connection to an address, signed in and silent.
        seeds: Where to ask first.
        patience: How long calls wait.
        location: Where they are, readable for an operator, without secrets.
    """

    is_cluster = True

    def __init__(self, make: Callable[[Address], Awaitable[Link]], seeds: Sequence[Address], patience: Patience, location: str) -> None:
        """Connect to nothing yet."""
        super().__init__(patience, location)
        self._connection = make
        self._seeds = tuple(seeds)
        self._ranges: tuple[tuple[int, int, Address], ...] = ()
        self._moved: dict[int, Address] = {}

    def _make(self, address: Address | None) -> Awaitable[Link]:
        assert address is not None
        return self._connection(address)

    async def send(self, key: bytes | None, *commands: bytes, acks: Acks | None = None, again: bool = True) -> list[Any]:
        """See `Wire.send`."""
        slot = 0 if key is None else slot_of(key)
        tries = _Tries(asyncio.get_running_loop().time() + self._patience.connect, _MOVING, again=again)
        while True:
            try:
                return await self._at(slot, commands, acks)
            except (Lost, Refused) as error:
                await tries.again(error)
                self._ranges = ()

    async def _at(self, slot: int, commands: tuple[bytes, ...], acks: Acks | None) -> list[Any]:
        at = await self._address(slot)
        lane = self._lane(at, durable=acks is not None)
        try:
            return await lane.call(commands, acks)
        except Refused as refused:
            if refused.code not in ("ASK", "MOVED"):
                raise
            host, _, port = str(refused).rpartition(" ")[2].rpartition(":")  # "MOVED 3999 127.0.0.1:6381"
            address = (host or at[0], int(port))  # no host: this one's (Redis 7)
            if refused.code == "MOVED":
                self._ranges = ()
                self._moved[slot] = address
                return await self._lane(address, durable=acks is not None).call(commands, acks)
            asking = tuple(each for command in commands for each in (_ASKING, command))
            replies = await self._lane(address, durable=acks is not None).call(asking, acks)
            return [*replies[1 : len(asking) : 2], *replies[len(asking) :]]
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
                (slots,) = await self._lane(address, durable=False).call((pack("CLUSTER", "SLOTS"),))
            except Lost as lost:
                error = Lost(str(lost), sent=False, final=lost.final)
                if lost.final:
                    break
                continue
            except Refused as refused:
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
            return (await self._lane(node, durable=False).call((packed,)))[0]
        except Lost:
            self._ranges = ()  # it may have left the cluster
            raise
