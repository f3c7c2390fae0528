"""The same promises in every framework: the app of its page, on real servers, under clients that behave and clients that do not.

`CONVMEM_CONCURRENCY=reject` makes every test stricter: a turn that follows is refused as long as the one before holds its lease,
so each second request shows that the first had let go of the conversation when its client saw the end.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from websockets.sync.client import connect
from websockets.sync.connection import Connection

from tests.frameworks.apps import serve
from tests.frameworks.catalogue import FRAMEWORKS, Framework
from tests.servers.processes import PATIENCE, Server

ALWAYS = [(framework.name, "uvicorn") for framework in FRAMEWORKS]
ALWAYS += [("starlette", server) for server in ("uvicorn-h11", "hypercorn", "granian", "daphne")]
SERVERS = {server for _, server in ALWAYS}
BROKEN = [("sanic", "daphne")]  # see test_breaks
BY_NAME = {framework.name: framework for framework in FRAMEWORKS}


def _matrix() -> Iterator[object]:
    for framework in FRAMEWORKS:
        for server in sorted(SERVERS, reverse=True):
            pair = (framework.name, server)
            if pair not in BROKEN:
                yield pytest.param(pair, id="-".join(pair), marks=() if pair in ALWAYS else pytest.mark.all_only)


NO_HANDSHAKE_HEADERS = ("granian", "daphne")  # they drop what the app sends with `websocket.accept`
ONE_BY_ONE = httpx.Limits(max_keepalive_connections=0)  # uvicorn hangs up after an error that its app lets through


@dataclass(frozen=True)
class Running:
    """One framework's app on one server."""

    framework: Framework
    name: str
    server: Server
    directory: Path

    def wait_until_it_thinks(self) -> None:
        """Wait until the model has been asked to answer slowly."""
        deadline = time.monotonic() + PATIENCE
        while not (self.directory / "thinks").exists():
            assert time.monotonic() < deadline, self.server.log
            time.sleep(0.01)

    def let_it_go_on(self) -> None:
        """Let the model answer that was asked to do so slowly."""
        (self.directory / "goes-on").touch()

    def forget(self) -> None:
        """Let the model wait anew when it is asked the next time."""
        for name in ("thinks", "goes-on"):
            (self.directory / name).unlink(missing_ok=True)

    @contextmanager
    def client(self, user: str | None = None) -> Iterator[httpx.Client]:
        """Return a visitor who has never been here, or a client on which that user signs in as the page's app lets them."""
        with httpx.Client(base_url=self.server.url, timeout=PATIENCE, limits=ONE_BY_ONE) as client:
            if user and self.framework.sign_in_form:
                answer = client.post("/sign-in", data={"username": user, "password": f"secret of {user.title()}"})
                assert answer.is_success, answer.text
            elif user:
                client.headers["Authorization"] = f"Bearer of-{user}"
            yield client


@pytest.fixture(scope="module", params=_matrix())
def started(request, tmp_path_factory) -> Iterator[Running]:
    """Start each app once."""
    name, server = request.param
    directory = tmp_path_factory.mktemp(f"{name}-{server}")
    env = {"CONVMEM_CONCURRENCY": "reject", "CONVMEM_SECRET_KEY": "a secret key of thirty-two bytes"}
    with serve(BY_NAME[name], server, directory, env) as process:
        yield Running(BY_NAME[name], server, process, directory)


@pytest.fixture
def running(started) -> Running:
    """Return an app that runs; every test comes as somebody new."""
    started.forget()
    return started


def say(client: httpx.Client, text: str, path: str = "/chat") -> str:
    """Say something and return the answer."""
    answer = client.post(path, params={"text": text})
    assert answer.is_success, f"{answer.status_code}: {answer.text}"
    return answer.text.strip() if "stream" in path else answer.json()["answer"]


def history(client: httpx.Client) -> list[str]:
    """Return what was said, as the app shows it."""
    return client.get("/history").raise_for_status().json()


def settled(client: httpx.Client, turns: int, seconds: float = PATIENCE) -> list[str]:
    """Return what was said, as soon as so many questions are there and no turn is running."""
    deadline = time.monotonic() + seconds
    while True:
        lines = history(client)
        if sum(line.startswith("user: ") for line in lines) == turns and not any(line.endswith("(running)") for line in lines):
            return lines
        assert time.monotonic() < deadline, lines
        time.sleep(0.05)


def test_the_second_request_remembers_the_first(running):
    """The point of it all, by the visitor's cookie alone."""
    with running.client() as client:
        assert say(client, "Ada") == "You said: Ada"
        assert say(client, "Bob") == "You said: Ada, Bob"
        assert history(client) == [
            "user: Ada (complete)",
            "assistant: You said: Ada (complete)",
            "user: Bob (complete)",
            "assistant: You said: Ada, Bob (complete)",
        ]


def test_two_visitors_never_meet(running):
    """At the same time, in one worker: nothing of a request is shared."""
    with running.client() as ada, running.client() as bob:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(say, (ada, bob), ("Ada", "Bob")))
            answers = list(pool.map(say, (ada, bob), ("again", "again")))
        assert answers == ["You said: Ada, again", "You said: Bob, again"]


def test_a_synchronous_handler_has_the_conversation(running):
    """In the thread where the framework runs it."""
    with running.client() as client:
        say(client, "Ada", "/chat/in-a-thread")
        assert say(client, "Bob", "/chat/in-a-thread") == "You said: Ada, Bob"


def test_the_second_request_remembers_what_the_first_streamed(running):
    """The streamed answer is stored before its end is seen, so that the next turn is let in at once."""
    with running.client() as client:
        assert say(client, "Ada", "/chat/in-a-stream") == "You said: Ada"
        assert say(client, "Bob", "/chat/in-a-stream") == "You said: Ada, Bob"
        assert history(client)[1] == "assistant: You said: Ada  (complete)"


def test_a_stream_is_not_held_back(running):
    """The first word is there while the model thinks about the second."""
    with running.client() as client, client.stream("POST", "/chat/in-a-stream", params={"text": "slowly"}) as answer:
        words = answer.iter_text()
        assert next(words) == "You "
        running.let_it_go_on()
        assert "".join(words) == "said: slowly "


def test_a_background_task_opens_its_own_turn(running):
    """What is said after the answer comes after it, and is there for the next request."""
    with running.client() as client:
        say(client, "Hello")
        say(client, "Are you there?", "/chat/and-follow-up")
        assert settled(client, 3)[2:] == [
            "user: Are you there? (complete)",
            "assistant: Yes. (complete)",
            "user: (silence) (complete)",
            "assistant: Anything else? (complete)",
        ]


def test_a_background_task_of_a_new_visitor_comes_after_the_first_turn(running):
    """The turn of a new visitor holds no lease; a task that begins at once must wait for it all the same."""
    with running.client() as client:
        say(client, "Are you there?", "/chat/and-follow-up")
        assert [line.partition(" (")[0] for line in settled(client, 2)] == [
            "user: Are you there?",
            "assistant: Yes.",
            "user:",
            "assistant: Anything else?",
        ]


@contextmanager
def socket_of(running: Running, client: httpx.Client) -> Iterator[Connection]:
    """Open a WebSocket with the cookies of a client, which keeps the one that the handshake brings."""
    url = running.server.url.replace("http", "ws", 1) + "/chat/socket"
    cookies = "; ".join(f"{name}={value}" for name, value in client.cookies.items())
    with connect(url, additional_headers={"Cookie": cookies} if cookies else None, close_timeout=1) as socket:
        assert socket.response
        for line in socket.response.headers.get_all("Set-Cookie"):
            name, _, value = line.partition(";")[0].partition("=")
            client.cookies.set(name, value)
        yield socket


def need_websockets(running: Running) -> None:
    """Skip where there is none to try."""
    if not running.framework.websocket:
        pytest.skip(f"declared: {running.framework.title} has no WebSockets of its own")
    if (running.framework.name, running.name) == ("quart", "daphne"):
        pytest.skip("declared: daphne leaves out what Quart needs for a WebSocket; see test_breaks")


def ask(socket: Connection, text: str) -> str | bytes:
    """Say something on a WebSocket and return the answer."""
    socket.send(text)
    return socket.recv(PATIENCE)


def test_a_websocket_and_requests_are_one_conversation(running):
    """What one of them stored, the other one finds in its next turn."""
    need_websockets(running)
    with running.client() as client:
        say(client, "Ada")
        with socket_of(running, client) as socket:
            assert ask(socket, "Bob") == "You said: Ada, Bob"
            assert say(client, "Eve") == "You said: Ada, Bob, Eve"
            assert ask(socket, "Mia") == "You said: Ada, Bob, Eve, Mia"


def test_the_handshake_of_a_new_visitor_brings_the_cookie(running):
    """With which requests find what was said on the WebSocket."""
    need_websockets(running)
    if running.name in NO_HANDSHAKE_HEADERS:
        pytest.skip(f"declared: {running.name} drops what the app sends with the answer to the handshake")
    with running.client() as client:
        with socket_of(running, client) as socket:
            ask(socket, "Ada")
        assert say(client, "Bob") == "You said: Ada, Bob"


def test_a_websocket_that_closes_in_mid_turn_loses_nothing(running):
    """What was asked is kept, whatever the framework does with its handler, and the next turn is let in."""
    need_websockets(running)
    with running.client() as client:
        say(client, "Ada")
        with socket_of(running, client) as socket:
            socket.send("slowly")
            running.wait_until_it_thinks()
        running.let_it_go_on()
        assert settled(client, 2)[2].startswith("user: slowly (")
        assert say(client, "Bob") == "You said: Ada, slowly, Bob"


def test_a_mounted_app_has_the_same_conversation(running):
    """Patterns are over the whole path, wherever a framework cuts it."""
    if not running.framework.mounts:
        pytest.skip(f"declared: {running.framework.title} has no apps inside of apps")
    with running.client() as client:
        say(client, "Ada")
        assert say(client, "Bob", "/team/chat") == "You said: Ada, Bob"
        assert say(client, "Eve") == "You said: Ada, Bob, Eve"


def test_a_user_who_signs_in_inside_the_app_is_remembered_on_every_client(running):
    """Who it is comes from the framework's own way to know it, after the middleware; a visitor's cookie makes no difference."""
    if (running.framework.name, running.name) == ("flask", "granian"):
        pytest.skip("declared: a2wsgi wants a coroutine to read a form with, and granian gives another awaitable")
    with running.client("ada") as laptop, running.client("ada") as phone, running.client("bob") as bob, running.client() as nobody:
        said = say(laptop, "from the laptop", "/my/chat")
        assert say(phone, "from the phone", "/my/chat") == f"{said}, from the phone"
        assert say(bob, "Hello", "/my/chat") == "You said: Hello"
        assert nobody.post("/my/chat", params={"text": "Hello"}).status_code == 401
        say(phone, "as a visitor")
        assert say(laptop, "again", "/my/chat") == f"{said}, from the phone, again"


def test_a_client_that_leaves_in_mid_stream_loses_nothing(running):
    """The question is kept with what the framework let the model say; the next turn is let in, and remembers."""
    with running.client() as client:
        say(client, "Ada")
        with client.stream("POST", "/chat/in-a-stream", params={"text": "slowly"}) as answer:
            assert next(answer.iter_text()) == "You "
        state = running.framework.after_leaving
        if state == "complete":
            running.let_it_go_on()
        answered = "You said: Ada, slowly " if state == "complete" else "You "
        assert settled(client, 2)[2:] == [f"user: slowly ({state})", f"assistant: {answered} ({state})"]
        assert say(client, "Bob") == "You said: Ada, slowly, Bob"


def test_a_second_turn_at_the_same_time_is_refused(running):
    """With `reject`: a 409 that says why, and the first one is not disturbed."""
    with running.client() as client:
        say(client, "Ada")
        with client.stream("POST", "/chat/in-a-stream", params={"text": "slowly"}) as answer:
            words = answer.iter_text()
            next(words)
            with httpx.Client(base_url=running.server.url, cookies=client.cookies, timeout=PATIENCE) as other:
                refused = other.post("/chat", params={"text": "Bob"})
            assert (refused.status_code, refused.json()["code"]) == (409, "conversation_busy")
            assert int(refused.headers["retry-after"]) >= 1
            running.let_it_go_on()
            assert "".join(words) == "said: Ada, slowly "
        assert history(client)[2:] == ["user: slowly (complete)", "assistant: You said: Ada, slowly  (complete)"]


def test_a_handler_that_fails_leaves_no_half_turn(running):
    """The framework's own 500, nothing stored, and the next turn is let in."""
    with running.client() as client:
        say(client, "Ada")
        assert client.post("/chat", params={"text": "fail"}).status_code == 500
        assert say(client, "Bob") == "You said: Ada, Bob"


def test_a_stream_that_breaks_off_keeps_the_question(running):
    """An answer that ends in an error is no answer; what was said of it reads as interrupted."""
    with running.client() as client:
        say(client, "Ada")
        with suppress(httpx.RemoteProtocolError, httpx.ReadTimeout):  # daphne leaves the connection open
            client.post("/chat/in-a-stream", params={"text": "break off"}, timeout=2)
        assert settled(client, 2)[2:] == ["user: break off (interrupted)", "assistant: You  (interrupted)"]
        assert say(client, "Bob") == "You said: Ada, break off, Bob"


def test_a_head_is_answered_as_the_framework_does(running):
    """Without a body, and without harm to the conversation."""
    with running.client() as client:
        say(client, "Ada")
        answer = client.head("/history")
        assert (answer.status_code, answer.content) == (running.framework.head, b"")
        assert say(client, "Bob") == "You said: Ada, Bob"


def test_what_is_not_found_is_the_frameworks_own_404(running):
    """Off `paths` and on it."""
    with running.client() as client:
        for path in ("/nothing", "/chat/nothing"):
            answer = client.post(path)
            assert answer.status_code == 404
            assert "set-cookie" not in answer.headers
