"""Conversation: what a handler sees of the memory."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable
from contextlib import aclosing, asynccontextmanager
from itertools import chain, takewhile
from typing import TypeVar, cast

from convmem import windows
from convmem.exceptions import (
    ConvmemError,
    CorruptEntry,
    InvalidMessage,
    TurnClosed,
)
from convmem.keys import SessionKey
from convmem.messages import Edit, Message, Note, decode_messages, edited
from convmem.recording import Recording, close, each
from convmem.sight import Decoded, Said
from convmem.stores.base import Store
from convmem.turns import Turn, edit_pins
from convmem.work import Work

C = TypeVar("C")
logger = logging.getLogger("convmem.conversation")


class Conversation:
    """One conversation during one request: its window, what this turn appends, and how it is stored.

    Not to be shared by requests; within one, its members may be used from any task and, `append` and the properties, from any
    thread. Every member raises the error that kept the conversation from being loaded: `StoreUnavailable`, `InvalidIdentity`, ….

    Attributes:
        loop: The event loop it belongs to, for adapters of frameworks that call from threads.
    """

    _viewed: tuple[tuple[windows.Turn[Message], ...], tuple[tuple[str, ...], int], windows.View] | None = None
    _sighted: tuple[Decoded, int, tuple[windows.Turn[Message], ...], tuple[Message, ...]] | None = None

    def __init__(self, work: Work) -> None:
        """See the worker's side of it. Apps do not call this."""
        self._work = work
        self.loop = asyncio.get_running_loop()

    # Who and which

    @property
    def owner(self) -> str:
        """Whose it is: ``user:<identity>``, ``visitor:<id>`` or ``header:<id>``."""
        return self._work.used.key.owner

    @property
    def session_id(self) -> str:
        """Which of the owner's conversations; ``default`` when the request named none."""
        return self._work.used.key.session_id

    @property
    def key(self) -> SessionKey:
        """Its address, for `open_conversation` in a job that goes on with it."""
        return self._work.used.key

    @property
    def store(self) -> Store:
        """Where it is kept, for `open_conversation` and `conversations` in code that is handed a conversation."""
        return self._work.ledger.store

    # What was said

    @property
    def messages(self) -> list[Message]:
        """The window of the stored history, then this turn's messages, oldest first: what the model is to see.

        A new list each time. Valid for model APIs; see `convmem.Window`.
        """
        turn = self._work.used
        new = edited([turn.said])[0]
        return [*self._view_before(turn, new).messages, *new]

    @property
    def new_messages(self) -> list[Message]:
        """What this turn appended, in order, stored or not, without what it hid again."""
        return edited([self._work.used.said])[0]

    async def history(self, *, limit: int | None = None) -> list[Message]:
        """Return every message in sight from the first on, whatever the window: for an export, or to search what was archived.

        One read of the store, at a cost that grows with the conversation. Unlike `messages` it is what was said, and not made
        valid for a model.

        Args:
            limit: At most so many messages, the newest, at a cost that grows with their number; none where enough is loaded.

        Raises:
            StoreUnavailable: The store did not answer.
        """
        if limit is None:
            return list((await self.all_said()).messages)
        with self._work.reporting():
            turn = self._work.used
            log, size = turn.log, max(1, limit)
            while True:
                decoded = turn.decoded(log)
                elsewhere = {item.id for item in decoded.pinned if isinstance(item, Message)}
                in_sight = decoded.said([] if turn.replayed else turn.said).messages
                newest = [message for message in in_sight if message.id not in elsewhere]
                if len(newest) >= limit or log.size >= log.head.turns:
                    return newest[-limit:] if limit else []
                size *= 2
                log = await turn.read(messages=size)

    @property
    def said(self) -> Said:
        """The turns that were loaded and this one, as they stand in the log: for adapters that keep notes between the messages."""
        turn = self._work.used
        return turn.decoded().said(turn.said)

    async def all_said(self) -> Said:
        """Return what `said` is, of everything from the first turn on. Cost and errors as in `history`."""
        with self._work.reporting():
            turn = self._work.used
            return turn.decoded(await turn.read()).said([] if turn.replayed else turn.said)

    @property
    def total_turns(self) -> int:
        """How many turns are stored, without those superseded, hidden, cleared or expired."""
        return self._work.used.head.turns

    @property
    def left_out(self) -> int:
        """How many stored turns are older than the window, or dropped from it."""
        turn = self._work.used
        return 0 if turn.head.start > turn.log.head.start else max(0, turn.log.head.turns - self._view(turn).turns)

    @property
    def truncated(self) -> bool:
        """Whether `messages` lacks anything that is stored."""
        return self.left_out > 0 or self._view(self._work.used).cut

    @property
    def corrupt(self) -> tuple[int, ...]:
        """Positions of loaded entries that cannot be decoded; their messages are missing, the rest is there."""
        return self._work.used.decoded().corrupt

    def verify(self) -> None:
        """Read strictly.

        Raises:
            CorruptEntry: A loaded entry cannot be decoded.
        """
        with self._work.reporting():
            for stored in self._work.used.log.entries:
                try:
                    decode_messages(stored.entry.body)
                except ValueError as error:
                    raise CorruptEntry(stored.n, str(error)) from error

    # How it stands

    @property
    def revision(self) -> str:
        """Where the log ends, as an opaque string: equal when nothing was written between."""
        return self._work.used.head.revision

    @property
    def is_new(self) -> bool:
        """Whether there was no history when this request began."""
        log = self._work.used.log
        return not log.head.epoch or log.expired

    @property
    def interrupted(self) -> bool:
        """Whether the turn before this one has no end: its client left, or its worker died."""
        turns, _ = self._sight(self._work.used)
        return bool(turns) and turns[-1].state == "interrupted"

    @property
    def busy(self) -> bool:
        """Whether another turn was running when this request loaded."""
        turn = self._work.used
        return bool(turn.log.holder.token) and not turn.holds(turn.log.holder.token)

    @property
    def closed(self) -> bool:
        """Whether this turn has ended: appending raises `TurnClosed`, and `turn` opens another one. Not so while it is replayed."""
        turn = self._work.used
        return turn.ended and not turn.replayed

    @property
    def replayed(self) -> bool:
        """Whether this very turn had been completed before: the client repeats its ``Idempotency-Key``.

        `new_messages` is what was stored then and `messages` ends with it, whatever came after; both lack what was hidden or
        cleared since. Nothing is stored again: `append`, `edit`, `save` and `clear` do nothing, and `record` gives the stored answer.
        """
        return self._work.used.replayed

    @property
    def degraded(self) -> bool:
        """Whether the store is down and the app runs without memory (``CONVMEM_ON_STORE_ERROR=degrade``): nothing is stored."""
        return self._work.degraded

    # What a handler does

    def append(self, *messages: Message | Note) -> None:
        """Append messages to this turn. They are stored when the response is complete, or by `save`.

        A message whose id is already in this turn is left out. A note of an adapter stands between the messages, and nobody sees it.

        Raises:
            InvalidMessage: One cannot be stored and read back equal; the field is named. None of them was appended.
            LimitExceeded: One, or the turn with it, is too large.
            TurnClosed: The turn has ended.
        """
        with self._work.reporting():
            given: tuple[object, ...] = messages
            for message in given:
                if not isinstance(message, (Message, Note)):
                    field = "append(message)"
                    reason = f"a {type(message).__name__} is no Message; use Message.user(text), Message.assistant(text), …"
                    raise InvalidMessage(field, reason)
            self._work.used.stage(messages)

    def edit(self, edit: Edit, *messages: Message) -> None:
        """Hide or archive what was said, and append messages in the same step: stored together, or not at all.

        Nothing is rewritten: the edit stands in the log behind what it is about, is stored as appended messages are, and goes
        when its turn is superseded. ``edit(Edit(action="hide", before="active"), *messages)`` replaces the conversation.

        Errors as in `append`.
        """
        with self._work.reporting():
            turn = self._work.used
            decoded = turn.decoded()
            in_sight = edited([decoded.pinned, *(items for items, _ in decoded.turns), turn.said])
            turn.stage([edit, *messages], pins=edit_pins(edit, chain(*in_sight)))

    async def load(self, *, owner: str | None = None, session_id: str | None = None) -> None:
        """Load the conversation, where loading is deferred; elsewhere move to another one before anything is appended.

        Args:
            owner: Whose, such as ``user:42``; None: as the request says.
            session_id: Which; None: as the request says.

        Raises:
            TurnClosed: Something was appended to the conversation loaded before, or another load is under way.
            InvalidIdentity: They are no address, or the request does not say.
            ConversationBusy: Another turn is still running.
            StoreUnavailable: The store did not answer.
        """
        with self._work.reporting():
            self._work.turn = await self._work.load(owner, session_id)

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
        with self._work.reporting():
            await self._work.save(self._work.used)

    def save_from_thread(self, *, patience: float = 0.25) -> bool:
        """Save, called from another thread than the event loop's; return whether it was done.

        On the loop's own thread, and when the loop does not begin within `patience` seconds (it is blocked, perhaps by the very
        call this one is part of), nothing happens: what was appended is stored with the next save or at the end of the turn.

        Errors as in `save`.
        """
        loop = self.loop
        if not loop.is_running() or asyncio._get_running_loop() is loop:  # noqa: SLF001 - None instead of an error
            return False
        begun = threading.Event()

        async def save() -> None:
            begun.set()
            await self.save()

        future = asyncio.run_coroutine_threadsafe(save(), loop)
        if not begun.wait(patience) and future.cancel():
            return False
        future.result()
        return True

    async def record(
        self, stream: AsyncIterable[C] | Iterable[C], *, text: Callable[[C], str | None] | None = None
    ) -> AsyncGenerator[C, None]:
        """Pass a model's stream through and collect it as this turn's answer, so that what arrived is stored whatever happens.

        What was appended before is stored before the first chunk is asked for. When the stream ends, the answer is appended as
        one assistant message; when it breaks off or the client leaves, what arrived is stored and reads as interrupted.

        When the turn is `replayed` the stored answer comes instead, in one piece, and the stream is not asked for anything. With
        `text` nobody can make a chunk of that answer: the stream is passed through, and not stored.

        Args:
            stream: Of the model, inside any framing; synchronous ones run in a thread.
            text: Returns a chunk's text, or None for a chunk without; not needed when chunks are strings.

        Raises:
            InvalidMessage: A chunk is no text, and there is no `text`.
            LimitExceeded: The answer is larger than a message may be.
            TurnClosed: The turn has ended; the stream is not asked for anything.
        """
        with self._work.reporting():
            turn = self._work.used
            await self._work.save(turn)
            if turn.ended and not turn.replayed:
                msg = "No turn is open here; record in `async with conversation.turn():`, which opens one."
                raise TurnClosed(msg)
            recording = Recording(text, turn.room())
        if turn.replayed:
            async with aclosing(self._repeated(stream, text)) as stored:
                async for chunk in stored:
                    yield chunk
            return
        self._work.recordings.append(recording)
        async with aclosing(each(stream)) as chunks:
            async for chunk in chunks:
                with self._work.reporting():
                    recording.add(chunk)
                yield chunk
        recording.finished = True
        self._work.take(recording)

    def fail(self, error: ConvmemError) -> None:
        """Have this turn fail with that error where it would be stored: for adapters of frameworks that swallow what is raised.

        The response becomes the error's own, or the end of the ``async with`` block raises it. The first error counts.
        """
        self._work.fail(error)

    async def clear(self) -> None:
        """Begin the history anew. What was said before stays in the log until the conversation is deleted. Errors as in `save`."""
        with self._work.reporting():
            await self._work.used.reset()

    async def delete(self) -> bool:
        """Delete the conversation, and end this turn with it; return whether there was one.

        A turn that runs elsewhere at the same time will find it gone and store nothing.
        """
        with self._work.reporting():
            return await self._work.used.delete()

    @asynccontextmanager
    async def turn(self) -> AsyncGenerator[Conversation, None]:
        """Open a turn of its own: for background tasks, and for each exchange on a WebSocket.

        Loads again and takes the lease on entry; stores on exit, and only then the client may be told that it is done. When the
        block raises, what `save` and `record` have stored stays and reads as interrupted, and the rest is dropped; when a
        WebSocket's client has left, or the task is cancelled, what was appended is stored too.

        A task that began while its request was still being answered waits for the end of that request's turn.

        Raises:
            ConversationBusy: Another turn is still running, this request's or this WebSocket's own included.
            StoreUnavailable: The store did not answer.
            HistoryLost: The store lost what it had acknowledged; said once, the next turn starts from what is there.
            HistoryExpired: The history outlived its TTL; the same.
        """
        with self._work.reporting():
            await self._work.open()
        try:
            yield self
        except BaseException as error:
            await self._work.end_broken(error)
            raise
        else:
            with self._work.reporting():
                await self._work.conclude()

    # Behind the properties

    async def _repeated(self, stream: AsyncIterable[C] | Iterable[C], text: Callable[[C], str | None] | None) -> AsyncGenerator[C, None]:
        """Yield what a replayed turn answered, where a chunk is text; else what the stream says now."""
        if text is None:
            for answer in [message.text for message in self.new_messages if message.role == "assistant" and message.text][-1:]:
                yield cast("C", answer)
            await close(stream)
            return
        logger.warning("a replayed turn asks the model again: look at conversation.replayed before record(text=...)")
        async with aclosing(each(stream)) as chunks:
            async for chunk in chunks:
                yield chunk

    def _sight(self, turn: Turn) -> tuple[tuple[windows.Turn[Message], ...], tuple[Message, ...]]:
        """What edits have left of the loaded turns, and of the pinned messages."""
        decoded = turn.decoded()
        edits = [item for item in turn.said if isinstance(item, Edit)]
        if self._sighted is None or self._sighted[:2] != (decoded, len(edits)):
            self._sighted = (decoded, len(edits), *decoded.seen(edits))
        return self._sighted[2:]

    def _view(self, turn: Turn) -> windows.View:
        return self._view_before(turn, edited([turn.said])[0])

    def _view_before(self, turn: Turn, present: list[Message]) -> windows.View:
        """Return what the window shows in front of this turn's messages; made anew only when they can make a difference to it."""
        log, (turns, pinned) = turn.log, self._sight(turn)
        if turn.head.start > log.head.start:
            return windows.View((), 0, cut=False)
        window = self._work.ledger.rules.window
        answers = tuple(message.id for message in takewhile(lambda message: message.role == "tool", present))
        meter = None if window.tokens is None else turn.meter
        matters = (answers, 0 if meter is None else meter.total(present))
        if self._viewed is None or self._viewed[0] is not turns or self._viewed[1] != matters:
            view = windows.view(turns, window, pinned=pinned, present=present, meter=meter)
            self._viewed = (turns, matters, view)
            outgrown = view.full or turn.decoded().size < log.head.turns
            if outgrown and self._work.ledger.outgrown.add(turn.key):
                left_out = max(0, log.head.turns - view.turns)
                logger.info("conversation %s has outgrown its window: the model does not see %d of its turns", turn.key.digest, left_out)
        return self._viewed[2]


def work_of(conversation: Conversation) -> Work:
    """Return the worker's side of a conversation, for the code around a handler."""
    return conversation._work  # noqa: SLF001 - this module's own
