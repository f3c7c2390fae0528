"""Every way in which a request ends, what is stored then, and what the next turn sees: data for the tests and for the page about it.

`python -m tests.servers.ends` writes the tables of ``docs/reference/ends-of-a-request.md``.
"""

from __future__ import annotations

import re
import socket
import struct
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import TimeoutExpired

from tests.servers.commands import WAIT_FOR_CLIENTS
from tests.servers.processes import HOST, PATIENCE, Server

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "ends-of-a-request.md"
BEGIN, END = "<!-- written by python -m tests.servers.ends -->", "<!-- end of what is written -->"
NAMES = ("uvicorn-httptools", "uvicorn-h11", "hypercorn", "granian", "daphne")
NEWER_HYPERCORN = "hypercorn with Python 3.12 or newer"
QUESTION, WHOLE, HALF = "question", ("question", "answer"), ("question", "first ")


@dataclass(frozen=True)
class Stored:
    """What is stored of the turn.

    Attributes:
        state: Empty when nothing is.
        texts: Of its messages.
    """

    state: str = ""
    texts: tuple[str, ...] = ()

    def __str__(self) -> str:
        return {
            "": "nothing",
            "complete": "the whole turn",
            "interrupted": "the question" if len(self.texts) == 1 else "the question and what was said",
        }[self.state] + (", as interrupted" if self.state == "interrupted" else "")


NOTHING = Stored()
COMPLETE = Stored("complete", WHOLE)
STREAMED = Stored("complete", ("question", "first last"))
CUT = Stored("interrupted", HALF)
ASKED = Stored("interrupted", (QUESTION,))


@dataclass(frozen=True)
class End:
    """One way for a request to end.

    Attributes:
        name: In one or two words.
        what: In one sentence, for the page.
        act: What the client does; it returns when it has done with the connection.
        stored: What is stored afterwards.
        differs: What is stored on servers where it is something else.
    """

    name: str
    what: str
    act: Callable[[Client], None]
    stored: Stored
    differs: Mapping[str, Stored] = field(default_factory=dict)


class Client:
    """One connection of one user, byte by byte."""

    def __init__(self, port: int, user: str, begun: Callable[[], None]) -> None:
        """Connect.

        Args:
            begun: Waits until this user's turn has begun on the server.
        """
        self.user = user
        self.begun = begun
        self.wire = socket.create_connection((HOST, port), timeout=PATIENCE)
        self.data = bytearray()
        self.wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self, path: str, body: bytes = b"", length: int | None = None, method: str = "POST") -> None:
        """Send a request; `length` is what it announces."""
        size = len(body) if length is None else length
        head = f"{method} {path} HTTP/1.1\r\nHost: test\r\nX-User: {self.user}\r\nContent-Length: {size}\r\n\r\n"
        self.wire.sendall(head.encode() + body)

    def read_until(self, text: bytes) -> None:
        """Read until this has arrived."""
        while text not in self.data:
            piece = self.wire.recv(65_536)
            if not piece:
                raise ConnectionError(f"the server hung up after {self.data[-200:]!r}")
            self.data += piece

    def read_to_the_end(self) -> bool:
        """Read until the answer is complete; return False when it is cut off."""
        try:
            while not self._whole:
                piece = self.wire.recv(65_536)
                if not piece:
                    return False
                self.data += piece
        except OSError:
            return False
        return True

    @property
    def _whole(self) -> bool:
        head = self.data.find(b"\r\n\r\n", 0, 4096)
        length = re.search(rb"(?i)content-length: *(\d+)", self.data[: head + 2])
        return head > 0 and (len(self.data) - head - 4 >= int(length[1]) if length else self.data.endswith(b"\r\n0\r\n\r\n"))

    @property
    def status(self) -> int:
        """Of the answer."""
        return int(self.data[:64].split(None, 2)[1])

    def leave(self, *, reset: bool = False) -> None:
        """Hang up: politely, or as a machine does that has crashed."""
        if reset:
            self.wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.wire.close()


def _leaves(path: str, *, after: bytes = b"", reset: bool) -> Callable[[Client], None]:
    def act(client: Client) -> None:
        client.ask(path)
        client.begun()
        if after:
            client.read_until(after)
        client.leave(reset=reset)

    return act


def _leaves_in_its_body(*, reset: bool) -> Callable[[Client], None]:
    def act(client: Client) -> None:
        client.ask("/chat", b"ques", 100)
        time.sleep(0.2)  # some servers let the app begin, daphne waits for the body
        client.leave(reset=reset)

    return act


def _leaves_at_the_end(client: Client) -> None:
    client.ask("/stream")
    assert client.read_to_the_end()
    client.leave(reset=True)


def _closes_its_half(client: Client) -> None:
    client.ask("/stream?seconds=600")
    client.read_until(b"first ")
    client.wire.shutdown(socket.SHUT_WR)
    client.read_to_the_end()
    client.leave()


def _goes_silent(client: Client) -> None:
    """A phone in a tunnel: nothing arrives any more, in either direction, and nobody says so."""
    client.ask("/stream?seconds=0.6")
    client.read_until(b"first ")


def _reads_slowly(client: Client) -> None:
    client.wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
    client.ask("/large")
    client.read_until(b"xxxx")
    time.sleep(0.5)
    assert client.read_to_the_end()
    client.leave()


def _is_answered(path: str, status: int, *, whole: bool) -> Callable[[Client], None]:
    def act(client: Client) -> None:
        client.ask(path)
        client.read_until(b"\r\n\r\n")
        if not whole:
            client.wire.settimeout(2)  # some servers leave the connection open
        assert client.read_to_the_end() == whole, client.data[-300:]
        assert client.status == status
        client.leave()

    return act


def _is_stopped(client: Client) -> None:
    client.ask("/stream?seconds=600")
    client.read_until(b"first ")
    button = Client(client.wire.getpeername()[1], client.user, client.begun)
    button.ask("/stop", method="GET")
    assert button.read_to_the_end()
    assert button.status == 200, button.data
    button.leave()
    client.wire.settimeout(2)
    client.read_to_the_end()
    client.leave()


CLIENT_ENDS = (
    End("leaves in its body", "The client hangs up before its request is complete.", _leaves_in_its_body(reset=False), NOTHING),
    End("crashes in its body", "The same, by a reset.", _leaves_in_its_body(reset=True), NOTHING),
    End("leaves before the answer", "The client hangs up while a plain handler runs.", _leaves("/plain", reset=False), COMPLETE),
    End("crashes before the answer", "The same, by a reset.", _leaves("/plain", reset=True), COMPLETE),
    End(
        "leaves in the stream",
        "The client hangs up in the middle of a stream.",
        _leaves("/stream?seconds=600", after=b"first ", reset=False),
        CUT,
    ),
    End("crashes in the stream", "The same, by a reset.", _leaves("/stream?seconds=600", after=b"first ", reset=True), CUT),
    End("leaves at the end", "The client resets the connection as soon as it has the last byte.", _leaves_at_the_end, STREAMED),
    End("closes its half", "The client closes its sending side in the middle of a stream, and goes on reading.", _closes_its_half, CUT),
    End("goes silent", "The client is unreachable in the middle of a stream; no packet says so.", _goes_silent, STREAMED),
    End(
        "reads slowly",
        "The client reads a stream of 2 MB more slowly than the model speaks.",
        _reads_slowly,
        Stored("complete", (QUESTION, "x" * 65_536 * 32)),
    ),
)
APP_ENDS = (
    End("raises before", "The handler raises before it answers: a 500.", _is_answered("/broken", 500, whole=True), NOTHING),
    End(
        "raises within",
        "The model's stream raises in the middle: the answer is cut off.",
        _is_answered("/stream?breaks=1", 200, whole=False),
        CUT,
    ),
    End("is stopped", "The app cancels the task of a stream: a stop button.", _is_stopped, CUT),
    End(
        "store dies before",
        "The store fails between load and commit of an answer in one piece: a 503.",
        _is_answered("/storeless", 503, whole=True),
        NOTHING,
    ),
    End(
        "store dies within",
        "The store fails while a stream runs: the answer is cut off before its end.",
        _is_answered("/storeless?stream=1", 200, whole=False),
        Stored("interrupted", WHOLE),
    ),
)


@dataclass(frozen=True)
class Stop:
    """One way for a server to stop while a plain turn and a stream run.

    Attributes:
        name: In one or two words.
        what: In one sentence, for the page.
        options: Of the command lines of the servers on which this can be done.
        stop: What is done to the server.
        plain: What is stored of the plain turn.
        stream: What is stored of the stream.
        differs: The same two, on servers where they are others.
    """

    name: str
    what: str
    options: Mapping[str, tuple[str, ...]]
    stop: Callable[[Server], object]
    plain: Stored
    stream: Stored
    differs: Mapping[str, tuple[Stored, Stored]] = field(default_factory=dict)

    def stored(self, server: str) -> tuple[Stored, Stored]:
        """Return what is stored on this server, on this Python, of the plain turn and of the stream."""
        name = NEWER_HYPERCORN if server in WAIT_FOR_CLIENTS else server
        return self.differs.get(name, (self.plain, self.stream))


def _in_a_hurry(server: Server) -> None:
    """Tell it to stop, and kill it when it does not keep to the time it was given, as its supervisor will."""
    try:
        server.terminate(30)
    except TimeoutExpired:
        server.kill()


STOPS = (
    Stop(
        "graceful",
        "The server is told to stop (SIGTERM), and given the time.",
        dict.fromkeys(NAMES, ()),
        Server.terminate,
        COMPLETE,
        STREAMED,
        {"daphne": (ASKED, CUT)},
    ),
    Stop(
        "hurried",
        "The server is told to stop, and given a second for what takes three.",
        {
            "uvicorn-httptools": ("--timeout-graceful-shutdown", "1"),
            "uvicorn-h11": ("--timeout-graceful-shutdown", "1"),
            "hypercorn": ("--graceful-timeout", "1"),
            "granian": ("--workers-kill-timeout", "1"),
        },
        _in_a_hurry,
        ASKED,
        CUT,
        {"granian": (NOTHING, ASKED), NEWER_HYPERCORN: (NOTHING, ASKED)},
    ),
    Stop("killed", "The server is killed (SIGKILL), or its host dies.", dict.fromkeys(NAMES, ()), Server.kill, NOTHING, ASKED),
)


def tables() -> str:
    """Return the tables of the page."""
    lines = ["| how it ends | what is stored |", "| --- | --- |"]
    lines += [_row(end.what, end.stored, end.differs) for end in (*CLIENT_ENDS, *APP_ENDS)]
    lines += ["", "| how the server stops | of a turn in one piece | of a stream |", "| --- | --- | --- |"]
    for stop in STOPS:
        others = {name: stop.stored(name) for name in stop.differs}
        plain, stream = (
            _cell(stored, {name: both[i] for name, both in others.items()}) for i, stored in enumerate((stop.plain, stop.stream))
        )
        lines.append(f"| {stop.what} | {plain} | {stream} |")
    return "\n".join(lines) + "\n"


def _row(what: str, stored: Stored, differs: Mapping[str, Stored]) -> str:
    return f"| {what} | {_cell(stored, differs)} |"


def _cell(stored: Stored, differs: Mapping[str, Stored]) -> str:
    text = str(stored)
    others = "".join(f" On {name}: {other}." for name, other in differs.items())
    return f"{text[0].upper()}{text[1:]}.{others}"


def page(text: str) -> str:
    """Return the page with its tables as they are to be."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{tables()}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
