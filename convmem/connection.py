"""Connection: what a request and a WebSocket have in common: whose conversation it is, which, and the gate a handler takes it through."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

from starlette.types import Scope

from convmem.context import work_around
from convmem.conversation import Conversation
from convmem.exceptions import (
    ConvmemError,
    HistoryExpired,
    HistoryLost,
    InvalidIdentity,
    StoreUnavailable,
    TurnClosed,
    UnknownConversation,
    VisitorTooLate,
)
from convmem.identity import IdentityReader, Resolved
from convmem.keys import SessionKey
from convmem.problems import problem
from convmem.routes import Route, Routes
from convmem.stores.base import Head
from convmem.turns import Ledger, Turn
from convmem.work import Work

SCOPE_KEY = "convmem"
REVISION_HEADER = b"conversation-revision"
_SERVER_ERRORS = 500
_TRACEBACK_EVERY = 60.0
_NOT_READ = Resolved(refusal=InvalidIdentity("Nobody has looked at the request yet."), names_session=False)
logger = logging.getLogger("convmem.middleware")


@dataclass(frozen=True, slots=True)
class Services:
    """What one middleware shares among its requests.

    Attributes:
        degrade: Run the app without memory while the store is down.
        state_key: Where the conversation stands in ``request.state``; empty: nowhere.
        debug: Say in response headers what was done.
        issue_session_id: Hands out an id for an owner and a tenant.
        idempotency_header: The header, in lower case, whose key names a turn.
        hinted: The first route that appended without a lease, once it was logged.
        traced: When the traceback of a problem was logged last, by its code.
    """

    ledger: Ledger
    reader: IdentityReader
    routes: Routes
    degrade: bool
    state_key: str
    debug: bool
    issue_session_id: Callable[[str, str], str]
    idempotency_header: bytes
    hinted: list[str] = field(default_factory=list)
    traced: dict[str, float] = field(default_factory=dict)

    def wants_traceback(self, code: str) -> bool:
        """Return whether a problem's traceback is due: an outage is one cause and thousands of requests, each with its own line."""
        now = time.monotonic()
        due = now - self.traced.get(code, -_TRACEBACK_EVERY) >= _TRACEBACK_EVERY
        if due:
            self.traced[code] = now
        return due


class Connection(Work, ABC):
    """One request, or one WebSocket, on its way to its conversation. Made for one of them, used by its tasks and threads only.

    The members below "What its conversation asks" are called by that, also from threads.
    """

    _too_late: ClassVar[str]
    _resolved = _NOT_READ
    _scope: Scope | None = None
    _kept: ConvmemError | None = None
    _raised: ConvmemError | None = None
    _asked: SessionKey | None = None
    _owner_given: str | None = None
    _touched = False
    _begun = False
    _outcome = "none"

    def __init__(self, services: Services, scope: Scope, path: str, route: Route) -> None:
        """Decide nothing yet."""
        super().__init__(services.ledger, within=work_around())
        self._services = services
        self._request = scope
        self._path = path
        self._route = route
        self._first_touch = threading.Lock()

    # What the two kinds do differently

    @abstractmethod
    async def _enter(self, turn: Turn, claimed: Head | None) -> None:
        """Load the conversation named by the request, for what the handler does before it opens a turn of its own."""

    # Finding and loading

    def _without_memory(self, key: SessionKey, error: StoreUnavailable) -> Turn:
        logger.warning("the store is down; this request runs without memory: %s", error)
        self.degraded = True
        return Turn(self.ledger, key, stored=False)

    def _key(self, owner: str, session_id: str) -> SessionKey:
        return SessionKey(owner, session_id, self._resolved.tenant)

    async def _open(self, key: SessionKey) -> Turn:
        self._asked = key
        needs_existing = self._resolved.needs_existing if key is self._resolved.key else await self._needs_existing(key)
        turn = self._turn(key)
        await self._enter(turn, _claimed(self._request["headers"]))
        if needs_existing:
            await need_existing(turn)
        return turn

    async def _needs_existing(self, key: SessionKey) -> bool:
        if key == self._resolved.key:
            return self._resolved.needs_existing
        return await self._services.reader.needs_existing(key.owner, key.session_id, key.tenant)

    def _new(self, key: SessionKey) -> Turn:
        """Return the turn of a conversation that is known to be new."""
        return self._turn(key)

    def _turn(self, key: SessionKey) -> Turn:
        """Return the turn that the connection itself is, not begun."""
        return Turn(self.ledger, key)

    def _scope_for_app(self, conversation: Conversation) -> Scope:
        """Copy what is changed: the server's own dicts are never written to."""
        scope = {**self._request, SCOPE_KEY: conversation}
        if self._services.state_key:
            scope["state"] = {**(self._request.get("state") or {}), self._services.state_key: conversation}
        return scope

    def _let_go(self) -> None:
        """Refer to the conversation no more, which refers to this: its window is then freed as soon as the app has done with it."""
        self._scope = {**(self._scope or {}), SCOPE_KEY: None, "state": self._request.get("state")}

    # What its conversation asks

    def touch(self) -> None:
        """Note that the conversation is used; mint the visitor who has none yet. Where the handler loads, `load` does that."""
        if self._route.defers and not self._touched:
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

    def note(self, error: ConvmemError) -> None:
        """Remember the error, to answer with it if the app makes a 5xx of it."""
        self._raised = error
        self._spend(error)

    def _spend(self, error: ConvmemError) -> None:
        """Evidence is spent by reporting it."""
        if isinstance(error, HistoryLost | HistoryExpired) and self._asked is not None:
            self.ledger.evidence.forget(self._asked)

    @property
    def degrades(self) -> bool:
        """Whether the app goes on without memory while the store is down."""
        return self._services.degrade

    async def load(self, owner: str | None, session_id: str | None) -> Turn:
        """Load the conversation a handler names, or the one the request does."""
        begun = self.takes_turns or (self.turn is not None and self.turn.said and not self.turn.replayed)
        if self._opening or (begun and not self.between_turns):
            msg = "A turn has begun here already; call load() before it."
            raise TurnClosed(msg)
        self._opening = True
        try:
            return await self._load(owner, session_id)
        finally:
            self._opening = False

    async def _load(self, owner: str | None, session_id: str | None) -> Turn:
        previous, self.turn = self.turn, None
        if previous is not None:
            await previous.abandon()
        if self._route.defers and not self._touched:
            here = {name: self._request.get(name, "") for name in ("path", "root_path")}
            self._resolved = await self._services.reader.read({**(self._scope or {}), **here})
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
            turn = await self._open_or_degrade(self._key(owner or self._resolved.owner or "", which))
        self._kept = None
        self._touched = True
        return turn

    async def _open_or_degrade(self, key: SessionKey) -> Turn:
        try:
            return await self._open(key)
        except StoreUnavailable as error:
            if not self._services.degrade:
                raise
            return self._without_memory(key, error)

    def _mint(self, session_id: str, *, needs_existing: bool) -> Turn:
        """Make a new visitor; the conversation is then known to be new, and costs neither a trip nor a lease."""
        if self._begun and self._resolved.may_mint:
            raise VisitorTooLate(self._too_late)
        if needs_existing and self._resolved.may_mint:
            msg = "This id was not handed out; leave it out for the default conversation."
            raise UnknownConversation(msg)
        owner = self._resolved.mint()
        turn = self._new(self._key(owner, session_id))
        self.turn = turn
        return turn

    def _check_order(self) -> None:
        if self._scope is not None and self._scope.get("user") is not None:
            error = self._resolved.order_error(self._scope, owner=self._owner_given)
            if error is not None:
                raise error

    # What the client is told

    def _headers(self) -> list[tuple[bytes, bytes]]:
        headers = self._resolved.response_headers(touched=self._touched)
        if self.degraded:
            headers.append((b"convmem-degraded", b"true"))
        turn = self.turn
        if self._touched and turn is not None and not self.degraded:
            headers.append((REVISION_HEADER, turn.head.revision.encode()))
            if turn.replayed:
                headers.append((b"convmem-replayed", b"true"))
        if self._services.debug and (self._touched or self._asked is not None):
            headers.append((b"convmem-debug", "; ".join(f"{name}={value}" for name, value in self._facts(turn)).encode("ascii", "replace")))
        return headers

    def _facts(self, turn: Turn | None) -> Iterator[tuple[str, object]]:
        """Yield what the debug header says; nothing in it names anybody."""
        key = self._asked if turn is None else turn.key
        yield "owner", self._resolved.source if self._owner_given is None else "load"
        yield "conversation", "none" if key is None else key.digest
        yield "worker", f"{socket.gethostname()}/{os.getpid()}"
        if turn is not None and not self.degraded:
            yield "revision", turn.head.revision
            yield "turns", turn.head.turns
            yield "loaded", turn.log.size
            yield "left-out", max(0, turn.log.head.turns - turn.log.size)
        yield "outcome", self._outcome_so_far(turn)

    def _outcome_so_far(self, turn: Turn | None) -> str:
        if self.degraded:
            return "degraded"
        if turn is not None and turn.replayed:
            return "replayed"
        if self._outcome == "none" and turn is not None and not turn.ended:
            return "open"
        return self._outcome

    def _problem(self, error: ConvmemError, *, head: bool = False) -> list[dict[str, Any]]:
        """Return the events of the answer to an error, which is spent and logged by that."""
        self._log(error)
        self._outcome = error.code
        headers = self._headers()
        if isinstance(error, HistoryLost | HistoryExpired):
            headers = [*((name, value) for name, value in headers if name != REVISION_HEADER), (REVISION_HEADER, error.revision.encode())]
        return problem(error, headers, head=head)

    def _log(self, error: ConvmemError) -> None:
        self._spend(error)
        if error.status >= _SERVER_ERRORS:
            cause = error.__cause__ if self._services.wants_traceback(error.code) else None
            logger.error("%s: %s", error.code, error, exc_info=cause)
        else:
            logger.info("%s: %s", error.code, error)


async def need_existing(turn: Turn) -> None:
    """Raise when there is no such conversation: its id was not handed out, so nobody may begin one under it."""
    if not turn.log.head.epoch:
        await turn.abandon()
        msg = "This id was not handed out to this owner; POST for a new one, or leave it out for the default conversation."
        raise UnknownConversation(msg)


def _claimed(headers: Iterable[tuple[bytes, bytes]]) -> Head | None:
    for name, value in headers:
        if name == REVISION_HEADER:
            return Head.of_revision(value.decode("latin-1"))
    return None


def ours(error: BaseException | None) -> ConvmemError | None:
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
