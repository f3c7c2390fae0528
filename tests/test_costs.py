"""P9 in numbers that every machine agrees on: round trips, bytes, pages written, calls, memory. A slow machine turns none of them red."""

import asyncio
import gc
import sqlite3
import sys
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from types import FrameType
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from benchmarks import still
from benchmarks.counting import Calls, calls, held
from benchmarks.still import Sink, StillStore, ask, request_scope, visitor_cookie
from convmem import Conversation, ConversationMiddleware, Message, Settings, current_conversation, open_store
from convmem.access import open_conversation
from convmem.keys import SessionKey
from convmem.recollection import RECOLLECTION
from convmem.stores.base import Head, Outcome, Store
from convmem.stores.memory import MemoryStore
from convmem.stores.sqlite import SQLiteStore
from convmem.stores.sqlite_file import BARE
from tests.asgi_client import Client
from tests.faults.proxy import Proxy
from tests.wheels import valkey

pytestmark = pytest.mark.asyncio
SETTINGS = {"secret_key": still.SECRET, "cookie_secure": "auto", "window_turns": 5}
NEW_BYTES = 1400
"""A question of 200 bytes and an answer of 800, each with its role, id and time."""


def wrapped(app: ASGIApp, store: Store, **overrides: object) -> ConversationMiddleware:
    return ConversationMiddleware(app, store=store, settings=Settings({}, **{**SETTINGS, **overrides}))


async def streaming(scope: Scope, receive: Receive, send: Send) -> None:
    """Record a model's stream, as a handler with a StreamingResponse does."""

    async def model() -> AsyncIterator[str]:
        for word in still.ANSWER[:800].split(" "):
            yield f"{word} "

    conversation: Conversation = current_conversation()
    conversation.append(Message.user(still.QUESTION[:200]))
    await send({"type": "http.response.start", "status": 200, "headers": []})
    async for chunk in conversation.record(model()):
        await send({"type": "http.response.body", "body": chunk.encode(), "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def fill(store: Store, key: SessionKey, turns: int) -> None:
    """Store so many turns, without a middleware."""
    head = (await store.load(key, turns=0)).head
    for _ in range(turns):
        appended = await store.append(key, head, still.turn_of(head))
        assert appended.outcome is Outcome.STORED
        head = appended.head


class Trip(NamedTuple):
    """What one request cost on the wire."""

    trips: int
    sent: int
    received: int


class Measured:
    """A store behind a proxy, and a visitor who keeps one conversation in it."""

    def __init__(self, store: Store, proxy: Proxy) -> None:
        self.store, self.proxy = store, proxy
        self.clients: dict[ASGIApp, Client] = {}
        self.cookies: dict[str, str] = {}
        self.key: SessionKey | None = None

    async def request(self, app: ASGIApp, method: str = "POST") -> Trip:
        """Send one request through the middleware, and count."""
        client = self.clients.get(app)
        if client is None:
            client = self.clients[app] = Client(wrapped(self.noting(app), self.store))
            client.cookies = self.cookies
        before = (self.proxy.round_trips, self.proxy.sent, self.proxy.received)
        answer = await client.request(method, user=None)
        assert answer.whole
        await asyncio.sleep(0.05)  # what a request still sends behind its answer counts too
        return Trip(self.proxy.round_trips - before[0], self.proxy.sent - before[1], self.proxy.received - before[2])

    def noting(self, app: ASGIApp) -> ASGIApp:
        async def handler(scope: Scope, receive: Receive, send: Send) -> None:
            self.key = current_conversation().key
            await app(scope, receive, send)

        return handler


@asynccontextmanager
async def behind_proxy(url: str) -> AsyncIterator[Measured]:
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    async with Proxy(parts.hostname, parts.port) as proxy:
        store = open_store(url.replace(f":{parts.port}", f":{proxy.port}", 1))
        measured = Measured(store, proxy)
        for _ in range(2):  # the visitor is minted; connections, scripts and statements are made
            await measured.request(still.talking)
            await measured.request(streaming)
            await measured.request(still.reading)
        try:
            yield measured
        finally:
            await store.aclose()


@pytest.fixture(params=["redis", "postgresql"])
def url(request: pytest.FixtureRequest) -> str:
    """The URL of each server."""
    if request.param == "redis":
        server: valkey.Valkey = request.getfixturevalue("valkey_server")
        return server.url
    found: str = request.getfixturevalue("postgres_url")
    return found


class TestOnTheWire:
    @pytest.mark.parametrize(
        ("app", "method", "trips"),
        [(still.talking, "POST", 2), (streaming, "POST", 3), (still.reading, "GET", 1), (still.reading, "POST", 2), (still.bare, "GET", 1)],
    )
    async def test_a_request_makes_so_many_round_trips(self, url: str, app: ASGIApp, method: str, trips: int) -> None:
        """Load and append, the lease in the same trips; a stream stores its question first. No reset, no ping, no second look."""
        async with behind_proxy(url) as measured:
            assert [(await measured.request(app, method)).trips for _ in range(3)] == [trips] * 3

    async def test_the_bytes_of_a_turn_do_not_grow_with_the_conversation(self, url: str) -> None:
        """Sent: the new messages. Received: the window. Not one byte for each turn that is stored and not seen."""
        async with behind_proxy(url) as measured:
            costs = {}
            for stored in (20, 300):
                assert measured.key is not None
                await fill(measured.store, measured.key, stored)
                costs[stored] = await measured.request(still.talking)
            few, many = costs.values()
            assert abs(many.sent - few.sent) <= 16, "positions and counts have more digits, and that is all"
            assert abs(many.received - few.received) <= 5 * 32
            assert many.sent <= NEW_BYTES + 1000
            assert many.received <= 5 * (NEW_BYTES + 300) + 1500

    async def test_an_extra_trip_would_be_seen(self, url: str) -> None:
        """The planted twin: a handler that saves early costs one trip more."""

        async def saving(scope: Scope, receive: Receive, send: Send) -> None:
            conversation = current_conversation()
            conversation.append(Message.user("first"))
            await conversation.save()
            await still.talking(scope, receive, send)

        async with behind_proxy(url) as measured:
            assert (await measured.request(saving)).trips == 3


class TestOnTheDisk:
    async def test_the_pages_a_turn_writes_do_not_grow_with_the_conversation(self, tmp_path) -> None:
        """Each page written is flushed before the answer leaves: that is what a turn waits for."""
        path = tmp_path / "convmem.db"
        written = {}
        async with SQLiteStore(path) as store:
            scope, sink, app = request_scope(visitor_cookie()), Sink(), wrapped(still.talking, store)
            for stored in (20, 500):
                await ask(app, scope, sink)
                (key,) = [item.key for item in (await store.list(None, tenant=None)).items]
                await fill(store, key, stored)
                written[stored] = await self._pages(path, lambda: ask(app, scope, sink))
        assert max(written.values()) <= 5
        assert abs(written[500] - written[20]) <= 1

    async def test_of_an_entry_little_is_stored_beside_its_body(self, tmp_path) -> None:
        """Its names are 16 bytes each, the id only where it is not the turn's; a text of them was twice as long."""
        path = tmp_path / "convmem.db"
        async with SQLiteStore(path) as store:
            await ask(wrapped(still.appending, store), request_scope(visitor_cookie()), Sink())
            (item,) = (await store.list(None)).items
            (stored,) = (await store.load(item.key)).entries
        with closing(sqlite3.connect(path)) as link:
            names = [name for _, name, *_ in link.execute("PRAGMA table_info(entry)")]
            (length,) = link.execute("SELECT length(packed) FROM entry").fetchone()
        assert names == ["id", "visible", "packed"]
        assert length - len(stored.entry.body) <= 43

    async def _pages(self, path, turn: Callable[[], Awaitable[None]]) -> float:
        """Return how many pages a turn writes, on the average of ten: a table that grows is split now and then."""
        with sqlite3.connect(path) as link:
            link.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        link.close()
        for _ in range(10):
            await turn()
        frame = 8192 + 24  # a page and its header (SQLite file format, 4.1)
        return (path.with_name(path.name + "-wal").stat().st_size - 32) / frame / 10


class TestInAFile:
    async def test_turns_stored_at_once_share_a_flush(self, tmp_path) -> None:
        """A flush is most of what a turn waits for: thirty-two that are asked for in one step of the loop wait for one."""
        commits: list[str] = []
        async with SQLiteStore(tmp_path / "convmem.db") as store:
            await self._trace(store, commits)
            keys = [SessionKey.for_user(number) for number in range(32)]
            for _ in range(3):
                heads = [(await store.load(key, turns=0)).head for key in keys]
                await asyncio.gather(*(store.append(key, head, still.turn_of(head)) for key, head in zip(keys, heads, strict=True)))
            assert commits.count("full") == 3

    async def test_a_turn_is_two_transactions_and_so_many_statements(self, tmp_path) -> None:
        """Each statement hands the interpreter over to whoever waits for it, and takes it back."""
        async with SQLiteStore(tmp_path / "convmem.db") as store:
            scope, sink, app = request_scope(visitor_cookie()), Sink(), wrapped(still.talking, store)
            for _ in range(3):
                await ask(app, scope, sink)
            statements: list[str] = []
            await store._run("check", BARE, lambda link: link.set_trace_callback(statements.append))
            await ask(app, scope, sink)
        kinds = [statement.split()[0] for statement in statements]
        assert kinds.count("COMMIT") == 2
        assert len(kinds) <= 12

    async def test_of_a_window_that_nobody_looks_at_no_entry_is_made(self, tmp_path) -> None:
        """A caller who needs only the head, or how many there are, or the messages in them, pays for no more."""
        key = SessionKey.for_user("1")
        async with SQLiteStore(tmp_path / "convmem.db") as store:
            await fill(store, key, 30)
            log = await store.load(key, turns=25)
        with calls() as counted:
            assert len(log.entries) == len(list(log.skim())) == 25
        assert counted.of["stores/base.py:read"] == 0
        with calls() as counted:
            assert [stored.n for stored in log.entries] == list(range(6, 31))
        assert counted.of["stores/base.py:read"] == 25

    async def _trace(self, store: SQLiteStore, commits: list[str]) -> None:
        """Note the level at which each transaction is committed."""
        level = "normal"

        def note(statement: str) -> None:
            nonlocal level
            if statement.startswith("PRAGMA synchronous = "):
                level = statement.rpartition(" ")[2]
            elif statement == "COMMIT":
                commits.append(level)

        await store._run("check", BARE, lambda link: link.set_trace_callback(note))


CALLS = {
    "a visitor who only passes by": (still.bare, "GET", 0, 41),
    "a visitor who reads nothing": (still.reading, "GET", 0, 53),
    "a commit": (still.appending, "POST", 0, 102),
    "a window of fifty messages, read": (still.talking, "POST", 25, 200),
}
"""App, method, turns in the window, and how many calls of convmem's functions it may take."""


class TestInTheProcess:
    @pytest.mark.parametrize("name", CALLS)
    async def test_a_request_calls_no_more_functions_than_it_did(self, name: str) -> None:
        """Calls of our own functions are most of what convmem costs a process, and are the same on every machine and in every release."""
        app, method, turns, most = CALLS[name]
        counted = await self._calls(app, method, turns)
        assert counted.total <= most

    async def test_what_was_read_before_is_not_decoded_again(self) -> None:
        """A conversation's next turn decodes the one entry that is new to this process."""
        store = MemoryStore()
        app, scope, sink = wrapped(still.talking, store, window_turns=50), request_scope(visitor_cookie()), Sink()
        for _ in range(10):
            await ask(app, scope, sink)
        with calls() as known:
            await ask(app, scope, sink)
        RECOLLECTION.forget()
        with calls() as unknown:
            await ask(app, scope, sink)
        assert known.of["messages.py:decode_body"] == 1
        assert unknown.of["messages.py:decode_body"] == 11

    @pytest.mark.parametrize("app", [still.bare, still.reading, still.appending], ids=["passing by", "reading", "a commit"])
    async def test_a_request_begins_no_task(self, app: ASGIApp) -> None:
        """A task takes longer than a request does otherwise, and puts every step of it behind whatever else is waiting to run."""
        begun: list[str] = []

        def note(loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> asyncio.Task[Any]:
            begun.append(str(work))
            return asyncio.Task(work, loop=loop, **options)

        wrapped_app, scope = wrapped(app, StillStore()), request_scope(visitor_cookie())
        asyncio.get_running_loop().set_task_factory(note)
        try:
            for _ in range(2):
                await ask(wrapped_app, scope, Sink())
            assert begun == []
            await asyncio.create_task(asyncio.sleep(0))
            assert len(begun) == 1, "and one that is begun is seen"
        finally:
            asyncio.get_running_loop().set_task_factory(None)

    async def test_calls_do_not_depend_on_what_is_stored(self) -> None:
        """A window of five turns costs the same in front of five turns and of a thousand."""
        few, many = [await self._calls(still.talking, "POST", turns, window_turns=5) for turns in (5, 1000)]
        assert few.total == many.total

    async def test_a_job_costs_less_than_a_request(self, monkeypatch) -> None:
        """It has no request around it, and its settings are not read again for every conversation: that takes longer than a turn does."""
        monkeypatch.setenv("CONVMEM_SECRET_KEY", still.SECRET)
        store, key = StillStore(5), SessionKey.for_user("ada")

        async def job(*, reads: bool) -> int:
            async with open_conversation(key, store=store) as conversation:
                if reads:
                    return len(conversation.messages)
                conversation.append(*still.question_and_answer())
                return 0

        assert await job(reads=True) == 10
        await job(reads=False)
        with calls() as reading:
            await job(reads=True)
        with calls() as committing:
            await job(reads=False)
        assert reading.total <= 123
        assert committing.total <= 98

    async def test_what_a_job_costs_does_not_depend_on_the_environment(self, monkeypatch) -> None:
        """A container has dozens of variables, and decoding them takes longer than a turn does. One that changes is seen all the same."""
        store, key, decoded = StillStore(5), SessionKey.for_user("ada"), 0

        async def window() -> int:
            async with open_conversation(key, store=store) as conversation:
                return len(conversation.messages)

        def note(frame: FrameType, event: str, _argument: object) -> None:
            nonlocal decoded
            decoded += event == "call" and frame.f_code.co_name == "decode" and frame.f_globals["__name__"] == "os"

        async def cost() -> int:
            """Return how many variables are decoded for a job."""
            before = decoded
            sys.setprofile(note)
            try:
                await window()
            finally:
                sys.setprofile(None)
            return decoded - before

        for i in range(50):
            monkeypatch.setenv(f"ANOTHER_{i}", "x")
        assert await cost() > 50, "they are counted"
        assert await cost() == 0
        monkeypatch.setenv("CONVMEM_WINDOW_TURNS", "2")
        assert await window() == 4

    async def test_memory_does_not_depend_on_what_is_stored(self) -> None:
        """A worker that serves a long conversation holds its window, not the conversation."""
        peaks = {}
        for stored in (50, 1000):
            store = MemoryStore()
            app, scope, sink = wrapped(still.talking, store), request_scope(visitor_cookie()), Sink()
            await ask(app, scope, sink)
            (key,) = [item.key for item in (await store.list(None, tenant=None)).items]
            await fill(store, key, stored)
            await ask(app, scope, sink)
            with held() as found:
                await ask(app, scope, sink)
            peaks[stored] = found.peak
        assert peaks[1000] <= 1.25 * peaks[50]
        assert peaks[50] <= 150_000

    async def _calls(self, app: ASGIApp, method: str, turns: int, **overrides: object) -> Calls:
        wrapped_app = wrapped(app, StillStore(turns), **{"window_turns": 50, **overrides})
        scope, sink = request_scope(visitor_cookie(), method), Sink()
        for _ in range(3):
            await ask(wrapped_app, scope, sink)
        with calls() as counted:
            await ask(wrapped_app, scope, sink)
        return counted


async def test_the_count_is_of_what_runs() -> None:
    """The planted twin: one call more is one more."""
    with calls() as counted:
        Head().same(Head())
    assert counted.total == 1


@pytest.mark.parametrize("app", [still.talking, streaming], ids=["a commit", "a stream"])
async def test_a_window_is_freed_with_its_request(app: ASGIApp) -> None:
    """It is not left to the garbage collector, which finds it much later, and holds up all requests while it looks."""
    seen: list[weakref.ref[Conversation]] = []

    async def noting(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(weakref.ref(current_conversation()))
        await app(scope, receive, send)

    wrapped_app, scope = wrapped(noting, StillStore(5)), request_scope(visitor_cookie())
    gc.disable()
    try:
        for _ in range(2):
            await ask(wrapped_app, scope, Sink())
        assert [conversation() for conversation in seen] == [None, None]
    finally:
        gc.enable()
