"""A client that calls an ASGI app as a server does, and notes in which order things happen to the store and to itself."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Self

import pytest
import pytest_asyncio
from starlette.types import ASGIApp, Message as Event, Receive, Scope, Send

from convmem import ConversationMiddleware, Message, SessionKey, Settings, from_callable
from convmem.identifiers import new_id, new_token
from convmem.messages import decode_messages, encode_message, encode_messages
from convmem.stores.base import Entry, Log, Store
from convmem.stores.memory import MemoryStore
from convmem.stores.sqlite import SQLiteStore
from convmem.testing import FaultyStore
from tests.servers.processes import PATIENCE

SECRET = "a secret key of thirty-two bytes"
AT_ONCE = 15.0
"""Seconds within which is done what waits for nobody: fewer than a turn waits for another, more than a busy machine needs."""
ADA = SessionKey.for_user("ada")
BOB = SessionKey.for_user("bob")


def user_header(scope: Scope) -> str | None:
    """Return the user an imaginary gateway has authenticated."""
    return next((value.decode() for name, value in scope["headers"] if name == b"x-user"), None)


def quick(**overrides: object) -> Settings:
    """Return settings with a secret; nothing is read from the environment."""
    return Settings({}, **{"secret_key": SECRET, "turn_wait": "30s", "lease": "10s", **overrides})


@dataclass
class Answer:
    """What a client got.

    Attributes:
        seen: What reached it, in order: ``start``, ``chunk``, ``end``.
        whole: Whether it has seen an honest end.
        raised: What came out of the app, which a server logs.
        scope: The server's own scope after the request.
    """

    status: int = 0
    headers: list[tuple[str, str]] = field(default_factory=list)
    chunks: list[bytes] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)
    whole: bool = False
    raised: BaseException | None = None
    scope: Scope = field(default_factory=dict)

    @property
    def text(self) -> str:
        return b"".join(self.chunks).decode()

    @property
    def data(self) -> Any:
        return json.loads(self.text)

    @property
    def code(self) -> str:
        """The last part of the problem type; empty when this is no problem document."""
        if self.header("content-type") != "application/problem+json":
            return ""
        assert self.data["status"] == self.status
        return str(self.data["type"].rpartition(":")[2])

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key == name]

    def header(self, name: str) -> str | None:
        values = self.all(name)
        assert len(values) < 2, f"{name} came {len(values)} times"
        return values[0] if values else None


class Client:
    """Calls one app; keeps cookies, and hangs up when it is told to.

    Args:
        journal: ``start``, ``chunk`` and ``end`` are noted here too, between whatever else is noted there.
        at_the_end: Called when the last byte arrives, before the app goes on.
    """

    def __init__(self, app: ASGIApp, *, journal: list[Any] | None = None, state: dict[str, Any] | None = None) -> None:
        self.app = app
        self.journal = journal
        self.state = state
        self.cookies: dict[str, str] = {}
        self.at_the_end: Callable[[], Awaitable[None]] | None = None

    async def post(self, path: str = "/chat", text: str = "", **options: Any) -> Answer:
        return await self.request("POST", path, text, **options)

    async def get(self, path: str = "/chat", **options: Any) -> Answer:
        return await self.request("GET", path, **options)

    async def request(
        self,
        method: str,
        path: str = "/chat",
        text: str = "",
        *,
        user: str | None = "ada",
        headers: Mapping[str, str] | None = None,
        leave: asyncio.Event | None = None,
        root_path: str = "",
        query: str = "",
    ) -> Answer:
        """Send one request and return what came back, whatever became of the app.

        Args:
            user: Whom the gateway has authenticated; None is nobody.
            leave: Set it, and the client is gone.
        """
        scope = {**self._scope("http", path, user, headers, query), "method": method, "root_path": root_path}
        answer = Answer(scope=scope)
        wire = _Wire(self, answer, method, text, leave or asyncio.Event())
        try:
            await self.app(scope, wire.receive, wire.send)
        except Exception as error:  # noqa: BLE001 - a server logs it
            answer.raised = error
        return answer

    def socket(
        self,
        path: str = "/ws",
        *,
        user: str | None = "ada",
        headers: Mapping[str, str] | None = None,
        query: str = "",
        scheme: str = "ws",
        extensions: Mapping[str, Any] | None = MappingProxyType({"websocket.http.response": {}}),
        tells_who_is_gone: bool = True,
    ) -> Socket:
        """Return a WebSocket, to be opened by ``async with``.

        Args:
            extensions: What the server offers; None: it says nothing about it.
            tells_who_is_gone: Whether sending to a client that has left raises, as uvicorn does, or is silent, as hypercorn is.
        """
        scope = {**self._scope("websocket", path, user, headers, query), "scheme": scheme, "subprotocols": []}
        if extensions is not None:
            scope["extensions"] = dict(extensions)
        return Socket(self, scope, tells_who_is_gone=tells_who_is_gone)

    def keep_cookies(self, headers: list[tuple[str, str]]) -> None:
        for name, value in headers:
            if name == "set-cookie":
                pair = value.partition(";")[0]
                self.cookies[pair.partition("=")[0]] = pair.partition("=")[2]

    def _scope(self, kind: str, path: str, user: str | None, headers: Mapping[str, str] | None, query: str) -> Scope:
        fields = {**({"x-user": user} if user else {}), **(headers or {})}
        if self.cookies and "cookie" not in fields:
            fields["cookie"] = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        scope: Scope = {
            "type": kind,
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": query.encode(),
            "headers": [(name.encode(), value.encode("latin-1")) for name, value in fields.items()],
        }
        if self.state is not None:
            scope["state"] = self.state
        return scope


class _Wire:
    """The server's side of one request: what it hands in, and when its client takes the answer for complete."""

    def __init__(self, client: Client, answer: Answer, method: str, text: str, leave: asyncio.Event) -> None:
        self.client, self.answer, self.method, self.text, self.leave = client, answer, method, text, leave
        self.asked = False
        self.over = asyncio.Event()
        self.left: int | None = None
        self.trailers = False

    async def receive(self) -> Event:
        if not self.asked:
            self.asked = True
            return {"type": "http.request", "body": self.text.encode(), "more_body": False}
        waits = [asyncio.ensure_future(event.wait()) for event in (self.over, self.leave)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        return {"type": "http.disconnect"}

    async def send(self, event: Event) -> None:
        if self.leave.is_set():
            return
        kind = event["type"]
        if kind == "http.response.start":
            assert not self.answer.status, "the response started twice"
            self.answer.status = event["status"]
            self.answer.headers = [(name.decode().lower(), value.decode("latin-1")) for name, value in event["headers"]]
            self.client.keep_cookies(self.answer.headers)
            self.trailers = event.get("trailers", False)
            self._note("start")
            length = next((value for name, value in self.answer.headers if name == "content-length"), None)
            self.left = int(length) if length else None
            if self.method == "HEAD" or event["status"] in (204, 304) or self.left == 0:
                await self._end()
        elif kind == "http.response.body":
            body = event.get("body", b"")
            if body and not self.over.is_set():
                self.answer.chunks.append(body)
                self._note("chunk")
                self.left = None if self.left is None else self.left - len(body)
            if (self.left is not None and self.left <= 0) or not (event.get("more_body", False) or self.trailers):
                await self._end()
        elif kind == "http.response.pathsend" or (kind == "http.response.trailers" and not event.get("more_trailers", False)):
            await self._end()

    async def _end(self) -> None:
        if self.over.is_set():
            return
        self._note("end")
        self.answer.whole = True
        if self.client.at_the_end is not None:
            await self.client.at_the_end()
        self.over.set()

    def _note(self, what: str) -> None:
        self.answer.seen.append(what)
        if self.client.journal is not None:
            self.client.journal.append(what)


class Socket:
    """One WebSocket and its client, which leaves at the end of the block if it is still there.

    Attributes:
        handshake: The answer to the handshake: 101 when it was accepted, else what refused it.
        code: With which the server closed it; 0 while it has not.
        raised: What came out of the app, which a server logs.
    """

    def __init__(self, client: Client, scope: Scope, *, tells_who_is_gone: bool) -> None:
        self.client, self.scope, self.tells_who_is_gone = client, scope, tells_who_is_gone
        self.handshake = Answer(scope=scope)
        self.code, self.reason = 0, ""
        self.raised: BaseException | None = None
        self.left = False
        self._answered = asyncio.Event()
        self._said: asyncio.Queue[Event] = asyncio.Queue()
        self._heard: asyncio.Queue[str | None] = asyncio.Queue()
        self._app: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._said.put_nowait({"type": "websocket.connect"})
        self._app = asyncio.create_task(self._run())
        async with asyncio.timeout(PATIENCE):
            await self._answered.wait()
        self.client.keep_cookies(self.handshake.headers)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.leave()

    @property
    def accepted(self) -> bool:
        return self.handshake.status == 101

    def say(self, text: str) -> None:
        """Send a message to the app."""
        self._said.put_nowait({"type": "websocket.receive", "text": text})

    async def hear(self) -> str | None:
        """Return the next message of the app; None when the connection is over."""
        async with asyncio.timeout(PATIENCE):
            return await self._heard.get()

    async def ask(self, text: str) -> str | None:
        self.say(text)
        return await self.hear()

    def hang_up(self, code: int = 1006) -> None:
        """Leave, and do not wait until the app is done."""
        if not self.left:
            self.left = True
            self._said.put_nowait({"type": "websocket.disconnect", "code": code})

    async def leave(self, code: int = 1000) -> None:
        """Leave, and wait until the app is done."""
        self.hang_up(code)
        await self.over()

    async def over(self) -> None:
        """Wait until the app is done."""
        assert self._app is not None
        async with asyncio.timeout(PATIENCE):
            await asyncio.wait([self._app])

    def cancel(self) -> None:
        """Cancel the app, as a server does that shuts down."""
        assert self._app is not None
        self._app.cancel()

    async def _run(self) -> None:
        try:
            await self.client.app(self.scope, self._said.get, self._send)
        except BaseException as error:  # noqa: BLE001 - a server logs it
            self.raised = error
        finally:
            self._heard.put_nowait(None)
            self._answered.set()

    async def _send(self, event: Event) -> None:
        kind, answer = event["type"], self.handshake
        if self.left:
            if self.tells_who_is_gone:
                raise OSError("the client is gone")
            return
        assert not self.code, f"{kind} came after the close"
        if kind in ("websocket.accept", "websocket.http.response.start"):
            assert not answer.status, "the handshake was answered twice"
            answer.status = event.get("status", 101)
            answer.headers = [(name.decode().lower(), value.decode("latin-1")) for name, value in event.get("headers", ())]
            if kind == "websocket.accept":
                self._answered.set()
        elif kind == "websocket.http.response.body":
            answer.chunks.append(event.get("body", b""))
            answer.whole = not event.get("more_body", False)
            self._answered.set()
        elif kind == "websocket.close":
            self.code, self.reason = event.get("code", 1000), event.get("reason") or ""
            answer.status = answer.status or 403  # as servers do
            self._answered.set()
            self._heard.put_nowait(None)
        else:
            assert kind == "websocket.send"
            assert self.accepted
            self._heard.put_nowait(event["text"])


class World:
    """A store that can be made to fail, the apps on it, and what is left when they are done."""

    def __init__(self, inner: Store) -> None:
        self.inner = inner
        self.store = FaultyStore(inner)
        self.keys = [ADA, BOB]

    def serve(self, app: ASGIApp, *, store: Store | None = None, settings: Settings | None = None, **options: Any) -> Client:
        """Return a client of this app inside a middleware; users are known by ``x-user``."""
        options.setdefault("resolvers", [from_callable(user_header)])
        middleware = ConversationMiddleware(app, store=store or self.store, settings=settings or quick(), **options)
        return Client(middleware, journal=self.store.calls)

    async def log(self, key: SessionKey = ADA) -> Log:
        return await self.inner.load(key)

    async def texts(self, key: SessionKey = ADA) -> list[str]:
        """Return what is stored, as ``role: text``."""
        log = await self.log(key)
        return [f"{message.role}: {message.text}" for stored in log.entries for message in decode_messages(stored.entry.body)]

    async def states(self, key: SessionKey = ADA) -> list[str]:
        return [turn.state for turn in (await self.log(key)).turns]

    async def put(self, *messages: Message, key: SessionKey = ADA) -> None:
        """Store a complete turn as another worker would."""
        head = (await self.log(key)).head
        body = encode_messages(map(encode_message, messages))
        pinned = (*head.pinned, head.n + 1) if any(message.role == "system" for message in messages) else head.pinned
        entry = Entry(
            new_id(), new_id(), new_token(), head.epoch or new_token(), body,
            count=len(messages), closing=True, turns=head.turns + 1, start=head.start, pinned=pinned,
        )  # fmt: skip
        assert (await self.inner.append(key, head, entry)).outcome == "stored"

    async def at_rest(self) -> None:
        """Assert that no task is left, and no lease."""
        here = asyncio.current_task()
        others = [task for task in asyncio.all_tasks() if task is not here]
        if others:
            await asyncio.wait(others, timeout=PATIENCE)
        leaked = [task for task in asyncio.all_tasks() if task is not here and not task.done()]
        assert not leaked, f"tasks are left: {leaked}"
        for key in self.keys:
            assert (await self.log(key)).holder.token == "", f"the lease of {key} is left"


@pytest_asyncio.fixture(params=["memory", "sqlite"])
async def world(request: pytest.FixtureRequest, tmp_path: Any) -> AsyncIterator[World]:
    """Return an empty store of each kind, and look afterwards whether anything was left behind."""
    inner: Store = MemoryStore() if request.param == "memory" else SQLiteStore(tmp_path / "convmem.db")
    world = World(inner)
    yield world
    world.store.mend()
    await world.at_rest()
    await inner.aclose()


@pytest_asyncio.fixture
async def memory_world() -> AsyncIterator[World]:
    """Return an empty world in memory alone, for what does not depend on the store."""
    world = World(MemoryStore())
    yield world
    world.store.mend()
    await world.at_rest()


async def plain(send: Send, text: str = "", status: int = 200, *, length: bool = True) -> None:
    """Answer as a bare ASGI app does, in one piece."""
    fields = [(b"content-length", str(len(text.encode())).encode())] if length else []
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": text.encode()})


async def read(receive: Receive) -> str:
    """Return the request's body."""
    body = b""
    while True:
        event = await receive()
        body += event.get("body", b"")
        if not event.get("more_body", False):
            return body.decode()
