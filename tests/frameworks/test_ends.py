"""The ends of a request in every framework, on every server: what the page says for each, whatever runs the app.

What a client's leaving makes of a plain handler differs: some frameworks let it run, some cancel it. The promise is the same for all:
what is stored is whole or marked, the conversation is free again, and the next turn works.
"""

from __future__ import annotations

import socket
import struct

import httpx
import pytest

from tests.frameworks import test_promises
from tests.frameworks.test_promises import Running, history, say, settled
from tests.servers.processes import PATIENCE

started, running = test_promises.started, test_promises.running
WORDS = "You said: slowly"


def hang_up(running: Running, client: httpx.Client, path: str, *, after: bytes = b"", reset: bool) -> None:
    """Send a turn over a bare socket and hang up: while the model thinks, or after a text has come back."""
    fields = {"Host": "test", "Content-Length": "0", "Cookie": "; ".join(f"{name}={value}" for name, value in client.cookies.items())}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    with socket.create_connection(("127.0.0.1", running.server.port), timeout=PATIENCE) as wire:
        wire.sendall(f"POST {path}?text=slowly HTTP/1.1\r\n{head}\r\n".encode())
        data = b""
        while after and after not in data:
            data += wire.recv(65536)
        if not after:
            running.wait_until_it_thinks()
        if reset:
            wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@pytest.mark.all_only
@pytest.mark.parametrize("reset", [False, True], ids=["politely", "by a reset"])
@pytest.mark.parametrize(("path", "after"), [("/chat", b""), ("/chat/in-a-stream", b"You ")], ids=["plain", "stream"])
def test_a_client_that_hangs_up_leaves_a_conversation_that_goes_on(running, path, after, reset):
    """The question is there, with the whole answer or marked as interrupted; the next turn is let in and sees it."""
    with running.client() as client:
        say(client, "Ada")
        hang_up(running, client, path, after=after, reset=reset)
        if not after or running.framework.after_leaving == "complete":
            running.let_it_go_on()
        lines = settled(client, 2)
        assert lines[2].startswith("user: slowly (")
        state = lines[2].removeprefix("user: slowly (").removesuffix(")")
        if after:
            assert state == running.framework.after_leaving
        assert {line.rpartition(" (")[2] for line in lines[2:]} == {f"{state})"}
        if state == "complete":
            assert lines[3].startswith("assistant: You said: Ada, slowly")
        assert say(client, "Bob").endswith("slowly, Bob")


@pytest.mark.parametrize("path", ["/chat", "/chat/in-a-stream"])
def test_a_retry_is_stored_once(running, path):
    """The app of the page knows nothing of retries: nothing is there twice, and a stream gives the stored answer."""
    key = {"Idempotency-Key": "8e03978e-40d5-43dd-bc93-6894a57f9324"}
    with running.client() as client:
        say(client, "Ada")
        for _ in range(2):
            answer = client.post(path, params={"text": "Bob"}, headers=key)
            assert answer.is_success, answer.text
            if path != "/chat":
                assert answer.text.strip() == "You said: Ada, Bob"
        before = history(client)
        assert [line.partition(" (")[0] for line in before if line.startswith("user")] == ["user: Ada", "user: Bob"]
        other = client.post(path, params={"text": "Eve"}, headers=key)
        assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
        assert history(client) == before
