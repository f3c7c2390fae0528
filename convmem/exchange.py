"""Exchange: one HTTP request from its identity to the last byte of its answer.

What is held back, and why (the ordering rules of the package): the event that completes the response leaves only after the
turn is stored. That is the last body event; the event with which the announced Content-Length is reached; and, for responses
without a body, the start. A response without a length begins at once, but not before what was appended is stored, so that a
store that fails is a 503 before the model runs.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from convmem.context import current, work_around
from convmem.conversation import Conversation
from convmem.exceptions import (
    ConversationBusy,
    ConvmemError,
    HistoryExpired,
    HistoryLost,
    StoreUnavailable,
    UnknownConversation,
    VisitorTooLate,
)
from convmem.identity import IdentityReader, Resolved
from convmem.keys import SessionKey
from convmem.problems import problem
from convmem.routes import Routes
from convmem.stores.base import Head
from convmem.turns import Ledger, Turn
from convmem.work import Work

SCOPE_KEY = "convmem"
REVISION_HEADER = b"conversation-revision"
_BODYLESS = (204, 304)
_ERRORS = 400
_SERVER_ERRORS = 500
logger = logging.getLogger("convmem.middleware")


@dataclass(frozen=True, slots=True)
class Services:
    """What one middleware shares among its requests.

    Attributes:
        degrade: Run the app without memory while the store is down.
        state_key: Where the conversation stands in ``request.state``; empty: nowhere.
        debug: Say in response headers what was done.
        issue_session_id: Hands out an id for an owner and a tenant.
        hinted: The first route that appended without a lease, once it was logged.
    """

    ledger: Ledger
    reader: IdentityReader
    routes: Routes
    degrade: bool
    state_key: str
    debug: bool
    issue_session_id: Callable[[str, str], str]
    hinted: list[str] = field(default_factory=list)


class Exchange:
    """One request and its answer. Made for one request, used by its tasks and threads only."""

    def __init__(self, services: Services, scope: Scope, path: str, receive: Receive, send: Send) -> None:
        """Decide nothing yet."""
        self._services = services
        self._request = scope
        self._path = path
        self._receive = receive
        self._send = send
        self._method: str = scope["method"]
        self._leases, self._policy = services.routes.turn(self._method, path)
        self._defers = services.routes.defers(path)
        self._scope: Scope = {}
        self._resolved = Resolved()
        self._work = Work(services.ledger, gate=self, within=work_around())
        self._conversation = Conversation(self._work)
        self._kept: ConvmemError | None = None
        self._raised: ConvmemError | None = None
        self._asked: SessionKey | None = None
        self._owner_given: str | None = None
        self._touched = False
        self._first_touch = threading.Lock()
        self._status = 0
        self._held: Message | None = None
        self._remaining: int | None = None
        self._bodyless = False
        self._trailers = False
        self._flowing = False
        self._whole = False
        self._begun = False
        self._settled = False
        self._complete = False
        self._answered = False
        self._client_left = False
        self._cut: ConvmemError | None = None
        self._outcome = "none"

    async def run(self, app: ASGIApp) -> None:
        """Load, run the app, store, answer."""
        if not self._defers:
            self._resolved = await self._services.reader.read(self._request)
        try:
            await self._prepare()
        except ConvmemError as error:
            await self._answer(error)
            return
        self._scope = self._scope_for_app()
        before = current.set(self._conversation)
        try:
            await app(self._scope, self._listen, self._respond)
        except BaseException as error:
            await self._broke(error)
            if not (self._answered and _ours(error)):
                raise
        else:
            await self._returned()
        finally:
            current.reset(before)
        if self._cut is not None:
            raise self._cut

    # Before the app

    async def _prepare(self) -> None:
        """Load where loading is eager. An error that only matters to who uses the conversation is kept for that moment.

        Raises:
            ConversationBusy: On a route that takes the lease.
            HistoryLost: On a route that takes the lease.
            HistoryExpired: On a route that takes the lease.
        """
        owner = self._resolved.owner
        if owner is None or self._defers:
            return
        try:
            self._work.turn = await self._open(owner, self._resolved.session_id)
        except (ConversationBusy, HistoryLost, HistoryExpired) as error:
            if self._leases:
                raise
            self._kept = error
        except StoreUnavailable as error:
            if not self._services.degrade:
                self._kept = error
                return
            self._work.turn = self._without_memory(owner, self._resolved.session_id, error)
        except ConvmemError as error:
            self._kept = error

    def _without_memory(self, owner: str, session_id: str, error: StoreUnavailable) -> Turn:
        logger.warning("the store is down; this request runs without memory: %s", error)
        self._work.degraded = True
        return Turn(self._services.ledger, self._key(owner, session_id), stored=False)

    def _key(self, owner: str, session_id: str) -> SessionKey:
        return SessionKey(owner, session_id, self._resolved.tenant)

    async def _open(self, owner: str, session_id: str) -> Turn:
        self._asked = key = self._key(owner, session_id)
        needs_existing = await self._needs_existing(key)
        turn = Turn(self._services.ledger, key)
        claimed = _claimed(self._request["headers"])
        if not self._leases:
            await turn.look(claimed)
        else:
            outer = self._work.within
            if outer is not None and outer.runs(key, self._services.ledger.store):
                raise ConversationBusy(own_turn=True)
            await turn.begin(self._policy, claimed)
        if needs_existing and not turn.log.head.epoch:
            await turn.abandon()
            msg = "This id was not handed out to this owner; POST for a new one, or leave it out for the default conversation."
            raise UnknownConversation(msg)
        return turn

    async def _needs_existing(self, key: SessionKey) -> bool:
        if (key.owner, key.session_id) == (self._resolved.owner, self._resolved.session_id):
            return self._resolved.needs_existing
        return await self._services.reader.needs_existing(key.owner, key.session_id, key.tenant)

    def _scope_for_app(self) -> Scope:
        """Copy what is changed: the server's own dicts are never written to."""
        scope = {**self._request, SCOPE_KEY: self._conversation}
        if self._services.state_key:
            scope["state"] = {**(self._request.get("state") or {}), self._services.state_key: self._conversation}
        return scope

    # The gate: called by the conversation, also from threads

    def touch(self) -> None:
        """Note that the conversation is used; mint the visitor who has none yet. Where the handler loads, `load` does that."""
        if self._defers and not self._touched:
            return
        if self._touched and self._kept is None:
            self._check_order()
            return
        with self._first_touch:
            try:
                self._check_order()
                if self._kept is not None:
                    raise self._kept
                if self._resolved.owner is None:
                    self._mint(self._resolved.session_id, needs_existing=self._resolved.needs_existing)
            except ConvmemError as error:
                self._kept = error
                raise
            finally:
                self._touched = True

    @property
    def issue_session_id(self) -> Callable[[str, str], str]:
        """Hands out an id for an owner and a tenant."""
        return self._services.issue_session_id

    def raised(self, error: ConvmemError) -> None:
        """Remember the error, to answer with it if the app makes a 5xx of it."""
        self._raised = error
        self._spend(error)

    def _spend(self, error: ConvmemError) -> None:
        """Evidence is spent by reporting it."""
        if isinstance(error, HistoryLost | HistoryExpired) and self._asked is not None:
            self._services.ledger.evidence.forget(self._asked)

    @property
    def degrades(self) -> bool:
        """Whether the app goes on without memory while the store is down."""
        return self._services.degrade

    async def leave(self) -> None:
        """End the turn if the client has left."""
        if self._client_left and not self._settled:
            self._settled = True
            await self._work.interrupt()

    async def load(self, owner: str | None, session_id: str | None) -> Turn:
        """Load the conversation a handler names, or the one the request does."""
        if self._defers and not self._touched:
            here = {name: self._request.get(name, "") for name in ("path", "root_path")}
            self._resolved = await self._services.reader.read({**self._scope, **here})
        self._owner_given = owner
        self._check_order()
        if session_id is None and self._resolved.refusal is not None and not self._resolved.names_session:
            raise self._resolved.refusal
        which = self._resolved.session_id if session_id is None else session_id
        if owner is None and self._resolved.owner is None:
            refusal = self._services.reader.refuses_id(self._request, self._resolved, which)
            if refusal is not None:
                raise refusal
            needs_existing = await self._services.reader.needs_existing(None, which, self._resolved.tenant)
            turn = self._mint(which, needs_existing=needs_existing)
        else:
            turn = await self._open_or_degrade(owner or self._resolved.owner or "", which)
        self._kept = None
        self._touched = True
        return turn

    async def _open_or_degrade(self, owner: str, session_id: str) -> Turn:
        try:
            return await self._open(owner, session_id)
        except StoreUnavailable as error:
            if not self._services.degrade:
                raise
            return self._without_memory(owner, session_id, error)

    def _mint(self, session_id: str, *, needs_existing: bool) -> Turn:
        """Make a new visitor; the conversation is then known to be new, and costs neither a trip nor a lease."""
        if self._begun and self._resolved.may_mint:
            msg = (
                "The conversation of a new visitor was first used when the response had begun, too late for its cookie. Take it in the "
                "handler (get_conversation(request), before returning the StreamingResponse), not inside the generator."
            )
            raise VisitorTooLate(msg)
        if needs_existing and self._resolved.may_mint:
            msg = "This id was not handed out; leave it out for the default conversation."
            raise UnknownConversation(msg)
        owner = self._resolved.mint()
        turn = Turn(self._services.ledger, self._key(owner, session_id))
        self._work.turn = turn
        return turn

    def _check_order(self) -> None:
        if self._scope:
            error = self._resolved.order_error(self._scope, owner=self._owner_given)
            if error is not None:
                raise error

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
        self._bodyless = self._method == "HEAD" or self._status in _BODYLESS
        self._trailers = message.get("trailers", False)
        self._remaining = _content_length(message.get("headers", ()))
        self._held = message
        if self._remaining is None and not self._bodyless:
            try:
                if self._touched and self._status < _ERRORS:
                    self._check_order()
                    await self._work.keep()
            except ConvmemError as error:
                if not await self._goes_on(error):
                    return
            await self._begin()

    async def _on_body(self, message: Message, size: int, *, more: bool) -> None:
        if self._remaining is not None:
            self._remaining -= size
        if self._bodyless and more and self._work.recording:
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
            await self._send({**message, "headers": [*message.get("headers", ()), *self._headers()]})

    def _headers(self) -> list[tuple[bytes, bytes]]:
        headers = self._resolved.response_headers(touched=self._touched)
        if self._work.degraded:
            headers.append((b"convmem-degraded", b"true"))
        turn = self._work.turn
        if self._touched and turn is not None and not self._work.degraded:
            headers.append((REVISION_HEADER, turn.head.revision.encode()))
            if self._services.debug:
                facts = {
                    "owner": self._resolved.source if self._owner_given is None else "load",
                    "conversation": turn.key.digest,
                    "worker": f"{socket.gethostname()}/{os.getpid()}",
                    "turns": turn.head.turns,
                    "loaded": len(turn.log.turns),
                    "left-out": max(0, turn.log.head.turns - len(turn.log.turns)),
                    "outcome": self._outcome,
                }
                headers.append((b"convmem-debug", "; ".join(f"{name}={value}" for name, value in facts.items()).encode("ascii", "replace")))
        return headers

    # The end of the turn

    async def _settle(self) -> None:
        """Decide what becomes of the turn, on the status, on a client that left, and on recordings; once."""
        if self._settled:
            return
        self._settled = True
        streamed = self._remaining is None and not self._bodyless and not self._whole
        if self._status >= _ERRORS:
            await self._work.abandon()
            self._outcome = "abandoned"
            return
        if self._touched:
            self._check_order()
        if self._client_left and streamed and not self._work.recorded:
            await self._work.interrupt()
            self._outcome = "interrupted"
            return
        turn = self._work.turn
        if turn is not None and turn.messages and not (self._leases or self._resolved.minted):
            self._hint_at_turns()
        await self._work.finish()
        self._outcome = "stored"

    def _hint_at_turns(self) -> None:
        if not self._services.hinted:
            self._services.hinted.append(self._path)
            line = f"{self._method} {self._path}"
            logger.warning("a route appends without a lease, so a turn at the same time is a 409: add %r to turns=[...]", line)

    async def _goes_on(self, error: ConvmemError) -> bool:
        """Return whether the app's answer goes out all the same. If not: a problem when nothing has gone out yet, else a truncation."""
        await self._work.abandon()
        if isinstance(error, StoreUnavailable) and self._services.degrade:
            logger.warning("the store is down; this turn is not stored: %s", error)
            self._work.degraded = True
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
        self._spend(error)
        if error.status >= _SERVER_ERRORS:
            logger.error("%s: %s", error.code, error, exc_info=error.__cause__)
        else:
            logger.info("%s: %s", error.code, error)
        await self._work.abandon()
        headers = self._headers()
        if isinstance(error, HistoryLost | HistoryExpired):
            headers = [*((name, value) for name, value in headers if name != REVISION_HEADER), (REVISION_HEADER, error.revision.encode())]
        for message in problem(error, headers, head=self._method == "HEAD"):
            await self._send(message)
        self._complete = True

    async def _broke(self, error: BaseException) -> None:
        """The app raised, or was cancelled."""
        if self._answered:
            return
        ours = _ours(error)
        if ours is not None and not self._begun:
            await self._answer(ours)
            return
        if self._settled:
            return
        self._settled = True
        try:
            if self._touched:
                self._check_order()
            if isinstance(error, asyncio.CancelledError):
                await self._work.interrupt()
            elif self._begun:
                await self._work.break_off()
            else:
                await self._work.abandon()
        except ConvmemError as failure:
            await self._work.abandon()
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
                    await self._work.abandon()
                else:
                    if self._touched:
                        self._check_order()
                    await self._work.interrupt()
            if self._held is not None:
                await self._begin()
        except ConvmemError as error:
            if self._client_left:
                await self._work.abandon()
                logger.error("an interrupted turn could not be stored: %s", error)  # noqa: TRY400 - nobody is there to be told
            elif await self._goes_on(error):
                await self._begin()


def _content_length(headers: Iterable[tuple[bytes, bytes]]) -> int | None:
    for name, value in headers:
        if name.lower() == b"content-length" and value.strip().isdigit():
            return int(value)
    return None


def _claimed(headers: Iterable[tuple[bytes, bytes]]) -> Head | None:
    for name, value in headers:
        if name == REVISION_HEADER:
            return Head.of_revision(value.decode("latin-1"))
    return None


def _ours(error: BaseException | None) -> ConvmemError | None:
    """Return the convmem error an exception is, or was raised from, or carries in a group."""
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        if isinstance(one, ConvmemError):
            return one
        seen.add(id(one))
        waiting += [one.__cause__]
        if isinstance(one, BaseExceptionGroup):
            waiting += one.exceptions
    return None
