"""Work: the worker's side of one conversation in one request: which turn is open, what is recorded, and how it ends."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from convmem.exceptions import ConversationBusy, ConversationNotLoaded, ConvmemError, StoreUnavailable, TurnClosed
from convmem.keys import SessionKey
from convmem.messages import Message
from convmem.recording import Recording
from convmem.stores.base import Store
from convmem.turns import Ledger, Turn

logger = logging.getLogger("convmem.conversation")


class Work:
    """What a `Conversation` and the code around its handler share. Made for one request, and used by it alone.

    This is that of code outside of any request; a request and a WebSocket are works of their own kinds, which see to who uses the
    conversation, and what becomes of an error.

    Attributes:
        ledger: What the turns of this worker share.
        turn: The turn, seen without touching anything; None until `load` begins it.
        recordings: The streams recorded in this turn.
        degraded: Whether the store is down and the app runs without memory.
        within: The work inside whose handler this one was opened, or runs when an app calls itself in process.
        takes_turns: Whether messages are appended only inside ``async with conversation.turn():``, as on a WebSocket.
    """

    takes_turns = False
    degraded = False
    _failure: ConvmemError | None = None
    _opening = False

    def __init__(self, ledger: Ledger, turn: Turn | None = None, *, within: Work | None = None) -> None:
        """Take a turn that has begun; None when `load` is to begin it."""
        self.ledger = ledger
        self.turn = turn
        self.recordings: list[Recording[Any]] = []
        self.within = within

    # What depends on what is around it

    @property
    def degrades(self) -> bool:
        """Whether the app goes on without memory while the store is down."""
        return False

    @property
    def hung_up(self) -> bool:
        """Whether the client of a WebSocket has left, so that a turn that breaks off keeps what was appended."""
        return False

    @property
    def issue_session_id(self) -> Callable[[str, str], str] | None:
        """How the middleware around this code hands out ids, for an owner and a tenant; None where there is none."""
        return None if self.within is None else self.within.issue_session_id

    def touch(self) -> None:
        """Note that the conversation is used; raise what stands in the way of that."""

    def note(self, error: ConvmemError) -> None:
        """Tell the request around this code of an error its handler is given, to answer with it should the handler let it through."""
        if self.within is not None:
            self.within.note(error)

    async def load(self, owner: str | None, session_id: str | None) -> Turn:  # noqa: ARG002 - for a request
        """Resolve, load, and take the lease where the route takes one; the turn before, in which nothing was appended, is given up."""
        msg = "This conversation is loaded; open another with open_conversation(key)."
        raise TurnClosed(msg)

    async def before_turn(self) -> None:
        """Make way for a turn of its own: let the request's end first; forget that loading failed at a handshake."""

    async def begin(self, key: SessionKey) -> Turn:
        """Return a turn of its own on that conversation, begun."""
        turn = Turn(self.ledger, key)
        await turn.begin()
        return turn

    # Using it

    @property
    def used(self) -> Turn:
        """The turn, touched.

        Raises:
            ConversationNotLoaded: Loading is deferred, and was not done.
            ConvmemError: Whatever kept the conversation from being loaded.
        """
        try:
            self.touch()
        except ConvmemError as error:
            self.note(error)
            raise
        if self.turn is not None:
            return self.turn
        with self.reporting():
            msg = "Loading is deferred on this route: `await conversation.load(owner=…, session_id=…)` before reading or appending."
            raise ConversationNotLoaded(msg)

    def reporting(self) -> Self:
        """Note the errors raised inside a ``with``."""
        return self

    def __enter__(self) -> None:
        """Do nothing: see `reporting`."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """Note the error, and let it pass."""
        if isinstance(error, ConvmemError):
            self.note(error)

    def fail(self, error: ConvmemError) -> None:
        """Have the turn fail with that error where it would be stored. The first error counts."""
        self._failure = self._failure or error
        self.note(error)

    def _raise_failure(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def runs(self, key: SessionKey, store: Store) -> bool:
        """Return whether this is that conversation in that store, with its turn still open, or stands within it."""
        own = self.turn is not None and not self.turn.ended and self.turn.key == key and self.ledger.store is store
        return own or (self.within is not None and self.within.runs(key, store))

    async def open(self) -> None:
        """Begin a turn of its own, after the one before has ended.

        Raises:
            ConversationBusy: Another turn is still running; `own_turn` is True when it is this work's own, or the one it runs within.
        """
        if self._opening:
            raise ConversationBusy(own_turn=True)
        self._opening = True
        try:
            await self.before_turn()
            before = self.used
            if not before.ended or (self.within is not None and self.within.runs(before.key, self.ledger.store)):
                raise ConversationBusy(own_turn=True)
            self.degraded = False
            turn = await self.begin(before.key)
        finally:
            self._opening = False
        self.turn, self.recordings, self._failure = turn, [], None

    @property
    def between_turns(self) -> bool:
        """Whether this is the work of a WebSocket on which no turn is open."""
        return self.takes_turns and (self.turn is None or self.turn.ended) and not self._opening

    # Recording

    @property
    def recorded(self) -> bool:
        """Whether there was a recording, and all came to their end."""
        return bool(self.recordings) and not self.recording

    @property
    def recording(self) -> bool:
        """Whether a recording has not come to its end yet."""
        return any(not recording.finished for recording in self.recordings)

    def take(self, recording: Recording[Any]) -> None:
        """Append what a recording has collected; once."""
        if not recording.taken and recording.said:
            recording.taken = True
            self.used.stage([Message.assistant(recording.said)], limited=False)

    # Storing and ending

    async def save(self, turn: Turn, *, hold: bool = False) -> None:
        """Store what was appended to the turn. A store that is down is an error, or this request goes on without memory.

        Args:
            turn: It.
            hold: Whether to take the lease of a conversation that was known to be new.
        """
        try:
            if hold:
                await turn.hold()
            await turn.save()
        except StoreUnavailable as error:
            if not self.degrades:
                raise
            logger.warning("the store is down; this request goes on without memory: %s", error)
            turn.detach()
            self.degraded = True

    async def keep(self, *, hold: bool) -> None:
        """Store what was appended, before a response without a length begins. For `hold` see `save`."""
        self._raise_failure()
        if self.turn is not None and not self.turn.ended:
            await self.save(self.turn, hold=hold)

    async def finish(self) -> None:
        """End the turn, whole. A recording that did not come to its end makes it an interrupted one."""
        if self._failure is not None:
            await self.break_off()
            self._raise_failure()
        if self.recordings and self.recording:
            await self.interrupt()
        elif self.turn is not None:
            await self.turn.close()

    async def conclude(self) -> None:
        """End a turn of its own as `finish` does; where the app goes on without memory, a store that is down is no error."""
        try:
            await self.finish()
        except StoreUnavailable as error:
            if not (self.takes_turns and self.degrades):
                raise
            await self.abandon()
            logger.warning("the store is down; this turn is not stored: %s", error)
            self.degraded = True

    async def end_broken(self, error: BaseException) -> None:
        """End a turn of its own whose block raised. That error is the one to be seen: one of ours on top of it is only logged."""
        try:
            await (self.interrupt() if self.hung_up or isinstance(error, asyncio.CancelledError) else self.break_off())
        except ConvmemError as failure:
            await self.abandon()
            logger.error("an interrupted turn could not be stored: %s", failure)  # noqa: TRY400 - the block's error is being raised

    async def interrupt(self) -> None:
        """End the turn with everything appended and recorded so far; it reads as interrupted."""
        if self.turn is None or self.turn.ended:
            return
        for recording in self.recordings:
            self.take(recording)
        await self.turn.interrupt()

    async def break_off(self) -> None:
        """End the turn after an error: with what was recorded, if anything was; else store nothing more."""
        if any(recording.said for recording in self.recordings):
            await self.interrupt()
        else:
            await self.abandon()

    async def abandon(self) -> None:
        """End the turn and store nothing more."""
        if self.turn is not None:
            await self.turn.abandon()
