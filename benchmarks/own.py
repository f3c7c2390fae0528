"""convmem itself, at each of its doors: the store, a conversation, and a request through the middleware without a server."""

from __future__ import annotations

import itertools
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.still import SECRET, Sink, StillStore, appending, ask, bare, reading, request_scope, visitor_cookie
from benchmarks.workload import WINDOW, System, answer, question
from convmem import ConversationMiddleware, Message, SessionKey, Settings, Window, current_conversation, from_callable, open_store
from convmem.access import open_conversation
from convmem.identifiers import new_id, new_token
from convmem.messages import encode_message, encode_messages
from convmem.recollection import RECOLLECTION
from convmem.stores.base import Entry, Head, Lease, Outcome
from convmem.stores.sqlite import SQLiteStore

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from convmem import Store

_LEASE = timedelta(seconds=8)


def _body() -> bytes:
    return encode_messages(map(encode_message, (Message.user(question()), Message.assistant(answer()))))


_BODIES = itertools.cycle([_body() for _ in range(251)])


def _entry(head: Head, token: str, body: bytes | None = None) -> Entry:
    name = new_id()  # a turn of one entry is named by it, as convmem does it
    body = body or next(_BODIES)
    return Entry(name, name, token, head.epoch or new_token(), body, count=2, closing=True, turns=head.turns + 1, start=head.start)


def first_entry() -> Entry:
    """Return a whole turn, the first of its conversation."""
    return _entry(Head(), new_token())


class ThroughStore(System):
    """`Store.load` with the lease, `Store.append` that releases it: two calls with bytes, and no message is typed, as at the limit."""

    async def open(self) -> None:
        """Open the store."""
        place = self.place if "://" in self.place else f"sqlite:///{self.place}/convmem.db"
        self.store: Store = open_store(place)
        await self.store.check()

    async def fill(self, session: str, messages: int) -> None:
        """Append turn after turn, each of its own messages; a file is not flushed after each."""
        store = SQLiteStore(Path(self.place) / "convmem.db", synchronous="normal") if "://" not in self.place else self.store
        key, head = self._key(session), Head()
        for _ in range(messages // 2):
            head = (await store.append(key, head, _entry(head, new_token(), _body()))).head
        if store is not self.store:
            await store.aclose()

    async def turn(self, session: str) -> int:
        """Load, append."""
        key, token = self._key(session), new_token()
        log = await self.store.load(key, turns=WINDOW // 2, lease=Lease(token, _LEASE))
        assert log.holder.token == token
        appended = await self.store.append(key, log.head, _entry(log.head, token), release=True)
        assert appended.outcome is Outcome.STORED
        return 2 * len(log.entries)

    async def aclose(self) -> None:
        """Close the store."""
        await self.store.aclose()

    def _key(self, session: str) -> SessionKey:
        return SessionKey.for_user(session)


class ThroughConversation(ThroughStore):
    """`open_conversation`, and every message of the window as a `Message`, as a job or a script has it."""

    async def turn(self, session: str) -> int:
        """Read the window, append a question and an answer."""
        async with open_conversation(self._key(session), store=self.store) as conversation:
            loaded = len(conversation.messages)
            conversation.append(Message.user(question()), Message.assistant(answer()))
        return loaded


class UnreadConversation(ThroughConversation):
    """The same on a worker that has never read any of it: as its first turn on each of many workers is."""

    async def turn(self, session: str) -> int:
        """Forget what was read, and do a turn."""
        RECOLLECTION.forget()
        return await super().turn(session)


class Direct(System):
    """A request of a known visitor to an app, with no server and no store that does anything."""

    async def open(self) -> None:
        """Make the request."""
        self._app = self._made()
        self._scope, self._sink = request_scope(visitor_cookie(), self._method), Sink()

    async def fill(self, session: str, messages: int) -> None:
        """There is nothing to fill."""

    async def turn(self, session: str) -> int:  # noqa: ARG002 - there is one visitor
        """Send it."""
        await ask(self._app, self._scope, self._sink)
        return 0

    _method = "GET"

    def _made(self) -> ASGIApp:
        return bare


class DirectReading(Direct):
    """Through the middleware: the handler takes its conversation and appends nothing."""

    def _made(self) -> ASGIApp:
        return ConversationMiddleware(reading, store=StillStore(), settings=Settings({}, secret_key=SECRET, cookie_secure="auto"))


class DirectAppending(Direct):
    """Through the middleware: the handler appends a turn, which is committed."""

    _method = "POST"

    def _made(self) -> ASGIApp:
        return ConversationMiddleware(appending, store=StillStore(), settings=Settings({}, secret_key=SECRET, cookie_secure="auto"))


class ThroughMiddleware(ThroughStore):
    """A request through `ConversationMiddleware` around a bare ASGI app, with no server in front."""

    async def open(self) -> None:
        """Wrap the app."""
        await super().open()
        self._app = ConversationMiddleware(
            self._talk,
            store=self.store,
            settings=Settings({}, secret_key=SECRET, cookie_secure="auto"),
            window=Window(turns=WINDOW // 2),
            resolvers=[from_callable(lambda scope: scope["session"])],
        )
        self._scope = request_scope(b"theme=dark")
        self._sink = Sink()
        self._loaded: dict[str, int] = {}

    async def turn(self, session: str) -> int:
        """Send one request."""
        await ask(self._app, {**self._scope, "session": session}, self._sink)
        return self._loaded.pop(session)

    async def _talk(self, scope: Scope, receive: Receive, send: Send) -> None:
        conversation = current_conversation()
        self._loaded[scope["session"]] = len(conversation.messages)
        await receive()
        conversation.append(Message.user(question()), Message.assistant(answer()))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})
