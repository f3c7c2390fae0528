"""Why apps forget, where no framework is to blame: the code people usually write, which forgets, and the same app with ours.

Each test has both halves. `ROWS` numbers the causes as `docs/how-to/why-did-my-memory-vanish.md` does; the causes that lie with a
framework are in `tests.adapters.test_forgetting`.
"""

import asyncio
import json
import logging
import os
import re
import socket
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any
from uuid import uuid4

import pytest
from fastapi import Depends, FastAPI, Request
from fastapi.responses import StreamingResponse
from starlette.testclient import TestClient

from convmem import (
    Conversation,
    ConversationMiddleware,
    Identity,
    MemoryStore,
    Message,
    SessionKey,
    Settings,
    Window,
    current_conversation,
    from_callable,
    get_conversation,
)
from convmem.messages import decode_messages
from convmem.testing import FaultyStore
from tests.asgi_client import AT_ONCE, Client, user_header
from tests.servers.processes import clean_environment

ROWS = {
    4: "test_replicas_on_several_hosts_have_a_disk_each_and_ours_meet_in_one_store",
    8: "test_an_id_the_client_must_bring_is_lost_with_it_and_ours_is_found_in_whatever_the_app_has",
    9: "test_an_id_opens_the_history_of_another_and_ours_names_one_of_the_callers_own",
    11: "test_a_file_beside_the_process_is_another_for_each_and_ours_says_that_history_is_missing",
    13: "test_a_missing_file_is_a_new_beginning_and_ours_stops_the_start",
    17: "test_a_broken_storage_is_found_by_its_users_and_ours_by_the_start",
    21: "test_every_reason_for_no_history_looks_the_same_and_ours_are_told_apart",
    22: "test_an_answer_is_written_after_the_stream_or_never_and_ours_as_far_as_it_was_seen",
    24: "test_the_last_messages_are_all_that_is_kept_and_ours_are_all_that_is_shown",
    27: "test_a_memory_elsewhere_is_told_everything_and_ours_tells_nobody",
    28: "test_a_number_comes_back_as_text_and_ours_as_a_number",
    29: "test_nobody_knows_when_it_was_said_and_ours_does",
    31: "test_a_dictionary_made_in_a_call_ends_with_it_and_ours_is_there_wherever_the_call_leads",
    32: "test_another_store_is_another_program_and_ours_is_another_url",
    33: "test_an_answer_says_nothing_about_its_memory_and_ours_says_all_there_is",
}
"""The number of each cause, and the test that shows it."""

KEY = "a secret key of thirty-two bytes"
NAME, ASKS = "my name is Ada", "what is my name?"
CurrentConversation = Annotated[Conversation, Depends(get_conversation)]


def theirs(chat) -> Any:
    """Return a client of an app as people write it."""
    app = FastAPI()
    app.post("/chat", response_model=None)(chat)
    return TestClient(app, raise_server_exceptions=False)


async def remembering(text: str, conversation: CurrentConversation) -> list[str]:
    """Ours, in the fewest lines."""
    conversation.append(Message.user(text))
    return [message.text for message in conversation.messages]


def ours(chat=remembering, **options) -> Any:
    """Return a client of the same app inside the middleware."""
    client = theirs(chat)
    options = {"store": MemoryStore(), "settings": Settings({}, secret_key=KEY), **options}
    client.app.add_middleware(ConversationMiddleware, **options)
    return client


def say(client: TestClient, text: str, path: str = "/chat", **headers: str):
    answer = client.post(path, params={"text": text}, headers={name.replace("_", "-"): value for name, value in headers.items()})
    assert answer.status_code == 200, answer.text
    return answer.json()


def started(app) -> dict:
    """Return what a server is told at the start."""
    told: list[dict] = []

    async def receive() -> dict:
        return {"type": "lifespan.startup"}

    async def send(message) -> None:
        told.append(message)

    asyncio.run(asyncio.wait_for(app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, receive, send), AT_ONCE))
    return told[0]


def test_every_row_has_its_test():
    """A table that names what nobody runs promises nothing."""
    tests = [name for name in globals() if name.startswith("test_") and name != "test_every_row_has_its_test"]
    assert sorted(ROWS.values()) == sorted(tests)
    assert [name for name in tests if not globals()[name].__doc__] == []


def by_user(scope) -> Identity | None:
    headers = dict(scope["headers"])
    user, tenant = headers.get(b"x-user"), headers.get(b"x-tenant", b"")
    return Identity(owner=f"user:{user.decode()}", tenant=tenant.decode()) if user else None


WAYS = {
    "user": ({"x_user": "ada"}, {"x_user": "bob"}),
    "tenant and user": ({"x_user": "ada", "x_tenant": "acme"}, {"x_user": "ada", "x_tenant": "other"}),
    "session header": ({"x_user": "ada", "x_session_id": "a"}, {"x_user": "ada", "x_session_id": "b"}),
    "signed cookie": ({}, None),
    "signed token": ({"convmem_visitor": "new"}, {"convmem_visitor": "new"}),
    "id in the path": ({"x_user": "ada"}, {"x_user": "ada"}),
}


@pytest.mark.parametrize("way", WAYS)
def test_an_id_the_client_must_bring_is_lost_with_it_and_ours_is_found_in_whatever_the_app_has(way):
    """A client that brings no id gets a random one, and another with the next message; here each way is an identity of its own."""
    histories: dict[str, list[str]] = {}

    async def usual(text: str, request: Request):
        history = histories.setdefault(request.headers.get("x-conversation") or str(uuid4()), [])
        history.append(text)
        return history

    client, (mine, others) = theirs(usual), WAYS[way]
    assert [say(client, text, **mine) for text in (NAME, ASKS)] == [[NAME], [ASKS]]

    settings = Settings({}, secret_key=KEY, session_from="header,path:/chat/{id}")
    client = ours(settings=settings, resolvers=[from_callable(by_user)])
    client.app.post("/chat/{id}", response_model=None)(remembering)
    path, other_path = ("/chat/a", "/chat/b") if way == "id in the path" else ("/chat", "/chat")
    if way == "signed token":
        mine, others = ({"convmem_visitor": token_for(client)} for _ in range(2))
    assert [say(client, text, path, **mine) for text in (NAME, ASKS)] == [[NAME], [NAME, ASKS]]
    if others is None:
        client.cookies.clear()
    assert say(client, "hello", other_path, **(others or {})) == ["hello"]


def token_for(client: TestClient) -> str:
    headers = {"convmem-visitor": "new", "x-session-id": "elsewhere"}
    return client.post("/chat", params={"text": "hello"}, headers=headers).headers["convmem-visitor"]


def test_an_id_opens_the_history_of_another_and_ours_names_one_of_the_callers_own():
    """``header or user.id`` is the fix that is passed around; it forgets nothing, and shows it to whoever sends the header."""
    histories: dict[str, list[str]] = {}

    async def usual(text: str, request: Request):
        history = histories.setdefault(request.headers.get("x-session-id") or request.headers["x-user"], [])
        history.append(text)
        return history

    def talk(client: TestClient):
        say(client, "the code is 1234", x_user="ada")
        say(client, "the plan", x_user="ada", x_session_id="plan")
        return [say(client, "and?", x_user="eve", x_session_id=named) for named in ("ada", "plan")]

    assert talk(theirs(usual)) == [["the code is 1234", "and?"], ["the plan", "and?"]]
    assert talk(ours(resolvers=[from_callable(by_user)])) == [["and?"], ["and?"]]
    strict = ours(settings=Settings({}, secret_key=KEY, client_ids="issued"), resolvers=[from_callable(by_user)])
    answers = [
        strict.post("/chat", params={"text": "and?"}, headers={"x-user": "eve", "x-session-id": named}).status_code
        for named in ("ada", "plan")
    ]
    assert answers == [404, 404]


def test_a_file_beside_the_process_is_another_for_each_and_ours_says_that_history_is_missing(tmp_path, monkeypatch):
    """Two workers started in two directories, or two containers: each has a file of that name, and each is well."""

    def usual(text: str):
        file = Path("chat.json")
        history = [*(json.loads(file.read_text()) if file.exists() else []), text]
        file.write_text(json.dumps(history))
        return history

    def deployment(name: str, store: str | None = None):
        (tmp_path / name).mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / name)
        return ours(store=None, settings=Settings({}, secret_key=KEY, store=store or "sqlite:///convmem.db"))

    deployment("a")
    assert say(theirs(usual), NAME) == [NAME]
    deployment("b")
    assert say(theirs(usual), ASKS) == [ASKS]

    with deployment("a") as a:
        seen = a.post("/chat", params={"text": NAME}).headers["conversation-revision"]
        seen = a.post("/chat", params={"text": "and I live in Oslo"}).headers["conversation-revision"]
    with deployment("b") as b:
        b.cookies = a.cookies
        answer = b.post("/chat", params={"text": ASKS}, headers={"conversation-revision": seen})
        assert (answer.status_code, answer.json()["code"]) == (409, "history_lost")
    with deployment("a", f"sqlite:///{tmp_path}/shared.db") as a:
        say(a, NAME)
    with deployment("b", f"sqlite:///{tmp_path}/shared.db") as b:
        b.cookies = a.cookies
        assert say(b, ASKS) == [NAME, ASKS]


def test_a_missing_file_is_a_new_beginning_and_ours_stops_the_start(tmp_path):
    """A volume that was not mounted, a path with a typing error: users notice, not the deployment."""
    file = tmp_path / "volume" / "chat.json"

    def usual(text: str):
        return [*(json.loads(file.read_text()) if file.exists() else []), text]

    assert say(theirs(usual), ASKS) == [ASKS]
    client = ours(store=None, settings=Settings({}, secret_key=KEY, store=f"sqlite:///{tmp_path}/volume/convmem.db?mode=rw"))
    refusal = started(client.app)
    assert refusal["type"] == "lifespan.startup.failed"
    assert "CONVMEM_STORE cannot be used" in refusal["message"]


def test_a_broken_storage_is_found_by_its_users_and_ours_by_the_start(tmp_path):
    """To open a file proves nothing; the first to write a payload and read it again should not be a user."""
    database = tmp_path / "convmem.db"
    database.write_text("a backup that was restored by half " * 100)

    async def health():
        with closing(sqlite3.connect(database)):
            return "ok"

    async def usual(text: str):
        with closing(sqlite3.connect(database)) as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS said (text TEXT)")

    client = theirs(usual)
    client.app.get("/health")(health)
    assert client.get("/health").json() == "ok"
    assert client.post("/chat", params={"text": NAME}).status_code == 500

    client = ours(store=None, settings=Settings({}, secret_key=KEY, store=f"sqlite:///{database}"))
    refusal = started(client.app)
    assert refusal["type"] == "lifespan.startup.failed"
    assert "CONVMEM_STORE cannot be used" in refusal["message"]


def test_every_reason_for_no_history_looks_the_same_and_ours_are_told_apart():
    """New, expired, deleted, somebody else's, out of order: "no history found" is none of them."""
    histories: dict[str, list[str]] = {}

    def load(session_id: str) -> list[str]:
        try:
            if session_id == "down":
                raise ConnectionError
            return histories[session_id]
        except Exception:  # noqa: BLE001 - as people write it
            return []

    assert [load(reason) for reason in ("new", "expired", "deleted", "foreign", "down")] == [[]] * 5

    store = FaultyStore(MemoryStore())
    gone: list[str] = []

    async def chat(text: str, conversation: CurrentConversation) -> bool:
        if text == "delete meanwhile":
            gone.append(conversation.session_id)
            await store.delete(conversation.key)
        conversation.append(Message.user(text))
        return conversation.is_new

    def outcome(text: str, client=None, **headers: str):
        answer = (client or hasty).post("/chat", params={"text": text}, headers={"x-user": "ada", **headers})
        return answer.json() if answer.status_code == 200 else (answer.status_code, answer.json()["code"])

    def keeping(ttl: str):
        settings = Settings({}, secret_key=KEY, ttl=ttl, client_ids="issued")
        return ours(chat, store=store, settings=settings, resolvers=[from_callable(by_user)])

    lasting, hasty = keeping("1h"), keeping("300ms")
    said = {"new": "hello", "there": "again", "deleted": "delete meanwhile", "anew": "hello"}
    seen = {which: outcome(text, lasting) for which, text in said.items()}
    outcome("again")
    asyncio.run(asyncio.sleep(0.4))
    seen |= {"expired": outcome("hello"), "foreign": outcome("hello", **{"x-session-id": "of-bob"})}
    store.fail("load")
    seen["down"] = outcome("hello")
    assert seen == {
        "new": True,
        "there": False,
        "deleted": (410, "conversation_gone"),
        "anew": True,
        "expired": (409, "history_expired"),
        "foreign": (404, "unknown_conversation"),
        "down": (503, "store_unavailable"),
    }
    assert gone == ["default"]


def test_an_answer_is_written_after_the_stream_or_never_and_ours_as_far_as_it_was_seen():
    """The line behind the loop is not reached when the client leaves; the user has read half an answer that nobody remembers."""
    kept: list[str] = []
    leave = asyncio.Event()

    async def model():
        yield "Nice to meet you, "
        leave.set()
        await asyncio.sleep(30)
        yield "Ada."

    async def usual():
        answer = ""
        async for word in model():
            answer += word
            yield word
        kept.extend([NAME, answer])

    async def stream() -> StreamingResponse:
        return StreamingResponse(usual())

    async def stream_ours(request: Request) -> StreamingResponse:
        conversation = await get_conversation(request)
        conversation.append(Message.user(NAME))
        return StreamingResponse(conversation.record(model()))

    store = MemoryStore()
    app, with_ours = FastAPI(), FastAPI()
    app.post("/chat")(stream)
    with_ours.post("/chat")(stream_ours)
    settings = Settings({}, secret_key=KEY)

    async def visit(app) -> list[bytes]:
        leave.clear()
        return (await asyncio.wait_for(Client(app).post(leave=leave), AT_ONCE)).chunks

    async def main() -> list[tuple[str, str]]:
        assert await visit(app) == [b"Nice to meet you, "]
        assert await visit(ConversationMiddleware(with_ours, store=store, settings=settings, resolvers=[from_callable(user_header)]))
        log = await store.load(SessionKey.for_user("ada"))
        return [(turn.state, message.text) for turn in log.turns for each in turn.entries for message in decode_messages(each.entry.body)]

    assert asyncio.run(main()) == [("interrupted", NAME), ("interrupted", "Nice to meet you, ")]
    assert kept == []


def test_the_last_messages_are_all_that_is_kept_and_ours_are_all_that_is_shown():
    """``history[-50:]`` keeps a store small, and is the end of everything older; here a raised limit brings it back."""
    limit = 2
    history: list[str] = []

    async def usual(text: str):
        history.append(text)
        del history[:-limit]
        return list(history)

    client = theirs(usual)
    answers = [say(client, text) for text in "abcd"]
    limit = 10
    assert (answers[-1], say(client, "e")) == (["c", "d"], ["c", "d", "e"])

    store = MemoryStore()
    small, large = (ours(store=store, window=Window(turns=turns), resolvers=[from_callable(by_user)]) for turns in (1, 10))
    answers = [say(small, text, x_user="ada") for text in "abcd"]
    assert (answers[-1], say(large, "e", x_user="ada")) == (["c", "d"], ["a", "b", "c", "d", "e"])


SHARED = {
    "Valkey": lambda request: request.getfixturevalue("valkey_server").url,
    "PostgreSQL": lambda request: request.getfixturevalue("postgres_url"),
}


@pytest.mark.parametrize("kind", SHARED)
def test_replicas_on_several_hosts_have_a_disk_each_and_ours_meet_in_one_store(kind, tmp_path, request):
    """Round robin over three, each with files of its own: no affinity is needed where they share a store."""
    texts = [str(i) for i in range(7)]

    def replica(folder: Path):
        def usual(text: str):
            file = folder / "chat.json"
            history = [*(json.loads(file.read_text()) if file.exists() else []), text]
            file.write_text(json.dumps(history))
            return history

        folder.mkdir()
        return theirs(usual)

    replicas = [replica(tmp_path / name) for name in "abc"]
    assert [say(replicas[i % 3], text) for i, text in enumerate(texts)][-1] == ["0", "3", "6"]

    url, namespace = SHARED[kind](request), f"forgetting{uuid4().hex[:8]}"

    def deployment():
        settings = Settings({}, secret_key=KEY, store=url, namespace=namespace)
        return ours(store=None, settings=settings, resolvers=[from_callable(by_user)])

    with deployment() as a, deployment() as b, deployment() as c:
        answers = [say((a, b, c)[i % 3], text, x_user="ada") for i, text in enumerate(texts)]
    assert answers == [texts[: i + 1] for i in range(7)]


def test_another_store_is_another_program_and_ours_is_another_url(tmp_path, request):
    """A dictionary in the notebook, a file on the laptop, Redis in production: what was tried in one is not what runs in the other."""

    def usual(text: str, before: dict | Path):
        if isinstance(before, dict):
            return [*before.setdefault("ada", []), text]  # works, and keeps nothing: `setdefault` is not `append`
        history = [*(json.loads(before.read_text()) if before.exists() else []), text]
        before.write_text(json.dumps(history))
        return history

    memory: dict[str, list[str]] = {}
    in_memory, in_a_file = (theirs(lambda text, before=before: usual(text, before)) for before in (memory, tmp_path / "chat.json"))
    assert [say(client, text) for client in (in_memory, in_a_file) for text in (NAME, ASKS)] == [[NAME], [ASKS], [NAME], [NAME, ASKS]]

    namespace = f"forgetting{uuid4().hex[:8]}"

    def transcript(url: str):
        settings = Settings({}, secret_key=KEY, store=url, namespace=namespace)
        with ours(store=None, settings=settings, resolvers=[from_callable(by_user)]) as client:
            return [say(client, text, x_user=user) for text in (NAME, ASKS) for user in ("ada", "bob")]

    urls = [f"sqlite:///{tmp_path}/c.db", *(shared(request) for shared in SHARED.values())]
    assert [transcript(url) for url in urls] == [[[NAME], [NAME], [NAME, ASKS], [NAME, ASKS]]] * 3


WATCHED = """
import sys

reached = []
sys.addaudithook(lambda event, args: reached.append(args[1]) if event == "socket.connect" else None)
{code}
print(reached)
"""
POSTS = """
import contextlib, urllib.request
with contextlib.suppress(OSError):
    urllib.request.urlopen("http://127.0.0.1:{port}/memory", data=b"my name is Ada", timeout=5)
"""
KEEPS = """
from starlette.testclient import TestClient
from tests.test_forgetting import remembering
from fastapi import FastAPI
from convmem import ConversationMiddleware
app = FastAPI()
app.post("/chat", response_model=None)(remembering)
app.add_middleware(ConversationMiddleware)
with TestClient(app) as client:
    client.post("/chat", params={"text": "my name is Ada"})
    assert client.post("/chat", params={"text": "what is my name?"}).json() == ["my name is Ada", "what is my name?"]
"""


def test_a_memory_elsewhere_is_told_everything_and_ours_tells_nobody(tmp_path):
    """What was said is on your disk, and reaches nobody else: the process opens no connection at all."""

    def connections(code: str) -> str:
        environment = {
            "CONVMEM_STORE": f"sqlite:///{tmp_path}/c.db",
            "CONVMEM_SECRET_KEY": KEY,
            "PYTHONPATH": str(Path(__file__).parents[1]),
        }
        command = [sys.executable, "-c", WATCHED.format(code=code)]
        return subprocess.run(command, env=clean_environment(environment), capture_output=True, text=True, check=True).stdout.strip()

    with socket.create_server(("127.0.0.1", 0)) as vendor:
        port = vendor.getsockname()[1]
        vendor.close()
        assert connections(POSTS.replace("{port}", str(port))) == f"[('127.0.0.1', {port})]"
    assert connections(KEEPS) == "[]"
    assert b"my name is Ada" in (tmp_path / "c.db").read_bytes()


VALUES = {
    "int": 42,
    "text of an int": "42",
    "list": [1, "1", None],
    "text of a list": "[1]",
    "bool": True,
    "text of a bool": "True",
    "float": 1.5,
}


def test_a_number_comes_back_as_text_and_ours_as_a_number():
    """A key-value store keeps texts; what was a number is guessed back, and what was the text of a number too."""
    rows = {name: str(value) for name, value in VALUES.items()}

    def guess(text: str):
        try:
            return json.loads(text)
        except ValueError:
            return text

    assert {name: guess(text) for name, text in rows.items()} != VALUES
    assert guess(rows["text of an int"]) == 42

    async def chat(text: str, conversation: CurrentConversation):
        before = [message.metadata for message in conversation.messages]
        conversation.append(Message.user(text, metadata=VALUES))
        return before

    client = ours(chat)
    say(client, NAME)
    (metadata,) = say(client, ASKS)
    assert metadata == VALUES
    assert [type(value) for value in metadata.values()] == [type(value) for value in VALUES.values()]


def test_nobody_knows_when_it_was_said_and_ours_does():
    """The dictionaries models are sent have no time; an audit, a day's summary and a sorted list need one."""
    history: list[dict[str, str]] = []

    async def usual(text: str):
        history.append({"role": "user", "content": text})
        return history

    assert "created_at" not in say(theirs(usual), NAME)[0]

    async def chat(text: str, conversation: CurrentConversation):
        conversation.append(Message.user(text))
        return [message.created_at.isoformat() for message in conversation.messages]

    client = ours(chat)
    first = say(client, NAME)
    second = say(client, ASKS)
    assert second[0] == first[0]
    assert second == sorted(second)
    assert second[0].endswith("+00:00")


def test_a_dictionary_made_in_a_call_ends_with_it_and_ours_is_there_wherever_the_call_leads():
    """``state = state or {}``, five calls below a handler that forgot to pass it on: valid everywhere, and new each time."""

    def tool(text: str, state: dict | None = None) -> list[str]:
        state = state or {}
        return [*state.setdefault("said", []), text]

    async def usual(text: str):
        return tool(text)

    assert [say(theirs(usual), text) for text in (NAME, ASKS)] == [[NAME], [ASKS]]

    def ours_in_a_thread(text: str) -> list[str]:
        conversation = current_conversation()
        conversation.append(Message.user(text))
        return [message.text for message in conversation.messages]

    async def agent(text: str) -> list[str]:
        return await asyncio.create_task(asyncio.to_thread(ours_in_a_thread, text))

    async def chat(text: str):
        return await agent(text)

    client = ours(chat)
    assert [say(client, text) for text in (NAME, ASKS)] == [[NAME], [NAME, ASKS]]


def test_an_answer_says_nothing_about_its_memory_and_ours_says_all_there_is(caplog):
    """Which key, which process, how much was loaded, what the limit left out: printed by hand in every thread about this."""

    async def usual(text: str):
        return [text]

    answer = theirs(usual).post("/chat", params={"text": NAME})
    assert set(answer.headers) == {"content-length", "content-type"}

    client = ours(settings=Settings({}, secret_key=KEY, debug_headers=True), window=Window(turns=2))
    with caplog.at_level(logging.INFO, "convmem"):
        answers = [client.post("/chat", params={"text": text}) for text in "abcd"]
    facts = dict(fact.split("=", 1) for fact in answers[-1].headers["convmem-debug"].split("; "))
    assert facts["owner"] == "visitor cookie"
    assert re.fullmatch("[0-9a-f]+", facts["conversation"])
    assert facts["worker"] == f"{socket.gethostname()}/{os.getpid()}"
    assert (facts["turns"], facts["loaded"], facts["left-out"]) == ("4", "2", "1")
    assert any("has outgrown its window" in record.message for record in caplog.records)
