"""Ways to a conversation: in a request, in code that has no request, and outside of any."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, nullcontext, suppress
from contextvars import Token
from dataclasses import dataclass, replace
from types import TracebackType
from weakref import WeakValueDictionary

from starlette.requests import HTTPConnection

from convmem import forks
from convmem.config import Settings
from convmem.connection import SCOPE_KEY
from convmem.context import current, work_around
from convmem.conversation import Conversation, work_of
from convmem.exceptions import ConfigurationError, ConversationBusy, HistoryExpired, HistoryLost, NoConversation
from convmem.heartbeat import Heartbeat
from convmem.idempotency import turn_of_job
from convmem.identity import KeyRing, new_session_id as _new_session_id
from convmem.keys import SessionKey
from convmem.middleware import rules_of
from convmem.routes import Routes
from convmem.stores.base import Page, Store
from convmem.turns import Ledger, Rules, Turn
from convmem.work import Work

_INSTALL = "app.add_middleware(ConversationMiddleware)"


async def get_conversation(source: HTTPConnection) -> Conversation:
    """Return the conversation of a request; usable as a FastAPI dependency: ``Annotated[Conversation, Depends(get_conversation)]``.

    Args:
        source: A request or WebSocket; at run time also an ASGI scope, or anything with a ``scope``.

    Raises:
        NoConversation: The middleware is missing, or does not cover this path; the message has the line to change.
        ConvmemError: Whatever kept the conversation from being loaded.
    """
    found = _scope_of(source).get(SCOPE_KEY)
    if isinstance(found, Routes):
        msg = f"This path has no conversation: ConversationMiddleware covers {found.described}; add it to paths=[...]."
        raise NoConversation(msg)
    return _taken(found if isinstance(found, Conversation) else current.get())


def current_conversation() -> Conversation:
    """Return the conversation of the request in whose context this code runs. Errors as in `get_conversation`."""
    return _taken(current.get())


def _taken(conversation: Conversation | None) -> Conversation:
    if conversation is None:
        msg = f"No conversation here: add {_INSTALL}, and this path to its paths=[...]; outside a request use open_conversation(key)."
        if asyncio._get_running_loop() is None:  # noqa: SLF001 - None instead of an error
            msg += (
                " A thread may not know its request: hand the conversation over, or start it with asyncio.to_thread, which takes the "
                "context along; falcon.sync_to_async and loop.run_in_executor do not."
            )
        raise NoConversation(msg)
    work = work_of(conversation)
    with work.reporting():
        work.touch()
    return conversation


def _scope_of(source: object) -> Mapping[str, object]:
    """Return the scope of a request, in the places where frameworks keep it; an empty one when there is none."""
    for holder in (source, getattr(source, "transport", None)):
        scope = holder if isinstance(holder, Mapping) else getattr(holder, "scope", None)
        if isinstance(scope, Mapping):
            return scope
    return {}


def open_conversation(
    key: SessionKey, *, store: Store | None = None, idempotency_key: str | None = None
) -> AbstractAsyncContextManager[Conversation]:
    """Open a turn outside a request: in a job, a script, a notebook, a webhook. The same rules as for a request's turn.

    The turn is stored when the block ends. When it raises, what `save` and `record` have stored stays and reads as
    interrupted, and the rest is dropped.

    Args:
        key: The conversation; ``SessionKey.for_user("42")`` is the default one of that user.
        store: None: inside a request the one of the middleware, else the one of ``CONVMEM_STORE``, closed at the end.
        idempotency_key: Names this turn, for a job that may be run again: the id of the job. Once the turn is complete,
            `Conversation.replayed` is true in each later run and nothing is stored again; an attempt that died is superseded.
            A client's ``Idempotency-Key`` of the same text names another turn.

    Raises:
        ConversationBusy: Another turn is still running; or this very one (`same_turn`), for which nobody waits.
        InvalidIdempotencyKey: `idempotency_key` is empty.
        StoreUnavailable: The store did not answer.
        ConfigurationError: The environment's settings cannot work.
    """
    return _Job(key, store, idempotency_key)


class _Job(AbstractAsyncContextManager[Conversation]):
    """See `open_conversation`: begins the turn, makes its conversation the current one, and ends both."""

    _outer: Work | None
    _at_hand: _AtHand
    _work: Work
    _before: Token[Conversation | None]

    def __init__(self, key: SessionKey, store: Store | None, name: str | None) -> None:
        self._key, self._store, self._name = key, store, name

    async def __aenter__(self) -> Conversation:
        turn_id = turn_of_job(self._name)
        self._outer = outer = work_around()
        self._at_hand = at_hand = _at_hand(self._store)
        turn = Turn(at_hand.ledger, self._key, turn_id=turn_id)
        try:
            with _noting(outer):
                await self._begin(turn)
        except BaseException:
            await at_hand.done(self._key)
            raise
        self._work = Work(at_hand.ledger, turn, within=outer)
        conversation = Conversation(self._work)
        self._before = current.set(conversation)
        return conversation

    async def _begin(self, turn: Turn) -> None:
        if self._outer is not None and self._outer.runs(turn.key, turn.ledger.store):
            raise ConversationBusy(own_turn=True)
        await turn.begin()

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        try:
            if error is not None:
                await self._work.end_broken(error)
                return
            with _noting(self._outer):
                await self._work.finish()
        finally:
            with suppress(ValueError):  # whoever ends a generator does so in a context of its own, which does not know of this
                current.reset(self._before)
            await self._at_hand.done(self._key)


@asynccontextmanager
async def read_conversation(key: SessionKey, *, store: Store | None = None) -> AsyncGenerator[Conversation, None]:
    """Load a conversation only to read it: no turn, no lease, and nobody is waited for. Appending raises `TurnClosed`.

    Args:
        key: The conversation.
        store: As in `open_conversation`.

    Raises:
        HistoryLost: The store lost what it had acknowledged; said once.
        HistoryExpired: The history outlived its TTL; the same.
        StoreUnavailable: The store did not answer.
    """
    async with _ledger(store) as ledger:
        turn = Turn(ledger, key)
        with _noting(work_around()):
            try:
                await turn.look()
            except (HistoryLost, HistoryExpired):
                ledger.evidence.forget(key)
                raise
        turn.stay_closed()
        yield Conversation(Work(ledger, turn))


async def conversations(owner: str, *, tenant: str = "", store: Store | None = None, after: str | None = None, limit: int = 50) -> Page:
    """Return an owner's conversations, the last written first; for a visitor as for a user.

    Args:
        owner: Such as ``conversation.owner``, or ``user:42``.
        tenant: As in the key.
        store: As in `open_conversation`.
        after: `Page.after` of the page before.
        limit: At most this many, 1 to 1000.

    Raises:
        InvalidIdentity: `owner` or `tenant` has another form.
        ValueError: `after` is not from a page, or `limit` is out of range.
        StoreUnavailable: The store did not answer.
    """
    if not 1 <= limit <= _MOST_LISTED:
        msg = f"limit is {limit}; use 1 to {_MOST_LISTED}, and after= for the next page."
        raise ValueError(msg)
    async with store_at_hand(store) as opened:
        return await opened.list(owner, tenant=tenant, after=after, limit=limit)


def new_session_id(owner: str, *, tenant: str = "") -> str:
    """Return a fresh id for a conversation of this owner; nothing is stored.

    Under ``CONVMEM_CLIENT_IDS=issued`` the id ends in a MAC over owner and tenant, so that the middleware knows it again.

    Raises:
        ConfigurationError: Outside a request, ids are signed, and the key is kept in the store: set ``CONVMEM_SECRET_KEY``.
    """
    work = work_around()
    issue = None if work is None else work.issue_session_id
    if issue is not None:
        return issue(owner, tenant)
    settings = Settings.from_environment()
    issued = settings.client_ids == "issued"
    if issued and not settings.signing_keys:
        msg = "CONVMEM_CLIENT_IDS is issued and the signing key is in the store; outside a request, set CONVMEM_SECRET_KEY."
        raise ConfigurationError(msg)
    return _new_session_id(owner, tenant, keyring=KeyRing(settings.signing_keys) if issued else None, issued=issued)


async def fork(key: SessionKey, at: str | int | None = None, *, session_id: str | None = None, store: Store | None = None) -> SessionKey:
    """Copy a conversation, up to a place, into a new one of the same owner; return the address of the copy.

    The copy shows what the source showed at that place: an edit or a retry that came later is no part of it, and what an edit had
    hidden by then is hidden. From then on neither knows of the other. A turn that is still running is left out; another one may
    go on meanwhile. What reads as interrupted in the source does so in the copy.

    Args:
        key: The source.
        at: What `Conversation.revision` was at that place, or the position of its last entry; None: all of it.
        session_id: Of the copy; None: a fresh one. With one and with `at`, a fork that is repeated makes no second copy.
        store: As in `open_conversation`.

    Raises:
        UnknownConversation: There is nothing at `key`.
        UnknownRevision: It has no such place, or what was there was cleared since.
        ConversationConflict: `session_id` is the id of something else.
        ConversationGone: The source was deleted meanwhile.
        InvalidIdentity: `session_id` is no session id.
        StoreUnavailable: The store did not answer. A copy that was begun is taken away again, as far as the store can be reached.
    """
    async with _ledger(store) as ledger:
        with _noting(work_around()):
            copy = SessionKey(key.owner, session_id or new_session_id(key.owner, tenant=key.tenant), key.tenant)
            await forks.copy(ledger.store, key, copy, at, ttl=ledger.rules.ttl)
            return copy


_MOST_LISTED = 1000


@asynccontextmanager
async def store_at_hand(store: Store | None) -> AsyncGenerator[Store, None]:
    """Return the store to work with: the one given, that of the middleware around this code, or the environment's, then closed."""
    async with ledger_at_hand(store) as ledger:
        yield ledger.store


@asynccontextmanager
async def ledger_at_hand(store: Store | None) -> AsyncGenerator[Ledger, None]:
    """Return the ledger over that store, with the rules of the middleware around this code, or of the environment."""
    async with _ledger(store) as ledger:
        with _noting(work_around()):
            yield ledger


def _noting(work: Work | None) -> AbstractContextManager[None]:
    """Tell the request around this code of an error, so that it is answered as one of its own conversation's."""
    return nullcontext() if work is None else work.reporting()


@asynccontextmanager
async def _ledger(store: Store | None) -> AsyncGenerator[Ledger, None]:
    """Return the ledger to work with, and close the store afterwards if it was opened for this."""
    at_hand = _at_hand(store)
    try:
        yield at_hand.ledger
    finally:
        if at_hand.opened is not None:
            await at_hand.opened.aclose()


@dataclass(frozen=True, slots=True)
class _AtHand:
    """A ledger to work with.

    Attributes:
        borrowed: Whether it is that of the middleware around this code, which sees to the end of what is under way.
        opened: The store to close; None when it was there before.
    """

    ledger: Ledger
    borrowed: bool = False
    opened: Store | None = None

    async def done(self, key: SessionKey) -> None:
        """Let the writes of a turn on that conversation end, for a bounded time, and close what was opened."""
        try:
            if not self.borrowed:
                await self.ledger.settle(key, _DRAIN_SECONDS)
        finally:
            if self.opened is not None:
                await self.opened.aclose()


def _at_hand(store: Store | None) -> _AtHand:
    """Return the ledger of the middleware around this code, one over a store given, or one over the environment's."""
    work = work_around()
    if work is not None and (store is None or store is work.ledger.store):
        return _AtHand(work.ledger, borrowed=True)
    settings = Settings.at_hand()
    if store is not None:
        return _AtHand(_jobs.ledger(store, settings))
    opened = settings.open_store()
    return _AtHand(Ledger(opened, _jobs.rules(settings), _jobs.heartbeat()), opened=opened)


class _Jobs:
    """What the turns that are open outside of requests have in common.

    Those on one store, under the same rules and in the same event loop, are of one ledger: of several on one conversation each hands
    over to the next one, and none asks the store over and over whether it is free. A ledger lives as long as a turn of it is open.
    """

    def __init__(self) -> None:
        self._rules: tuple[Settings, Rules] | None = None
        self._heartbeat: Heartbeat | None = None
        self._ledgers: WeakValueDictionary[tuple[int, int, asyncio.AbstractEventLoop], Ledger] = WeakValueDictionary()

    def rules(self, settings: Settings) -> Rules:
        """Return the rules of these settings, the same object for the same object; any number of jobs may wait, they block no request."""
        known = self._rules
        if known is None or known[0] is not settings:
            self._rules = known = (settings, replace(rules_of(settings), max_waiting=sys.maxsize))
        return known[1]

    def ledger(self, store: Store, settings: Settings) -> Ledger:
        """Return the ledger of the turns on this store."""
        rules = self.rules(settings)
        name = (id(store), id(rules), asyncio.get_running_loop())
        ledger = self._ledgers.get(name)
        if ledger is None:
            ledger = self._ledgers[name] = Ledger(store, rules, self.heartbeat())
        return ledger

    def heartbeat(self) -> Heartbeat:
        """Return that of this event loop: it outlives the ledgers, so that a job after another makes no timer of its own."""
        loop, heartbeat = asyncio.get_running_loop(), self._heartbeat
        if heartbeat is None or heartbeat.loop is not loop:
            self._heartbeat = heartbeat = Heartbeat(loop)
        return heartbeat


_jobs = _Jobs()
_DRAIN_SECONDS = 5.0
