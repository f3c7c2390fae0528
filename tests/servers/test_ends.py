"""Every way in which a request ends, on every server: what is stored, what the next turn sees, and that nothing is left behind."""

import asyncio
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from convmem import SessionKey, SQLiteStore
from convmem.messages import decode_messages
from convmem.stores.base import Log
from tests.asgi_client import AT_ONCE
from tests.servers.commands import server
from tests.servers.ends import APP_ENDS, CLIENT_ENDS, COMPLETE, NAMES, PAGE, STOPS, STREAMED, Client, End, Stop, Stored, page
from tests.servers.processes import HOST, PATIENCE, Server

APP = "tests.servers.ending:app"
LEASE = 2.0
"""Seconds for which a server that was killed blocks; where none is killed a lease outlives every test, so that one that is left is seen."""
LONG_LEASE = 600.0
BAD_SIGNS = ("Task was destroyed", "never awaited", "ResourceWarning", "RuntimeWarning", "exception was never retrieved", "unclosed")


@dataclass
class Running:
    """A server on the app of ends, and the file behind it."""

    name: str
    process: Server
    database: Path

    def log(self, user: str) -> Log:
        """Return a conversation as another process sees it."""

        async def load() -> Log:
            async with SQLiteStore(self.database) as store:
                return await store.load(SessionKey.for_user(user))

        return asyncio.run(load())

    def stored(self, user: str) -> Stored:
        """Return what is stored of the one turn of this user."""
        turns = self.log(user).turns
        assert len(turns) <= 1
        return Stored(turns[0].state, tuple(m.text for e in turns[0].entries for m in decode_messages(e.entry.body))) if turns else Stored()

    def wait_for_lease(self, user: str, *, held: bool, seconds: float = AT_ONCE) -> None:
        """Wait until this user's conversation is held, or is not."""
        deadline = time.monotonic() + seconds
        while bool(self.log(user).holder.token) != held:
            assert time.monotonic() < deadline, (
                f"the lease is {'not taken' if held else 'still held'} after {seconds} s\n{self.process.log}"
            )
            time.sleep(0.02)

    def client(self, user: str) -> Client:
        """Return a connection of this user."""
        return Client(self.process.port, user, partial(self.wait_for_lease, user, held=True))

    def request(self, method: str, path: str, user: str = "", body: str = "") -> Any:
        """Send a request and return its answer, or fail."""
        connection = HTTPConnection(HOST, self.process.port, timeout=PATIENCE)
        try:
            connection.request(method, path, body, {"X-User": user} if user else {})
            answer = connection.getresponse()
            data = answer.read()
            assert answer.status == 200, data
            return json.loads(data)
        finally:
            connection.close()


def environment(database: Path, lease: float = LONG_LEASE) -> dict[str, str]:
    return {
        "TEST_DATABASE": str(database),
        "CONVMEM_SECRET_KEY": "a key of thirty-two bytes or more.",
        "CONVMEM_LEASE": f"{lease}s",
        "CONVMEM_TURN_WAIT": f"{lease + 60}s",
        "PYTHONWARNINGS": "default::ResourceWarning,default::RuntimeWarning",
    }


@pytest.fixture(scope="module", params=NAMES)
def running(request, tmp_path_factory) -> Iterator[Running]:
    """Start each server once; when all ends have happened to it, let it shut down, and look whether it complains of anything."""
    database = tmp_path_factory.mktemp("ends") / "convmem.db"
    with server(request.param, APP, environment(database)) as process:
        yield Running(request.param, process, database)
        process.terminate()
        assert not [sign for sign in BAD_SIGNS if sign in process.log], process.log


@pytest.mark.parametrize("end", [pytest.param(end, id=end.name.replace(" ", "-")) for end in (*CLIENT_ENDS, *APP_ENDS)])
def test_an_end_leaves_what_the_page_says_and_nothing_else(running, end: End):
    """What is stored, no lease, no task, and a next turn that works at once and is told of what has no end."""
    before = running.request("GET", "/off/tasks")
    user = end.name.replace(" ", "-")
    client = running.client(user)
    end.act(client)
    running.request("GET", "/off/mend")
    running.wait_for_lease(user, held=False)
    stored = running.stored(user)
    assert stored == end.differs.get(running.name, end.stored), running.process.log[-3000:]
    following = running.request("POST", "/chat", user, "again")
    assert [text for _, text in following["earlier"]] == list(stored.texts)
    assert {state for state, _ in following["earlier"]} <= {stored.state}
    assert following["interrupted"] == (stored.state == "interrupted")
    client.leave()
    deadline = time.monotonic() + AT_ONCE
    while len(after := running.request("GET", "/off/tasks")) > len(before) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(after) <= len(before), (before, after)


def test_twin_a_sloppy_build_is_found_to_leave_a_lease_a_task_and_a_turn_without_end(tmp_path):
    """The same look at a build that forgets all three."""
    with server("uvicorn-httptools", APP, {**environment(tmp_path / "convmem.db"), "TEST_PLANT": "sloppy"}) as process:
        running = Running("uvicorn-httptools", process, tmp_path / "convmem.db")
        before = running.request("GET", "/off/tasks")
        running.request("POST", "/plain", "ada")
        with pytest.raises(AssertionError, match="still held"):
            running.wait_for_lease("ada", held=False, seconds=0.5)
        assert running.stored("ada").state != "complete"
        assert len(running.request("GET", "/off/tasks")) > len(before)


STOPPED = [(stop, name) for stop in STOPS for name in stop.options]
QUICK = {
    ("graceful", "uvicorn-httptools"),
    ("graceful", "daphne"),
    ("graceful", "granian"),
    ("graceful", "hypercorn"),
    ("killed", "granian"),
}
QUICK |= {("hurried", "uvicorn-httptools"), ("hurried", "hypercorn")}


@pytest.mark.parametrize(
    ("stop", "name"),
    [
        pytest.param(stop, name, id=f"{stop.name}-{name}", marks=() if (stop.name, name) in QUICK else pytest.mark.all_only)
        for stop, name in STOPPED
    ],
)
def test_a_server_that_stops_within_turns_leaves_what_the_page_says(stop: Stop, name, tmp_path):
    """A deployment: the file has what the page says, no lease is left for longer than its term, and both conversations go on."""
    with server(name, APP, environment(tmp_path / "convmem.db", LEASE), *stop.options[name]) as process:
        running = Running(name, process, tmp_path / "convmem.db")
        clients = {path: running.client(path) for path in ("plain", "stream")}
        whole = stop.stored(name) == (COMPLETE, STREAMED)
        for path, client in clients.items():
            client.ask(f"/{path}?seconds={1.5 if whole else 600}")
            client.begun()
        clients["stream"].read_until(b"first ")
        stop.stop(process)
        killed = stop.stored(name)[0] == Stored()
        for path in clients:
            running.wait_for_lease(path, held=False, seconds=LEASE + 1 if killed else 0.5)
        assert (running.stored("plain"), running.stored("stream")) == stop.stored(name), process.log[-3000:]
        assert not [sign for sign in BAD_SIGNS if sign in process.log], process.log
        for client in clients.values():
            client.leave()
        process.start()
        for path in clients:
            stored = running.stored(path)
            following = running.request("POST", "/chat", path, "again")
            assert [text for _, text in following["earlier"]] == list(stored.texts)
            assert following["interrupted"] == (stored.state == "interrupted")


def test_the_page_says_what_is_tested():
    """Its tables are written from the rows of these tests: ``python -m tests.servers.ends``."""
    text = PAGE.read_text(encoding="utf-8")
    assert text == page(text)
