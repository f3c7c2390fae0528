"""WebSockets on real servers: each turn is stored before its answer, and survives what servers do to sockets."""

import contextlib
import itertools
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect
from websockets.sync.connection import Connection

from tests.servers.commands import WAIT_FOR_CLIENTS, server
from tests.servers.processes import PATIENCE, Server
from tests.servers.test_survival import texts_of

CONFIGURATIONS = {"uvicorn": (), "uvicorn-wsproto": ("--ws", "wsproto"), "hypercorn": (), "granian": ()}
KEY = "a key of thirty-two bytes or more."


@pytest.fixture
def settings(tmp_path):
    """Return the environment of a laptop where everybody has the time they need."""
    return {
        "CONVMEM_STORE": f"sqlite:///{tmp_path}/convmem.db",
        "CONVMEM_LEASE": "30s",
        "CONVMEM_TURN_WAIT": "60s",
        "CONVMEM_SECRET_KEY": KEY,
    }


def run(name: str, env: dict[str, str], app: str = "plain", *options: str, factory: bool = False) -> Server:
    return server(name.partition("-")[0], app, env, *CONFIGURATIONS[name], *options, factory=factory)


@contextmanager
def socket(process: Server, headers: dict[str, str] | None = None, origin: str | None = None) -> Iterator[Connection]:
    uri = process.url.replace("http", "ws", 1) + "/ws"
    with connect(uri, additional_headers=headers, origin=origin, proxy=None) as connection:  # type: ignore[arg-type]
        yield connection


def visitor(process: Server) -> dict[str, str]:
    """Become a visitor by a request, as a page does that shows the history first."""
    return {"cookie": httpx.post(f"{process.url}/chat", content="hi", timeout=PATIENCE).headers["set-cookie"].partition(";")[0]}


def ask(connection: Connection, text: str) -> dict:
    connection.send(text)
    return json.loads(connection.recv(timeout=PATIENCE))


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_visitor_keeps_one_memory_over_sockets_and_requests(settings, name):
    """What one stores the other sees, whichever came first."""
    with run(name, settings) as process:
        cookie = visitor(process)
        with socket(process, cookie, origin=process.url) as connection:
            assert ask(connection, "one")["texts"] == ["hi", "one"]
            assert httpx.post(f"{process.url}/chat", content="two", headers=cookie, timeout=PATIENCE).json()["texts"] == [
                "hi",
                "one",
                "re one",
                "two",
            ]
            assert ask(connection, "three")["texts"] == ["hi", "one", "re one", "two", "three"]
        with socket(process, cookie) as connection:
            assert ask(connection, "four")["texts"][-3:] == ["three", "re three", "four"]


@pytest.mark.parametrize("name", ["uvicorn", "uvicorn-wsproto", "hypercorn"])
def test_the_handshake_makes_a_visitor(settings, name):
    """The cookie comes with it, and is good for the next socket and for requests."""
    with run(name, settings) as process:
        with socket(process) as connection:
            assert connection.response
            assert connection.response.headers["convmem-identity"] == "new"
            cookie = {"cookie": connection.response.headers["set-cookie"].partition(";")[0]}
            ask(connection, "one")
        with socket(process, cookie) as connection:
            assert connection.response
            assert "set-cookie" not in connection.response.headers
            assert ask(connection, "two")["texts"] == ["one", "re one", "two"]


def test_granian_would_drop_the_cookie_so_nobody_is_made_up(settings):
    """If this fails because the server sends the headers now, let the handshake make visitors there too."""
    with run("granian", settings) as process:
        with pytest.raises(InvalidStatus) as refused, socket(process):
            pass
        assert json.loads(refused.value.response.body or b"")["code"] == "cookie_not_sent"
        with socket(process, visitor(process)) as connection:
            assert connection.response
            assert "conversation-revision" not in connection.response.headers  # the drop itself


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_foreign_page_and_an_unusable_id_are_refused_at_the_handshake(settings, name):
    """With the whole problem document: all of these servers have the extension for it."""
    with run(name, settings) as process:
        cookie = visitor(process)
        for origin, headers, status, code in (
            ("https://evil.example", cookie, 403, "foreign_origin"),
            (None, {**cookie, "x-session-id": "no way"}, 400, "invalid_identity"),
        ):
            with pytest.raises(InvalidStatus) as refused, socket(process, headers, origin):
                pass
            assert refused.value.response.status_code == status
            assert json.loads(refused.value.response.body or b"")["code"] == code
        with socket(process, cookie) as connection:
            assert ask(connection, "still here")["texts"] == ["hi", "still here"]


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_turn_is_in_the_file_when_its_answer_arrives(tmp_path, name):
    """Each call of this store takes 0.3 s, so an answer sent too early would be seen."""
    env = {"TEST_DATABASE": str(tmp_path / "convmem.db"), "CONVMEM_SECRET_KEY": KEY}
    with run(name, env, "slow_store", factory=True) as process, socket(process, {"x-user": "ada"}) as connection:
        ask(connection, "q")
        assert texts_of(tmp_path / "convmem.db", "user:ada") == [("complete", "q"), ("complete", "re q")]


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_worker_killed_in_the_middle_of_a_turn_loses_no_question(settings, tmp_path, name):
    """It reads as interrupted, and the next turn goes on as soon as the dead worker's lease is over."""
    with run(name, {**settings, "CONVMEM_LEASE": "1s"}) as process:
        cookie = visitor(process)
        with contextlib.suppress(ConnectionClosed), socket(process, cookie) as connection:
            owner = ask(connection, "one")["owner"]
            connection.send("stuck")
            assert connection.recv(timeout=PATIENCE) == "began"
            process.kill()
        process.start()
        with socket(process, cookie) as connection:
            answer = ask(connection, "again")
        assert (answer["texts"], answer["interrupted"]) == (["hi", "one", "re one", "stuck", "again"], True)
        states = [state for state, _ in texts_of(tmp_path / "convmem.db", owner)]
        assert states == ["complete"] * 3 + ["interrupted"] + ["complete"] * 2


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_client_that_hangs_up_in_the_middle_of_a_turn_blocks_nobody(settings, name):
    """The handler goes on to the end, its answer is stored, and another socket's turn comes right after it."""
    with run(name, settings) as process:
        cookie = visitor(process)
        with socket(process, cookie) as connection:
            connection.send("slow")
            assert connection.recv(timeout=PATIENCE) == "began"
            connection.socket.close()
        with socket(process, cookie) as connection:
            assert ask(connection, "next")["texts"] == ["hi", "slow", "re slow", "next"]


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_shutdown_in_the_middle_of_a_turn_keeps_it(settings, tmp_path, name):
    """SIGTERM: the server drops its sockets, or waits for their clients, and ends after the turn is stored."""
    with run(name, settings) as process:
        with contextlib.suppress(ConnectionClosed), socket(process, visitor(process)) as connection:
            owner = ask(connection, "one")["owner"]
            connection.send("slow")
            assert connection.recv(timeout=PATIENCE) == "began"
            process.ask_to_end()
            if name not in WAIT_FOR_CLIENTS:
                process.wait()
        process.wait()
    stored = texts_of(tmp_path / "convmem.db", owner)
    assert stored[3:] == [("complete", "slow"), ("complete", "re slow")]


def test_two_sockets_in_two_workers_take_turns(settings):
    """Two tabs of one visitor, whichever workers they reach: each turn has seen all before it, and none is lost."""
    with run("uvicorn", settings, "plain", "--workers", "2") as process:
        cookie = visitor(process)
        pids: set[int] = set()

        def tab(name: str) -> list[list[str]]:
            with socket(process, cookie) as connection:
                answers = [ask(connection, f"{name}{i}") for i in range(4)]
            pids.update(answer["pid"] for answer in answers)
            return [answer["texts"] for answer in answers]

        with ThreadPoolExecutor(4) as pool:
            seen = sorted((texts for tab in pool.map(tab, "abcd") for texts in tab), key=len)
        assert [len(texts) for texts in seen] == [2 + 2 * i for i in range(16)]
        assert all(longer[: len(shorter)] == shorter for shorter, longer in itertools.pairwise(seen))
