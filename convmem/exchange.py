"""Exchange: one HTTP request from its identity to the last byte of its answer.

What is held back, and why (the ordering rules of the package): the event that completes the response leaves only after the
turn is stored. That is the last body event; the event with which the announced Content-Length is reached; and, for responses
without a body, the start. A response without a length begins at once, but not before what was appended is stored, so that a
store that fails is a 503 before the model runs.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from convmem.connection import Connection, Services, ours
from convmem.context import current
from convmem.conversation import Conversation
from convmem.exceptions import (
    ConversationBusy,
    ConvmemError,
    HistoryExpired,
    HistoryLost,
    IdempotencyKeyReused,
    InvalidIdempotencyKey,
    StoreUnavailable,
)
from convmem.idempotency import ReadAhead, turn_of
from convmem.keys import SessionKey
from convmem.routes import Route
from convmem.stores.base import Head
from convmem.turns import Turn

_BODYLESS = (204, 304)
_ERRORS = 400
_SERVER_ERRORS = 500
logger = logging.getLogger("convmem.middleware")


class Exchange(Connection):
    """One request and its answer."""

    takes_turns = False
    _too_late = (
        "The conversation of a new visitor was first used when the response had begun, too late for its cookie. Take it in the "
        "handler (get_conversation(request), before returning the StreamingResponse), not inside the generator."
    )
    _turn_id: str | None = None
    _fingerprint = ""
    _bad_key: InvalidIdempotencyKey | None = None
    _status = 0
    _held: Message | None = None
    _remaining: int | None = None
    _bodyless = False
    _trailers = False
    _flowing = False
    _whole = False
    _settled = False
    _complete = False
    _answered = False
    _client_left = False
    _cut: ConvmemError | None = None

    def __init__(
        self, services: Services, scope: Scope, path: str, route: Route, receive: Receive, send: Send, task: asyncio.Task[object]
    ) -> None:
        """Decide nothing yet; the task is the one in which the app is called."""
        super().__init__(services, scope, path, route)
        self._receive = receive
        self._send = send
        self._task = task

    async def run(self, app: ASGIApp) -> None:
        """Load, run the app, store, answer."""
        if self._route.leases and self._services.idempotency_header in dict(self._request["headers"]):
            await self._name_turn()
        if not self._route.defers:
            self._resolved = await self._services.reader.read(self._request)
        try:
            await self._prepare()
        except ConvmemError as error:
            await self._answer(error)
            return
        conversation = Conversation(self)
        scope = self._scope = self._scope_for_app(conversation)
        before = current.set(conversation)
        try:
            await app(scope, self._listen, self._respond)
        except BaseException as error:
            await self._broke(error)
            if not (self._answered and ours(error)):
                raise
        else:
            if self._held is not None or not self._settled:
                await self._returned()
        finally:
            current.reset(before)
            self._let_go()
        if self._cut is not None:
            raise self._cut

    # Before the app

    async def _name_turn(self) -> None:
        """Read the idempotency key, and with one the beginning of the body: before the lease is taken, which must not wait for a client."""
        try:
            self._turn_id = turn_of(self._request["headers"], self._services.idempotency_header)
        except InvalidIdempotencyKey as error:
            self._bad_key = error
        if self._turn_id is not None:
            ahead = ReadAhead(self._receive)
            self._receive = ahead
            self._fingerprint = await ahead.fingerprint(self._request, self._path)

    def _turn(self, key: SessionKey) -> Turn:
        if self._bad_key is not None:
            raise self._bad_key
        return Turn(self.ledger, key, turn_id=self._turn_id, fingerprint=self._fingerprint)

    async def _prepare(self) -> None:
        """Load where loading is eager. An error that only matters to who uses the conversation is kept for that moment.

        Raises:
            ConversationBusy: On a route that takes the lease.
            IdempotencyKeyReused: There too.
            HistoryLost: On a route that takes the lease.
            HistoryExpired: On a route that takes the lease.
        """
        key = self._resolved.key
        if key is None:
            return
        try:
            self.turn = await self._open(key)
        except (ConversationBusy, IdempotencyKeyReused, HistoryLost, HistoryExpired) as error:
            if self._route.leases:
                raise
            self._kept = error
        except StoreUnavailable as error:
            if not self._services.degrade:
                self._kept = error
                return
            self.turn = self._without_memory(key, error)
        except ConvmemError as error:
            self._kept = error

    async def _enter(self, turn: Turn, claimed: Head | None) -> None:
        """Take the lease on a route that takes one, and load."""
        if not self._route.leases:
            await turn.look(claimed)
            return
        outer = self.within
        if outer is not None and outer.runs(turn.key, self.ledger.store):
            raise ConversationBusy(own_turn=True)
        await turn.begin(self._route.policy, claimed)

    # A turn after the response

    async def before_turn(self) -> None:
        """Let the request's turn end first.

        If its client has left, end it: a framework may run background tasks before anything else does. A task that began beside the
        handler waits for it; in the request's own task nothing could end it meanwhile, and waiting would be in vain.
        """
        if self._client_left and not self._settled:
            self._settled = True
            await self.interrupt()
        turn = self.turn
        if turn is not None and asyncio.current_task() is not self._task:
            await turn.over(self.ledger.rules.turn_wait)

    # What the app receives and sends

    async def _listen(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect" and not self._complete:
            self._client_left = True
        return message

    async def _respond(self, message: Message) -> None:
        if self._answered or self._cut is not None:
            return
        match message["type"]:
            case "http.response.start":
                await self._on_start(message)
            case "http.response.body":
                await self._on_body(message, len(message.get("body", b"")), more=message.get("more_body", False))
            case "http.response.pathsend" | "http.response.zerocopysend":
                await self._on_last(message)
            case "http.response.trailers" if not message.get("more_trailers", False):
                await self._on_last(message)
            case _:
                await self._send(message)

    async def _on_start(self, message: Message) -> None:
        self._status = message["status"]
        if self._status >= _SERVER_ERRORS and self._raised is not None:
            await self._answer(self._raised)
            return
        if self._request["method"] == "HEAD" or self._status in _BODYLESS:
            self._bodyless = True
        if message.get("trailers"):
            self._trailers = True
        self._held = held = dict(message)
        held["headers"] = headers = list(message.get("headers", ()))  # any iterable, perhaps one that can be read only once
        self._remaining = _content_length(headers)
        if self._remaining is None and not self._bodyless:
            try:
                if self._touched and self._status < _ERRORS:
                    self._check_order()
                    await self.keep(hold=self._route.leases and self._resolved.minted)  # from here on, its visitor may come again
            except ConvmemError as error:
                if not await self._goes_on(error):
                    return
            await self._begin()

    async def _on_body(self, message: Message, size: int, *, more: bool) -> None:
        if self._remaining is not None:
            self._remaining -= size
        if self._bodyless and more and self.recording:
            return
        reached = self._remaining is not None and self._remaining <= 0
        if self._bodyless or reached or not (more or self._trailers):
            self._whole = size > 0 and not self._flowing
            await self._on_last(message, ends=not more)
        else:
            self._flowing = True
            await self._begin()
            await self._send(message)

    async def _on_last(self, message: Message, *, ends: bool = True) -> None:
        """Store, then let the event go that the client takes for the end."""
        try:
            await self._settle()
        except ConvmemError as error:
            if not await self._goes_on(error):
                return
        self._complete = self._complete or ends
        await self._begin()
        await self._send(message)

    async def _begin(self) -> None:
        """Let the start of the response go."""
        if self._held is not None:
            message, self._held = self._held, None
            self._begun = True
            message["headers"] += self._headers()
            await self._send(message)

    # The end of the turn

    async def _settle(self) -> None:
        """Decide what becomes of the turn, on the status, on a client that left, and on recordings; once."""
        if self._settled:
            return
        self._settled = True
        streamed = self._remaining is None and not self._bodyless and not self._whole
        if self._status >= _ERRORS:
            await self.abandon()
            self._outcome = "abandoned"
            return
        if self._touched:
            self._check_order()
        if self._client_left and streamed and not self.recorded:
            await self.interrupt()
            self._outcome = "interrupted"
            return
        if not self._route.leases and self.turn is not None and self.turn.said and not self._resolved.minted and self.turn.messages:
            self._hint_at_turns()
        await self.finish()
        self._outcome = "stored"

    def _hint_at_turns(self) -> None:
        if not self._services.hinted:
            self._services.hinted.append(self._path)
            line = f"{self._request['method']} {self._path}"
            logger.warning("a route appends without a lease, so a turn at the same time is a 409: add %r to turns=[...]", line)

    async def _goes_on(self, error: ConvmemError) -> bool:
        """Return whether the app's answer goes out all the same. If not: a problem when nothing has gone out yet, else a truncation."""
        await self.abandon()
        if isinstance(error, StoreUnavailable) and self._services.degrade:
            logger.warning("the store is down; this turn is not stored: %s", error)
            self.degraded = True
            return True
        if self._begun:
            logger.error("the response is cut off, its turn could not be stored: %s", error)
            self._cut = error
        else:
            await self._answer(error)
        return False

    async def _answer(self, error: ConvmemError) -> None:
        self._answered = True
        self._held = None
        self._status = error.status
        await self.abandon()
        for message in self._problem(error, head=self._request["method"] == "HEAD"):
            await self._send(message)
        self._complete = True

    async def _broke(self, error: BaseException) -> None:
        """The app raised, or was cancelled."""
        if self._answered:
            return
        refusal = ours(error)
        if refusal is not None and not self._begun:
            await self._answer(refusal)
            return
        if self._settled:
            return
        self._settled = True
        try:
            if self._touched:
                self._check_order()
            if isinstance(error, asyncio.CancelledError):
                await self.interrupt()
            elif self._begun:
                await self.break_off()
            else:
                await self.abandon()
        except ConvmemError as failure:
            await self.abandon()
            logger.error("an interrupted turn could not be stored: %s", failure)  # noqa: TRY400 - the app's error is being raised

    async def _returned(self) -> None:
        """The app returned. A start without a body still has to go; no end at all means that the client left or the app gave up."""
        if self._answered or self._cut is not None:
            return
        try:
            if self._held is not None and self._bodyless:
                await self._settle()
                await self._begin()
                return
            if not self._settled:
                self._settled = True
                if self._status >= _ERRORS or not (self._status or self._client_left):
                    await self.abandon()
                else:
                    if self._touched:
                        self._check_order()
                    await self.interrupt()
            if self._held is not None:
                await self._begin()
        except ConvmemError as error:
            if self._client_left:
                await self.abandon()
                logger.error("an interrupted turn could not be stored: %s", error)  # noqa: TRY400 - nobody is there to be told
            elif await self._goes_on(error):
                await self._begin()


def _content_length(headers: Iterable[tuple[bytes, bytes]]) -> int | None:
    for name, value in headers:
        if name.lower() == b"content-length" and value.strip().isdigit():
            return int(value)
    return None
