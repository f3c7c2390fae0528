"""On real servers with a slow store, a client never sees the end of an answer before its turn is in the file."""

import asyncio
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from convmem import SessionKey, SQLiteStore
from tests.servers.commands import server
from tests.servers.processes import HOST, PATIENCE, Server

DELAY = 0.3


@pytest.fixture(scope="module", params=["uvicorn", "hypercorn", "granian"])
def running(request, tmp_path_factory) -> Iterator[tuple[Server, Path]]:
    """Start each server once, on a store each of whose calls takes 0.3 s."""
    database = tmp_path_factory.mktemp("last-byte") / "convmem.db"
    env = {"TEST_DATABASE": str(database), "CONVMEM_SECRET_KEY": "a key of thirty-two bytes or more."}
    with server(request.param, "slow_store", env, factory=True) as process:
        yield process, database


@dataclass
class Seen:
    """When what arrived, in seconds after the request, and what the file held at the end."""

    first_chunk: float
    end: float
    states_at_first_chunk: list[str]
    states_at_end: list[str]


def watch(port: int, database: Path, method: str, path: str, user: str) -> Seen:
    """Send a request over a bare socket, and look into the file at the moment the answer is complete."""
    with socket.create_connection((HOST, port), timeout=PATIENCE) as wire:
        began = time.monotonic()
        wire.sendall(f"{method} {path} HTTP/1.1\r\nHost: test\r\nX-User: {user}\r\nContent-Length: 0\r\n\r\n".encode())
        data, first, states = b"", 0.0, list[str]()
        while True:
            piece = wire.recv(65536)
            assert piece, f"the server hung up after {data!r}"
            data += piece
            head, complete, body = data.partition(b"\r\n\r\n")
            if body and not first:
                first = time.monotonic() - began
                states = states_of(database, user)
            if complete and _is_whole(method, head, body):
                end = time.monotonic() - began
                assert head.startswith((b"HTTP/1.1 200", b"HTTP/1.1 204", b"HTTP/1.1 304")), data
                return Seen(first, end, states, states_of(database, user))


def _is_whole(method: str, head: bytes, body: bytes) -> bool:
    status, fields = head.split(b"\r\n")[0].split()[1], head.lower().split(b"\r\n")[1:]
    if method == "HEAD" or status in (b"204", b"304"):
        return True
    for field in fields:
        if field.startswith(b"content-length:"):
            return len(body) >= int(field.partition(b":")[2])
    return body.endswith(b"0\r\n\r\n")


def states_of(database: Path, user: str) -> list[str]:
    """Return the states of the stored turns, read by another process's means."""

    async def load() -> list[str]:
        async with SQLiteStore(database) as store:
            return [turn.state for turn in (await store.load(SessionKey.for_user(user))).turns]

    return asyncio.run(load())


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/chat"), ("POST", "/pieces"), ("HEAD", "/status/200"), ("POST", "/status/204"), ("POST", "/status/304")],
)
def test_the_last_byte_comes_after_the_commit(running, method, path):
    """P4: whatever ends the response, by length, by an empty body or by its start."""
    process, database = running
    seen = watch(process.port, database, method, path, f"{method}{path}".replace("/", "-"))
    assert seen.states_at_end == ["complete"]
    assert seen.end >= 2 * DELAY - 0.05


def test_a_stream_flows_and_its_end_comes_after_the_commit(running):
    """The first word is there while the model thinks; the question is stored before it, the answer before the end."""
    process, database = running
    seen = watch(process.port, database, "POST", "/stream?seconds=1.5", "streaming")
    assert seen.states_at_first_chunk == ["running"]
    assert seen.states_at_end == ["complete"]
    assert seen.first_chunk <= seen.end - DELAY - 0.1
