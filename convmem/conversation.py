"""Conversation: what a handler sees of the memory."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from typing import Any, Protocol, TypeVar

from convmem import windows
from convmem.exceptions import (
    ConversationBusy,
    ConversationNotLoaded,
    ConvmemError,
    CorruptEntry,
    InvalidMessage,
    StoreUnavailable,
    TurnClosed,
)
from convmem.keys import SessionKey
from convmem.messages import Message, decode_messages
from convmem.recording import Recording, each
from convmem.stores.base import Log, StoredEntry
from convmem.turns import Ledger, Turn

C = TypeVar("C")
logger = logging.getLogger("convmem.conversation")


class Gate(Protocol):
    """What stands between a handler and its conversation; the middleware's side of it."""

    def touch(self) -> None:
        """Note that the conversation is used; raise what stands in the way of that."""

    def raised(self, error: ConvmemError) -> None:
        """Note an error a handler is given, to answer with it should the handler let it through."""

    @property
    def issue_session_id(self) -> Callable[[str, str], str]:
        """Hands out an id for an owner and a tenant."""

    @property
    def degrades(self) -> bool:
        """Whether the app goes on without memory while the store is down."""

    async def leave(self) -> None:
        """End the request's turn if its client has left: a framework may run background tasks before anything else ends it."""

    async def load(self, owner: str | None, session_id: str | None) -> Turn:
        """Resolve, load, and take the lease where the route takes one."""


class Conversation:
    """One conversation during one request: its window, what this turn appends, and how it is stored.

    Not to be shared by requests; within one, its members may be used from any task and, `append` and the properties, from any
    thread. Every member raises the error that kept the conversation from being loaded: `StoreUnavailable`, `InvalidIdentity`, ….

    Attributes:
        degraded: Whether the store is down and the app runs without memory (``CONVMEM_ON_STORE_ERROR=degrade``): nothing is stored.
        ledger: The worker's side of it. Not for apps.
        loop: The event loop its turn belongs to, for adapters of frameworks that call from threads. Not for apps.
        within: That of the request inside whose handler this one runs, when an app calls itself in process. Not for apps.
    """

    def __init__(self, ledger: Ledger, turn: Turn | None, gate: Gate | None = None, *, degraded: bool = False) -> None:
        """Take a turn that has begun; None when `load` is to begin it. Apps do not call this."""
        self.ledger = ledger
        self._turn = turn
        self._gate = gate
        self.degraded = degraded
        self.within: Conversation | None = None
        self.loop = asyncio.get_running_loop()
        self._failure: ConvmemError | None = None
        self._recordings: list[Recording[Any]] = []
        self._viewed: tuple[Log, windows.View] | None = None
        self._decoded: tuple[Log, tuple[windows.Turn, ...], tuple[Message, ...], tuple[int, ...]] | None = None

    # Who and which

    @property
    def owner(self) -> str:
        """Whose it is: ``user:<identity>``, ``visitor:<id>`` or ``header:<id>``."""
        return self._used.key.owner

    @property
    def session_id(self) -> str:
        """Which of the owner's conversations; ``default`` when the request named none."""
        return self._used.key.session_id

    @property
    def key(self) -> SessionKey:
        """Its address, for `open_conversation` in a job that goes on with it."""
        return self._used.key

    # What was said

    @property
    def messages(self) -> list[Message]:
        """The window of the stored history, then this turn's messages, oldest first: what the model is to see.

        A new list each time. Valid for model APIs; see `convmem.Window`.
        """
        return [*self._view.messages, *self._used.messages]

    @property
    def new_messages(self) -> list[Message]:
        """What this turn appended, in order, stored or not."""
        return list(self._used.messages)

    @property
    def total_turns(self) -> int:
        """How many turns are stored, without those superseded, hidden, cleared or expired."""
        return self._used.head.turns

    @property
    def left_out(self) -> int:
        """How many stored turns are older than the window, or dropped from it."""
        turn = self._used
        return 0 if turn.head.start > turn.log.head.start else max(0, turn.log.head.turns - self._view.turns)

    @property
    def truncated(self) -> bool:
        """Whether `messages` lacks anything that is stored."""
        return self.left_out > 0 or self._view.cut

    @property
    def corrupt(self) -> tuple[int, ...]:
        """Positions of loaded entries that cannot be decoded; their messages are missing, the rest is there."""
        return self._history[3]

    def verify(self) -> None:
        """Read strictly.

        Raises:
            CorruptEntry: A loaded entry cannot be decoded.
        """
        for stored in self._used.log.entries:
            try:
                decode_messages(stored.entry.body)
            except ValueError as error:
                raise CorruptEntry(stored.n, str(error)) from error

    # How it stands

    @property
    def revision(self) -> str:
        """Where the log ends, as an opaque string: equal when nothing was written between."""
        return self._used.head.revision

    @property
    def is_new(self) -> bool:
        """Whether there was no history when this request began."""
        log = self._used.log
        return not log.head.epoch or log.expired

    @property
    def interrupted(self) -> bool:
        """Whether the turn before this one has no end: its client left, or its worker died."""
        turns = self._turns
        return bool(turns) and turns[-1].state == "interrupted"

    @property
    def busy(self) -> bool:
        """Whether another turn was running when this request loaded."""
        turn = self._used
        return bool(turn.log.holder.token) and not turn.holds(turn.log.holder.token)

    @property
    def replayed(self) -> bool:
        """Whether this very turn had been completed before; `messages` has its answer, and nothing is stored again."""
        return self._used.replayed

    # What a handler does

    def append(self, *messages: Message) -> None:
        """Append messages to this turn. They are stored when the response is complete, or by `save`.

        A message whose id is already in this turn is left out.

        Raises:
            InvalidMessage: One cannot be stored and read back equal; the field is named. None of them was appended.
            LimitExceeded: One, or the turn with it, is too large.
            TurnClosed: The turn has ended.
        """
        with self._reporting():
            given: tuple[object, ...] = messages
            for stranger in (message for message in given if not isinstance(message, Message)):
                field = "append(message)"
                reason = f"a {type(stranger).__name__} is no Message; use Message.user(text), Message.assistant(text), …"
                raise InvalidMessage(field, reason)
            self._used.stage(messages)

    async def load(self, *, owner: str | None = None, session_id: str | None = None) -> None:
        """Load the conversation, where loading is deferred; elsewhere move to another one before anything is appended.

        Args:
            owner: Whose, such as ``user:42``; None: as the request says.
            session_id: Which; None: as the request says.

        Raises:
            TurnClosed: Something was appended to the conversation loaded before.
            InvalidIdentity: They are no address, or the request does not say.
            ConversationBusy: Another turn is still running.
            StoreUnavailable: The store did not answer.
        """
        with self._reporting():
            if self._gate is None:
                msg = "This conversation is loaded; open another with open_conversation(key)."
                raise TurnClosed(msg)
            if self._turn is not None and self._turn.messages:
                msg = "Something was appended already; call load() first."
                raise TurnClosed(msg)
            previous, self._turn = self._turn, None
            if previous is not None:
                await previous.abandon()
            self._turn = await self._gate.load(owner, session_id)

    async def save(self) -> None:
        """Make what was appended durable now: before an expensive call, before an end marker such as ``[DONE]``.

        The turn stays open. Nothing happens when everything is stored already.

        Raises:
            ConversationConflict: Somebody else wrote since the load, on a route that takes no lease.
            ConversationFenced: The turn lost its lease and another one goes on.
            ConversationGone: The conversation was deleted meanwhile.
            HistoryLost: The store no longer has what this request had loaded.
            StoreUnavailable: The store did not answer; the next save tries again.
        """
        with self._reporting():
            await self._save(self._used)

    async def record(
        self, stream: AsyncIterable[C] | Iterable[C], *, text: Callable[[C], str | None] | None = None
    ) -> AsyncGenerator[C, None]:
        """Pass a model's stream through and collect it as this turn's answer, so that what arrived is stored whatever happens.

        What was appended before is stored before the first chunk is asked for. When the stream ends, the answer is appended as
        one assistant message; when it breaks off or the client leaves, what arrived is stored and reads as interrupted.

        Args:
            stream: Of the model, inside any framing; synchronous ones run in a thread.
            text: Returns a chunk's text, or None for a chunk without; not needed when chunks are strings.

        Raises:
            InvalidMessage: A chunk is no text, and there is no `text`.
            LimitExceeded: The answer is larger than a message may be.
            TurnClosed: The turn has ended; the stream is not asked for anything.
        """
        with self._reporting():
            turn = self._used
            await self._save(turn)
            if turn.ended:
                msg = "This turn has ended; record in `async with conversation.turn():`, which opens another one."
                raise TurnClosed(msg)
            recording = Recording(text, turn.room())
        self._recordings.append(recording)
        async with aclosing(each(stream)) as chunks:
            async for chunk in chunks:
                with self._reporting():
                    recording.add(chunk)
                yield chunk
        recording.finished = True
        self._take(recording)

    def fail(self, error: ConvmemError) -> None:
        """Have this turn fail with that error where it would be stored: for adapters of frameworks that swallow what is raised.

        The response becomes the error's own, or the end of the ``async with`` block raises it. The first error counts.
        """
        if self._failure is None:
            self._failure = error
        if self._gate is not None:
            self._gate.raised(error)

    async def clear(self) -> None:
        """Begin the history anew. What was said before stays in the log until the conversation is deleted. Errors as in `save`."""
        with self._reporting():
            await self._used.reset()

    async def delete(self) -> bool:
        """Delete the conversation, and end this turn with it; return whether there was one.

        A turn that runs elsewhere at the same time will find it gone and store nothing.
        """
        with self._reporting():
            return await self._used.delete()

    @asynccontextmanager
    async def turn(self) -> AsyncGenerator[Conversation, None]:
        """Open a turn of its own: for background tasks, and for each exchange on a WebSocket.

        Loads again and takes the lease on entry; stores on exit. When the block raises, what `save` and `record` have stored
        stays and reads as interrupted, and the rest is dropped.

        Raises:
            ConversationBusy: Another turn is still running, this request's own included.
        """
        with self._reporting():
            before = self._used
            if self._gate is not None:
                await self._gate.leave()
            if not before.ended:
                raise ConversationBusy(own_turn=True)
            turn = Turn(self.ledger, before.key)
            await turn.begin()
        self._turn, self._recordings = turn, []
        try:
            yield self
        except asyncio.CancelledError:
            await self.interrupt()
            raise
        except BaseException:
            await self.break_off()
            raise
        else:
            with self._reporting():
                await self.finish()

    # What the middleware does

    def take(self) -> None:
        """Note that a handler has this conversation; raise what stands in the way of that."""
        if self._gate is not None:
            with self._reporting():
                self._gate.touch()

    async def keep(self) -> None:
        """Store what was appended, before a response without a length begins."""
        self._raise_failure()
        if self._turn is not None and not self._turn.ended:
            await self._save(self._turn)

    def runs(self, key: SessionKey) -> bool:
        """Return whether this is that conversation, with its turn still open, or stands within it."""
        own = self._turn is not None and not self._turn.ended and self._turn.key == key
        return own or (self.within is not None and self.within.runs(key))

    @property
    def seen(self) -> Turn | None:
        """The turn, for headers and logs: nothing is touched."""
        return self._turn

    @property
    def recorded(self) -> bool:
        """Whether there was a recording, and all came to their end."""
        return bool(self._recordings) and all(recording.finished for recording in self._recordings)

    @property
    def issue_session_id(self) -> Callable[[str, str], str] | None:
        """How the middleware around this request hands out ids."""
        return None if self._gate is None else self._gate.issue_session_id

    def adopt(self, turn: Turn) -> None:
        """Take the turn of a visitor who was not known when the conversation was made."""
        self._turn = turn

    async def finish(self) -> None:
        """End the turn, whole. A recording that did not come to its end makes it an interrupted one."""
        if self._failure is not None:
            await self.break_off()
            self._raise_failure()
        turn = self._turn
        if turn is None or turn.ended:
            return
        if all(recording.finished for recording in self._recordings):
            await turn.close()
        else:
            await self.interrupt()

    async def interrupt(self) -> None:
        """End the turn with everything appended and recorded so far; it reads as interrupted."""
        turn = self._turn
        if turn is None or turn.ended:
            return
        for recording in self._recordings:
            self._take(recording)
        await turn.interrupt()

    async def abandon(self) -> None:
        """End the turn and store nothing more."""
        if self._turn is not None:
            await self._turn.abandon()

    async def break_off(self) -> None:
        """End the turn after an error: with what was recorded, if anything was; else store nothing more."""
        turn = self._turn
        if turn is None or turn.ended:
            return
        if any(recording.said for recording in self._recordings):
            await self.interrupt()
        else:
            await turn.abandon()

    def _raise_failure(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    async def _save(self, turn: Turn) -> None:
        try:
            await turn.save()
        except StoreUnavailable as error:
            if self._gate is None or not self._gate.degrades:
                raise
            logger.warning("the store is down; this request goes on without memory: %s", error)
            turn.detach()
            self.degraded = True

    def _take(self, recording: Recording[Any]) -> None:
        if not recording.taken and recording.said:
            recording.taken = True
            self._used.stage([Message.assistant(recording.said)], limited=False)

    # Behind the properties

    @contextmanager
    def _reporting(self) -> Iterator[None]:
        try:
            yield
        except ConvmemError as error:
            if self._gate is not None:
                self._gate.raised(error)
            raise

    @property
    def _used(self) -> Turn:
        with self._reporting():
            if self._gate is not None:
                self._gate.touch()
            if self._turn is None:
                msg = "Loading is deferred on this route: `await conversation.load(owner=…, session_id=…)` before reading or appending."
                raise ConversationNotLoaded(msg)
            return self._turn

    @property
    def _turns(self) -> tuple[windows.Turn, ...]:
        return self._history[1]

    @property
    def _history(self) -> tuple[Log, tuple[windows.Turn, ...], tuple[Message, ...], tuple[int, ...]]:
        turn = self._used
        if self._decoded is None or self._decoded[0] is not turn.log:
            self._decoded = (turn.log, *_decode(turn))
        return self._decoded

    @property
    def _view(self) -> windows.View:
        turn, (log, turns, pinned, _) = self._used, self._history
        if turn.head.start > log.head.start:
            return windows.View((), 0, cut=False)
        if self._viewed is None or self._viewed[0] is not log:
            view = windows.view(turns, self.ledger.rules.window, pinned=pinned)
            self._viewed = (log, view)
            if log.head.turns - view.turns == 1:
                logger.info("conversation %s has outgrown its window: the model no longer sees the first turn", turn.key.digest)
        return self._viewed[1]


def _decode(turn: Turn) -> tuple[tuple[windows.Turn, ...], tuple[Message, ...], tuple[int, ...]]:
    """Return the loaded turns, the pinned messages, and the positions that cannot be decoded."""
    corrupt: list[int] = []
    loaded = [other for other in turn.log.turns if other.id != turn.id or turn.replayed]
    turns = tuple(windows.Turn(tuple(_messages(other.entries, corrupt)), other.state) for other in loaded)
    pinned = tuple(message for message in _messages(turn.log.pinned, corrupt) if message.role == "system")
    if corrupt:
        logger.warning("conversation %s: entries %s cannot be decoded; the rest is loaded", turn.key.digest, corrupt)
    return turns, pinned, tuple(corrupt)


def _messages(entries: Iterable[StoredEntry], corrupt: list[int]) -> Iterable[Message]:
    for stored in entries:
        try:
            yield from decode_messages(stored.entry.body)
        except ValueError:
            corrupt.append(stored.n)
