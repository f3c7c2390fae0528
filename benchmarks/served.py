"""Apps under uvicorn, each in a process of its own, and the client that asks them: blocking sockets and a selector, in another process.

The client is the same for all of them and is not the limit: wrk gets as many requests a second out of the app without a memory.
"""

from __future__ import annotations

import asyncio
import json
import re
import selectors
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from typing import ClassVar

from benchmarks import processes
from benchmarks.workload import FEWEST_TURNS, WINDOW, Loan, Sessions, System, question

_OK = b"HTTP/1.1 200"
_END = b"\r\n\r\n"
_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)\r\n", re.IGNORECASE)
_COOKIE = re.compile(rb"\r\nset-cookie: ([^;]+)", re.IGNORECASE)
_CHUNK = 2**16


class Served(System):
    """An app under uvicorn. A conversation is whose cookie is sent.

    Attributes:
        app: Its module and factory, called with the place.
        reads: Whether it says how many messages it loaded.
    """

    app: ClassVar[str]
    reads: ClassVar[bool] = True

    async def open(self) -> None:
        """Start it, and send one request."""
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.serve", self.app, self.place]
        self._process = await asyncio.create_subprocess_exec(
            *command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert self._process.stdout is not None
        port = await self._process.stdout.readline()
        assert port, f"{self.app} did not start"
        self._address = ("127.0.0.1", int(port))
        self._cookies: dict[str, bytes] = {}
        self._ask("nobody")
        self.idle = processes.resident(self._process.pid)

    async def fill(self, session: str, messages: int) -> None:
        """Talk, and keep the cookie."""
        for _ in range(messages // 2):
            self._ask(session)

    async def turn(self, session: str) -> int:
        """Send one request."""
        return self._ask(session) or 0

    async def talk(self, sessions: Sessions, at_once: int, seconds: float, fewest: int = FEWEST_TURNS) -> list[float]:
        """Ask on so many connections, each with the next request as soon as it has its answer.

        Raises:
            AssertionError: It was refused, or loaded fewer messages than there are.
        """
        latencies: list[float] = []
        clock = time.perf_counter
        expected = min(sessions.messages, WINDOW) if self.reads else None
        end = clock() + seconds
        with ExitStack() as stack:
            selector = stack.enter_context(selectors.DefaultSelector())
            for _ in range(at_once):
                link = _Link(stack.enter_context(socket.create_connection(self._address)))
                if self._send_next(link, sessions):
                    selector.register(link.sock, selectors.EVENT_READ, link)
            while selector.get_map():
                for key, _ in selector.select():
                    link = key.data
                    reply = link.receive()
                    if reply is None:
                        continue
                    now = clock()
                    latencies.append(now - link.began)
                    loaded = _loaded(reply)
                    assert expected is None or (loaded or 0) >= expected, f"loaded {loaded} messages of {sessions.messages}"
                    if (now >= end and len(latencies) >= fewest) or not self._send_next(link, sessions):
                        end = 0.0  # with fewer at once the rest would be another cell
                        sessions.give_back(link.loan)
                        selector.unregister(link.sock)
                        link.sock.close()
        assert latencies, "there was no session"
        return latencies

    def cpu(self) -> float:
        """Return the seconds of CPU that the server has used."""
        return processes.cpu(self._process.pid)

    async def aclose(self) -> None:
        """Kill it."""
        self._process.kill()
        await self._process.wait()

    def _send_next(self, link: _Link, sessions: Sessions) -> bool:
        """Send the next request of the link's session, or of another when this one is too long; False when there is none."""
        if link.loan.turns <= 0:
            loan = sessions.take()
            if loan is None:
                return False
            link.loan, link.request = loan, self._request_of(loan.session)
        link.loan = Loan(link.loan.session, link.loan.turns - 1)
        link.send()
        return True

    def _request_of(self, session: str) -> bytes:
        """Return what a browser would send."""
        body = json.dumps({"question": question()}).encode()
        cookie = self._cookies.get(session)
        return (
            b"POST /chat HTTP/1.1\r\nHost: localhost\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64) Gecko/20100101 Firefox/140.0\r\n"
            b"Accept: */*\r\nAccept-Language: en-GB,en;q=0.9\r\nSec-Fetch-Site: same-origin\r\nSec-Fetch-Mode: cors\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n%s\r\n%s"
        ) % (len(body), b"Cookie: theme=dark; %s\r\n" % cookie if cookie else b"", body)

    def _ask(self, session: str) -> int | None:
        """Send one request on a connection of its own, and keep the cookie it brought."""
        with socket.create_connection(self._address) as sock:
            link = _Link(sock, self._request_of(session))
            link.send()
            while (reply := link.receive()) is None:
                pass
        if found := _COOKIE.search(reply):
            self._cookies[session] = found[1]
        return _loaded(reply)


class Without(Served):
    """No memory."""

    app = "benchmarks.plain:without"
    reads = False

    async def fill(self, session: str, messages: int) -> None:
        """Nothing is kept."""


class Silent(Served):
    """convmem; the handler looks at nothing."""

    app = "benchmarks.apps:silent"
    reads = False


class Reading(Served):
    """convmem; the handler looks at every message."""

    app = "benchmarks.apps:reading"


class ByHand(Served):
    """redis-py in the handler."""

    app = "benchmarks.plain:by_hand"

    async def fill(self, session: str, messages: int) -> None:
        """Name the session: the app believes every cookie."""
        self._cookies[session] = b"session=" + session.encode()
        await super().fill(session, messages)


class _Link:
    """One connection, what is sent on it, and the conversation it is used for."""

    def __init__(self, sock: socket.socket, request: bytes = b"") -> None:
        self.sock, self.request = sock, request
        self.loan = Loan("", 0)
        self.began = 0.0
        self._got = b""

    def send(self) -> None:
        """Send the request."""
        self.began = time.perf_counter()
        self.sock.sendall(self.request)

    def receive(self) -> bytes | None:
        """Read; return the answer when it is whole.

        Raises:
            AssertionError: It is no answer, or says that something is wrong.
        """
        got = self._got = self._got + self.sock.recv(_CHUNK)
        assert got.startswith(_OK), got[:200]
        _, _, body = got.partition(_END)
        found = _LENGTH.search(got)
        if not found or len(body) < int(found[1]):
            return None
        self._got = b""
        return got


def _loaded(reply: bytes) -> int | None:
    """Return what the answer says of how many messages were loaded."""
    said = reply[reply.rindex(b":") + 1 : -1]
    return None if said == b"null" else int(said)
