"""The demo's app on a real server: a conversation survives what usually ends one."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time

import httpx
import pytest

from convmem import Settings
from convmem.demo.app import create_app
from tests.servers.processes import PATIENCE

SLOW = {"DEMO_WORD_DELAY": "0.25"}


def client_of(server, **options):
    return httpx.Client(base_url=server.url, timeout=PATIENCE, **options)


def say(client, message, **options):
    response = client.post("/chat", json={"message": message}, **options)
    response.raise_for_status()
    return response.json()["answer"]


def history(client, **options):
    return client.get("/history", **options).raise_for_status().json()


def until(condition, seconds=PATIENCE):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)
    return found


def test_the_conversation_goes_on_after_kill_9(start):
    """The sentence the whole project stands for."""
    server = start()
    with client_of(server) as client:
        assert "Ada" in say(client, "My name is Ada")
        killed = history(client)["pid"]
        os.kill(killed, signal.SIGKILL)
        assert server.wait() == -signal.SIGKILL
        server.start()
        assert say(client, "What's my name?") == "Your name is Ada."
        after = history(client)
    assert after["total_turns"] == 2
    assert after["pid"] != killed
    assert [(m["role"], m["content"]) for m in after["messages"]] == [
        ("user", "My name is Ada"),
        ("assistant", "Nice to meet you, Ada."),
        ("user", "What's my name?"),
        ("assistant", "Your name is Ada."),
    ]


def test_an_answer_cut_by_kill_9_reads_as_interrupted(start):
    """Stored is what was there: the question. It is marked, and the next turn works."""
    server = start(**SLOW, CONVMEM_LEASE="1s")
    with client_of(server) as client:
        history(client)
        with client.stream("POST", "/chat/stream", json={"message": "hello"}) as response:
            lines = response.iter_lines()
            next(lines)
            os.kill(int(response.headers["demo-worker"]), signal.SIGKILL)
            with pytest.raises(httpx.RemoteProtocolError):
                list(lines)
        server.wait()
        server.start()
        assert say(client, "What did I say first?").endswith('"hello"')
        states = [(m["role"], m["state"]) for m in history(client)["messages"]]
    assert states == [("user", "interrupted"), ("user", "complete"), ("assistant", "complete")]


def test_workers_answer_from_one_memory(start):
    """Any worker knows what another one was told. One is paused, so that the other has to answer."""
    with client_of(start("--workers", "2"), headers={"Connection": "close"}) as client:
        told = client.post("/chat", json={"message": "My name is Ada"}).json()
        os.kill(told["pid"], signal.SIGSTOP)
        try:
            asked = client.post("/chat", json={"message": "What's my name?"}).json()
        finally:
            os.kill(told["pid"], signal.SIGCONT)
        assert asked["answer"] == "Your name is Ada."
        assert asked["pid"] != told["pid"]


def test_a_killed_worker_is_replaced_and_nothing_is_forgotten(start):
    """A kill -9 of one of two workers costs nothing that was answered."""
    with client_of(start("--workers", "2"), headers={"Connection": "close"}) as client:
        say(client, "My name is Ada")
        first = history(client)["pid"]
        os.kill(first, signal.SIGKILL)

        def answered():
            try:
                return say(client, "What's my name?")
            except httpx.TransportError:  # the connection was the killed worker's
                return None

        assert until(answered) == "Your name is Ada."


def test_two_visitors_never_see_each_other(start):
    """Each has a cookie of their own, and an id does not help: the owner is part of the address."""
    server = start()
    with client_of(server) as ada, client_of(server) as eve:
        say(ada, "My name is Ada")
        mine = ada.post("/conversations").json()["session_id"]
        say(ada, "Remember the number 4711", headers={"X-Session-ID": mine})
        say(eve, "hello")
        assert "have not told me" in say(eve, "What's my name?")
        stolen = {"X-Session-ID": mine}
        assert history(eve, headers=stolen)["messages"] == []
        assert "do not find" in say(eve, "Which number?", headers=stolen)
        assert {c["turns"] for c in eve.get("/conversations").json()["conversations"]} == {1, 2}
        assert say(ada, "Which number?", headers=stolen) == "The number is 4711."


def test_a_tampered_cookie_is_a_new_visitor_and_said_so(start):
    """It is never quietly somebody new, and never somebody else."""
    server = start()
    with client_of(server) as client:
        say(client, "My name is Ada")
        name, token = next(iter(client.cookies.items()))
    forged = token[:-2] + ("AA" if not token.endswith("AA") else "BB")
    response = httpx.get(f"{server.url}/history", headers={"Cookie": f"{name}={forged}"})
    assert response.json()["messages"] == []
    assert response.headers["convmem-identity"] == "rejected"


def test_an_answer_is_streamed_word_by_word(start):
    """Server-sent events: deltas that join to the answer, then [DONE]."""
    with client_of(start(DEMO_WORD_DELAY="0.02")) as client:
        say(client, "My name is Ada")
        with client.stream("POST", "/chat/stream", json={"message": "What's my name?"}) as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
        assert lines.pop() == "[DONE]"
        assert [json.loads(line)["delta"] for line in lines] == ["Your ", "name ", "is ", "Ada."]
        assert history(client)["messages"][-1]["content"] == "Your name is Ada."
        assert history(client)["messages"][-1]["state"] == "complete"


@pytest.mark.asyncio
async def test_done_means_stored():
    """Who reads [DONE] may ask at once: the history is asked for before [DONE] has even left, and the answer is in it."""
    app = create_app(
        Settings.from_environment({"CONVMEM_STORE": "memory://", "CONVMEM_SECRET_KEY": "store", "CONVMEM_COOKIE_SECURE": "never"})
    )
    at_done = []

    async def ask_at_done(scope, receive, send):
        async def watch(message):
            if b"[DONE]" in message.get("body", b""):
                cookie = {"Cookie": dict(scope["headers"])[b"cookie"].decode()}
                async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://demo") as other:
                    at_done.append((await other.get("/history", headers=cookie)).json())
            await send(message)

        await app(scope, receive, watch)

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=ask_at_done), base_url="http://demo") as client:
        await client.get("/history")
        await client.post("/chat/stream", json={"message": "My name is Ada"})
    (seen,) = at_done
    assert [message["content"] for message in seen["messages"]] == ["My name is Ada", "Nice to meet you, Ada."]


def test_a_running_turn_is_seen_as_busy_from_elsewhere(start):
    """A second tab knows that the first is still being answered; when it is done, so does the second tab."""
    server = start(**SLOW)
    with client_of(server) as first, client_of(server) as second:
        history(first)
        second.cookies = first.cookies
        with first.stream("POST", "/chat/stream", json={"message": "My name is Ada"}) as response:
            lines = response.iter_lines()
            next(lines)
            during = history(second)
            list(lines)
        assert during["busy"]
        assert during["messages"][-1] | {"id": "", "created_at": ""} == {
            "id": "",
            "role": "user",
            "content": "My name is Ada",
            "state": "running",
            "created_at": "",
        }
        after = history(second)
        assert not after["busy"]
        assert {m["state"] for m in after["messages"]} == {"complete"}


def test_a_second_turn_waits_for_the_first(start):
    """Two tabs do not overwrite each other; the second sees what the first was told."""
    server = start(**SLOW)
    with client_of(server) as first, client_of(server) as second:
        history(first)
        second.cookies = first.cookies
        with first.stream("POST", "/chat/stream", json={"message": "My name is Ada"}) as response:
            lines = response.iter_lines()
            next(lines)
            answers: list[str] = []
            waiting = threading.Thread(target=lambda: answers.append(say(second, "What's my name?")))
            waiting.start()
            list(lines)
        waiting.join(PATIENCE)
        assert answers == ["Your name is Ada."]


def test_a_turn_that_may_not_wait_is_told_so(start):
    """With the policy reject, and after TURN_WAIT: 409, with how long the other turn has run."""
    server = start(**SLOW, CONVMEM_CONCURRENCY="reject")
    with client_of(server) as first, client_of(server) as second:
        history(first)
        second.cookies = first.cookies
        with first.stream("POST", "/chat/stream", json={"message": "hello"}) as response:
            lines = response.iter_lines()  # whoever lets go of it hangs up
            next(lines)
            refused = second.post("/chat", json={"message": "What's my name?"})
            assert second.post("/conversations").status_code == 200  # handing out an id is no turn
            assert list(lines)  # it was not disturbed
    assert refused.status_code == 409
    assert refused.json()["code"] == "conversation_busy"
    assert refused.json()["running_seconds"] > 0
    assert int(refused.headers["retry-after"]) > 0


def test_a_client_that_leaves_leaves_what_it_heard(start):
    """A closed tab, or the stop button: what arrived is stored and marked."""
    with client_of(start(**SLOW)) as client:
        history(client)
        with client.stream("POST", "/chat/stream", json={"message": "hello"}) as response:
            lines = response.iter_lines()
            heard = [json.loads(line.removeprefix("data: "))["delta"] for line in (next(lines), next(lines), next(lines)) if line]
        stored = until(lambda: not (found := history(client))["busy"] and found["messages"])
        assert [m["state"] for m in stored] == ["interrupted", "interrupted"]
        assert stored[1]["content"].startswith("".join(heard))
        assert say(client, "What did I say first?").endswith('"hello"')


def test_conversations_are_kept_apart_and_listed(start):
    """A new one stores nothing until something is said; then it is the first of the list."""
    with client_of(start()) as client:
        assert client.get("/conversations").json()["conversations"] == []
        say(client, "My name is Ada")
        other = client.post("/conversations").json()["session_id"]
        assert [c["session_id"] for c in client.get("/conversations").json()["conversations"]] == ["default"]
        there = {"X-Session-ID": other}
        assert "have not told me" in say(client, "What's my name?", headers=there)
        assert say(client, "What's my name?") == "Your name is Ada."
        listed = client.get("/conversations").json()
        assert [(c["session_id"], c["turns"]) for c in listed["conversations"]] == [("default", 2), (other, 1)]
        assert listed["after"] is None
        assert history(client, headers=there)["session_id"] == other


def test_the_window_is_visible(start):
    """What the model does not see any more is stored all the same, and counted."""
    with client_of(start(CONVMEM_WINDOW_TURNS="3")) as client:
        say(client, "My name is Ada")
        for _ in range(4):
            say(client, "ok")
        seen = history(client)
        assert (seen["total_turns"], seen["left_out"], seen["window_turns"], seen["truncated"]) == (5, 2, 3, True)
        assert len(seen["messages"]) == 6
        assert "have not told me" in say(client, "What's my name?")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    from tests.demo.conftest import demo_server

    with demo_server(tmp_path_factory.mktemp("demo"), CONVMEM_MAX_MESSAGE_BYTES="1000") as running:
        yield running


@pytest.mark.parametrize("path", ["/chat", "/chat/stream"])
@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        (b"", 400, "not JSON"),
        (b'{"mess', 400, "not JSON"),
        (b"\xff\xfe", 400, "not JSON"),
        (b"[" * 900, 400, "not JSON"),
        (b"[]", 422, "no text"),
        (b'"hello"', 422, "no text"),
        (b"{}", 422, "no text"),
        (b'{"message": 5}', 422, "no text"),
        (b'{"message": null}', 422, "no text"),
        (b'{"message": "  "}', 422, "empty"),
        (b'{"message": "' + b"x" * 1001 + b'"}', 413, "1000 bytes"),
    ],
)
def test_what_cannot_be_answered_is_refused_with_a_sentence(server, path, body, status, sentence):
    """And nothing of it is stored."""
    with client_of(server) as client:
        history(client)
        refused = client.post(path, content=body, headers={"Content-Type": "application/json"})
        assert refused.status_code == status
        assert sentence in refused.json()["error"]
        assert not history(client)["busy"]
        assert history(client)["total_turns"] == 0


def test_a_page_nobody_counted_is_refused(server):
    """An `after` that is not from the list is the client's mistake, not a 500."""
    with client_of(server) as client:
        history(client)
        assert client.get("/conversations", params={"after": "zzz"}).status_code == 400
        assert client.get("/nowhere").json()["error"] == "Not Found"
        assert client.get("/chat").status_code == 405


def test_any_text_comes_back(server):
    """Half a surrogate, a NUL, markup: stored as sent, and back as stored."""
    odd = 'half \ud800, nul \x00, <script>alert("hi")</script>, עברית, 🙂'
    with client_of(server) as client:
        history(client)
        sent = client.post("/chat", content=json.dumps({"message": odd}), headers={"Content-Type": "application/json"})
        assert sent.status_code == 200
        assert history(client)["messages"][0]["content"] == odd


def test_the_page_needs_nothing_from_elsewhere(server):
    """No build step, no other host, and a policy that forbids both and any script but its own."""
    first, second = (httpx.get(server.url) for _ in range(2))
    policy = first.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    nonces = re.findall(r"'nonce-([^']+)'", policy)
    assert len(nonces) == 2
    assert all(f'nonce="{nonce}"' in first.text for nonce in nonces)
    assert "{nonce}" not in first.text
    assert policy != second.headers["content-security-policy"]
    assert set(re.findall(r"https?://[^\s'\"]+", first.text)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"innerHTML|insertAdjacentHTML|document\.write|\beval\b", first.text)
    assert "set-cookie" not in first.headers


def test_health_says_who_answers(server):
    """For whoever watches the processes; it costs no visitor and no store trip."""
    response = httpx.get(f"{server.url}/health")
    assert response.json() == {"status": "ok", "pid": server.pid}
    assert "set-cookie" not in response.headers
