"""WebSocket: one connection from its handshake to its close, with any number of turns on it.

The handshake says who and which, as a request does; it is also the only moment at which a visitor's cookie can be set. What was
stored before is read then, without a lease. Each ``async with conversation.turn():`` loads again, takes the lease, and has stored
its turn when the block ends, so that nothing depends on how the connection ends: servers cut it without a word.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from convmem.connection import Connection, Services, need_existing, ours
from convmem.context import current
from convmem.conversation import Conversation
from convmem.exceptions import ConfigurationError, ConvmemError, CookieNotSent, HistoryExpired, HistoryLost, StoreUnavailable
from convmem.keys import SessionKey
from convmem.problems import problem
from convmem.routes import Route
from convmem.stores.base import Head
from convmem.turns import Turn

_DENIAL = "websocket.http.response"
_REFUSED, _BROKEN, _TRY_AGAIN = 1008, 1011, 1013  # IANA's WebSocket Close Code Number Registry
_SERVER_ERRORS = 500
_DROPS_HEADERS = "granian"
"""The server that accepts a WebSocket without the headers the app gave (2.8). It is found among the imported modules: nothing in the
scope names it, and only its own workers import it."""
_PASSING = (StoreUnavailable, HistoryLost, HistoryExpired)
"""What keeps a conversation from being read at the handshake, and not from being loaded by a turn later."""


class WebSocket(Connection):
    """One WebSocket."""

    takes_turns = True
    _too_late = (
        "The conversation of a new visitor was first used when the WebSocket had been accepted, too late for its cookie. Take it before: "
        "conversation = await get_conversation(websocket), then await websocket.accept()."
    )

    def __init__(self, services: Services, scope: Scope, path: str, route: Route, receive: Receive, send: Send) -> None:
        """Decide nothing yet."""
        super().__init__(services, scope, path, route)
        self._wire = _Wire(scope, receive, send)
        self._foreign = services.reader.refuses_origin(scope)
        self._kept = self._foreign

    @property
    def hung_up(self) -> bool:
        """Whether the client has left."""
        return self._wire.hung_up

    async def run(self, app: ASGIApp) -> None:
        """Read what is stored, and run the app."""
        if not self._route.defers and self._foreign is None:
            self._resolved = await self._services.reader.read(self._request)
            await self._prepare()
        conversation = Conversation(self)
        scope = self._scope = self._scope_for_app(conversation)
        before = current.set(conversation)
        try:
            await app(scope, self._wire.receive, self._tell)
        except Exception as error:
            refusal = ours(error)
            if refusal is None:
                raise
            await self._refuse(refusal)
        finally:
            current.reset(before)
            self._let_go()

    async def _prepare(self) -> None:
        """Read where loading is eager; what stands in the way is kept for whoever uses the conversation."""
        key = self._resolved.key
        if key is None:
            return
        try:
            self.turn = await self._open_or_degrade(key)
        except _PASSING as error:
            self._kept = error
            self.turn = self._new(key)
        except ConvmemError as error:
            self._kept = error

    async def _enter(self, turn: Turn, claimed: Head | None) -> None:
        """Read; what is appended needs a turn of its own."""
        await turn.look(claimed)

    async def _open_or_degrade(self, key: SessionKey) -> Turn:
        turn = await super()._open_or_degrade(key)
        turn.stay_closed()
        return turn

    def _new(self, key: SessionKey) -> Turn:
        """Return a conversation that is known to be new, to be appended to in turns of its own."""
        turn = super()._new(key)
        turn.stay_closed()
        return turn

    def _mint(self, session_id: str, *, needs_existing: bool) -> Turn:
        if not self._begun and self._resolved.may_mint and _DROPS_HEADERS in sys.modules:
            msg = (
                f"{_DROPS_HEADERS} does not send the headers of websocket.accept, so a new visitor's cookie would be lost: have the page "
                "make one request that takes the conversation (get_conversation(request)) before it opens the WebSocket."
            )
            raise CookieNotSent(msg)
        return super()._mint(session_id, needs_existing=needs_existing)

    # What its conversation asks

    async def load(self, owner: str | None, session_id: str | None) -> Turn:
        """Read the conversation a handler names, or the one the handshake does; not for a page of another origin, whoever signed in."""
        if self._foreign is not None:
            raise self._foreign
        return await super().load(owner, session_id)

    async def before_turn(self) -> None:
        """Forget what kept the conversation from being read at the handshake: the turn loads again."""
        if isinstance(self._kept, _PASSING):
            self._kept = None

    async def begin(self, key: SessionKey) -> Turn:
        """Return a turn, begun by the policy of the path."""
        needs_existing = await self._needs_existing(key)
        turn = Turn(self.ledger, key)
        self._asked = key
        try:
            await turn.begin(self._route.policy)
        except StoreUnavailable as error:
            if not self._services.degrade:
                raise
            return self._without_memory(key, error)
        if needs_existing:
            await need_existing(turn)
        return turn

    # What the client is told

    async def _tell(self, message: Message) -> None:
        if message["type"] == "websocket.close" and self._raised is not None and _is_failure(message.get("code", 1000)):
            await self._refuse(self._raised)
            return
        if message["type"] in ("websocket.accept", f"{_DENIAL}.start"):
            self._begun = True
            message = {**message, "headers": _folded([*message.get("headers", ()), *self._headers()])}
        await self._wire.send(message)

    async def _refuse(self, error: ConvmemError) -> None:
        if self._begun:
            self._log(error)
            await self._wire.close(error)
        else:
            await self._wire.deny(self._problem(error), error)


@dataclass(slots=True)
class _Wire:
    """The server's side of one WebSocket, and how far it has come."""

    scope: Scope
    to_receive: Receive
    to_send: Send
    connected: bool = False
    closed: bool = False
    hung_up: bool = False

    async def receive(self) -> Message:
        message = await self.to_receive()
        self.connected = True
        if message["type"] == "websocket.disconnect":
            self.hung_up = True
        return message

    async def send(self, message: Message) -> None:
        if message["type"] in ("websocket.close", f"{_DENIAL}.start"):
            self.closed = True
        try:
            await self.to_send(message)
        except OSError:  # the client is gone (ASGI's WebSocket specification, 2.4)
            self.hung_up = True
            raise

    async def deny(self, events: Sequence[Message], error: ConvmemError) -> None:
        """Refuse the handshake with a whole response where the server can, else with its 403."""
        if not self.connected:
            await self.receive()
        if self._over or _DENIAL not in (self.scope.get("extensions") or {}):
            await self.close(error)
            return
        start, body = events
        await self.to_send({**start, "type": f"{_DENIAL}.start", "headers": _folded(start["headers"])})
        await self.to_send({**body, "type": f"{_DENIAL}.body"})

    async def close(self, error: ConvmemError) -> None:
        if not self._over:
            await self.send({"type": "websocket.close", "code": _close_code(error), "reason": error.code})

    @property
    def _over(self) -> bool:
        return self.closed or self.hung_up


async def refuse(error: ConvmemError, scope: Scope, receive: Receive, send: Send) -> None:
    """Refuse a handshake that cannot be looked at, because the settings are wrong or the store is down."""
    await _Wire(scope, receive, send).deny(problem(error, []), error)


def _folded(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Return the headers with fields of one name made one, which means the same (RFC 9110 §5.3), except cookies.

    A worker of granian 2.8 dies of a denial with two fields of one name.
    """
    folded: dict[bytes, bytes] = {}
    cookies = []
    for name, value in headers:
        if name.lower() == b"set-cookie":
            cookies.append((name, value))
        else:
            key = name.lower()
            folded[key] = folded[key] + b", " + value if key in folded else value
    return [*folded.items(), *cookies]


def _is_failure(code: int) -> bool:
    """Return whether an app closes with this because of an error it did not expect; Litestar says so by 4500 and above."""
    return code == _BROKEN or 4000 + _SERVER_ERRORS <= code < 4000 + _SERVER_ERRORS + 100


def _close_code(error: ConvmemError) -> int:
    if error.retry_after is not None or isinstance(error, ConfigurationError):
        return _TRY_AGAIN
    return _BROKEN if error.status >= _SERVER_ERRORS else _REFUSED
